//! Choosing the next token from logits.

use crate::kernels::log_sum_exp;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Samples from the smallest set of likeliest tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Samples from this many likeliest tokens; 0 from all.
    pub top_k: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0 }
    }
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability in the model's own distribution (temperature 1,
    /// nothing cut off).
    pub logprob: f32,
    /// The likeliest tokens with theirs, best first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// A number in [0, 1) that depends on nothing but the seed, the choice and the step, so that a
/// request's randomness is the same whatever else the engine does. (SplitMix64.)
pub(crate) fn uniform(seed: u64, choice: usize, step: usize) -> f64 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let bits = mix(mix(mix(seed) ^ choice as u64) ^ step as u64);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Picks a token. `random` is a number in [0, 1); `top` is how many of the likeliest to report.
pub(crate) fn sample(logits: &[f32], sampling: Sampling, random: f64, top: usize) -> TokenOutput {
    let normalizer = log_sum_exp(logits);
    let token = if sampling.temperature <= 0.0 || sampling.top_k == 1 {
        likeliest(logits)
    } else {
        draw(logits, sampling, random)
    };
    TokenOutput {
        token: token as u32,
        logprob: logits[token] - normalizer,
        top: best(logits, top).into_iter().map(|id| (id as u32, logits[id] - normalizer)).collect(),
    }
}

/// The index of the largest logit; the first of equals.
fn likeliest(logits: &[f32]) -> usize {
    let highest = crate::kernels::max(logits);
    logits.iter().position(|&logit| logit == highest).unwrap_or(0)
}

/// The indices of the `count` largest logits, largest first.
fn best(logits: &[f32], count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let order = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

fn draw(logits: &[f32], sampling: Sampling, random: f64) -> usize {
    let highest = crate::kernels::max(logits);
    let mut weights = logits.to_vec();
    let inverse = 1.0 / sampling.temperature;
    let total = crate::kernels::arch().dispatch(
        #[inline(always)]
        || crate::kernels::exp_in_place(&mut weights, inverse, highest),
    );
    if sampling.top_k > 0 && sampling.top_k < weights.len() {
        let kept = best(logits, sampling.top_k);
        cut(&mut weights, &kept);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let target = total * f64::from(sampling.top_p);
        // All tokens below this share together weigh less than what is cut off anyway.
        let floor = ((total - target) / weights.len() as f64) as f32;
        let mut candidates: Vec<usize> = (0..weights.len()).filter(|&id| weights[id] >= floor).collect();
        candidates.sort_unstable_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let mut sum = 0.0;
        let inside = candidates.iter().take_while(|&&id| {
            let before = sum;
            sum += f64::from(weights[id]);
            before < target
        });
        let kept: Vec<usize> = inside.copied().collect();
        cut(&mut weights, &kept);
    }
    let total = if sampling.top_k > 0 || sampling.top_p < 1.0 {
        weights.iter().map(|&w| f64::from(w)).sum()
    } else {
        f64::from(total)
    };
    let mut left = random * total;
    let mut last = likeliest(logits);
    for (id, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            left -= f64::from(weight);
            last = id;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// Sets all weights but those of `kept` to 0.
fn cut(weights: &mut [f32], kept: &[usize]) {
    let values: Vec<f32> = kept.iter().map(|&id| weights[id]).collect();
    weights.fill(0.0);
    for (&id, value) in kept.iter().zip(values) {
        weights[id] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling) -> Vec<f64> {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let mut counts = vec![0f64; 4];
        for step in 0..20_000 {
            let chosen = sample(&logits, sampling, uniform(7, 0, step), 0);
            counts[chosen.token as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn close(left: &[f64], right: &[f64]) -> bool {
        left.iter().zip(right).all(|(l, r)| (l - r).abs() < 0.02)
    }

    #[test]
    fn draws_follow_the_distribution() {
        assert!(close(&frequencies(Sampling::default()), &[0.1, 0.2, 0.3, 0.4]));
        let sharp = Sampling { temperature: 0.5, ..Sampling::default() };
        assert!(close(&frequencies(sharp), &[0.0333, 0.1333, 0.3, 0.5333]));
        let nucleus = Sampling { top_p: 0.6, ..Sampling::default() };
        assert!(close(&frequencies(nucleus), &[0.0, 0.0, 0.4286, 0.5714]));
        let two = Sampling { top_k: 2, ..Sampling::default() };
        assert!(close(&frequencies(two), &[0.0, 0.0, 0.4286, 0.5714]));
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert!(close(&frequencies(greedy), &[0.0, 0.0, 0.0, 1.0]));
    }

    #[test]
    fn log_probabilities_are_the_model_s_own() {
        let logits = [1.0f32, 3.0, 2.0];
        let chosen = sample(&logits, Sampling { temperature: 0.0, top_p: 0.1, top_k: 1 }, 0.5, 2);
        let normalizer = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
        assert_eq!(chosen.token, 1);
        assert!((chosen.logprob - (3.0 - normalizer)).abs() < 1e-6);
        assert_eq!(chosen.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    }
}
