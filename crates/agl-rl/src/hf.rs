//! Reading a model from a directory in Hugging Face's layout.

use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::load::ModelFiles;
use crate::model::{Llama, tensor_shapes};
use crate::tokenizer::Tokenizer;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Loads a model of the Llama architecture as `f32`.
pub(crate) fn load(dir: &Path) -> Result<ModelFiles> {
    let config_path = dir.join("config.json");
    let config_json = read_json(&config_path)?;
    let config = config(&config_json).map_err(|reason| Error::not_a_model(&config_path, reason))?;
    config.check().map_err(|reason| Error::not_a_model(&config_path, reason))?;
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
    if tokenizer.vocab_size() > config.vocab_size {
        let reason = format!("has {} tokens, config.json says {}", tokenizer.vocab_size(), config.vocab_size);
        return Err(Error::not_a_model(dir.join("tokenizer.json"), reason));
    }
    let model = Llama::new(config.clone(), &tensors(dir, &config)?)
        .map_err(|reason| Error::not_a_model(dir, reason))?;

    let settings = read_json_if_there(&dir.join("tokenizer_config.json"))?;
    let generation = read_json_if_there(&dir.join("generation_config.json"))?;
    let mut end_tokens: Vec<u32> =
        [&config_json, &generation].iter().flat_map(|json| ids(json.get("eos_token_id"))).collect();
    let eos_token = token_text(&settings, "eos_token");
    end_tokens.extend(tokenizer.special_id(&eos_token));
    end_tokens.sort_unstable();
    end_tokens.dedup();
    Ok(ModelFiles {
        name: name(dir),
        model,
        chat_template: chat_template(dir, &settings)?,
        bos_token: token_text(&settings, "bos_token"),
        eos_token,
        end_tokens,
        tokenizer,
    })
}

fn name(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::not_a_model(path, format!("not a JSON object: {e}")))
}

fn read_json_if_there(path: &Path) -> Result<Map<String, Value>> {
    if path.exists() { read_json(path) } else { Ok(Map::new()) }
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A special token of tokenizer_config.json: its text, or an object with its `content`.
fn token_text(settings: &Map<String, Value>, key: &str) -> String {
    let value = settings.get(key);
    let content = value.and_then(|v| v.get("content")).or(value);
    content.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn chat_template(dir: &Path, settings: &Map<String, Value>) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if path.exists() {
        return std::fs::read_to_string(&path).map(Some).map_err(|e| Error::io(path, e));
    }
    let template = match settings.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        // Several templates by name.
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template"))
            .and_then(Value::as_str)
            .map(str::to_owned),
        _ => None,
    };
    Ok(template)
}

/// Field access where `null` is the same as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn optional_size(&self, key: &str) -> std::result::Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| format!("{key} is not a whole number: {value}"))
    }

    fn size(&self, key: &str) -> std::result::Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("{key} is missing"))
    }

    fn number(&self, key: &str) -> std::result::Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| format!("{key} is not a number: {value}"))
    }
}

fn config(json: &Map<String, Value>) -> std::result::Result<ModelConfig, String> {
    let fields = Fields(json);
    let kind = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if kind != "llama" {
        return Err(format!("model_type `{kind}` is not supported (only `llama` is)"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if fields.get(key).and_then(Value::as_bool) == Some(true) {
            return Err(format!("{key} = true is not supported"));
        }
    }
    match fields.get("hidden_act").and_then(Value::as_str) {
        None | Some("silu") => {}
        Some(other) => return Err(format!("hidden_act `{other}` is not supported (only `silu` is)")),
    }
    if let Some(window) = fields.get("sliding_window") {
        return Err(format!("sliding_window = {window} is not supported"));
    }
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    // Newer files gather all that concerns the rotation under `rope_parameters`.
    let rope =
        ["rope_parameters", "rope_scaling"].iter().find_map(|key| fields.get(key)).and_then(Value::as_object);
    let nested_theta = rope.map_or(Ok(None), |map| Fields(map).number("rope_theta"))?;
    Ok(ModelConfig {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: fields.optional_size("head_dim")?.unwrap_or(hidden_size / heads.max(1)),
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta: nested_theta.or(fields.number("rope_theta")?).unwrap_or(10_000.0),
        rope_scaling: rope.map_or(Ok(None), |map| rope_scaling(&Fields(map)))?,
        context_length: fields.optional_size("max_position_embeddings")?.unwrap_or(2048),
        tied_embeddings: fields.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn rope_scaling(fields: &Fields<'_>) -> std::result::Result<Option<RopeScaling>, String> {
    let kind = ["rope_type", "type"].iter().find_map(|key| fields.get(key)).and_then(Value::as_str);
    let number = |key: &str| fields.number(key)?.ok_or_else(|| format!("rope scaling: {key} is missing"));
    match kind {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        })),
        Some(other) => {
            Err(format!("rope scaling `{other}` is not supported (known: default, linear, llama3)"))
        }
    }
}

/// The tensors the model needs, from one safetensors file or from the shards that its index names.
fn tensors(dir: &Path, config: &ModelConfig) -> Result<HashMap<String, Tensor>> {
    let index_path = dir.join("model.safetensors.index.json");
    let files: BTreeSet<String> = if index_path.exists() {
        let index = read_json(&index_path)?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| Error::not_a_model(&index_path, "has no `weight_map` object"))?;
        map.values().filter_map(Value::as_str).map(str::to_owned).collect()
    } else {
        BTreeSet::from(["model.safetensors".to_owned()])
    };
    let wanted: BTreeSet<String> = tensor_shapes(config).into_iter().map(|(name, _)| name).collect();
    let mut tensors = HashMap::new();
    for file in files {
        let path = dir.join(file);
        if !path.exists() {
            return Err(Error::io(&path, std::io::ErrorKind::NotFound.into()));
        }
        let loaded = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|e| Error::not_a_model(&path, format!("not a safetensors file: {e}")))?;
        for (name, tensor) in loaded {
            if wanted.contains(&name) {
                tensors.insert(name, tensor.to_dtype(DType::F32)?.contiguous()?);
            }
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: &Value) -> std::result::Result<ModelConfig, String> {
        let mut fields = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "sliding_window": null
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            fields[key] = value.clone();
        }
        config(fields.as_object().ok_or("not an object")?)
    }

    #[test]
    fn old_and_new_rope_fields_are_read() {
        assert_eq!(parse(&json!({"rope_theta": 5e5})).map(|c| c.rope_theta), Ok(5e5));
        let new = parse(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}));
        assert_eq!(new.map(|c| (c.rope_theta, c.rope_scaling)), Ok((1e6, None)));
        let linear = parse(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
        assert_eq!(linear.map(|c| c.rope_scaling), Ok(Some(RopeScaling::Linear { factor: 2.0 })));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (extra, word) in [
            (json!({"model_type": "qwen2"}), "qwen2"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"sliding_window": 128}), "sliding_window"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"rope_scaling": {"rope_type": "yarn"}}), "yarn"),
            (json!({"hidden_size": "wide"}), "hidden_size"),
        ] {
            let error = parse(&extra).err().unwrap_or_default();
            assert!(error.contains(word), "{error}");
        }
    }
}
