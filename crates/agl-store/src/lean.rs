//! Kept spans for those who look into very many of them: read in one pass over their JSON, with only what they are read
//! for, and without a number's worth of work for every token.

use std::borrow::Cow;

use agl_types::{Attributes, Event, OtelResource, Span, StatusCode, TraceStatus, semconv};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// What kept spans are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lean {
    /// Training data of any kind.
    Words,
    /// Rows of tokens. A call whose token ids are known comes without its prompt's words and its parameters, unless the
    /// prompt may have pictures.
    Tokens,
}

/// Reads the JSON of a span behind its place; none when it is not what this crate writes, or damaged.
///
/// Left out are `context`, `parent`, `links`, unknown keys, and what it is not read for. Lists of numbers in attributes stay
/// text where [`is_kept_as_text`] says so.
pub(crate) fn read(rest: &str, purpose: Lean) -> Option<Span> {
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
            "attributes" => span.attributes = json.attributes(purpose)?,
            "events" if json.skips("[]") => {}
            "events" => span.events = json.parsed::<Vec<Event>>()?,
            "start_time" => span.start_time = json.parsed()?,
            "end_time" => span.end_time = json.parsed()?,
            "resource" if json.skips(r#"{"attributes":{},"schema_url":""}"#) => {}
            "resource" => span.resource = json.parsed::<OtelResource>()?,
            _ => {
                seen -= 1;
                json.skipped()?;
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

    /// The text of whatever value comes next.
    fn skipped(&mut self) -> Option<&'j str> {
        let rest = self.rest();
        let plain = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let length = match rest.as_bytes().first()? {
            b'"' => {
                let start = self.at;
                self.string()?;
                return self.text.get(start..self.at);
            }
            b'[' | b'{' => {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
                values.next()?.ok()?;
                values.byte_offset()
            }
            _ => rest.as_bytes().iter().take_while(plain).count(),
        };
        self.at += length;
        rest.get(..length)
    }

    fn attributes(&mut self, purpose: Lean) -> Option<Attributes> {
        (self.next()? == b'{').then_some(())?;
        self.skip_space();
        if self.skips("}") {
            return Some(Attributes::new());
        }
        // More than most spans have.
        let mut found: Vec<(Cow<'j, str>, Written<'j>)> = Vec::with_capacity(64);
        loop {
            let key = self.key()?;
            let value = match self.rest().as_bytes().first()? {
                b'"' => Written::Text(self.string()?),
                b'[' if is_kept_as_text(&key)
                    && let Some(numbers) = self.numbers() =>
                {
                    Written::Numbers(numbers)
                }
                _ => Written::Json(self.skipped()?),
            };
            found.push((key, value));
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        let is_bare = purpose == Lean::Tokens && knows_tokens(&found) && !may_show(&found);
        let mut attributes = Attributes::with_capacity(found.len());
        for (key, value) in found {
            if is_bare && is_of_words(&key) {
                continue;
            }
            let value = match value {
                Written::Text(text) => Value::String(text.into_owned()),
                Written::Numbers(numbers) => Value::String(numbers.to_owned()),
                Written::Json(json) => serde_json::from_str(json).ok()?,
            };
            attributes.insert(key.into_owned(), value);
        }
        Some(attributes)
    }
}

/// The value of an attribute, as it is written.
enum Written<'j> {
    /// A text, unescaped.
    Text(Cow<'j, str>),
    /// A list of numbers that is kept as text.
    Numbers(&'j str),
    /// Anything else.
    Json(&'j str),
}

/// Whether the attributes have the engine's tokens of both prompt and answer.
fn knows_tokens(attributes: &[(Cow<'_, str>, Written<'_>)]) -> bool {
    [semconv::PROMPT_TOKEN_IDS, semconv::RESPONSE_TOKEN_IDS].iter().all(|ids| {
        attributes
            .iter()
            .any(|(key, value)| key == ids && matches!(value, Written::Numbers(ids) if *ids != "[]"))
    })
}

/// Whether a message of the prompt may have parts other than words: those are groups of their own, or JSON text.
fn may_show(attributes: &[(Cow<'_, str>, Written<'_>)]) -> bool {
    attributes.iter().any(|(key, value)| {
        let in_message = key.strip_prefix(PROMPT).and_then(|key| key.split_once('.'));
        match (in_message, value) {
            (Some((_, "content")), Written::Text(text)) => text.starts_with('['),
            (Some((_, field)), _) => field.starts_with("content"),
            (None, _) => false,
        }
    })
}

/// Whether the attribute is a prompt's words, or a parameter.
fn is_of_words(key: &str) -> bool {
    key.starts_with(PROMPT)
        || (key.starts_with(REQUEST) && !matches!(&key[REQUEST.len()..], "model" | "type"))
}

const PROMPT: &str = "gen_ai.prompt.";
const REQUEST: &str = "gen_ai.request.";

#[cfg(test)]
mod tests {
    use agl_types::WrittenSpan;
    use serde_json::json;

    use super::*;

    fn lean(span: &Span) -> Span {
        read(&WrittenSpan::of(span).unwrap().rest, Lean::Words).unwrap()
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
        let read = |text: &str| read(text, Lean::Words);
        assert!(read(&whole).is_some());
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_none(), "{}", &whole[..end]);
        }
        assert!(read(&whole.replace("\"name\"", "\"nome\"")).is_none());
        assert!(read(&whole.replace("[1]", "tru")).is_none());
        assert!(read(&format!("{whole} ")).is_none());
    }

    #[test]
    fn rows_of_tokens_are_read_without_words() {
        let call = Span::new("x", "1".repeat(32), "2".repeat(16), 1.0, 2.0)
            .with_attribute("gen_ai.prompt.0.role", "user")
            .with_attribute("gen_ai.prompt.0.content", "long")
            .with_attribute("gen_ai.prompt.0.tool_calls.0.name", "f")
            .with_attribute("gen_ai.request.model", "m")
            .with_attribute("gen_ai.request.temperature", 0.5)
            .with_attribute("gen_ai.completion.0.content", "a")
            .with_attribute("prompt_token_ids", json!([1]));
        let keys = |span: &Span| -> Vec<String> {
            let written = WrittenSpan::of(span).unwrap().rest;
            let whole = read(&written, Lean::Words).unwrap();
            assert_eq!(whole.attributes.len(), span.attributes.len());
            read(&written, Lean::Tokens).unwrap().attributes.keys().cloned().collect()
        };
        assert_eq!(keys(&call).len(), 7, "the answer's tokens are not known");
        let known = call.clone().with_attribute("response_token_ids", json!([2]));
        let left =
            ["gen_ai.request.model", "gen_ai.completion.0.content", "prompt_token_ids", "response_token_ids"];
        assert_eq!(keys(&known), left);
        let empty = call.with_attribute("response_token_ids", json!([]));
        assert_eq!(keys(&empty).len(), 8);
        for (key, value) in [
            ("gen_ai.prompt.1.content", json!("[{\"type\": \"image_url\"}]")),
            ("gen_ai.prompt.1.content.0.type", json!("image_url")),
            ("gen_ai.prompt.1.content", json!([{"type": "image_url"}])),
        ] {
            assert_eq!(keys(&known.clone().with_attribute(key, value)).len(), 9, "{key}");
        }
    }
}
