//! A step of a decision process: what the model saw, what it did, and what that earned.

use agl_types::Triplet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::{TokenId, token_ids};
use crate::training::JudgedCall;

/// What the model saw, what it did, and what that earned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// The tokens of the prompt.
    pub state: Vec<TokenId>,
    /// The tokens of the response.
    pub action: Vec<TokenId>,
    /// The id that the engine gave to the response.
    pub response_id: Option<String>,
    /// The agent that made the call.
    pub agent_name: String,
    /// What it earned.
    pub reward: Option<f64>,
}

/// A call whose token ids are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the call {} has no token ids of its {part}: have the engine return them (vLLM: return_token_ids), or send calls \
     through the gateway", response_id.as_deref().unwrap_or("without a response id")
)]
pub struct MissingTokenIds {
    /// Prompt or response.
    pub part: &'static str,
    /// The id of the response.
    pub response_id: Option<String>,
}

impl TryFrom<&Triplet> for Transition {
    type Error = MissingTokenIds;

    fn try_from(triplet: &Triplet) -> Result<Self, MissingTokenIds> {
        let text = |key: &str| triplet.metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        let ids = |part: &'static str, value: &Value| {
            let ids = value.get("token_ids").and_then(token_ids).filter(|ids| !ids.is_empty());
            ids.ok_or_else(|| MissingTokenIds { part, response_id: text("response_id") })
        };
        Ok(Self {
            state: ids("prompt", &triplet.prompt)?,
            action: ids("response", &triplet.response)?,
            response_id: text("response_id"),
            agent_name: text("agent_name").unwrap_or_default(),
            reward: triplet.reward,
        })
    }
}

impl TryFrom<&JudgedCall> for Transition {
    type Error = MissingTokenIds;

    fn try_from(judged: &JudgedCall) -> Result<Self, MissingTokenIds> {
        let call = &judged.call;
        let ids = |part: &'static str, ids: &[TokenId]| {
            if ids.is_empty() {
                return Err(MissingTokenIds { part, response_id: call.response_id.clone() });
            }
            Ok(ids.to_vec())
        };
        Ok(Self {
            state: ids("prompt", &call.prompt_token_ids)?,
            action: ids("response", call.response_token_ids())?,
            response_id: call.response_id.clone(),
            agent_name: judged.label.clone().unwrap_or_default(),
            reward: judged.reward,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_triplet_with_ids_is_a_transition_and_one_without_is_refused() {
        let triplet = |prompt: Value, response: Value| -> Triplet {
            serde_json::from_value(json!({
                "prompt": {"token_ids": prompt}, "response": {"token_ids": response}, "reward": 0.5,
                "metadata": {"response_id": "r", "agent_name": "a"},
            }))
            .unwrap()
        };
        let transition = Transition::try_from(&triplet(json!([1, 2]), json!([3]))).unwrap();
        assert_eq!((transition.state, transition.action), (vec![1, 2], vec![3]));
        assert_eq!((transition.agent_name.as_str(), transition.reward), ("a", Some(0.5)));
        let error = Transition::try_from(&triplet(json!([1]), json!([]))).unwrap_err();
        assert_eq!(error, MissingTokenIds { part: "response", response_id: Some("r".to_owned()) });
        assert!(error.to_string().contains("call r has no token ids of its response"), "{error}");
        assert!(Transition::try_from(&triplet(json!([-1]), json!([1]))).is_err());
    }
}
