//! The arithmetic: forward and backward passes over plain `f32` slices, vectorized for whatever
//! the processor offers and spread over the current rayon pool when there is enough to do.
//!
//! Every result row depends on its own inputs only, and is summed in the same order whatever the
//! number of rows beside it: a sequence gets the same numbers alone or in a batch.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod pointwise;

use pulp::Arch;
use std::sync::OnceLock;

/// The instruction set found at the first use.
pub(crate) fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(Arch::new)
}

/// Work below this many multiply-adds (or their equal) is done on the calling thread: handing it
/// to another costs more than it saves.
const SERIAL_WORK: usize = 400_000;

/// Number of threads worth using for `work` multiply-adds.
pub(crate) fn threads_for(work: usize) -> usize {
    if work < SERIAL_WORK { 1 } else { rayon::current_num_threads().max(1) }
}

/// Number of partial sums in [`dot`] and [`sum_by`]: the widest vector register in use.
const LANES: usize = 16;

/// Inner product of two slices of one length, in `LANES` partial sums.
#[inline(always)]
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (left_chunks, left_rest) = left.as_chunks::<LANES>();
    let (right_chunks, right_rest) = right.as_chunks::<LANES>();
    for (l, r) in left_chunks.iter().zip(right_chunks) {
        for lane in 0..LANES {
            sums[lane] += l[lane] * r[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(l, r)| l * r).sum();
    sums.iter().sum::<f32>() + rest
}

/// `e` to the power of `x`, to within 2 units in the last place, without branches so that it
/// vectorizes. Arguments are clamped to ±87. (The polynomial is Cephes' `expf`.)
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (clamped - power * 0.693_359_4) - power * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let mantissa = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits())).wrapping_add(127) << 23;
    mantissa * f32::from_bits(exponent)
}

/// Largest element; negative infinity for none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces each `x` by `exp(scale * (x - shift))` and gives their sum.
#[inline(always)]
pub(crate) fn exp_in_place(values: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(scale * (chunk[lane] - shift));
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for value in rest {
        *value = exp(scale * (*value - shift));
        sum += *value;
    }
    sum
}

/// Natural logarithm of the sum of the exponentials: the normalizer of a softmax.
pub(crate) fn log_sum_exp(values: &[f32]) -> f32 {
    arch().dispatch(
        #[inline(always)]
        || {
            let highest = max(values);
            let mut lanes = [0f32; LANES];
            let (chunks, rest) = values.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += exp(chunk[lane] - highest);
                }
            }
            let sum = lanes.iter().sum::<f32>() + rest.iter().map(|x| exp(x - highest)).sum::<f32>();
            highest + sum.ln()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_matches_the_standard_library() {
        for step in -8700..=8700 {
            let x = step as f32 / 100.0;
            let (ours, theirs) = (exp(x), x.exp());
            assert!((ours - theirs).abs() <= theirs * 3e-7, "exp({x}) = {ours}, expected {theirs}");
        }
    }

    #[test]
    fn log_sum_exp_survives_large_values() {
        let values: Vec<f32> = (0..1000).map(|i| 500.0 + (i % 7) as f32).collect();
        let expected = {
            let sum: f64 = values.iter().map(|&x| (f64::from(x) - 506.0).exp()).sum();
            506.0 + sum.ln()
        };
        assert!((f64::from(log_sum_exp(&values)) - expected).abs() < 1e-4);
    }
}
