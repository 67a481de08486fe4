//! Causal attention over keys and values that lie in pages of [`PAGE`] positions.
//!
//! Keys are stored dimension by dimension within a page, values position by position: both inner
//! loops then run along vectors and need no sums across lanes.

use super::{arch, dot, exp_in_place, max, threads_for};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Positions a page.
pub(crate) const PAGE: usize = 16;

/// Query rows of one sequence that a task handles.
const ROWS_PER_TASK: usize = 16;

/// Queries (row and head) that share a pass over the keys.
const TILE: usize = 4;

/// Keys and values of all layers, page by page.
#[derive(Debug)]
pub(crate) struct KvPages {
    pages: Vec<Vec<f32>>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// `head_dim` rounded up so that rows of values are whole vectors.
    padded: usize,
}

impl KvPages {
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { pages: Vec::new(), layers, kv_heads, head_dim, padded: head_dim.next_multiple_of(PAGE) }
    }

    /// Number of `f32` in a page.
    pub(crate) fn page_len(&self) -> usize {
        self.layers * self.kv_heads * self.block_len()
    }

    fn block_len(&self) -> usize {
        PAGE * (self.head_dim + self.padded)
    }

    /// Makes pages `0..count` usable.
    pub(crate) fn grow(&mut self, count: usize) {
        let len = self.page_len();
        while self.pages.len() < count {
            self.pages.push(vec![0f32; len]);
        }
    }

    /// Copies the whole of page `from` over page `to`.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        if from == to {
            return;
        }
        let mut target = std::mem::take(&mut self.pages[to]);
        target.copy_from_slice(&self.pages[from]);
        self.pages[to] = target;
    }

    fn offset(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * self.block_len()
    }

    /// Keys `[head_dim, PAGE]` and values `[PAGE, padded]` of one head in one page.
    fn block(&self, page: u32, layer: usize, kv_head: usize) -> (&[f32], &[f32]) {
        let start = self.offset(layer, kv_head);
        self.pages[page as usize][start..start + self.block_len()].split_at(PAGE * self.head_dim)
    }

    fn write(&mut self, page: u32, slot: usize, layer: usize, k_row: &[f32], v_row: &[f32]) {
        let (head_dim, padded, block_len) = (self.head_dim, self.padded, self.block_len());
        for kv_head in 0..self.kv_heads {
            let start = self.offset(layer, kv_head);
            let block = &mut self.pages[page as usize][start..start + block_len];
            let (keys, values) = block.split_at_mut(PAGE * head_dim);
            let head = kv_head * head_dim..(kv_head + 1) * head_dim;
            for (&key, column) in k_row[head.clone()].iter().zip(keys.chunks_exact_mut(PAGE)) {
                column[slot] = key;
            }
            values[slot * padded..slot * padded + head_dim].copy_from_slice(&v_row[head]);
        }
    }
}

/// Consecutive positions of one sequence within a batch of rows.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The rows of the batch.
    pub(crate) rows: Range<usize>,
    /// The position of the first row in its sequence.
    pub(crate) start: usize,
    /// The sequence's pages, from position 0 to the segment's last.
    pub(crate) pages: Vec<u32>,
}

/// Writes the keys and values of all rows (`[rows, kv_heads · head_dim]`) to their pages.
pub(crate) fn store(cache: &mut KvPages, layer: usize, segments: &[Segment], k: &[f32], v: &[f32]) {
    let width = cache.kv_heads * cache.head_dim;
    for segment in segments {
        for (offset, row) in segment.rows.clone().enumerate() {
            let position = segment.start + offset;
            let range = row * width..(row + 1) * width;
            cache.write(segment.pages[position / PAGE], position % PAGE, layer, &k[range.clone()], &v[range]);
        }
    }
}

/// For each row and head: the average of the values at its own and earlier positions, weighted by
/// the softmax of `q · k / sqrt(head_dim)`. `q` and `out` are `[rows, heads · head_dim]`; the keys
/// and values must have been [`store`]d.
pub(crate) fn attend(
    cache: &KvPages,
    layer: usize,
    segments: &[Segment],
    q: &[f32],
    heads: usize,
    out: &mut [f32],
) {
    let group = heads / cache.kv_heads;
    let group_width = group * cache.head_dim;
    let row_width = heads * cache.head_dim;
    let mut tasks = Vec::new();
    let mut work = 0;
    // The output of each row, cut into one piece for each key/value head.
    let mut pieces: Vec<Option<&mut [f32]>> = out.chunks_mut(group_width).map(Some).collect();
    for segment in segments {
        let mut offset = 0;
        while offset < segment.rows.len() {
            let count = ROWS_PER_TASK.min(segment.rows.len() - offset);
            let first_row = segment.rows.start + offset;
            for kv_head in 0..cache.kv_heads {
                let outputs = (first_row..first_row + count)
                    .filter_map(|row| pieces[row * cache.kv_heads + kv_head].take())
                    .collect();
                tasks.push(Task { segment, offset, kv_head, outputs });
            }
            work += count * (segment.start + offset + count) * row_width * 2;
            offset += count;
        }
    }
    let run = |task: Task<'_>| {
        arch().dispatch(Attend { task, cache, layer, q, group, row_width });
    };
    if threads_for(work) == 1 {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
}

struct Task<'a> {
    segment: &'a Segment,
    /// Of the task's first row within the segment.
    offset: usize,
    kv_head: usize,
    /// For each row: the heads that share this key/value head.
    outputs: Vec<&'a mut [f32]>,
}

struct Attend<'a> {
    task: Task<'a>,
    cache: &'a KvPages,
    layer: usize,
    q: &'a [f32],
    group: usize,
    row_width: usize,
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut task, cache, layer, q, group, row_width } = self;
        let head_dim = cache.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let queries = task.outputs.len() * group;
        let longest = task.segment.start + task.offset + task.outputs.len();
        let stride = longest.next_multiple_of(PAGE);
        let mut scores = vec![0f32; TILE * stride];
        let mut sums = vec![0f32; TILE * cache.padded];
        let mut first = 0;
        while first < queries {
            let count = TILE.min(queries - first);
            // A short last tile repeats its last query, so that there is one shape of inner loop.
            let query: [usize; TILE] = std::array::from_fn(|i| first + i.min(count - 1));
            let rows: [&[f32]; TILE] = std::array::from_fn(|i| {
                let row = task.segment.rows.start + task.offset + query[i] / group;
                let head = task.kv_head * group + query[i] % group;
                &q[row * row_width + head * head_dim..][..head_dim]
            });
            let lengths: [usize; TILE] =
                std::array::from_fn(|i| task.segment.start + task.offset + query[i] / group + 1);
            let tile_longest = lengths[TILE - 1];
            let pages = &task.segment.pages[..tile_longest.div_ceil(PAGE)];
            for (index, &page) in pages.iter().enumerate() {
                let (keys, _) = cache.block(page, layer, task.kv_head);
                score_page::<S>(simd, &rows, keys, &mut scores, stride, index * PAGE);
            }
            let mut totals = [1f32; TILE];
            for i in 0..TILE {
                let row = &mut scores[i * stride..][..pages.len() * PAGE];
                let (seen, unseen) = row.split_at_mut(lengths[i]);
                let highest = max(seen);
                totals[i] = exp_in_place(seen, scale, highest);
                unseen.fill(0.0);
            }
            sums.fill(0.0);
            for (index, &page) in pages.iter().enumerate() {
                let (_, values) = cache.block(page, layer, task.kv_head);
                let seen = PAGE.min(tile_longest - index * PAGE);
                add_page::<S>(
                    simd,
                    &scores,
                    stride,
                    index * PAGE,
                    &values[..seen * cache.padded],
                    &mut sums,
                    cache.padded,
                );
            }
            for i in 0..count {
                let target = &mut task.outputs[query[i] / group][(query[i] % group) * head_dim..][..head_dim];
                for (o, &sum) in target.iter_mut().zip(&sums[i * cache.padded..]) {
                    *o = sum / totals[i];
                }
            }
            first += count;
        }
    }
}

/// Inner products of the tile's queries with the keys of one page.
#[inline(always)]
fn score_page<S: Simd>(
    simd: S,
    queries: &[&[f32]; TILE],
    keys: &[f32],
    scores: &mut [f32],
    stride: usize,
    column: usize,
) {
    let per_row = PAGE / S::F32_LANES;
    let (key_vectors, _) = S::as_simd_f32s(keys);
    for part in 0..per_row {
        let mut sums = [simd.splat_f32s(0.0); TILE];
        for (dimension, key_row) in key_vectors.chunks_exact(per_row).enumerate() {
            for i in 0..TILE {
                sums[i] = simd.mul_add_e_f32s(simd.splat_f32s(queries[i][dimension]), key_row[part], sums[i]);
            }
        }
        for i in 0..TILE {
            let (target, _) = S::as_mut_simd_f32s(&mut scores[i * stride + column..][..PAGE]);
            target[part] = sums[i];
        }
    }
}

/// Adds one page's values, weighted, to the tile's sums (`[TILE, padded]`).
#[inline(always)]
fn add_page<S: Simd>(
    simd: S,
    weights: &[f32],
    stride: usize,
    column: usize,
    values: &[f32],
    sums: &mut [f32],
    padded: usize,
) {
    /// Vectors of one row of values that are summed together; with `TILE` they fill the registers.
    const WIDE: usize = 4;
    let (value_vectors, _) = S::as_simd_f32s(values);
    let per_row = padded / S::F32_LANES;
    let weight_rows: [&[f32]; TILE] = std::array::from_fn(|i| &weights[i * stride + column..][..PAGE]);
    let mut part = 0;
    while part < per_row {
        if part + WIDE <= per_row {
            add_columns::<S, WIDE>(simd, &weight_rows, value_vectors, per_row, part, sums, padded);
            part += WIDE;
        } else {
            add_columns::<S, 1>(simd, &weight_rows, value_vectors, per_row, part, sums, padded);
            part += 1;
        }
    }
}

#[inline(always)]
fn add_columns<S: Simd, const WIDE: usize>(
    simd: S,
    weights: &[&[f32]; TILE],
    values: &[S::f32s],
    per_row: usize,
    part: usize,
    sums: &mut [f32],
    padded: usize,
) {
    let mut totals: [[S::f32s; WIDE]; TILE] = std::array::from_fn(|i| {
        let (row, _) = S::as_simd_f32s(&sums[i * padded..][..padded]);
        std::array::from_fn(|c| row[part + c])
    });
    for (position, row) in values.chunks_exact(per_row).enumerate() {
        let row = &row[part..part + WIDE];
        for i in 0..TILE {
            let weight = simd.splat_f32s(weights[i][position]);
            for c in 0..WIDE {
                totals[i][c] = simd.mul_add_e_f32s(weight, row[c], totals[i][c]);
            }
        }
    }
    for i in 0..TILE {
        let (row, _) = S::as_mut_simd_f32s(&mut sums[i * padded..][..padded]);
        row[part..part + WIDE].copy_from_slice(&totals[i]);
    }
}

/// Shapes of an attention over whole sequences, without a cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Gradients of the attention over whole sequences with respect to `q`, `k` and `v`. The weights
/// are computed anew, row by row, instead of being kept from the forward pass.
pub(crate) fn attend_backward(
    shape: Heads,
    sequences: &[Range<usize>],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    grad: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Heads { heads, kv_heads, head_dim } = shape;
    let group = heads / kv_heads;
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let tasks: Vec<(Range<usize>, usize)> =
        sequences.iter().flat_map(|rows| (0..kv_heads).map(move |kv_head| (rows.clone(), kv_head))).collect();
    let head_of = |data: &[f32], rows: &Range<usize>, width: usize, start: usize, count: usize| -> Vec<f32> {
        rows.clone().flat_map(|row| data[row * width + start..][..count].iter().copied()).collect()
    };
    let parts: Vec<[Vec<f32>; 3]> = tasks
        .par_iter()
        .map(|(rows, kv_head)| {
            let wide = group * head_dim;
            let queries = head_of(q, rows, q_width, kv_head * wide, wide);
            let grads = head_of(grad, rows, q_width, kv_head * wide, wide);
            let keys = head_of(k, rows, kv_width, kv_head * head_dim, head_dim);
            let values = head_of(v, rows, kv_width, kv_head * head_dim, head_dim);
            arch().dispatch(
                #[inline(always)]
                || one_head_backward(&queries, &keys, &values, &grads, group, head_dim),
            )
        })
        .collect();
    let mut grad_q = vec![0f32; q.len()];
    let mut grad_k = vec![0f32; k.len()];
    let mut grad_v = vec![0f32; v.len()];
    for ((rows, kv_head), [dq, dk, dv]) in tasks.iter().zip(&parts) {
        let wide = group * head_dim;
        for (index, row) in rows.clone().enumerate() {
            grad_q[row * q_width + kv_head * wide..][..wide].copy_from_slice(&dq[index * wide..][..wide]);
            let kv = row * kv_width + kv_head * head_dim;
            grad_k[kv..][..head_dim].copy_from_slice(&dk[index * head_dim..][..head_dim]);
            grad_v[kv..][..head_dim].copy_from_slice(&dv[index * head_dim..][..head_dim]);
        }
    }
    (grad_q, grad_k, grad_v)
}

/// The backward pass of the query heads that share one key/value head, over one sequence.
#[inline(always)]
fn one_head_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    grad: &[f32],
    group: usize,
    head_dim: usize,
) -> [Vec<f32>; 3] {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut grad_q = vec![0f32; q.len()];
    let mut grad_k = vec![0f32; k.len()];
    let mut grad_v = vec![0f32; v.len()];
    let mut weights = vec![0f32; k.len() / head_dim];
    let mut slopes = weights.clone();
    for index in 0..q.len() / head_dim {
        let seen = index / group + 1;
        let head = index * head_dim..(index + 1) * head_dim;
        let (query, out_grad) = (&q[head.clone()], &grad[head.clone()]);
        let (weights, slopes) = (&mut weights[..seen], &mut slopes[..seen]);
        for (weight, key) in weights.iter_mut().zip(k.chunks_exact(head_dim)) {
            *weight = dot(query, key);
        }
        let highest = max(weights);
        let total = exp_in_place(weights, scale, highest);
        let mut mean = 0f32;
        for ((slope, weight), value) in
            slopes.iter_mut().zip(weights.iter_mut()).zip(v.chunks_exact(head_dim))
        {
            *weight /= total;
            *slope = dot(out_grad, value);
            mean += *weight * *slope;
        }
        let query_grad = &mut grad_q[head];
        for position in 0..seen {
            let at = position * head_dim;
            let slope = weights[position] * (slopes[position] - mean) * scale;
            for d in 0..head_dim {
                query_grad[d] += slope * k[at + d];
                grad_k[at + d] += slope * query[d];
                grad_v[at + d] += weights[position] * out_grad[d];
            }
        }
    }
    [grad_q, grad_k, grad_v]
}
