//! Which agent framework a span is of, by what its instrumentations leave in it.

use agl_types::Span;
use serde::{Deserialize, Serialize};

use crate::attributes::text;

/// A framework for agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framework {
    /// LangChain and LangGraph.
    LangChain,
    /// AutoGen.
    AutoGen,
    /// Crew AI.
    CrewAi,
    /// OpenAI's Agents SDK.
    OpenAiAgents,
    /// Microsoft's Agent Framework.
    AgentFramework,
    /// Pydantic AI.
    PydanticAi,
    /// Google's Agent Development Kit.
    GoogleAdk,
    /// LlamaIndex.
    LlamaIndex,
    /// smolagents.
    Smolagents,
    /// DSPy.
    Dspy,
    /// Vercel's AI SDK.
    Vercel,
}

/// Beginnings of attribute keys, and words in names of spans and in their scopes, for each framework.
const MARKS: [(Framework, &[&str], &[&str]); 11] = [
    (
        Framework::LangChain,
        &["langchain.", "langsmith.", "lc_name", "langgraph."],
        &["langchain", "langgraph", "chat_model.llm"],
    ),
    (Framework::AutoGen, &["recipient_agent_type", "recipient_agent_class", "autogen."], &["autogen"]),
    (Framework::CrewAi, &["crewai.", "crew_", "crew."], &["crewai", "Crew_", "crew.kickoff"]),
    (Framework::AgentFramework, &["executor.", "workflow.id"], &["agent_framework"]),
    (Framework::PydanticAi, &["pydantic_ai.", "logfire."], &["pydantic-ai", "pydantic_ai"]),
    (Framework::GoogleAdk, &["gcp.vertex.agent."], &["google.adk", "google_adk", "gcp.vertex.agent"]),
    (Framework::LlamaIndex, &["llama_index."], &["llama_index", "llamaindex"]),
    (Framework::Smolagents, &["smolagents."], &["smolagents", "CodeAgent.", "ToolCallingAgent."]),
    (Framework::Dspy, &["dspy."], &["dspy", "ChainOfThought.", "Predict.forward"]),
    (Framework::Vercel, &["ai.operationId", "ai.model."], &[]),
    // The word `agent.name` is what others write too.
    (
        Framework::OpenAiAgents,
        &["agent.name", "agent.tools", "agent.handoffs"],
        &["openai_agents", "openai-agents"],
    ),
];

/// The framework that the span is of; none when it has the mark of none.
#[must_use]
pub fn framework(span: &Span) -> Option<Framework> {
    let scope = ["otel.scope.name", "otel.library.name"].iter().find_map(|key| text(&span.attributes, key));
    let system =
        text(&span.attributes, "gen_ai.system").or_else(|| text(&span.attributes, "gen_ai.provider.name"));
    let mut marks = MARKS.iter();
    let found = marks.find(|(_, keys, words)| {
        let has_key = span.attributes.keys().any(|key| keys.iter().any(|mark| key.starts_with(mark)));
        let has_word = |place: &str| words.iter().any(|word| place.contains(word));
        has_key || has_word(&span.name) || scope.is_some_and(has_word) || system.is_some_and(has_word)
    });
    found.map(|(framework, ..)| *framework)
}

/// How many spans are of each framework, the most frequent first.
#[must_use]
pub fn frameworks(spans: &[Span]) -> Vec<(Framework, usize)> {
    let mut counts: std::collections::BTreeMap<Framework, usize> = std::collections::BTreeMap::new();
    for framework in spans.iter().filter_map(framework) {
        *counts.entry(framework).or_default() += 1;
    }
    let mut counts: Vec<(Framework, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(framework, count)| (std::cmp::Reverse(*count), *framework));
    counts
}
