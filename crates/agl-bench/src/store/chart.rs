//! The chart of ratios, as SVG that suits light and dark pages.

use std::fmt::Write as _;

use crate::figures::rounded;
use crate::store::report::{OperationReport, Report};
use crate::store::server::Kind;

const WIDTH: f64 = 920.0;
/// Where the panels begin, and how wide each is.
const PANELS: [f64; 2] = [262.0, 600.0];
const PANEL_WIDTH: f64 = 290.0;
const TOP: f64 = 104.0;
const ROW: f64 = 52.0;
/// How far the bars of one operation are apart.
const STEP: f64 = 13.0;
/// How much room a figure takes.
const FIGURE: f64 = 40.0;

/// Colours of bars; the second is for dark pages.
const SERIES: [(Kind, &str, &str, &str); 3] = [
    (Kind::Memory, "m", "#0d9488", "#2dd4bf"),
    (Kind::SqliteNormal, "n", "#2563eb", "#60a5fa"),
    (Kind::SqliteFull, "f", "#a855f7", "#c084fc"),
];

/// Draws how many times better each server is than the peer, on a logarithmic scale.
pub(crate) fn draw(report: &Report) -> String {
    let most = report.operations.iter().map(|operation| operation.connections).max().unwrap_or_default();
    let operations: Vec<_> =
        report.operations.iter().filter(|operation| operation.connections == most).collect();
    let scale = Scale::of(&operations);
    let height = TOP + ROW * operations.len() as f64 + 56.0;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-sans-serif, system-ui, sans-serif" font-size="13" role="img" aria-label="How many times better the store server is than the one of agentlightning 0.3; the figures are in store.md.">"#
    );
    svg.push_str(&style());
    let _ = writeln!(svg, r#"  <rect class="page" width="{WIDTH}" height="{height}" rx="14"/>"#);
    let _ = writeln!(
        svg,
        r#"  <text x="28" y="36" class="title">Times better than the in-memory server of agentlightning 0.3, at {most} connections</text>"#
    );
    legend(&mut svg);
    let panels = [
        ("processor time of the server", &cost as &dyn Fn(&OperationReport, Kind) -> Option<f64>),
        ("throughput", &speed),
    ];
    for (left, (title, value)) in PANELS.into_iter().zip(panels) {
        scale.draw(&mut svg, left, height - 46.0);
        let _ = writeln!(svg, r#"  <text x="{left}" y="{}" class="head">{title}</text>"#, TOP - 14.0);
        for (row, operation) in operations.iter().enumerate() {
            let top = TOP + ROW * row as f64;
            bars(&mut svg, &scale, (left, top), operation, value);
        }
    }
    for (row, operation) in operations.iter().enumerate() {
        let middle = TOP + ROW * row as f64 + STEP * 1.5 + 9.0;
        let _ = writeln!(svg, r#"  <text x="248" y="{middle}" text-anchor="end">{}</text>"#, operation.title);
    }
    svg.push_str("</svg>\n");
    svg
}

fn cost(operation: &OperationReport, server: Kind) -> Option<f64> {
    operation.ratios(server).map(|(_, processor)| processor)
}

fn speed(operation: &OperationReport, server: Kind) -> Option<f64> {
    operation.ratios(server).map(|(throughput, _)| throughput)
}

fn style() -> String {
    let (mut light, mut dark) = (String::new(), String::new());
    for (_, class, on_light, on_dark) in SERIES {
        let _ = write!(light, ".{class}{{fill:{on_light}}}");
        let _ = write!(dark, ".{class}{{fill:{on_dark}}}");
    }
    format!(
        "  <style>text{{fill:#334155}}.title{{font-size:16px;font-weight:600;fill:#0f172a}}.head{{font-weight:600}}\
         .small{{font-size:11px;fill:#64748b}}.page{{fill:#f8fafc}}.line{{stroke:#cbd5e1}}.goal{{stroke:#0f172a}}{light}\
         @media (prefers-color-scheme: dark){{text{{fill:#cbd5e1}}.title{{fill:#f1f5f9}}.small{{fill:#94a3b8}}\
         .page{{fill:#0f172a}}.line{{stroke:#334155}}.goal{{stroke:#f1f5f9}}{dark}}}</style>\n"
    )
}

fn legend(svg: &mut String) {
    let mut left = 28.0;
    for (server, class, _, _) in SERIES {
        let _ = writeln!(svg, r#"  <rect class="{class}" x="{left}" y="51" width="12" height="10" rx="2"/>"#);
        let _ = writeln!(svg, r#"  <text x="{}" y="60">{}</text>"#, left + 18.0, server.title());
        left += 44.0 + 7.0 * server.title().len() as f64;
    }
    let _ = writeln!(svg, r#"  <path class="goal" d="M{left} 50v12" stroke-width="2"/>"#);
    let _ = writeln!(svg, r#"  <text x="{}" y="60">goal of SQLite, normal</text>"#, left + 8.0);
}

fn bars(
    svg: &mut String,
    scale: &Scale,
    (left, top): (f64, f64),
    operation: &OperationReport,
    value: &dyn Fn(&OperationReport, Kind) -> Option<f64>,
) {
    let mut line = top;
    for (server, class, _, _) in SERIES {
        let Some(ratio) = value(operation, server) else { continue };
        let (start, end) = (left + scale.place(1.0), left + scale.place(ratio));
        let (from, width) = (start.min(end), (end - start).abs().max(1.0));
        let goal = if server == Kind::SqliteNormal { operation.goal } else { None };
        let goal = goal.map(|goal| left + scale.place(goal));
        // The figure is behind the bar, and behind the goal if that would be in its way.
        let behind = goal.filter(|goal| (end..end + FIGURE).contains(goal)).unwrap_or(start.max(end));
        let _ = writeln!(
            svg,
            r#"  <rect class="{class}" x="{from:.1}" y="{line}" width="{width:.1}" height="{}" rx="2"/>"#,
            STEP - 3.0
        );
        let _ = writeln!(
            svg,
            r#"  <text class="small" x="{:.1}" y="{}">{}×</text>"#,
            behind + 5.0,
            line + 9.0,
            rounded(ratio)
        );
        if let Some(at) = goal {
            let top = line - 1.5;
            let _ = writeln!(svg, r#"  <path class="goal" d="M{at:.1} {top}v{STEP}" stroke-width="2"/>"#);
        }
        line += STEP;
    }
}

/// Logarithms of ratios, over the width of a panel.
struct Scale {
    lowest: f64,
    highest: f64,
}

impl Scale {
    fn of(operations: &[&OperationReport]) -> Self {
        let ratios: Vec<f64> = operations
            .iter()
            .flat_map(|operation| SERIES.map(|(server, ..)| operation.ratios(server)))
            .flatten()
            .flat_map(|(throughput, processor)| [throughput, processor])
            .collect();
        let lowest = ratios.iter().copied().fold(1.0, f64::min);
        let highest = ratios.iter().copied().fold(10.0, f64::max);
        // A little more than needed, so that there is room for the figure behind the longest bar.
        Self { lowest: lowest.log10(), highest: highest.log10() + 0.35 }
    }

    fn place(&self, ratio: f64) -> f64 {
        (ratio.log10() - self.lowest) / (self.highest - self.lowest) * PANEL_WIDTH
    }

    fn draw(&self, svg: &mut String, left: f64, bottom: f64) {
        for ratio in [0.1, 1.0, 10.0, 100.0, 1000.0] {
            let place = self.place(ratio);
            if !(0.0..=PANEL_WIDTH).contains(&place) {
                continue;
            }
            let at = left + place;
            let _ = writeln!(svg, r#"  <path class="line" d="M{at:.1} {}V{bottom}"/>"#, TOP - 4.0);
            let _ = writeln!(
                svg,
                r#"  <text class="small" x="{at:.1}" y="{}" text-anchor="middle">{ratio}×</text>"#,
                bottom + 16.0
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Machine;
    use crate::store::report::Figures;

    #[test]
    fn the_chart_has_a_bar_for_every_ratio() {
        let figures = |server, per_second, processor_us| Figures {
            server,
            per_second,
            processor_us,
            p50_ms: 1.0,
            p99_ms: 2.0,
        };
        let operation = OperationReport {
            title: "enqueue".to_owned(),
            unit: "requests".to_owned(),
            connections: 16,
            goal: Some(20.0),
            servers: vec![figures(Kind::Peer, 100.0, 1000.0), figures(Kind::SqliteNormal, 2500.0, 20.0)],
        };
        let machine = Machine { processor: "one".to_owned(), cores: 2, kernel: "6".to_owned() };
        let report = Report {
            machine,
            rounds: 1,
            window_s: 1.0,
            operations: vec![operation],
            memory: Vec::new(),
            mixed: Vec::new(),
        };
        let svg = draw(&report);
        assert!(svg.contains(">25.0×<") && svg.contains(">50.0×<"), "{svg}");
        assert_eq!(svg.matches(r#"<rect class="n""#).count(), 3, "two bars and the legend");
    }
}
