use serde_json::Error;

use crate::Span;

/// A span that is written out: its JSON as it is kept and answered, and beside it what spans are looked up by.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenSpan {
    /// The rollout it belongs to.
    pub rollout_id: String,
    /// The attempt it belongs to.
    pub attempt_id: String,
    /// Its place in the rollout. It is not part of `rest`, because it may be known last.
    pub sequence_id: i64,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The span that it happened in.
    pub parent_id: Option<String>,
    /// What happened.
    pub name: String,
    /// When it began.
    pub start_time: Option<f64>,
    /// When it ended.
    pub end_time: Option<f64>,
    /// Whether 0.3's models can read it as it is: see [`Span::is_plain`].
    pub is_plain: bool,
    /// The JSON behind the place, from `"trace_id"` to the last brace.
    pub rest: String,
}

impl WrittenSpan {
    /// Writes a span out.
    ///
    /// # Errors
    /// When the span has no JSON.
    pub fn of(span: &Span) -> Result<Self, Error> {
        Self::with(span, &[])
    }

    /// Writes a span out with attributes more, each a name that the span does not have and the JSON of a plain value
    /// ([`crate::is_plain_attribute`]): lists that are long, and come as text, need not be read for it.
    ///
    /// # Errors
    /// When the span has no JSON.
    pub fn with(span: &Span, more: &[(String, String)]) -> Result<Self, Error> {
        let json = serde_json::to_string(span)?;
        let mut place = Vec::with_capacity(128);
        write_place(&span.rollout_id, &span.attempt_id, span.sequence_id, &mut place);
        debug_assert!(json.as_bytes().starts_with(&place), "the place of a span comes first");
        let placeless = json.get(place.len()..).unwrap_or_default();
        // Whatever comes before is a number or a string, and in a string there would be a backslash.
        let attributes = "\"attributes\":{";
        let at = match more {
            [] => placeless.len(),
            _ => placeless.find(attributes).map_or(placeless.len(), |at| at + attributes.len()),
        };
        let (before, behind) = placeless.split_at(at);
        let length: usize = more.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let mut rest = String::with_capacity(placeless.len() + length);
        rest.push_str(before);
        for (name, value) in more {
            for part in [&serde_json::to_string(name)?, ":", value, ","] {
                rest.push_str(part);
            }
        }
        if !more.is_empty() && span.attributes.is_empty() {
            rest.pop();
        }
        rest.push_str(behind);
        Ok(Self {
            rollout_id: span.rollout_id.clone(),
            attempt_id: span.attempt_id.clone(),
            sequence_id: span.sequence_id,
            trace_id: span.trace_id.clone(),
            span_id: span.span_id.clone(),
            parent_id: span.parent_id.clone(),
            name: span.name.clone(),
            start_time: span.start_time,
            end_time: span.end_time,
            is_plain: span.is_plain(),
            rest,
        })
    }

    /// Appends the whole JSON.
    pub fn write_to(&self, json: &mut Vec<u8>) {
        write_place(&self.rollout_id, &self.attempt_id, self.sequence_id, json);
        json.extend_from_slice(self.rest.as_bytes());
    }

    /// Reads the span.
    ///
    /// # Errors
    /// When `rest` is damaged.
    pub fn parse(&self) -> Result<Span, Error> {
        let mut json = Vec::with_capacity(self.rest.len() + 128);
        self.write_to(&mut json);
        serde_json::from_slice(&json)
    }
}

/// Appends the beginning of a span's JSON: its place, and the comma behind it.
pub fn write_place(rollout_id: &str, attempt_id: &str, sequence_id: i64, json: &mut Vec<u8>) {
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

    /// What is written out is what was given, to the letter.
    #[test]
    fn a_written_span_is_the_span() {
        let ids = (crate::ids::trace_id(1, 2), crate::ids::span_id(3));
        let mut span = Span::new("näme \"x\"", ids.0, ids.1, 1.5, 2.5).placed("ro-\"1\"", "at-\\1", -7);
        span = span.with_attribute("k", 0.1).with_attribute("text", "line\nline");
        span.extra.insert("extra".to_owned(), serde_json::json!({"a": [1]}));
        let written = WrittenSpan::of(&span).unwrap();
        let mut json = Vec::new();
        written.write_to(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), serde_json::to_string(&span).unwrap());
        assert_eq!(written.parse().unwrap(), span);
    }

    /// Attributes that come as text are there beside the others, and nothing else is touched.
    #[test]
    fn attributes_may_come_as_text() {
        let ids = (crate::ids::trace_id(1, 2), crate::ids::span_id(3));
        let mut span = Span::new(r#"","attributes":{"#, ids.0, ids.1, 1.5, 2.5).placed("ro-1", "at-1", 1);
        span.status.description = Some(r#"","attributes":{"#.to_owned());
        let more = [("ids".to_owned(), "[1,2]".to_owned()), ("a \"b\"".to_owned(), "3".to_owned())];
        for kept in [None, Some("k")] {
            span.attributes.extend(kept.map(|key| (key.to_owned(), true.into())));
            let read = WrittenSpan::with(&span, &more).unwrap().parse().unwrap();
            let mut expected = span.clone();
            expected.attributes.insert("ids".to_owned(), serde_json::json!([1, 2]));
            expected.attributes.insert("a \"b\"".to_owned(), 3.into());
            assert_eq!(read, expected);
        }
    }
}
