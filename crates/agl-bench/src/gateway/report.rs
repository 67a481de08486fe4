//! What was measured: kept as JSON, shown as tables.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::shape::{Length, Shape};
use super::target::Kind;
use crate::figures::{Machine, head, rounded, times};

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// How often each figure was taken; what is reported is the median.
    pub(crate) rounds: usize,
    /// For how long each time, at full speed and at a given rate, in seconds.
    pub(crate) window_s: f64,
    pub(crate) paced_s: f64,
    pub(crate) paced: Vec<Paced>,
    pub(crate) cases: Vec<Case>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) fidelity: Vec<Fidelity>,
    pub(crate) filling: Option<Filling>,
}

/// Calls at a given rate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Paced {
    pub(crate) shape: Shape,
    pub(crate) rate: f64,
    pub(crate) figures: Vec<Figures>,
}

/// Calls as fast as they are answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) connections: usize,
    pub(crate) figures: Vec<Figures>,
}

/// What one target did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) target: Kind,
    pub(crate) per_second: f64,
    /// Processor time of the target for one call, in microseconds; none for the model server.
    pub(crate) processor_us: Option<f64>,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Until the first bytes of the answer.
    pub(crate) first_p50_ms: f64,
    pub(crate) first_p99_ms: f64,
}

/// Resident memory after the cases with so many connections.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) target: Kind,
    pub(crate) connections: usize,
    /// How many calls it had answered by then.
    pub(crate) calls: u64,
    pub(crate) resident_mib: f64,
}

/// Whether everything came, as it was sent, and was kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fidelity {
    pub(crate) target: Kind,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Answers that are not byte for byte what the model server says, less what only capture asked for.
    pub(crate) altered: u64,
    pub(crate) frames: u64,
    pub(crate) lost: u64,
    /// Calls that are in the store.
    pub(crate) kept: Option<u64>,
}

/// Many calls in a row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Filling {
    pub(crate) calls: u64,
    pub(crate) kept: Option<u64>,
    pub(crate) per_second: f64,
    pub(crate) resident_mib: f64,
    pub(crate) disk_mib: f64,
}

fn of(figures: &[Figures], target: Kind) -> Option<&Figures> {
    figures.iter().find(|figures| figures.target == target)
}

impl Report {
    fn case(&self, shape: Shape, connections: usize) -> &[Figures] {
        let found = self.cases.iter().find(|case| case.shape == shape && case.connections == connections);
        found.map(|case| case.figures.as_slice()).unwrap_or_default()
    }

    fn targets(&self) -> Vec<Kind> {
        let measured = |kind: &Kind| self.cases.iter().any(|case| of(&case.figures, *kind).is_some());
        Kind::ALL.into_iter().filter(measured).collect()
    }

    /// Everything, as Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}; medians of {} windows of {} s, of {} s where calls have a rate.",
            self.machine, self.rounds, self.window_s, self.paced_s
        );
        self.goals(&mut text);
        self.paced_table(&mut text);
        self.case_table(&mut text, "Calls a second, as fast as they are answered", None, |own, others| {
            let ratio = if own.target.is_ours() { of(others, Kind::LiteLlm) } else { None };
            let ratio = ratio.map(|peer| own.per_second / peer.per_second);
            Some(format!("{}{}", rounded(own.per_second), times(ratio)))
        });
        self.case_table(&mut text, "Processor time for a call in µs", None, |own, others| {
            let spent = own.processor_us?;
            let ratio = if own.target.is_ours() { of(others, Kind::LiteLlm) } else { None };
            let ratio = ratio.and_then(|peer| Some(peer.processor_us? / spent));
            Some(format!("{}{}", rounded(spent), times(ratio)))
        });
        let added = |own: &Figures, others: &[Figures], value: fn(&Figures) -> (f64, f64)| {
            let (direct, (p50, p99)) = (value(of(others, Kind::Direct)?), value(own));
            Some(if own.target == Kind::Direct {
                format!("{} / {}", rounded(p50), rounded(p99))
            } else {
                format!("{} / {}", signed(p50 - direct.0), signed(p99 - direct.1))
            })
        };
        self.case_table(
            &mut text,
            "Whole answer p50 / p99 in ms, and what is added to it",
            Some(1),
            |own, others| added(own, others, |figures| (figures.p50_ms, figures.p99_ms)),
        );
        self.case_table(
            &mut text,
            "First bytes p50 / p99 in ms, and what is added to them",
            Some(1),
            |own, others| added(own, others, |figures| (figures.first_p50_ms, figures.first_p99_ms)),
        );
        self.case_table(
            &mut text,
            "Whole answer p50 / p99 in ms, of as many calls at once",
            None,
            |own, _| Some(format!("{} / {}", rounded(own.p50_ms), rounded(own.p99_ms))),
        );
        self.fidelity_table(&mut text);
        self.memory_table(&mut text);
        text
    }

    /// A row for each case, a column for each target; only those with so many connections, if it is said.
    fn case_table(
        &self,
        text: &mut String,
        title: &str,
        connections: Option<usize>,
        cell: impl Fn(&Figures, &[Figures]) -> Option<String>,
    ) {
        let targets = self.targets();
        head(text, title, targets.iter().map(|kind| kind.title()));
        let is_wanted = |case: &&Case| connections.is_none_or(|wanted| case.connections == wanted);
        for case in self.cases.iter().filter(is_wanted) {
            let word = if case.connections == 1 { "connection" } else { "connections" };
            let _ = write!(text, "| {}, {} {word} |", case.shape.title(), case.connections);
            for target in &targets {
                let cell = of(&case.figures, *target).and_then(|figures| cell(figures, &case.figures));
                let _ = write!(text, " {} |", cell.unwrap_or_default());
            }
            text.push('\n');
        }
    }

    fn paced_table(&self, text: &mut String) {
        let columns = [Kind::Direct, Kind::Durable, Kind::Async];
        let title =
            "At a rate, 32 connections: whole answer and first bytes, p50 / p99 in ms, and what is added";
        head(text, title, columns.iter().map(|kind| kind.title()));
        for Paced { shape, rate, figures } in &self.paced {
            let _ = write!(text, "| {}, {rate} a second |", shape.title());
            let direct = of(figures, Kind::Direct);
            for target in columns {
                let cell = of(figures, target).zip(direct).map(|(own, direct)| {
                    let plain = target == Kind::Direct;
                    let show = |own: f64, direct: f64| {
                        if plain { rounded(own) } else { signed(own - direct) }
                    };
                    format!(
                        "{} / {}, {} / {}",
                        show(own.p50_ms, direct.p50_ms),
                        show(own.p99_ms, direct.p99_ms),
                        show(own.first_p50_ms, direct.first_p50_ms),
                        show(own.first_p99_ms, direct.first_p99_ms),
                    )
                });
                let _ = write!(text, " {} |", cell.unwrap_or_default());
            }
            text.push('\n');
        }
    }

    fn fidelity_table(&self, text: &mut String) {
        let columns = ["answered", "failed", "answers altered", "frames lost", "calls kept"];
        head(text, "Whether everything came, and was kept", columns.into_iter());
        for row in &self.fidelity {
            let kept = row.kept.map_or_else(String::new, |kept| kept.to_string());
            let Fidelity { answered, failed, altered, frames, lost, .. } = row;
            let _ = writeln!(
                text,
                "| {} | {answered} | {failed} | {altered} | {lost} of {frames} | {kept} |",
                row.target.title()
            );
        }
    }

    fn memory_table(&self, text: &mut String) {
        let targets: Vec<Kind> = self.targets().into_iter().filter(|kind| *kind != Kind::Direct).collect();
        head(text, "Resident memory in MiB, calls so far", targets.iter().map(|kind| kind.title()));
        let mut connections: Vec<usize> = self.memory.iter().map(|memory| memory.connections).collect();
        connections.dedup();
        connections.sort_unstable();
        connections.dedup();
        for connections in connections {
            let _ = write!(text, "| after up to {connections} connections |");
            for target in &targets {
                let found = self
                    .memory
                    .iter()
                    .find(|memory| memory.target == *target && memory.connections == connections);
                let cell = found.map_or_else(String::new, |memory| {
                    format!("{}, {}", rounded(memory.resident_mib), memory.calls)
                });
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        if let Some(Filling { calls, per_second, resident_mib, disk_mib, .. }) = &self.filling {
            let _ = writeln!(
                text,
                "\nA fresh gateway, durable, after {calls} calls (1k, plain) on 32 connections, {} a second: {} MiB \
                 resident, {} MiB on disk.",
                rounded(*per_second),
                rounded(*resident_mib),
                rounded(*disk_mib)
            );
        }
    }

    /// What is aimed for, and what was reached.
    fn goals(&self, text: &mut String) {
        head(text, "Goal", ["reached", "figure"].into_iter());
        let mut row = |goal: String, figure: Option<(bool, String)>| {
            let (word, figure) = match figure {
                Some((true, figure)) => ("yes", figure),
                Some((false, figure)) => ("**missed**", figure),
                None => ("not measured", String::new()),
            };
            let _ = writeln!(text, "| {goal} | {word} | {figure} |");
        };
        for Paced { shape, rate, figures } in &self.paced {
            let own = of(figures, Kind::Durable).zip(of(figures, Kind::Direct));
            row(
                format!("{}, {rate} a second, durable: at most 0.3 ms p50 and 2 ms p99 added", shape.title()),
                own.map(|(own, direct)| {
                    let (p50, p99) = (own.p50_ms - direct.p50_ms, own.p99_ms - direct.p99_ms);
                    let keeps_up = own.per_second > 0.95 * rate;
                    (p50 <= 0.3 && p99 <= 2.0 && keeps_up, format!("{} / {}", signed(p50), signed(p99)))
                }),
            );
        }
        let plain = Shape { prompt: Length::Short, stream: false };
        for (target, factor) in [(Kind::Durable, 15.0), (Kind::Async, 30.0)] {
            let ratios: Option<Vec<f64>> = [1, 32, 256]
                .into_iter()
                .map(|connections| {
                    let figures = self.case(plain, connections);
                    Some(of(figures, target)?.per_second / of(figures, Kind::LiteLlm)?.per_second)
                })
                .collect();
            let text = |ratios: &[f64]| ratios.iter().map(|ratio| rounded(*ratio)).collect::<Vec<_>>();
            row(
                format!(
                    "{factor} × LiteLLM's throughput, {}, 1k, plain, 1 / 32 / 256 connections",
                    target.title()
                ),
                ratios.map(|ratios| {
                    (ratios.iter().all(|ratio| *ratio >= factor), text(&ratios).join(" / ") + " ×")
                }),
            );
        }
        row(
            "at most 64 MiB resident after 100,000 calls on 32 connections".to_owned(),
            self.filling.as_ref().filter(|filling| filling.calls >= 100_000).map(|filling| {
                (
                    filling.resident_mib <= 64.0,
                    format!("{} MiB, {} calls", rounded(filling.resident_mib), filling.calls),
                )
            }),
        );
        let at_256 = self.memory.iter().filter(|memory| memory.target.is_ours() && memory.connections == 256);
        let most = at_256.map(|memory| memory.resident_mib).max_by(f64::total_cmp);
        row(
            "at most 160 MiB resident at 256 connections with 20k prompts".to_owned(),
            most.map(|most| (most <= 160.0, format!("{} MiB", rounded(most)))),
        );
        let ours = || self.fidelity.iter().filter(|row| row.target.is_ours());
        let sum = |value: fn(&Fidelity) -> u64| ours().map(value).sum::<u64>();
        let (lost, altered) = (sum(|row| row.lost), sum(|row| row.altered));
        let missing: u64 = ours()
            .map(|row| row.answered.saturating_sub(row.kept.unwrap_or_default()))
            .chain(self.filling.iter().map(|row| row.calls.saturating_sub(row.kept.unwrap_or_default())))
            .sum();
        row(
            "no frame lost, no byte altered, every answered call kept".to_owned(),
            (ours().count() > 0).then(|| {
                let figure = format!("{lost} lost, {altered} answers altered, {missing} calls not kept");
                (lost + altered + missing == 0, figure)
            }),
        );
    }
}

/// With its sign, so that it is seen to be a difference.
fn signed(value: f64) -> String {
    let sign = if value < 0.0 { "−" } else { "+" };
    format!("{sign}{}", rounded(value.abs()))
}
