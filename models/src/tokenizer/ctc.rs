//! Connectionist temporal classification by hand (Graves et al. 2006): loss and gradient on the host.
//!
//! The gradient with respect to the logits is `p − γ`: the softmax less the share of each class in all alignments. The trainer
//! injects it as `(logits * gradient).sum()`, so the network's graph holds no trace of the dynamic programme.
//! Forward and backward variables are probabilities, normalised frame by frame, which needs no logarithm in the inner loop.
//!
//! With `prior_scale` α > 0 emissions are `p / prior^α` (label priors, Huang et al. 2024): the blank, being frequent, gets dearer
//! and alignments spread over the frames of a phone in place of one spike. The prior is the mean softmax of the batch, held constant.

use rayon::prelude::*;

/// The blank's class.
pub const BLANK: usize = 0;
/// Smallest prior of a class: a class that is never seen must not become free.
const MIN_PRIOR: f32 = 1e-3;

/// What a batch gives.
#[derive(Debug, Clone)]
pub struct CtcLoss {
    /// Negative log likelihood per target phone, over the feasible utterances.
    pub loss: f64,
    /// Gradient of `loss` with respect to the logits, `[B, T, classes]`.
    pub gradient: Vec<f32>,
    /// Utterances left out because their targets do not fit their frames.
    pub skipped: usize,
}

/// Loss of a batch of logits `[B, frames, classes]`; utterance i uses its first `lengths[i]` frames and must spell `targets[i]` (classes ≥ 1; may be empty).
pub fn ctc_loss(logits: &[f32], frames: usize, classes: usize, lengths: &[usize], targets: &[Vec<u16>], prior_scale: f32) -> CtcLoss {
    let probabilities = softmax_rows(logits, classes);
    let factors = prior_factors(&probabilities, frames, classes, lengths, prior_scale);
    loss_with(&factors, probabilities, frames, classes, lengths, targets)
}

/// The same with the factors of the priors given, which the gradient holds constant.
fn loss_with(factors: &[f64], probabilities: Vec<f32>, frames: usize, classes: usize, lengths: &[usize], targets: &[Vec<u16>]) -> CtcLoss {
    let mut gradient = probabilities;
    let results: Vec<Option<f64>> = gradient
        .par_chunks_mut(frames * classes)
        .zip(lengths.par_iter().zip(targets))
        .map(|(rows, (length, target))| {
            rows[length * classes..].fill(0.0);
            let loss = utterance(&mut rows[..length * classes], classes, target, factors);
            if loss.is_none() {
                rows.fill(0.0);
            }
            loss
        })
        .collect();
    let phones: usize = results.iter().zip(targets).filter(|(loss, _)| loss.is_some()).map(|(_, target)| target.len()).sum();
    let scale = 1.0 / phones.max(1) as f64;
    gradient.par_iter_mut().for_each(|value| *value *= scale as f32);
    CtcLoss { loss: results.iter().flatten().sum::<f64>() * scale, gradient, skipped: results.iter().filter(|loss| loss.is_none()).count() }
}

/// Softmax of each row of `classes` numbers.
pub fn softmax_rows(logits: &[f32], classes: usize) -> Vec<f32> {
    let mut rows = logits.to_vec();
    rows.par_chunks_mut(classes).for_each(|row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in row.iter_mut() {
            *value = (*value - max).exp();
            sum += *value;
        }
        row.iter_mut().for_each(|value| *value /= sum);
    });
    rows
}

/// `1 / prior^α` of each class.
fn prior_factors(probabilities: &[f32], frames: usize, classes: usize, lengths: &[usize], prior_scale: f32) -> Vec<f64> {
    let mut prior = vec![0.0f64; classes];
    let mut count = 0;
    for (rows, length) in probabilities.chunks(frames * classes).zip(lengths) {
        for row in rows[..length * classes].chunks(classes) {
            prior.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        }
        count += length;
    }
    prior.iter().map(|sum| (sum / count.max(1) as f64).max(f64::from(MIN_PRIOR)).powf(-f64::from(prior_scale))).collect()
}

/// One utterance: turns its probabilities `[T, classes]` into `p − γ` and gives the loss, or `None` if the target does not fit.
fn utterance(rows: &mut [f32], classes: usize, target: &[u16], factors: &[f64]) -> Option<f64> {
    let frames = rows.len() / classes;
    let repeats = target.windows(2).filter(|pair| pair[0] == pair[1]).count();
    if frames == 0 || frames < target.len() + repeats {
        return None;
    }
    // States: blank, phone, blank, phone, ... blank.
    let states = 2 * target.len() + 1;
    let class = |state: usize| if state.is_multiple_of(2) { BLANK } else { usize::from(target[state / 2]) };
    let skips: Vec<bool> = (0..states).map(|s| s >= 3 && s % 2 == 1 && class(s) != class(s - 2)).collect();
    let emissions: Vec<f64> =
        rows.chunks(classes).flat_map(|row| (0..states).map(|s| f64::from(row[class(s)].max(1e-30)) * factors[class(s)])).collect();
    // Only states that the start reaches and that still reach the end: others would eat the normalisation.
    let reachable = |t: usize| states.saturating_sub(2 * (frames - t))..states.min(2 * (t + 1));

    let mut alpha = vec![0.0f64; frames * states];
    let mut loss = 0.0;
    for t in 0..frames {
        let (done, rest) = alpha.split_at_mut(t * states);
        let (now, emission) = (&mut rest[..states], &emissions[t * states..][..states]);
        let mut sum = 0.0;
        for s in reachable(t) {
            let mass = match t.checked_sub(1) {
                None => 1.0,
                Some(before) => {
                    let before = &done[before * states..];
                    before[s] + if s >= 1 { before[s - 1] } else { 0.0 } + if skips[s] { before[s - 2] } else { 0.0 }
                }
            };
            now[s] = mass * emission[s];
            sum += now[s];
        }
        if sum <= 0.0 || !sum.is_finite() {
            return None;
        }
        now.iter_mut().for_each(|a| *a /= sum);
        loss -= sum.ln();
    }
    // At the last frame only the two final states are reachable, so their sum is 1 and nothing is left to divide by.

    let mut beta = vec![0.0f64; states];
    beta[states.saturating_sub(2)..].fill(1.0);
    let mut weighted = vec![0.0f64; states];
    for t in (0..frames).rev() {
        if t + 1 < frames {
            weighted.fill(0.0);
            let emission = &emissions[(t + 1) * states..][..states];
            reachable(t + 1).for_each(|s| weighted[s] = beta[s] * emission[s]);
            beta.fill(0.0);
            let mut sum = 0.0;
            for s in reachable(t) {
                beta[s] = weighted[s]
                    + if s + 1 < states { weighted[s + 1] } else { 0.0 }
                    + if s + 2 < states && skips[s + 2] { weighted[s + 2] } else { 0.0 };
                sum += beta[s];
            }
            if sum <= 0.0 {
                return None;
            }
            beta.iter_mut().for_each(|b| *b /= sum);
        }
        let alpha = &alpha[t * states..][..states];
        let total: f64 = alpha.iter().zip(&beta).map(|(a, b)| a * b).sum();
        let row = &mut rows[t * classes..][..classes];
        for s in reachable(t) {
            row[class(s)] -= (alpha[s] * beta[s] / total) as f32;
        }
    }
    Some(loss)
}

/// The phones of a path: repeats joined, blanks dropped.
pub fn collapse(path: &[usize]) -> Vec<u16> {
    let mut phones = Vec::new();
    let mut before = BLANK;
    for class in path {
        if *class != before && *class != BLANK {
            phones.push(*class as u16);
        }
        before = *class;
    }
    phones
}

/// The greedy reading of logits `[T, classes]`.
pub fn greedy(logits: &[f32], classes: usize) -> Vec<u16> {
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(BLANK, |(class, _)| class);
    collapse(&logits.chunks(classes).map(best).collect::<Vec<_>>())
}

/// Insertions, deletions and substitutions that turn one sequence into the other.
pub fn edit_distance(a: &[u16], b: &[u16]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    const CLASSES: usize = 5;

    fn case() -> (Vec<f32>, Vec<usize>, Vec<Vec<u16>>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let logits = (0..4 * 9 * CLASSES).map(|_| rng.random_range(-2.0..2.0)).collect();
        (logits, vec![9, 7, 4, 3], vec![vec![1, 2, 2, 3], vec![4], vec![], vec![1, 1, 1]])
    }

    /// Sum over every path, for short inputs.
    fn brute_force(logits: &[f32], target: &[u16]) -> f64 {
        let rows = softmax_rows(logits, CLASSES);
        let frames = rows.len() / CLASSES;
        let mut total = 0.0;
        for code in 0..CLASSES.pow(frames as u32) {
            let path: Vec<usize> = (0..frames).map(|t| code / CLASSES.pow(t as u32) % CLASSES).collect();
            if collapse(&path) == target {
                total += path.iter().enumerate().map(|(t, class)| f64::from(rows[t * CLASSES + class])).product::<f64>();
            }
        }
        -total.ln()
    }

    #[test]
    fn the_loss_is_the_sum_over_all_paths() {
        let (logits, _, _) = case();
        for target in [vec![1, 2], vec![2, 2], vec![], vec![1, 2, 3, 4, 1]] {
            let rows = &logits[..5 * CLASSES];
            let result = ctc_loss(rows, 5, CLASSES, &[5], std::slice::from_ref(&target), 0.0);
            let expected = brute_force(rows, &target) / target.len().max(1) as f64;
            assert!((result.loss - expected).abs() < 1e-5, "{target:?}: {} {expected}", result.loss);
        }
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences_and_what_does_not_fit_is_left_out() {
        let (mut logits, lengths, targets) = case();
        // Training has 0.3; a strong prior shows a gradient that would leave it out.
        for prior_scale in [0.0, 0.3, 1.0] {
            let result = ctc_loss(&logits, 9, CLASSES, &lengths, &targets, prior_scale);
            assert_eq!(result.skipped, 1);
            assert!(result.gradient[3 * 9 * CLASSES..].iter().all(|g| *g == 0.0));
            let factors = prior_factors(&softmax_rows(&logits, CLASSES), 9, CLASSES, &lengths, prior_scale);
            for i in 0..logits.len() {
                let (value, h) = (logits[i], 1e-2f32);
                let mut loss_at = |x: f32| {
                    logits[i] = x;
                    loss_with(&factors, softmax_rows(&logits, CLASSES), 9, CLASSES, &lengths, &targets).loss
                };
                let numeric = (loss_at(value + h) - loss_at(value - h)) / (2.0 * f64::from(h));
                logits[i] = value;
                assert!((numeric - f64::from(result.gradient[i])).abs() < 1e-3, "{prior_scale}, {i}: {numeric} {}", result.gradient[i]);
            }
        }
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edit_distance(&[1, 2, 3], &[1, 3]), 1);
        assert_eq!(edit_distance(&[], &[1, 3]), 2);
        assert_eq!(edit_distance(&[5, 2, 3], &[1, 2, 4, 3]), 2);
        assert_eq!(greedy(&[0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0], 2), [1, 1]);
    }
}
