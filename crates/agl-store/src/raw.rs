//! Spans as they come out of a store: with their JSON, which nobody has to read in order to send it on.

use agl_types::{Span, WrittenSpan, write_place};

use crate::{Error, Lean};

/// A kept span.
#[derive(Debug, Clone, PartialEq)]
pub struct RawSpan {
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
    pub(crate) sequence_id: i64,
    pub(crate) rest: String,
    /// Whether 0.3's models can read it as it is.
    pub is_plain: bool,
}

impl RawSpan {
    /// Appends the span's JSON.
    pub fn write_to(&self, json: &mut Vec<u8>) {
        let Self { rollout_id, attempt_id, sequence_id, rest, is_plain: _ } = self;
        json.reserve(rest.len() + 128);
        write_place(rollout_id, attempt_id, *sequence_id, json);
        json.extend_from_slice(rest.as_bytes());
    }

    /// Reads the span for training data to be made of it, many times faster: without `context`, `parent`, `links`, unknown
    /// keys and what the purpose has no use for, and with token ids and log-probs as JSON text, which agl-trace reads as it
    /// reads lists.
    ///
    /// # Errors
    /// Those of [`RawSpan::parse`].
    pub fn parse_lean(&self, purpose: Lean) -> Result<Span, Error> {
        match crate::lean::read(&self.rest, purpose) {
            Some(span) => Ok(span.placed(&self.rollout_id, &self.attempt_id, self.sequence_id)),
            None => self.parse(),
        }
    }

    /// Reads the span.
    ///
    /// # Errors
    /// [`Error::Backend`] when what is kept is damaged.
    pub fn parse(&self) -> Result<Span, Error> {
        let mut json = Vec::new();
        self.write_to(&mut json);
        serde_json::from_slice(&json)
            .map_err(|error| Error::backend(format!("the store holds a span that cannot be read: {error}")))
    }
}

impl From<&WrittenSpan> for RawSpan {
    fn from(span: &WrittenSpan) -> Self {
        Self {
            rollout_id: span.rollout_id.clone(),
            attempt_id: span.attempt_id.clone(),
            sequence_id: span.sequence_id,
            rest: span.rest.clone(),
            is_plain: span.is_plain,
        }
    }
}

impl TryFrom<&Span> for RawSpan {
    type Error = Error;

    fn try_from(span: &Span) -> Result<Self, Error> {
        Ok(Self::from(&write_out(span)?))
    }
}

/// Writes a span out.
pub(crate) fn write_out(span: &Span) -> Result<WrittenSpan, Error> {
    WrittenSpan::of(span).map_err(|error| Error::backend(format!("a span cannot be written: {error}")))
}
