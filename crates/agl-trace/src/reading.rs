//! The calls of one attempt, whoever recorded them: found in the tree, joined where several recorded the same one, and
//! given to the agents that made them.

use std::collections::{HashMap, HashSet};

use agl_types::Span;

use crate::Error;
use crate::call::{KnownIds, LlmCall};
use crate::dialect::{Dialect, read_call, read_call_after};
use crate::llm::{agent_name, agent_role};
use crate::rewards::is_reward_scope;
use crate::tree::{NodeId, TraceTree};

/// The calls of one attempt, in its order, and where they are in its tree.
pub(crate) struct Reading<'a> {
    pub(crate) tree: TraceTree<'a>,
    pub(crate) calls: Vec<Found>,
}

/// A call in its tree.
pub(crate) struct Found {
    pub(crate) call: LlmCall,
    /// The nodes of the spans that recorded it, the outermost first.
    pub(crate) nodes: Vec<NodeId>,
    /// Whether it was made to compute a reward.
    pub(crate) in_reward: bool,
    /// The number of the call that it was made in, in pre-order.
    outer: Option<usize>,
}

/// Reads every call of an attempt.
///
/// The order of the spans given does not matter: sequence ids decide, then times, then ids.
///
/// # Errors
/// [`Error::NoSpans`] without spans.
pub(crate) fn read<'a>(spans: &'a [Span], repair_hierarchy: bool) -> Result<Reading<'a>, Error> {
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by(|a, b| in_order(a, b));
    let mut tree = TraceTree::of_all(ordered)?;
    if repair_hierarchy {
        tree.repair_hierarchy();
    }
    let calls = join(find(&tree));
    Ok(Reading { tree, calls })
}

fn in_order(a: &Span, b: &Span) -> std::cmp::Ordering {
    let time = |span: &Span| span.start_time.unwrap_or(f64::INFINITY);
    let by_id = || (&a.trace_id, &a.span_id, &a.name).cmp(&(&b.trace_id, &b.span_id, &b.name));
    // Two that differ in nothing of this are told apart by all that they say, so that it does not matter who comes first.
    let whole = |span: &Span| serde_json::to_string(span).unwrap_or_default();
    let by_all = || whole(a).cmp(&whole(b));
    a.sequence_id.cmp(&b.sequence_id).then(time(a).total_cmp(&time(b))).then_with(by_id).then_with(by_all)
}

/// Every span that records a call, in pre-order, with the innermost agent around it.
fn find(tree: &TraceTree<'_>) -> Vec<Found> {
    #[derive(Clone, Copy, Default)]
    struct Scope<'t> {
        agent: Option<&'t str>,
        role: Option<&'t str>,
        in_reward: bool,
        outer: Option<usize>,
    }
    let mut found = Vec::new();
    let mut known = KnownIds::default();
    let mut waiting = vec![(tree.root(), Scope::default())];
    while let Some((node, mut scope)) = waiting.pop() {
        let span = tree.span(node);
        let children: Vec<&Span> = tree.children(node).iter().map(|&child| tree.span(child)).collect();
        let name = agent_name(span);
        if let Some(mut call) = read_call_after(span, &children, &mut known, &found) {
            // A call that nobody is around may say itself whose it is.
            call.agent = scope.agent.or(name).map(str::to_owned);
            call.role = scope.role.or_else(|| agent_role(span)).map(str::to_owned);
            found.push(Found { call, nodes: vec![node], in_reward: scope.in_reward, outer: scope.outer });
            scope.outer = Some(found.len() - 1);
        } else if name.is_some() {
            scope.agent = name;
            scope.role = agent_role(span);
        }
        scope.in_reward |= is_reward_scope(span);
        waiting.extend(tree.children(node).iter().rev().map(|&child| (child, scope)));
    }
    found
}

/// Makes one call of the spans that recorded the same one, and puts the calls in order.
///
/// Spans of different conventions with one response id are one call, and so are a span and one within it, unless they
/// have different response ids. Two spans of one convention beside each other are two calls, whatever their ids: an
/// engine may answer twice alike.
fn join(found: Vec<Found>) -> Vec<Found> {
    // The call that each one is part of.
    let mut whole: Vec<usize> = (0..found.len()).collect();
    let mut has_inner = vec![false; found.len()];
    for index in (0..found.len()).rev() {
        let Some(outer) = found[index].outer else { continue };
        let id = |index: usize| found[index].call.response_id.as_deref();
        let is_same = match (id(outer), id(index)) {
            (Some(outer), Some(inner)) => outer == inner,
            (_, None) => true,
            // The last one within is the one that succeeded.
            (None, Some(_)) => !has_inner[outer],
        };
        if is_same {
            whole[index] = outer;
            has_inner[outer] |= id(index).is_some();
        }
    }
    let root = |whole: &[usize], mut index: usize| {
        while whole[index] != index {
            index = whole[index];
        }
        index
    };
    // An outer span without an id has that of what is within it.
    let mut response_id: Vec<Option<&str>> =
        found.iter().map(|found| found.call.response_id.as_deref()).collect();
    for index in 0..found.len() {
        let outer = root(&whole, index);
        response_id[outer] = response_id[outer].or(response_id[index]);
    }
    // Of each convention the nth span with an id is the nth call with it.
    let mut count: HashMap<(&str, Dialect), usize> = HashMap::new();
    let mut nth: HashMap<(&str, usize), usize> = HashMap::new();
    for index in 0..found.len() {
        let Some(id) = response_id[index].filter(|_| whole[index] == index) else { continue };
        let number = count.entry((id, found[index].call.dialect)).or_default();
        *number += 1;
        let first = *nth.entry((id, *number)).or_insert(index);
        whole[index] = first;
    }

    let mut parts: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
    for index in 0..found.len() {
        parts[root(&whole, index)].push(index);
    }
    let mut found: Vec<Option<Found>> = found.into_iter().map(Some).collect();
    let mut joined: Vec<Found> = Vec::new();
    for parts in parts {
        let mut parts = parts.into_iter().filter_map(|index| found[index].take());
        let Some(mut first) = parts.next() else { continue };
        parts.for_each(|part| first.take_in(part));
        joined.push(first);
    }
    joined.sort_by(|a, b| {
        let time = |found: &Found| found.call.start_time.unwrap_or(f64::INFINITY);
        a.call.sequence_id.cmp(&b.call.sequence_id).then(time(a).total_cmp(&time(b)))
    });
    joined
}

impl Found {
    /// Adds what another span knows of the same call. The gateway's word on tokens and messages counts most; the agent
    /// is whom the first span to know one names.
    fn take_in(&mut self, other: Self) {
        let Self { call: mut other, nodes, in_reward, outer: _ } = other;
        self.nodes.extend(nodes);
        self.in_reward |= in_reward;
        let call = &mut self.call;
        if other.dialect == Dialect::Gateway && call.dialect != Dialect::Gateway {
            std::mem::swap(call, &mut other);
            // The span stays that of the outermost.
            std::mem::swap(&mut call.span_id, &mut other.span_id);
            std::mem::swap(&mut call.joined, &mut other.joined);
            (call.agent, other.agent) = (other.agent.take(), call.agent.take());
            (call.role, other.role) = (other.role.take(), call.role.take());
        }
        call.joined.push(other.span_id);
        call.joined.append(&mut other.joined);
        call.sequence_id = call.sequence_id.min(other.sequence_id);
        fn fill<T>(mine: &mut Option<T>, theirs: Option<T>) {
            if mine.is_none() {
                *mine = theirs;
            }
        }
        fn fill_list<T>(mine: &mut Vec<T>, theirs: Vec<T>) {
            if mine.is_empty() {
                *mine = theirs;
            }
        }
        fill(&mut call.response_id, other.response_id);
        fill(&mut call.agent, other.agent);
        fill(&mut call.role, other.role);
        fill(&mut call.model, other.model);
        fill(&mut call.response_model, other.response_model);
        fill(&mut call.usage.prompt_tokens, other.usage.prompt_tokens);
        fill(&mut call.usage.completion_tokens, other.usage.completion_tokens);
        fill(&mut call.start_time, other.start_time);
        fill(&mut call.end_time, other.end_time);
        fill(&mut call.gap, other.gap);
        fill_list(&mut call.messages, other.messages);
        fill_list(&mut call.tools, other.tools);
        fill_list(&mut call.prompt_token_ids, other.prompt_token_ids);
        if call.parameters.is_empty() {
            call.parameters = other.parameters;
        }
        // An attempt at the call that failed is no failure of the call.
        if other.error.is_none() {
            call.error = None;
        }
        if call.choices.is_empty() {
            call.choices = other.choices;
        } else {
            for (mine, theirs) in call.choices.iter_mut().zip(other.choices) {
                if mine.token_ids.is_empty() {
                    mine.token_ids = theirs.token_ids;
                    mine.logprobs = theirs.logprobs;
                } else if mine.logprobs.is_empty() && theirs.logprobs.len() == mine.token_ids.len() {
                    mine.logprobs = theirs.logprobs;
                }
                fill(&mut mine.finish_reason, theirs.finish_reason);
                fill_list(&mut mine.message.tool_calls, theirs.message.tool_calls);
                fill_list(&mut mine.message.parts, theirs.message.parts);
            }
        }
    }
}

/// Every call of an attempt, in its order, whoever recorded it.
///
/// The order of the spans given does not matter. Of an attempt without spans there are none.
#[must_use]
pub fn read_calls(spans: &[Span]) -> Vec<LlmCall> {
    read(spans, true)
        .map(|reading| reading.calls.into_iter().map(|found| found.call).collect())
        .unwrap_or_default()
}

/// How many calls each convention recorded, joined ones counted once for each that recorded them.
#[must_use]
pub fn dialects(spans: &[Span]) -> Vec<(Dialect, usize)> {
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    for span in spans {
        if let Some(parent) = span.parent_id.as_deref() {
            children.entry(parent).or_default().push(span);
        }
    }
    let mut seen = HashSet::new();
    let mut counts: std::collections::BTreeMap<Dialect, usize> = std::collections::BTreeMap::new();
    for span in spans.iter().filter(|span| seen.insert(&span.span_id)) {
        let below = children.get(span.span_id.as_str()).map(Vec::as_slice).unwrap_or_default();
        if let Some(call) = read_call(span, below) {
            *counts.entry(call.dialect).or_default() += 1;
        }
    }
    counts.into_iter().collect()
}
