//! Reading spans: rewards, events, the trace tree, LLM calls and triplets.
//!
//! Everything here is a pure function of the spans given. What others wrote is read forgivingly: an attribute
//! of an unexpected shape is passed over, never an error.

pub mod attributes;
mod error;
mod events;
mod llm;
mod openai;
mod rewards;
mod tree;
mod triplet;

pub use error::Error;
pub use events::{as_triplets, event_span, read_event};
pub use llm::{agent_name, response_id};
pub use openai::{LLM_CALL, chat_attributes, tool_call_attributes};
pub use rewards::{
    PRIMARY, RewardDimension, find_final_reward, find_reward_spans, get_reward_value, get_rewards_from_span,
    is_reward_span, reward_attributes,
};
pub use tree::{TraceTree, tree_to_json};
pub use triplet::{
    RewardMatchPolicy, TripletOptions, prompt_image_urls, prompt_token_ids, response_token_ids,
    spans_to_triplets,
};
