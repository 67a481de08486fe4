//! What the system knows about the processes of a server: the one that was started and those that came of it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::Outcome;

/// `USER_HZ`, which Linux fixes for what it tells programs.
const TICKS_A_SECOND: u64 = 100;

/// The processor time that they have used so far.
pub(crate) fn processor_time(root: u32) -> Outcome<Duration> {
    let ticks: u64 = of(root)?.iter().map(|process| process.ticks).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
}

/// The memory that is resident now, in MiB.
pub(crate) fn resident_mib(root: u32) -> Outcome<f64> {
    let mut kib = 0;
    for process in of(root)? {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        kib += line.trim().trim_end_matches(" kB").parse::<u32>()?;
    }
    Ok(f64::from(kib) / 1024.0)
}

fn of(root: u32) -> Outcome<Vec<Process>> {
    let all: HashMap<u32, Process> = std::fs::read_dir("/proc")?
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?))
        .map(|process| (process.id, process))
        .collect();
    let is_ours = |process: &&Process| {
        let mut ancestor = Some(*process);
        while let Some(process) = ancestor {
            if process.id == root {
                return true;
            }
            ancestor = all.get(&process.parent);
        }
        false
    };
    Ok(all.values().filter(is_ours).copied().collect())
}

#[derive(Debug, Clone, Copy)]
struct Process {
    id: u32,
    parent: u32,
    ticks: u64,
}

impl Process {
    /// None for what is no process, or none any more.
    fn read(name: &str) -> Option<Self> {
        let id = name.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let parent = u32::try_from(number(1)?).ok()?;
        Some(Self { id, parent, ticks: number(11)? + number(12)? })
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
