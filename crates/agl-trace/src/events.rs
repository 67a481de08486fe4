//! Events of the 1.0 contract: everything that happens is a span, and so are they.

use std::collections::HashSet;

use agl_types::v1::{Event, EventCreate, MODEL_REQUEST, REWARD};
use agl_types::{JsonMap, Span, semconv};
use serde_json::{Value, json};

use crate::rewards::{PRIMARY, RewardDimension, get_reward_value, reward_attributes};

/// The span of an event that the store learned of at `now`, not placed in an attempt yet.
///
/// Type and data are kept in attributes as they came. A reward is also an annotation that adapters of 0.3 read,
/// provided that its value is a number.
#[must_use]
pub fn event_span(event: EventCreate, trace_id: String, span_id: String, now: f64) -> Span {
    let EventCreate { event_type, data } = event;
    let reward = data.get("value").and_then(Value::as_f64).filter(|_| event_type == REWARD);
    let name = if reward.is_some() { semconv::AGL_ANNOTATION } else { semconv::AGL_EVENT };
    let mut span = Span::new(name, trace_id, span_id, now, now)
        .with_attribute(semconv::EVENT_TYPE, event_type)
        .with_attribute(semconv::EVENT_DATA, Value::Object(data).to_string());
    if let Some(value) = reward {
        span.attributes.extend(reward_attributes(&[RewardDimension { name: PRIMARY.to_owned(), value }]));
    }
    span
}

/// The span as an event; none when it is neither an event nor a reward. The attempt goes by its id.
#[must_use]
pub fn read_event(span: &Span) -> Option<Event> {
    let text = |key| span.attributes.get(key).and_then(Value::as_str);
    let (event_type, data) = match text(semconv::EVENT_TYPE) {
        Some(event_type) => {
            let data = text(semconv::EVENT_DATA).and_then(|data| serde_json::from_str(data).ok());
            (event_type, data.unwrap_or_default())
        }
        None => (REWARD, object(json!({ "value": get_reward_value(span)? }))),
    };
    Some(Event {
        event_type: event_type.to_owned(),
        rollout_id: span.rollout_id.clone(),
        attempt_id: span.attempt_id.clone(),
        timestamp: span.start_time.unwrap_or_default(),
        data,
    })
}

/// Cuts the events of an attempt down to what training reads.
///
/// A call of a model keeps its token ids, log-probs, model version and status; a reward its value, source and reason.
/// Of the calls with the same prompt ids only the last one stays, because agents try again; calls without any,
/// which failed, all stay. Other events are left as they are.
#[must_use]
pub fn as_triplets(events: Vec<Event>) -> Vec<Event> {
    let mut seen: HashSet<String> = HashSet::new();
    let mut kept: Vec<Event> = Vec::with_capacity(events.len());
    for mut event in events.into_iter().rev() {
        match event.event_type.as_str() {
            MODEL_REQUEST => {
                event.data = call(&event.data);
                let prompt = event.data.get("prompt_token_ids").and_then(Value::as_array);
                let is_again = prompt.is_some_and(|ids| !ids.is_empty() && !seen.insert(text_of(ids)));
                if is_again {
                    continue;
                }
            }
            REWARD => event.data = judgement(&event.data),
            _ => {}
        }
        kept.push(event);
    }
    kept.reverse();
    kept
}

fn text_of(ids: &[Value]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// What is left of a call: that of its first choice.
fn call(data: &JsonMap) -> JsonMap {
    let of = |key: &str| data.get(key).unwrap_or(&Value::Null);
    let (response, server) = (of("response"), of("server"));
    let choice = &response["choices"][0];
    let ids = |places: [&Value; 2]| {
        places.into_iter().find(|ids| ids.is_array()).cloned().unwrap_or_else(|| json!([]))
    };
    let mut kept = object(json!({
        "prompt_token_ids": ids([&response["prompt_token_ids"], &choice["prompt_token_ids"]]),
        "response_token_ids": ids([&choice["token_ids"], &Value::Null]),
        "response_log_probs": log_probs(&choice["logprobs"]),
        "server": { "model": server["model"], "version": server["version"] },
    }));
    for key in ["http_status", "status"] {
        kept.extend(data.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let error = [&response["error"], of("error")].into_iter().find(|error| !error.is_null());
    kept.extend(error.map(|error| ("error".to_owned(), error.clone())));
    kept
}

/// The log-probs of a choice, in the form of chat calls or of completions; null when one of them is missing.
fn log_probs(logprobs: &Value) -> Value {
    let numbers: Option<Vec<f64>> = match (&logprobs["content"], &logprobs["token_logprobs"]) {
        (Value::Array(tokens), _) => tokens.iter().map(|token| token["logprob"].as_f64()).collect(),
        (_, Value::Array(numbers)) => numbers.iter().map(Value::as_f64).collect(),
        _ => None,
    };
    numbers.map_or(Value::Null, Value::from)
}

/// What is left of a reward.
fn judgement(data: &JsonMap) -> JsonMap {
    let mut kept = object(json!({ "value": data.get("value") }));
    for key in ["source", "reason"] {
        kept.extend(data.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    kept
}

fn object(value: Value) -> JsonMap {
    match value {
        Value::Object(fields) => fields,
        _ => JsonMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(event_type: &str, data: Value) -> Span {
        let event = EventCreate { event_type: event_type.to_owned(), data: object(data) };
        event_span(event, "0".repeat(32), "0".repeat(16), 7.5).placed("ro", "at", 1)
    }

    #[test]
    fn events_come_back_as_they_were() {
        for data in [json!({}), json!({"value": 1, "x": [null, {"a": 0.1}], "text": "ä\"\n"})] {
            for event_type in ["hello", REWARD, MODEL_REQUEST, ""] {
                let event = read_event(&span(event_type, data.clone())).unwrap();
                assert_eq!(Value::Object(event.data), data);
                assert_eq!((event.event_type.as_str(), event.timestamp), (event_type, 7.5));
                assert_eq!((event.rollout_id.as_str(), event.attempt_id.as_str()), ("ro", "at"));
            }
        }
    }

    #[test]
    fn a_reward_is_one_for_both_contracts() {
        let reward = span(REWARD, json!({"value": 0.5, "reason": "good"}));
        assert_eq!(
            (reward.name.as_str(), get_reward_value(&reward)),
            ("agentlightning.annotation", Some(0.5))
        );
        reward.check_attributes().unwrap();
        let odd = span(REWARD, json!({"value": "much"}));
        assert_eq!((odd.name.as_str(), get_reward_value(&odd)), ("agentlightning.event", None));
        let elsewhere = span("hello", json!({"value": 0.5}));
        assert_eq!(get_reward_value(&elsewhere), None, "only a reward event is a reward");

        let emitted = Span::new(semconv::AGL_ANNOTATION, "0".repeat(32), "0".repeat(16), 1.0, 2.0)
            .with_attribute("agentlightning.reward.0.name", PRIMARY)
            .with_attribute("agentlightning.reward.0.value", 0.25);
        let event = read_event(&emitted).unwrap();
        assert_eq!((event.event_type.as_str(), event.data), (REWARD, object(json!({"value": 0.25}))));
        assert_eq!(read_event(&Span::new("step", "0".repeat(32), "0".repeat(16), 1.0, 2.0)), None);
    }

    fn triplets(events: &[(&str, Value)]) -> Vec<Value> {
        let spans = events.iter().map(|(event_type, data)| span(event_type, data.clone()));
        let events = spans.map(|span| read_event(&span).unwrap()).collect();
        as_triplets(events).into_iter().map(|event| Value::Object(event.data)).collect()
    }

    #[test]
    fn a_call_keeps_what_training_reads() {
        let chat = json!({
            "model": "m", "request": {"messages": []}, "http_status": 200, "status": "ok", "latency_ms": 3,
            "server": {"model": "m", "endpoint": "http://h/v1", "version": 2},
            "response": {
                "prompt_token_ids": [1, 2],
                "choices": [
                    {"token_ids": [3, 4], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1}]}},
                    {"token_ids": [9]},
                ],
            },
        });
        let kept = json!({
            "prompt_token_ids": [1, 2], "response_token_ids": [3, 4], "response_log_probs": [-0.5, -1.0],
            "server": {"model": "m", "version": 2}, "http_status": 200, "status": "ok",
        });
        assert_eq!(triplets(&[(MODEL_REQUEST, chat)]), [kept]);

        let completion = json!({
            "response": {"choices": [
                {"prompt_token_ids": [9], "token_ids": [1], "logprobs": {"token_logprobs": [-1, null]}},
            ]},
            "error": "late",
        });
        let kept = json!({
            "prompt_token_ids": [9], "response_token_ids": [1], "response_log_probs": null,
            "server": {"model": null, "version": null}, "error": "late",
        });
        assert_eq!(triplets(&[(MODEL_REQUEST, completion)]), [kept]);
        let odd = json!({"response": [1], "server": null});
        assert_eq!(triplets(&[(MODEL_REQUEST, odd)])[0]["prompt_token_ids"], json!([]));
        let failed = json!({"response": {"error": {"message": "no"}}, "error": null});
        assert_eq!(triplets(&[(MODEL_REQUEST, failed)])[0]["error"], json!({"message": "no"}));
    }

    #[test]
    fn of_calls_with_one_prompt_the_last_stays() {
        let call = |prompt: &[u32], response: &[u32]| json!({"response": {"prompt_token_ids": prompt, "choices": [{"token_ids": response}]}});
        let failed = json!({"response": {}, "status": "error"});
        let kept = triplets(&[
            (MODEL_REQUEST, call(&[1], &[2])),
            (MODEL_REQUEST, failed.clone()),
            (REWARD, json!({"value": 1, "source": null, "reason": "r", "message": "m"})),
            (MODEL_REQUEST, failed),
            (MODEL_REQUEST, call(&[1], &[3])),
            (MODEL_REQUEST, call(&[4], &[3])),
            ("other", json!({"kept": true})),
        ]);
        let prompts: Vec<&Value> = kept.iter().map(|data| &data["prompt_token_ids"]).collect();
        assert_eq!(prompts, [&json!([]), &Value::Null, &json!([]), &json!([1]), &json!([4]), &Value::Null]);
        assert_eq!(kept[1], json!({"value": 1, "source": null, "reason": "r"}));
        assert_eq!(kept[3]["response_token_ids"], json!([3]));
        assert_eq!(kept[5], json!({"kept": true}));
    }
}
