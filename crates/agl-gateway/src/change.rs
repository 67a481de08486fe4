//! What is changed of a request on its way up, and taken back out of the answer on its way down. Nothing else is
//! touched.

use std::borrow::Cow;

use agl_types::RolloutMode;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Outline;
use crate::config::ModelEntry;
use crate::json::{Edits, Member, cuts, members};
use crate::record::Kind;

/// What only capture asked for, and what is therefore not for the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) token_ids: bool,
    pub(crate) logprobs: bool,
    pub(crate) usage: bool,
}

/// A request as it goes up.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// In pieces, most of which are in the agent's request.
    pub(crate) body: Vec<Bytes>,
    changes: Changes,
    pub(crate) added: Added,
    /// Whether token ids are asked for, by whomever.
    pub(crate) wants_ids: bool,
}

/// Makes a request fit for a backend: its model name, the parameters that the list says, and, where it is of a kind that
/// token ids can be had for, what capture asks for.
pub(crate) fn for_backend(
    body: &Bytes,
    request: &Value,
    kind: Option<Kind>,
    entry: &ModelEntry,
    model: &str,
    mode: Option<RolloutMode>,
    returns_ids: bool,
) -> Sent {
    let mut changes = Changes::default();
    for name in &entry.drop {
        changes.drop(request, name);
    }
    for (name, value) in entry.defaults.iter().filter(|(name, _)| request[name.as_str()].is_null()) {
        changes.set(request, name, value.clone());
    }
    let by_mode = match mode {
        Some(RolloutMode::Train) => Some(&entry.train),
        Some(RolloutMode::Val) => Some(&entry.val),
        Some(RolloutMode::Test) | None => None,
    };
    for (name, value) in std::iter::once(&entry.set).chain(by_mode).flatten() {
        changes.set(request, name, value.clone());
    }
    let mut added = Added::default();
    let is_free = |name: &str| !entry.drop.iter().any(|dropped| dropped == name);
    let wants_ids =
        returns_ids && matches!(kind, Some(Kind::Chat | Kind::Completions)) && is_free("return_token_ids");
    if !returns_ids {
        // An agent of ours asks for them whatever the model; another server might refuse what it does not know.
        changes.drop(request, "return_token_ids");
    } else if wants_ids && request["return_token_ids"] != json!(true) {
        changes.set(request, "return_token_ids", json!(true));
        added.token_ids = true;
    }
    if wants_ids && entry.logprobs.unwrap_or(true) && is_free("logprobs") {
        let (is_there, wanted) = match kind {
            Some(Kind::Chat) => (request["logprobs"] == json!(true), json!(true)),
            _ => (request["logprobs"].is_u64(), json!(1)),
        };
        if !is_there {
            changes.set(request, "logprobs", wanted);
            added.logprobs = true;
        }
    }
    let is_stream = kind.is_some() && request["stream"] == json!(true);
    if is_stream && is_free("stream_options") && request["stream_options"]["include_usage"] != json!(true) {
        let mut options = request["stream_options"].as_object().cloned().unwrap_or_default();
        options.insert("include_usage".to_owned(), json!(true));
        changes.set(request, "stream_options", options.into());
        added.usage = true;
    }
    changes.set(request, "model", model.into());
    Sent { body: changes.made(body, request), changes, added, wants_ids }
}

impl Sent {
    /// The request as it went up, made of what it was before.
    pub(crate) fn request(&self, before: Value) -> Value {
        self.changes.applied(before)
    }
}

/// Changes to the members of a request.
#[derive(Debug, Clone, Default)]
struct Changes {
    set: Vec<(String, Value)>,
    dropped: Vec<String>,
}

impl Changes {
    /// The last one to say something about a parameter is heard.
    fn set(&mut self, request: &Value, name: &str, value: Value) {
        self.set.retain(|(other, _)| other != name);
        self.dropped.retain(|other| other != name);
        if request.get(name) != Some(&value) {
            self.set.push((name.to_owned(), value));
        }
    }

    fn drop(&mut self, request: &Value, name: &str) {
        self.set.retain(|(other, _)| other != name);
        if request.get(name).is_some() && !self.dropped.iter().any(|other| other == name) {
            self.dropped.push(name.to_owned());
        }
    }

    fn applied(&self, mut request: Value) -> Value {
        if let Value::Object(fields) = &mut request {
            for name in &self.dropped {
                fields.shift_remove(name);
            }
            fields.extend(self.set.iter().cloned());
        }
        request
    }

    /// The bytes of the request with the changes made.
    fn made(&self, body: &Bytes, request: &Value) -> Vec<Bytes> {
        let Self { set, dropped } = self;
        if set.is_empty() && dropped.is_empty() {
            return vec![body.clone()];
        }
        let Some(found) = members(body, 0..body.len()) else {
            // It is an object: it was parsed as one.
            return vec![self.applied(request.clone()).to_string().into()];
        };
        let is_dropped = |member: &Member| dropped.iter().any(|name| *name == member.name(body));
        let mut edits = Edits::default();
        let mut new = String::new();
        for (name, value) in set {
            match found.iter().find(|member| member.name(body) == *name) {
                Some(member) => edits.replace(member.value.clone(), value.to_string()),
                None => {
                    new.push_str(&format!("{}:{value},", Value::from(name.as_str())));
                }
            }
        }
        // New ones go first. Where nothing follows, there is no comma.
        let follows = found.iter().any(|member| !is_dropped(member));
        if !follows {
            new.truncate(new.trim_end_matches(',').len());
        }
        let first = found.first().map_or_else(
            || body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1),
            |member| member.key.start,
        );
        edits.replace(first..first, new);
        edits.cut(cuts(&found, is_dropped));
        edits.pieces(body)
    }
}

/// The name of a member that is there twice, which readers of JSON do not agree on.
pub(crate) fn repeated(body: &[u8]) -> Option<String> {
    let found = members(body, 0..body.len())?;
    let names: Vec<Cow<'_, str>> = found.iter().map(|member| member.name(body)).collect();
    let is_twice = |(at, name): &(usize, &Cow<'_, str>)| names[..*at].contains(*name);
    names.iter().enumerate().find(is_twice).map(|(_, name)| name.to_string())
}

/// What has to go of an answer, or a chunk of one, for only what the agent asked for to be left.
pub(crate) fn cuts_of_added(text: &[u8], outline: &Outline, added: Added) -> Edits {
    let mut edits = Edits::default();
    if added == Added::default() {
        return edits;
    }
    edits.cut(cuts(&outline.members, |member| match &*member.name(text) {
        "prompt_token_ids" => added.token_ids,
        "usage" => added.usage,
        _ => false,
    }));
    for choice in outline.choices.iter().flatten() {
        edits.cut(cuts(&choice.members, |member| match &*member.name(text) {
            "token_ids" | "prompt_token_ids" => added.token_ids,
            "logprobs" => added.logprobs,
            _ => false,
        }));
    }
    edits
}

/// An answer without what only capture asked for; none when that is nothing.
pub(crate) fn without_added(text: &[u8], outline: &Outline, added: Added) -> Option<Vec<u8>> {
    let edits = cuts_of_added(text, outline, added);
    (!edits.is_empty()).then(|| edits.apply(text))
}

#[cfg(test)]
mod tests {
    use agl_types::JsonMap;

    use super::*;

    /// Parameters by name.
    fn map(value: Value) -> JsonMap {
        let Value::Object(fields) = value else { return JsonMap::new() };
        fields
    }

    fn sent(
        body: &'static str,
        entry: &ModelEntry,
        mode: Option<RolloutMode>,
        returns_ids: bool,
    ) -> (String, Sent) {
        let bytes = Bytes::from_static(body.as_bytes());
        let request = serde_json::from_str(body).unwrap();
        let sent = for_backend(&bytes, &request, Some(Kind::Chat), entry, "m", mode, returns_ids);
        let text = sent.body.concat();
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), sent.request(request), "{body}");
        (String::from_utf8(text).unwrap(), sent)
    }

    #[test]
    fn what_needs_no_change_goes_up_as_it_is() {
        let entry = ModelEntry::new("m", "http://h/v1");
        let body =
            r#"{ "model" : "m", "messages":[ {"role":"user","content":"caf\u00e9"}], "temperature":1.0 }"#;
        let (text, sent) = sent(body, &entry, None, false);
        assert_eq!((text.as_str(), sent.added, sent.wants_ids), (body, Added::default(), false));
    }

    #[test]
    fn only_what_is_meant_changes() {
        let entry = ModelEntry {
            drop: vec!["user".to_owned()],
            defaults: map(json!({"temperature": 0.5, "top_p": 0.9})),
            set: map(json!({"seed": 7})),
            train: map(json!({"temperature": 1})),
            ..ModelEntry::new("m", "http://h/v1")
        };
        let body = r#"{"user":"x", "model":"other" ,"messages":[],"temperature":0.10, "seed": 1}"#;
        let (text, _) = sent(body, &entry, None, false);
        assert_eq!(text, r#"{"top_p":0.9,"model":"m" ,"messages":[],"temperature":0.10, "seed": 7}"#);
        let (text, _) = sent(body, &entry, Some(RolloutMode::Train), true);
        assert_eq!(
            text,
            r#"{"top_p":0.9,"return_token_ids":true,"logprobs":true,"model":"m" ,"messages":[],"temperature":1, "seed": 7}"#
        );
        let (text, _) = sent(r#" {"user":1} "#, &entry, None, false);
        assert_eq!(text, r#" {"temperature":0.5,"top_p":0.9,"seed":7,"model":"m"} "#);
        assert_eq!(sent("{}", &ModelEntry::new("m", "http://h/v1"), None, false).0, r#"{"model":"m"}"#);
    }

    #[test]
    fn what_the_agent_asked_for_itself_is_not_ours() {
        let entry = ModelEntry::new("m", "http://h/v1");
        let body = r#"{"stream":true,"return_token_ids":true,"logprobs":true,"stream_options":{"include_usage":true,"x":1}}"#;
        assert_eq!(sent(body, &entry, None, true).1.added, Added::default());
        let (text, asked) =
            sent(r#"{"stream":true,"logprobs":false,"stream_options":{"x":1}}"#, &entry, None, true);
        assert_eq!(asked.added, Added { token_ids: true, logprobs: true, usage: true });
        assert!(text.contains(r#""stream_options":{"x":1,"include_usage":true}"#), "{text}");
        // Another server might refuse what it does not know.
        let (text, asked) = sent(r#"{"return_token_ids":true,"logprobs":true}"#, &entry, None, false);
        assert_eq!((text.as_str(), asked.wants_ids), (r#"{"model":"m","logprobs":true}"#, false));
    }

    #[test]
    fn what_was_added_is_taken_out_and_every_other_byte_stays() {
        let without_added = |text: &[u8], added| super::without_added(text, &Outline::of(text)?, added);
        let all = Added { token_ids: true, logprobs: true, usage: true };
        let answer = r#"{"id":"x", "prompt_token_ids":[1, 2],"choices":[{"token_ids" : [3],"index":0,"logprobs":{"content":[{"logprob":-1e-3}]} ,"message":{"content":"\"token_ids\":[]"}}],"usage":{"a":1}}"#;
        let cut = String::from_utf8(without_added(answer.as_bytes(), all).unwrap()).unwrap();
        assert_eq!(cut, r#"{"id":"x","choices":[{"index":0 ,"message":{"content":"\"token_ids\":[]"}}]}"#);
        let ids = Added { token_ids: true, ..Added::default() };
        let cut = String::from_utf8(without_added(answer.as_bytes(), ids).unwrap()).unwrap();
        assert!(
            cut.contains("logprob") && cut.contains("usage") && !cut.contains("prompt_token_ids"),
            "{cut}"
        );
        assert_eq!(without_added(br#"{"id":"x","choices":[{"index":0}]}"#, all), None);
        assert_eq!(without_added(b"no json", all), None);
    }

    #[test]
    fn what_is_there_twice_is_found() {
        assert_eq!(repeated(br#"{"a":1,"b":{"a":1}}"#), None);
        assert_eq!(repeated(br#"{"model":1,"b":2,"mod\u0065l":3}"#).as_deref(), Some("model"));
    }
}
