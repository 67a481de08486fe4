//! How many rows and claims a second each backend takes: `cargo run --release -p agl-store --example bench`.
//!
//! Spans carry an attribute of 1.5 kB, as LLM calls do. "1 caller" awaits every call; "16 callers" share the
//! writer's commits. In brackets: the processor time that the whole process spends on one unit, callers included, in
//! microseconds; it says more than the rate on a machine that has other things to do.
#![expect(clippy::print_stdout, reason = "printing is its purpose")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store, Sync};
use agl_types::{
    AttemptStatus, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, Span, SpanQuery, StartRollout, ids,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + std::marker::Sync>>;

/// How long each figure is measured.
const WINDOW: Duration = Duration::from_millis(1500);

fn span(rollout_id: &str, attempt_id: &str, number: u64) -> Span {
    Span::new("openai.chat.completion", ids::trace_id(1, number), ids::span_id(number), 1.0, 2.0)
        .with_attribute("gen_ai.prompt.0.content", "x".repeat(1500))
        .placed(rollout_id, attempt_id, i64::try_from(number).unwrap_or(i64::MAX))
}

/// The processor time of this process so far, in seconds (Linux; 0 elsewhere).
fn processor_time() -> f64 {
    /// `USER_HZ`, which Linux fixes for what it tells programs.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_A_SECOND
}

/// Runs `work` in `callers` tasks for the window; tells how many units a second they got done and at what cost.
async fn rate<F>(callers: u64, work: impl Fn(u64) -> F) -> Outcome<String>
where
    F: Future<Output = Outcome<u64>> + Send + 'static,
{
    let (started, processor_before) = (Instant::now(), processor_time());
    let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(work(caller))).collect();
    let mut units = 0;
    for task in tasks {
        units += task.await??;
    }
    let cost = (processor_time() - processor_before) * 1e6 / units as f64;
    Ok(format!("{:.0} ({cost:.1})", units as f64 / started.elapsed().as_secs_f64()))
}

async fn spans(store: &Arc<dyn Store>, callers: u64, batch: u64) -> Outcome<String> {
    rate(callers, |_| {
        let store = Arc::clone(store);
        async move {
            let attempt = store.start_rollout(StartRollout::default()).await?.attempt;
            let (started, mut number) = (Instant::now(), 0);
            while started.elapsed() < WINDOW {
                let numbers = number + 1..=number + batch;
                let spans = numbers.map(|n| span(&attempt.rollout_id, &attempt.attempt_id, n)).collect();
                number += u64::try_from(store.add_many_spans(spans).await?.len())?;
            }
            Ok(number)
        }
    })
    .await
}

async fn enqueue(store: &Arc<dyn Store>, callers: u64) -> Outcome<String> {
    rate(callers, |_| {
        let store = Arc::clone(store);
        async move {
            let (started, mut count) = (Instant::now(), 0);
            while started.elapsed() < WINDOW {
                store.enqueue_rollout(EnqueueRolloutRequest::new("a task of a few words")).await?;
                count += 1;
            }
            Ok(count)
        }
    })
    .await
}

async fn dequeue(store: &Arc<dyn Store>, callers: u64) -> Outcome<String> {
    rate(callers, |caller| {
        let store = Arc::clone(store);
        async move {
            let (started, mut count) = (Instant::now(), 0);
            while started.elapsed() < WINDOW {
                if store.dequeue_rollout(Some(format!("worker-{caller}"))).await?.is_none() {
                    break;
                }
                count += 1;
            }
            Ok(count)
        }
    })
    .await
}

/// Whole lives of rollouts: claimed, one span, ended.
async fn lives(store: &Arc<dyn Store>, callers: u64) -> Outcome<String> {
    rate(callers, |caller| {
        let store = Arc::clone(store);
        async move {
            let (started, mut count) = (Instant::now(), 0);
            while started.elapsed() < WINDOW {
                store.enqueue_rollout(EnqueueRolloutRequest::new("a task")).await?;
                let request =
                    DequeueRequest { limit: 1, worker_id: Some(format!("worker-{caller}")), wait: None };
                for claim in store.dequeue_many_rollouts(request).await? {
                    let attempt = claim.attempt;
                    store.add_span(span(&attempt.rollout_id, &attempt.attempt_id, 1)).await?;
                    let update =
                        AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
                    store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await?;
                    count += 1;
                }
            }
            Ok(count)
        }
    })
    .await
}

async fn reading(store: &Arc<dyn Store>) -> Outcome<Duration> {
    let attempt = store.start_rollout(StartRollout::default()).await?.attempt;
    let spans = (1..=50).map(|number| span(&attempt.rollout_id, &attempt.attempt_id, number)).collect();
    store.add_many_spans(spans).await?;
    let query = SpanQuery { rollout_id: attempt.rollout_id, ..SpanQuery::default() };
    let started = Instant::now();
    for _ in 0..200 {
        store.query_spans(query.clone()).await?;
    }
    Ok(started.elapsed() / 200)
}

async fn measure(name: &str, store: Arc<dyn Store>) -> Outcome<()> {
    for callers in [1, 16] {
        let rates = [
            enqueue(&store, callers).await?,
            dequeue(&store, callers).await?,
            lives(&store, callers).await?,
            spans(&store, callers, 1).await?,
            spans(&store, callers, 50).await?,
            spans(&store, callers, 500).await?,
        ];
        println!("| {name} | {callers} | {} |", rates.join(" | "));
    }
    println!("{name}: 50 spans of a rollout are read in {:.0?}", reading(&store).await?);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    println!("| store         | callers | enqueue/s | dequeue/s | lives/s | spans/s by 1 | by 50 | by 500 |");
    measure("memory", Arc::new(MemoryStore::new())).await?;
    let folder = tempfile::tempdir()?;
    for (name, sync) in [("sqlite normal", Sync::Normal), ("sqlite full", Sync::Full)] {
        let options = SqliteOptions { sync, ..SqliteOptions::default() };
        measure(name, Arc::new(SqliteStore::open(folder.path().join(name), options)?)).await?;
    }
    Ok(())
}
