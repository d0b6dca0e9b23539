//! Losses of the tokenizer's training and their gradients: CTC, HuBERT's masked prediction, the codebook, and units that do not
//! change with noise.

use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::config::UNIT_FRAMES;
use super::ctc::{ctc_loss, softmax_rows};
use super::data::Batch;
use super::network::Tokenizer;
use super::train::TrainConfig;
use crate::audio::MELS;

/// Frames of one masked span: 200 ms, about three phones.
const SPAN: usize = 5;
/// Chance that a span starts at a frame: about a third of the frames are masked.
const SPAN_START: f64 = 0.08;
/// Share of the utterances of a batch of the HuBERT stage that spans are hidden of. The others are whole, as at run time, and it is
/// they who teach the codebook.
const MASKED_SHARE: f64 = 0.25;

/// What is taught besides the phones; the teacher is a frozen network with its codebook and hears clean audio.
#[derive(Clone, Copy)]
pub(super) enum Lesson<'a> {
    Phones,
    /// The teacher's units where frames are masked (HuBERT, Hsu et al. 2021).
    Masked(&'a Tokenizer),
    /// The teacher's units at every frame, from disturbed audio, in the teacher's codebook (units that are invariant to augmentation,
    /// Gat et al. 2022, as cross-entropy frame by frame: disturbance does not move the frames).
    Clean(&'a Tokenizer),
}

/// What one step yields.
pub(super) struct Losses {
    /// Its gradient is that of the losses; its value means nothing.
    surrogate: Tensor<1>,
    /// CTC loss per phone.
    pub ctc: f64,
    /// Masked-prediction loss per masked frame, and the share predicted right.
    pub masked: Option<(f64, f64)>,
    pub quantised: Option<QuantisedLosses>,
}

/// What the quantised features yield.
pub(super) struct QuantisedLosses {
    /// CTC loss per phone.
    pub ctc: f64,
    /// Mean squared distance of the features to their centroids.
    pub distance: f64,
    /// Share of the frames whose unit is the teacher's of the clean audio, where that is the lesson.
    pub kept: Option<f64>,
    pub found: Found,
}

/// The features that each unit was given to.
#[derive(Default)]
pub(super) struct Found {
    /// `[k, d]`
    sums: Vec<f32>,
    /// `[k]`
    counts: Vec<f32>,
}

impl Found {
    pub fn new(features: &[f32], units: &[i64], k: usize) -> Self {
        let d = features.len() / units.len().max(1);
        let mut found = Self { sums: vec![0.0; k * d], counts: vec![0.0; k] };
        for (feature, unit) in features.chunks(d.max(1)).zip(units) {
            let unit = *unit as usize;
            found.counts[unit] += 1.0;
            found.sums[unit * d..][..d].iter_mut().zip(feature).for_each(|(sum, value)| *sum += value);
        }
        found
    }

    pub fn add(&mut self, other: &Self) {
        self.sums.resize(other.sums.len(), 0.0);
        self.counts.resize(other.counts.len(), 0.0);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, value)| *sum += value);
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, value)| *sum += value);
    }

    /// Moves each centroid towards the mean of its features: k-means in mini-batches (Sculley 2010), with a fixed rate because
    /// the features move too. Centroids that follow by gradient fall behind them.
    pub fn follow(&self, model: &mut Tokenizer, rate: f32) {
        let centroids = model.centroids.val();
        let (device, [k, d]) = (centroids.device(), centroids.dims());
        let mut values: Vec<f32> = centroids.into_data().try_to_vec().expect("centroids are f32");
        for ((centroid, sum), count) in values.chunks_mut(d).zip(self.sums.chunks(d)).zip(&self.counts) {
            let share = (rate * count).min(1.0);
            if *count > 0.0 {
                centroid.iter_mut().zip(sum).for_each(|(value, sum)| *value += share * (sum / count - *value));
            }
        }
        let centroids = Tensor::from_data(TensorData::new(values, [k, d]), &device);
        model.centroids = Param::initialized(model.centroids.id, centroids).set_require_grad(false);
    }
}

/// Gradients of a batch: its halves are worked on side by side, each by a copy of the network with a graph of its own, because
/// most operations of Flex use one core. The halves are fixed and summed in order, so the number of cores changes no digit.
pub(super) fn gradients(
    model: &Tokenizer,
    batch: &Batch,
    lesson: Lesson<'_>,
    config: &TrainConfig,
    rng: &(dyn Fn(u64) -> ChaCha8Rng + Sync),
) -> (GradientsParams, Losses) {
    let device = model.mask.val().device();
    let halves = batch.halves();
    let results: Vec<(GradientsParams, Losses, f64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(&halves)
            .map(|(part, half)| {
                let (copy, device) = (model.clone(), &device);
                scope.spawn(move || {
                    let copy = copy.fork(device);
                    let losses = losses(&copy, half, lesson, config, &mut rng(part));
                    let weight = half.size as f64 / batch.size as f64;
                    let surrogate = losses.surrogate.clone() * weight;
                    (GradientsParams::from_grads(surrogate.backward(), &copy), losses, weight)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a half of the batch failed")).collect()
    });
    let mut sum = GradientsAccumulator::new();
    let mut total = Losses { surrogate: Tensor::zeros([1], &device), ctc: 0.0, masked: None, quantised: None };
    for (gradients, losses, weight) in results {
        sum.accumulate(model, gradients);
        total.ctc += weight * losses.ctc;
        if let Some((loss, accuracy)) = losses.masked {
            let (loss_so_far, accuracy_so_far) = total.masked.unwrap_or_default();
            total.masked = Some((loss_so_far + weight * loss, accuracy_so_far + weight * accuracy));
        }
        if let Some(part) = losses.quantised {
            let sum =
                total.quantised.get_or_insert_with(|| QuantisedLosses { ctc: 0.0, distance: 0.0, kept: None, found: Found::default() });
            sum.ctc += weight * part.ctc;
            sum.distance += weight * part.distance;
            sum.kept = part.kept.map(|kept| sum.kept.unwrap_or_default() + weight * kept);
            sum.found.add(&part.found);
        }
    }
    (sum.grads(), total)
}

fn losses(model: &Tokenizer, batch: &Batch, lesson: Lesson<'_>, config: &TrainConfig, rng: &mut ChaCha8Rng) -> Losses {
    let device = model.mask.val().device();
    let (b, t) = (batch.size, batch.frames);
    let mut x = model.stem(mel_tensor(batch, &batch.mel, &device)); // [B, T, d]
    let mut hidden = Vec::new();
    if matches!(lesson, Lesson::Masked(_)) {
        hidden = masked_frames(&batch.lengths, t, rng);
        let mut keep = vec![1.0f32; b * t];
        hidden.iter().for_each(|frame| keep[*frame as usize] = 0.0);
        let keep = Tensor::<3>::from_data(TensorData::new(keep, [b, t, 1]), &device);
        let d = config.network.width;
        let mask = model.mask.val().reshape([1, 1, d]) * (keep.clone() - 1.0).neg(); // [B, T, d]
        x = x * keep + mask;
    }
    let features = model.encode(x); // [B, T, d]
    let logits = model.phone_logits(features.clone()); // [B, T, phones]
    let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
    let ctc = ctc_loss(&values, t, config.network.phones, &batch.lengths, &batch.targets, config.prior_scale);
    let gradient = Tensor::<3>::from_data(TensorData::new(ctc.gradient, [b, t, config.network.phones]), &device);
    let mut surrogate = (logits * gradient).sum();

    let learns_codebook = matches!(lesson, Lesson::Masked(_)) && config.quantised_weight > 0.0;
    let quantised = (learns_codebook || matches!(lesson, Lesson::Clean(_))).then(|| {
        let taught = match lesson {
            Lesson::Clean(teacher) => Some(clean_units(teacher, batch)),
            Lesson::Phones | Lesson::Masked(_) => None,
        };
        let (of_quantised, losses) = quantised(model, features.clone(), batch, &hidden, taught.as_deref(), config);
        surrogate = surrogate.clone() + of_quantised;
        losses
    });
    let mut masked = None;
    if let (Lesson::Masked(teacher), false) = (lesson, hidden.is_empty()) {
        let plain = teacher.mask.val().device();
        let d = config.network.width;
        // The teacher hears only the utterances that it is asked about.
        let mut rows: Vec<i64> = hidden.iter().map(|frame| frame / t as i64).collect();
        rows.dedup();
        let place = |frame: &i64| rows.partition_point(|row| *row < frame / t as i64) as i64 * t as i64 + frame % t as i64;
        let taught: Vec<i64> = hidden.iter().map(place).collect();
        let clean = mel_tensor(batch, batch.clean.as_ref().unwrap_or(&batch.mel), &plain).select(0, indices(&rows, &plain));
        let taught = teacher.features(clean).reshape([rows.len() * t, d]).select(0, indices(&taught, &plain));
        let labels: Vec<i64> = teacher.quantise(taught).into_data().iter::<i64>().collect();
        let logits = model.unit_head.forward(features.reshape([b * t, d]).select(0, indices(&hidden, &device))); // [masked, k]
        let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
        let (loss, accuracy, gradient) = cross_entropy(&values, config.network.units, &labels, config.masked_weight);
        let gradient = Tensor::<2>::from_data(TensorData::new(gradient, logits.dims()), &device);
        surrogate = surrogate + (logits * gradient).sum();
        masked = Some((loss, accuracy));
    }
    Losses { surrogate, ctc: ctc.loss, masked, quantised }
}

fn indices(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// The teacher's units of the batch's clean audio, `B × T`.
fn clean_units(teacher: &Tokenizer, batch: &Batch) -> Vec<i64> {
    let features = teacher.features(mel_tensor(batch, batch.clean.as_ref().unwrap_or(&batch.mel), &teacher.mask.val().device()));
    let [b, t, d] = features.dims();
    teacher.quantise(features.reshape([b * t, d])).into_data().iter::<i64>().collect()
}

/// CTC over the centroids of `features` `[B, T, d]`, with the gradient passed straight through to the features, which are drawn to
/// their centroids, or to those of the units that they are `taught` to be (`B × T`). Utterances with `hidden` frames take no part:
/// they are none at run time. Returns a tensor whose gradient is that of the losses, and the losses.
fn quantised(
    model: &Tokenizer,
    features: Tensor<3>,
    batch: &Batch,
    hidden: &[i64],
    taught: Option<&[i64]>,
    config: &TrainConfig,
) -> (Tensor<1>, QuantisedLosses) {
    let device = features.device();
    let (b, t, d) = (batch.size, batch.frames, config.network.width);
    let mut lengths = batch.lengths.clone();
    hidden.iter().for_each(|frame| lengths[*frame as usize / t] = 0);
    let features = features.reshape([b * t, d]);
    let units = model.quantise(features.clone().detach()); // [B T]
    let centroids = model.centroids.val().detach().select(0, units.clone()); // [B T, d]
    let passed = features.clone() + (centroids - features.clone()).detach();
    let logits = model.phone_logits(passed.reshape([b, t, d]));
    let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
    let ctc = ctc_loss(&values, t, config.network.phones, &lengths, &batch.targets, config.prior_scale);
    let mut gradient = ctc.gradient;
    gradient.iter_mut().for_each(|value| *value *= config.quantised_weight);
    let gradient = Tensor::<3>::from_data(TensorData::new(gradient, [b, t, config.network.phones]), &device);

    let real: Vec<i64> = (0..b).flat_map(|i| (i * t) as i64..(i * t + lengths[i]) as i64).collect();
    if real.is_empty() {
        let found = Found { sums: vec![0.0; config.network.units * d], counts: vec![0.0; config.network.units] };
        return ((logits * gradient).sum(), QuantisedLosses { ctc: ctc.loss, distance: 0.0, kept: None, found });
    }
    let at = |values: &[i64]| real.iter().map(|frame| values[*frame as usize]).collect::<Vec<_>>();
    let (features, units) = (features.select(0, indices(&real, &device)), at(&units.into_data().iter::<i64>().collect::<Vec<_>>()));
    let mut surrogate = (logits * gradient).sum();
    let (mut goals, mut kept) = (units.clone(), None);
    if let Some(taught) = taught {
        goals = at(taught);
        // The likelier a unit, the nearer its centroid: a mixture of Gaussians with one variance.
        let centroids = model.centroids.val().detach(); // [k, d]
        let norms = centroids.clone().square().sum_dim(1).transpose(); // [1, k]
        let logits = (features.clone().matmul(centroids.transpose()) * 2.0 - norms) / (config.clean_spread * d as f32); // [n, k]
        let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
        let (_, right, gradient) = cross_entropy(&values, config.network.units, &goals, config.clean_weight);
        surrogate = surrogate + (logits.clone() * Tensor::<2>::from_data(TensorData::new(gradient, logits.dims()), &device)).sum();
        kept = Some(right);
    }
    let centroids = model.centroids.val().detach().select(0, indices(&goals, &device)); // [n, d]
    let distance = (features.clone() - centroids).square().mean();
    let values: Vec<f32> = features.detach().into_data().try_to_vec().expect("features are f32");
    let losses = QuantisedLosses {
        ctc: ctc.loss,
        distance: f64::from(distance.clone().detach().into_scalar::<f32>()),
        kept,
        found: Found::new(&values, &units, config.network.units),
    };
    (surrogate + distance * config.commitment, losses)
}

/// Mean cross-entropy of rows of logits, the share right, and `weight` times the gradient.
fn cross_entropy(logits: &[f32], classes: usize, labels: &[i64], weight: f32) -> (f64, f64, Vec<f32>) {
    let mut rows = softmax_rows(logits, classes);
    let scale = weight / labels.len().max(1) as f32;
    let (loss, right) = rows
        .par_chunks_mut(classes)
        .zip(labels)
        .map(|(row, label)| {
            let label = *label as usize;
            let p = row[label];
            let right = row.iter().all(|other| *other <= p);
            row.iter_mut().for_each(|value| *value *= scale);
            row[label] -= scale;
            (f64::from(-p.max(1e-30).ln()), f64::from(u8::from(right)))
        })
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    let n = labels.len().max(1) as f64;
    (loss / n, right / n, rows)
}

/// Spans of frames to hide in some utterances ([`MASKED_SHARE`]), as indices into `B × T`.
fn masked_frames(lengths: &[usize], t: usize, rng: &mut ChaCha8Rng) -> Vec<i64> {
    let mut hidden = Vec::new();
    for (i, length) in lengths.iter().enumerate() {
        if !rng.random_bool(MASKED_SHARE) {
            continue;
        }
        let mut until = 0;
        for frame in 0..*length {
            if rng.random_bool(SPAN_START) {
                until = frame + SPAN;
            }
            if frame < until {
                hidden.push((i * t + frame) as i64);
            }
        }
    }
    hidden
}

pub(super) fn mel_tensor(batch: &Batch, mel: &[f32], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(mel.to_vec(), [batch.size, batch.frames * UNIT_FRAMES, MELS]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenizerConfig;

    #[test]
    fn centroids_follow_their_features_and_the_others_stay() {
        let device = Device::flex();
        let network =
            TokenizerConfig { width: 32, layers: 1, layer: 1, heads: 2, feed_forward: 64, units: 12, ..TokenizerConfig::default() };
        let mut model = network.init(&device);
        let before: Vec<f32> = model.centroids.val().into_data().try_to_vec().expect("f32");
        // Unit 3 found a feature of ones and one of threes, in two halves of a batch: their mean is two.
        let mut found = Found::new(&[1.0; 32], &[3], 12);
        found.add(&Found::new(&[3.0; 32], &[3], 12));
        found.follow(&mut model, 0.25);
        let after: Vec<f32> = model.centroids.val().into_data().try_to_vec().expect("f32");
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let expected = if i / 32 == 3 { before + 0.5 * (2.0 - before) } else { *before };
            assert!((after - expected).abs() < 1e-6, "value {i}");
        }
    }

    #[test]
    fn the_cross_entropy_gradient_agrees_with_finite_differences() {
        let logits = [0.3f32, -0.2, 1.0, 0.5, 0.1, -1.0];
        let labels = [2, 0];
        let (_, _, gradient) = cross_entropy(&logits, 3, &labels, 1.0);
        for i in 0..logits.len() {
            let loss_at = |x: f32| {
                let mut moved = logits;
                moved[i] = x;
                cross_entropy(&moved, 3, &labels, 1.0).0
            };
            let numeric = (loss_at(logits[i] + 1e-2) - loss_at(logits[i] - 1e-2)) / 2e-2;
            assert!((numeric - f64::from(gradient[i])).abs() < 1e-3);
        }
    }
}
