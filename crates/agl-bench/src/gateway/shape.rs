//! What is asked for, the same for everybody.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// Tokens of an answer.
pub(crate) const TOKENS: usize = 300;

/// How long a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Length {
    Short,
    Long,
}

impl Length {
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::Short => 1_000,
            Self::Long => 20_000,
        }
    }
}

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) prompt: Length,
    pub(crate) stream: bool,
}

impl Shape {
    pub(crate) const ALL: [Self; 4] = [
        Self { prompt: Length::Short, stream: false },
        Self { prompt: Length::Short, stream: true },
        Self { prompt: Length::Long, stream: false },
        Self { prompt: Length::Long, stream: true },
    ];

    pub(crate) fn title(self) -> &'static str {
        match (self.prompt, self.stream) {
            (Length::Short, false) => "1k, plain",
            (Length::Short, true) => "1k, streamed",
            (Length::Long, false) => "20k, plain",
            (Length::Long, true) => "20k, streamed",
        }
    }

    /// A whole request; `asks` is whether the client itself asks for token ids and log-probs.
    pub(crate) fn request(self, path: &str, asks: bool) -> Vec<u8> {
        let prompt: String = (0..self.prompt.tokens()).map(|at| format!("w{} ", at % 1000)).collect();
        let mut body = json!({
            "model": "policy",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 1.0,
        });
        if self.stream {
            body["stream"] = true.into();
        }
        if asks {
            body["return_token_ids"] = true.into();
            body["logprobs"] = true.into();
        }
        if asks && self.stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        let body = body.to_string();
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: */*\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}
