//! Running agents: dequeue, run, heartbeat, report.
