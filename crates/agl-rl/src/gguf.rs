//! Reading a model, its tokenizer and its chat template from one GGUF file.

use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::load::ModelFiles;
use crate::model::{Llama, tensor_shapes};
use crate::tokenizer::{PreTokenizer, Tokenizer, Vocabulary};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// `tokenizer.ggml.token_type`: shown to the model, never to the reader.
const CONTROL: u64 = 3;
/// `tokenizer.ggml.token_type`: added by the model's maker, matched whole, but part of the text.
const USER_DEFINED: u64 = 4;

/// Loads a model of the Llama architecture, dequantized to `f32`.
pub(crate) fn load(path: &Path) -> Result<ModelFiles> {
    let wrong = |reason: String| Error::not_a_model(path, reason);
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0u8; 4];
    if reader.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
        return Err(wrong("not a GGUF file (it does not begin with `GGUF`)".into()));
    }
    reader.rewind().map_err(|e| Error::io(path, e))?;
    let content = Content::read(&mut reader).map_err(|e| wrong(format!("damaged GGUF header: {e}")))?;
    let metadata = Metadata(&content.metadata);

    let architecture = metadata.string("general.architecture").map_err(wrong)?;
    if architecture != "llama" {
        return Err(wrong(format!("architecture `{architecture}` is not supported (only `llama` is)")));
    }
    let config = config(&metadata, &content).map_err(wrong)?;
    config.check().map_err(wrong)?;

    let mut tensors = HashMap::new();
    for (name, shape) in tensor_shapes(&config) {
        let stored = gguf_name(&name);
        let tensor = content
            .tensor(&mut reader, &stored, &Device::Cpu)
            .and_then(|quantized| quantized.dequantize(&Device::Cpu))
            .map_err(|e| wrong(format!("tensor `{stored}` can't be read: {e}")))?;
        if tensor.dims() != shape {
            return Err(wrong(format!(
                "tensor `{stored}` has shape {:?}, expected {shape:?}",
                tensor.dims()
            )));
        }
        let heads = match stored.rsplit('.').nth(1) {
            Some("attn_q") => Some(config.heads),
            Some("attn_k") => Some(config.kv_heads),
            _ => None,
        };
        tensors.insert(name, if let Some(heads) = heads { half_rotation(&tensor, heads)? } else { tensor });
    }
    let tokenizer = tokenizer(&metadata, path)?;
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(wrong(format!(
            "the tokenizer has {} tokens, the model {}",
            tokenizer.vocab_size(),
            config.vocab_size
        )));
    }
    let mut end_tokens: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
        .iter()
        .filter_map(|key| metadata.id(key))
        .collect();
    // Files often name the end of the text but not the end of a turn.
    end_tokens
        .extend(["<|im_end|>", "<|eot_id|>", "<|end|>"].iter().filter_map(|text| tokenizer.special_id(text)));
    end_tokens.sort_unstable();
    end_tokens.dedup();
    let special = |key: &str| metadata.id(key).and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    Ok(ModelFiles {
        name: path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned()),
        model: Llama::new(config, &tensors).map_err(wrong)?,
        chat_template: metadata.string("tokenizer.chat_template").ok(),
        bos_token: special("tokenizer.ggml.bos_token_id"),
        eos_token: special("tokenizer.ggml.eos_token_id"),
        end_tokens,
        tokenizer,
    })
}

/// The metadata, with errors that name the key.
struct Metadata<'a>(&'a HashMap<String, Value>);

impl Metadata<'_> {
    fn get(&self, key: &str) -> std::result::Result<&Value, String> {
        self.0.get(key).ok_or_else(|| format!("metadata `{key}` is missing"))
    }

    fn string(&self, key: &str) -> std::result::Result<String, String> {
        self.get(key)?.to_string().cloned().map_err(|_| format!("metadata `{key}` is not a string"))
    }

    fn integer(&self, key: &str) -> std::result::Result<usize, String> {
        integer(self.get(key)?)
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(|| format!("metadata `{key}` is not a whole number"))
    }

    fn float(&self, key: &str) -> std::result::Result<f64, String> {
        match self.get(key)? {
            Value::F32(value) => Ok(f64::from(*value)),
            Value::F64(value) => Ok(*value),
            _ => Err(format!("metadata `{key}` is not a number")),
        }
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.0.get(key), Some(Value::Bool(true)))
    }

    fn id(&self, key: &str) -> Option<u32> {
        integer(self.0.get(key)?).and_then(|id| u32::try_from(id).ok())
    }

    fn list<T>(&self, key: &str, item: impl Fn(&Value) -> Option<T>) -> std::result::Result<Vec<T>, String> {
        self.get(key)?
            .to_vec()
            .ok()
            .and_then(|values| values.iter().map(item).collect())
            .ok_or_else(|| format!("metadata `{key}` is not a list of the expected kind"))
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::U64(v) => Some(v),
        Value::I8(v) => v.try_into().ok(),
        Value::I16(v) => v.try_into().ok(),
        Value::I32(v) => v.try_into().ok(),
        Value::I64(v) => v.try_into().ok(),
        _ => None,
    }
}

fn config(metadata: &Metadata<'_>, content: &Content) -> std::result::Result<ModelConfig, String> {
    let hidden_size = metadata.integer("llama.embedding_length")?;
    let heads = metadata.integer("llama.attention.head_count")?;
    let vocab_size = match content.tensor_infos.get("token_embd.weight") {
        Some(info) => info.shape.dims().first().copied().unwrap_or(0),
        None => return Err("tensor `token_embd.weight` is missing".into()),
    };
    if content.tensor_infos.contains_key("rope_freqs.weight") {
        // Llama 3 files carry the stretched frequencies as a tensor.
        return Err("rope_freqs.weight is not supported; use the Hugging Face directory of this model".into());
    }
    let rope_scaling = match metadata.string("llama.rope.scaling.type").ok().as_deref() {
        None | Some("none") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: metadata.float("llama.rope.scaling.factor")? }),
        Some(other) => return Err(format!("llama.rope.scaling.type `{other}` is not supported")),
    };
    Ok(ModelConfig {
        vocab_size,
        hidden_size,
        intermediate_size: metadata.integer("llama.feed_forward_length")?,
        layers: metadata.integer("llama.block_count")?,
        heads,
        kv_heads: metadata.integer("llama.attention.head_count_kv").unwrap_or(heads),
        head_dim: metadata
            .integer("llama.attention.key_length")
            .or_else(|_| metadata.integer("llama.rope.dimension_count"))
            .unwrap_or(hidden_size / heads.max(1)),
        norm_eps: metadata.float("llama.attention.layer_norm_rms_epsilon")? as f32,
        rope_theta: metadata.float("llama.rope.freq_base").unwrap_or(10_000.0),
        rope_scaling,
        context_length: metadata.integer("llama.context_length")?,
        tied_embeddings: !content.tensor_infos.contains_key("output.weight"),
    })
}

/// The name that llama.cpp gives to a tensor of Hugging Face's name.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    name.replace("model.layers.", "blk.")
        .replace("input_layernorm", "attn_norm")
        .replace("self_attn.q_proj", "attn_q")
        .replace("self_attn.k_proj", "attn_k")
        .replace("self_attn.v_proj", "attn_v")
        .replace("self_attn.o_proj", "attn_output")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down")
}

/// llama.cpp pairs neighbouring rows of a head for the rotation, we (like Hugging Face) pair row
/// `i` with row `i + head_dim / 2`: puts the rows of each head back into that order.
fn half_rotation(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let half = rows / heads / 2;
    weight.reshape((heads, half, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

fn tokenizer(metadata: &Metadata<'_>, path: &Path) -> Result<Tokenizer> {
    let wrong = |reason: String| Error::not_a_model(path, reason);
    let kind = metadata.string("tokenizer.ggml.model").map_err(wrong)?;
    if kind != "gpt2" {
        return Err(wrong(format!(
            "tokenizer model `{kind}` is not supported in a GGUF file (only `gpt2`, byte-level BPE); use the Hugging Face directory of this model"
        )));
    }
    let pre = metadata.string("tokenizer.ggml.pre").unwrap_or_else(|_| "default".into());
    let pre_tokenizer = PreTokenizer::named(&pre).ok_or_else(|| {
        wrong(format!("pre-tokenizer `{pre}` is not supported (known: {})", PreTokenizer::NAMES))
    })?;
    let text = |value: &Value| value.to_string().ok().cloned();
    let tokens = metadata.list("tokenizer.ggml.tokens", text).map_err(wrong)?;
    let merges = metadata.list("tokenizer.ggml.merges", text).map_err(wrong)?;
    let types = metadata.list("tokenizer.ggml.token_type", integer).unwrap_or_default();
    let of_type = |wanted: u64| -> Vec<String> {
        tokens
            .iter()
            .zip(&types)
            .filter(|(_, kind)| **kind == wanted)
            .map(|(token, _)| token.clone())
            .collect()
    };
    let start =
        metadata.flag("tokenizer.ggml.add_bos_token").then(|| metadata.id("tokenizer.ggml.bos_token_id"));
    let vocabulary = Vocabulary {
        special: of_type(CONTROL),
        added: of_type(USER_DEFINED),
        tokens,
        merges,
        pre_tokenizer,
        start: start.flatten(),
    };
    Tokenizer::byte_level(vocabulary).map_err(|e| wrong(format!("tokenizer: {e}")))
}
