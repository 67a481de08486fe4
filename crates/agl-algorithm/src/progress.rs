use crate::{Counts, RolloutReport};

/// Watches an algorithm at work. Called from its tasks, so it should return at once.
///
/// ```
/// use agl_algorithm::{Counts, Progress};
///
/// fn watch(progress: impl Progress) {
///     progress.counted(&Counts { planned: 3, ..Counts::default() });
/// }
///
/// watch(|counts: &Counts| println!("{} of {}", counts.finished, counts.planned));
/// ```
pub trait Progress: Send + Sync + 'static {
    /// The counts have changed.
    fn counted(&self, counts: &Counts);

    /// A rollout has ended and its spans have been read.
    fn finished(&self, report: &RolloutReport) {
        let _ = report;
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn counted(&self, _: &Counts) {}
}

impl<F: Fn(&Counts) + Send + Sync + 'static> Progress for F {
    fn counted(&self, counts: &Counts) {
        self(counts);
    }
}
