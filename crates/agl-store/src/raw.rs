//! Spans as they are kept: written out once, when they come in, and answered as they are.

use agl_types::Span;

use crate::Error;

/// A span on its way into a backend.
#[derive(Debug)]
pub struct WrittenSpan {
    /// The span.
    pub(crate) span: Span,
    /// Its JSON behind the place, of which the number may not be known yet.
    pub(crate) rest: String,
    /// Whether 0.3's models can read it as it is.
    pub(crate) is_plain: bool,
}

impl WrittenSpan {
    pub(crate) fn new(span: Span) -> Result<Self, Error> {
        let odd =
            |error: &dyn std::fmt::Display| Error::backend(format!("a span cannot be written: {error}"));
        let mut json = serde_json::to_string(&span).map_err(|error| odd(&error))?;
        let mut head = Vec::with_capacity(128);
        write_head(&span.rollout_id, &span.attempt_id, span.sequence_id, &mut head);
        if !json.as_bytes().starts_with(&head) {
            return Err(odd(&"its place does not come first"));
        }
        let rest = json.split_off(head.len());
        let is_plain = span.is_plain();
        Ok(Self { span, rest, is_plain })
    }
}

/// A kept span: its JSON, which nobody has to read in order to send it on.
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
        write_head(rollout_id, attempt_id, *sequence_id, json);
        json.extend_from_slice(rest.as_bytes());
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

impl TryFrom<Span> for RawSpan {
    type Error = Error;

    fn try_from(span: Span) -> Result<Self, Error> {
        let WrittenSpan { span, rest, is_plain } = WrittenSpan::new(span)?;
        let Span { rollout_id, attempt_id, sequence_id, .. } = span;
        Ok(Self { rollout_id, attempt_id, sequence_id, rest, is_plain })
    }
}

/// The beginning of a span's JSON: its place.
fn write_head(rollout_id: &str, attempt_id: &str, sequence_id: i64, json: &mut Vec<u8>) {
    // Writing a string or a number into memory cannot fail.
    json.extend_from_slice(br#"{"rollout_id":"#);
    let _ = serde_json::to_writer(&mut *json, rollout_id);
    json.extend_from_slice(br#","attempt_id":"#);
    let _ = serde_json::to_writer(&mut *json, attempt_id);
    json.extend_from_slice(br#","sequence_id":"#);
    let _ = serde_json::to_writer(&mut *json, &sequence_id);
    json.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept is what was given, and what is sent on is its JSON to the letter.
    #[test]
    fn a_kept_span_is_the_span() {
        let ids = (agl_types::ids::trace_id(1, 2), agl_types::ids::span_id(3));
        let mut span = Span::new("näme \"x\"", ids.0, ids.1, 1.5, 2.5).placed("ro-\"1\"", "at-\\1", -7);
        span = span.with_attribute("k", 0.1).with_attribute("text", "line\nline");
        span.extra.insert("extra".to_owned(), serde_json::json!({"a": [1]}));
        let raw = RawSpan::try_from(span.clone()).unwrap();
        let mut json = Vec::new();
        raw.write_to(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), serde_json::to_string(&span).unwrap());
        assert_eq!(raw.parse().unwrap(), span);
    }
}
