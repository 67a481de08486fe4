//! The plan of a run: which calls, on how many connections, how fast, in which order.

use std::time::Duration;

use super::load::{Pace, Tally, Until, Window, drive};
use super::report::{Case, Fidelity, Figures, Filling, Memory, Paced, Report};
use super::shape::{Length, Shape};
use super::target::{Kind, Programs, Target};
use super::upstream;
use crate::figures::{Machine, median, milliseconds, percentile};
use crate::{Outcome, process, say};

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    rounds: usize,
    /// How long calls are sent as fast as they are answered.
    window: Duration,
    /// How long calls are sent at a given rate.
    paced: Duration,
    /// Calls until memory is looked at.
    calls: u64,
}

impl Plan {
    /// The whole: seven to eight minutes.
    pub(crate) const FULL: Self = Self {
        rounds: 2,
        window: Duration::from_millis(1500),
        paced: Duration::from_secs(5),
        calls: 100_000,
    };

    /// A look at whether everything works: about a minute.
    pub(crate) const QUICK: Self =
        Self { rounds: 1, window: Duration::from_millis(400), paced: Duration::from_secs(1), calls: 2_000 };
}

/// The fewest connections come first, so that memory can be looked at before there are many.
const CONNECTIONS: [usize; 3] = [1, 32, 256];

/// Calls at a rate that leaves the machine room: what is added to each is then what it costs, not how long the queue is.
const RATES: [(Shape, f64); 3] = [
    (Shape { prompt: Length::Short, stream: false }, 500.0),
    (Shape { prompt: Length::Short, stream: true }, 100.0),
    (Shape { prompt: Length::Long, stream: false }, 50.0),
];
/// On so many connections.
const PACED_CONNECTIONS: usize = 32;

/// What of a plan is wanted.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) targets: &'a [Kind],
    /// A part of the title of a shape; only that is measured then, and no memory.
    pub(crate) shape: Option<&'a str>,
}

impl Choice<'_> {
    fn wants(&self, shape: Shape) -> bool {
        self.shape.is_none_or(|part| shape.title().contains(part))
    }
}

/// Carries a plan out.
pub(crate) async fn run(plan: Plan, choice: &Choice<'_>, programs: &Programs<'_>) -> Outcome<Report> {
    let upstream = upstream::serve()?;
    let mut targets = Vec::new();
    for kind in choice.targets.iter().copied() {
        say(&format!("starting {}", kind.title()));
        let target = Target::start(kind, programs, upstream).await?;
        if let Some(process) = target.process {
            say(&format!("process {process}"));
        }
        targets.push(target);
    }
    let mut tallies = vec![Tally::default(); targets.len()];
    let paced = paced(plan, choice, &mut targets, &mut tallies).await?;
    let (cases, memory) = full_speed(plan, choice, &mut targets, &mut tallies).await?;
    let mut fidelity = Vec::new();
    for (target, tally) in targets.iter_mut().zip(tallies) {
        let kept = kept(target).await?;
        let Tally { answered, failed, altered, frames, lost } = tally;
        fidelity.push(Fidelity { target: target.kind, answered, failed, altered, frames, lost, kept });
    }
    // Those that were measured make room.
    drop(targets);
    let filling = match choice.shape {
        None if choice.targets.contains(&Kind::Durable) => Some(fill(plan, programs, upstream).await?),
        _ => None,
    };
    Ok(Report {
        machine: Machine::this(),
        rounds: plan.rounds,
        window_s: plan.window.as_secs_f64(),
        paced_s: plan.paced.as_secs_f64(),
        paced,
        cases,
        memory,
        fidelity,
        filling,
    })
}

/// Takes the windows of one case, everybody once a round, and everybody first once.
async fn windows(
    targets: &mut [Target],
    tallies: &mut [Tally],
    rounds: usize,
    shape: Shape,
    connections: usize,
    (pace, until): (Pace, Until),
    takes_part: impl Fn(Kind) -> bool,
) -> Outcome<Vec<Figures>> {
    let mut taken: Vec<Vec<Window>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let count = targets.len();
        for turn in 0..count {
            let at = (round + turn) % count;
            let (Some(target), Some(tally), Some(windows)) =
                (targets.get_mut(at), tallies.get_mut(at), taken.get_mut(at))
            else {
                continue;
            };
            if !target.kind.can(shape) || !takes_part(target.kind) {
                continue;
            }
            let window = drive(target, shape, connections, pace, until).await?;
            tally.add(window.tally);
            windows.push(window);
        }
    }
    Ok(targets
        .iter()
        .zip(&taken)
        .filter(|(_, windows)| !windows.is_empty())
        .map(|(target, windows)| figures(target.kind, windows))
        .collect())
}

async fn paced(
    plan: Plan,
    choice: &Choice<'_>,
    targets: &mut [Target],
    tallies: &mut [Tally],
) -> Outcome<Vec<Paced>> {
    let mut all = Vec::new();
    for (shape, rate) in RATES.into_iter().filter(|(shape, _)| choice.wants(*shape)) {
        say(&format!("{}, {rate} a second", shape.title()));
        let how = (Pace::Rate(rate), Until::Time(plan.paced));
        // The peers cannot keep these rates up.
        let takes_part = |kind: Kind| kind == Kind::Direct || kind.is_ours();
        let figures =
            windows(targets, tallies, plan.rounds, shape, PACED_CONNECTIONS, how, takes_part).await?;
        all.push(Paced { shape, rate, figures });
    }
    Ok(all)
}

async fn full_speed(
    plan: Plan,
    choice: &Choice<'_>,
    targets: &mut [Target],
    tallies: &mut [Tally],
) -> Outcome<(Vec<Case>, Vec<Memory>)> {
    let (mut cases, mut memory) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        for shape in Shape::ALL.into_iter().filter(|shape| choice.wants(*shape)) {
            say(&format!("{}, {connections} connections", shape.title()));
            let how = (Pace::Full, Until::Time(plan.window));
            let figures = windows(targets, tallies, plan.rounds, shape, connections, how, |_| true).await?;
            cases.push(Case { shape, connections, figures });
        }
        for target in targets.iter() {
            let Some(process) = target.process else { continue };
            memory.push(Memory {
                target: target.kind,
                connections,
                calls: target.answered,
                resident_mib: process::resident_mib(process)?,
            });
        }
    }
    Ok((cases, memory))
}

/// Memory after many calls, of a gateway that had no others.
async fn fill(plan: Plan, programs: &Programs<'_>, upstream: std::net::SocketAddr) -> Outcome<Filling> {
    say(&format!("{} calls in a row", plan.calls));
    let mut target = Target::start(Kind::Durable, programs, upstream).await?;
    let shape = Shape { prompt: Length::Short, stream: false };
    let window = drive(&mut target, shape, 32, Pace::Full, Until::Calls(plan.calls)).await?;
    let resident_mib = process::resident_mib(target.process.ok_or("the gateway is gone")?)?;
    let kept = kept(&mut target).await?;
    let disk_mib = target.disk()? as f64 / f64::from(1 << 20);
    Ok(Filling {
        calls: window.tally.answered,
        kept,
        per_second: window.per_second(),
        resident_mib,
        disk_mib,
    })
}

/// How many calls were kept, once that is all or does not grow any more: some keep them after the answer.
async fn kept(target: &mut Target) -> Outcome<Option<u64>> {
    let mut before = target.kept().await?;
    loop {
        if before.is_none_or(|kept| kept >= target.answered) {
            return Ok(before);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = target.kept().await?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

fn figures(target: Kind, windows: &[Window]) -> Figures {
    let median_of = |value: &dyn Fn(&Window) -> f64| median(windows.iter().map(value).collect());
    let spent: Option<Vec<f64>> =
        windows.iter().map(|window| Some(window.processor_each()?.as_secs_f64() * 1e6)).collect();
    Figures {
        target,
        per_second: median_of(&Window::per_second),
        processor_us: spent.map(median),
        p50_ms: median_of(&|window| milliseconds(percentile(&window.latencies, 0.5))),
        p99_ms: median_of(&|window| milliseconds(percentile(&window.latencies, 0.99))),
        first_p50_ms: median_of(&|window| milliseconds(percentile(&window.firsts, 0.5))),
        first_p99_ms: median_of(&|window| milliseconds(percentile(&window.firsts, 0.99))),
    }
}
