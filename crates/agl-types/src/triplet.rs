use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JsonMap;

/// Prompt, response and reward of one LLM call: the unit of training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Triplet {
    /// What the model was given: usually `{"token_ids", "raw_content", "image_urls"}`.
    pub prompt: Value,
    /// What the model answered: usually `{"token_ids", "raw_content"}` and, when known, `"logprobs"`.
    pub response: Value,
    /// How good the answer was, if anything judged it.
    #[serde(default)]
    pub reward: Option<f64>,
    /// Request, response, response id and agent name.
    #[serde(default)]
    pub metadata: JsonMap,
}
