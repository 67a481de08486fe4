//! Products of a few rows with a weight matrix that is stored row by row: `out = x · wᵀ`.
//!
//! Both operands are contiguous along the summed dimension, so tiles of inner products need no
//! packing, and the weights are read from memory once per block of rows. That is what decoding
//! is bound by; for long prompts the same tiles run at the speed of the multiply-add units.

use super::{arch, threads_for};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows of `x` that stay in the second-level cache while the weights stream by.
const ROW_BLOCK: usize = 128;

/// `out[m, n] = x[m, k] · w[n, k]ᵀ`, all row-major.
///
/// # Panics
/// If the slices' lengths do not agree with `k`.
pub(crate) fn linear(x: &[f32], w: &[f32], out: &mut [f32], k: usize) {
    let (m, n) = (x.len() / k, w.len() / k);
    assert!(m * k == x.len() && n * k == w.len() && m * n == out.len(), "linear: shapes disagree");
    if m == 0 || n == 0 {
        return;
    }
    // Reading a weight from memory costs about as much as eight multiply-adds.
    let threads = threads_for((m + 7) * n * k);
    // A few chunks a thread even out a busy machine; each must be worth handing over.
    let chunks = if threads == 1 { 1 } else { threads * 4 };
    let width = n.div_ceil(chunks).next_multiple_of(24);
    for (x_block, out_block) in x.chunks(ROW_BLOCK * k).zip(out.chunks_mut(ROW_BLOCK * n)) {
        // Column chunk by column chunk: the piece of each output row that falls into it.
        let mut pieces: Vec<Vec<&mut [f32]>> =
            (0..n.div_ceil(width)).map(|_| Vec::with_capacity(ROW_BLOCK.min(m))).collect();
        for row in out_block.chunks_mut(n) {
            for (chunk, piece) in row.chunks_mut(width).enumerate() {
                pieces[chunk].push(piece);
            }
        }
        let run = |(rows, weights): (&mut Vec<&mut [f32]>, &[f32])| {
            arch().dispatch(Panel { x: x_block, w: weights, rows, k });
        };
        if threads == 1 {
            pieces.iter_mut().zip(w.chunks(width * k)).for_each(run);
        } else {
            pieces.par_iter_mut().zip(w.par_chunks(width * k)).for_each(run);
        }
    }
}

/// One thread's share: all rows of `x` against a range of rows of `w`.
struct Panel<'a, 'b> {
    x: &'a [f32],
    w: &'a [f32],
    rows: &'a mut Vec<&'b mut [f32]>,
    k: usize,
}

impl WithSimd for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The accumulators of a tile must fit into the registers.
        if S::REGISTER_COUNT >= 32 {
            self.columns::<S, 4, 6>(simd);
        } else {
            self.columns::<S, 3, 4>(simd);
        }
    }
}

impl Panel<'_, '_> {
    #[inline(always)]
    fn columns<S: Simd, const MR: usize, const NR: usize>(self, simd: S) {
        let Self { x, w, rows, k } = self;
        for (tile, weights) in w.chunks(NR * k).enumerate() {
            let column = tile * NR;
            if weights.len() == NR * k {
                row_tiles::<S, MR, NR>(simd, x, weights, rows, k, column);
            } else {
                for (offset, weight) in weights.chunks(k).enumerate() {
                    row_tiles::<S, MR, 1>(simd, x, weight, rows, k, column + offset);
                }
            }
        }
    }
}

/// All rows of `x` against `NR` rows of weights.
#[inline(always)]
fn row_tiles<S: Simd, const MR: usize, const NR: usize>(
    simd: S,
    x: &[f32],
    weights: &[f32],
    rows: &mut [&mut [f32]],
    k: usize,
    column: usize,
) {
    for (x_tile, out_tile) in x.chunks(MR * k).zip(rows.chunks_mut(MR)) {
        if out_tile.len() == MR {
            tile::<S, MR, NR>(simd, x_tile, weights, out_tile, k, column);
        } else {
            for (x_row, out_row) in x_tile.chunks(k).zip(out_tile.chunks_mut(1)) {
                tile::<S, 1, NR>(simd, x_row, weights, out_row, k, column);
            }
        }
    }
}

/// `MR · NR` inner products at once. The order of each sum does not depend on the tile's shape.
#[inline(always)]
fn tile<S: Simd, const MR: usize, const NR: usize>(
    simd: S,
    x: &[f32],
    w: &[f32],
    out: &mut [&mut [f32]],
    k: usize,
    column: usize,
) {
    let vectors = k / S::F32_LANES;
    let x_rows: [(&[S::f32s], &[f32]); MR] = std::array::from_fn(|i| {
        let (head, tail) = S::as_simd_f32s(&x[i * k..(i + 1) * k]);
        (&head[..vectors], tail)
    });
    let w_rows: [(&[S::f32s], &[f32]); NR] = std::array::from_fn(|j| {
        let (head, tail) = S::as_simd_f32s(&w[j * k..(j + 1) * k]);
        (&head[..vectors], tail)
    });
    let mut sums = [[simd.splat_f32s(0.0); NR]; MR];
    for step in 0..vectors {
        let right: [S::f32s; NR] = std::array::from_fn(|j| w_rows[j].0[step]);
        for i in 0..MR {
            let left = x_rows[i].0[step];
            for j in 0..NR {
                sums[i][j] = simd.mul_add_e_f32s(left, right[j], sums[i][j]);
            }
        }
    }
    for i in 0..MR {
        for j in 0..NR {
            let mut sum = simd.reduce_sum_f32s(sums[i][j]);
            for (left, right) in x_rows[i].1.iter().zip(w_rows[j].1) {
                sum += left * right;
            }
            out[i][column + j] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_the_definition_and_does_not_depend_on_neighbours(
            m in 1usize..140, n in 1usize..130, k in 1usize..90, seed in any::<u64>()
        ) {
            let (x, w) = (numbers(m * k, seed), numbers(n * k, !seed));
            let mut out = vec![f32::NAN; m * n];
            linear(&x, &w, &mut out, k);
            for i in 0..m {
                for j in 0..n {
                    let expected: f64 = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l])).sum();
                    prop_assert!((f64::from(out[i * n + j]) - expected).abs() < 1e-4);
                }
            }
            let mut alone = vec![f32::NAN; n];
            linear(&x[(m - 1) * k..], &w, &mut alone, k);
            prop_assert_eq!(&alone[..], &out[(m - 1) * n..]);
        }
    }
}
