//! What models called tools with and said before it, letter for letter. In some dialects agents give it back written anew
//! (`{"a":1}` for `{"a": 1}`), or without what was nothing but line breaks, which makes other tokens of it; toward the model
//! server it is put back as the model wrote it, so that the prompt of a turn begins with the tokens of the turn before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use agl_types::{Span, semconv};
use serde_json::{Value, json};

use crate::dialect::{list, messages, text};
use crate::sessions::Attempt;

/// Bytes of all texts that are remembered. The record of an attempt has those that are not.
const MOST: usize = 16 << 20;
/// What one call takes beside its text.
const EACH: usize = 256;
/// Calls of one id in one attempt that are told apart: some servers number those of each answer anew.
const NAMESAKES: usize = 8;

/// Rollout, attempt and the id of the call.
type Key = (String, String, String);

/// What a model wrote when it called a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Original {
    /// What it called the tool with.
    pub(crate) arguments: Arc<str>,
    /// What it said in the same answer.
    pub(crate) said: Arc<str>,
}

/// The calls that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// None at all for what the record does not have either.
    calls: HashMap<Key, Vec<Original>>,
    /// In the order in which they came.
    order: VecDeque<(Key, usize)>,
    size: usize,
}

impl Written {
    fn key(attempt: &Attempt, id: &str) -> Key {
        (attempt.rollout_id.clone(), attempt.attempt_id.clone(), id.to_owned())
    }

    /// Whether there is nothing to be learned of a call from the record.
    pub(crate) fn knows(&self, attempt: &Attempt, id: &str) -> bool {
        self.state(|state| state.calls.contains_key(&Self::key(attempt, id)))
    }

    /// Remembers the calls in an answer of chat completions.
    pub(crate) fn add_answer(&self, attempt: &Attempt, chat: &Value) {
        for message in list(&chat["choices"]).iter().map(|choice| &choice["message"]) {
            for call in list(&message["tool_calls"]) {
                let arguments = text(&call["function"], "arguments");
                self.add(attempt, text(call, "id"), Some((arguments, text(message, "content"))));
            }
        }
    }

    /// Remembers the calls that the record has of an answer.
    pub(crate) fn add_span(&self, attempt: &Attempt, span: &Span) {
        for choice in 0.. {
            let of = |part: &str| {
                let key = format!("{}.{choice}.{part}", semconv::GEN_AI_COMPLETION);
                span.attributes.get(&key).and_then(Value::as_str)
            };
            if of("role").is_none() {
                return;
            }
            let said = of("content").unwrap_or_default();
            for number in 0.. {
                let Some(id) = of(&format!("tool_calls.{number}.id")) else { break };
                let arguments = of(&format!("tool_calls.{number}.arguments"));
                self.add(attempt, id, arguments.map(|arguments| (arguments, said)));
            }
        }
    }

    /// Remembers a call, by its arguments and what was said; without, that nothing is known of it.
    pub(crate) fn add(&self, attempt: &Attempt, id: &str, written: Option<(&str, &str)>) {
        let written =
            written.map(|(arguments, said)| Original { arguments: arguments.into(), said: said.into() });
        let key = Self::key(attempt, id);
        self.state(|state| {
            let texts = state.calls.entry(key.clone()).or_default();
            if written.as_ref().is_some_and(|written| texts.contains(written)) {
                return;
            }
            if texts.len() == NAMESAKES {
                texts.remove(0);
            }
            let size =
                EACH + written.as_ref().map_or(0, |written| written.arguments.len() + written.said.len());
            texts.extend(written);
            state.size += size;
            state.order.push_back((key, size));
            while state.size > MOST
                && let Some((oldest, size)) = state.order.pop_front()
            {
                state.size -= size;
                state.calls.remove(&oldest);
            }
        });
    }

    /// What the model wrote where the agent gives back `given`; none when it wrote nothing that says the same.
    pub(crate) fn original(&self, attempt: &Attempt, id: &str, given: &str) -> Option<Original> {
        let texts = self.state(|state| state.calls.get(&Self::key(attempt, id)).cloned())?;
        let read: Value = serde_json::from_str(given).ok()?;
        let is_it = |written: &Original| *written.arguments == *given || says(&written.arguments, &read);
        texts.into_iter().rev().find(is_it)
    }

    /// How the model spelled the JSON that an agent gives back as `given`; none when it spelled it so, or wrote no such JSON.
    pub(crate) fn spelling(&self, attempt: &Attempt, id: &str, given: &str) -> Option<Arc<str>> {
        let texts = self.state(|state| state.calls.get(&Self::key(attempt, id)).cloned())?;
        if texts.iter().any(|written| *written.arguments == *given) {
            return None;
        }
        let read: Value = serde_json::from_str(given).ok()?;
        let is_it = |written: &Original| {
            serde_json::from_str(&written.arguments).is_ok_and(|written: Value| is_same(&written, &read))
        };
        texts.into_iter().rev().find(is_it).map(|written| written.arguments)
    }

    fn state<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether text says what an agent has read out of it.
fn says(written: &str, read: &Value) -> bool {
    match serde_json::from_str(written) {
        Ok(parsed @ Value::Object(_)) => is_same(&parsed, read),
        _ if written.trim().is_empty() => *read == json!({}),
        _ => *read == json!({ messages::RAW_ARGUMENTS: written }),
    }
}

/// Whether two values are the same to a reader for whom all numbers are floats, as they are in JavaScript.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_same(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::Named;

    fn attempt(id: &str) -> Attempt {
        Attempt {
            rollout_id: "r".to_owned(),
            attempt_id: id.to_owned(),
            mode: None,
            sequence_id: None,
            named: Named::Path,
            session: None,
        }
    }

    #[test]
    fn what_says_the_same_is_put_back_as_it_was_written() {
        let calls = Written::default();
        let at = attempt("a");
        let first = r#"{"b": 1.0, "a": [9007199254740993, "ä"]}"#;
        for text in [first, r#"{"b": 2}"#, "{oops", ""] {
            calls.add(&at, "c", Some((text, "said")));
        }
        for (given, original) in [
            (first, Some(first)),
            (r#"{"a":[9007199254740992,"\u00e4"],"b":1}"#, Some(first)),
            (r#"{"b":2.0}"#, Some(r#"{"b": 2}"#)),
            (r#"{"raw_arguments":"{oops"}"#, Some("{oops")),
            ("{}", Some("")),
            (r#"{"b":3}"#, None),
            (r#"{"b":2,"c":null}"#, None),
            (r#"{"a":["ä",9007199254740993],"b":1}"#, None),
        ] {
            let found = calls.original(&at, "c", given);
            assert_eq!(found.as_ref().map(|found| &*found.arguments), original, "{given}");
            assert!(found.is_none_or(|found| *found.said == *"said"));
        }
        assert_eq!(calls.original(&attempt("other"), "c", first), None);
        for (given, spelled) in [
            (first, None),
            (r#"{"a":[9007199254740992,"\u00e4"],"b":1}"#, Some(first)),
            (r#"{"b":2}"#, Some(r#"{"b": 2}"#)),
            (r#"{"raw_arguments":"{oops"}"#, None),
            ("{}", None),
            ("{oops", None),
            (r#"{"b":3}"#, None),
        ] {
            assert_eq!(calls.spelling(&at, "c", given).as_deref(), spelled, "{given}");
        }
        assert_eq!(calls.spelling(&attempt("other"), "c", r#"{"b":2}"#), None);
        assert_eq!(calls.original(&at, "d", first), None);
    }

    #[test]
    fn no_more_is_remembered_than_fits() {
        let calls = Written::default();
        let at = attempt("a");
        let large = format!("{{\"x\": \"{}\"}}", "y".repeat(MOST / 4));
        for id in ["1", "2", "3", "4"] {
            calls.add(&at, id, Some((&large, "")));
        }
        calls.add(&at, "5", None);
        assert_eq!(["1", "2", "4", "5"].map(|id| calls.knows(&at, id)), [false, true, true, true]);
        assert!(calls.state(|state| state.size <= MOST && state.calls.len() == state.order.len()));
    }
}
