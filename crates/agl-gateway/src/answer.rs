//! Answers and chunks as JSON, but for what is long in them: lists of log-probs and of token ids. Of all that a model server
//! says they are the most, and hardly anybody looks into them. Each such list stays the text that it is.

use std::ops::Range;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json::{self, Member};

/// In as many bytes of a list of token ids there is at least one comma. What is larger is none, but still a number.
const LONGEST_RUN: usize = 128;

/// Where the members of an answer or a chunk stand in its text, and those of its choices.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) members: Vec<Member>,
    /// None when there is no list of them.
    pub(crate) choices: Option<Vec<Choice>>,
    end: usize,
}

/// Where a choice stands.
#[derive(Debug)]
pub(crate) struct Choice {
    place: Range<usize>,
    /// None when it is no object.
    pub(crate) members: Vec<Member>,
    /// The members of its log-probs, if they are an object.
    pub(crate) logprobs: Option<Vec<Member>>,
}

impl Outline {
    /// None when there is no object.
    pub(crate) fn of(text: &[u8]) -> Option<Self> {
        let (mut members, mut choices) = (Vec::new(), None);
        let end = json::walk_members(text, json::blank(text, 0), |key, at| {
            let mut member = Member { key, value: at..at };
            let is_choices = member.name(text) == "choices";
            if is_choices && text.get(at) == Some(&b'[') {
                let mut list = Vec::new();
                member.value.end = json::walk_items(text, at, |at| {
                    let choice = Choice::at(text, at)?;
                    let end = choice.place.end;
                    list.push(choice);
                    Some(end)
                })?;
                choices = Some(list);
            } else {
                member.value.end = json::end_of_value(text, at)?;
                if is_choices {
                    choices = None;
                }
            }
            let end = member.value.end;
            members.push(member);
            Some(end)
        })?;
        Some(Self { members, choices, end })
    }

    /// Whether a chunk says how much was used and nothing else.
    pub(crate) fn is_usage_only(&self, text: &[u8]) -> bool {
        let is_usage =
            |member: &Member| member.name(text) == "usage" && text.get(member.value.start) == Some(&b'{');
        self.choices.as_ref().is_some_and(Vec::is_empty) && self.members.iter().any(is_usage)
    }

    /// Reads an answer or a chunk of which this is the outline; none when it is not JSON. Lists of token ids become
    /// strings where they are nothing else, see [`ids`], and so do the lists in `choices[].logprobs.content`, which
    /// [`numbers`] and [`shortened`] read, and which may turn out not to be JSON. [`spelled_out`] undoes that.
    pub(crate) fn read(&self, text: &[u8]) -> Option<Value> {
        let is_whole = json::blank(text, self.end) == text.len();
        let text = std::str::from_utf8(text).ok().filter(|_| is_whole)?;
        let mut answer = Map::new();
        for member in &self.members {
            let value = match (&*member.name(text.as_bytes()), &self.choices) {
                // Of several the last one counts.
                ("choices", Some(choices)) => {
                    choices.iter().map(|choice| choice.read(text)).collect::<Option<Value>>()?
                }
                ("prompt_token_ids", _) => read_ids(text.get(member.value.clone())?)?,
                _ => value(text, member)?,
            };
            answer.insert(name(text, member)?, value);
        }
        Some(answer.into())
    }
}

impl Choice {
    fn at(text: &[u8], at: usize) -> Option<Self> {
        let (mut members, mut logprobs) = (Vec::new(), None);
        if text.get(at) != Some(&b'{') {
            return Some(Self { place: at..json::end_of_value(text, at)?, members, logprobs });
        }
        let end = json::walk_members(text, at, |key, at| {
            let mut member = Member { key, value: at..at };
            if member.name(text) == "logprobs" {
                logprobs = None;
                if text.get(at) == Some(&b'{') {
                    let (lists, end) = json::members_at(text, at)?;
                    member.value.end = end;
                    logprobs = Some(lists);
                }
            }
            if member.value.is_empty() {
                member.value.end = json::end_of_value(text, at)?;
            }
            let end = member.value.end;
            members.push(member);
            Some(end)
        })?;
        Some(Self { place: at..end, members, logprobs })
    }

    fn read(&self, text: &str) -> Option<Value> {
        if !text.get(self.place.clone())?.starts_with('{') {
            return serde_json::from_str(text.get(self.place.clone())?).ok();
        }
        let mut choice = Map::new();
        for member in &self.members {
            let value = match (&*member.name(text.as_bytes()), &self.logprobs) {
                ("logprobs", Some(lists)) => {
                    let mut logprobs = Map::new();
                    for list in lists {
                        let value = match &*list.name(text.as_bytes()) {
                            "content" => read_content(text.get(list.value.clone())?)?,
                            _ => value(text, list)?,
                        };
                        logprobs.insert(name(text, list)?, value);
                    }
                    logprobs.into()
                }
                ("token_ids" | "prompt_token_ids", _) => read_ids(text.get(member.value.clone())?)?,
                _ => value(text, member)?,
            };
            choice.insert(name(text, member)?, value);
        }
        Some(choice.into())
    }
}

fn name(text: &str, member: &Member) -> Option<String> {
    serde_json::from_str(text.get(member.key.clone())?).ok()
}

fn value(text: &str, member: &Member) -> Option<Value> {
    serde_json::from_str(text.get(member.value.clone())?).ok()
}

/// A list of token ids as text, anything else as it is; none when it is not JSON.
pub(crate) fn read_ids(written: &str) -> Option<Value> {
    if count(written).is_some() { Some(written.into()) } else { serde_json::from_str(written).ok() }
}

fn read_content(written: &str) -> Option<Value> {
    if written.starts_with('[') { Some(written.into()) } else { serde_json::from_str(written).ok() }
}

/// How many token ids are in a list, if there is nothing else in it, blanks included. They are very many, so all bytes are
/// asked the same, without branches.
fn count(list: &str) -> Option<usize> {
    let inner = list.strip_prefix('[')?.strip_suffix(']')?.as_bytes();
    let (Some(first), Some(last)) = (inner.first(), inner.last()) else { return Some(0) };
    let is = |one: u8, other: u8| u8::from(one == other);
    let mut odd = is(*first, b',') | is(*last, b',');
    for byte in inner {
        odd |= u8::from(!byte.is_ascii_digit()) & u8::from(*byte != b',');
    }
    // Nothing between two commas.
    for (a, b) in inner.iter().zip(&inner[1..]) {
        odd |= is(*a, b',') & is(*b, b',');
    }
    // A zero in front.
    if let [b'0', b, ..] = inner {
        odd |= u8::from(*b != b',');
    }
    for ((a, b), c) in inner.iter().zip(inner.get(1..)?).zip(inner.get(2..).unwrap_or_default()) {
        odd |= is(*a, b',') & is(*b, b'0') & u8::from(*c != b',');
    }
    let is_short = |run: &[u8]| run.contains(&b',');
    let are_ids = odd == 0 && inner.chunks_exact(LONGEST_RUN).all(is_short);
    are_ids.then(|| 1 + memchr::memchr_iter(b',', inner).count())
}

/// How many token ids there are; none when it is no list of them.
pub(crate) fn ids(value: &Value) -> Option<usize> {
    match value {
        Value::Array(list) => Some(list.len()),
        Value::String(list) => count(list),
        _ => None,
    }
}

/// Appends token ids to others.
pub(crate) fn join_ids(ids: &mut Value, more: Value) {
    match (ids, more) {
        (Value::String(list), Value::String(more)) => join(list, &more),
        (ids, more) => {
            let mut list = spelled(ids.take());
            if let (Value::Array(list), Value::Array(more)) = (&mut list, spelled(more)) {
                list.extend(more);
            }
            *ids = list;
        }
    }
}

/// A list that stayed text as what it is.
fn spelled(value: Value) -> Value {
    match &value {
        Value::String(text) if text.starts_with('[') => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

/// The log-probs in a list of them; none when one has no number.
pub(crate) fn numbers(list: &str) -> Option<Vec<f64>> {
    #[derive(Deserialize)]
    struct Token {
        logprob: Option<f64>,
    }
    let tokens: Vec<Token> = serde_json::from_str(list).ok()?;
    tokens.into_iter().map(|token| token.logprob).collect()
}

/// A list of log-probs with nothing of each but its token and its number, as what a span keeps of it: JSON text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shortened {
    /// The list as a JSON string that has it inside.
    pub(crate) content: String,
    /// The list of the numbers.
    pub(crate) numbers: String,
    pub(crate) count: usize,
}

/// None when one lacks its token or its number.
pub(crate) fn shortened(list: &str) -> Option<Shortened> {
    let text = list.as_bytes();
    let mut short =
        Shortened { content: String::with_capacity(list.len() / 2), numbers: String::new(), count: 0 };
    short.content.push_str("\"[");
    short.numbers.push('[');
    json::walk_items(text, json::blank(text, 0), |at| {
        let (mut token, mut logprob) = (None, None);
        let end = json::walk_members(text, at, |key, at| {
            let value = at..json::end_of_value(text, at)?;
            let end = value.end;
            match &text[key] {
                b"\"token\"" => token = list.get(value),
                b"\"logprob\"" => logprob = list.get(value),
                _ => {}
            }
            Some(end)
        })?;
        short.add(token?, logprob?)?;
        Some(end)
    })?;
    short.content.push_str("]\"");
    short.numbers.push(']');
    Some(short)
}

impl Shortened {
    fn add(&mut self, token: &str, logprob: &str) -> Option<()> {
        let Self { content, numbers, count } = self;
        let is_easy = token.bytes().all(|byte| byte >= b' ' && byte != b'\\');
        let inner = token.strip_prefix('"')?.strip_suffix('"')?;
        if *count > 0 {
            content.push(',');
            numbers.push(',');
        }
        content.push_str(r#"{\"token\":\""#);
        if is_easy {
            content.push_str(inner);
        } else {
            serde_json::from_str::<String>(token).ok()?;
            for letter in inner.chars() {
                content.extend(matches!(letter, '"' | '\\').then_some('\\'));
                content.push(letter);
            }
        }
        content.push_str(r#"\",\"logprob\":"#);
        content.push_str(logprob);
        content.push('}');
        numbers.push_str(logprob);
        if !is_decimal(logprob) {
            serde_json::from_str::<f64>(logprob).ok()?;
            // Numbers without a point would be integers to who reads them.
            if !logprob.contains(['.', 'e', 'E']) {
                numbers.push_str(".0");
            }
        }
        *count += 1;
        Some(())
    }
}

/// Whether this is a number as nearly all are: short, with one point, and no exponent.
fn is_decimal(text: &str) -> bool {
    let Some((whole, part)) = text.strip_prefix('-').unwrap_or(text).split_once('.') else { return false };
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.len() < 64 && are_digits(whole) && are_digits(part) && (whole == "0" || !whole.starts_with('0'))
}

/// Appends a list to another; what is no list replaces it.
pub(crate) fn join(list: &mut String, more: &str) {
    let end = list.trim_end().strip_suffix(']').map(|inner| inner.trim_end().len());
    let (Some(end), Some(more_inner)) = (end, more.trim_start().strip_prefix('[')) else {
        more.clone_into(list);
        return;
    };
    let more_inner = more_inner.trim_start();
    let is_empty = list.get(..end).is_some_and(|inner| inner.trim_start() == "[");
    list.truncate(end);
    if !is_empty && !more_inner.starts_with(']') {
        list.push(',');
    }
    list.push_str(more_inner);
}

/// The answer with everything as JSON.
pub(crate) fn spelled_out(answer: &Value) -> Value {
    let mut answer = answer.clone();
    let spell = |place: Option<&mut Value>| {
        if let Some(list) = place {
            *list = spelled(list.take());
        }
    };
    spell(answer.get_mut("prompt_token_ids"));
    for choice in answer.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        for place in ["/logprobs/content", "/token_ids", "/prompt_token_ids"] {
            spell(choice.pointer_mut(place));
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ANSWER: &str = r#"{"id":"x","n":[1,-2,3.5,null,true],"choices":[{"index":0,"logprobs":{"content":[ {"token":"a","logprob":-0.50} ],"refusal":null},"message":{"logprobs":{"content":[1]}}},{"logprobs":null},{"logprobs":{"content":null,"tokens":["a"]}},7],"logprobs":{"content":[2]}}"#;

    fn read(text: &str) -> Option<Value> {
        Outline::of(text.as_bytes())?.read(text.as_bytes())
    }

    #[test]
    fn long_lists_stay_text_and_nothing_else_does() {
        let answer = read(ANSWER).unwrap();
        let mut expected: Value = serde_json::from_str(ANSWER).unwrap();
        assert_eq!(spelled_out(&answer), expected);
        expected["choices"][0]["logprobs"]["content"] = r#"[ {"token":"a","logprob":-0.50} ]"#.into();
        assert_eq!(answer, expected);
        for odd in
            [r#"{"choices":{"logprobs":1}}"#, r#"{"choices":[[1]]}"#, r#" {"choices":1,"choices":[ ]} "#]
        {
            assert_eq!(read(odd).unwrap(), serde_json::from_str::<Value>(odd).unwrap());
        }
        for broken in
            ["1", "[]", "{} x", "{\"choices\":[", "{\"a\":01}", "{\"a\\q\":1}", "{\"choices\":[{\"a\":tru}]}"]
        {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn token_ids_stay_text_where_they_are_nothing_else() {
        let answer = read(
            r#"{"prompt_token_ids":[0,12],"choices":[{"token_ids":[4294967295],"prompt_token_ids":[]},{"token_ids":[1, 2]}]}"#,
        );
        let mut answer = answer.unwrap();
        assert_eq!(answer["prompt_token_ids"], "[0,12]");
        assert_eq!(answer["choices"][0], json!({"token_ids": "[4294967295]", "prompt_token_ids": "[]"}));
        assert_eq!(answer["choices"][1], json!({"token_ids": [1, 2]}));
        let counts = [
            "/prompt_token_ids",
            "/choices/0/token_ids",
            "/choices/0/prompt_token_ids",
            "/choices/1/token_ids",
        ]
        .map(|place| ids(answer.pointer(place).unwrap()));
        assert_eq!(counts, [Some(2), Some(1), Some(0), Some(2)]);
        let mut joined = answer["prompt_token_ids"].take();
        join_ids(&mut joined, "[3]".into());
        assert_eq!(joined, "[0,12,3]");
        join_ids(&mut joined, json!([4]));
        join_ids(&mut joined, "[5]".into());
        assert_eq!(joined, json!([0, 12, 3, 4, 5]));
        for odd in ["[01]", "[-1]", "[1.5]", "[,1]", "[1,]", "[\"1\"]", "[[1]]", "1", "", "null"] {
            assert_eq!(count(odd), None, "{odd}");
        }
        assert_eq!(count(&format!("[{}]", "9".repeat(400))), None);
    }

    fn any_answer() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a\"\\\\\n\u{e9}]{0,3}".prop_map(Value::from),
            prop::collection::vec(0..200_000_u32, 0..4).prop_map(Value::from),
        ];
        let names = "choices|logprobs|content|token_ids|prompt_token_ids|token|logprob|\"";
        leaf.prop_recursive(5, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(names, inner.clone(), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
                prop::collection::vec(inner, 0..3).prop_map(|choices| json!({ "choices": choices })),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_said(answer in any_answer(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&answer) } else { serde_json::to_string(&answer) };
            let read = read(&text.unwrap());
            prop_assert_eq!(read.is_some(), answer.is_object());
            if let Some(read) = read {
                prop_assert_eq!(spelled_out(&read), answer);
            }
        }
    }

    #[test]
    fn lists_are_joined_and_their_numbers_read() {
        let join = |list: &str, more: &str| {
            let mut list = list.to_owned();
            super::join(&mut list, more);
            list
        };
        let list = join(r#"[{"logprob":-1} ] "#, r#" [ {"logprob":-2.5,"token":"x"} ]"#);
        assert_eq!(numbers(&list).unwrap(), [-1.0, -2.5], "{list}");
        assert_eq!(join("[]", "[1]"), "[1]");
        assert_eq!(join(" [ ]", "[1]"), " [1]");
        assert_eq!(join("[1]", "[ ]"), "[1]");
        assert_eq!(join("1", "[1]"), "[1]");
        assert_eq!(numbers(r#"[{"logprob":null}]"#), None);
        assert_eq!(numbers(r#"[{"token":"x"}]"#), None);
        assert_eq!(numbers("[1]"), None);
        assert_eq!(numbers("[]").unwrap(), [0.0; 0]);
        assert_eq!(json!(numbers("[]")), json!([]));
    }

    #[test]
    fn a_shortened_list_keeps_tokens_and_numbers_to_the_letter() {
        let list = r#"[ {"token":"caf\u00e9 \"\\","bytes":[1],"logprob":-0.50,"top_logprobs":[{"token":"x","logprob":-9}]}, {"logprob":-1e-3,"token":"é"},{"token":"","logprob":-0} ]"#;
        let Shortened { content, numbers, count } = shortened(list).unwrap();
        let short: String = serde_json::from_str(&content).unwrap();
        let expected = r#"[{"token":"caf\u00e9 \"\\","logprob":-0.50},{"token":"é","logprob":-1e-3},{"token":"","logprob":-0}]"#;
        assert_eq!(short, expected);
        assert_eq!((&*numbers, count), ("[-0.50,-1e-3,-0.0]", 3));
        let Shortened { content, numbers, count } = shortened(" [ ]").unwrap();
        assert_eq!((&*content, &*numbers, count), (r#""[]""#, "[]", 0));
        for odd in [
            r#"[{"logprob":-1}]"#,
            r#"[{"token":"x","logprob":null}]"#,
            r#"[{"token":"x"}]"#,
            "[1]",
            "1",
            r#"[{"token":"\q","logprob":-1}]"#,
            r#"[{"token":7,"logprob":-1}]"#,
            r#"[{"token":"x","logprob":-.5}]"#,
            r#"[{"token":"x","logprob":01.5}]"#,
            r#"[{"token":"x","logprob":1.}]"#,
            r#"[{"token":"x","logprob":1e999}]"#,
            "[{\"token\":\"a\nb\",\"logprob\":-1.5}]",
        ] {
            assert_eq!(shortened(odd), None, "{odd}");
        }
    }
}
