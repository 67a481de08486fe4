//! The plan of a run: which requests, how many at a time, for how long, in which order.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::figures::{Machine, median, milliseconds};
use crate::store::load::{Stream, Wanted, Window, drive};
use crate::store::report::{Figures, MemoryReport, MixedReport, OperationReport, Probe, Report};
use crate::store::server::{Kind, Programs, Server};
use crate::store::shapes::{self, Claim, Template};
use crate::{Outcome, block_on, say};

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    rounds: usize,
    /// How long a figure takes with many connections; half of that with one.
    window: Duration,
    /// How many spans the rollout has that pages are read from.
    long: u64,
    /// With how many spans memory is looked at.
    sizes: &'static [u64],
    /// As many more for SQLite, whose memory should not depend on it.
    sqlite_sizes: &'static [u64],
    /// For how long small requests are timed while spans are written.
    mixed: Duration,
}

impl Plan {
    /// The whole: about a quarter of an hour.
    pub(crate) const FULL: Self = Self {
        rounds: 3,
        window: Duration::from_secs(2),
        long: 10_000,
        sizes: &[10_000, 100_000],
        sqlite_sizes: &[1_000_000],
        mixed: Duration::from_secs(15),
    };

    /// A look at whether everything works: about a minute.
    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        window: Duration::from_millis(400),
        long: 1_000,
        sizes: &[2_000],
        sqlite_sizes: &[10_000],
        mixed: Duration::from_secs(2),
    };
}

/// How many spans the rollouts have that are read whole, and how many such rollouts there are.
const SHORT: u32 = 100;
const SHORT_ROLLOUTS: usize = 32;
/// How many rollouts the spans of one window go to.
const TARGETS: usize = 256;
/// How many connections write spans when memory is filled, and beside small requests.
const WRITERS: usize = 4;
/// The share of what they can that those writers do beside small requests.
const SHARE: f64 = 0.8;
/// A bound for what ends by itself.
const FOREVER: Duration = Duration::from_secs(3600);
/// The time from one small request to the next of its kind, meanwhile.
const PROBE_PACE: Duration = Duration::from_millis(20);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Enqueue,
    Dequeue,
    RestSpan,
    Otlp(u32),
    ReadRollout,
    /// From a rollout that has so many spans.
    ReadPage(u64),
}

impl Operation {
    /// Claims come after what fills the queue.
    fn all(long: u64) -> [Self; 7] {
        [
            Self::Enqueue,
            Self::Dequeue,
            Self::RestSpan,
            Self::Otlp(10),
            Self::Otlp(100),
            Self::ReadRollout,
            Self::ReadPage(long),
        ]
    }

    fn title(self) -> String {
        match self {
            Self::Enqueue => "enqueue one rollout".to_owned(),
            Self::Dequeue => "dequeue one rollout".to_owned(),
            Self::RestSpan => "one span by REST".to_owned(),
            Self::Otlp(count) => format!("{count} spans by OTLP"),
            Self::ReadRollout => format!("read all {SHORT} spans of a rollout"),
            Self::ReadPage(spans) => format!("read 100 of a rollout's {spans} spans"),
        }
    }

    fn goal(self) -> Option<f64> {
        match self {
            Self::Enqueue | Self::Dequeue | Self::RestSpan => Some(20.0),
            Self::Otlp(_) | Self::ReadRollout => Some(10.0),
            Self::ReadPage(_) => None,
        }
    }

    /// How many things that count a request holds, and their name.
    fn unit(self) -> (u32, &'static str) {
        match self {
            Self::Otlp(count) => (count, "spans"),
            _ => (1, "requests"),
        }
    }

    fn template(self, connection: usize) -> Template {
        match self {
            Self::Enqueue => shapes::enqueue(1),
            Self::Dequeue => shapes::dequeue(1, connection),
            Self::RestSpan => shapes::rest_span(),
            Self::Otlp(count) => shapes::otlp(count),
            Self::ReadRollout => shapes::read_rollout(),
            Self::ReadPage(spans) => shapes::read_page(spans / 2),
        }
    }

    fn wanted(self) -> Wanted {
        match self {
            Self::Enqueue => Wanted::Body(100),
            Self::Dequeue => Wanted::Claim,
            Self::RestSpan => Wanted::Body(3_000),
            Self::Otlp(_) => Wanted::Silence,
            Self::ReadRollout | Self::ReadPage(_) => Wanted::Body(100 * 3_000),
        }
    }

    /// Streams of this operation on so many connections, without pace or end.
    fn streams(self, connections: usize, claims: &Arc<[Claim]>) -> Vec<Stream> {
        let turn = Arc::new(AtomicU64::new(0));
        let stream = |connection| Stream {
            template: self.template(connection),
            wanted: self.wanted(),
            claims: Arc::clone(claims),
            turn: Arc::clone(&turn),
            pace: None,
            rounds: None,
        };
        (0..connections).map(stream).collect()
    }
}

/// A server with what is there to be read.
struct Subject {
    server: Server,
    short: Arc<[Claim]>,
    long: Arc<[Claim]>,
    /// How many tasks wait, and how many a second were last taken.
    queued: u64,
    dequeues: f64,
}

impl Subject {
    /// Fills a server: many rollouts to be read whole, and a long one.
    async fn prepare(server: Server, long: u64) -> Outcome<Self> {
        let short: Arc<[Claim]> = server.claim(SHORT_ROLLOUTS).await?.into();
        fill(&server, &short).await?;
        let long = long_rollout(&server, long).await?;
        Ok(Self { server, short, long, queued: 0, dequeues: 0.0 })
    }

    async fn measure(
        &mut self,
        operation: Operation,
        connections: usize,
        window: Duration,
    ) -> Outcome<Window> {
        let claims = match operation {
            Operation::Enqueue | Operation::Dequeue => Arc::from([]),
            Operation::RestSpan | Operation::Otlp(_) => self.server.claim(TARGETS).await?.into(),
            Operation::ReadRollout => Arc::clone(&self.short),
            Operation::ReadPage(_) => Arc::clone(&self.long),
        };
        if operation == Operation::Dequeue {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is neither")]
            let enough = (self.dequeues * window.as_secs_f64() * 1.5) as u64;
            let missing = enough.saturating_sub(self.queued);
            self.server.enqueue(usize::try_from(missing)?).await?;
            self.queued += missing;
        }
        let measured = drive(&self.server, operation.streams(connections, &claims), window).await?;
        if measured.requests == 0 {
            return Err(format!("{:?} did nothing of: {}", self.server.kind, operation.title()).into());
        }
        match operation {
            Operation::Enqueue => {
                self.queued += measured.requests;
                self.dequeues = self.dequeues.max(measured.per_second());
            }
            Operation::Dequeue => {
                self.queued = self.queued.saturating_sub(measured.requests);
                self.dequeues = self.dequeues.max(measured.per_second());
            }
            _ => {}
        }
        Ok(measured)
    }
}

/// What of a plan is wanted.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) servers: &'a [Kind],
    /// A part of the title of an operation, which is then all that is measured.
    pub(crate) operation: Option<&'a str>,
}

/// Carries a plan out.
pub(crate) async fn run(plan: Plan, choice: &Choice<'_>, programs: &Programs<'_>) -> Outcome<Report> {
    let operations = operations(plan, choice, programs).await?;
    let (memory, mixed) = match choice.operation {
        None => memory_and_mixed(plan, choice, programs).await?,
        Some(_) => (Vec::new(), Vec::new()),
    };
    Ok(Report {
        machine: Machine::this(),
        rounds: plan.rounds,
        window_s: plan.window.as_secs_f64(),
        operations,
        memory,
        mixed,
    })
}

async fn operations(
    plan: Plan,
    choice: &Choice<'_>,
    programs: &Programs<'_>,
) -> Outcome<Vec<OperationReport>> {
    let mut subjects = Vec::new();
    for kind in choice.servers.iter().copied() {
        say(&format!("starting and filling: {}", kind.title()));
        let server = Server::start(kind, programs).await?;
        say(&format!("process {}", server.process));
        subjects.push(Subject::prepare(server, plan.long).await?);
    }
    let is_wanted =
        |operation: &Operation| choice.operation.is_none_or(|part| operation.title().contains(part));
    let wanted: Vec<Operation> = Operation::all(plan.long).into_iter().filter(is_wanted).collect();
    let cases: Vec<(usize, Operation)> = [16, 1]
        .into_iter()
        .flat_map(|connections| wanted.iter().map(move |operation| (connections, *operation)))
        .collect();
    let mut windows: Vec<Vec<Vec<Window>>> =
        cases.iter().map(|_| subjects.iter().map(|_| Vec::new()).collect()).collect();
    for round in 0..plan.rounds {
        say(&format!("round {} of {}", round + 1, plan.rounds));
        for ((connections, operation), windows) in cases.iter().zip(&mut windows) {
            let window = if *connections == 1 { plan.window / 2 } else { plan.window };
            let mut turns: Vec<_> = subjects.iter_mut().zip(windows).collect();
            // Everybody is first once.
            let count = turns.len();
            turns.rotate_left(round % count);
            for (subject, windows) in turns {
                windows.push(subject.measure(*operation, *connections, window).await?);
            }
        }
    }
    let report =
        |((connections, operation), windows): (&(usize, Operation), &Vec<Vec<Window>>)| OperationReport {
            title: operation.title(),
            unit: operation.unit().1.to_owned(),
            connections: *connections,
            goal: operation.goal(),
            servers: subjects
                .iter()
                .zip(windows)
                .map(|(subject, windows)| figures(subject.server.kind, *operation, windows))
                .collect(),
        };
    Ok(cases.iter().zip(&windows).map(report).collect())
}

fn figures(server: Kind, operation: Operation, windows: &[Window]) -> Figures {
    let units = f64::from(operation.unit().0);
    let median = |value: &dyn Fn(&Window) -> f64| median(windows.iter().map(value).collect());
    Figures {
        server,
        per_second: median(&|window| window.per_second() * units),
        processor_us: median(&|window| window.processor_each().as_secs_f64() * 1e6 / units),
        p50_ms: median(&|window| milliseconds(window.latency(0.5))),
        p99_ms: median(&|window| milliseconds(window.latency(0.99))),
    }
}

async fn memory_and_mixed(
    plan: Plan,
    choice: &Choice<'_>,
    programs: &Programs<'_>,
) -> Outcome<(Vec<MemoryReport>, Vec<MixedReport>)> {
    let (mut memory, mut mixed) = (Vec::new(), Vec::new());
    // What SQLite keeps in memory is the same however it syncs.
    for kind in choice.servers.iter().copied().filter(|kind| *kind != Kind::SqliteFull) {
        let server = Server::start(kind, programs).await?;
        let more = if kind == Kind::SqliteNormal { plan.sqlite_sizes } else { &[] };
        let (mut short, mut spans) = (Arc::from([]), 0);
        for size in plan.sizes.iter().chain(more).copied() {
            say(&format!("{}: filling to {size} spans", kind.title()));
            short = server.claim(usize::try_from((size - spans) / u64::from(SHORT))?).await?.into();
            fill(&server, &short).await?;
            spans = size;
            // What is on its way to the disk or back to the system may arrive.
            tokio::time::sleep(Duration::from_secs(1)).await;
            memory.push(MemoryReport { server: kind, spans, resident_mib: server.resident_mib()? });
        }
        let long = long_rollout(&server, plan.long).await?;
        say(&format!("{}: reading and writing at once", kind.title()));
        mixed.push(mixed_run(&server, &short, &long, plan).await?);
    }
    Ok((memory, mixed))
}

/// Gives every one of these rollouts its spans.
async fn fill(server: &Server, claims: &Arc<[Claim]>) -> Outcome<()> {
    let mut streams = Operation::Otlp(SHORT).streams(WRITERS, claims);
    streams.iter_mut().for_each(|stream| stream.rounds = Some(1));
    drive(server, streams, FOREVER).await?;
    for claim in claims.first().into_iter().chain(claims.last()) {
        server.expect_page(shapes::read_rollout(), claim, usize::try_from(SHORT)?, SHORT.into()).await?;
    }
    Ok(())
}

/// Makes a rollout with so many spans.
async fn long_rollout(server: &Server, spans: u64) -> Outcome<Arc<[Claim]>> {
    let claims: Arc<[Claim]> = server.claim(1).await?.into();
    let mut streams = Operation::Otlp(SHORT).streams(WRITERS, &claims);
    streams.iter_mut().for_each(|stream| stream.rounds = Some(spans / u64::from(SHORT)));
    drive(server, streams, FOREVER).await?;
    for claim in claims.iter() {
        server.expect_page(shapes::read_page(spans / 2), claim, 100, spans).await?;
    }
    Ok(claims)
}

/// Times small requests while writers do a share of what they can.
async fn mixed_run(
    server: &Server,
    short: &Arc<[Claim]>,
    long: &Arc<[Claim]>,
    plan: Plan,
) -> Outcome<MixedReport> {
    let spans = server.sent_spans();
    let targets: Arc<[Claim]> = server.claim(TARGETS).await?.into();
    let mut writers = Operation::Otlp(SHORT).streams(WRITERS, &targets);
    let most = drive(server, writers.clone(), plan.mixed / 4).await?;
    let pace = most.elapsed.div_f64(most.requests as f64 / WRITERS as f64 * SHARE);
    writers.iter_mut().for_each(|stream| stream.pace = Some(pace));

    let probe = |operation: Operation, claims: &Arc<[Claim]>| {
        let mut streams = operation.streams(1, claims);
        streams.iter_mut().for_each(|stream| stream.pace = Some(PROBE_PACE));
        async move {
            let window = drive(server, streams, plan.mixed).await?;
            Ok(Probe {
                title: operation.title(),
                requests: window.requests,
                p50_ms: milliseconds(window.latency(0.5)),
                p99_ms: milliseconds(window.latency(0.99)),
            })
        }
    };
    let probes = async {
        tokio::try_join!(
            probe(Operation::ReadRollout, short),
            probe(Operation::ReadPage(plan.long), long),
            probe(Operation::Enqueue, &Arc::from([])),
            probe(Operation::RestSpan, &targets),
        )
    };
    // Each side has a thread of its own, so that neither waits for the other on this end.
    let (written, probes) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| block_on(drive(server, writers, plan.mixed)));
        let probing = scope.spawn(|| block_on(probes));
        (writing.join(), probing.join())
    });
    let written = written.map_err(|_| "the writers panicked")??;
    let probes: (Probe, Probe, Probe, Probe) = probes.map_err(|_| "the readers panicked")??;
    let spans_per_second = |window: &Window| window.per_second() * f64::from(SHORT);
    Ok(MixedReport {
        server: server.kind,
        spans,
        most_per_second: spans_per_second(&most),
        written_per_second: spans_per_second(&written),
        probes: [probes.0, probes.1, probes.2, probes.3].into(),
    })
}
