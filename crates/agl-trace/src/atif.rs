//! Rollouts in the Agent Trajectory Interchange Format of the Harbor project.

use serde_json::{Map, Value, json};

use crate::call::{Choice, LlmCall, Message, Part};
use crate::training::{JudgedCall, RolloutData};

/// The version of the format that is written.
pub const VERSION: &str = "ATIF-v1.6";

/// A rollout as one trajectory; `input` is its task.
///
/// Each call is a step of the agent, with the tools' answers that the next call was given as its observation. Messages
/// that a prompt adds otherwise are steps of the user or the system.
#[must_use]
pub fn trajectory(data: &RolloutData, input: &Value) -> Value {
    let mut steps: Vec<Value> = Vec::new();
    let mut told: Vec<Message> = Vec::new();
    for judged in &data.calls {
        let call = &judged.call;
        // What the prompt has beyond what was told already.
        let common = told.iter().zip(&call.messages).take_while(|(a, b)| says_the_same(a, b)).count();
        for message in &call.messages[common..] {
            if message.role == "tool" {
                observe(&mut steps, message);
                continue;
            }
            let source = match message.role.as_str() {
                "system" | "developer" => "system",
                "assistant" => "agent",
                _ => "user",
            };
            let mut step = step(&steps, source, message, call.start_time);
            if source == "agent" {
                step.extend(tool_calls(message));
            }
            steps.push(Value::Object(step));
        }
        told.clone_from(&call.messages);
        if let Some(choice) = call.choice() {
            steps.push(agent_step(&steps, judged, choice));
            told.push(choice.message.clone());
        }
    }
    let first = data.calls.first();
    let model = data.calls.iter().find_map(|judged| model(&judged.call));
    let name = first.and_then(|judged| judged.label.clone()).unwrap_or_else(|| "agent".to_owned());
    let mut agent = json!({"name": name, "version": "unknown"});
    if let Some(model) = model {
        agent["model_name"] = model.into();
    }
    if let Some(judged) = first.filter(|judged| !judged.call.tools.is_empty()) {
        agent["tool_definitions"] = judged.call.tools.iter().map(crate::call::Tool::to_chat).collect();
    }
    let total =
        |of: fn(&LlmCall) -> Option<u64>| -> u64 { data.calls.iter().filter_map(|j| of(&j.call)).sum() };
    let identity = &data.identity;
    json!({
        "schema_version": VERSION,
        "session_id": format!("{}/{}", identity.rollout_id, identity.attempt_id),
        "agent": agent,
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": total(|call| call.usage.prompt_tokens),
            "total_completion_tokens": total(|call| call.usage.completion_tokens),
            "total_steps": steps.len(),
        },
        "extra": {
            "rollout_id": identity.rollout_id,
            "attempt_id": identity.attempt_id,
            "group": identity.group,
            "input": input,
            "outcome": identity.outcome,
            "reward": identity.reward,
            "rewards": identity.dimensions,
        },
    })
}

fn says_the_same(a: &Message, b: &Message) -> bool {
    a.role == b.role
        && a.words() == b.words()
        && a.tool_calls == b.tool_calls
        && a.tool_call_id == b.tool_call_id
}

/// What every step has.
fn step(before: &[Value], source: &str, message: &Message, time: Option<f64>) -> Map<String, Value> {
    let mut step = Map::new();
    step.insert("step_id".to_owned(), (before.len() + 1).into());
    if let Some(time) = time.and_then(timestamp) {
        step.insert("timestamp".to_owned(), time.into());
    }
    step.insert("source".to_owned(), source.into());
    step.insert("message".to_owned(), message.words().into());
    step
}

fn agent_step(before: &[Value], judged: &JudgedCall, choice: &Choice) -> Value {
    let call = &judged.call;
    let mut step = step(before, "agent", &choice.message, call.end_time.or(call.start_time));
    if let Some(model) = model(call) {
        step.insert("model_name".to_owned(), model.into());
    }
    let thought: String = choice
        .message
        .parts
        .iter()
        .filter_map(|part| match part {
            Part::Reasoning { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    if !thought.is_empty() {
        step.insert("reasoning_content".to_owned(), thought.into());
    }
    step.extend(tool_calls(&choice.message));
    let mut metrics = Map::new();
    let mut add = |key: &str, value: Value| metrics.insert(key.to_owned(), value);
    if let Some(count) = call.usage.prompt_tokens {
        add("prompt_tokens", count.into());
    }
    if let Some(count) = call.usage.completion_tokens {
        add("completion_tokens", count.into());
    }
    if !call.prompt_token_ids.is_empty() {
        add("prompt_token_ids", call.prompt_token_ids.clone().into());
    }
    if !choice.token_ids.is_empty() {
        add("completion_token_ids", choice.token_ids.clone().into());
    }
    if !choice.logprobs.is_empty() {
        add("logprobs", choice.logprobs.clone().into());
    }
    if !metrics.is_empty() {
        step.insert("metrics".to_owned(), Value::Object(metrics));
    }
    let extra = json!({
        "span_id": call.span_id,
        "response_id": call.response_id,
        "agent": judged.label,
        "reward": judged.reward,
        "finish_reason": choice.finish_reason,
    });
    step.insert("extra".to_owned(), extra);
    Value::Object(step)
}

fn tool_calls(message: &Message) -> Option<(String, Value)> {
    let call = |(number, call): (usize, &crate::call::ToolCall)| {
        let arguments = serde_json::from_str::<Map<String, Value>>(&call.arguments);
        // What the model wrote is kept even where it is no JSON object.
        let arguments = arguments
            .unwrap_or_else(|_| Map::from_iter([("arguments".to_owned(), call.arguments.clone().into())]));
        let id = call.id.clone().unwrap_or_else(|| format!("call_{number}"));
        json!({"tool_call_id": id, "function_name": call.name, "arguments": arguments})
    };
    let calls: Vec<Value> = message.tool_calls.iter().enumerate().map(call).collect();
    (!calls.is_empty()).then(|| ("tool_calls".to_owned(), calls.into()))
}

/// Adds a tool's answer to the step that called it.
fn observe(steps: &mut Vec<Value>, message: &Message) {
    let id = message.tool_call_id.as_deref();
    let calls_it = |step: &&mut Value| {
        let calls = step["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        calls.iter().any(|call| call["tool_call_id"].as_str() == id)
    };
    let (mut result, place) = (json!({"content": message.words()}), steps.iter_mut().rev().find(calls_it));
    if let Some(step) = place {
        result["source_call_id"] = id.into();
        match step["observation"]["results"].as_array_mut() {
            Some(results) => results.push(result),
            None => step["observation"] = json!({"results": [result]}),
        }
        return;
    }
    // Nobody called it: it is an environment's word.
    let step = step(steps, "user", message, None);
    steps.push(Value::Object(step));
}

fn model(call: &LlmCall) -> Option<&str> {
    call.response_model.as_deref().or(call.model.as_deref())
}

/// Seconds since 1970 in ISO 8601, in UTC; none beyond the year 9999.
fn timestamp(seconds: f64) -> Option<String> {
    if !(0.0..253_402_300_800.0).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    let millis = (seconds * 1000.0) as u64;
    let (days, rest) = (millis / 86_400_000, millis % 86_400_000);
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_of_year = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_of_year + 2) / 5 + 1;
    let month = if month_of_year < 10 { month_of_year + 3 } else { month_of_year - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes, seconds) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", rest % 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(timestamp(0.0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(timestamp(951_782_400.5).as_deref(), Some("2000-02-29T00:00:00.500Z"));
        assert_eq!(timestamp(1_767_225_599.999).as_deref(), Some("2025-12-31T23:59:59.999Z"));
        assert_eq!(timestamp(-1.0), None);
        assert_eq!(timestamp(f64::NAN), None);
    }
}
