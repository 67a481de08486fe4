//! The kernels as differentiable candle operations. Inference and training call the same ones.

use crate::kernels::attention::{self, Heads, KvPages, PAGE, Segment};
use crate::kernels::linear;
use crate::kernels::pointwise::{self, Rotation};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// The elements of a contiguous `f32` operand.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("operand is not contiguous") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Lets `f` read a tensor's elements in row-major order.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice(cpu, layout)?)),
        _ => bail!("tensor is not on the cpu"),
    }
}

fn tensor(data: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), &Device::Cpu)
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (n, k2)) = (x_at.shape().dims2()?, w_at.shape().dims2()?);
        if k != k2 {
            bail!("linear: input has {k} columns, the weights have {k2}");
        }
        let mut out = vec![0f32; m * n];
        linear::linear(slice(x, x_at)?, slice(w, w_at)?, &mut out, k);
        Ok((CpuStorage::F32(out), (m, n).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // A frozen matrix costs no weight gradient, a frozen input no input gradient.
        let grad_x = if x.track_op() { Some(grad.matmul(&w.detach())?) } else { None };
        let grad_w = if w.track_op() { Some(grad.t()?.matmul(&x.detach())?) } else { None };
        Ok((grad_x, grad_w))
    }
}

/// `x[m, k] · w[n, k]ᵀ`.
pub(crate) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.apply_op2(w, Linear)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0f32; x_at.shape().elem_count()];
        pointwise::rms_norm(slice(x, x_at)?, slice(w, w_at)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_w) = with_slice(x, |x_data| {
            with_slice(w, |w_data| {
                with_slice(grad, |g_data| pointwise::rms_norm_backward(x_data, w_data, self.eps, g_data))
            })
        })???;
        Ok((Some(tensor(grad_x, x)?), Some(tensor(grad_w, w)?)))
    }
}

/// Root-mean-square normalization of each row, times `weight`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps })
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_at: &Layout,
        up: &CpuStorage,
        up_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0f32; gate_at.shape().elem_count()];
        pointwise::swiglu(slice(gate, gate_at)?, slice(up, up_at)?, &mut out);
        Ok((CpuStorage::F32(out), gate_at.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_gate, grad_up) = with_slice(gate, |gate_data| {
            with_slice(up, |up_data| {
                with_slice(grad, |g_data| pointwise::swiglu_backward(gate_data, up_data, g_data))
            })
        })???;
        Ok((Some(tensor(grad_gate, gate)?), Some(tensor(grad_up, up)?)))
    }
}

/// `silu(gate) * up`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, Swiglu)
}

struct Rope {
    rotation: Arc<Rotation>,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0f32; x_at.shape().elem_count()];
        pointwise::rotate(slice(x, x_at)?, &self.rotation, 1.0, &mut out);
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad_x = with_slice(grad, |g_data| {
            let mut out = vec![0f32; g_data.len()];
            pointwise::rotate(g_data, &self.rotation, -1.0, &mut out);
            out
        })?;
        Ok(Some(tensor(grad_x, x)?))
    }
}

/// Rotates each head of each row by its position.
pub(crate) fn rope(x: &Tensor, rotation: &Arc<Rotation>) -> Result<Tensor> {
    x.apply_op1(Rope { rotation: rotation.clone() })
}

/// What the rows of a batch attend to.
#[derive(Debug, Clone)]
pub(crate) enum Context {
    /// Each sequence's cached positions and its own earlier rows; the rows are added to the cache.
    /// Has no gradient.
    Cached { cache: Arc<RwLock<KvPages>>, segments: Arc<Vec<Segment>> },
    /// Each sequence's own earlier rows; the rows are whole sequences, one after the other.
    Whole { sequences: Arc<Vec<Range<usize>>> },
}

struct Attention {
    context: Context,
    layer: usize,
    shape: Heads,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_at: &Layout,
        k: &CpuStorage,
        k_at: &Layout,
        v: &CpuStorage,
        v_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, q_at)?, slice(k, k_at)?, slice(v, v_at)?);
        let mut out = vec![0f32; q.len()];
        match &self.context {
            Context::Cached { cache, segments } => {
                let mut pages = cache.write().unwrap_or_else(PoisonError::into_inner);
                attention::store(&mut pages, self.layer, segments, k, v);
                attention::attend(&pages, self.layer, segments, q, self.shape.heads, &mut out);
            }
            Context::Whole { sequences } => {
                // A cache of one layer that lives as long as this call.
                let mut pages = KvPages::new(1, self.shape.kv_heads, self.shape.head_dim);
                let mut used = 0;
                let segments: Vec<Segment> = sequences
                    .iter()
                    .map(|rows| {
                        let first = used;
                        used += rows.len().div_ceil(PAGE) as u32;
                        Segment { rows: rows.clone(), start: 0, pages: (first..used).collect() }
                    })
                    .collect();
                pages.grow(used as usize);
                attention::store(&mut pages, 0, &segments, k, v);
                attention::attend(&pages, 0, &segments, q, self.shape.heads, &mut out);
            }
        }
        Ok((CpuStorage::F32(out), q_at.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Context::Whole { sequences } = &self.context else {
            return Err(candle_core::Error::BackwardNotSupported { op: "attention over a cache" });
        };
        let (grad_q, grad_k, grad_v) = with_slice(q, |q_data| {
            with_slice(k, |k_data| {
                with_slice(v, |v_data| {
                    with_slice(grad, |g_data| {
                        attention::attend_backward(self.shape, sequences, q_data, k_data, v_data, g_data)
                    })
                })
            })
        })????;
        Ok((Some(tensor(grad_q, q)?), Some(tensor(grad_k, k)?), Some(tensor(grad_v, v)?)))
    }
}

/// Causal attention of each row's heads over the rows' context.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    context: &Context,
    layer: usize,
    shape: Heads,
) -> Result<Tensor> {
    q.apply_op3(k, v, Attention { context: context.clone(), layer, shape })
}
