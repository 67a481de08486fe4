//! Spans as they come out of a store: with their JSON, which nobody has to read in order to send it on.

use agl_types::{Span, WrittenSpan, write_place};

use crate::lean::{Reader, blank};
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
        let mut span = blank(self.sequence_id);
        match Reader::default().read(&self.rest, purpose, &mut span) {
            Some(()) => Ok(span.placed(&self.rollout_id, &self.attempt_id, self.sequence_id)),
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

/// The spans of attempts while they are at hand.
pub trait AttemptSpans {
    /// Those of the attempt of this number among those asked for, in the order of sequence ids, as
    /// [`RawSpan::parse_lean`] reads them; an empty list for an attempt that is unknown, none where they were purged.
    ///
    /// # Errors
    /// [`Error::Backend`] when what is kept is damaged, or cannot be got at.
    fn read(&self, number: usize, purpose: Lean) -> Result<Option<Vec<Span>>, Error>;
}

/// What is done with the spans of attempts while they are at hand; see [`Store::look_at_spans`](crate::Store::look_at_spans).
pub type Look = Box<dyn FnOnce(&dyn AttemptSpans) + Send>;

impl AttemptSpans for Vec<Option<Vec<RawSpan>>> {
    fn read(&self, number: usize, purpose: Lean) -> Result<Option<Vec<Span>>, Error> {
        let Some(of_attempt) = self.get(number) else { return Ok(Some(Vec::new())) };
        let parsed = |spans: &Vec<RawSpan>| spans.iter().map(|span| span.parse_lean(purpose)).collect();
        of_attempt.as_ref().map(parsed).transpose()
    }
}

/// Has a thread that may be kept busy look at spans that were fetched.
pub(crate) async fn look_elsewhere(spans: Vec<Option<Vec<RawSpan>>>, look: Look) -> Result<(), Error> {
    let looked = tokio::task::spawn_blocking(move || look(&spans)).await;
    looked.map_err(|error| Error::backend(format!("spans could not be looked at: {error}")))
}

/// Writes a span out.
pub(crate) fn write_out(span: &Span) -> Result<WrittenSpan, Error> {
    WrittenSpan::of(span).map_err(|error| Error::backend(format!("a span cannot be written: {error}")))
}
