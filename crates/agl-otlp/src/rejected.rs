use std::collections::BTreeMap;

/// How many reasons are spelled out in a message.
const SPELLED_OUT: usize = 5;

/// Spans that were not stored, counted by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    reasons: BTreeMap<String, u64>,
}

impl Rejected {
    /// Counts one more span.
    pub fn add(&mut self, reason: impl Into<String>) {
        self.add_many(reason, 1);
    }

    /// Counts more spans.
    pub fn add_many(&mut self, reason: impl Into<String>, spans: u64) {
        *self.reasons.entry(reason.into()).or_default() += spans;
    }

    /// How many spans in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.reasons.values().sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The reasons with their counts, in words; empty when there are none.
    #[must_use]
    pub fn message(&self) -> String {
        let mut parts: Vec<String> = self
            .reasons
            .iter()
            .take(SPELLED_OUT)
            .map(|(reason, count)| format!("{count} span{}: {reason}", if *count == 1 { "" } else { "s" }))
            .collect();
        if self.reasons.len() > SPELLED_OUT {
            parts.push(format!("and {} further reasons", self.reasons.len() - SPELLED_OUT));
        }
        parts.join("; ")
    }
}
