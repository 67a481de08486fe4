use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;

use agl_store::{Clock, IdSource};
use agl_trace::{RewardDimension, attributes, chat_attributes, reward_attributes, tool_call_attributes};
use agl_types::{
    Attempt, AttemptedRollout, Attributes, Llm, NamedResources, PromptTemplate, Resource, Rollout, Span,
    StatusCode, ids, semconv,
};
use serde::Serialize;
use serde_json::Value;

use crate::agent::Failure;
use crate::{BoxError, Error, SpanSink};

tokio::task_local! {
    static CURRENT: RolloutContext;
}

thread_local! {
    /// The spans that the code on this thread is in, innermost last: their trace and their id.
    static ENTERED: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Judges the work of the rollout being run in this task; see [`RolloutContext::emit_reward`].
///
/// # Errors
/// [`Error::NoRollout`] outside an agent and in tasks that it spawned, and those of
/// [`RolloutContext::emit_reward`].
///
/// ```
/// use agl_runner::{BoxError, Outcome, RolloutContext, emit_reward};
/// use serde_json::Value;
///
/// async fn judge(answer: &str) -> Result<(), BoxError> {
///     // Deep in somebody's code, without a context at hand.
///     emit_reward(if answer == "42" { 1.0 } else { 0.0 }).await?;
///     Ok(())
/// }
///
/// let agent = |task: Value, _: RolloutContext| async move {
///     judge(task.as_str().unwrap_or_default()).await?;
///     Ok::<_, BoxError>(Outcome::Done)
/// };
/// ```
pub async fn emit_reward(reward: f64) -> Result<(), Error> {
    RolloutContext::current().ok_or(Error::NoRollout)?.emit_reward(reward).await
}

/// What an agent is given beside its task: where it stands, what it may use, and where its spans go.
///
/// Cheap to clone.
///
/// ```
/// use agl_runner::{BoxError, Outcome, RolloutContext};
/// use serde_json::{Value, json};
///
/// async fn agent(task: Value, context: RolloutContext) -> Result<Outcome, BoxError> {
///     context.emit_message("thinking").await?;
///     let sum = context
///         .operation("add", async |within| {
///             within.emit_annotation(&json!({"terms": task})).await?;
///             Ok(2)
///         })
///         .await?;
///     context.emit_object(&sum).await?;
///     Ok(Outcome::Reward(f64::from(sum)))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct RolloutContext {
    shared: Arc<Shared>,
    /// The span that new spans happen in.
    parent_id: Option<String>,
}

#[derive(Debug)]
struct Shared {
    attempted: AttemptedRollout,
    resources: NamedResources,
    sink: SpanSink,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    trace_id: String,
}

/// A span that has begun: what happens in its context comes below it.
///
/// ```
/// use agl_runner::{BoxError, RolloutContext};
///
/// async fn plan(context: &RolloutContext) -> Result<(), BoxError> {
///     let mut planner = context.begin_agent("planner");
///     planner.span_mut().attributes.insert("depth".to_owned(), 3.into());
///     planner.context().emit_message("within the planner's span").await?;
///     planner.end().await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct LastingSpan {
    context: RolloutContext,
    span: Span,
}

impl RolloutContext {
    pub(crate) fn new(
        attempted: AttemptedRollout,
        resources: NamedResources,
        sink: SpanSink,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        let trace_id = ids::trace_id(ids.next(), ids.next());
        let shared = Shared { attempted, resources, sink, clock, ids, trace_id };
        Self { shared: Arc::new(shared), parent_id: None }
    }

    /// The context of the rollout being run in this task. Tasks that the agent spawns have none; give them a clone.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs `work` with this context as the current one.
    pub(crate) async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// The rollout, as it was when the runner took it on.
    #[must_use]
    pub fn rollout(&self) -> &Rollout {
        &self.shared.attempted.rollout
    }

    /// The attempt, as it was when the runner took it on.
    #[must_use]
    pub fn attempt(&self) -> &Attempt {
        &self.shared.attempted.attempt
    }

    /// The resources of the rollout; empty when it names none and the store has none.
    #[must_use]
    pub fn resources(&self) -> &NamedResources {
        &self.shared.resources
    }

    /// The first model endpoint among the resources.
    #[must_use]
    pub fn llm(&self) -> Option<&Llm> {
        self.resources().values().find_map(|resource| match resource {
            Resource::Llm(llm) | Resource::ProxyLlm(llm) => Some(llm),
            Resource::PromptTemplate(_) | Resource::Custom(_) => None,
        })
    }

    /// The first prompt template among the resources.
    #[must_use]
    pub fn prompt_template(&self) -> Option<&PromptTemplate> {
        self.resources().values().find_map(|resource| match resource {
            Resource::PromptTemplate(template) => Some(template),
            Resource::Llm(_) | Resource::ProxyLlm(_) | Resource::Custom(_) => None,
        })
    }

    /// The moment, in seconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.shared.clock.now()
    }

    /// A span of this attempt that begins and ends now, with ids of its own.
    #[must_use]
    pub fn new_span(&self, name: &str) -> Span {
        let now = self.now();
        let span_id = ids::span_id(self.shared.ids.next());
        let mut span = Span::new(name, self.shared.trace_id.clone(), span_id, now, now).placed(
            &self.rollout().rollout_id,
            &self.attempt().attempt_id,
            0,
        );
        span.parent_id = self.parent_id.clone().or_else(|| self.entered());
        span
    }

    /// The span of this attempt that the code on this thread is in.
    fn entered(&self) -> Option<String> {
        ENTERED.with_borrow(|entered| {
            let (_, span_id) = entered.iter().rfind(|(trace_id, _)| *trace_id == self.shared.trace_id)?;
            Some(span_id.clone())
        })
    }

    /// Has the code on this thread be in a span, until [`RolloutContext::exit`]: spans made meanwhile come below it,
    /// unless their context says otherwise. For those who follow a program from outside, as subscribers of `tracing`
    /// do.
    pub fn enter(&self, span_id: &str) {
        ENTERED.with_borrow_mut(|entered| entered.push((self.shared.trace_id.clone(), span_id.to_owned())));
    }

    /// Undoes [`RolloutContext::enter`].
    pub fn exit(&self, span_id: &str) {
        ENTERED.with_borrow_mut(|entered| {
            if let Some(place) = entered.iter().rposition(|(_, entered)| entered == span_id) {
                entered.remove(place);
            }
        });
    }

    /// The id of the trace that all spans of this attempt belong to.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.shared.trace_id
    }

    /// Hands a span to the store, which numbers it. Returns at once; it is kept when the attempt is reported.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_span(&self, span: Span) -> Result<(), Error> {
        self.shared.sink.emit(span).await
    }

    /// Like [`RolloutContext::emit_span`], for code that cannot wait.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over; [`Error::Full`] when very many spans are on their way already, which
    /// the next flush tells in the log.
    pub fn emit_span_now(&self, span: Span) -> Result<(), Error> {
        self.shared.sink.emit_now(span)
    }

    /// Waits until every span emitted so far is kept by the store.
    ///
    /// # Errors
    /// [`Error::Store`] when the store did not take some span.
    pub async fn flush(&self) -> Result<(), Error> {
        self.shared.sink.flush().await
    }

    /// Judges the work so far with one number. The last reward of an attempt is its final one.
    ///
    /// # Errors
    /// [`Error::Reward`] for NaN and infinities, [`Error::Over`] when the rollout is over.
    pub async fn emit_reward(&self, reward: f64) -> Result<(), Error> {
        self.emit_rewards(&[RewardDimension { name: agl_trace::PRIMARY.to_owned(), value: reward }]).await
    }

    /// Judges the work so far in several dimensions, the primary one first.
    ///
    /// # Errors
    /// Those of [`RolloutContext::emit_reward`].
    pub async fn emit_rewards(&self, dimensions: &[RewardDimension]) -> Result<(), Error> {
        if let Some(odd) = dimensions.iter().find(|dimension| !dimension.value.is_finite()) {
            return Err(Error::Reward { name: odd.name.clone(), value: odd.value });
        }
        self.emit(semconv::AGL_ANNOTATION, reward_attributes(dimensions)).await
    }

    /// Notes anything: nested JSON becomes dotted attributes.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_annotation(&self, annotation: &Value) -> Result<(), Error> {
        self.emit(semconv::AGL_ANNOTATION, attributes::flatten(annotation, false)).await
    }

    /// Notes a message.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_message(&self, message: &str) -> Result<(), Error> {
        self.emit(
            semconv::AGL_MESSAGE,
            Attributes::from_iter([(semconv::MESSAGE_BODY.to_owned(), message.into())]),
        )
        .await
    }

    /// Notes any object: a number, a text or a truth as itself, anything else as JSON.
    ///
    /// # Errors
    /// [`Error::Object`] for what has no JSON, [`Error::Over`] when the rollout is over.
    pub async fn emit_object(&self, object: &(impl Serialize + Sync)) -> Result<(), Error> {
        let value = serde_json::to_value(object).map_err(|error| Error::Object(error.to_string()))?;
        // As Python calls them, where most who read this are.
        let (kind, key, text) = match &value {
            Value::String(text) => ("str", semconv::OBJECT_LITERAL, text.clone()),
            Value::Bool(truth) => {
                ("bool", semconv::OBJECT_LITERAL, if *truth { "True" } else { "False" }.to_owned())
            }
            Value::Number(number) => {
                (if number.is_f64() { "float" } else { "int" }, semconv::OBJECT_LITERAL, number.to_string())
            }
            Value::Null => ("NoneType", semconv::OBJECT_JSON, value.to_string()),
            Value::Array(_) => ("list", semconv::OBJECT_JSON, value.to_string()),
            Value::Object(_) => ("dict", semconv::OBJECT_JSON, value.to_string()),
        };
        let attributes = [(semconv::OBJECT_TYPE.to_owned(), kind.into()), (key.to_owned(), text.into())];
        self.emit(semconv::AGL_OBJECT, Attributes::from_iter(attributes)).await
    }

    /// Notes a call of a tool with its arguments and its result, by OpenTelemetry's
    /// [GenAI conventions](https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#execute-tool-span).
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_tool_call(&self, name: &str, arguments: &Value, result: &Value) -> Result<(), Error> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let span = self
            .new_span(&format!("{} {name}", semconv::GEN_AI_EXECUTE_TOOL))
            .with_attribute(semconv::GEN_AI_OPERATION_NAME, semconv::GEN_AI_EXECUTE_TOOL)
            .with_attribute(semconv::GEN_AI_TOOL_NAME, name)
            .with_attribute(semconv::GEN_AI_TOOL_TYPE, "function")
            .with_attribute(semconv::GEN_AI_TOOL_ARGUMENTS, text(arguments))
            .with_attribute(semconv::GEN_AI_TOOL_RESULT, text(result));
        self.emit_span(span).await
    }

    /// Notes that a part of the agent's work has started. The attempt itself is the runner's to note.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_started(&self, part: &str) -> Result<(), Error> {
        self.emit_state(semconv::STATE_STARTED, Some(part), None).await
    }

    /// Notes that a part of the agent's work has finished well.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_finished(&self, part: &str) -> Result<(), Error> {
        self.emit_state(semconv::STATE_FINISHED, Some(part), None).await
    }

    /// Notes that a part of the agent's work has failed.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_failed(&self, part: &str, error: &BoxError) -> Result<(), Error> {
        self.emit_state(semconv::STATE_FAILED, Some(part), Some(&Failure::of_error(error))).await
    }

    /// A state event of the attempt, or of a part of it.
    pub(crate) async fn emit_state(
        &self,
        event: &str,
        part: Option<&str>,
        failure: Option<&Failure>,
    ) -> Result<(), Error> {
        let span = state_span(self.new_span(semconv::AGL_STATE), event, part, failure);
        self.emit_span(span).await
    }

    /// Notes an error that the agent has dealt with; one that it returns is noted by the runner.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_exception(&self, error: &BoxError) -> Result<(), Error> {
        self.emit_failure(&Failure::of_error(error)).await
    }

    pub(crate) async fn emit_failure(&self, failure: &Failure) -> Result<(), Error> {
        self.emit(semconv::AGL_EXCEPTION, failure.attributes()).await
    }

    async fn emit(&self, name: &str, attributes: Attributes) -> Result<(), Error> {
        let mut span = self.new_span(name);
        // An attribute cannot be null; what is null within an annotation is left out.
        span.attributes = attributes.into_iter().filter(|(_, value)| !value.is_null()).collect();
        self.emit_span(span).await
    }

    /// Records a chat call that began at `started` and has just ended, from the JSON of its request and response:
    /// a span `openai.chat.completion`, after one for each tool call that the model asked for.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn record_chat(&self, request: &Value, response: &Value, started: f64) -> Result<(), Error> {
        let mut call = self.new_span(agl_trace::LLM_CALL);
        call.start_time = Some(started);
        call.attributes = chat_attributes(request, response);
        for (name, attributes) in tool_call_attributes(response) {
            let mut tool = self.new_span(&name);
            tool.parent_id = Some(call.span_id.clone());
            tool.attributes = attributes;
            self.emit_span(tool).await?;
        }
        self.emit_span(call).await
    }

    /// Begins a span named `agentlightning.operation` for a step of the agent called `name`.
    #[must_use]
    pub fn begin_operation(&self, name: &str) -> LastingSpan {
        self.begin(self.new_span(semconv::AGL_OPERATION).with_attribute(semconv::OPERATION_NAME, name))
    }

    /// Begins the span of a sub-agent: adapters can tell its calls by `name`.
    #[must_use]
    pub fn begin_agent(&self, name: &str) -> LastingSpan {
        self.begin(self.new_span(name).with_attribute("agent.name", name))
    }

    fn begin(&self, span: Span) -> LastingSpan {
        let context = Self { shared: self.shared.clone(), parent_id: Some(span.span_id.clone()) };
        LastingSpan { context, span }
    }

    /// Runs `work` within [`RolloutContext::begin_operation`]; an error is noted in the span and passed on.
    ///
    /// # Errors
    /// What `work` returns, and what [`RolloutContext::emit_span`] does.
    pub async fn operation<T, Work>(
        &self,
        name: &str,
        work: impl FnOnce(RolloutContext) -> Work,
    ) -> Result<T, BoxError>
    where
        Work: Future<Output = Result<T, BoxError>>,
    {
        let mut operation = self.begin_operation(name);
        let within = operation.context().clone();
        let result = within.clone().scope(work(within)).await;
        if let Err(error) = &result {
            operation.span.status.status_code = StatusCode::Error;
            operation.span.status.description = Some(error.to_string());
        }
        operation.end().await?;
        result
    }
}

/// Makes a state event of a span: of the attempt, or of a part of it.
fn state_span(span: Span, event: &str, part: Option<&str>, failure: Option<&Failure>) -> Span {
    let mut span = span.with_state(event);
    if let Some(part) = part {
        span = span.with_attribute(semconv::STATE_NAME, part);
    }
    if let Some(failure) = failure {
        span.attributes.extend(failure.attributes());
        span = span.with_attribute(semconv::STATE_REASON, failure.reason);
        span.status.status_code = StatusCode::Error;
        span.status.description = Some(failure.message.clone());
    }
    span
}

impl LastingSpan {
    /// The context whose spans come below this one.
    #[must_use]
    pub fn context(&self) -> &RolloutContext {
        &self.context
    }

    /// The span, to be given attributes or a status.
    pub fn span_mut(&mut self) -> &mut Span {
        &mut self.span
    }

    /// Ends the span now and hands it to the store. A span that is dropped instead is never stored; its children
    /// are, below a virtual parent.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn end(mut self) -> Result<(), Error> {
        self.span.end_time = Some(self.context.now());
        self.context.emit_span(self.span).await
    }
}
