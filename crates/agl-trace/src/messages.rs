//! Calls as chat messages: 0.3's `TraceToMessages`, conversations to fine-tune on, and pairs of them to prefer one of.

use std::collections::HashMap;

use agl_types::{Span, semconv};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Error;
use crate::attributes::{below, group};
use crate::call::{LlmCall, Tool, ToolCall, parsed};
use crate::dialect::{numbered, role_or};
use crate::training::{JudgedCall, RolloutData};

/// Messages of a conversation, and the tools that were at hand.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenAiMessages {
    /// In the form of OpenAI's chat API.
    pub messages: Vec<Value>,
    /// Likewise; null without any.
    pub tools: Option<Vec<Value>>,
}

/// One conversation for each span that has anything of OpenTelemetry's `gen_ai` groups, in the order given, as 0.3's
/// `TraceToMessages` makes them.
///
/// # Errors
/// [`Error::Shape`] for a group that is not what it has to be, [`Error::MissingKey`] for a message without a role and a
/// call of a tool without what identifies it.
pub fn spans_to_messages(spans: &[Span]) -> Result<Vec<OpenAiMessages>, Error> {
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    for span in spans {
        if let Some(parent) = span.parent_id.as_deref() {
            children.entry(parent).or_default().push(span);
        }
    }
    let groups = [
        semconv::GEN_AI_PROMPT,
        semconv::GEN_AI_COMPLETION,
        semconv::GEN_AI_REQUEST,
        semconv::GEN_AI_RESPONSE,
    ];
    let mut all = Vec::new();
    for span in spans {
        let is_told = groups.iter().any(|prefix| below(&span.attributes, prefix).next().is_some());
        if is_told {
            let below = children.get(span.span_id.as_str()).map(Vec::as_slice).unwrap_or_default();
            all.push(messages_of(span, below)?);
        }
    }
    Ok(all)
}

fn messages_of(span: &Span, children: &[&Span]) -> Result<OpenAiMessages, Error> {
    for (prefix, is_list) in [
        (semconv::GEN_AI_PROMPT, true),
        (semconv::GEN_AI_COMPLETION, true),
        (semconv::GEN_AI_REQUEST, false),
        (semconv::GEN_AI_RESPONSE, false),
    ] {
        let mut keys = below(&span.attributes, prefix).map(|(key, _)| key).peekable();
        if keys.peek().is_none() {
            continue;
        }
        let has_numbers =
            keys.any(|key| key.split('.').next().is_some_and(|first| first.parse::<u64>().is_ok()));
        if has_numbers != is_list {
            let wanted = if is_list { "a list, with keys such as 0.role" } else { "no list" };
            return Err(Error::Shape { prefix: prefix.to_owned(), span_id: span.span_id.clone(), wanted });
        }
    }
    let entries = |prefix: &str| numbered(group(&span.attributes, prefix));
    let missing = |key: &'static str| Error::MissingKey { key, span_id: span.span_id.clone() };
    let mut messages = Vec::new();
    for message in entries(semconv::GEN_AI_PROMPT) {
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| missing("role"))?;
        if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role) {
            return Err(Error::Role { role: role.to_owned(), span_id: span.span_id.clone() });
        }
        let calls = numbered(message.get("tool_calls").cloned());
        if role == "assistant" && !calls.is_empty() {
            let call = |call: &Value| {
                let get = |key: &'static str| call.get(key).ok_or_else(|| missing(key));
                Ok(call_message(get("id")?, &"function".into(), get("name")?, get("arguments")?))
            };
            let calls = calls.iter().map(call).collect::<Result<Vec<Value>, Error>>()?;
            messages.push(json!({"role": role, "content": null, "tool_calls": calls}));
            continue;
        }
        let content = message.get("content").cloned().unwrap_or_else(|| "".into());
        let mut written = json!({"content": content, "role": role});
        if let Some(id) = message.get("tool_call_id").filter(|_| role == "tool") {
            written["tool_call_id"] = id.clone();
        }
        messages.push(written);
    }

    let is_tool = |child: &&&Span| below(&child.attributes, "tool").next().is_some();
    let call = |child: &&Span| {
        let get = |key: &'static str| {
            let value = child.attributes.get(key);
            value.ok_or_else(|| Error::MissingKey { key, span_id: child.span_id.clone() })
        };
        Ok(call_message(
            get("tool.call.id")?,
            get("tool.call.type")?,
            get("tool.name")?,
            get("tool.parameters")?,
        ))
    };
    let calls = children.iter().filter(is_tool).map(call).collect::<Result<Vec<Value>, Error>>()?;
    for answer in entries(semconv::GEN_AI_COMPLETION) {
        if role_or(&answer, "") != "assistant" {
            continue;
        }
        let content = answer.get("content").cloned().unwrap_or_default();
        let mut written = json!({"content": content, "role": "assistant"});
        // Spans of a gateway have none below them.
        let own = || {
            let own = numbered(answer.get("tool_calls").cloned());
            own.iter().filter_map(ToolCall::read).map(|call| call.to_chat()).collect()
        };
        let calls: Vec<Value> = if calls.is_empty() { own() } else { calls.clone() };
        if !calls.is_empty() {
            written["tool_calls"] = calls.into();
        }
        messages.push(written);
    }

    let tools: Vec<Value> = entries("gen_ai.request.functions")
        .iter()
        .map(|function| {
            let description = function.get("description").cloned().unwrap_or_else(|| "".into());
            let parameters = function.get("parameters").map(parsed).unwrap_or_default();
            let name = function.get("name").ok_or_else(|| missing("name"))?;
            let function = json!({"name": name, "description": description, "parameters": parameters});
            Ok(json!({"type": "function", "function": function}))
        })
        .collect::<Result<_, Error>>()?;
    Ok(OpenAiMessages { messages, tools: (!tools.is_empty()).then_some(tools) })
}

fn call_message(id: &Value, kind: &Value, name: &Value, arguments: &Value) -> Value {
    json!({"id": id, "type": kind, "function": {"name": name, "arguments": arguments}})
}

/// A conversation to fine-tune on, in the form that TRL's `SFTTrainer` reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conversation {
    /// The messages, the answer last.
    pub messages: Vec<Value>,
    /// The tools that were at hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// The rollout.
    pub rollout_id: String,
    /// The label of its calls.
    pub agent: Option<String>,
    /// What the rollout earned.
    pub reward: Option<f64>,
}

/// The conversations of a rollout: one for each call that no later call carries on.
#[must_use]
pub fn conversations(data: &RolloutData) -> Vec<Conversation> {
    let ends = |at: &usize| {
        let call = &data.calls[*at].call;
        let said: Vec<&crate::call::Message> =
            call.messages.iter().chain(call.choice().map(|c| &c.message)).collect();
        let goes_on = |later: &JudgedCall| {
            let messages = &later.call.messages;
            later.label == data.calls[*at].label
                && messages.len() >= said.len()
                && said.iter().zip(messages).all(|(a, b)| a.to_chat() == b.to_chat())
        };
        !data.calls[at + 1..].iter().any(goes_on)
    };
    let with_answer =
        |at: &usize| data.calls[*at].call.choice().is_some_and(|choice| !choice.message.is_empty());
    (0..data.calls.len())
        .filter(with_answer)
        .filter(ends)
        .map(|at| {
            let judged = &data.calls[at];
            Conversation {
                messages: judged.call.to_chat(),
                tools: tools(&judged.call),
                rollout_id: data.identity.rollout_id.clone(),
                agent: judged.label.clone(),
                reward: data.identity.reward,
            }
        })
        .collect()
}

fn tools(call: &LlmCall) -> Vec<Value> {
    call.tools.iter().map(Tool::to_chat).collect()
}

/// Two conversations that begin alike, of which the first earned more, in the form that TRL's `DPOTrainer` reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreferencePair {
    /// What both begin with.
    pub prompt: Vec<Value>,
    /// How the better one goes on.
    pub chosen: Vec<Value>,
    /// How the worse one goes on.
    pub rejected: Vec<Value>,
    /// The tools that were at hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// The rollouts' group.
    pub group: String,
    /// What the better one earned.
    pub chosen_reward: f64,
    /// What the worse one earned.
    pub rejected_reward: f64,
}

/// Pairs each rollout of a group with every one that earned at least `margin` less and whose conversation begins alike,
/// the answers of the model apart. A rollout's conversation is its longest.
#[must_use]
pub fn preference_pairs(rollouts: &[RolloutData], margin: f64) -> Vec<PreferencePair> {
    let mut groups: Vec<(&str, Vec<(f64, Conversation)>)> = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    for data in rollouts {
        let Some(reward) = data.identity.reward else { continue };
        let longest = conversations(data).into_iter().max_by_key(|conversation| conversation.messages.len());
        let Some(conversation) = longest else { continue };
        let group = data.identity.group.as_str();
        let at = *place.entry(group).or_insert_with(|| {
            groups.push((group, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push((reward, conversation));
    }
    let mut pairs = Vec::new();
    for (group, members) in groups {
        for (chosen_reward, chosen) in &members {
            for (rejected_reward, rejected) in &members {
                if chosen_reward - rejected_reward < margin || chosen_reward <= rejected_reward {
                    continue;
                }
                let common =
                    chosen.messages.iter().zip(&rejected.messages).take_while(|(a, b)| a == b).count();
                // Both go on with an answer of the model.
                let is_answer =
                    |messages: &[Value]| messages.get(common).is_some_and(|m| m["role"] == "assistant");
                if common == 0 || !is_answer(&chosen.messages) || !is_answer(&rejected.messages) {
                    continue;
                }
                pairs.push(PreferencePair {
                    prompt: chosen.messages[..common].to_vec(),
                    chosen: chosen.messages[common..].to_vec(),
                    rejected: rejected.messages[common..].to_vec(),
                    tools: chosen.tools.clone(),
                    group: group.to_owned(),
                    chosen_reward: *chosen_reward,
                    rejected_reward: *rejected_reward,
                });
            }
        }
    }
    pairs
}
