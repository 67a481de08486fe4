//! A model small enough for any test: a directory in Hugging Face's layout with random weights.

use agl_rl::{Engine, EngineOptions, ModelConfig, tensor_shapes};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

/// Number of byte tokens in the tiny vocabulary; the special tokens come after them.
pub(crate) const BYTES: usize = 256;
/// The tiny model's end token.
pub(crate) const END: u32 = 257;

/// The tiny model's shape.
pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: BYTES + 3,
        hidden_size: 24,
        intermediate_size: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        context_length: 4096,
        tied_embeddings: false,
    }
}

/// Repeatable numbers between -0.5 and 0.5.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        })
        .collect()
}

/// Random weights; norms are near 1.
pub(crate) fn tensors(config: &ModelConfig) -> HashMap<String, Tensor> {
    let fill = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let count: usize = shape.iter().product();
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let data: Vec<f32> = numbers(count, index as u64).iter().map(|x| x + offset).collect();
        (name, Tensor::from_vec(data, shape, &Device::Cpu).unwrap())
    };
    tensor_shapes(config).into_iter().enumerate().map(fill).collect()
}

/// A byte-level tokenizer: the token `b` is the byte `b`, and there are three special tokens.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = 0x100..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { stand_ins.next().unwrap() };
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let special = ["<|im_start|>", "<|im_end|>", "<|pad|>"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(index, text)| {
            json!({"id": BYTES + index, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}

/// Writes the tiny model into a directory.
pub(crate) fn write_model(dir: &Path) {
    let config = config();
    let json = json!({
        "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps, "max_position_embeddings": config.context_length, "sliding_window": null,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": false, "eos_token_id": END
    });
    std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), json!({"eos_token": "<|im_end|>"}).to_string())
        .unwrap();
    candle_core::safetensors::save(&tensors(&config), dir.join("model.safetensors")).unwrap();
}

/// The tiny model, loaded from a directory that lives as long as the first of the two. The context
/// is 256 tokens if not given.
pub(crate) fn engine(options: &EngineOptions) -> (TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let options = EngineOptions {
        model_name: Some("tiny".into()),
        max_context: options.max_context.or(Some(256)),
        ..options.clone()
    };
    let engine = Engine::load(dir.path().to_str().unwrap(), &options).unwrap();
    (dir, engine)
}
