//! The command as a process of its own: what it prints, how it ends, and what is left after a kill.
#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test")]

mod access;
mod arguments;
mod db;
mod durability;
mod logs;
mod process;
mod queue;
