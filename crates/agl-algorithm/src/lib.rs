//! Algorithms over a store: the trait and Baseline.
//!
//! An [`Algorithm`] puts tasks into the store's queue, waits until runners have worked on them, and reads what
//! happened from the spans. It talks to nobody but the store.

mod algorithm;
mod baseline;
mod error;
mod harvest;
mod progress;
mod summary;

pub use algorithm::{Algorithm, AlgorithmContext};
pub use baseline::{Baseline, BaselineOptions};
pub use error::Error;
pub use harvest::{RolloutReport, harvest};
pub use progress::{Progress, Silent};
pub use summary::{Counts, ModeSummary, Summary};
