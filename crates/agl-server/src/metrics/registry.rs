//! Figures in memory, and how Prometheus reads them.
//!
//! A figure is a few atomics, histograms included: nothing grows between two looks, and nothing has to be tidied up
//! when nobody looks at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit,
};

/// Those of one kind.
type Figures<T> = RwLock<HashMap<Key, Arc<T>>>;

/// All figures of this process.
#[derive(Debug)]
pub(super) struct Registry {
    counters: Figures<AtomicU64>,
    gauges: Figures<AtomicU64>,
    histograms: Figures<Buckets>,
    helps: RwLock<HashMap<String, SharedString>>,
    /// The upper bounds of a histogram's buckets, by its name.
    bounds: fn(&str) -> &'static [f64],
}

/// How many values fell between two bounds, and the sum of all.
#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    /// A float's bits.
    sum: AtomicU64,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let index = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // Never fails, since `add` always has a value.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl Registry {
    pub(super) fn new(bounds: fn(&str) -> &'static [f64]) -> Self {
        Self {
            counters: Figures::default(),
            gauges: Figures::default(),
            histograms: Figures::default(),
            helps: RwLock::default(),
            bounds,
        }
    }

    fn describe(&self, name: &KeyName, help: SharedString) {
        let mut helps = self.helps.write().unwrap_or_else(PoisonError::into_inner);
        helps.insert(name.as_str().to_owned(), help);
    }

    /// Everything, in Prometheus's text format, ordered by name.
    pub(super) fn render(&self) -> String {
        let mut families: BTreeMap<String, (&str, String)> = BTreeMap::new();
        let mut family = |key: &Key, kind, write: &dyn Fn(&mut String, &str)| {
            let (_, lines) = families.entry(key.name().to_owned()).or_insert_with(|| (kind, String::new()));
            write(lines, key.name());
        };
        for (key, value) in sorted(&self.counters) {
            family(&key, "counter", &|lines, name| {
                line(lines, name, &key, None, &value.load(Ordering::Relaxed).to_string());
            });
        }
        for (key, value) in sorted(&self.gauges) {
            family(&key, "gauge", &|lines, name| {
                line(lines, name, &key, None, &number(f64::from_bits(value.load(Ordering::Relaxed))));
            });
        }
        for (key, buckets) in sorted(&self.histograms) {
            family(&key, "histogram", &|lines, name| histogram(lines, name, &key, &buckets));
        }

        let helps = self.helps.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, (kind, lines)) in &families {
            if let Some(help) = helps.get(name) {
                let help = help.replace('\\', "\\\\").replace('\n', "\\n");
                put(&mut text, format_args!("# HELP {name} {help}\n"));
            }
            put(&mut text, format_args!("# TYPE {name} {kind}\n{lines}"));
        }
        text
    }
}

/// The figure under this key, made if there is none.
fn entry<T>(figures: &Figures<T>, key: &Key, new: impl FnOnce() -> T) -> Arc<T> {
    if let Some(figure) = figures.read().unwrap_or_else(PoisonError::into_inner).get(key) {
        return Arc::clone(figure);
    }
    let mut figures = figures.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(figures.entry(key.clone()).or_insert_with(|| Arc::new(new())))
}

fn sorted<T>(figures: &Figures<T>) -> Vec<(Key, Arc<T>)> {
    let figures = figures.read().unwrap_or_else(PoisonError::into_inner);
    let mut list: Vec<_> = figures.iter().map(|(key, figure)| (key.clone(), Arc::clone(figure))).collect();
    list.sort_by(|(one, _), (other, _)| one.cmp(other));
    list
}

fn histogram(lines: &mut String, name: &str, key: &Key, buckets: &Buckets) {
    let bucket = format!("{name}_bucket");
    let mut count = 0;
    let bounds = buckets.bounds.iter().copied().chain([f64::INFINITY]);
    for (bound, fallen) in bounds.zip(&buckets.counts) {
        count += fallen.load(Ordering::Relaxed);
        line(lines, &bucket, key, Some(&number(bound)), &count.to_string());
    }
    let sum = f64::from_bits(buckets.sum.load(Ordering::Relaxed));
    line(lines, &format!("{name}_sum"), key, None, &number(sum));
    line(lines, &format!("{name}_count"), key, None, &count.to_string());
}

fn line(lines: &mut String, name: &str, key: &Key, bound: Option<&str>, value: &str) {
    lines.push_str(name);
    let bound = bound.map(|bound| ("le", Cow::Borrowed(bound)));
    let labels = key.labels().map(|label| (label.key(), escaped(label))).chain(bound);
    for (number, (label, text)) in labels.enumerate() {
        let before = if number == 0 { '{' } else { ',' };
        put(lines, format_args!("{before}{label}=\"{text}\""));
    }
    if lines.ends_with('"') {
        lines.push('}');
    }
    put(lines, format_args!(" {value}\n"));
}

fn escaped(label: &Label) -> Cow<'_, str> {
    if label.value().contains(['\\', '"', '\n']) {
        label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        label.value().into()
    }
}

/// A float as Prometheus's own clients write it: `0.5`, `1e-06`, `+Inf`.
fn number(value: f64) -> String {
    if value == f64::INFINITY {
        return "+Inf".to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once("e-") {
        Some((digits, power)) if power.len() == 1 => format!("{digits}e-0{power}"),
        _ => text,
    }
}

fn put(text: &mut String, part: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(part);
}

impl Recorder for Registry {
    fn describe_counter(&self, key: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn describe_gauge(&self, key: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn describe_histogram(&self, key: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(entry(&self.counters, key, || AtomicU64::new(0)))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(entry(&self.gauges, key, || AtomicU64::new(0)))
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(entry(&self.histograms, key, || Buckets::new((self.bounds)(key.name()))))
    }
}

#[cfg(test)]
mod tests {
    use metrics::{counter, describe_counter, gauge, histogram, with_local_recorder};

    use super::*;

    #[test]
    fn figures_read_as_prometheus_writes_them() {
        let registry = Registry::new(|_| &[1e-6, 0.5, 2.0]);
        with_local_recorder(&registry, || {
            describe_counter!("requests", "How many");
            counter!("requests", "path" => "/a\"b\\").increment(2);
            counter!("requests", "path" => "/a\"b\\").increment(1);
            gauge!("depth").set(7.0);
            for value in [1e-7, 0.5, 0.6, 100.0, f64::NAN] {
                histogram!("seconds", "path" => "/").record(value);
            }
        });
        let expected = r#"# TYPE depth gauge
depth 7.0
# HELP requests How many
# TYPE requests counter
requests{path="/a\"b\\"} 3
# TYPE seconds histogram
seconds_bucket{path="/",le="1e-06"} 1
seconds_bucket{path="/",le="0.5"} 2
seconds_bucket{path="/",le="2.0"} 3
seconds_bucket{path="/",le="+Inf"} 4
seconds_sum{path="/"} 101.1000001
seconds_count{path="/"} 4
"#;
        assert_eq!(registry.render(), expected);
    }
}
