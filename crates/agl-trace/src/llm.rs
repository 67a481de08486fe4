//! Which spans are calls of a language model that count, and which agent made them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use agl_types::{Span, semconv};
use fancy_regex::Regex;

use crate::Error;
use crate::attributes::text;
use crate::rewards::is_reward_scope;
use crate::tree::{NodeId, TraceTree};

/// The label of calls outside any agent, when every agent is wanted.
const ANY_AGENT: &str = "*";

/// A pattern with the meaning of Python's `re.search`: it may match anywhere.
#[derive(Debug)]
pub(crate) struct Pattern(Arc<Regex>);

/// Compiling a pattern takes longer than reading a trace with it, and one adapter reads many: the newest are kept.
static COMPILED: Mutex<Vec<(String, Arc<Regex>)>> = Mutex::new(Vec::new());

/// How many patterns are kept.
const COMPILED_AT_MOST: usize = 16;

impl Pattern {
    /// Compiles the value of the option `field`.
    pub(crate) fn new(field: &'static str, pattern: &str) -> Result<Self, Error> {
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = compiled.iter().find(|(known, _)| known == pattern) {
            return Ok(Self(Arc::clone(known)));
        }
        let regex = Regex::new(pattern)
            .map(Arc::new)
            .map_err(|error| Error::Pattern { field, message: error.to_string() })?;
        if compiled.len() == COMPILED_AT_MOST {
            compiled.remove(0);
        }
        compiled.push((pattern.to_owned(), Arc::clone(&regex)));
        Ok(Self(regex))
    }

    /// Whether it matches somewhere; a match that takes too much backtracking counts as none.
    fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text).unwrap_or(false)
    }
}

/// What counts as a call.
pub(crate) struct Selection {
    /// Matches the name of a call's span.
    pub(crate) llm_call: Pattern,
    /// Matches the names of the agents that are wanted; all of them when there is none.
    pub(crate) agent: Option<Pattern>,
    /// Whether calls made while computing a reward are left out.
    pub(crate) exclude_in_reward: bool,
    /// Whether a response that was recorded twice counts once.
    pub(crate) dedup: bool,
}

/// A call that counts.
pub(crate) struct Call<'t> {
    pub(crate) node: NodeId,
    pub(crate) span: &'t Span,
    /// The innermost agent around it.
    pub(crate) agent: &'t str,
}

/// Whether an attribute may be what names an agent.
fn may_name_agent(key: &str) -> bool {
    matches!(
        key,
        "agent.name"
            | "agentops.span.kind"
            | "recipient_agent_type"
            | "langchain.chain.type"
            | "executor.id"
            | "type"
            | "lc_name"
            | "gen_ai.agent.name"
            | "traceloop.span.kind"
            | "langsmith.metadata.langgraph_node"
            | "langsmith.metadata.lc_agent_name"
            | "ai.telemetry.functionId"
            | "graph.node.name"
            | "graph.node.id"
            | "openinference.span.kind"
    )
}

/// Whether [`agent_name`] may look at an attribute.
pub(crate) fn is_about_agent(key: &str) -> bool {
    may_name_agent(key)
        || matches!(key, "operation.name" | "agentlightning.operation.input.name" | "traceloop.entity.name")
}

/// The name of the agent that the span stands for, as the various instrumentations write it.
#[must_use]
pub fn agent_name(span: &Span) -> Option<&str> {
    // Most spans have none of these: a look at their keys is many times faster than asking for each.
    if !span.attributes.keys().any(|key| may_name_agent(key)) {
        return None;
    }
    let attribute = |key: &str| text(&span.attributes, key);
    let when = |condition: bool, key: &str| if condition { attribute(key) } else { None };
    attribute("agent.name") // OpenAI Agents SDK
        .or_else(|| when(attribute("agentops.span.kind") == Some("agent"), "operation.name"))
        .or_else(|| attribute("recipient_agent_type")) // AutoGen
        .or_else(|| attribute("langchain.chain.type")) // LangChain, LangGraph
        .or_else(|| attribute("executor.id")) // Agent Framework
        .or_else(|| when(attribute("type") == Some("agent"), "agentlightning.operation.input.name")) // Weave
        .or_else(|| when(span.name.starts_with("langchain.Chain."), "lc_name"))
        .or_else(|| attribute("gen_ai.agent.name")) // OpenTelemetry, Pydantic AI, Google's ADK
        .or_else(|| when(attribute("traceloop.span.kind") == Some("agent"), "traceloop.entity.name"))
        .or_else(|| attribute("langsmith.metadata.langgraph_node"))
        .or_else(|| attribute("langsmith.metadata.lc_agent_name"))
        .or_else(|| attribute("ai.telemetry.functionId")) // Vercel's AI SDK
        .or_else(|| attribute("graph.node.name").or_else(|| attribute("graph.node.id"))) // OpenInference
        .or_else(|| {
            let is_agent =
                attribute("openinference.span.kind").is_some_and(|kind| kind.eq_ignore_ascii_case("agent"));
            is_agent.then_some(span.name.as_str()).filter(|name| !name.is_empty())
        })
}

/// The role of the agent that the span stands for, as the various instrumentations write it.
#[must_use]
pub fn agent_role(span: &Span) -> Option<&str> {
    ["agent.role", "gen_ai.agent.role", "crewai.agent.role", "agent_role", "agentlightning.agent.role"]
        .iter()
        .find_map(|key| text(&span.attributes, key))
}

/// Where an operation has that.
pub(crate) const OPERATION_RESPONSE_ID: &str = "agentlightning.operation.output.id";

/// The id that the model server gave to the call's response.
#[must_use]
pub fn response_id(span: &Span) -> Option<&str> {
    text(&span.attributes, semconv::GEN_AI_RESPONSE_ID)
        .or_else(|| text(&span.attributes, OPERATION_RESPONSE_ID))
}

/// The calls that count, in pre-order, each response once.
///
/// The innermost agent decides: a call under an agent that is not wanted is hidden even where an outer agent is
/// wanted. A call within a call counts only when it has a response id of its own (instrumentations that sit on
/// top of each other record the same call twice).
pub(crate) fn find_calls<'t>(tree: &'t TraceTree<'_>, selection: &Selection) -> Vec<Call<'t>> {
    #[derive(Clone, Copy)]
    struct Scope<'t> {
        agent: Option<&'t str>,
        in_reward: bool,
        in_call: bool,
    }

    let mut calls = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let outside =
        Scope { agent: selection.agent.is_none().then_some(ANY_AGENT), in_reward: false, in_call: false };
    let mut waiting = vec![(tree.root(), outside)];
    while let Some((node, mut scope)) = waiting.pop() {
        let span = tree.span(node);
        if let Some(agent) = scope.agent
            && !(scope.in_reward && selection.exclude_in_reward)
            && selection.llm_call.is_in(&span.name)
        {
            let is_new = response_id(span).map_or(!scope.in_call, |id| seen.insert(id));
            if is_new || !selection.dedup {
                calls.push(Call { node, span, agent });
                scope.in_call = true;
            }
        }
        if let Some(name) = agent_name(span) {
            let is_wanted = selection.agent.as_ref().is_none_or(|pattern| pattern.is_in(name));
            scope.agent = is_wanted.then_some(name);
        }
        scope.in_reward |= is_reward_scope(span);
        waiting.extend(tree.children(node).iter().rev().map(|&child| (child, scope)));
    }
    calls
}
