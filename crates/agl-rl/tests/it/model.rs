//! The layers: gradients, and agreement with a plain composition of candle's own operations.

use crate::common;

use agl_rl::{Llama, ModelConfig};
use candle_core::{D, DType, Device, Tensor, Var};
use std::collections::HashMap;
use std::ops::Range;

const TOKENS: [u32; 9] = [3, 14, 15, 92, 65, 35, 89, 79, 32];
/// Two sequences in one batch.
const SEQUENCES: [Range<usize>; 2] = [0..5, 5..9];

/// The same model written naively: no fused operations, one sequence, full masks.
fn naive(
    config: &ModelConfig,
    tensors: &HashMap<String, Tensor>,
    tokens: &[u32],
) -> candle_core::Result<Tensor> {
    let (count, dim) = (tokens.len(), config.head_dim);
    let norm = |x: &Tensor, weight: &Tensor| -> candle_core::Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(config.norm_eps))?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(weight)
    };
    let angles: Vec<f32> = (0..count)
        .flat_map(|position| {
            let pairs = 0..dim / 2;
            pairs.map(move |pair| {
                position as f32 * config.rope_theta.powf(-2.0 * pair as f64 / dim as f64) as f32
            })
        })
        .collect();
    let angles = Tensor::from_vec(angles, (1, count, dim / 2), &Device::Cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let heads = |x: &Tensor, heads: usize| x.reshape((count, heads, dim))?.transpose(0, 1)?.contiguous();
    let rope = |x: &Tensor| -> candle_core::Result<Tensor> {
        let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 2)
    };
    let mask: Vec<f32> =
        (0..count * count).map(|at| if at % count > at / count { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (1, count, count), &Device::Cpu)?;
    let group = config.heads / config.kv_heads;
    let repeat = |x: Tensor| -> candle_core::Result<Tensor> {
        let parts: Vec<Tensor> =
            (0..config.heads).map(|head| x.narrow(0, head / group, 1)).collect::<Result<_, _>>()?;
        Tensor::cat(&parts, 0)
    };
    let mut x = tensors["model.embed_tokens.weight"].index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
    for layer in 0..config.layers {
        let weight = |name: &str| &tensors[&format!("model.layers.{layer}.{name}.weight")];
        let linear = |x: &Tensor, name: &str| x.matmul(&weight(name).t()?);
        let h = norm(&x, weight("input_layernorm"))?;
        let q = rope(&heads(&linear(&h, "self_attn.q_proj")?, config.heads)?)?;
        let k = repeat(rope(&heads(&linear(&h, "self_attn.k_proj")?, config.kv_heads)?)?)?;
        let v = repeat(heads(&linear(&h, "self_attn.v_proj")?, config.kv_heads)?)?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? / (dim as f64).sqrt())?.broadcast_add(&mask)?;
        let highest = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&highest)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.matmul(&v)?.transpose(0, 1)?.reshape((count, config.heads * dim))?;
        x = (x + linear(&mixed, "self_attn.o_proj")?)?;
        let h = norm(&x, weight("post_attention_layernorm"))?;
        let gate = linear(&h, "mlp.gate_proj")?;
        let silu = (&gate / (gate.neg()?.exp()? + 1.0)?)?;
        x = (x + linear(&(silu * linear(&h, "mlp.up_proj")?)?, "mlp.down_proj")?)?;
    }
    norm(&x, &tensors["model.norm.weight"])?.matmul(&tensors["lm_head.weight"].t()?)
}

/// A number that depends on every logit.
fn loss(logits: &Tensor, first_row: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = logits.dims2()?;
    let weights = common::numbers((first_row + rows) * columns, 77)[first_row * columns..].to_vec();
    (logits.sqr()? * Tensor::from_vec(weights, (rows, columns), &Device::Cpu)?)?.sum_all()
}

fn variables(config: &ModelConfig) -> HashMap<String, Var> {
    common::tensors(config)
        .into_iter()
        .map(|(name, tensor)| (name, Var::from_tensor(&tensor).unwrap()))
        .collect()
}

fn plain(variables: &HashMap<String, Var>) -> HashMap<String, Tensor> {
    variables.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

fn largest_difference(left: &Tensor, right: &Tensor) -> f32 {
    (left - right)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_scalar()
        .unwrap()
}

#[test]
fn logits_and_every_gradient_agree_with_a_naive_composition() {
    let config = common::config();
    let variables = variables(&config);
    let tensors = plain(&variables);
    let model = Llama::new(config.clone(), &tensors).unwrap();
    let logits = model.logits(&TOKENS, &SEQUENCES, None).unwrap();
    let ours = loss(&logits, 0).unwrap().backward().unwrap();

    let parts: Vec<Tensor> =
        SEQUENCES.iter().map(|rows| naive(&config, &tensors, &TOKENS[rows.clone()]).unwrap()).collect();
    let expected = Tensor::cat(&parts, 0).unwrap();
    assert!(largest_difference(&logits, &expected) < 1e-4, "{}", largest_difference(&logits, &expected));
    let theirs = loss(&expected, 0).unwrap().backward().unwrap();
    for (name, variable) in &variables {
        let gradient = ours.get(variable).unwrap_or_else(|| panic!("no gradient reaches {name}"));
        let expected = theirs.get(variable).unwrap();
        let size: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(size > 1e-3, "{name} has no gradient to speak of");
        let difference = largest_difference(gradient, expected);
        assert!(difference < 2e-4 * size.max(1.0), "{name}: gradients differ by {difference} of {size}");
    }
}

#[test]
fn gradients_are_the_slopes() {
    let config = ModelConfig { tied_embeddings: true, ..common::config() };
    let variables = variables(&config);
    let value = |rows: Option<&[u32]>| {
        let model = Llama::new(config.clone(), &plain(&variables)).unwrap();
        loss(&model.logits(&TOKENS, &SEQUENCES, rows).unwrap(), 0).unwrap()
    };
    let wanted: &[u32] = &[4, 7, 8];
    let gradients = value(Some(wanted)).backward().unwrap();
    for (name, variable) in &variables {
        let gradient =
            gradients.get(variable).unwrap_or_else(|| panic!("no gradient reaches {name}")).clone();
        // Along the gradient the slope is the gradient's length.
        let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let direction = (gradient / f64::from(length)).unwrap();
        let start = variable.as_tensor().copy().unwrap();
        let step = 1e-3;
        let at = |distance: f64| -> f64 {
            variable.set(&(&start + (&direction * distance).unwrap()).unwrap()).unwrap();
            f64::from(value(Some(wanted)).to_scalar::<f32>().unwrap())
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        at(0.0);
        let error = (slope - f64::from(length)).abs() / f64::from(length).max(1.0);
        assert!(error < 0.02, "{name}: slope {slope}, gradient's length {length}");
    }
}

#[test]
fn freezing_the_rest_leaves_a_matrix_its_gradient() {
    let config = common::config();
    let variables = variables(&config);
    let trained = "model.layers.0.self_attn.v_proj.weight";
    let frozen: HashMap<String, Tensor> =
        common::tensors(&config)
            .into_iter()
            .map(|(name, tensor)| {
                if name == trained { (name, variables[trained].as_tensor().clone()) } else { (name, tensor) }
            })
            .collect();
    let gradient = |tensors: &HashMap<String, Tensor>| {
        let model = Llama::new(config.clone(), tensors).unwrap();
        let logits = model.logits(&TOKENS, &SEQUENCES, None).unwrap();
        loss(&logits, 0).unwrap().backward().unwrap().get(&variables[trained]).unwrap().clone()
    };
    assert!(largest_difference(&gradient(&frozen), &gradient(&plain(&variables))) < 1e-3);
}

#[test]
fn batches_that_make_no_sense_are_refused() {
    let config = common::config();
    let model = Llama::new(config.clone(), &common::tensors(&config)).unwrap();
    assert!(model.logits(&TOKENS, &[0..5, 6..9], None).is_err());
    assert!(model.logits(&TOKENS, &SEQUENCES[..1], None).is_err());
    assert!(model.logits(&[9_999], std::slice::from_ref(&(0..1)), None).is_err());
    let mut tensors = common::tensors(&config);
    tensors.remove("model.norm.weight");
    let error = Llama::new(config, &tensors).unwrap_err();
    assert!(error.contains("model.norm.weight"), "{error}");
}
