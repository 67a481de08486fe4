use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JsonMap;

/// Prompt, response and reward of one LLM call: the unit of training data.
///
/// ```
/// use agl_types::Triplet;
///
/// let wire = r#"{"prompt": {"token_ids": [1, 2]}, "response": {"token_ids": [3]}, "reward": 0.5, "metadata": {}}"#;
/// let triplet: Triplet = serde_json::from_str(wire).unwrap();
/// assert_eq!((triplet.reward, triplet.response["token_ids"][0].as_u64()), (Some(0.5), Some(3)));
/// ```
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
