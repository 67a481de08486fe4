//! OpenAI's requests and responses, with vLLM's additions.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod fields;
pub(crate) mod tools;

use crate::engine::{Finish, GenerateRequest};
use crate::error::Result;
use crate::sampling::Sampling;
use crate::tokenizer::Tokenizer;
use fields::Fields;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a response says when it was made; nothing depends on it")]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// A random id with a prefix.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{:032x}", rand::random::<u128>())
}

/// What both kinds of request share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) stream: bool,
    /// `stream_options.include_usage`.
    pub(crate) include_usage: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) request: GenerateRequest,
}

/// Parameters that would change the answer in ways we can't, with the values at which they don't.
fn refuse_unsupported(fields: &mut Fields) -> Result<()> {
    for (name, neutral) in [
        ("frequency_penalty", json!(0)),
        ("presence_penalty", json!(0)),
        ("repetition_penalty", json!(1)),
        ("length_penalty", json!(1)),
        ("min_p", json!(0)),
        ("min_tokens", json!(0)),
        ("logit_bias", json!({})),
        ("echo", json!(false)),
        ("suffix", json!("")),
        ("use_beam_search", json!(false)),
        ("stop_token_ids", json!([])),
        ("store", json!(false)),
        ("skip_special_tokens", json!(true)),
        ("spaces_between_special_tokens", json!(true)),
        ("include_stop_str_in_output", json!(false)),
        ("add_generation_prompt", json!(true)),
        ("continue_final_message", json!(false)),
    ] {
        fields.only(name, &neutral)?;
    }
    fields.only("response_format", &json!({"type": "text"}))?;
    fields.only("modalities", &json!(["text"]))?;
    // Says who asks, or how fast, but nothing about the answer.
    for name in [
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "request_id",
        "priority",
        "prediction",
    ] {
        fields.ignore(name);
    }
    Ok(())
}

/// Reads what both kinds of request share. The prompt and the number of log-probabilities are left
/// to the caller.
pub(crate) fn common(fields: &mut Fields) -> Result<Common> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        None => false,
        Some(mut options) => {
            if !stream {
                return Err(options.error("stream_options is only allowed when stream is true"));
            }
            let include = options.boolean("include_usage")?.unwrap_or(false);
            options.ignore("include_obfuscation");
            options.only("continuous_usage_stats", &json!(false))?;
            options.finish()?;
            include
        }
    };
    let n = fields.integer("n", 1, 1024)?.unwrap_or(1);
    fields.only("best_of", &json!(n))?;
    let newer = fields.integer("max_completion_tokens", 1, u64::MAX)?;
    let older = fields.integer("max_tokens", 1, u64::MAX)?;
    let request = GenerateRequest {
        prompt: Vec::new(),
        n: usize::try_from(n).unwrap_or(usize::MAX),
        max_tokens: newer.or(older).map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        sampling: Sampling {
            temperature: fields.number("temperature", 0.0, 2.0)?.map_or(1.0, |t| t as f32),
            top_p: fields
                .number("top_p", f64::MIN_POSITIVE, 1.0)?
                .map_or(1.0, |p| (p as f32).max(f32::MIN_POSITIVE)),
            // vLLM writes "all" as -1 or 0.
            top_k: fields
                .signed("top_k", -1, i64::from(u32::MAX))?
                .map_or(0, |k| usize::try_from(k).unwrap_or(0)),
        },
        seed: fields.signed("seed", i64::MIN, i64::MAX)?.map(i64::cast_unsigned),
        stop: fields.strings("stop", 16)?,
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        top_logprobs: 0,
    };
    let return_token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    refuse_unsupported(fields)?;
    Ok(Common { stream, include_usage, return_token_ids, request })
}

/// `usage`.
pub(crate) fn usage(prompt: usize, completion: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// `finish_reason` and vLLM's `stop_reason`.
pub(crate) fn reasons(finish: &Finish) -> (&'static str, Value) {
    match finish {
        Finish::EndToken(_) => ("stop", Value::Null),
        Finish::StopString(text) => ("stop", text.as_str().into()),
        Finish::Length => ("length", Value::Null),
    }
}

/// A token's text and bytes as log-probabilities show them.
pub(crate) fn shown(tokenizer: &Tokenizer, token: u32) -> (String, Vec<u8>) {
    let text = tokenizer.token_text(token).unwrap_or_default();
    let bytes = tokenizer.token_bytes(token);
    let bytes = if bytes.is_empty() { text.clone().into_bytes() } else { bytes.to_vec() };
    (text, bytes)
}
