use std::future::Future;
use std::sync::Arc;

use agl_store::{Clock, IdSource};
use agl_trace::{RewardDimension, attributes, chat_attributes, reward_attributes, tool_call_attributes};
use agl_types::{
    Attempt, AttemptedRollout, Attributes, Llm, NamedResources, PromptTemplate, Resource, Rollout, Span,
    StatusCode, ids, semconv,
};
use serde_json::{Value, json};

use crate::agent::Failure;
use crate::{BoxError, Error, SpanSink};

tokio::task_local! {
    static CURRENT: RolloutContext;
}

/// Judges the work of the rollout being run in this task; see [`RolloutContext::emit_reward`].
///
/// # Errors
/// [`Error::NoRollout`] outside an agent and in tasks that it spawned, and those of
/// [`RolloutContext::emit_reward`].
pub async fn emit_reward(reward: f64) -> Result<(), Error> {
    RolloutContext::current().ok_or(Error::NoRollout)?.emit_reward(reward).await
}

/// What an agent is given beside its task: where it stands, what it may use, and where its spans go.
///
/// Cheap to clone.
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
        span.parent_id.clone_from(&self.parent_id);
        span
    }

    /// Hands a span to the store, which numbers it. Returns at once; it is kept when the attempt is reported.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_span(&self, span: Span) -> Result<(), Error> {
        self.shared.sink.emit(span).await
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

    /// Notes an error that the agent has dealt with; one that it returns is noted by the runner.
    ///
    /// # Errors
    /// [`Error::Over`] when the rollout is over.
    pub async fn emit_exception(&self, error: &BoxError) -> Result<(), Error> {
        self.emit_failure(&Failure::of_error(error)).await
    }

    pub(crate) async fn emit_failure(&self, failure: &Failure) -> Result<(), Error> {
        let exception =
            json!({"exception": {"type": failure.kind, "message": failure.message, "escaped": true}});
        self.emit(semconv::AGL_EXCEPTION, attributes::flatten(&exception, false)).await
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
        let result = work(operation.context().clone()).await;
        if let Err(error) = &result {
            operation.span.status.status_code = StatusCode::Error;
            operation.span.status.description = Some(error.to_string());
        }
        operation.end().await?;
        result
    }
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
