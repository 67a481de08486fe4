use agl_store::Clock;
use agl_types::JsonMap;
use serde_json::{Value, json};

const GIB_IN_KIB: f64 = 1024.0 * 1024.0;

/// What a worker says about its machine in a heartbeat, under the names that 0.3's workers use.
///
/// Figures that this system does not give are left out.
#[must_use]
pub fn machine_snapshot(clock: &dyn Clock) -> JsonMap {
    let mut snapshot = JsonMap::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            snapshot.insert(key.to_owned(), value);
        }
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let threads = std::thread::available_parallelism().ok();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = kibibytes(&memory, "MemTotal:");
    let used = total.zip(kibibytes(&memory, "MemAvailable:")).map(|(total, available)| total - available);

    put("timestamp", Some(json!(clock.now())));
    put("host", host.map(|host| json!(host.trim())));
    put("os", Some(json!(std::env::consts::OS)));
    put("pid", Some(json!(std::process::id())));
    put("cpu_threads", threads.map(|threads| json!(threads.get())));
    put("mem_used_gb", used.map(|used| json!(used / GIB_IN_KIB)));
    put("mem_total_gb", total.map(|total| json!(total / GIB_IN_KIB)));
    put("mem_pct", used.zip(total).map(|(used, total)| json!(100.0 * used / total)));
    snapshot
}

fn kibibytes(memory: &str, field: &str) -> Option<f64> {
    memory.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}
