//! Normalization, rotary positions and the gated activation, forward and backward.

use super::{arch, dot, exp, threads_for};
use rayon::prelude::*;

/// Rows handed to a thread at a time.
const ROWS_PER_TASK: usize = 8;

/// `out = x / rms(x) * weight` for each row of `weight.len()` elements.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let rows = |x: &[f32], out: &mut [f32]| {
        arch().dispatch(
            #[inline(always)]
            || {
                for (x_row, out_row) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                    let scale = inverse_rms(x_row, eps);
                    for ((o, &value), &w) in out_row.iter_mut().zip(x_row).zip(weight) {
                        *o = value * scale * w;
                    }
                }
            },
        );
    };
    if threads_for(x.len()) == 1 {
        rows(x, out);
    } else {
        let task = ROWS_PER_TASK * width;
        x.par_chunks(task).zip(out.par_chunks_mut(task)).for_each(|(x, out)| rows(x, out));
    }
}

#[inline(always)]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
}

/// Gradients of [`rms_norm`] with respect to `x` and `weight`.
pub(crate) fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut grad_x = vec![0f32; x.len()];
    let mut grad_weight = vec![0f32; width];
    arch().dispatch(
        #[inline(always)]
        || {
            let mut scaled = vec![0f32; width];
            for ((x_row, g_row), dx_row) in
                x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(grad_x.chunks_exact_mut(width))
            {
                let scale = inverse_rms(x_row, eps);
                for i in 0..width {
                    grad_weight[i] += g_row[i] * x_row[i] * scale;
                    scaled[i] = g_row[i] * weight[i];
                }
                // d(1/rms)/dx = -x / (width · rms³)
                let common = dot(&scaled, x_row) * scale * scale / width as f32;
                for i in 0..width {
                    dx_row[i] = scale * (scaled[i] - x_row[i] * common);
                }
            }
        },
    );
    (grad_x, grad_weight)
}

/// `out = silu(gate) * up`, element by element.
pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let part = |gate: &[f32], up: &[f32], out: &mut [f32]| {
        arch().dispatch(
            #[inline(always)]
            || {
                for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                    *o = g / (1.0 + exp(-g)) * u;
                }
            },
        );
    };
    // An exponential costs about ten multiply-adds.
    if threads_for(gate.len() * 10) == 1 {
        part(gate, up, out);
    } else {
        let task = 4096;
        out.par_chunks_mut(task)
            .zip(gate.par_chunks(task).zip(up.par_chunks(task)))
            .for_each(|(out, (gate, up))| part(gate, up, out));
    }
}

/// Gradients of [`swiglu`] with respect to `gate` and `up`.
pub(crate) fn swiglu_backward(gate: &[f32], up: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut grad_gate = vec![0f32; gate.len()];
    let mut grad_up = vec![0f32; up.len()];
    let part = |at: usize, dg: &mut [f32], du: &mut [f32]| {
        let end = at + dg.len();
        let (gate, up, grad) = (&gate[at..end], &up[at..end], &grad[at..end]);
        arch().dispatch(
            #[inline(always)]
            || {
                for (i, (dg, du)) in dg.iter_mut().zip(du.iter_mut()).enumerate() {
                    let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
                    *du = grad[i] * gate[i] * sigmoid;
                    *dg = grad[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
                }
            },
        );
    };
    let task = 4096;
    grad_gate
        .par_chunks_mut(task)
        .zip(grad_up.par_chunks_mut(task))
        .enumerate()
        .for_each(|(index, (dg, du))| part(index * task, dg, du));
    (grad_gate, grad_up)
}

/// Cosines and sines of the rotary angles of the positions of a batch: `[rows, head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    pub(crate) half: usize,
}

impl Rotation {
    /// The rotation for each row's position.
    pub(crate) fn new(inverse_frequencies: &[f64], positions: &[usize]) -> Self {
        let half = inverse_frequencies.len();
        let angles = || {
            positions.iter().flat_map(|&position| {
                // The reference computes angles in f32 and takes their cosine in f32.
                inverse_frequencies.iter().map(move |&frequency| position as f32 * frequency as f32)
            })
        };
        Self { cos: angles().map(f32::cos).collect(), sin: angles().map(f32::sin).collect(), half }
    }
}

/// Rotates each head of each row; element `i` is paired with `i + head_dim / 2`. `direction` is 1
/// forward and -1 for the gradient (a rotation's transpose is its inverse).
pub(crate) fn rotate(x: &[f32], rotation: &Rotation, direction: f32, out: &mut [f32]) {
    let half = rotation.half;
    if rotation.cos.is_empty() {
        return;
    }
    let rows = rotation.cos.len() / half;
    let width = x.len() / rows;
    arch().dispatch(
        #[inline(always)]
        || {
            for row in 0..rows {
                let cos = &rotation.cos[row * half..(row + 1) * half];
                let sin = &rotation.sin[row * half..(row + 1) * half];
                let x_heads = x[row * width..(row + 1) * width].chunks_exact(2 * half);
                let out_heads = out[row * width..(row + 1) * width].chunks_exact_mut(2 * half);
                for (head, out_head) in x_heads.zip(out_heads) {
                    let (first, second) = head.split_at(half);
                    let (out_first, out_second) = out_head.split_at_mut(half);
                    for i in 0..half {
                        let s = sin[i] * direction;
                        out_first[i] = first[i] * cos[i] - second[i] * s;
                        out_second[i] = second[i] * cos[i] + first[i] * s;
                    }
                }
            }
        },
    );
}
