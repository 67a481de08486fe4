//! Reading spans: rewards, events, the trace tree, the calls of language models, and what is learned from: triplets,
//! transitions, trajectories, messages.
//!
//! Everything here is a pure function of the spans given. What others wrote is read forgivingly: an attribute
//! of an unexpected shape is passed over, never an error.

pub mod advantage;
mod agents;
pub mod atif;
pub mod attributes;
mod auto;
mod call;
mod credit;
mod dialect;
mod error;
mod events;
mod framework;
mod import;
mod llm;
mod messages;
mod openai;
mod reading;
mod rewards;
mod training;
pub mod trajectory;
mod transition;
mod tree;
mod triplet;

pub use agents::{AgentOptions, AgentRule, AgentSelection};
pub use auto::{AutoOptions, AutoTriplets, auto_triplets, call_triplet};
pub use call::{Choice, LlmCall, Message, Part, TokenId, Tool, ToolCall, Usage};
pub use credit::{
    Assigner, CallReward, MatchedBy, RewardReport, SequenceMismatch, Unmatched, Unusable, assign,
    gives_rewards, step_rewards,
};
pub use dialect::litellm::opened as python_value;
pub use dialect::{Dialect, chat_call, read_call, read_generic};
pub use error::Error;
pub use events::{as_triplets, event_span, read_event};
pub use framework::{Framework, framework, frameworks};
pub use import::{Imported, conversation, logged_call};
pub use llm::{agent_name, agent_role, response_id};
pub use messages::{
    Conversation, OpenAiMessages, PreferencePair, conversations, preference_pairs, spans_to_messages,
};
pub use openai::{LLM_CALL, chat_attributes, tool_call_attributes};
pub use reading::{dialects, read_calls};
pub use rewards::{
    PRIMARY, RewardDimension, find_final_reward, find_reward_spans, get_reward_value, get_rewards_from_span,
    is_reward_span, reward_attributes,
};
pub use training::{
    Builder, Dropped, Identity, JudgedCall, Level, Outcome, Reason, Report, RolloutData, RolloutTrace, Row,
    RowCall, Tokens, TrainingData, TrainingOptions, read_rollout, training_data,
};
pub use transition::{MissingTokenIds, Transition};
pub use tree::{NodeId, TraceTree, tree_to_json};
pub use triplet::{
    PROMPT_IDS, RESPONSE_IDS, RewardMatchPolicy, TreeCall, TripletOptions, prompt_image_urls,
    prompt_token_ids, response_token_ids, shapes_trace, span_to_triplet, spans_to_triplets, tree_calls,
};
