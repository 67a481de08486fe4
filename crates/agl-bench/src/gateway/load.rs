//! Asking: connections that each send one call after the other, and what came of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::shape::Shape;
use super::target::Target;
use crate::http::Connection;
use crate::{Outcome, process};

/// Failures of one connection in one window after which nothing is measured any more.
const TOO_MANY: u64 = 20;

/// What a number of connections experienced together.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) elapsed: Duration,
    /// What the processes of the target spent meanwhile.
    pub(crate) processor: Option<Duration>,
    /// How long each call took, and how long until the first bytes of its answer; in order of length.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) firsts: Vec<Duration>,
    pub(crate) tally: Tally,
}

/// What became of the calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    /// Answered with an error, or not at all.
    pub(crate) failed: u64,
    /// Answers that are not byte for byte what they should be.
    pub(crate) altered: u64,
    /// Frames that should have come, and those that did not.
    pub(crate) frames: u64,
    pub(crate) lost: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.altered += other.altered;
        self.frames += other.frames;
        self.lost += other.lost;
    }
}

impl Window {
    pub(crate) fn per_second(&self) -> f64 {
        self.tally.answered as f64 / self.elapsed.as_secs_f64()
    }

    /// Processor time of the target for one call.
    pub(crate) fn processor_each(&self) -> Option<Duration> {
        Some(self.processor?.div_f64((self.tally.answered as f64).max(1.0)))
    }
}

/// When calls are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as the one before was answered.
    Full,
    /// So many a second, over all connections.
    Rate(f64),
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Time(Duration),
    Calls(u64),
}

/// Has `connections` call at once, and waits for the last answer.
pub(crate) async fn drive(
    target: &mut Target,
    shape: Shape,
    connections: usize,
    pace: Pace,
    until: Until,
) -> Outcome<Window> {
    let (body, frames) = target.expected(shape);
    let expected = Arc::new(Expected { body, frames, stream: shape.stream });
    let mut callers = Vec::with_capacity(connections);
    for number in 0..connections {
        callers.push(Caller {
            address: target.address,
            connection: Connection::open(target.address).await?,
            request: target.request(shape, number),
            expected: Arc::clone(&expected),
        });
    }
    let processor = target.process.map(process::processor_time).transpose()?;
    let started = Instant::now();
    let mut running = JoinSet::new();
    for (number, caller) in callers.into_iter().enumerate() {
        let share = number as f64 / connections as f64;
        let (interval, first) = match pace {
            Pace::Full => (None, started),
            Pace::Rate(rate) => {
                let interval = Duration::from_secs_f64(connections as f64 / rate);
                // Not all at the same moment.
                (Some(interval), started + interval.mul_f64(share))
            }
        };
        let (end, most) = match until {
            Until::Time(window) => (Some(started + window), u64::MAX),
            Until::Calls(calls) => (None, calls.div_ceil(connections as u64)),
        };
        running.spawn(caller.call(first, interval, end, most));
    }
    let mut window = Window::default();
    while let Some(ended) = running.join_next().await {
        let mut one = match ended? {
            Ok(one) => one,
            Err(error) => {
                let complaints = target.complaints()?;
                return Err(
                    format!("{}, {}: {error}\n{complaints}", target.kind.title(), shape.title()).into()
                );
            }
        };
        window.latencies.append(&mut one.latencies);
        window.firsts.append(&mut one.firsts);
        window.tally.add(one.tally);
    }
    window.elapsed = started.elapsed();
    let spent = target.process.map(process::processor_time).transpose()?;
    window.processor = spent.zip(processor).map(|(after, before)| after.saturating_sub(before));
    window.latencies.sort_unstable();
    window.firsts.sort_unstable();
    target.answered += window.tally.answered;
    Ok(window)
}

/// What an answer should be.
struct Expected {
    body: Vec<u8>,
    frames: usize,
    stream: bool,
}

struct Caller {
    address: SocketAddr,
    connection: Connection,
    request: Vec<u8>,
    expected: Arc<Expected>,
}

impl Caller {
    async fn call(
        mut self,
        mut due: Instant,
        interval: Option<Duration>,
        end: Option<Instant>,
        most: u64,
    ) -> Outcome<Window> {
        let mut window = Window::default();
        while window.tally.answered < most && end.is_none_or(|end| Instant::now().max(due) < end) {
            if let Some(interval) = interval {
                tokio::time::sleep_until(due).await;
                due += interval;
            }
            let asked = Instant::now();
            let problem = match self.connection.ask(&self.request).await {
                Ok(answer) if answer.status == 200 => {
                    window.latencies.push(asked.elapsed());
                    window.firsts.push(answer.first);
                    let Expected { body, frames, stream } = &*self.expected;
                    let is_same = answer.body == body;
                    let found = if *stream && !is_same {
                        memchr::memmem::find_iter(answer.body, b"\n\n").count()
                    } else {
                        *frames
                    };
                    let tally = &mut window.tally;
                    tally.answered += 1;
                    tally.altered += u64::from(!is_same);
                    tally.frames += *frames as u64;
                    tally.lost += frames.saturating_sub(found) as u64;
                    continue;
                }
                Ok(answer) => {
                    let start = answer.body.get(..answer.body.len().min(500)).unwrap_or_default();
                    format!("an answer is {} with {}", answer.status, String::from_utf8_lossy(start))
                }
                Err(error) => {
                    let problem = error.to_string();
                    self.connection = Connection::open(self.address).await?;
                    problem
                }
            };
            window.tally.failed += 1;
            if window.tally.failed >= TOO_MANY {
                return Err(problem.into());
            }
        }
        Ok(window)
    }
}
