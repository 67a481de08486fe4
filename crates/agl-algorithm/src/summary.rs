use agl_types::{RolloutMode, RolloutStatus};
use serde::{Deserialize, Serialize};

use crate::RolloutReport;

/// How far a run is; all figures count this run alone, as of the rollouts that have ended.
///
/// ```
/// use agl_algorithm::Counts;
///
/// let counts = Counts { planned: 10, finished: 4, ..Counts::default() };
/// assert_eq!(counts.planned - counts.finished, 6);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rollouts that the run will have made in the end.
    pub planned: u64,
    /// Rollouts put into the queue.
    pub enqueued: u64,
    /// Rollouts that have ended.
    pub finished: u64,
    /// Of these, those that ended well.
    pub succeeded: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Of these, those that were called off.
    pub cancelled: u64,
    /// Attempts made, retries included.
    pub attempts: u64,
    /// Spans recorded, those of earlier attempts included.
    pub spans: u64,
    /// LLM calls of the latest attempts; each is one triplet.
    pub llm_calls: u64,
    /// Tokens that the model read in these calls.
    pub prompt_tokens: u64,
    /// Tokens that the model wrote in these calls.
    pub response_tokens: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, report: &RolloutReport) {
        self.finished += 1;
        match report.rollout.status {
            RolloutStatus::Succeeded => self.succeeded += 1,
            RolloutStatus::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
        self.attempts += report.attempts;
        self.spans += report.spans;
        self.llm_calls += report.triplets.len() as u64;
        self.prompt_tokens += report.prompt_tokens;
        self.response_tokens += report.response_tokens;
    }
}

/// How the rollouts of one mode went.
///
/// ```
/// use agl_algorithm::ModeSummary;
///
/// assert_eq!(ModeSummary::default().mean_reward, None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModeSummary {
    /// Rollouts that ended well.
    pub succeeded: u64,
    /// Rollouts that failed.
    pub failed: u64,
    /// Rollouts that were called off.
    pub cancelled: u64,
    /// Rollouts with a final reward, whatever their status.
    pub scored: u64,
    /// Rollouts without one.
    pub unscored: u64,
    /// Mean of the final rewards of the scored rollouts; none without any.
    pub mean_reward: Option<f64>,
}

impl ModeSummary {
    pub(crate) fn add(&mut self, report: &RolloutReport) {
        match report.rollout.status {
            RolloutStatus::Succeeded => self.succeeded += 1,
            RolloutStatus::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
        let Some(reward) = report.reward else {
            self.unscored += 1;
            return;
        };
        self.scored += 1;
        let mean = self.mean_reward.unwrap_or_default();
        self.mean_reward = Some(mean + (reward - mean) / self.scored as f64);
    }
}

/// What came out of a run.
///
/// ```
/// use agl_algorithm::Summary;
///
/// let summary = Summary::default();
/// assert_eq!((summary.train.succeeded, summary.val.failed, summary.stopped), (0, 0, false));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The figures of the whole run.
    pub counts: Counts,
    /// The training rollouts.
    pub train: ModeSummary,
    /// The validation rollouts.
    pub val: ModeSummary,
    /// The resources that the rollouts used.
    pub resources_id: Option<String>,
    /// Whether the run ended before its time because it was told to.
    pub stopped: bool,
}

impl Summary {
    /// Takes in what became of one more rollout.
    pub fn add(&mut self, report: &RolloutReport) {
        self.counts.add(report);
        match report.rollout.mode {
            Some(RolloutMode::Train) => self.train.add(report),
            _ => self.val.add(report),
        }
    }
}
