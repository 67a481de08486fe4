//! Baseline with runners on real stores, over agents that succeed, fail, panic and hang.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here, and agents must be able to panic"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agl_algorithm::{
    Algorithm, AlgorithmContext, Baseline, BaselineOptions, Counts, Error, ModeSummary, Progress,
    RolloutReport, Summary,
};
use agl_runner::{
    Agent, AnyAgent, BoxError, Outcome, RolloutContext, Runner, RunnerOptions, RunnerReport, StopSignal,
};
use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store};
use agl_types::{
    AttemptStatus, NamedResources, PromptTemplate, Resource, RolloutConfig, RolloutQuery, RolloutStatus,
    TemplateEngine,
};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Succeeds with a reward, succeeds without, fails, panics or hangs, as its task says.
struct Puppet;

#[async_trait]
impl Agent for Puppet {
    type Task = Value;
    type Resources = ();

    async fn rollout(&self, task: Value, (): (), context: &RolloutContext) -> Result<Outcome, BoxError> {
        let answer = json!({
            "id": context.attempt().attempt_id, "model": "m", "prompt_token_ids": [1, 2, 3],
            "choices": [{"message": {"role": "assistant", "content": "hi"}, "token_ids": [4, 5]}],
        });
        let request = json!({"model": "m", "messages": [{"role": "user", "content": task}]});
        context.record_chat(&request, &answer, context.now()).await?;
        match task["do"].as_str().unwrap() {
            "reward" => Ok(Outcome::Reward(task["reward"].as_f64().unwrap())),
            "fail_after_reward" => {
                context.emit_reward(0.5).await?;
                Err("too late".into())
            }
            "panic" => panic!("out of control"),
            "hang" => std::future::pending().await,
            _ => Ok(Outcome::Done),
        }
    }
}

#[derive(Default)]
struct Watcher {
    counts: Mutex<Vec<Counts>>,
    reports: Mutex<Vec<RolloutReport>>,
}

impl Progress for Watcher {
    fn counted(&self, counts: &Counts) {
        self.counts.lock().unwrap().push(*counts);
    }

    fn finished(&self, report: &RolloutReport) {
        self.reports.lock().unwrap().push(report.clone());
    }
}

fn start_runners(
    store: &Arc<dyn Store>,
    agent: &Arc<dyn AnyAgent>,
    signal: &StopSignal,
) -> JoinSet<RunnerReport> {
    (0..4)
        .map(|number| {
            let runner =
                Runner::new(agent.clone(), store.clone(), RunnerOptions::new(format!("Worker-{number}")));
            let signal = signal.clone();
            async move { runner.run(&signal).await }
        })
        .collect()
}

async fn run(context: &AlgorithmContext, options: BaselineOptions) -> Result<Summary, Error> {
    let runner_signal = StopSignal::new();
    let runners = start_runners(&context.store, &(Arc::new(Puppet) as Arc<dyn AnyAgent>), &runner_signal);
    let summary = Baseline::new(options).unwrap().run(context).await;
    runner_signal.stop();
    runners.join_all().await;
    summary
}

fn tasks(what: &[&str]) -> Vec<Value> {
    what.iter().map(|what| json!({"do": what})).collect()
}

fn rewarded(rewards: &[f64]) -> Vec<Value> {
    rewards.iter().map(|reward| json!({"do": "reward", "reward": reward})).collect()
}

async fn mixed_run(store: Arc<dyn Store>) {
    let mut train = rewarded(&[1.0, 0.0, 0.5]);
    train.extend(tasks(&["fail_after_reward", "panic", "hang", "nothing"]));
    let mut context = AlgorithmContext::new(store.clone(), train, rewarded(&[0.25; 8]));
    let watcher = Arc::new(Watcher::default());
    context.progress = watcher.clone();
    let template = PromptTemplate {
        template: "{x}".to_owned(),
        engine: TemplateEngine::FString,
        extra: serde_json::Map::default(),
    };
    context.initial_resources =
        Some(NamedResources::from_iter([("prompt".to_owned(), Resource::PromptTemplate(template))]));
    let rollout_config = Some(RolloutConfig {
        // Long enough for a panic's backtrace on a busy machine.
        timeout_seconds: Some(5.0),
        max_attempts: 2.try_into().unwrap(),
        retry_condition: vec![AttemptStatus::Failed],
        ..RolloutConfig::default()
    });
    let summary =
        run(&context, BaselineOptions { rollout_config, ..BaselineOptions::default() }).await.unwrap();

    // Two of the seven are tried twice. Every attempt makes one call, whose triplet counts for the latest attempt.
    let expected = Summary {
        counts: Counts {
            planned: 15,
            enqueued: 15,
            finished: 15,
            succeeded: 12,
            failed: 3,
            cancelled: 0,
            attempts: 17,
            spans: summary.counts.spans,
            llm_calls: 15,
            prompt_tokens: 45,
            response_tokens: 30,
        },
        train: ModeSummary {
            succeeded: 4,
            failed: 3,
            cancelled: 0,
            scored: 4,
            unscored: 3,
            mean_reward: summary.train.mean_reward,
        },
        val: ModeSummary { succeeded: 8, scored: 8, mean_reward: Some(0.25), ..ModeSummary::default() },
        resources_id: Some("default".to_owned()),
        stopped: false,
    };
    assert_eq!(summary, expected);
    // The exception of the one that hangs may come after the store has given it up, and then is not counted.
    assert!((34..=35).contains(&summary.counts.spans), "{summary:?}");
    assert!((summary.train.mean_reward.unwrap() - 0.5).abs() < 1e-12);

    let counts = watcher.counts.lock().unwrap();
    assert_eq!(counts.last(), Some(&summary.counts));
    assert!(counts.is_sorted_by_key(|counts| (counts.finished, counts.enqueued)));
    let reports = watcher.reports.lock().unwrap();
    assert_eq!(reports.len(), 15);
    assert!(reports.iter().all(|report| report.triplets[0].response["token_ids"] == json!([4, 5])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_mishaps_is_summed_up_on_a_memory_store() {
    mixed_run(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_mishaps_is_summed_up_on_a_sqlite_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap();
    mixed_run(Arc::new(store)).await;
}

#[tokio::test]
async fn tasks_keep_their_order_and_none_is_skipped() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let numbers: Vec<f64> = (0..30).map(f64::from).collect();
    let context = AlgorithmContext::new(store.clone(), rewarded(&numbers[..20]), rewarded(&numbers[20..]));
    let options = BaselineOptions { n_epochs: 2, max_queue_length: 1, ..BaselineOptions::default() };
    let summary = run(&context, options).await.unwrap();
    assert_eq!(summary.counts.succeeded, 60);
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    let seen: Vec<f64> = rollouts.iter().map(|view| view.rollout.input["reward"].as_f64().unwrap()).collect();
    assert_eq!(seen, [numbers.clone(), numbers].concat());
}

#[tokio::test]
async fn the_queue_is_kept_short_without_runners() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let context = AlgorithmContext::new(store.clone(), rewarded(&[0.0; 30]), Vec::new());
    let signal = context.signal.clone();
    let run = tokio::spawn(async move { Baseline::default().run(&context).await });
    let queue_length = async || store.query_rollouts(RolloutQuery::default()).await.unwrap().total;
    while queue_length().await < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(queue_length().await, 5);

    // Told to stop, it leaves nothing in the queue for somebody else's runners.
    signal.stop();
    let summary = run.await.unwrap().unwrap();
    assert!(summary.stopped);
    assert_eq!((summary.counts.enqueued, summary.counts.cancelled, summary.train.cancelled), (5, 5, 5));
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    assert!(rollouts.iter().all(|view| view.rollout.status == RolloutStatus::Cancelled));
}

#[tokio::test]
async fn a_cancelled_run_ends_although_its_agents_hang() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let context = AlgorithmContext::new(store.clone(), tasks(&["hang"; 20]), Vec::new());
    let signal = context.signal.clone();
    let runners = start_runners(&store, &(Arc::new(Puppet) as Arc<dyn AnyAgent>), &signal);
    let run = tokio::spawn(async move { Baseline::default().run(&context).await });
    let running = RolloutQuery { status_in: Some(vec![RolloutStatus::Running]), ..RolloutQuery::default() };
    while store.query_rollouts(running.clone()).await.unwrap().total < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal.cancel();
    let summary = run.await.unwrap().unwrap();
    runners.join_all().await;
    assert!(summary.stopped);
    assert_eq!(summary.counts.failed, 4);
    assert_eq!(summary.counts.finished, summary.counts.enqueued);
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    assert!(rollouts.iter().all(|view| view.rollout.status.is_terminal()));
}

#[tokio::test]
async fn nothing_to_do_and_options_out_of_range_are_errors() {
    let context = AlgorithmContext::new(Arc::new(MemoryStore::new()), Vec::new(), Vec::new());
    assert!(matches!(Baseline::default().run(&context).await, Err(Error::NoTasks)));
    let error = Baseline::new(BaselineOptions { n_epochs: 0, ..BaselineOptions::default() }).unwrap_err();
    assert_eq!(error.to_string(), "n_epochs: must be at least 1");
    assert!(Baseline::new(BaselineOptions { max_queue_length: 0, ..BaselineOptions::default() }).is_err());
}
