//! The trainer over real stores, in process and served over HTTP.

use std::sync::Arc;
use std::time::Duration;

use agentlightning::client::{Client, ClientOptions};
use agentlightning::server::ServerOptions;
use agentlightning::types::semconv::{AGL_ANNOTATION, AGL_MESSAGE, AGL_STATE};
use agentlightning::types::{AttemptStatus, EnqueueRolloutRequest, RolloutQuery, SpanQuery, WaitRequest};
use agentlightning::{
    Algorithm, AlgorithmContext, BoxError, MemoryStore, Outcome, RolloutContext, RolloutStatus, Runner,
    RunnerOptions, StopSignal, Store, Summary, Trainer, async_trait,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

async fn double(task: Value, context: RolloutContext) -> Result<Outcome, BoxError> {
    let number = task["number"].as_f64().ok_or("task: number is missing")?;
    context.emit_message("counting").await?;
    agentlightning::emit_reward(0.0).await?;
    Ok(Outcome::Reward(2.0 * number))
}

fn tasks(count: u32) -> Vec<Value> {
    (0..count).map(|number| json!({"number": number})).collect()
}

#[tokio::test]
async fn a_trainer_needs_an_agent_and_a_runner() {
    let error = Trainer::builder().build().unwrap_err();
    assert_eq!(error.to_string(), "agent: give one with .agent(...)");
    assert!(Trainer::builder().agent(double).n_runners(0).build().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_are_enough() {
    let trainer = Trainer::builder().agent(double).build().unwrap();
    let mut train = tasks(5);
    train.push(json!({}));
    let summary = trainer.fit(train, tasks(3)).await.unwrap();
    assert_eq!((summary.train.succeeded, summary.train.failed), (5, 1));
    assert_eq!(summary.train.mean_reward, Some(4.0));
    assert_eq!(summary.val.mean_reward, Some(2.0));
    assert_eq!(summary.counts.spans, 8 * 3 + 1);
    // Nothing is left behind, and the trainer can go again.
    let rollouts = trainer.store().query_rollouts(RolloutQuery::default()).await.unwrap();
    assert_eq!(rollouts.total, 9);
    assert_eq!(trainer.fit(tasks(1), Vec::new()).await.unwrap().counts.finished, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_fit_whose_agents_hang() {
    let hang = |_: Value, _: RolloutContext| std::future::pending();
    let trainer = Trainer::builder().agent(hang).n_runners(3).build().unwrap();
    let (signal, store) = (trainer.signal().clone(), trainer.store().clone());
    let fit = tokio::spawn(async move { trainer.fit(tasks(20), Vec::new()).await });
    let running = RolloutQuery { status_in: Some(vec![RolloutStatus::Running]), ..RolloutQuery::default() };
    while store.query_rollouts(running.clone()).await.unwrap().total < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal.cancel();
    let summary = fit.await.unwrap().unwrap();
    assert!(summary.stopped);
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    assert!(rollouts.iter().all(|view| view.rollout.status.is_terminal()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_trainer_goes_on_when_it_is_resumed() {
    let trainer = Arc::new(Trainer::builder().agent(double).n_runners(2).build().unwrap());
    trainer.pause().await.unwrap();
    let fit = tokio::spawn({
        let trainer = trainer.clone();
        async move { trainer.fit(tasks(3), Vec::new()).await }
    });
    let waiting = RolloutQuery { status_in: Some(vec![RolloutStatus::Queuing]), ..RolloutQuery::default() };
    while trainer.store().query_rollouts(waiting.clone()).await.unwrap().total < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        trainer
            .store()
            .get_worker_by_id("Worker-0")
            .await
            .unwrap()
            .is_none_or(|worker| { worker.current_rollout_id.is_none() })
    );
    trainer.resume().await.unwrap();
    assert_eq!(fit.await.unwrap().unwrap().train.succeeded, 3);
}

#[tokio::test]
async fn an_algorithm_that_fails_takes_the_runners_with_it() {
    struct Broken;
    #[async_trait]
    impl Algorithm for Broken {
        async fn run(&self, _: &AlgorithmContext) -> Result<Summary, agl_algorithm::Error> {
            Err(agl_algorithm::Error::NoTasks)
        }
    }
    let trainer = Trainer::builder().agent(double).algorithm(Broken).build().unwrap();
    assert!(trainer.fit(tasks(1), Vec::new()).await.is_err());
}

/// Serves `store` until the sender is dropped; returns the address, and the task that ends with the server.
async fn serve(
    store: Arc<MemoryStore>,
    address: &str,
) -> Result<(String, oneshot::Sender<()>, JoinHandle<std::io::Result<()>>), BoxError> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?.to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let options = ServerOptions { drain: Duration::from_millis(200), ..ServerOptions::default() };
        let shutdown = async {
            let _ = stopped.await;
        };
        agentlightning::server::serve(listener, store, &options, shutdown).await
    });
    Ok((address, stop, served))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_store_is_as_good_as_one_in_process() {
    let store = Arc::new(MemoryStore::new());
    let (address, stop, served) = serve(store.clone(), "127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{address}"), ClientOptions::default()).unwrap();
    let trainer = Trainer::builder().agent(double).n_runners(3).store(Arc::new(client)).build().unwrap();
    let summary = trainer.fit(tasks(5), tasks(3)).await.unwrap();
    assert_eq!((summary.train.mean_reward, summary.val.mean_reward), (Some(4.0), Some(2.0)));
    assert_eq!(store.statistics().await.unwrap().total_rollouts, 8);
    drop(stop);
    served.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_ride_out_a_store_that_goes_away() {
    let store = Arc::new(MemoryStore::new());
    let (address, stop, served) = serve(store.clone(), "127.0.0.1:0").await.unwrap();
    // The client gives up almost at once, so that it is the runner who is patient.
    let impatient = ClientOptions { max_outage: Duration::from_millis(10), ..ClientOptions::default() };
    let client = Arc::new(Client::new(&format!("http://{address}"), impatient).unwrap());
    let (begun, mut beginning) = watch::channel(false);
    let (back, is_back) = watch::channel(false);
    // Begins while the store is there, and has everything to say while it is not.
    let agent = move |_: Value, context: RolloutContext| {
        let (begun, mut is_back) = (begun.clone(), is_back.clone());
        async move {
            context.emit_message("begun").await?;
            context.flush().await?;
            begun.send_replace(true);
            is_back.wait_for(|is_back| *is_back).await?;
            Ok(Outcome::Reward(1.0))
        }
    };
    let first = store.enqueue_rollout(EnqueueRolloutRequest::new("first")).await.unwrap().rollout_id;
    let signal = StopSignal::new();
    let runner = Runner::new(Arc::new(agent), client, RunnerOptions::new("Worker-0"));
    let run = tokio::spawn({
        let signal = signal.clone();
        async move { runner.run(&signal).await }
    });
    beginning.wait_for(|begun| *begun).await.unwrap();
    drop(stop);
    served.await.unwrap().unwrap();
    back.send_replace(true);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let latest = store.get_latest_attempt(&first).await.unwrap().unwrap();
    assert_eq!(latest.status, AttemptStatus::Running);

    let (_, stop, served) = serve(store.clone(), &address).await.unwrap();
    let second = store.enqueue_rollout(EnqueueRolloutRequest::new("second")).await.unwrap().rollout_id;
    let request = WaitRequest { rollout_ids: vec![first, second], timeout: None };
    let ended = store.wait_for_rollouts(request).await.unwrap();
    assert!(ended.iter().all(|rollout| rollout.status == RolloutStatus::Succeeded), "{ended:?}");
    for rollout in ended {
        let query = SpanQuery { rollout_id: rollout.rollout_id, ..SpanQuery::default() };
        let names: Vec<String> =
            store.query_spans(query).await.unwrap().items.into_iter().map(|span| span.name).collect();
        let [state, message, reward] = [AGL_STATE, AGL_MESSAGE, AGL_ANNOTATION];
        assert_eq!(names, [state, message, reward, state]);
    }
    signal.stop();
    assert_eq!(run.await.unwrap().succeeded, 2);
    drop(stop);
    served.await.unwrap().unwrap();
}
