//! Rewards: how they are written into attributes, and how they are found in spans of several vintages.
//!
//! Reading never fails. These functions see every span of a trace, and one odd attribute of one span must not
//! cost the others.

use agl_types::{Attributes, Span, semconv};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attributes::below;

/// One dimension of a reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardDimension {
    /// What is judged.
    pub name: String,
    /// How good it is.
    pub value: f64,
}

/// Name of the only dimension of a plain number.
pub const PRIMARY: &str = "primary";

/// The attributes of a span that gives this reward; the first dimension is the primary one.
#[must_use]
pub fn reward_attributes(dimensions: &[RewardDimension]) -> Attributes {
    let mut attributes = Attributes::new();
    for (index, dimension) in dimensions.iter().enumerate() {
        attributes.insert(format!("{}.{index}.name", semconv::REWARD), dimension.name.clone().into());
        attributes.insert(format!("{}.{index}.value", semconv::REWARD), dimension.value.into());
    }
    attributes
}

/// Every dimension of the span's reward, the primary one first; empty when the span is no reward.
///
/// Reads `agentlightning.reward.{i}.{name,value}`. A dimension without a number is passed over, gaps between
/// the indices do not matter, and neither do attributes that merely begin with the same letters. A number in
/// `agentlightning.reward` itself counts as the primary dimension when there is no other.
#[must_use]
pub fn get_rewards_from_span(span: &Span) -> Vec<RewardDimension> {
    let mut dimensions: Vec<(u64, RewardDimension)> = below(&span.attributes, semconv::REWARD)
        .filter_map(|(tail, value)| {
            let index: u64 = tail.strip_suffix(".value")?.parse().ok()?;
            let name_key = format!("{}.{index}.name", semconv::REWARD);
            let name = span.attributes.get(&name_key).and_then(Value::as_str).unwrap_or_default();
            Some((index, RewardDimension { name: name.to_owned(), value: number(value)? }))
        })
        .collect();
    dimensions.sort_by_key(|(index, _)| *index);
    if dimensions.is_empty()
        && let Some(value) = span.attributes.get(semconv::REWARD).and_then(Value::as_f64)
    {
        return vec![RewardDimension { name: PRIMARY.to_owned(), value }];
    }
    dimensions.into_iter().map(|(_, dimension)| dimension).collect()
}

/// The span's reward: its primary dimension, or what older tracers wrote; none when the span is no reward.
///
/// In this order: [`get_rewards_from_span`]; AgentOps' `agentops.task.output`, then `agentops.entity.output`,
/// as an object or as JSON text with `"type": "reward"` (where a null value means "no reward" and ends the
/// search); the attribute `reward` of an `agentlightning.annotation` span, as 0.2 wrote it. None also for one that is no
/// finite number: nothing can be learned from that.
#[must_use]
pub fn get_reward_value(span: &Span) -> Option<f64> {
    given_reward(span).filter(|value| value.is_finite())
}

/// The span's reward, be it a finite number or not: JSON has none of the others, so they come as text.
pub(crate) fn given_reward(span: &Span) -> Option<f64> {
    if !may_give_rewards(span) {
        return None;
    }
    if let Some(primary) = get_rewards_from_span(span).first() {
        return Some(primary.value);
    }
    for key in ["agentops.task.output", "agentops.entity.output"] {
        if let Some(value) = span.attributes.get(key).and_then(agentops_reward) {
            return number(&value);
        }
    }
    if span.name == semconv::AGL_ANNOTATION {
        return span.attributes.get("reward").and_then(number);
    }
    None
}

/// Whether an attribute may be a reward. Most spans have none: a look at their keys is many times faster than asking for each
/// of those.
pub(crate) fn may_give_rewards(span: &Span) -> bool {
    span.attributes.keys().any(|key| may_be_reward(key))
}

/// Whether an attribute of this name may be one, or a part of one.
pub(crate) fn may_be_reward(key: &str) -> bool {
    key.starts_with(semconv::REWARD)
        || matches!(key, "agentops.task.output" | "agentops.entity.output" | "reward")
}

/// The value (null included) of an AgentOps output that says it is a reward.
fn agentops_reward(output: &Value) -> Option<Value> {
    let parsed: Value;
    let output = match output {
        Value::String(text) => {
            parsed = serde_json::from_str(text).ok()?;
            &parsed
        }
        other => other,
    };
    let fields = output.as_object()?;
    (fields.get("type")?.as_str()? == "reward").then(|| fields.get("value").cloned().unwrap_or_default())
}

/// A number, also where it was written as a boolean or as text.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether the span gives a reward, be it one to learn from or not.
#[must_use]
pub fn is_reward_span(span: &Span) -> bool {
    given_reward(span).is_some()
}

/// The spans that give a reward, in the order given.
#[must_use]
pub fn find_reward_spans(spans: &[Span]) -> Vec<&Span> {
    spans.iter().filter(|span| is_reward_span(span)).collect()
}

/// The last reward in the order given (neither time nor sequence id is looked at); none if that is no finite number.
#[must_use]
pub fn find_final_reward(spans: &[Span]) -> Option<f64> {
    spans.iter().rev().find_map(given_reward).filter(|value| value.is_finite())
}

/// Whether the span computes a reward or gives one: what happens below it is no work of the agent.
pub(crate) fn is_reward_scope(span: &Span) -> bool {
    let computes = span.name == semconv::AGL_OPERATION
        && span.attributes.get(semconv::OPERATION_NAME).and_then(Value::as_str) == Some(semconv::AGL_REWARD);
    computes || is_reward_span(span)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn span(name: &str, attributes: &Value) -> Span {
        let mut span = Span::new(name, "1".repeat(32), "2".repeat(16), 0.0, 0.0);
        span.attributes = attributes.as_object().unwrap().clone();
        span
    }

    fn value(attributes: &Value) -> Option<f64> {
        get_reward_value(&span("x", attributes))
    }

    #[test]
    fn what_is_written_is_read() {
        let dimensions = [
            RewardDimension { name: "a".to_owned(), value: 1.0 },
            RewardDimension { name: "b".to_owned(), value: 0.0 },
        ];
        let attributes = reward_attributes(&dimensions);
        assert_eq!(
            Value::Object(attributes.clone()),
            json!({
                "agentlightning.reward.0.name": "a", "agentlightning.reward.0.value": 1.0,
                "agentlightning.reward.1.name": "b", "agentlightning.reward.1.value": 0.0,
            })
        );
        let span = span(semconv::AGL_ANNOTATION, &Value::Object(attributes));
        assert_eq!(get_rewards_from_span(&span), dimensions);
        assert_eq!(get_reward_value(&span), Some(1.0));
    }

    #[test]
    fn the_primary_dimension_is_the_lowest_index() {
        let reversed: Vec<String> =
            (0..12).rev().map(|i| format!("agentlightning.reward.{i}.value")).collect();
        let attributes: Attributes =
            reversed.iter().enumerate().map(|(at, key)| (key.clone(), json!(11 - at))).collect();
        assert_eq!(value(&Value::Object(attributes)), Some(0.0));
    }

    #[test]
    fn odd_attributes_neither_abort_nor_count() {
        assert_eq!(value(&json!({"agentlightning.reward_model": "m"})), None);
        assert_eq!(value(&json!({"agentlightning.reward_model.0.value": 1.0})), None);
        assert_eq!(value(&json!({"agentlightning.reward.model": "m"})), None);
        assert_eq!(value(&json!({"agentlightning.reward.0.value": {"x": 1}})), None);
        assert_eq!(value(&json!({"agentlightning.reward": "good"})), None);
        assert_eq!(value(&json!({"agentops.task.output": "[1, 2]"})), None);
        assert_eq!(value(&json!({"agentops.task.output": [1, 2]})), None);
        assert_eq!(value(&json!({"agentops.task.output": "not json"})), None);
        assert_eq!(value(&json!({"reward": 1})), None);
    }

    #[test]
    fn gaps_and_bare_numbers_are_read() {
        assert_eq!(
            value(&json!({"agentlightning.reward.2.name": "x", "agentlightning.reward.2.value": 0.25})),
            Some(0.25)
        );
        assert_eq!(
            value(&json!({"agentlightning.reward.0.name": "x", "agentlightning.reward.1.value": 1})),
            Some(1.0)
        );
        assert_eq!(value(&json!({"agentlightning.reward": 0.5})), Some(0.5));
    }

    #[test]
    fn older_vintages_are_read() {
        assert_eq!(value(&json!({"agentops.task.output": {"type": "reward", "value": null}})), None);
        assert_eq!(value(&json!({"agentops.task.output": r#"{"type":"reward","value":1}"#})), Some(1.0));
        assert_eq!(value(&json!({"agentops.entity.output": r#"{"type":"reward","value":0.5}"#})), Some(0.5));
        assert_eq!(value(&json!({"agentops.entity.output": r#"{"type":"other","value":0.5}"#})), None);
        // A reward that is null ends the search.
        assert_eq!(
            value(&json!({
                "agentops.task.output": {"type": "reward", "value": null},
                "agentops.entity.output": {"type": "reward", "value": 1.0},
            })),
            None
        );
        assert_eq!(get_reward_value(&span("agentlightning.annotation", &json!({"reward": 1}))), Some(1.0));
    }

    #[test]
    fn the_final_reward_is_the_last_in_the_list() {
        let reward =
            |value: f64| span("agentlightning.annotation", &json!({"agentlightning.reward.0.value": value}));
        let spans = [reward(0.1), reward(0.0), span("x", &json!({}))];
        assert_eq!(find_final_reward(&spans), Some(0.0));
        assert_eq!(find_reward_spans(&spans).len(), 2);
        assert_eq!(find_final_reward(&[]), None);
        let unusable = span("x", &json!({"agentlightning.reward.0.value": "-Infinity"}));
        assert_eq!((is_reward_span(&unusable), get_reward_value(&unusable)), (true, None));
        assert_eq!(find_final_reward(&[reward(0.1), unusable]), None, "an earlier one is not the last");
    }
}
