//! Driving a server: streams of requests, each on a connection of its own, and what they experienced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;
use crate::figures::percentile;
use crate::http::{Answer, Connection};
use crate::store::server::Server;
use crate::store::shapes::{Claim, Template};

/// What an answer has to be, for the request to count.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// A body of so many bytes at least.
    Body(usize),
    /// A claim; there is none when the queue is empty, which ends the stream.
    Claim,
    /// Success without a word. OTLP tells here what it did not take.
    Silence,
}

impl Wanted {
    /// Whether to go on.
    fn check(self, answer: &Answer<'_>) -> Outcome<bool> {
        let length = answer.body.len();
        let is_success = (200..300).contains(&answer.status);
        match self {
            Self::Claim if is_success && length == 2 => Ok(false),
            Self::Body(least) if is_success && length >= least => Ok(true),
            Self::Claim if is_success => Ok(true),
            Self::Silence if is_success && length == 0 => Ok(true),
            _ => {
                let start = answer.body.get(..length.min(500)).unwrap_or_default();
                Err(format!("an answer is {} with {}", answer.status, String::from_utf8_lossy(start)).into())
            }
        }
    }
}

/// The requests of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) template: Template,
    pub(crate) wanted: Wanted,
    /// The rollouts that requests are for, in turn.
    pub(crate) claims: Arc<[Claim]>,
    /// Which is the next one's; shared by streams that share the work.
    pub(crate) turn: Arc<AtomicU64>,
    /// The time from one request to the next; none sends one as soon as the last was answered.
    pub(crate) pace: Option<Duration>,
    /// How often the claims are gone through; none for ever.
    pub(crate) rounds: Option<u64>,
}

/// What a number of streams experienced together.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// What the server spent meanwhile.
    pub(crate) processor: Duration,
    /// How long each request took, in order of length.
    pub(crate) latencies: Vec<Duration>,
}

impl Window {
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// Processor time of the server for one request.
    pub(crate) fn processor_each(&self) -> Duration {
        self.processor.div_f64((self.requests as f64).max(1.0))
    }

    /// The latency that `share` of the requests did not exceed.
    pub(crate) fn latency(&self, share: f64) -> Duration {
        percentile(&self.latencies, share)
    }
}

/// Runs the streams at once, for `window` or until all have ended.
pub(crate) async fn drive(server: &Server, streams: Vec<Stream>, window: Duration) -> Outcome<Window> {
    let mut connections = Vec::with_capacity(streams.len());
    for _ in &streams {
        connections.push(Connection::open(server.address).await?);
    }
    let processor = server.processor_time()?;
    let started = Instant::now();
    let mut running = JoinSet::new();
    let share = 1.0 / (streams.len() as f64).max(1.0);
    for (number, (connection, stream)) in connections.into_iter().zip(streams).enumerate() {
        // Streams with a pace do not all send at the same moment.
        let first = started + stream.pace.unwrap_or_default().mul_f64(number as f64 * share);
        running.spawn(run(connection, stream, server.numbers(), first, started + window));
    }
    let mut latencies = Vec::new();
    while let Some(ended) = running.join_next().await {
        latencies.append(&mut ended?.map_err(|error| format!("{:?}: {error}", server.kind))?);
    }
    let elapsed = started.elapsed();
    let processor = server.processor_time()?.saturating_sub(processor);
    latencies.sort_unstable();
    let requests = u64::try_from(latencies.len())?;
    Ok(Window { requests, elapsed, processor, latencies })
}

async fn run(
    mut connection: Connection,
    mut stream: Stream,
    numbers: Arc<AtomicU64>,
    mut due: Instant,
    end: Instant,
) -> Outcome<Vec<Duration>> {
    let mut latencies = Vec::new();
    let claims = u64::try_from(stream.claims.len())?;
    while Instant::now() < end {
        if let Some(pace) = stream.pace {
            tokio::time::sleep_until(due).await;
            due += pace;
        }
        let turn = stream.turn.fetch_add(1, Ordering::Relaxed);
        if stream.rounds.is_some_and(|rounds| turn >= rounds * claims) {
            break;
        }
        let claim =
            turn.checked_rem(claims).and_then(|index| stream.claims.get(usize::try_from(index).ok()?));
        let first_span = numbers.fetch_add(stream.template.spans(), Ordering::Relaxed);
        let request = stream.template.fill(claim, first_span);
        let asked = Instant::now();
        let answer = connection.ask(request).await?;
        let latency = asked.elapsed();
        if !stream.wanted.check(&answer)? {
            break;
        }
        latencies.push(latency);
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let window =
            Window { requests: 100, elapsed: Duration::from_secs(2), latencies, ..Window::default() };
        assert_eq!(window.latency(0.5), Duration::from_millis(51));
        assert_eq!(window.latency(0.99), Duration::from_millis(100));
        assert!((window.per_second() - 50.0).abs() < 1e-9);
        assert_eq!(Window::default().latency(0.5), Duration::ZERO);
    }

    #[test]
    fn what_was_not_done_does_not_count() {
        let answer = |status, body| Answer { status, body, first: Duration::ZERO };
        assert!(Wanted::Body(3).check(&answer(201, b"null" as &[u8])).unwrap());
        assert!(Wanted::Body(1000).check(&answer(201, b"null")).is_err());
        assert!(Wanted::Body(3).check(&answer(500, b"null")).is_err());
        assert!(!Wanted::Claim.check(&answer(200, b"[]")).unwrap());
        assert!(Wanted::Silence.check(&answer(200, b"rejected")).is_err());
    }
}
