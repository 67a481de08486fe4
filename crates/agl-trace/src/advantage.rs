//! Advantages: how much better a rollout did than was to be expected. Pure functions of rewards and groups.
//!
//! A rollout without a reward has no advantage and counts in no average: it is never taken for one that earned 0.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// How rewards become advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The reward less its group's mean, over its group's standard deviation (Shao et al., "DeepSeekMath",
    /// arXiv:2402.03300). A group whose rewards are all equal has advantages of 0.
    #[default]
    Grpo,
    /// As GRPO, without the division (Liu et al., "Understanding R1-Zero-Like Training", arXiv:2503.20783).
    DrGrpo,
    /// The reward less the mean of the others of its group (Ahmadian et al., "Back to Basics", arXiv:2402.14740). A
    /// rollout that is alone in its group has none to be compared with, and gets 0.
    Rloo,
    /// The reward less the mean of the whole batch, over the batch's standard deviation (Hu et al., "REINFORCE++",
    /// arXiv:2501.03262).
    ReinforcePlusPlus,
    /// The reward less its group's mean, over the standard deviation of these differences in the whole batch (the same
    /// paper's variant with a baseline).
    ReinforcePlusPlusBaseline,
}

/// Keeps divisions by a standard deviation finite.
const EPSILON: f64 = 1e-6;

/// The advantage of each rollout; `groups` and `rewards` have one entry for each.
#[must_use]
pub fn advantages(estimator: Estimator, groups: &[&str], rewards: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut members: HashMap<&str, Vec<f64>> = HashMap::new();
    for (group, reward) in groups.iter().zip(rewards) {
        members.entry(group).or_default().extend(reward);
    }
    let group_mean = |group: &str| members.get(group).map_or(0.0, |rewards| mean(rewards));
    let each = |of: &dyn Fn(&str, f64) -> f64| -> Vec<Option<f64>> {
        groups.iter().zip(rewards).map(|(group, reward)| reward.map(|reward| of(group, reward))).collect()
    };
    match estimator {
        Estimator::Grpo => {
            let stats: HashMap<&str, (f64, f64)> = members
                .iter()
                .map(|(group, rewards)| (*group, (mean(rewards), deviation(rewards))))
                .collect();
            each(&|group, reward| {
                let (mean, deviation) = stats.get(group).copied().unwrap_or_default();
                (reward - mean) / (deviation + EPSILON)
            })
        }
        Estimator::DrGrpo => each(&|group, reward| reward - group_mean(group)),
        Estimator::Rloo => each(&|group, reward| {
            let rewards = members.get(group).map(Vec::as_slice).unwrap_or_default();
            let others = rewards.len().saturating_sub(1);
            if others == 0 {
                return 0.0;
            }
            reward - (rewards.iter().sum::<f64>() - reward) / count(others)
        }),
        Estimator::ReinforcePlusPlus => whiten(each(&|_, reward| reward)),
        Estimator::ReinforcePlusPlusBaseline => whiten(each(&|group, reward| reward - group_mean(group))),
    }
}

/// Values less their mean, over their standard deviation.
fn whiten(values: Vec<Option<f64>>) -> Vec<Option<f64>> {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let (mean, deviation) = (mean(&known), deviation(&known));
    values.into_iter().map(|value| value.map(|value| (value - mean) / (deviation + EPSILON))).collect()
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / count(values.len()) }
}

/// The standard deviation of a sample (over n - 1), as trainers use it; 0 for less than two values.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / count(values.len() - 1)).sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "no batch has 2^52 rollouts")]
fn count(count: usize) -> f64 {
    count as f64
}

/// How much each trained token counts so that each rollout counts the same, however many tokens and rows it has (the
/// normalization by rollout of "Agent Lightning v1.0", arXiv:2608.17528): 1 over the tokens of its rollout.
///
/// `rollouts` has each row's rollout, `tokens` how many of its tokens are trained on. Without any the weight is 0.
#[must_use]
pub fn rollout_weights(rollouts: &[&str], tokens: &[usize]) -> Vec<f64> {
    let mut total: HashMap<&str, usize> = HashMap::new();
    for (rollout, tokens) in rollouts.iter().zip(tokens) {
        *total.entry(rollout).or_default() += tokens;
    }
    let weight = |rollout: &&str| match total.get(*rollout).copied().unwrap_or_default() {
        0 => 0.0,
        tokens => 1.0 / count(tokens),
    };
    rollouts.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [&str; 5] = ["a", "a", "b", "b", "b"];
    const REWARDS: [Option<f64>; 5] = [Some(1.0), Some(0.0), Some(2.0), None, Some(4.0)];

    fn is_close(estimator: Estimator, expected: [f64; 4]) {
        let found = advantages(estimator, &GROUPS, &REWARDS);
        assert_eq!(found[3], None, "{estimator:?}");
        for (found, expected) in found.iter().flatten().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{estimator:?}: {found} is not {expected}");
        }
    }

    #[test]
    fn each_estimator_on_known_numbers() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        is_close(Estimator::Grpo, [half, -half, -half, half]);
        is_close(Estimator::DrGrpo, [0.5, -0.5, -1.0, 1.0]);
        is_close(Estimator::Rloo, [1.0, -1.0, -2.0, 2.0]);
        // mean 1.75, standard deviation sqrt(8.75 / 3)
        let deviation = (8.75_f64 / 3.0).sqrt();
        is_close(
            Estimator::ReinforcePlusPlus,
            [-0.75, -1.75, 0.25, 2.25].map(|value: f64| value / deviation),
        );
        let deviation = (2.5_f64 / 3.0).sqrt();
        is_close(
            Estimator::ReinforcePlusPlusBaseline,
            [0.5, -0.5, -1.0, 1.0].map(|value: f64| value / deviation),
        );
    }

    #[test]
    fn equal_or_lonely_rewards_teach_nothing() {
        for estimator in [Estimator::Grpo, Estimator::DrGrpo, Estimator::Rloo] {
            assert_eq!(advantages(estimator, &["a", "a"], &[Some(3.0); 2]), [Some(0.0); 2]);
            assert_eq!(advantages(estimator, &["a"], &[Some(3.0)]), [Some(0.0)]);
            assert_eq!(advantages(estimator, &["a"], &[None]), [None]);
        }
        assert!(advantages(Estimator::Grpo, &[], &[]).is_empty());
    }

    #[test]
    fn rollouts_count_the_same() {
        // The example of 1/2 against 3/4: one rollout with a row of 2 tokens, one with rows of 1 and 3.
        let weights = rollout_weights(&["x", "y", "y", "z"], &[2, 1, 3, 0]);
        assert_eq!(weights, [0.5, 0.25, 0.25, 0.0]);
    }
}
