//! Triplets of any trace, whoever recorded it, in the form of 0.3's.

use agl_types::{JsonMap, Span, Triplet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Error;
use crate::agents::AgentOptions;
use crate::call::{Choice, LlmCall};
use crate::credit::{Assigner, RewardReport};
use crate::dialect::{Dialect, read_generic};
use crate::framework::{Framework, frameworks};
use crate::reading::dialects;
use crate::training::{Dropped, JudgedCall, RolloutTrace, TrainingOptions, read_rollout};

/// How any trace becomes triplets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoOptions {
    /// Whose calls are wanted.
    pub agents: AgentOptions,
    /// Whether calls made to compute a reward are left out.
    pub exclude_llm_call_in_reward: bool,
    /// Whether spans without a telling parent find one by their time.
    pub repair_hierarchy: bool,
    /// What each call earns.
    pub assigner: Assigner,
    /// Whether calls without token ids are left out.
    pub skip_empty_token_spans: bool,
}

impl Default for AutoOptions {
    fn default() -> Self {
        Self {
            agents: AgentOptions::default(),
            exclude_llm_call_in_reward: true,
            repair_hierarchy: true,
            assigner: Assigner::default(),
            skip_empty_token_spans: false,
        }
    }
}

/// Triplets, and how they were found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AutoTriplets {
    /// One for each call, in order.
    pub triplets: Vec<Triplet>,
    /// How many spans have the marks of each framework, the most frequent first.
    pub frameworks: Vec<(Framework, usize)>,
    /// How many calls each convention recorded; empty when nothing but prompts and responses was found.
    pub dialects: Vec<(Dialect, usize)>,
    /// The calls that were left out, and why.
    pub dropped: Vec<Dropped>,
    /// What became of the rewards.
    pub reward_report: RewardReport,
}

/// Reads the triplets of a trace, whatever recorded it; one of several conventions is read whole. Where none of them is
/// known, every span with a prompt and a response counts.
///
/// # Errors
/// [`Error::Pattern`] for a rule about agents that is no regular expression.
pub fn auto_triplets(spans: &[Span], options: &AutoOptions) -> Result<AutoTriplets, Error> {
    let dialects = dialects(spans);
    let trace = RolloutTrace { spans: spans.to_vec(), ..RolloutTrace::default() };
    let training = TrainingOptions {
        agents: options.agents.clone(),
        exclude_llm_call_in_reward: options.exclude_llm_call_in_reward,
        repair_hierarchy: options.repair_hierarchy,
        assigner: options.assigner,
        ..TrainingOptions::default()
    };
    let data = read_rollout(&trace, &training)?;
    let mut triplets: Vec<Triplet> = data
        .calls
        .iter()
        .filter(|judged| judged.call.has_token_ids() || !options.skip_empty_token_spans)
        .map(call_triplet)
        .collect();
    if dialects.is_empty() && !options.skip_empty_token_spans {
        let mut found: Vec<LlmCall> = spans.iter().filter_map(read_generic).collect();
        found.sort_by_key(|call| call.sequence_id);
        let last = found.len().saturating_sub(1);
        triplets = found
            .into_iter()
            .enumerate()
            .map(|(at, call)| {
                let reward = data.identity.reward.filter(|_| at == last);
                call_triplet(&JudgedCall { call, label: None, reward, rewards: Vec::new() })
            })
            .collect();
    }
    Ok(AutoTriplets {
        triplets,
        frameworks: frameworks(spans),
        dialects,
        dropped: data.dropped,
        reward_report: data.reward_report,
    })
}

/// A call as a triplet with the keys that 0.3's have.
#[must_use]
pub fn call_triplet(judged: &JudgedCall) -> Triplet {
    let call = &judged.call;
    let messages: Vec<Value> = call.messages.iter().map(crate::call::Message::to_chat).collect();
    let choices: Vec<Value> = call.choices.iter().map(choice).collect();
    let prompt = json!({
        "token_ids": call.prompt_token_ids,
        "raw_content": messages,
        "image_urls": call.image_urls().collect::<Vec<_>>(),
    });
    let mut response = json!({"token_ids": call.response_token_ids(), "raw_content": choices});
    if let Some(first) = call.choice().filter(|choice| !choice.logprobs.is_empty()) {
        response["logprobs"] = first.logprobs.iter().map(|logprob| json!({"logprob": logprob})).collect();
    }
    let mut request = call.parameters.clone();
    request.insert("model".to_owned(), call.model.clone().into());
    if !call.tools.is_empty() {
        request.insert("tools".to_owned(), call.tools.iter().map(crate::call::Tool::to_chat).collect());
    }
    let metadata = JsonMap::from_iter([
        ("request".to_owned(), Value::Object(request)),
        ("response".to_owned(), json!({"id": call.response_id, "model": call.response_model})),
        ("response_id".to_owned(), call.response_id.clone().into()),
        ("agent_name".to_owned(), judged.label.clone().unwrap_or_else(|| "*".to_owned()).into()),
        ("dialect".to_owned(), call.dialect.as_str().into()),
        ("span_id".to_owned(), call.span_id.clone().into()),
    ]);
    Triplet { prompt, response, reward: judged.reward, metadata }
}

fn choice(choice: &Choice) -> Value {
    let mut message = choice.message.to_chat();
    message["finish_reason"] = choice.finish_reason.clone().into();
    message
}
