//! Runners on a real store: every way an agent can end is reported once, after its spans.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here, and agents must be able to panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agl_runner::{
    Agent, AnyAgent, BoxError, Hook, Named, Outcome, RolloutContext, Runner, RunnerOptions, RunnerReport,
    StopSignal,
};
use agl_store::{MemoryStore, Store};
use agl_trace::find_final_reward;
use agl_types::{
    Attempt, AttemptQuery, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, Llm, NamedResources,
    PromptTemplate, Resource, Rollout, RolloutConfig, RolloutStatus, RolloutUpdate, Span, SpanQuery,
    StartRollout, TemplateEngine, WorkerStatus, semconv,
};
use async_trait::async_trait;
use serde_json::{Value, json};

/// Does what its task says.
struct Puppet;

#[async_trait]
impl Agent for Puppet {
    type Task = String;
    type Resources = ();

    async fn rollout(&self, task: String, (): (), context: &RolloutContext) -> Result<Outcome, BoxError> {
        match task.as_str() {
            "reward" => {
                context.emit_reward(0.25).await?;
                Ok(Outcome::Reward(1.0))
            }
            "done" => Ok(Outcome::Done),
            "nan" => Ok(Outcome::Reward(f64::NAN)),
            "error" => {
                context.emit_message("before the error").await?;
                Err("no luck".into())
            }
            "panic" => panic!("out of control"),
            "hang" => std::future::pending().await,
            "many" => {
                for number in 0..1000 {
                    context.emit_annotation(&json!({"number": number})).await?;
                }
                Ok(Outcome::Done)
            }
            other => Err(format!("unknown task {other}").into()),
        }
    }
}

fn runner(store: &Arc<MemoryStore>, max_rollouts: Option<u64>) -> Runner {
    let options = RunnerOptions {
        max_rollouts,
        recall_interval: Duration::from_millis(50),
        ..RunnerOptions::new("Worker-0")
    };
    Runner::new(Arc::new(Puppet), store.clone(), options)
}

async fn enqueue(store: &Arc<MemoryStore>, task: &str, config: Option<RolloutConfig>) -> String {
    let request = EnqueueRolloutRequest { config, ..EnqueueRolloutRequest::new(task) };
    store.enqueue_rollout(request).await.unwrap().rollout_id
}

/// Runs one rollout and returns how it ended.
async fn run(task: &str) -> (Rollout, Attempt, Vec<Span>) {
    let store = Arc::new(MemoryStore::new());
    let rollout_id = enqueue(&store, task, None).await;
    runner(&store, Some(1)).run(&StopSignal::new()).await;
    ended(&store, &rollout_id).await
}

async fn ended(store: &Arc<MemoryStore>, rollout_id: &str) -> (Rollout, Attempt, Vec<Span>) {
    let view = store.get_rollout_by_id(rollout_id).await.unwrap().unwrap();
    (view.rollout, view.attempt.unwrap(), spans(store, rollout_id).await)
}

/// What the agent has emitted, without the runner's state events.
async fn spans(store: &Arc<MemoryStore>, rollout_id: &str) -> Vec<Span> {
    let mut spans = all_spans(store, rollout_id).await;
    spans.retain(|span| span.name != semconv::AGL_STATE);
    spans
}

async fn all_spans(store: &Arc<MemoryStore>, rollout_id: &str) -> Vec<Span> {
    let query = SpanQuery { rollout_id: rollout_id.to_owned(), ..SpanQuery::default() };
    store.query_spans(query).await.unwrap().items
}

/// The state events of all attempts, with the reasons of failures.
async fn states(store: &Arc<MemoryStore>, rollout_id: &str) -> Vec<String> {
    let spans = all_spans(store, rollout_id).await;
    let word = |span: &Span, key: &str| span.attributes.get(key).and_then(Value::as_str).map(str::to_owned);
    spans
        .iter()
        .filter(|span| span.name == semconv::AGL_STATE)
        .map(|span| {
            let event = word(span, semconv::STATE_EVENT).unwrap();
            word(span, semconv::STATE_REASON).map_or(event.clone(), |reason| format!("{event} {reason}"))
        })
        .collect()
}

async fn attempts(store: &Arc<MemoryStore>, rollout_id: &str) -> Vec<Attempt> {
    let query = AttemptQuery { rollout_id: rollout_id.to_owned(), ..AttemptQuery::default() };
    store.query_attempts(query).await.unwrap().items
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn reason_of(attempt: &Attempt) -> &str {
    attempt.metadata.as_ref().unwrap()[Attempt::REASON].as_str().unwrap()
}

fn failure_of(attempt: &Attempt) -> Value {
    attempt.metadata.as_ref().unwrap()["failure"].clone()
}

#[tokio::test]
async fn a_returned_reward_comes_last() {
    let (rollout, attempt, spans) = run("reward").await;
    assert_eq!((rollout.status, attempt.status), (RolloutStatus::Succeeded, AttemptStatus::Succeeded));
    assert_eq!(attempt.worker_id.as_deref(), Some("Worker-0"));
    // Between the attempt's start and its end.
    assert_eq!(spans.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(find_final_reward(&spans), Some(1.0));
    assert_eq!(spans[1].name, "agentlightning.annotation");
    assert_eq!(spans[1].parent_id, None);
    assert_eq!(spans[0].trace_id, spans[1].trace_id);
}

#[tokio::test]
async fn an_agent_that_gives_no_reward_leaves_no_span() {
    let (rollout, _, spans) = run("done").await;
    assert_eq!(rollout.status, RolloutStatus::Succeeded);
    assert!(spans.is_empty());
}

#[tokio::test]
async fn an_error_is_recorded_after_what_came_before_it() {
    let (rollout, attempt, spans) = run("error").await;
    assert_eq!(reason_of(&attempt), "error");
    assert_eq!((rollout.status, attempt.status), (RolloutStatus::Failed, AttemptStatus::Failed));
    assert_eq!(failure_of(&attempt), json!({"type": "Error", "message": "no luck"}));
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["agentlightning.message", "agentlightning.exception"]);
    assert_eq!(spans[1].attributes["exception.message"], "no luck");
    assert_eq!(spans[1].attributes["exception.escaped"], true);
}

#[tokio::test]
async fn a_panic_is_an_error() {
    let (rollout, attempt, spans) = run("panic").await;
    assert_eq!(rollout.status, RolloutStatus::Failed);
    assert_eq!(failure_of(&attempt), json!({"type": "Panic", "message": "out of control"}));
    assert_eq!(spans[0].attributes["exception.type"], "Panic");
}

#[tokio::test]
async fn a_reward_that_is_no_number_is_an_error() {
    let (rollout, attempt, _) = run("nan").await;
    assert_eq!(rollout.status, RolloutStatus::Failed);
    assert!(failure_of(&attempt)["message"].as_str().unwrap().contains("finite"));
}

#[tokio::test]
async fn spans_are_kept_in_the_order_of_emission() {
    let (rollout, _, spans) = run("many").await;
    assert_eq!(rollout.status, RolloutStatus::Succeeded);
    let numbers: Vec<i64> = spans.iter().map(|span| span.attributes["number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    assert!(spans.is_sorted_by(|a, b| a.sequence_id < b.sequence_id));
}

#[tokio::test]
async fn a_hanging_agent_is_given_up_when_its_time_is_up_and_tried_again() {
    let store = Arc::new(MemoryStore::new());
    let config = RolloutConfig {
        timeout_seconds: Some(0.05),
        max_attempts: 2.try_into().unwrap(),
        retry_condition: vec![AttemptStatus::Timeout],
        ..RolloutConfig::default()
    };
    let rollout_id = enqueue(&store, "hang", Some(config)).await;
    let report = runner(&store, Some(2)).run(&StopSignal::new()).await;
    assert_eq!(report, RunnerReport { timed_out: 2, ..RunnerReport::default() });
    let (rollout, _, spans) = ended(&store, &rollout_id).await;
    assert_eq!(rollout.status, RolloutStatus::Failed);
    let statuses: Vec<AttemptStatus> =
        attempts(&store, &rollout_id).await.iter().map(|attempt| attempt.status).collect();
    assert_eq!(statuses, [AttemptStatus::Timeout, AttemptStatus::Timeout]);
    assert_eq!(spans.len(), 2);
    let expected = ["started", "failed timeout", "started", "failed timeout"];
    assert_eq!(states(&store, &rollout_id).await, expected);
}

#[tokio::test]
async fn a_timeout_that_the_store_sees_first_is_told_as_one() {
    let store = Arc::new(MemoryStore::new());
    let rollout_id = enqueue(&store, "hang", None).await;
    let running = tokio::spawn({
        let runner = runner(&store, Some(1));
        async move { runner.run(&StopSignal::new()).await }
    });
    let attempt = until(async || attempts(&store, &rollout_id).await.pop()).await;
    let update = AttemptUpdate { status: AttemptStatus::Timeout.into(), ..AttemptUpdate::default() };
    store.update_attempt(&rollout_id, &attempt.attempt_id, update).await.unwrap();
    assert_eq!(running.await.unwrap(), RunnerReport { timed_out: 1, ..RunnerReport::default() });
    let states = states(&store, &rollout_id).await;
    assert_eq!(states, ["started", "failed timeout"]);
}

#[tokio::test]
async fn missing_resources_fail_the_attempt_and_say_why() {
    let store = Arc::new(MemoryStore::new());
    let request = EnqueueRolloutRequest {
        resources_id: Some("rs-nowhere".to_owned()),
        ..EnqueueRolloutRequest::new("reward")
    };
    let rollout_id = store.enqueue_rollout(request).await.unwrap().rollout_id;
    runner(&store, Some(1)).run(&StopSignal::new()).await;
    let (rollout, attempt, spans) = ended(&store, &rollout_id).await;
    assert_eq!((rollout.status, attempt.status), (RolloutStatus::Failed, AttemptStatus::Failed));
    assert_eq!(reason_of(&attempt), "missing_resources");
    assert_eq!(failure_of(&attempt)["type"], "ResourcesError");
    assert!(failure_of(&attempt)["message"].as_str().unwrap().contains("rs-nowhere"));
    assert_eq!(spans.len(), 1);
    assert_eq!(states(&store, &rollout_id).await, ["started", "failed missing_resources"]);
}

#[tokio::test]
async fn the_agent_sees_its_resources_and_nests_its_spans() {
    let store = Arc::new(MemoryStore::new());
    let llm = Llm::new("http://localhost/v1", "m");
    store.add_resources(NamedResources::from_iter([("llm".to_owned(), Resource::Llm(llm))])).await.unwrap();
    let agent = |_: Value, context: RolloutContext| async move {
        let model = context.llm().ok_or("no llm")?.model.clone();
        let answer = json!({"id": "c1", "model": model, "choices": [{"message": {"role": "assistant", "content": "hi",
            "tool_calls": [{"id": "t", "function": {"name": "add", "arguments": "{}"}}]}}]});
        let agent = context.begin_agent("A");
        let started = context.now();
        agent.context().record_chat(&json!({"model": "m", "messages": []}), &answer, started).await?;
        agent.end().await?;
        let failed: Result<(), BoxError> =
            context.operation("step", async |_| Err::<(), BoxError>("step failed".into())).await;
        assert_eq!(failed.unwrap_err().to_string(), "step failed");
        Ok(Outcome::Reward(0.5))
    };
    let options = RunnerOptions::new("Worker-0");
    let runner = Runner::new(Arc::new(agent), store.clone(), options);
    let view = runner.step(StartRollout::default(), &StopSignal::new()).await.unwrap();
    assert_eq!(view.rollout.status, RolloutStatus::Succeeded, "{view:?}");
    let spans = spans(&store, &view.rollout.rollout_id).await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "tool_call.add",
            "openai.chat.completion",
            "A",
            "agentlightning.operation",
            "agentlightning.annotation"
        ]
    );
    assert_eq!(spans[0].parent_id.as_ref(), Some(&spans[1].span_id));
    assert_eq!(spans[1].parent_id.as_ref(), Some(&spans[2].span_id));
    assert_eq!(spans[3].status.description.as_deref(), Some("step failed"));
    let triplets = agl_trace::spans_to_triplets(&spans, &agl_trace::TripletOptions::default()).unwrap();
    assert_eq!(triplets[0].metadata["agent_name"], "A");
    assert_eq!(triplets[0].reward, Some(0.5));
}

#[tokio::test]
async fn a_reward_finds_the_rollout_of_its_task() {
    let store = Arc::new(MemoryStore::new());
    let agent = |task: Value, _: RolloutContext| async move {
        agl_runner::emit_reward(task.as_f64().unwrap()).await?;
        let elsewhere = tokio::spawn(agl_runner::emit_reward(9.0)).await?;
        assert!(matches!(elsewhere, Err(agl_runner::Error::NoRollout)));
        Ok(Outcome::Done)
    };
    let runner = Runner::new(Arc::new(agent), store.clone(), RunnerOptions::new("Worker-0"));
    let signal = StopSignal::new();
    let request = |reward: f64| StartRollout { rollout: EnqueueRolloutRequest::new(reward), worker_id: None };
    let (one, two) = tokio::join!(runner.step(request(1.0), &signal), runner.step(request(2.0), &signal));
    for (view, reward) in [(one.unwrap(), 1.0), (two.unwrap(), 2.0)] {
        assert_eq!(view.rollout.status, RolloutStatus::Succeeded, "{view:?}");
        assert_eq!(find_final_reward(&spans(&store, &view.rollout.rollout_id).await), Some(reward));
    }
}

#[tokio::test]
async fn a_rollout_that_is_called_off_is_given_up() {
    let store = Arc::new(MemoryStore::new());
    let rollout_id = enqueue(&store, "hang", None).await;
    let next = enqueue(&store, "reward", None).await;
    let signal = StopSignal::new();
    let runner = runner(&store, Some(2));
    let run = tokio::spawn({
        let signal = signal.clone();
        async move { runner.run(&signal).await }
    });
    until(async || store.get_latest_attempt(&rollout_id).await.unwrap()).await;
    let cancelled = RolloutUpdate { status: RolloutStatus::Cancelled.into(), ..RolloutUpdate::default() };
    store.update_rollout(&rollout_id, cancelled).await.unwrap();
    run.await.unwrap();
    let (rollout, attempt, _) = ended(&store, &rollout_id).await;
    assert_eq!((rollout.status, attempt.status), (RolloutStatus::Cancelled, AttemptStatus::Failed));
    assert_eq!(reason_of(&attempt), "cancelled");
    assert_eq!(ended(&store, &next).await.0.status, RolloutStatus::Succeeded);
}

#[tokio::test]
async fn a_cancelled_runner_reports_its_attempt_as_failed() {
    let store = Arc::new(MemoryStore::new());
    // It would be tried again, had it failed by itself.
    let config = RolloutConfig {
        max_attempts: 3.try_into().unwrap(),
        retry_condition: vec![AttemptStatus::Failed],
        ..RolloutConfig::default()
    };
    let rollout_id = enqueue(&store, "hang", Some(config)).await;
    let signal = StopSignal::new();
    let runner = runner(&store, None);
    let run = tokio::spawn({
        let signal = signal.clone();
        async move { runner.run(&signal).await }
    });
    until(async || store.get_latest_attempt(&rollout_id).await.unwrap()).await;
    signal.cancel();
    assert_eq!(run.await.unwrap().failed, 1);
    let (rollout, attempt, _) = ended(&store, &rollout_id).await;
    assert_eq!((rollout.status, attempt.status), (RolloutStatus::Failed, AttemptStatus::Failed));
    assert_eq!(failure_of(&attempt)["type"], "CancelledError");
    assert_eq!(reason_of(&attempt), "cancelled");
    assert_eq!(states(&store, &rollout_id).await, ["started", "failed cancelled"]);
}

/// Notes its calls.
#[derive(Clone, Default)]
struct Recorder(Arc<std::sync::Mutex<Vec<String>>>);

impl Recorder {
    fn add(&self, call: &str) -> Result<(), BoxError> {
        self.0.lock().unwrap().push(call.to_owned());
        Ok(())
    }
}

#[async_trait]
impl Hook for Recorder {
    async fn on_rollout_start(&self, _: &RolloutContext) -> Result<(), BoxError> {
        self.add("rollout start")
    }

    async fn on_trace_start(&self, context: &RolloutContext) -> Result<(), BoxError> {
        context.emit_message("from a hook").await?;
        self.add("trace start")
    }

    async fn on_trace_end(&self, _: &RolloutContext) -> Result<(), BoxError> {
        self.add("trace end")
    }

    async fn on_rollout_end(&self, _: &RolloutContext, spans: &[Span]) -> Result<(), BoxError> {
        self.add(&format!("rollout end {}", spans.len()))
    }
}

/// Fails wherever it can.
struct Clumsy;

#[async_trait]
impl Hook for Clumsy {
    async fn on_rollout_start(&self, _: &RolloutContext) -> Result<(), BoxError> {
        Err("clumsy".into())
    }

    async fn on_rollout_end(&self, _: &RolloutContext, _: &[Span]) -> Result<(), BoxError> {
        panic!("clumsy")
    }
}

#[tokio::test]
async fn hooks_are_called_in_order_and_their_errors_stay_theirs() {
    let store = Arc::new(MemoryStore::new());
    for (task, calls) in [
        ("reward", &["rollout start", "trace start", "trace end", "rollout end 3"][..]),
        ("error", &["rollout start", "trace start", "rollout end 3"]),
    ] {
        let rollout_id = enqueue(&store, task, None).await;
        let recorder = Recorder::default();
        let hooks: Vec<Arc<dyn Hook>> = vec![Arc::new(Clumsy), Arc::new(recorder.clone())];
        runner(&store, Some(1)).with_hooks(hooks).run(&StopSignal::new()).await;
        assert_eq!(*recorder.0.lock().unwrap(), calls);
        let expected = if task == "reward" { RolloutStatus::Succeeded } else { RolloutStatus::Failed };
        assert_eq!(ended(&store, &rollout_id).await.0.status, expected);
    }
}

#[tokio::test]
async fn every_attempt_starts_and_ends_once() {
    let store = Arc::new(MemoryStore::new());
    for (task, expected) in [
        ("reward", ["started", "finished"]),
        ("done", ["started", "finished"]),
        ("error", ["started", "failed error"]),
        ("panic", ["started", "failed error"]),
        ("nan", ["started", "failed error"]),
    ] {
        let rollout_id = enqueue(&store, task, None).await;
        runner(&store, Some(1)).run(&StopSignal::new()).await;
        assert_eq!(states(&store, &rollout_id).await, expected, "{task}");
        let spans = all_spans(&store, &rollout_id).await;
        assert!(spans.first().is_some_and(|span| span.name == semconv::AGL_STATE));
        assert!(spans.last().is_some_and(|span| span.name == semconv::AGL_STATE));
    }
}

/// A task with fields of its own.
#[derive(serde::Deserialize)]
struct Sum {
    a: i64,
    b: i64,
}

#[derive(serde::Deserialize)]
struct Mine {
    prompt: PromptTemplate,
}

struct Typed;

#[async_trait]
impl Agent for Typed {
    type Task = Sum;
    type Resources = (Llm, Named<Mine>, Option<PromptTemplate>);

    async fn rollout(
        &self,
        Sum { a, b }: Sum,
        (llm, Named(mine), first): Self::Resources,
        context: &RolloutContext,
    ) -> Result<Outcome, BoxError> {
        context.emit_object(&llm.endpoint).await?;
        context.emit_object(&json!({"prompt": mine.prompt.template})).await?;
        context.emit_tool_call("add", &json!({"a": a, "b": b}), &json!(a + b)).await?;
        context.emit_started("check").await?;
        context.emit_failed("check", &"off by one".into()).await?;
        assert_eq!(first.unwrap().template, mine.prompt.template);
        Ok(Outcome::Reward(1.0))
    }
}

#[tokio::test]
async fn tasks_and_resources_have_types() {
    let store = Arc::new(MemoryStore::new());
    let prompt = PromptTemplate {
        template: "{x}".to_owned(),
        engine: TemplateEngine::FString,
        extra: agl_types::JsonMap::new(),
    };
    let llm = Resource::ProxyLlm(Llm::new("http://gateway/v1/", "m"));
    let runner = Runner::new(Arc::new(Typed), store.clone(), RunnerOptions::new("Worker-0"));
    let run = async |input: Value, resources: NamedResources| {
        store.add_resources(resources).await.unwrap();
        let request = StartRollout { rollout: EnqueueRolloutRequest::new(input), worker_id: None };
        runner.step(request, &StopSignal::new()).await.unwrap()
    };
    let with_prompt = NamedResources::from_iter([
        ("llm".to_owned(), llm.clone()),
        ("prompt".to_owned(), Resource::PromptTemplate(prompt)),
    ]);
    let view = run(json!({"a": 1, "b": 2}), with_prompt.clone()).await;
    assert_eq!(view.rollout.status, RolloutStatus::Succeeded, "{view:?}");
    let spans = spans(&store, &view.rollout.rollout_id).await;
    let (rollout_id, attempt_id) = (&view.rollout.rollout_id, &view.attempt.unwrap().attempt_id);
    let endpoint = format!("http://gateway/rollout/{rollout_id}/attempt/{attempt_id}/v1");
    assert_eq!(spans[0].attributes["agentlightning.object.literal"], endpoint.as_str());
    assert_eq!(spans[0].attributes["agentlightning.object.type"], "str");
    assert_eq!(spans[1].attributes["agentlightning.object.json"], r#"{"prompt":"{x}"}"#);
    assert_eq!(spans[2].name, "execute_tool add");
    assert_eq!(spans[2].attributes["gen_ai.tool.call.arguments"], r#"{"a":1,"b":2}"#);
    let expected = ["started", "started", "failed error", "finished"];
    assert_eq!(states(&store, rollout_id).await, expected);

    for (input, resources, reason, part) in [
        (json!({"a": 1, "b": "x"}), with_prompt, "error", "b: invalid type"),
        (
            json!({"a": 1, "b": 2}),
            NamedResources::from_iter([("llm".to_owned(), llm)]),
            "missing_resources",
            "prompt",
        ),
        (json!({"a": 1, "b": 2}), NamedResources::new(), "missing_resources", "no LLM"),
    ] {
        let view = run(input, resources).await;
        let attempt = view.attempt.unwrap();
        assert_eq!((view.rollout.status, reason_of(&attempt)), (RolloutStatus::Failed, reason));
        let message = failure_of(&attempt)["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_dropped_runner_reports_its_attempt_too() {
    let store = Arc::new(MemoryStore::new());
    let rollout_id = enqueue(&store, "hang", None).await;
    let runner = runner(&store, None);
    let run = tokio::spawn(async move { runner.run(&StopSignal::new()).await });
    until(async || store.get_latest_attempt(&rollout_id).await.unwrap()).await;
    run.abort();
    let attempt = until(async || {
        let attempt = store.get_latest_attempt(&rollout_id).await.unwrap().unwrap();
        attempt.status.is_terminal().then_some(attempt)
    })
    .await;
    assert_eq!(attempt.status, AttemptStatus::Failed);
}

#[tokio::test]
async fn stopping_lets_the_current_rollout_finish_and_takes_no_other() {
    let store = Arc::new(MemoryStore::new());
    let first = enqueue(&store, "first", None).await;
    let second = enqueue(&store, "second", None).await;
    let signal = StopSignal::new();
    let stop = signal.clone();
    let agent = move |_: Value, _: RolloutContext| {
        stop.stop();
        async {
            tokio::task::yield_now().await;
            Ok(Outcome::Reward(1.0))
        }
    };
    let runner = Runner::new(Arc::new(agent), store.clone(), RunnerOptions::new("Worker-0"));
    assert_eq!(runner.run(&signal).await, RunnerReport { succeeded: 1, ..RunnerReport::default() });
    assert_eq!(ended(&store, &first).await.0.status, RolloutStatus::Succeeded);
    let waiting = store.get_rollout_by_id(&second).await.unwrap().unwrap();
    assert_eq!(waiting.rollout.status, RolloutStatus::Queuing);
}

#[tokio::test]
async fn the_worker_says_that_it_lives() {
    let store = Arc::new(MemoryStore::new());
    let signal = StopSignal::new();
    let runner = runner(&store, None);
    let run = tokio::spawn({
        let signal = signal.clone();
        async move { runner.run(&signal).await }
    });
    let worker = until(async || {
        let worker = store.get_worker_by_id("Worker-0").await.unwrap();
        worker.filter(|worker| worker.heartbeat_stats.is_some() && worker.last_dequeue_time.is_some())
    })
    .await;
    assert_eq!(worker.status, WorkerStatus::Idle);
    assert!(worker.heartbeat_stats.unwrap().contains_key("cpu_threads"));
    signal.stop();
    run.await.unwrap();
}

#[tokio::test]
async fn each_rollout_runs_once_however_many_runners_there_are() {
    let store = Arc::new(MemoryStore::new());
    for task in 0..40 {
        enqueue(&store, &task.to_string(), None).await;
    }
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let agent: Arc<dyn AnyAgent> = Arc::new(move |_: Value, _: RolloutContext| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(Outcome::Done)
        }
    });
    let runners = (0..4).map(|number| {
        let options =
            RunnerOptions { max_rollouts: Some(10), ..RunnerOptions::new(format!("Worker-{number}")) };
        let runner = Runner::new(agent.clone(), store.clone(), options);
        tokio::spawn(async move { runner.run(&StopSignal::new()).await })
    });
    for run in runners.collect::<Vec<_>>() {
        assert_eq!(run.await.unwrap().succeeded, 10);
    }
    assert_eq!(runs.load(Ordering::Relaxed), 40);
}
