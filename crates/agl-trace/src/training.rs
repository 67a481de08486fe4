//! Rollouts as training data: what to train on, how good it was, and an account of everything that was left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agl_types::{Attempt, AttemptStatus, Rollout, RolloutMode, RolloutStatus, Span};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::advantage::{Estimator, advantages, rollout_weights};
use crate::agents::{AgentOptions, AgentSelection};
use crate::call::{LlmCall, TokenId};
use crate::credit::{Assigner, CallReward, RewardReport, assign, match_rewards, no_finite_number};
use crate::reading;
use crate::rewards::RewardDimension;
use crate::trajectory::{Mismatch, Mismatched, Sampled, Sequence, each_alone, merge, mismatch, split};

/// One attempt at a rollout, and what happened in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RolloutTrace {
    /// The rollout, if it is known.
    pub rollout: Option<Rollout>,
    /// The attempt, if it is known.
    pub attempt: Option<Attempt>,
    /// Its spans, in any order.
    pub spans: Vec<Span>,
    /// Whether its spans were removed from the store.
    pub spans_purged: bool,
}

/// What becomes one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Calls that continue each other, merged by exact prefix.
    #[default]
    Trajectory,
    /// Every call by itself.
    Transition,
}

/// How rollouts become training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingOptions {
    /// Whose calls are wanted.
    pub agents: AgentOptions,
    /// Whether calls made to compute a reward are left out.
    pub exclude_llm_call_in_reward: bool,
    /// Whether spans without a telling parent find one by their time.
    pub repair_hierarchy: bool,
    /// What each call earns.
    pub assigner: Assigner,
    /// The dimension of rewards that counts; null means the primary one.
    pub dimension: Option<String>,
    /// What becomes one row.
    pub level: Level,
    /// How many tokens a row has at most; null means any number.
    pub max_length: Option<usize>,
    /// How rewards become advantages; null means not at all.
    pub estimator: Option<Estimator>,
    /// The key of a rollout's metadata that says which group it is in. By default `group_id`, then `data_id`, then
    /// rollouts with the same input are a group.
    pub group_by: Option<String>,
    /// What is trained on.
    pub train_on: Vec<Outcome>,
    /// The reward of a rollout whose agent failed; null means none. It has to be said: no failure is a 0 by itself.
    pub agent_failure_reward: Option<f64>,
    /// Whether a rollout of which a call was not captured whole is left out.
    pub quarantine: bool,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            agents: AgentOptions::default(),
            exclude_llm_call_in_reward: true,
            repair_hierarchy: true,
            assigner: Assigner::Identical,
            dimension: None,
            level: Level::default(),
            max_length: None,
            estimator: Some(Estimator::default()),
            group_by: None,
            train_on: vec![Outcome::Scored],
            agent_failure_reward: None,
            quarantine: true,
        }
    }
}

/// How a rollout came out, for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has a reward.
    Scored,
    /// It ended well, and nothing judged it.
    MissingReward,
    /// It ended well, and its reward is no finite number.
    UnusableReward,
    /// The agent failed.
    AgentFailure,
    /// Something around the agent failed: it timed out, fell silent, was called off, or could not reach its model.
    InfrastructureFailure,
    /// It has ended, and its spans were removed since: whatever they said is not known any more.
    SpansPurged,
    /// It has not ended.
    Unfinished,
}

/// Why something was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The call failed.
    CallFailed,
    /// The engine's token ids are not known.
    NoTokenIds,
    /// The agent that made the call is not wanted.
    AgentNotWanted,
    /// The call was made to compute a reward.
    ForReward,
    /// The answer alone is longer than a row may be.
    ResponseTooLong,
    /// The rollout has a reward, and `train_on` does not name such.
    NotTrainedOn,
    /// Nothing judged the rollout.
    MissingReward,
    /// The reward of the rollout is no finite number.
    UnusableReward,
    /// The agent failed.
    AgentFailure,
    /// Something around the agent failed.
    InfrastructureFailure,
    /// The spans of the rollout were removed from the store.
    SpansPurged,
    /// The rollout has not ended.
    Unfinished,
    /// A call of the rollout was not captured whole.
    CaptureGap,
    /// There is no call in the rollout.
    NoCalls,
}

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The rollout.
    pub rollout_id: String,
    /// The span of the call; null when it is the whole rollout.
    pub span_id: Option<String>,
    /// How many tokens the model had sampled.
    pub tokens: usize,
    /// Why.
    pub reason: Reason,
    /// More about it.
    pub detail: String,
}

/// A call of a rollout, and what it earned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgedCall {
    /// The call.
    #[serde(flatten)]
    pub call: LlmCall,
    /// What the rules that chose it label it with; by default its agent's name.
    pub label: Option<String>,
    /// What it earned.
    pub reward: Option<f64>,
    /// The rewards that were matched with it, in the order in which they were given.
    pub rewards: Vec<CallReward>,
}

impl JudgedCall {
    /// How many tokens the model sampled for all answers.
    #[must_use]
    pub fn sampled_tokens(&self) -> usize {
        self.call.choices.iter().map(|choice| choice.token_ids.len()).sum()
    }
}

/// What is known of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identity {
    /// The rollout.
    pub rollout_id: String,
    /// The attempt.
    pub attempt_id: String,
    /// The rollouts that it is compared with.
    pub group: String,
    /// What it was for.
    pub mode: Option<RolloutMode>,
    /// The resources that it ran with.
    pub resources_id: Option<String>,
    /// How it came out.
    pub outcome: Outcome,
    /// Why it came out so, if it did not come out well.
    pub detail: String,
    /// Its final reward.
    pub reward: Option<f64>,
    /// All dimensions of that.
    pub dimensions: Vec<RewardDimension>,
}

/// A rollout, read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolloutData {
    /// What is known of it.
    #[serde(flatten)]
    pub identity: Identity,
    /// The calls that are wanted, in order.
    pub calls: Vec<JudgedCall>,
    /// The calls that are not, and why.
    pub dropped: Vec<Dropped>,
    /// What became of its rewards.
    pub reward_report: RewardReport,
}

impl RolloutData {
    /// Whether each call goes on, token for token, where the one before it of its agent and model ended: rows are then made of
    /// tokens alone.
    #[must_use]
    pub fn is_one_thread(&self) -> bool {
        let mut newest: BTreeMap<(Option<&str>, Option<&str>), &LlmCall> = BTreeMap::new();
        // What a call may carry on in words alone: see `mismatch`.
        let mut asked: BTreeSet<(Option<&str>, Option<&str>)> = BTreeSet::new();
        self.calls.iter().all(|judged| {
            let call = &judged.call;
            let goes_on = |before: &LlmCall| {
                let after = call.prompt_token_ids.strip_prefix(before.prompt_token_ids.as_slice());
                after.is_some_and(|after| after.starts_with(before.response_token_ids()))
            };
            let is_new = asked.insert((call.agent.as_deref(), call.model.as_deref()));
            let before = newest.insert((judged.label.as_deref(), model(call)), call);
            call.choices.len() == 1 && before.map_or(is_new, goes_on)
        })
    }
}

/// Where an answer is in a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowCall {
    /// The span of the call.
    pub span_id: String,
    /// The id that the engine gave to the response.
    pub response_id: Option<String>,
    /// Which of the call's answers it is.
    pub choice: usize,
    /// Where its tokens begin in the row.
    pub start: usize,
    /// Where they end.
    pub end: usize,
    /// What the call earned.
    pub reward: Option<f64>,
}

/// A sequence of tokens to train on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The rollout.
    pub rollout_id: String,
    /// The attempt.
    pub attempt_id: String,
    /// The rollouts that it is compared with.
    pub group: String,
    /// The label of the calls in it.
    pub agent: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// Which of the rollout's sequences it is a part of.
    pub sequence: usize,
    /// Which part.
    pub part: usize,
    /// The tokens.
    pub token_ids: Vec<TokenId>,
    /// 1 for each token that the model sampled here and that is to be trained on, else 0.
    pub mask: Vec<u8>,
    /// The log-prob of each token that is trained on, null (NaN) where it is not known; 0 where `mask` is 0.
    pub logprobs: Vec<f32>,
    /// The answers in it.
    pub calls: Vec<RowCall>,
    /// The URLs of the images in the last call's prompt.
    pub image_urls: Vec<String>,
    /// What the rollout earned.
    pub reward: Option<f64>,
    /// How much better that is than was to be expected.
    pub advantage: Option<f64>,
    /// What each trained token counts so that every rollout counts the same.
    pub weight: f64,
}

/// The tokens of rows, one row after the other; the fields are as those of a [`Row`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tokens {
    /// Where each row's end.
    pub ends: Vec<usize>,
    /// Those of all rows.
    pub token_ids: Vec<TokenId>,
    /// As long as `token_ids`.
    pub mask: Vec<u8>,
    /// As long as `token_ids`.
    pub logprobs: Vec<f32>,
}

impl Tokens {
    /// Where those of a row are.
    #[must_use]
    pub fn of_row(&self, row: usize) -> std::ops::Range<usize> {
        row.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[row]
    }

    fn reserve(&mut self, more: usize) {
        self.token_ids.reserve(more);
        self.mask.reserve(more);
        self.logprobs.reserve(more);
    }

    /// Adds those of the next rows.
    pub fn append(&mut self, next: &Self) {
        let base = self.token_ids.len();
        self.ends.extend(next.ends.iter().map(|end| base + end));
        self.token_ids.extend_from_slice(&next.token_ids);
        self.mask.extend_from_slice(&next.mask);
        self.logprobs.extend_from_slice(&next.logprobs);
    }

    /// Those of the same rows in another order: `order` has the place of each.
    #[must_use]
    pub fn in_order(self, order: &[usize]) -> Self {
        if order.is_sorted() {
            return self;
        }
        let mut ordered = Self::default();
        for &row in order {
            let of_row = self.of_row(row);
            ordered.token_ids.extend_from_slice(&self.token_ids[of_row.clone()]);
            ordered.mask.extend_from_slice(&self.mask[of_row.clone()]);
            ordered.logprobs.extend_from_slice(&self.logprobs[of_row]);
            ordered.ends.push(ordered.token_ids.len());
        }
        ordered
    }
}

/// What was made of the rollouts, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Rollouts given.
    pub rollouts: usize,
    /// Of these, those that rows were made of.
    pub rollouts_used: usize,
    /// Rollouts by how they came out.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// Calls in rows.
    pub calls: usize,
    /// Rows.
    pub rows: usize,
    /// Tokens that are trained on.
    pub trained_tokens: usize,
    /// All tokens in rows.
    pub tokens: usize,
    /// Mismatches by kind.
    pub mismatches: BTreeMap<Mismatch, usize>,
    /// Each mismatch.
    pub mismatched: Vec<Mismatched>,
    /// What was left out, by reason.
    pub dropped_by_reason: BTreeMap<Reason, usize>,
    /// Everything that was left out.
    pub dropped: Vec<Dropped>,
    /// What became of the rewards of each rollout that had any trouble with them.
    pub rewards: BTreeMap<String, RewardReport>,
}

/// Training data.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TrainingData {
    /// What to train on, rollouts in the order given, groups kept together.
    pub rows: Vec<Row>,
    /// An account of it.
    pub report: Report,
}

/// Reads one attempt. An attempt without spans has no calls, and that is no error.
///
/// # Errors
/// [`Error::Pattern`] for a rule about agents that is no regular expression.
pub fn read_rollout(trace: &RolloutTrace, options: &TrainingOptions) -> Result<RolloutData, Error> {
    let selection = AgentSelection::new(&options.agents)?;
    Ok(read_with(trace, options, &selection))
}

fn read_with(trace: &RolloutTrace, options: &TrainingOptions, selection: &AgentSelection) -> RolloutData {
    let rollout_id = trace.rollout.as_ref().map(|rollout| rollout.rollout_id.clone());
    let rollout_id = rollout_id.or_else(|| Some(trace.spans.first()?.rollout_id.clone())).unwrap_or_default();
    let attempt_id = trace.attempt.as_ref().map(|attempt| attempt.attempt_id.clone());
    let attempt_id = attempt_id.or_else(|| Some(trace.spans.first()?.attempt_id.clone())).unwrap_or_default();

    let mut dropped = Vec::new();
    let mut calls: Vec<JudgedCall> = Vec::new();
    let mut reward_report = RewardReport::default();
    let mut dimensions = Vec::new();
    let mut lost_model = None;
    if let Ok(reading) = reading::read(&trace.spans, options.repair_hierarchy) {
        let labels: Vec<Result<Option<String>, Reason>> = reading
            .calls
            .iter()
            .map(|found| {
                if found.in_reward && options.exclude_llm_call_in_reward {
                    return Err(Reason::ForReward);
                }
                let label = selection.label(found.call.agent.as_deref(), found.call.role.as_deref());
                label.map(|label| label.map(str::to_owned)).ok_or(Reason::AgentNotWanted)
            })
            .collect();
        let is_wanted: Vec<bool> = labels.iter().map(Result::is_ok).collect();
        let credit = match_rewards(&reading, &is_wanted);
        reward_report = credit.report;
        dimensions = credit.last.unwrap_or_default();
        for ((found, label), rewards) in reading.calls.into_iter().zip(labels).zip(credit.of_call) {
            let call = found.call;
            match label {
                Ok(_)
                    if call.gap.is_none()
                        && call.error.is_some()
                        && call.choices.iter().all(|choice| choice.token_ids.is_empty()) =>
                {
                    let detail = call.error.clone().unwrap_or_default();
                    lost_model = Some(detail.clone());
                    dropped.push(Dropped::call(&rollout_id, &call, Reason::CallFailed, detail));
                }
                Ok(label) => {
                    lost_model = None;
                    let reward = rewards.last().and_then(|reward| {
                        given_in(&reward.dimensions, options.dimension.as_deref())
                            .filter(|_| {
                                reward.by != crate::credit::MatchedBy::Step || options.dimension.is_some()
                            })
                            .or_else(|| options.dimension.is_none().then_some(reward.value))
                    });
                    calls.push(JudgedCall { call, label, reward, rewards });
                }
                Err(reason) => {
                    let detail = format!("agent {:?}, role {:?}", call.agent, call.role);
                    dropped.push(Dropped::call(&rollout_id, &call, reason, detail));
                }
            }
        }
    }

    let given = given_in(&dimensions, options.dimension.as_deref());
    dimensions.retain(|dimension| dimension.value.is_finite());
    let (outcome, detail) = outcome(trace, given, lost_model);
    let mut reward = given.filter(|value| value.is_finite());
    if outcome == Outcome::AgentFailure {
        // A reward from before it failed is none for the failure.
        reward = options.agent_failure_reward;
    }
    let labels: Vec<Option<&str>> = calls.iter().map(|call| call.label.as_deref()).collect();
    let matched: Vec<Option<f64>> = calls.iter().map(|call| call.reward).collect();
    let earned = assign(options.assigner, &labels, &matched, reward);
    for (call, earned) in calls.iter_mut().zip(earned) {
        call.reward = earned;
    }
    let rollout = trace.rollout.as_ref();
    let identity = Identity {
        group: group(rollout, options.group_by.as_deref()).unwrap_or_else(|| rollout_id.clone()),
        rollout_id,
        attempt_id,
        mode: rollout.and_then(|rollout| rollout.mode),
        resources_id: rollout.and_then(|rollout| rollout.resources_id.clone()),
        outcome,
        detail,
        reward,
        dimensions,
    };
    RolloutData { identity, calls, dropped, reward_report }
}

/// The value of a dimension, the primary one for none.
fn given_in(dimensions: &[RewardDimension], name: Option<&str>) -> Option<f64> {
    let dimension = match name {
        None => dimensions.first(),
        Some(name) => dimensions.iter().find(|dimension| dimension.name == name),
    };
    dimension.map(|dimension| dimension.value)
}

fn outcome(trace: &RolloutTrace, given: Option<f64>, lost_model: Option<String>) -> (Outcome, String) {
    let attempt = trace.attempt.as_ref().map(|attempt| attempt.status);
    let status = trace.rollout.as_ref().map(|rollout| rollout.status);
    let of_attempt = |words: &str| (Outcome::InfrastructureFailure, words.to_owned());
    match (status, attempt) {
        (Some(status), _) if trace.spans_purged && status.is_terminal() => {
            (Outcome::SpansPurged, format!("its spans were purged; its status is {status}"))
        }
        (Some(RolloutStatus::Succeeded) | None, _) => match (given, lost_model) {
            (Some(value), _) if value.is_finite() => (Outcome::Scored, String::new()),
            (_, Some(error)) => (Outcome::InfrastructureFailure, format!("its last call failed: {error}")),
            (Some(value), None) => {
                (Outcome::UnusableReward, format!("its reward cannot be used: {}", no_finite_number(value)))
            }
            (None, None) => (Outcome::MissingReward, "no span gives a reward".to_owned()),
        },
        (Some(RolloutStatus::Cancelled), _) => of_attempt("it was cancelled"),
        (Some(RolloutStatus::Failed), Some(AttemptStatus::Timeout)) => of_attempt("it timed out"),
        (Some(RolloutStatus::Failed), Some(AttemptStatus::Unresponsive)) => of_attempt("it fell silent"),
        (Some(RolloutStatus::Failed), _) => match lost_model {
            Some(error) => (Outcome::InfrastructureFailure, format!("its last call failed: {error}")),
            None => (Outcome::AgentFailure, "the agent failed".to_owned()),
        },
        (Some(status), _) => (Outcome::Unfinished, format!("its status is {status}")),
    }
}

/// The group that a rollout says it is in, or that of its input.
fn group(rollout: Option<&Rollout>, key: Option<&str>) -> Option<String> {
    let rollout = rollout?;
    let metadata = |key: &str| rollout.metadata.as_ref()?.get(key).filter(|value| !value.is_null());
    let said = match key {
        Some(key) => metadata(key),
        None => metadata("group_id").or_else(|| metadata("data_id")),
    };
    Some(match said {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => format!("input-{:016x}", fnv(&rollout.input)),
    })
}

/// The 64-bit FNV-1a hash of a value's JSON.
fn fnv(value: &Value) -> u64 {
    let bytes = value.to_string().into_bytes();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Dropped {
    fn call(rollout_id: &str, call: &LlmCall, reason: Reason, detail: String) -> Self {
        let tokens = call.choices.iter().map(|choice| choice.token_ids.len()).sum();
        Self {
            rollout_id: rollout_id.to_owned(),
            span_id: Some(call.span_id.clone()),
            tokens,
            reason,
            detail,
        }
    }
}

/// Why a call was not captured whole, if it was not.
fn gap(call: &LlmCall) -> Option<String> {
    if let Some(gap) = &call.gap {
        return Some(gap.clone());
    }
    if let Some(error) = &call.error {
        return Some(format!("it broke off: {error}"));
    }
    if call.prompt_token_ids.is_empty() {
        return Some("the engine did not tell the prompt's token ids".to_owned());
    }
    let is_missing = |choice: &crate::call::Choice| {
        choice.token_ids.is_empty() && (!choice.message.is_empty() || call.usage.completion_tokens != Some(0))
    };
    if call.choices.is_empty() || call.choices.iter().any(is_missing) {
        return Some("the engine did not tell the answer's token ids".to_owned());
    }
    let count: usize = call.choices.iter().map(|choice| choice.token_ids.len()).sum();
    match call.usage.completion_tokens {
        Some(tokens) if tokens != count as u64 => {
            Some(format!("the engine counted {tokens} tokens and told {count} ids"))
        }
        _ => None,
    }
}

/// The first call that was not captured whole, and why, if there is one.
fn capture_gap(calls: &[JudgedCall]) -> Option<String> {
    calls.iter().find_map(|judged| Some(format!("span {}: {}", judged.call.span_id, gap(&judged.call)?)))
}

/// Makes training data of rollouts.
///
/// Groups keep together, in the order of their first rollouts; whatever is not in a row is in the report.
///
/// # Errors
/// [`Error::Pattern`] for a rule about agents that is no regular expression.
pub fn training_data<'t>(
    traces: impl IntoIterator<Item = &'t RolloutTrace>,
    options: &TrainingOptions,
) -> Result<TrainingData, Error> {
    let selection = AgentSelection::new(&options.agents)?;
    let mut builder = Builder::default();
    for trace in traces {
        builder.add(read_with(trace, options, &selection), options);
    }
    Ok(builder.finish(options))
}

/// Makes training data of rollouts that come one after the other, so that their spans need not be there all at once.
#[derive(Debug, Default)]
pub struct Builder {
    /// Without their tokens.
    rows: Vec<Row>,
    tokens: Tokens,
    report: Report,
    /// Group and reward of every rollout that was trained on.
    used: Vec<(String, String, Option<f64>)>,
}

impl Builder {
    /// Takes a rollout in.
    pub fn add(&mut self, data: RolloutData, options: &TrainingOptions) {
        let mut data = data;
        let report = &mut self.report;
        let calls_in_rows = report.calls;
        report.take_in(&mut data);
        // Only those in rows count.
        report.calls = calls_in_rows;
        let RolloutData { identity, calls, .. } = data;
        let is_judged = identity.reward.is_some() && identity.outcome == Outcome::AgentFailure;
        let refused = if !options.train_on.contains(&identity.outcome) && !is_judged {
            Some((identity.outcome.reason(), identity.detail.clone()))
        } else if calls.is_empty() {
            Some((Reason::NoCalls, "no call of a model is wanted".to_owned()))
        } else {
            capture_gap(&calls).filter(|_| options.quarantine).map(|gap| (Reason::CaptureGap, gap))
        };
        if let Some((reason, detail)) = refused {
            report.dropped.push(Dropped {
                rollout_id: identity.rollout_id,
                span_id: None,
                tokens: calls.iter().map(JudgedCall::sampled_tokens).sum(),
                reason,
                detail,
            });
            return;
        }
        let before = self.rows.len();
        self.add_rows(&identity, &calls, options);
        if self.rows.len() > before {
            self.report.rollouts_used += 1;
            self.used.push((identity.rollout_id, identity.group, identity.reward));
        }
    }

    fn add_rows(&mut self, identity: &Identity, calls: &[JudgedCall], options: &TrainingOptions) {
        // Each answer, and the call and choice that it is.
        let mut sampled: Vec<Sampled<'_>> = Vec::new();
        let mut origin: Vec<(usize, usize)> = Vec::new();
        let mut keys: BTreeMap<(Option<&str>, Option<&str>), usize> = BTreeMap::new();
        for (number, judged) in calls.iter().enumerate() {
            let call = &judged.call;
            let count = keys.len();
            let key = *keys.entry((judged.label.as_deref(), model(call))).or_insert(count);
            let mut has_any = false;
            for (index, choice) in call.choices.iter().enumerate() {
                if call.prompt_token_ids.is_empty() || choice.token_ids.is_empty() {
                    continue;
                }
                has_any = true;
                sampled.push(Sampled {
                    prompt: &call.prompt_token_ids,
                    response: &choice.token_ids,
                    logprobs: &choice.logprobs,
                    key,
                });
                origin.push((number, index));
            }
            if !has_any {
                let detail = gap(call).unwrap_or_else(|| "the answer is empty".to_owned());
                self.report.dropped.push(Dropped::call(
                    &identity.rollout_id,
                    call,
                    Reason::NoTokenIds,
                    detail,
                ));
            }
        }
        let sequences = match options.level {
            Level::Trajectory => merge(&sampled),
            Level::Transition => each_alone(&sampled),
        };
        if options.level == Level::Trajectory {
            let begins: Vec<usize> = sequences
                .iter()
                .filter(|s| s.forked_from.is_none())
                .map(|s| origin[s.segments[0].sampled].0)
                .collect();
            let all: Vec<&LlmCall> = calls.iter().map(|judged| &judged.call).collect();
            for call in begins {
                if let Some(found) = mismatch(&all, call, None) {
                    *self.report.mismatches.entry(found.kind).or_default() += 1;
                    self.report.mismatched.push(found);
                }
            }
        }
        self.tokens.reserve(sequences.iter().map(Sequence::len).sum());
        for (number, sequence) in sequences.iter().enumerate() {
            self.add_pieces(identity, calls, options, number, sequence, &sampled, &origin);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one step of add_rows, with its locals")]
    fn add_pieces(
        &mut self,
        identity: &Identity,
        calls: &[JudgedCall],
        options: &TrainingOptions,
        number: usize,
        sequence: &Sequence,
        sampled: &[Sampled<'_>],
        origin: &[(usize, usize)],
    ) {
        let (pieces, too_long) = split(sequence, options.max_length.unwrap_or(usize::MAX));
        for segment in too_long {
            let segment = sequence.segments[segment];
            let call = &calls[origin[segment.sampled].0].call;
            self.report.dropped.push(Dropped {
                tokens: segment.end - segment.start,
                ..Dropped::call(
                    &identity.rollout_id,
                    call,
                    Reason::ResponseTooLong,
                    format!("max_length is {}", options.max_length.unwrap_or_default()),
                )
            });
        }
        for (part, piece) in pieces.into_iter().enumerate() {
            let segments = &sequence.segments[piece.segments];
            let Some(last) = segments.last().map(|last| &calls[origin[last.sampled].0]) else { continue };
            let length = piece.end - piece.start;
            let tokens = &mut self.tokens;
            let base = tokens.token_ids.len();
            let told = sequence.tokens(sampled, piece.start..piece.end);
            told.into_iter().for_each(|told| tokens.token_ids.extend_from_slice(told));
            tokens.mask.resize(base + length, 0);
            tokens.logprobs.resize(base + length, 0.0);
            tokens.ends.push(base + length);
            let mut row_calls = Vec::with_capacity(segments.len());
            for segment in segments {
                let (start, end) = (segment.start - piece.start, segment.end - piece.start);
                let trained = base + start..base + end;
                tokens.mask[trained.clone()].fill(1);
                let logprobs = &mut tokens.logprobs[trained];
                let known = sampled[segment.sampled].logprobs;
                logprobs.fill(f32::NAN);
                logprobs.iter_mut().zip(known).for_each(|(slot, logprob)| *slot = narrow(*logprob));
                let (call, choice) = origin[segment.sampled];
                let judged = &calls[call];
                row_calls.push(RowCall {
                    span_id: judged.call.span_id.clone(),
                    response_id: judged.call.response_id.clone(),
                    choice,
                    start,
                    end,
                    reward: judged.reward,
                });
            }
            let report = &mut self.report;
            report.calls += row_calls.len();
            report.rows += 1;
            report.tokens += length;
            report.trained_tokens += row_calls.iter().map(|call| call.end - call.start).sum::<usize>();
            self.rows.push(Row {
                rollout_id: identity.rollout_id.clone(),
                attempt_id: identity.attempt_id.clone(),
                group: identity.group.clone(),
                agent: last.label.clone(),
                model: model(&last.call).map(str::to_owned),
                sequence: number,
                part,
                token_ids: Vec::new(),
                mask: Vec::new(),
                logprobs: Vec::new(),
                calls: row_calls,
                image_urls: last.call.image_urls().map(str::to_owned).collect(),
                reward: identity.reward,
                advantage: None,
                weight: 0.0,
            });
        }
    }

    /// One that uses the memory of tokens that are not needed any more.
    #[must_use]
    pub fn reusing(mut tokens: Tokens) -> Self {
        tokens.ends.clear();
        tokens.token_ids.clear();
        tokens.mask.clear();
        tokens.logprobs.clear();
        Self { tokens, ..Self::default() }
    }

    /// Takes in what another builder has, behind what is here.
    pub fn append(&mut self, other: Self) {
        let Self { rows, tokens, report, used } = other;
        self.rows.extend(rows);
        self.tokens.append(&tokens);
        self.report.append(report);
        self.used.extend(used);
    }

    /// Takes away the tokens of the rows made so far. What is still to come, advantages and weights, does not depend on them.
    pub fn take_tokens(&mut self) -> Tokens {
        std::mem::take(&mut self.tokens)
    }

    /// The training data of all rollouts taken in.
    #[must_use]
    pub fn finish(mut self, options: &TrainingOptions) -> TrainingData {
        let tokens = self.take_tokens();
        let (mut data, order) = self.finish_with_order(options);
        for (row, place) in data.rows.iter_mut().zip(order) {
            let of_row = tokens.of_row(place);
            row.token_ids = tokens.token_ids[of_row.clone()].to_vec();
            row.mask = tokens.mask[of_row.clone()].to_vec();
            row.logprobs = tokens.logprobs[of_row].to_vec();
        }
        data
    }

    /// The training data of all rollouts taken in, of which the tokens were taken away, and of each row how many were made
    /// before it.
    #[must_use]
    pub fn finish_with_order(self, options: &TrainingOptions) -> (TrainingData, Vec<usize>) {
        let Self { mut rows, tokens: _, mut report, used } = self;
        if let Some(estimator) = options.estimator {
            let groups: Vec<&str> = used.iter().map(|(_, group, _)| group.as_str()).collect();
            let rewards: Vec<Option<f64>> = used.iter().map(|(.., reward)| *reward).collect();
            let of_rollout: HashMap<&str, Option<f64>> = used
                .iter()
                .map(|(id, ..)| id.as_str())
                .zip(advantages(estimator, &groups, &rewards))
                .collect();
            for row in &mut rows {
                row.advantage = of_rollout.get(row.rollout_id.as_str()).copied().flatten();
            }
        }
        let trained = |row: &Row| row.calls.iter().map(|call| call.end - call.start).sum();
        let tokens: Vec<usize> = rows.iter().map(trained).collect();
        let rollouts: Vec<&str> = rows.iter().map(|row| row.rollout_id.as_str()).collect();
        let weights = rollout_weights(&rollouts, &tokens);
        for (row, weight) in rows.iter_mut().zip(weights) {
            row.weight = weight;
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut place: HashMap<&str, usize> = HashMap::new();
        let places = rows.iter().map(|row| {
            let next = place.len();
            *place.entry(&row.group).or_insert(next)
        });
        let places: Vec<usize> = places.collect();
        if !places.is_sorted() {
            order.sort_by_key(|&row| places[row]);
            let mut made: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
            rows = order.iter().filter_map(|&row| made[row].take()).collect();
        }
        report.count_reasons();
        (TrainingData { rows, report }, order)
    }
}

impl Report {
    /// Counts a rollout, and takes over what was left out of it.
    pub fn take_in(&mut self, data: &mut RolloutData) {
        self.rollouts += 1;
        self.calls += data.calls.len();
        *self.outcomes.entry(data.identity.outcome).or_default() += 1;
        self.dropped.append(&mut data.dropped);
        let rewards = std::mem::take(&mut data.reward_report);
        let RewardReport { matched: _, unmatched, unusable, mismatches } = &rewards;
        if !unmatched.is_empty() || !unusable.is_empty() || !mismatches.is_empty() {
            self.rewards.insert(data.identity.rollout_id.clone(), rewards);
        }
    }

    /// Says that a call was left out for want of its token ids.
    pub fn drop_call(&mut self, rollout_id: &str, call: &LlmCall, detail: String) {
        self.dropped.push(Dropped::call(rollout_id, call, Reason::NoTokenIds, detail));
    }

    /// Says that a rollout was left out for how it came out.
    pub fn drop_rollout(&mut self, data: &RolloutData) {
        self.drop_whole(data, data.identity.outcome.reason(), data.identity.detail.clone());
    }

    /// Leaves a rollout out, and says so, if a call of it was not captured whole; whether it was.
    pub fn quarantine(&mut self, data: &RolloutData) -> bool {
        let gap = capture_gap(&data.calls);
        let is_quarantined = gap.is_some();
        gap.into_iter().for_each(|gap| self.drop_whole(data, Reason::CaptureGap, gap));
        is_quarantined
    }

    fn drop_whole(&mut self, data: &RolloutData, reason: Reason, detail: String) {
        self.dropped.push(Dropped {
            rollout_id: data.identity.rollout_id.clone(),
            span_id: None,
            tokens: data.calls.iter().map(JudgedCall::sampled_tokens).sum(),
            reason,
            detail,
        });
    }

    /// Counts what was left out, by reason.
    pub fn count_reasons(&mut self) {
        self.dropped_by_reason.clear();
        for dropped in &self.dropped {
            *self.dropped_by_reason.entry(dropped.reason).or_default() += 1;
        }
    }

    /// Adds the account of other rollouts.
    pub fn add(&mut self, other: Self) {
        self.append(other);
        self.count_reasons();
    }

    fn append(&mut self, other: Self) {
        self.rollouts += other.rollouts;
        self.rollouts_used += other.rollouts_used;
        self.calls += other.calls;
        self.rows += other.rows;
        self.trained_tokens += other.trained_tokens;
        self.tokens += other.tokens;
        self.mismatched.extend(other.mismatched);
        self.dropped.extend(other.dropped);
        self.rewards.extend(other.rewards);
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        for (kind, count) in other.mismatches {
            *self.mismatches.entry(kind).or_default() += count;
        }
    }
}

impl Outcome {
    /// Why a rollout that came out so is left out.
    fn reason(self) -> Reason {
        match self {
            Self::Scored => Reason::NotTrainedOn,
            Self::MissingReward => Reason::MissingReward,
            Self::UnusableReward => Reason::UnusableReward,
            Self::AgentFailure => Reason::AgentFailure,
            Self::InfrastructureFailure => Reason::InfrastructureFailure,
            Self::SpansPurged => Reason::SpansPurged,
            Self::Unfinished => Reason::Unfinished,
        }
    }
}

fn model(call: &LlmCall) -> Option<&str> {
    call.response_model.as_deref().or(call.model.as_deref())
}

#[expect(clippy::cast_possible_truncation, reason = "trainers compute in single precision at most")]
fn narrow(logprob: f64) -> f32 {
    logprob as f32
}
