//! Which call a reward is for, and what every call earns.
//!
//! Rewards find their calls by what they say themselves: a link first, then the span that they were given in, then
//! their place in the order. Sequence ids decide what came before; clocks only where those are equal.

use std::collections::{BTreeMap, HashMap};

use agl_types::{Span, semconv};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attributes::below;
use crate::reading::Reading;
use crate::rewards::{RewardDimension, get_rewards_from_span, given_reward, may_give_rewards};
use crate::tree::NodeId;

/// How calls come by their rewards.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assigner {
    /// A call has the last reward that was matched with it; most have none.
    #[default]
    Matched,
    /// Every call has the attempt's final reward.
    Identical,
    /// The last call has the final reward, the one before it `gamma` times that, and so on backwards.
    Discounted {
        /// Between 0 and 1.
        gamma: f64,
    },
    /// Every call has the last reward that was matched with a call of its agent, or the final one if there is none.
    PerAgent,
    /// The last call has the final reward, the others none.
    LastCall,
}

/// A reward that a call was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallReward {
    /// The span that gave it.
    pub span_id: String,
    /// Its value: the primary dimension, or the item of a sequence.
    pub value: f64,
    /// All of its dimensions.
    pub dimensions: Vec<RewardDimension>,
    /// Why this call.
    pub by: MatchedBy,
}

/// Why a reward is a call's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchedBy {
    /// The reward links to it.
    Link,
    /// The reward was given in a span that the call was made in, or that is the call.
    Parent,
    /// It was the newest call when the reward was given.
    Order,
    /// It is the step of that number.
    Step,
}

/// What became of the rewards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RewardReport {
    /// How many rewards a call was found for.
    pub matched: usize,
    /// Those that none was found for, and why.
    pub unmatched: Vec<Unmatched>,
    /// Those that nothing can be learned from, and why.
    pub unusable: Vec<Unusable>,
    /// Sequences that are not one for each step there was.
    pub mismatches: Vec<SequenceMismatch>,
}

/// A reward that no call was found for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unmatched {
    /// The span that gave it.
    pub span_id: String,
    /// Its value.
    pub value: f64,
    /// Why.
    pub reason: String,
}

/// A reward that nothing can be learned from. It is none of any call's, and none of the attempt's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The span that gave it.
    pub span_id: String,
    /// Its dimension.
    pub dimension: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A sequence of rewards that is not one for each step there was. Those that there are both of are matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceMismatch {
    /// The span that gave it.
    pub span_id: String,
    /// How many rewards it has.
    pub rewards: usize,
    /// How many calls there were.
    pub steps: usize,
}

/// The rewards of an attempt, matched with its calls.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    /// Those of each call, in the order in which they were given.
    pub(crate) of_call: Vec<Vec<CallReward>>,
    /// The last one that was given, with what is unusable of it.
    pub(crate) last: Option<Vec<RewardDimension>>,
    pub(crate) report: RewardReport,
}

/// Beginning of the name of a dimension that is the reward of one step, which its number follows.
const STEP: &str = "step.";

/// The steps' rewards, each with the number of its step, if the span gives any: dimensions `step.0`, `step.1` and so on, or a
/// list of numbers in `agentlightning.reward` or `agentlightning.reward.steps`.
#[must_use]
pub fn step_rewards(span: &Span) -> Option<Vec<(usize, f64)>> {
    let dimensions = get_rewards_from_span(span);
    let number = |dimension: &RewardDimension| dimension.name.strip_prefix(STEP)?.parse().ok();
    let mut steps: Vec<(usize, f64)> =
        dimensions.iter().filter_map(|dimension| Some((number(dimension)?, dimension.value))).collect();
    if !steps.is_empty() {
        steps.sort_by_key(|(number, _)| *number);
        return Some(steps);
    }
    ["agentlightning.reward.steps", semconv::REWARD].iter().find_map(|key| {
        let values: Option<Vec<f64>> =
            span.attributes.get(*key)?.as_array()?.iter().map(Value::as_f64).collect();
        Some(values?.into_iter().enumerate().collect())
    })
}

/// Whether a span gives a reward, or several, in any way that is read here.
#[must_use]
pub fn gives_rewards(span: &Span) -> bool {
    may_give_rewards(span) && (given_reward(span).is_some() || step_rewards(span).is_some())
}

/// The pairs of key and value that a span links to others by.
fn links(span: &Span) -> Vec<(String, String)> {
    let mut links: BTreeMap<u64, (Option<String>, Option<String>)> = BTreeMap::new();
    for (key, value) in below(&span.attributes, semconv::LINK) {
        let Some((number, field)) = key.split_once('.') else { continue };
        let Ok(number) = number.parse() else { continue };
        let link = links.entry(number).or_default();
        match field {
            "key_match" => link.0 = Some(crate::call::as_text(value)),
            "value_match" => link.1 = Some(crate::call::as_text(value)),
            _ => {}
        }
    }
    links.into_values().filter_map(|(key, value)| Some((key?, value?))).collect()
}

fn is_linked(span: &Span, links: &[(String, String)]) -> bool {
    links.iter().all(|(key, value)| match key.as_str() {
        "span_id" => span.span_id == *value,
        "trace_id" => span.trace_id == *value,
        "rollout_id" => span.rollout_id == *value,
        "attempt_id" => span.attempt_id == *value,
        "name" => span.name == *value,
        key => span.attributes.get(key).is_some_and(|found| crate::call::as_text(found) == *value),
    })
}

/// Matches the rewards of an attempt with those of its calls for which `is_wanted`.
pub(crate) fn match_rewards(reading: &Reading<'_>, is_wanted: &[bool]) -> Credit {
    let tree = &reading.tree;
    let mut credit = Credit { of_call: vec![Vec::new(); reading.calls.len()], ..Credit::default() };
    let nodes: Vec<NodeId> = tree.pre_order(tree.root()).collect();
    let mut judging: Vec<NodeId> =
        nodes.iter().copied().filter(|&node| gives_rewards(tree.span(node))).collect();
    if judging.is_empty() {
        return credit;
    }
    // Where a node and all below it are in pre-order.
    let mut place = vec![(0, 0); nodes.iter().max().map_or(0, |last| last + 1)];
    for (at, &node) in nodes.iter().enumerate() {
        place[node] = (at, at + 1);
    }
    for &node in nodes.iter().rev() {
        if let Some(parent) = tree.parent(node) {
            place[parent].1 = place[parent].1.max(place[node].1);
        }
    }
    judging.sort_by_key(|&node| (tree.span(node).sequence_id, place[node].0));
    let is_within =
        |node: NodeId, scope: NodeId| place[scope].0 <= place[node].0 && place[node].0 < place[scope].1;
    let wanted = || (0..reading.calls.len()).filter(|&call| is_wanted[call]);
    let within =
        |call: usize, scope: NodeId| reading.calls[call].nodes.iter().any(|&node| is_within(node, scope));

    for node in judging {
        let span = tree.span(node);
        let parent = tree.parent(node);
        if let Some(items) = step_rewards(span) {
            // What counts of a sequence where one number is asked for is its sum.
            let mut whole = dimensions(span, items.iter().map(|(_, value)| value).sum());
            credit.tell_unusable(span, &whole);
            whole.retain(|dimension| !dimension.name.starts_with(STEP));
            credit.last = Some(whole);
            // The steps of the agent that was judged, if it was one.
            let scope = parent.filter(|&parent| wanted().any(|call| within(call, parent)));
            let steps: Vec<usize> =
                wanted().filter(|&call| scope.is_none_or(|scope| within(call, scope))).collect();
            if !items.iter().map(|(number, _)| *number).eq(0..steps.len()) {
                credit.report.mismatches.push(SequenceMismatch {
                    span_id: span.span_id.clone(),
                    rewards: items.len(),
                    steps: steps.len(),
                });
            }
            for (number, value) in items {
                match steps.get(number) {
                    _ if !value.is_finite() => {}
                    Some(&call) => credit.give(call, span, value, MatchedBy::Step),
                    None => credit.pass_over(
                        span,
                        value,
                        format!("there is no call number {number} to be rewarded"),
                    ),
                }
            }
            continue;
        }
        let Some(value) = given_reward(span) else { continue };
        let given = dimensions(span, value);
        credit.tell_unusable(span, &given);
        credit.last = Some(given);
        if !value.is_finite() {
            continue;
        }
        let is_earlier = |call: &usize| came_before(reading, *call, span);
        let links = links(span);
        if !links.is_empty() {
            let targets: Vec<NodeId> = nodes
                .iter()
                .copied()
                .filter(|&target| target != node && is_linked(tree.span(target), &links))
                .collect();
            let itself =
                wanted().find(|&call| reading.calls[call].nodes.iter().any(|node| targets.contains(node)));
            let below = || wanted().rfind(|&call| targets.iter().any(|&target| within(call, target)));
            match itself.or_else(below) {
                Some(call) => credit.give(call, span, value, MatchedBy::Link),
                None => credit.pass_over(span, value, "no call is what it links to".to_owned()),
            }
            continue;
        }
        // The innermost span around both the reward and a call before it; of the calls in it, the newest. Intervals of
        // ancestors lie within each other.
        let ancestors: Vec<NodeId> = std::iter::successors(parent, |&node| tree.parent(node)).collect();
        let shared = |call: usize| {
            let nodes = reading.calls[call].nodes.iter();
            nodes
                .map(|&node| ancestors.partition_point(|&scope| !is_within(node, scope)))
                .min()
                .unwrap_or(usize::MAX)
        };
        let earlier = wanted().filter(is_earlier).map(|call| (shared(call), call));
        let innermost = earlier.min_by(|(a, first), (b, second)| a.cmp(b).then(second.cmp(first)));
        let found = innermost.and_then(|(depth, call)| Some((call, *ancestors.get(depth)?)));
        match found {
            Some((call, scope)) if scope != tree.root() => credit.give(call, span, value, MatchedBy::Parent),
            Some((call, _)) => credit.give(call, span, value, MatchedBy::Order),
            None => credit.pass_over(span, value, "no call came before it".to_owned()),
        }
    }
    credit
}

/// Whether a call was over when the reward was given.
fn came_before(reading: &Reading<'_>, call: usize, reward: &Span) -> bool {
    let found = &reading.calls[call];
    // Within the call itself: the reward judges the answer that it was called with.
    let is_around = |node: &NodeId| {
        let span = reading.tree.span(*node);
        reward.parent_id.as_deref() == Some(span.span_id.as_str())
    };
    if found.nodes.iter().any(is_around) {
        return true;
    }
    match found.call.sequence_id.cmp(&reward.sequence_id) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Equal => match (found.call.end_time, reward.start_time) {
            (Some(end), Some(start)) => end <= start,
            _ => true,
        },
    }
}

fn dimensions(span: &Span, value: f64) -> Vec<RewardDimension> {
    let dimensions = get_rewards_from_span(span);
    if dimensions.is_empty() {
        return vec![RewardDimension { name: crate::rewards::PRIMARY.to_owned(), value }];
    }
    dimensions
}

/// What is wrong with a reward of this value.
pub(crate) fn no_finite_number(value: f64) -> String {
    format!("{value} is no finite number")
}

impl Credit {
    fn give(&mut self, call: usize, span: &Span, value: f64, by: MatchedBy) {
        self.report.matched += 1;
        let mut dimensions = dimensions(span, value);
        dimensions.retain(|dimension| dimension.value.is_finite());
        self.of_call[call].push(CallReward { span_id: span.span_id.clone(), value, dimensions, by });
    }

    fn tell_unusable(&mut self, span: &Span, given: &[RewardDimension]) {
        let unusable = given.iter().filter(|dimension| !dimension.value.is_finite());
        self.report.unusable.extend(unusable.map(|RewardDimension { name, value }| Unusable {
            span_id: span.span_id.clone(),
            dimension: name.clone(),
            reason: no_finite_number(*value),
        }));
    }

    fn pass_over(&mut self, span: &Span, value: f64, reason: String) {
        self.report.unmatched.push(Unmatched { span_id: span.span_id.clone(), value, reason });
    }
}

/// What each of the calls earns; `agents` are their labels, `matched` the values of the rewards matched with them, in
/// the calls' order. A reward that is missing stays missing.
#[must_use]
pub fn assign(
    assigner: Assigner,
    agents: &[Option<&str>],
    matched: &[Option<f64>],
    final_reward: Option<f64>,
) -> Vec<Option<f64>> {
    let count = matched.len();
    match assigner {
        Assigner::Matched => matched.to_vec(),
        Assigner::Identical => vec![final_reward; count],
        Assigner::Discounted { gamma } => {
            let mut earned = vec![None; count];
            let mut value = final_reward;
            for earned in earned.iter_mut().rev() {
                *earned = value;
                value = value.map(|value| value * gamma);
            }
            earned
        }
        Assigner::PerAgent => {
            let mut last: HashMap<Option<&str>, f64> = HashMap::new();
            for (agent, value) in agents.iter().zip(matched) {
                if let Some(value) = value {
                    last.insert(*agent, *value);
                }
            }
            agents.iter().map(|agent| last.get(agent).copied().or(final_reward)).collect()
        }
        Assigner::LastCall => {
            let mut earned = vec![None; count];
            if let Some(last) = earned.last_mut() {
                *last = final_reward;
            }
            earned
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assigners() {
        let agents = [Some("a"), Some("b"), Some("a"), None];
        let matched = [Some(0.25), None, Some(0.5), None];
        let earned = |assigner| assign(assigner, &agents, &matched, Some(1.0));
        assert_eq!(earned(Assigner::Matched), matched);
        assert_eq!(earned(Assigner::Identical), [Some(1.0); 4]);
        assert_eq!(
            earned(Assigner::Discounted { gamma: 0.5 }),
            [Some(0.125), Some(0.25), Some(0.5), Some(1.0)]
        );
        assert_eq!(earned(Assigner::PerAgent), [Some(0.5), Some(1.0), Some(0.5), Some(1.0)]);
        assert_eq!(earned(Assigner::LastCall), [None, None, None, Some(1.0)]);
        for assigner in [Assigner::Identical, Assigner::Discounted { gamma: 0.5 }, Assigner::LastCall] {
            assert_eq!(
                assign(assigner, &agents, &matched, None),
                [None; 4],
                "a missing reward is never made up"
            );
        }
        assert!(assign(Assigner::LastCall, &[], &[], Some(1.0)).is_empty());
    }
}
