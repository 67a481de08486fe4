//! Answers and chunks as JSON, but for the log-probs of a chat: of all that a model server says they are the most, and nobody
//! looks into them but for the numbers. Each list of them stays the text that it is.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::json::{self, Member};

/// Reads an answer or a chunk. `choices[].logprobs.content` becomes a string, which [`numbers`] and [`spelled_out`] read
/// and [`join`] puts together.
pub(crate) fn read(text: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let answer = Place::Answer.deserialize(&mut reader)?;
    reader.end()?;
    Ok(answer)
}

/// Where the members of an answer or a chunk stand in its text, and those of its choices.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) members: Vec<Member>,
    /// None when there is no list of them. What is no object has no members.
    pub(crate) choices: Option<Vec<Vec<Member>>>,
}

impl Outline {
    /// None when there is no object.
    pub(crate) fn of(text: &[u8]) -> Option<Self> {
        let members = json::members(text, 0..text.len())?;
        let choices = members.iter().rfind(|member| member.name(text) == "choices");
        let choices = choices.and_then(|member| json::items(text, member.value.clone()));
        let of_choice = |choice| json::members(text, choice).unwrap_or_default();
        let choices = choices.map(|choices| choices.into_iter().map(of_choice).collect());
        Some(Self { members, choices })
    }

    /// Whether a chunk says how much was used and nothing else.
    pub(crate) fn is_usage_only(&self, text: &[u8]) -> bool {
        let is_usage =
            |member: &Member| member.name(text) == "usage" && text.get(member.value.start) == Some(&b'{');
        self.choices.as_ref().is_some_and(Vec::is_empty) && self.members.iter().any(is_usage)
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

/// A list of log-probs with nothing of each but its token and its number, and the numbers; none when one lacks either.
pub(crate) fn shortened(list: &str) -> Option<(String, Vec<f64>)> {
    #[derive(Deserialize)]
    struct Token<'t> {
        #[serde(borrow)]
        token: &'t RawValue,
        #[serde(borrow)]
        logprob: &'t RawValue,
    }
    let tokens: Vec<Token<'_>> = serde_json::from_str(list).ok()?;
    let mut short = String::with_capacity(list.len() / 2);
    let mut numbers = Vec::with_capacity(tokens.len());
    for Token { token, logprob } in tokens {
        let (token, logprob) = (token.get(), logprob.get());
        numbers.push(logprob.parse().ok()?);
        short.push(if short.is_empty() { '[' } else { ',' });
        for part in ["{\"token\":", token, ",\"logprob\":", logprob, "}"] {
            short.push_str(part);
        }
    }
    short.push_str(if short.is_empty() { "[]" } else { "]" });
    Some((short, numbers))
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
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for choice in choices.into_iter().flatten() {
        let Some(content) = choice.pointer_mut("/logprobs/content") else { continue };
        if let Some(list) = content.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *content = list;
        }
    }
    answer
}

/// Where in an answer a value stands.
#[derive(Debug, Clone, Copy)]
enum Place {
    Answer,
    Choices,
    Choice,
    Logprobs,
    /// What stays text.
    List,
    Elsewhere,
}

impl<'de> DeserializeSeed<'de> for Place {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::Elsewhere => Value::deserialize(deserializer),
            Self::List => {
                let text = <&RawValue>::deserialize(deserializer)?.get();
                Ok(if text == "null" { Value::Null } else { text.into() })
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Place {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = match (self, name.as_str()) {
                (Self::Answer, "choices") => Self::Choices,
                (Self::Choice, "logprobs") => Self::Logprobs,
                (Self::Logprobs, "content") => Self::List,
                _ => Self::Elsewhere,
            };
            let value = members.next_value_seed(place)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let place = if matches!(self, Self::Choices) { Self::Choice } else { Self::Elsewhere };
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(place)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ANSWER: &str = r#"{"id":"x","n":[1,-2,3.5,null,true],"choices":[{"index":0,"logprobs":{"content":[ {"token":"a","logprob":-0.50} ],"refusal":null},"message":{"logprobs":{"content":[1]}}},{"logprobs":null},{"logprobs":{"content":null,"tokens":["a"]}},7],"logprobs":{"content":[2]}}"#;

    #[test]
    fn only_lists_of_log_probs_stay_text() {
        let answer = read(ANSWER.as_bytes()).unwrap();
        let mut expected: Value = serde_json::from_str(ANSWER).unwrap();
        assert_eq!(spelled_out(&answer), expected);
        expected["choices"][0]["logprobs"]["content"] = r#"[ {"token":"a","logprob":-0.50} ]"#.into();
        assert_eq!(answer, expected);
        for odd in ["1", "null", "\"x\"", "[]", r#"{"choices":{"logprobs":1}}"#, r#"{"choices":[[1]]}"#] {
            assert_eq!(read(odd.as_bytes()).unwrap(), serde_json::from_str::<Value>(odd).unwrap());
        }
        assert!(read(b"{} x").is_err() && read(b"{\"choices\":[").is_err());
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
        let list = r#"[ {"token":"caf\u00e9","bytes":[1],"logprob":-0.50,"top_logprobs":[{"token":"x","logprob":-9}]}, {"logprob":-1e-3,"token":" "} ]"#;
        let (short, numbers) = shortened(list).unwrap();
        assert_eq!(short, r#"[{"token":"caf\u00e9","logprob":-0.50},{"token":" ","logprob":-1e-3}]"#);
        assert_eq!(numbers, [-0.5, -0.001]);
        assert_eq!(shortened("[]").unwrap(), ("[]".to_owned(), Vec::new()));
        for odd in
            [r#"[{"logprob":-1}]"#, r#"[{"token":"x","logprob":null}]"#, r#"[{"token":"x"}]"#, "[1]", "1"]
        {
            assert_eq!(shortened(odd), None, "{odd}");
        }
    }
}
