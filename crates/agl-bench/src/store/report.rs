//! What was measured: kept as JSON, shown as tables.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::figures::{Machine, head, rounded, times};
use crate::store::server::Kind;

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// How often each figure was taken; what is reported is the median.
    pub(crate) rounds: usize,
    /// For how long each time, in seconds.
    pub(crate) window_s: f64,
    pub(crate) operations: Vec<OperationReport>,
    pub(crate) memory: Vec<MemoryReport>,
    pub(crate) mixed: Vec<MixedReport>,
}

/// One operation at one number of connections.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OperationReport {
    pub(crate) title: String,
    /// What is counted: requests, or the spans in them.
    pub(crate) unit: String,
    pub(crate) connections: usize,
    /// The ratio that SQLite with `--sync normal` is meant to reach.
    pub(crate) goal: Option<f64>,
    pub(crate) servers: Vec<Figures>,
}

/// What one server did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) server: Kind,
    pub(crate) per_second: f64,
    /// Processor time of the server for one unit, in microseconds.
    pub(crate) processor_us: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Resident memory with a number of spans.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemoryReport {
    pub(crate) server: Kind,
    pub(crate) spans: u64,
    pub(crate) resident_mib: f64,
}

/// Small requests while spans are being written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MixedReport {
    pub(crate) server: Kind,
    /// How many spans the server had when it began.
    pub(crate) spans: u64,
    /// Spans a second that writers reach when nobody holds them back.
    pub(crate) most_per_second: f64,
    /// Spans a second that were written meanwhile.
    pub(crate) written_per_second: f64,
    pub(crate) probes: Vec<Probe>,
}

/// One kind of small request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) title: String,
    pub(crate) requests: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl OperationReport {
    pub(crate) fn of(&self, server: Kind) -> Option<&Figures> {
        self.servers.iter().find(|figures| figures.server == server)
    }

    /// How many times as fast as the peer a server is, and how many times less processor time it takes.
    pub(crate) fn ratios(&self, server: Kind) -> Option<(f64, f64)> {
        let (peer, ours) = (self.of(Kind::Peer)?, self.of(server)?);
        Some((ours.per_second / peer.per_second, peer.processor_us / ours.processor_us))
    }
}

impl Report {
    /// The servers that were measured, the peer first.
    pub(crate) fn servers(&self) -> Vec<Kind> {
        let measured = |kind: &Kind| self.operations.iter().any(|operation| operation.of(*kind).is_some());
        Kind::ALL.into_iter().filter(measured).collect()
    }

    /// Everything, as Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        let _ =
            writeln!(text, "{}; medians of {} windows of {} s.", self.machine, self.rounds, self.window_s);
        let mut connections: Vec<usize> =
            self.operations.iter().map(|operation| operation.connections).collect();
        connections.dedup();
        for connections in connections {
            let word = if connections == 1 { "connection" } else { "connections" };
            self.table(
                &mut text,
                connections,
                &format!("Throughput a second, {connections} {word}"),
                |figures, ratios| {
                    format!("{}{}", rounded(figures.per_second), times(ratios.map(|(rate, _)| rate)))
                },
            );
            if connections > 1 {
                self.table(
                    &mut text,
                    connections,
                    &format!("Processor time of the server in µs, {connections} {word}"),
                    |figures, ratios| {
                        format!(
                            "{}{}",
                            rounded(figures.processor_us),
                            times(ratios.map(|(_, processor)| processor))
                        )
                    },
                );
            }
            self.table(
                &mut text,
                connections,
                &format!("Latency p50 / p99 in ms, {connections} {word}"),
                |figures, _| format!("{} / {}", rounded(figures.p50_ms), rounded(figures.p99_ms)),
            );
        }
        self.memory_table(&mut text);
        self.mixed_table(&mut text);
        text
    }

    fn table(
        &self,
        text: &mut String,
        connections: usize,
        title: &str,
        cell: impl Fn(&Figures, Option<(f64, f64)>) -> String,
    ) {
        let servers = self.servers();
        head(text, title, servers.iter().map(|kind| kind.title()));
        for operation in self.operations.iter().filter(|operation| operation.connections == connections) {
            let _ = write!(text, "| {} ({}) |", operation.title, operation.unit);
            for kind in &servers {
                let ratios = if *kind == Kind::Peer { None } else { operation.ratios(*kind) };
                let cell = operation.of(*kind).map_or_else(String::new, |figures| cell(figures, ratios));
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
    }

    fn memory_table(&self, text: &mut String) {
        let mut sizes: Vec<u64> = self.memory.iter().map(|memory| memory.spans).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let servers: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| self.memory.iter().any(|memory| memory.server == *kind))
            .collect();
        head(text, "Resident memory in MiB, with spans of 3.5 kB", servers.iter().map(|kind| kind.title()));
        let of =
            |kind, spans| self.memory.iter().find(|memory| memory.server == kind && memory.spans == spans);
        for spans in sizes {
            let _ = write!(text, "| {spans} spans |");
            for kind in &servers {
                let Some(memory) = of(*kind, spans) else {
                    text.push_str(" |");
                    continue;
                };
                let peer = if *kind == Kind::Peer { None } else { of(Kind::Peer, spans) };
                let ratio = peer.map(|peer| peer.resident_mib / memory.resident_mib);
                let _ = write!(text, " {}{} |", rounded(memory.resident_mib), times(ratio));
            }
            text.push('\n');
        }
    }

    fn mixed_table(&self, text: &mut String) {
        let columns = self.mixed.iter().map(|mixed| {
            let MixedReport { server, spans, most_per_second, written_per_second, .. } = mixed;
            format!(
                "{} holding {spans} spans, {} of {} spans/s",
                server.title(),
                rounded(*written_per_second),
                rounded(*most_per_second)
            )
        });
        head(
            text,
            "Latency p50 / p99 in ms, while spans are written at 80 % of the most there can be",
            columns,
        );
        let titles: Vec<&str> = self
            .mixed
            .first()
            .map(|mixed| mixed.probes.iter().map(|probe| probe.title.as_str()).collect())
            .unwrap_or_default();
        for title in titles {
            let _ = write!(text, "| {title} |");
            for mixed in &self.mixed {
                let cell = mixed
                    .probes
                    .iter()
                    .find(|probe| probe.title == title)
                    .map_or_else(String::new, |probe| {
                        format!("{} / {}", rounded(probe.p50_ms), rounded(probe.p99_ms))
                    });
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
    }
}
