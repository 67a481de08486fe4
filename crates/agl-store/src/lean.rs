//! Kept spans for those who look into very many of them: read in one pass over their JSON, with only what they are read
//! for, and without a number's worth of work for every token.

use std::borrow::Cow;

use agl_types::{Attributes, Event, OtelResource, Span, StatusCode, TraceStatus};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Reads the JSON of a span behind its place; none when it is not what this crate writes, or damaged.
///
/// Left out are `context`, `parent`, `links` and unknown keys. Lists of numbers in attributes stay text where
/// [`is_kept_as_text`] says so.
pub(crate) fn read(rest: &str) -> Option<Span> {
    let mut json = Json { text: rest, at: 0 };
    let mut span = Span::new("", String::new(), String::new(), 0.0, 0.0);
    span.context = None;
    let mut seen = 0;
    loop {
        let key = json.key()?;
        seen += 1;
        match &*key {
            "trace_id" => span.trace_id = json.string()?.into_owned(),
            "span_id" => span.span_id = json.string()?.into_owned(),
            "parent_id" => span.parent_id = json.optional_string()?,
            "name" => span.name = json.string()?.into_owned(),
            "status" => {
                let is_ok = json.skips(r#"{"status_code":"OK","description":null}"#);
                span.status = if is_ok { TraceStatus::new(StatusCode::Ok) } else { json.parsed()? };
            }
            "attributes" => span.attributes = json.attributes()?,
            "events" if json.skips("[]") => {}
            "events" => span.events = json.parsed::<Vec<Event>>()?,
            "start_time" => span.start_time = json.parsed()?,
            "end_time" => span.end_time = json.parsed()?,
            "resource" if json.skips(r#"{"attributes":{},"schema_url":""}"#) => {}
            "resource" => span.resource = json.parsed::<OtelResource>()?,
            _ => {
                seen -= 1;
                json.parsed::<IgnoredAny>()?;
            }
        }
        match json.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    // Each of the fields above once: anything else is no span.
    (seen == 10 && json.rest().is_empty()).then_some(span)
}

/// Whether the numbers of a list under this key are many, and mostly not asked for.
fn is_kept_as_text(key: &str) -> bool {
    key.ends_with("token_ids") || key.ends_with(".logprobs")
}

/// A place in a JSON text.
struct Json<'j> {
    text: &'j str,
    at: usize,
}

impl<'j> Json<'j> {
    fn rest(&self) -> &'j str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        let space = |byte: &&u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        self.at += self.rest().as_bytes().iter().take_while(space).count();
    }

    /// The next byte that is no space, consumed.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = *self.text.as_bytes().get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Whether exactly this comes next; it is consumed then.
    fn skips(&mut self, literal: &str) -> bool {
        let is_next = self.rest().starts_with(literal);
        self.at += if is_next { literal.len() } else { 0 };
        is_next
    }

    fn key(&mut self) -> Option<Cow<'j, str>> {
        self.skip_space();
        let key = self.string()?;
        (self.next()? == b':').then_some(())?;
        self.skip_space();
        Some(key)
    }

    fn string(&mut self) -> Option<Cow<'j, str>> {
        let body = self.rest().strip_prefix('"')?;
        let end = memchr::memchr2(b'"', b'\\', body.as_bytes())?;
        if body.as_bytes()[end] == b'"' {
            self.at += end + 2;
            return Some(Cow::Borrowed(&body[..end]));
        }
        self.parsed().map(Cow::Owned)
    }

    fn optional_string(&mut self) -> Option<Option<String>> {
        if self.skips("null") { Some(None) } else { self.string().map(|text| Some(text.into_owned())) }
    }

    /// Whatever value comes next.
    fn parsed<T: Deserialize<'j>>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<T>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value)
    }

    /// A list of numbers, as text; none, and nothing consumed, when it is anything else.
    fn numbers(&mut self) -> Option<&'j str> {
        let list = self.rest();
        list.starts_with('[').then_some(())?;
        let end = memchr::memchr(b']', list.as_bytes())?;
        memchr::memchr3(b'"', b'[', b'{', &list.as_bytes()[1..end]).is_none().then_some(())?;
        self.at += end + 1;
        Some(&list[..=end])
    }

    fn attributes(&mut self) -> Option<Attributes> {
        (self.next()? == b'{').then_some(())?;
        // More than most spans have.
        let mut attributes = Attributes::with_capacity(32);
        self.skip_space();
        if self.skips("}") {
            return Some(attributes);
        }
        loop {
            let key = self.key()?;
            let value = if self.rest().starts_with('"') {
                Value::String(self.string()?.into_owned())
            } else if is_kept_as_text(&key)
                && let Some(numbers) = self.numbers()
            {
                Value::String(numbers.to_owned())
            } else {
                self.parsed()?
            };
            attributes.insert(key.into_owned(), value);
            match self.next()? {
                b',' => {}
                b'}' => return Some(attributes),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agl_types::WrittenSpan;
    use serde_json::json;

    use super::*;

    fn lean(span: &Span) -> Span {
        read(&WrittenSpan::of(span).unwrap().rest).unwrap()
    }

    #[test]
    fn a_span_is_what_it_was_but_for_what_is_left_out() {
        let mut span = Span::new("näme \"x\"\n", "1".repeat(32), "2".repeat(16), 1.5, 2.5)
            .with_attribute("text", "line\nline \\ \u{1F600}")
            .with_attribute("", "")
            .with_attribute("many", json!([1, 2.5, "x", [true, null], {"a": "]"}]))
            .with_attribute("number", 0.1)
            .with_attribute("my.tokens", json!([1, 2]));
        span.context = None;
        assert_eq!(lean(&span), span);
        span.attributes.clear();
        span.parent_id = Some("3".repeat(16));
        span.start_time = None;
        span.status =
            TraceStatus { description: Some("no".to_owned()), ..TraceStatus::new(StatusCode::Error) };
        span.resource.attributes.insert("service.name".to_owned(), json!("x"));
        let happened = Event {
            name: "e".to_owned(),
            attributes: Attributes::new(),
            timestamp: None,
            extra: Attributes::new(),
        };
        span.events.push(happened);
        assert_eq!(lean(&span), span);
        let mut with_more = span.clone();
        with_more.extra.insert("more".to_owned(), json!({"deep": [1, {"a": null}]}));
        with_more.context = Span::new("", String::new(), String::new(), 0.0, 0.0).context;
        assert_eq!(lean(&with_more), span);
    }

    #[test]
    fn lists_of_tokens_stay_text() {
        let span = Span::new("x", "1".repeat(32), "2".repeat(16), 1.0, 2.0)
            .with_attribute("prompt_token_ids", json!([1, 22, 333]))
            .with_attribute("agentlightning.gateway.choices.0.logprobs", json!([-0.5, null]))
            .with_attribute("response_token_ids", json!([[1], [2]]))
            .with_attribute("other.token_ids", json!(["a]"]))
            .with_attribute("none.token_ids", json!([]));
        let read = lean(&span).attributes;
        assert_eq!(read["prompt_token_ids"], "[1,22,333]");
        assert_eq!(read["agentlightning.gateway.choices.0.logprobs"], "[-0.5,null]");
        assert_eq!(read["response_token_ids"], json!([[1], [2]]), "only plain lists of numbers do");
        assert_eq!(read["other.token_ids"], json!(["a]"]));
        assert_eq!(read["none.token_ids"], "[]");
    }

    #[test]
    fn what_is_damaged_is_no_span() {
        let whole = WrittenSpan::of(
            &Span::new("x", "1".repeat(32), "2".repeat(16), 1.0, 2.0).with_attribute("token_ids", json!([1])),
        );
        let whole = whole.unwrap().rest;
        assert!(read(&whole).is_some());
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_none(), "{}", &whole[..end]);
        }
        assert!(read(&whole.replace("\"name\"", "\"nome\"")).is_none());
        assert!(read(&format!("{whole} ")).is_none());
    }
}
