//! Training data from spans: prompt, response and reward of every LLM call.

use std::collections::{HashMap, HashSet};

use agl_types::{JsonMap, Span, Triplet, semconv};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Error;
use crate::attributes::{group, text};
use crate::llm::{Call, OPERATION_RESPONSE_ID, Pattern, Selection, find_calls, is_about_agent, response_id};
use crate::rewards::{get_reward_value, may_be_reward};
use crate::tree::{NodeId, TraceTree};

/// Which call a reward goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardMatchPolicy {
    /// The newest call before it, in the whole trace, that has none yet.
    #[default]
    FirstOccurrence,
    /// The newest call before it, among its own siblings, that has none yet.
    FirstSibling,
}

/// How spans become triplets; names and defaults are those of 0.3's `TracerTraceToTriplet`.
///
/// ```
/// use agl_trace::TripletOptions;
///
/// let options = TripletOptions { agent_match: Some("^writer$".to_owned()), ..TripletOptions::default() };
/// assert!(options.repair_hierarchy);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TripletOptions {
    /// Whether spans without a telling parent find one by their time; see [`TraceTree::repair_hierarchy`].
    pub repair_hierarchy: bool,
    /// Regular expression that is found in the name of a call's span.
    pub llm_call_match: String,
    /// Regular expression that is found in the names of the agents that are wanted; null means all.
    pub agent_match: Option<String>,
    /// Whether calls made while computing a reward are left out.
    pub exclude_llm_call_in_reward: bool,
    /// Whether a response that was recorded twice counts once.
    pub dedup_llm_call: bool,
    /// Which call a reward goes to.
    pub reward_match: RewardMatchPolicy,
    /// Whether calls without prompt or response token ids are left out.
    #[serde(alias = "_skip_empty_token_spans")]
    pub skip_empty_token_spans: bool,
    /// What the last call's reward becomes, whatever the spans say.
    pub final_reward: Option<f64>,
}

impl Default for TripletOptions {
    fn default() -> Self {
        Self {
            repair_hierarchy: true,
            llm_call_match: r"openai\.chat\.completion".to_owned(),
            agent_match: None,
            exclude_llm_call_in_reward: true,
            dedup_llm_call: true,
            reward_match: RewardMatchPolicy::default(),
            skip_empty_token_spans: false,
            final_reward: None,
        }
    }
}

/// One triplet per LLM call of the trace, in the order of the tree.
///
/// # Errors
/// [`Error::NoSpans`] without spans, [`Error::NoRoot`] when their parents only run in circles, and
/// [`Error::Pattern`] for an option that is not a regular expression.
///
/// ```
/// use agl_trace::{LLM_CALL, TripletOptions, chat_attributes, spans_to_triplets};
/// use agl_types::Span;
/// use serde_json::json;
///
/// let request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
/// let response = json!({"id": "c1", "prompt_token_ids": [1, 2], "choices": [{"token_ids": [3]}]});
/// let mut call = Span::new(LLM_CALL, "0".repeat(32), "1".repeat(16), 1.0, 2.0);
/// call.attributes = chat_attributes(&request, &response);
/// let triplets = spans_to_triplets(&[call], &TripletOptions::default())?;
/// assert_eq!(triplets[0].response["token_ids"], json!([3]));
/// # Ok::<(), agl_trace::Error>(())
/// ```
pub fn spans_to_triplets(spans: &[Span], options: &TripletOptions) -> Result<Vec<Triplet>, Error> {
    let mut tree = TraceTree::from_spans(spans)?;
    if options.repair_hierarchy {
        tree.repair_hierarchy();
    }
    let calls = tree_calls(&tree, options)?;
    Ok(calls.iter().map(|call| span_to_triplet(tree.span(call.node), &call.agent, call.reward)).collect())
}

/// A call of a tree that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeCall {
    /// Where it is.
    pub node: NodeId,
    /// The innermost agent around it.
    pub agent: String,
    /// What it earned.
    pub reward: Option<f64>,
}

/// The calls of a tree that count, in pre-order, with their rewards; `options` as of [`spans_to_triplets`], but that the
/// tree is taken as it is.
///
/// # Errors
/// [`Error::Pattern`] for an option that is not a regular expression.
pub fn tree_calls(tree: &TraceTree<'_>, options: &TripletOptions) -> Result<Vec<TreeCall>, Error> {
    let selection = Selection {
        llm_call: Pattern::new("llm_call_match", &options.llm_call_match)?,
        agent: options
            .agent_match
            .as_deref()
            .map(|pattern| Pattern::new("agent_match", pattern))
            .transpose()?,
        exclude_in_reward: options.exclude_llm_call_in_reward,
        dedup: options.dedup_llm_call,
    };
    let mut calls = find_calls(tree, &selection);
    if options.skip_empty_token_spans {
        calls.retain(|call| {
            !prompt_token_ids(call.span).is_empty() && !response_token_ids(call.span).is_empty()
        });
    }
    let is_call: HashSet<NodeId> = calls.iter().map(|call| call.node).collect();
    let mut rewards = match options.reward_match {
        RewardMatchPolicy::FirstOccurrence => match_in_trace(tree, &is_call),
        RewardMatchPolicy::FirstSibling => match_among_siblings(tree, &is_call),
    };
    if let (Some(reward), Some(last)) = (options.final_reward, calls.last()) {
        rewards.insert(last.node, reward);
    }
    let call = |call: &Call<'_>| TreeCall {
        node: call.node,
        agent: call.agent.to_owned(),
        reward: rewards.get(&call.node).copied(),
    };
    Ok(calls.iter().map(call).collect())
}

/// A call or a reward on its way through the matching.
struct Moment<'t> {
    node: NodeId,
    span: &'t Span,
    is_call: bool,
    reward: Option<f64>,
}

/// The calls that came before and have no reward yet, the newest last.
#[derive(Default)]
struct Waiting<'t> {
    calls: Vec<(NodeId, &'t Span)>,
    rewards: HashMap<NodeId, f64>,
}

impl<'t> Waiting<'t> {
    fn take_in(&mut self, moment: &Moment<'t>) {
        if moment.is_call {
            self.calls.push((moment.node, moment.span));
        }
        let Some(reward) = moment.reward else { return };
        // A surplus reward finds no call and is dropped.
        if let Some(newest) = self.calls.iter().rposition(|(_, call)| is_over_before(call, moment.span)) {
            let (node, _) = self.calls.remove(newest);
            self.rewards.insert(node, reward);
        }
    }
}

/// Whether the call had ended when the reward was given: by time, or by sequence where a time is missing.
fn is_over_before(call: &Span, reward: &Span) -> bool {
    match (call.end_time, reward.start_time) {
        (Some(end), Some(start)) => end <= start,
        _ => call.sequence_id < reward.sequence_id,
    }
}

fn moment<'t>(tree: &'t TraceTree<'_>, is_call: &HashSet<NodeId>, node: NodeId) -> Option<Moment<'t>> {
    let span = tree.span(node);
    let moment = Moment { node, span, is_call: is_call.contains(&node), reward: get_reward_value(span) };
    (moment.is_call || moment.reward.is_some()).then_some(moment)
}

fn match_in_trace(tree: &TraceTree<'_>, is_call: &HashSet<NodeId>) -> HashMap<NodeId, f64> {
    let mut moments: Vec<Moment<'_>> =
        tree.pre_order(tree.root()).filter_map(|node| moment(tree, is_call, node)).collect();
    // Both sorts are stable, so that equals stay in the order of the tree.
    if moments.iter().all(|moment| moment.span.start_time.is_some()) {
        moments.sort_by(|a, b| {
            let start = |moment: &Moment<'_>| moment.span.start_time.unwrap_or_default();
            start(a).total_cmp(&start(b))
        });
    } else {
        moments.sort_by_key(|moment| moment.span.sequence_id);
    }
    let mut waiting = Waiting::default();
    for moment in &moments {
        waiting.take_in(moment);
    }
    waiting.rewards
}

fn match_among_siblings(tree: &TraceTree<'_>, is_call: &HashSet<NodeId>) -> HashMap<NodeId, f64> {
    let mut rewards = HashMap::new();
    for parent in tree.pre_order(tree.root()) {
        let mut waiting = Waiting::default();
        for moment in tree.children(parent).iter().filter_map(|&child| moment(tree, is_call, child)) {
            waiting.take_in(&moment);
        }
        rewards.extend(waiting.rewards);
    }
    rewards
}

/// The triplet of one call.
#[must_use]
pub fn span_to_triplet(span: &Span, agent: &str, reward: Option<f64>) -> Triplet {
    let attributes = &span.attributes;
    let either =
        |ours: &str, operation: &str| group(attributes, ours).or_else(|| group(attributes, operation));
    let without = |field: &str, parts: &[&str]| {
        let mut value = group(attributes, &format!("agentlightning.operation.{field}"))?;
        if let Value::Object(fields) = &mut value {
            for part in parts {
                fields.shift_remove(*part);
            }
        }
        Some(value)
    };

    let messages =
        either(semconv::GEN_AI_PROMPT, "agentlightning.operation.input.messages").unwrap_or_default();
    let image_urls = prompt_image_urls(&messages);
    let prompt = json!({
        "token_ids": prompt_token_ids(span),
        "raw_content": messages,
        "image_urls": image_urls,
    });

    let choices = either(semconv::GEN_AI_COMPLETION, "agentlightning.operation.output.choices");
    let mut response = json!({"token_ids": response_token_ids(span), "raw_content": choices});
    let logprobs =
        text(attributes, semconv::LOGPROBS_CONTENT).and_then(|text| serde_json::from_str(text).ok());
    if let Some(logprobs) = logprobs {
        response["logprobs"] = logprobs;
    }

    let request = group(attributes, semconv::GEN_AI_REQUEST).or_else(|| without("input", &["messages"]));
    let answer = group(attributes, semconv::GEN_AI_RESPONSE)
        .or_else(|| without("output", &["choices", "prompt_token_ids", "response_token_ids"]));
    let metadata = JsonMap::from_iter([
        ("request".to_owned(), request.unwrap_or_default()),
        ("response".to_owned(), answer.unwrap_or_default()),
        ("response_id".to_owned(), response_id(span).into()),
        ("agent_name".to_owned(), agent.into()),
    ]);
    Triplet { prompt, response, reward, metadata }
}

/// Where the token ids of a prompt may be; the first that is a list of whole numbers counts.
pub const PROMPT_IDS: [&str; 2] =
    [semconv::PROMPT_TOKEN_IDS, "agentlightning.operation.output.prompt_token_ids"];

/// Likewise of a response.
pub const RESPONSE_IDS: [&str; 4] = [
    semconv::RESPONSE_TOKEN_IDS,
    "agentlightning.operation.output.response_token_ids.0",
    "agentlightning.operation.output.choices.0.token_ids",
    "agentlightning.operation.output.choices.0.provider_specific_fields.token_ids",
];

/// Whether [`tree_calls`] and [`TraceTree`] may look at an attribute of this name. What others say can be left out before,
/// but for [`PROMPT_IDS`] and [`RESPONSE_IDS`] where calls without token ids are.
#[must_use]
pub fn shapes_trace(key: &str) -> bool {
    is_about_agent(key)
        || may_be_reward(key)
        || matches!(key, semconv::GEN_AI_RESPONSE_ID | OPERATION_RESPONSE_ID | semconv::OPERATION_NAME)
}

/// The token ids of the call's prompt, as the model server reported them; empty when it did not.
#[must_use]
pub fn prompt_token_ids(span: &Span) -> Vec<i64> {
    token_ids(span, &PROMPT_IDS)
}

/// The token ids of the call's response, as the model server reported them; empty when it did not.
#[must_use]
pub fn response_token_ids(span: &Span) -> Vec<i64> {
    token_ids(span, &RESPONSE_IDS)
}

/// The first of these attributes that is a list of integers.
fn token_ids(span: &Span, keys: &[&str]) -> Vec<i64> {
    keys.iter()
        .filter_map(|key| span.attributes.get(*key)?.as_array())
        .find_map(|ids| ids.iter().map(Value::as_i64).collect())
        .unwrap_or_default()
}

/// The URLs of the images in a prompt: a list of messages, an object of messages by number, or one message.
///
/// A message's content may be the list of its parts or that list as JSON text; anything else has no images.
#[must_use]
pub fn prompt_image_urls(messages: &Value) -> Vec<String> {
    let contents: Vec<&Value> = match messages {
        Value::Array(messages) => messages.iter().collect(),
        Value::Object(fields) => {
            let mut numbered: Vec<(u64, &Value)> =
                fields.iter().filter_map(|(key, message)| Some((key.parse().ok()?, message))).collect();
            numbered.sort_by_key(|(number, _)| *number);
            if numbered.is_empty() { vec![messages] } else { numbered.into_iter().map(|(_, m)| m).collect() }
        }
        _ => Vec::new(),
    };
    contents.into_iter().filter_map(|message| message.get("content")).flat_map(content_image_urls).collect()
}

fn content_image_urls(content: &Value) -> Vec<String> {
    let parsed: Value;
    let content = match content {
        Value::String(text) => {
            parsed = serde_json::from_str(text).unwrap_or_default();
            &parsed
        }
        other => other,
    };
    let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
    parts
        .iter()
        .filter(|part| part.get("type").and_then(Value::as_str) == Some("image_url"))
        .filter_map(|part| part.get("image_url")?.get("url")?.as_str().map(str::to_owned))
        .collect()
}
