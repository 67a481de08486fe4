//! Kept spans for those who look into very many of them: read in one pass over their JSON, with only what they are read
//! for, and without a number's worth of work for every token.

use std::borrow::Cow;

use agl_types::{Attributes, Event, JsonMap, OtelResource, Span, StatusCode, TraceStatus, semconv};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// What kept spans are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lean {
    /// Training data of any kind.
    Words,
    /// Rows of tokens. A call whose token ids are known comes without its prompt's words, its parameters and, where it has one
    /// answer, that answer's words, unless the prompt may have pictures.
    Tokens,
}

/// Reads spans one after the other.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The attributes of the span that is being read: room that is used again.
    found: Vec<Attribute>,
}

/// An attribute: where its key and its value are.
#[derive(Debug, Clone, Copy)]
struct Attribute {
    key: Piece,
    value: Piece,
}

/// A piece of a JSON text; of a string, what is between its quotes.
#[derive(Debug, Clone, Copy)]
struct Piece {
    kind: Kind,
    start: usize,
    end: usize,
}

/// As wide as the numbers beside it, so that a piece is moved in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Kind {
    /// A string without escapes.
    Plain,
    /// A string with some.
    Escaped,
    /// A list of numbers that is kept as text.
    Numbers,
    /// Anything else.
    Json,
}

/// A span of which nothing is known but its place in its attempt.
pub(crate) fn blank(sequence_id: i64) -> Span {
    Span {
        rollout_id: String::new(),
        attempt_id: String::new(),
        sequence_id,
        trace_id: String::new(),
        span_id: String::new(),
        parent_id: None,
        name: String::new(),
        status: TraceStatus::new(StatusCode::Ok),
        attributes: Attributes::new(),
        events: Vec::new(),
        links: Vec::new(),
        start_time: None,
        end_time: None,
        context: None,
        parent: None,
        resource: OtelResource::default(),
        extra: JsonMap::new(),
    }
}

impl Reader {
    /// Reads the JSON of a span behind its place into a span that has that and nothing else; none when it is not what this
    /// crate writes, or damaged.
    ///
    /// Left out are `context`, `parent`, `links`, unknown keys, and what it is not read for. Lists of numbers in attributes
    /// stay text where [`is_kept_as_text`] says so.
    pub(crate) fn read(&mut self, rest: &str, purpose: Lean, span: &mut Span) -> Option<()> {
        let mut json = Json { text: rest, at: 0 };
        let mut seen = 0;
        loop {
            let key = json.key()?;
            let key = json.text_of(key)?;
            seen += 1;
            match &*key {
                "trace_id" => span.trace_id = json.string()?,
                "span_id" => span.span_id = json.string()?,
                "parent_id" if json.skips("null") => {}
                "parent_id" => span.parent_id = Some(json.string()?),
                "name" => span.name = json.string()?,
                "status" => {
                    let is_ok = json.skips(r#"{"status_code":"OK","description":null}"#);
                    span.status = if is_ok { TraceStatus::new(StatusCode::Ok) } else { json.parsed()? };
                }
                "attributes" => {
                    json.attributes(&mut self.found)?;
                    span.attributes = self.attributes(&json, purpose)?;
                }
                "events" if json.skips("[]") => {}
                "events" => span.events = json.parsed::<Vec<Event>>()?,
                "start_time" => span.start_time = json.parsed()?,
                "end_time" => span.end_time = json.parsed()?,
                "resource" if json.skips(r#"{"attributes":{},"schema_url":""}"#) => {}
                "resource" => span.resource = json.parsed::<OtelResource>()?,
                _ => {
                    seen -= 1;
                    json.value()?;
                }
            }
            match json.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        // Each of the fields above once: anything else is no span.
        (seen == 10 && json.rest().is_empty()).then_some(())
    }

    /// The attributes found, but for those that the purpose has no use for.
    fn attributes(&self, json: &Json<'_>, purpose: Lean) -> Option<Attributes> {
        let words = match purpose {
            Lean::Words => None,
            Lean::Tokens => Words::of(&self.found, json)?,
        };
        let mut attributes = Attributes::with_capacity(self.found.len().min(16));
        for &Attribute { key, value } in &self.found {
            let key = json.text_of(key)?;
            if words.as_ref().is_some_and(|words| words.has(&key)) {
                continue;
            }
            let value = match value.kind {
                Kind::Json => serde_json::from_str(json.written(value)?).ok()?,
                _ => Value::String(json.text_of(value)?.into_owned()),
            };
            attributes.insert(key.into_owned(), value);
        }
        Some(attributes)
    }
}

/// Which attributes of a call whose tokens are known are words, parameters, or else nothing that rows are made of.
struct Words {
    /// The answer's too: it is the only one, and nothing is told of it but its tokens.
    of_answer: bool,
}

impl Words {
    /// None when the engine's tokens of prompt and answer are not known, or a message of the prompt may have parts other than
    /// words: those are groups of their own, or JSON text.
    fn of(found: &[Attribute], json: &Json<'_>) -> Option<Option<Self>> {
        let (mut has_prompt, mut has_response, mut may_show, mut of_answer) = (false, false, false, true);
        for &Attribute { key, value } in found {
            let key = json.text_of(key)?;
            let is_known = || value.kind == Kind::Numbers && value.end - value.start > 2;
            if let Some(in_group) = key.strip_prefix(PROMPT) {
                let (_, field) = in_group.split_once('.').unwrap_or_default();
                may_show |= match value.kind {
                    Kind::Plain | Kind::Escaped if field == "content" => {
                        json.written(value)?.starts_with('[')
                    }
                    _ => field.starts_with("content"),
                };
            } else if let Some(in_group) = key.strip_prefix(COMPLETION) {
                of_answer &= in_group.starts_with("0.");
            } else if key == semconv::PROMPT_TOKEN_IDS {
                has_prompt = is_known();
            } else if key == semconv::RESPONSE_TOKEN_IDS {
                has_response = is_known();
            } else {
                of_answer &= !key.starts_with(semconv::GATEWAY);
            }
        }
        Some((has_prompt && has_response && !may_show).then_some(Self { of_answer }))
    }

    fn has(&self, key: &str) -> bool {
        let Some(key) = key.strip_prefix("gen_ai.") else { return false };
        key.starts_with("prompt.")
            || (self.of_answer && key.starts_with("completion."))
            || (key.starts_with("request.") && key != "request.model")
            || matches!(key, "system" | "usage.prompt_tokens" | "usage.total_tokens")
    }
}

const PROMPT: &str = "gen_ai.prompt.";
const COMPLETION: &str = "gen_ai.completion.";

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

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// The next byte that is no space, consumed.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// Whether exactly this comes next; it is consumed then.
    fn skips(&mut self, literal: &str) -> bool {
        let is_next = self.rest().starts_with(literal);
        self.at += if is_next { literal.len() } else { 0 };
        is_next
    }

    #[inline]
    fn key(&mut self) -> Option<Piece> {
        self.skip_space();
        let key = self.quoted()?;
        (self.next()? == b':').then_some(())?;
        self.skip_space();
        Some(key)
    }

    /// A string that comes next.
    #[inline]
    fn quoted(&mut self) -> Option<Piece> {
        let bytes = self.text.as_bytes();
        (*bytes.get(self.at)? == b'"').then_some(())?;
        let start = self.at + 1;
        let end = start + memchr::memchr2(b'"', b'\\', &bytes[start..])?;
        if bytes[end] == b'"' {
            self.at = end + 1;
            return Some(Piece { kind: Kind::Plain, start, end });
        }
        self.escaped()
    }

    #[cold]
    fn escaped(&mut self) -> Option<Piece> {
        let start = self.at + 1;
        self.parsed::<Cow<'_, str>>()?;
        Some(Piece { kind: Kind::Escaped, start, end: self.at - 1 })
    }

    /// How a piece is written.
    fn written(&self, piece: Piece) -> Option<&'j str> {
        self.text.get(piece.start..piece.end)
    }

    /// What a string says; anything else as it is written.
    #[inline]
    fn text_of(&self, piece: Piece) -> Option<Cow<'j, str>> {
        if piece.kind == Kind::Escaped {
            let quoted = self.text.get(piece.start - 1..=piece.end)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        self.written(piece).map(Cow::Borrowed)
    }

    fn string(&mut self) -> Option<String> {
        let text = self.quoted()?;
        self.text_of(text).map(Cow::into_owned)
    }

    /// Whatever value comes next, read.
    fn parsed<T: Deserialize<'j>>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<T>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value)
    }

    /// A list of numbers; none, and nothing consumed, when it is anything else.
    fn numbers(&mut self) -> Option<Piece> {
        let list = self.rest().as_bytes();
        let end = memchr::memchr(b']', list)?;
        memchr::memchr3(b'"', b'[', b'{', &list[1..end]).is_none().then_some(())?;
        let start = self.at;
        self.at += end + 1;
        Some(Piece { kind: Kind::Numbers, start, end: self.at })
    }

    /// Whatever value comes next.
    #[inline]
    fn value(&mut self) -> Option<Piece> {
        let start = self.at;
        match self.peek()? {
            b'"' => return self.quoted(),
            b'[' | b'{' => drop(self.parsed::<IgnoredAny>()?),
            _ => {
                while let Some(byte) = self.peek()
                    && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.'))
                {
                    self.at += 1;
                }
            }
        }
        Some(Piece { kind: Kind::Json, start, end: self.at })
    }

    fn attributes(&mut self, found: &mut Vec<Attribute>) -> Option<()> {
        found.clear();
        (self.next()? == b'{').then_some(())?;
        self.skip_space();
        if self.skips("}") {
            return Some(());
        }
        loop {
            let key = self.key()?;
            let value = match self.peek()? {
                b'[' if is_kept_as_text(&self.text_of(key)?)
                    && let Some(numbers) = self.numbers() =>
                {
                    numbers
                }
                _ => self.value()?,
            };
            found.push(Attribute { key, value });
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
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

    fn read(rest: &str, purpose: Lean) -> Option<Span> {
        let mut span = blank(0);
        Reader::default().read(rest, purpose, &mut span).map(|()| span)
    }

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
        assert_eq!(keys(&known), ["gen_ai.request.model", "prompt_token_ids", "response_token_ids"]);
        for key in ["gen_ai.completion.1.content", "agentlightning.gateway.choices.0.logprobs"] {
            let more = keys(&known.clone().with_attribute(key, "b"));
            assert!(
                more.contains(&"gen_ai.completion.0.content".to_owned()),
                "{key} tells more of the answers"
            );
        }
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
