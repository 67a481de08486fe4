//! A Llama-architecture decoder, written once for inference and training.

use crate::config::ModelConfig;
use crate::kernels::attention::{Heads, KvPages, Segment};
use crate::kernels::pointwise::Rotation;
use crate::ops::{self, Context};
use candle_core::{Device, Result, Tensor};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, RwLock};

/// A decoder-only transformer with rotary positions, RMS normalization, grouped-query attention
/// and a gated feed-forward layer. All tensors are `f32`; they may be candle variables, which then
/// receive gradients.
#[derive(Debug, Clone)]
pub struct Llama {
    config: ModelConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    output: Tensor,
    inverse_frequencies: Vec<f64>,
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    mlp_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// Rows of several sequences that go through the model together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) tokens: Vec<u32>,
    pub(crate) segments: Vec<Segment>,
    /// The rows whose logits are wanted.
    pub(crate) wanted: Vec<u32>,
}

/// The name and shape of each tensor of a model, as Hugging Face names them. Matrices are
/// `[output, input]`.
#[must_use]
pub fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.layers {
        let block = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q_width, hidden]),
            ("self_attn.k_proj", vec![kv_width, hidden]),
            ("self_attn.v_proj", vec![kv_width, hidden]),
            ("self_attn.o_proj", vec![hidden, q_width]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![config.intermediate_size, hidden]),
            ("mlp.up_proj", vec![config.intermediate_size, hidden]),
            ("mlp.down_proj", vec![hidden, config.intermediate_size]),
        ];
        shapes.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    shapes
}

impl Llama {
    /// A model of the given tensors, named as by [`tensor_shapes`]. Others are ignored.
    ///
    /// # Errors
    /// In words: which number of the configuration is impossible, or which tensor is missing or
    /// of the wrong shape.
    pub fn new(config: ModelConfig, tensors: &HashMap<String, Tensor>) -> std::result::Result<Self, String> {
        config.check()?;
        let mut checked = HashMap::new();
        for (name, shape) in tensor_shapes(&config) {
            let tensor = tensors.get(&name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
            if tensor.dims() != shape {
                return Err(format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.dims()));
            }
            if tensor.dtype() != candle_core::DType::F32 || !tensor.is_contiguous() {
                return Err(format!("tensor `{name}` is not contiguous f32"));
            }
            checked.insert(name, tensor.clone());
        }
        let mut take = |name: String| checked.remove(&name).ok_or(name);
        let blocks = (0..config.layers)
            .map(|layer| {
                let mut part = |name: &str| take(format!("model.layers.{layer}.{name}.weight"));
                Ok(Block {
                    attention_norm: part("input_layernorm")?,
                    q: part("self_attn.q_proj")?,
                    k: part("self_attn.k_proj")?,
                    v: part("self_attn.v_proj")?,
                    o: part("self_attn.o_proj")?,
                    mlp_norm: part("post_attention_layernorm")?,
                    gate: part("mlp.gate_proj")?,
                    up: part("mlp.up_proj")?,
                    down: part("mlp.down_proj")?,
                })
            })
            .collect::<std::result::Result<_, String>>()?;
        let embedding = take("model.embed_tokens.weight".to_owned())?;
        let output =
            if config.tied_embeddings { embedding.clone() } else { take("lm_head.weight".to_owned())? };
        Ok(Self {
            embedding,
            blocks,
            norm: take("model.norm.weight".to_owned())?,
            output,
            inverse_frequencies: config.inverse_frequencies(),
            config,
        })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty cache of this model's shape.
    pub(crate) fn new_cache(&self) -> KvPages {
        KvPages::new(self.config.layers, self.config.kv_heads, self.config.head_dim)
    }

    /// Logits `[wanted, vocab]` of a batch that continues cached sequences, and adds it to the
    /// cache.
    pub(crate) fn step(&self, batch: Batch, cache: &Arc<RwLock<KvPages>>) -> Result<Tensor> {
        let positions: Vec<usize> = batch
            .segments
            .iter()
            .flat_map(|segment| segment.start..segment.start + segment.rows.len())
            .collect();
        let context = Context::Cached { cache: cache.clone(), segments: Arc::new(batch.segments) };
        self.forward(&batch.tokens, &positions, &context, Some(&batch.wanted))
    }

    /// Logits `[tokens, vocab]` after each token of whole sequences that lie one after the other
    /// in `tokens`. Differentiable. With `wanted`, only the logits of those rows.
    ///
    /// # Errors
    /// If a token id is out of range, or `sequences` do not cover `tokens` in order.
    pub fn logits(
        &self,
        tokens: &[u32],
        sequences: &[Range<usize>],
        wanted: Option<&[u32]>,
    ) -> Result<Tensor> {
        let mut end = 0;
        for rows in sequences {
            if rows.start != end || rows.is_empty() {
                candle_core::bail!(
                    "sequences must be non-empty and follow each other, got {rows:?} after {end}"
                );
            }
            end = rows.end;
        }
        if end != tokens.len() {
            candle_core::bail!("sequences cover {end} of {} tokens", tokens.len());
        }
        let positions: Vec<usize> = sequences.iter().flat_map(|rows| 0..rows.len()).collect();
        let context = Context::Whole { sequences: Arc::new(sequences.to_vec()) };
        self.forward(tokens, &positions, &context, wanted)
    }

    fn forward(
        &self,
        tokens: &[u32],
        positions: &[usize],
        context: &Context,
        wanted: Option<&[u32]>,
    ) -> Result<Tensor> {
        let config = &self.config;
        let shape = Heads { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let rotation = Arc::new(Rotation::new(&self.inverse_frequencies, positions));
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = ops::rms_norm(&x, &block.attention_norm, config.norm_eps)?;
            let q = ops::rope(&ops::linear(&normed, &block.q)?, &rotation)?;
            let k = ops::rope(&ops::linear(&normed, &block.k)?, &rotation)?;
            let v = ops::linear(&normed, &block.v)?;
            let mixed = ops::attention(&q, &k, &v, context, layer, shape)?;
            x = (x + ops::linear(&mixed, &block.o)?)?;
            let normed = ops::rms_norm(&x, &block.mlp_norm, config.norm_eps)?;
            let gated = ops::swiglu(&ops::linear(&normed, &block.gate)?, &ops::linear(&normed, &block.up)?)?;
            x = (x + ops::linear(&gated, &block.down)?)?;
        }
        if let Some(rows) = wanted {
            x = x.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        }
        ops::linear(&ops::rms_norm(&x, &self.norm, config.norm_eps)?, &self.output)
    }
}
