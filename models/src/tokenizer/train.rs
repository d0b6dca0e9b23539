//! Training of the tokenizer in four stages, each resumable:
//!
//! 1. `ctc`: phones by CTC from scratch. Units that carry phones come from here (RECIPE.md).
//! 2. `teacher`: k-means on the features of the quantised layer; the frozen network with its codebook becomes the teacher.
//! 3. `hubert`: masked prediction of the teacher's units (HuBERT, Hsu et al. 2021) together with CTC. A quarter of the utterances of
//!    a batch are masked, the others are whole, as at run time; the teacher hears clean audio, the student augmented.
//!    The codebook learns along: CTC must also read the quantised features (straight-through, VQ-VAE, van den Oord et al. 2017;
//!    in a speech recogniser: CosyVoice, Du et al. 2024), so that what the units leave out is not what tells phones apart.
//! 4. `checkpoint`: the network with its final codebook.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::config::{TokenizerConfig, UNIT_FRAMES};
use super::ctc::{ctc_loss, edit_distance, greedy, softmax_rows};
use super::data::{AUGMENTED, Batch, Making, Speech};
use super::kmeans;
use super::network::Tokenizer;
use crate::audio::{LogMel, MELS};
use crate::train::checkpoint::{self, Precision};
use crate::train::{CommonArgs, Next, Optimizer, OptimizerConfig, Run, step_rng};

/// Purpose of the random masks; see [`step_rng`].
const MASKS: u64 = 0x6d61_736b;
/// Frames of one masked span: 200 ms, about three phones.
const SPAN: usize = 5;
/// Chance that a span starts at a frame: about a third of the frames are masked.
const SPAN_START: f64 = 0.08;
/// Share of the utterances of a batch of the HuBERT stage that spans are hidden of. The others are whole, as at run time, and it is
/// they who teach the codebook.
const MASKED_SHARE: f64 = 0.25;
/// Dev utterances read greedily to watch the phone error.
const DEV_UTTERANCES: usize = 96;

/// Everything that decides the losses; `config.json` of each stage's run folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    pub network: TokenizerConfig,
    pub optimizer: OptimizerConfig,
    /// Seconds of padded audio per step.
    pub batch_seconds: f64,
    pub seed: u64,
    /// α of the CTC label priors; 0 is plain, spiky CTC.
    pub prior_scale: f32,
    /// Weight of the masked prediction against the CTC loss, HuBERT stage.
    pub masked_weight: f32,
    /// Weight of CTC over quantised features against CTC over the features themselves, HuBERT stage; 0 leaves the codebook to k-means.
    pub quantised_weight: f32,
    /// How strongly features are drawn to their centroid: weight of the mean squared distance.
    pub commitment: f32,
    /// How far a centroid follows one of its features, as a share of their distance.
    pub codebook_rate: f32,
    /// Peak learning rate of the HuBERT stage, as a share of the first stage's.
    pub hubert_rate: f64,
    /// Frames that k-means looks at.
    pub kmeans_frames: usize,
    pub kmeans_iterations: usize,
}

impl TrainConfig {
    /// The recipe, for a phone inventory (with blank) of `phones`.
    pub fn new(phones: usize, seed: u64) -> Self {
        Self {
            network: TokenizerConfig { phones, ..TokenizerConfig::default() },
            optimizer: OptimizerConfig::default(),
            batch_seconds: 80.0,
            seed,
            prior_scale: 0.3,
            masked_weight: 0.5,
            quantised_weight: 1.0,
            commitment: 1.0,
            codebook_rate: 0.005,
            hubert_rate: 0.5,
            kmeans_frames: 60_000,
            kmeans_iterations: 15,
        }
    }
}

/// How long each stage trains.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    pub ctc: u64,
    pub hubert: u64,
}

/// Folders of a run.
pub struct Folders(PathBuf);

impl Folders {
    pub fn new(output: &Path) -> Self {
        Self(output.to_owned())
    }
    /// Network and first codebook: the teacher of the HuBERT stage.
    pub fn teacher(&self) -> PathBuf {
        self.0.join("teacher")
    }
    /// The result.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint")
    }
    fn stage(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Trains, or goes on training. True when all stages are done, false when the minutes are over first.
pub fn train(config: &TrainConfig, steps: Steps, args: &CommonArgs, train: &dyn Speech, dev: &dyn Speech, device: &Device) -> Result<bool> {
    config.network.check().map_err(anyhow::Error::msg).context("while checking the sizes of the network")?;
    let folders = Folders::new(&args.output);
    let started = Instant::now();
    let left = |args: &CommonArgs| {
        let minutes = args.minutes.map(|minutes| (minutes - started.elapsed().as_secs_f64() / 60.0).max(0.0));
        CommonArgs { minutes, ..args.clone() }
    };
    let autodiff = device.clone().autodiff();
    let fresh = config.network.init_seeded(config.seed, &autodiff);

    let (model, done) = stage(config, &folders.stage("ctc"), "ctc", steps.ctc, &left(args), fresh, None, (train, dev), device)?;
    if !done {
        return Ok(false);
    }
    let teacher = if folders.teacher().join("config.json").exists() {
        load(&folders.teacher(), device)?.1
    } else {
        add_codebook(config, model.valid(), train, &folders.teacher(), device)?
    };
    if steps.hubert == 0 {
        add_codebook(config, model.valid(), train, &folders.checkpoint(), device)?;
        return Ok(true);
    }
    let mut model = model;
    if config.quantised_weight > 0.0 {
        let centroids = Tensor::from_inner(teacher.centroids.val());
        model.centroids = Param::initialized(model.centroids.id, centroids).set_require_grad(false);
    }
    let (model, done) =
        stage(config, &folders.stage("hubert"), "hubert", steps.hubert, &left(args), model, Some(&teacher), (train, dev), device)?;
    if !done {
        return Ok(false);
    }
    if config.quantised_weight > 0.0 {
        checkpoint::save(&folders.checkpoint(), &config.network, &model.valid(), Precision::F32)?;
        return Ok(true);
    }
    add_codebook(config, model.valid(), train, &folders.checkpoint(), device)?;
    Ok(true)
}

/// Loads a checkpoint with its codebook.
pub fn load(dir: &Path, device: &Device) -> Result<(TokenizerConfig, Tokenizer)> {
    let config: TokenizerConfig = checkpoint::load_config(dir)?;
    if let Err(problem) = config.check() {
        bail!("{} describes no network: {problem}", dir.join("config.json").display());
    }
    let model = checkpoint::load_weights(dir, config.init(device))?;
    Ok((config, model))
}

/// One training stage; with a teacher it is the HuBERT stage.
#[allow(clippy::too_many_arguments)]
fn stage(
    config: &TrainConfig,
    dir: &Path,
    name: &str,
    steps: u64,
    args: &CommonArgs,
    model: Tokenizer,
    teacher: Option<&Tokenizer>,
    (train, dev): (&dyn Speech, &dyn Speech),
    device: &Device,
) -> Result<(Tokenizer, bool)> {
    let mut run = Run::open(dir, config, steps, args)?;
    let mut rates = config.optimizer.clone();
    if teacher.is_some() {
        rates.learning_rate *= config.hubert_rate;
    }
    let (model, mut optimizer, done) = run.resume(model, Optimizer::new(rates))?;
    if done >= steps {
        return Ok((model, true));
    }
    let making = Making {
        seconds: config.batch_seconds,
        // Another order than the stage before.
        seed: config.seed.wrapping_add(u64::from(teacher.is_some()) << 32),
        chunk: config.network.chunk,
        augmented: AUGMENTED,
        clean: teacher.is_some(),
    };
    let dev = dev_batches(dev, config)?;
    let quantised = teacher.is_some() && config.quantised_weight > 0.0;
    let mut model = Some(model);
    let mut finished = false;
    making.for_each(train, done..steps, |step, batch| {
        let began = Instant::now();
        let current = model.take().context("the model is between two steps")?;
        let (gradients, losses) = gradients(&current, &batch, teacher, config, &|part| step_rng(making.seed, step, MASKS + part));
        let (mut current, norm) = optimizer.apply(current, gradients, step, steps);
        let mut values = vec![("ctc", losses.ctc), ("norm", f64::from(norm))];
        if let Some((loss, accuracy)) = losses.masked {
            values.extend([("masked", loss), ("masked_accuracy", accuracy)]);
        }
        if let Some(quantised) = losses.quantised {
            values.extend([("quantised_ctc", quantised.ctc), ("quantised_distance", quantised.distance)]);
            quantised.found.follow(&mut current, config.codebook_rate);
        }
        values.push(("audio_per_second", batch.seconds / began.elapsed().as_secs_f64()));
        if (step + 1) % 100 == 0 || step + 1 == steps {
            let model = current.valid();
            values.push(("dev_phone_error", phone_error(&model, &dev, config, device, false)));
            if quantised {
                values.push(("dev_unit_phone_error", phone_error(&model, &dev, config, device, true)));
            }
        }
        let next = run.finish_step(step + 1, &values, &current, &optimizer).with_context(|| format!("while training stage {name}"))?;
        finished = step + 1 >= steps;
        model = Some(current);
        Ok(next == Next::Continue)
    })?;
    Ok((model.context("the model is between two steps")?, finished))
}

/// What one step yields.
struct Losses {
    /// Its gradient is that of the losses; its value means nothing.
    surrogate: Tensor<1>,
    /// CTC loss per phone.
    ctc: f64,
    /// Masked-prediction loss per masked frame, and the share predicted right.
    masked: Option<(f64, f64)>,
    quantised: Option<QuantisedLosses>,
}

/// What the quantised features yield.
struct QuantisedLosses {
    /// CTC loss per phone.
    ctc: f64,
    /// Mean squared distance of the features to their centroids.
    distance: f64,
    found: Found,
}

/// The features that each unit was given to.
#[derive(Default)]
struct Found {
    /// `[k, d]`
    sums: Vec<f32>,
    /// `[k]`
    counts: Vec<f32>,
}

impl Found {
    fn new(features: &[f32], units: &[i64], k: usize) -> Self {
        let d = features.len() / units.len().max(1);
        let mut found = Self { sums: vec![0.0; k * d], counts: vec![0.0; k] };
        for (feature, unit) in features.chunks(d.max(1)).zip(units) {
            let unit = *unit as usize;
            found.counts[unit] += 1.0;
            found.sums[unit * d..][..d].iter_mut().zip(feature).for_each(|(sum, value)| *sum += value);
        }
        found
    }

    fn add(&mut self, other: &Self) {
        self.sums.resize(other.sums.len(), 0.0);
        self.counts.resize(other.counts.len(), 0.0);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, value)| *sum += value);
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, value)| *sum += value);
    }

    /// Moves each centroid towards the mean of its features: k-means in mini-batches (Sculley 2010), with a fixed rate because
    /// the features move too. Centroids that follow by gradient fall behind them.
    fn follow(&self, model: &mut Tokenizer, rate: f32) {
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
fn gradients(
    model: &Tokenizer,
    batch: &Batch,
    teacher: Option<&Tokenizer>,
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
                    let losses = losses(&copy, half, teacher, config, &mut rng(part));
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
            let sum = total.quantised.get_or_insert_with(|| QuantisedLosses { ctc: 0.0, distance: 0.0, found: Found::default() });
            sum.ctc += weight * part.ctc;
            sum.distance += weight * part.distance;
            sum.found.add(&part.found);
        }
    }
    (sum.grads(), total)
}

fn losses(model: &Tokenizer, batch: &Batch, teacher: Option<&Tokenizer>, config: &TrainConfig, rng: &mut ChaCha8Rng) -> Losses {
    let device = model.mask.val().device();
    let (b, t) = (batch.size, batch.frames);
    let mut x = model.stem(mel_tensor(batch, &batch.mel, &device)); // [B, T, d]
    let mut hidden = Vec::new();
    if teacher.is_some() {
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

    let quantised = (teacher.is_some() && config.quantised_weight > 0.0).then(|| {
        let (of_quantised, losses) = quantised(model, features.clone(), batch, &hidden, config);
        surrogate = surrogate.clone() + of_quantised;
        losses
    });
    let mut masked = None;
    if let (Some(teacher), false) = (teacher, hidden.is_empty()) {
        let plain = teacher.mask.val().device();
        let d = config.network.width;
        let indices =
            |values: &[i64], device: &Device| Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), device);
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

/// CTC over the centroids of `features` `[B, T, d]`, with the gradient passed straight through to the features, which are drawn to
/// their centroids. Utterances with `hidden` frames take no part: they are none at run time. Returns a tensor whose gradient is that
/// of the losses, and the losses.
fn quantised(model: &Tokenizer, features: Tensor<3>, batch: &Batch, hidden: &[i64], config: &TrainConfig) -> (Tensor<1>, QuantisedLosses) {
    let device = features.device();
    let (b, t, d) = (batch.size, batch.frames, config.network.width);
    let mut lengths = batch.lengths.clone();
    hidden.iter().for_each(|frame| lengths[*frame as usize / t] = 0);
    let features = features.reshape([b * t, d]);
    let units = model.quantise(features.clone().detach()); // [B T]
    let centroids = model.centroids.val().detach().select(0, units.clone()); // [B T, d]
    let passed = features.clone() + (centroids.clone() - features.clone()).detach();
    let logits = model.phone_logits(passed.reshape([b, t, d]));
    let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
    let ctc = ctc_loss(&values, t, config.network.phones, &lengths, &batch.targets, config.prior_scale);
    let mut gradient = ctc.gradient;
    gradient.iter_mut().for_each(|value| *value *= config.quantised_weight);
    let gradient = Tensor::<3>::from_data(TensorData::new(gradient, [b, t, config.network.phones]), &device);

    let real: Vec<i64> = (0..b).flat_map(|i| (i * t) as i64..(i * t + lengths[i]) as i64).collect();
    if real.is_empty() {
        let found = Found { sums: vec![0.0; config.network.units * d], counts: vec![0.0; config.network.units] };
        return ((logits * gradient).sum(), QuantisedLosses { ctc: ctc.loss, distance: 0.0, found });
    }
    let of_real = |tensor: Tensor<2>| {
        let rows = Tensor::<1, Int>::from_data(TensorData::new(real.clone(), [real.len()]), &device);
        tensor.select(0, rows)
    };
    let (features, centroids) = (of_real(features), of_real(centroids));
    let distance = (features.clone() - centroids).square().mean();
    let values: Vec<f32> = features.detach().into_data().try_to_vec().expect("features are f32");
    let units: Vec<i64> = units.into_data().iter::<i64>().collect();
    let units: Vec<i64> = real.iter().map(|frame| units[*frame as usize]).collect();
    let losses = QuantisedLosses {
        ctc: ctc.loss,
        distance: f64::from(distance.clone().detach().into_scalar::<f32>()),
        found: Found::new(&values, &units, config.network.units),
    };
    ((logits * gradient).sum() + distance * config.commitment, losses)
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

/// Dev utterances spread over the whole split, clean, in small batches.
fn dev_batches(dev: &dyn Speech, config: &TrainConfig) -> Result<Vec<Batch>> {
    let count = dev.len().min(DEV_UTTERANCES);
    let mut chosen: Vec<usize> = (0..count).map(|i| i * dev.len() / count).collect();
    chosen.sort_by_key(|i| dev.samples(*i));
    let front_end = LogMel::default();
    chosen
        .chunks(24)
        .map(|chunk| {
            let audio = chunk.iter().map(|i| dev.audio(*i)).collect::<Result<Vec<_>>>()?;
            let targets = chunk.iter().map(|i| dev.phones(*i).to_vec()).collect();
            Ok(Batch::new(&front_end, &audio, None, targets, config.network.chunk))
        })
        .collect()
}

/// Share of phones that the CTC head reads wrongly, of the features or of their centroids.
fn phone_error(model: &Tokenizer, batches: &[Batch], config: &TrainConfig, device: &Device, of_centroids: bool) -> f64 {
    let classes = config.network.phones;
    let (mut errors, mut phones) = (0, 0);
    for batch in batches {
        let mut features = model.forward(mel_tensor(batch, &batch.mel, device));
        if of_centroids {
            let [b, t, d] = features.dims();
            let units = model.quantise(features.reshape([b * t, d]));
            features = model.centroids.val().select(0, units).reshape([b, t, d]);
        }
        let logits = model.phone_logits(features);
        let logits: Vec<f32> = logits.into_data().try_to_vec().expect("logits are f32");
        for (i, rows) in logits.chunks(batch.frames * classes).enumerate() {
            errors += edit_distance(&greedy(&rows[..batch.lengths[i] * classes], classes), &batch.targets[i]);
            phones += batch.targets[i].len();
        }
    }
    errors as f64 / phones.max(1) as f64
}

/// k-means on features of training speech; saves and returns the network with its codebook.
fn add_codebook(config: &TrainConfig, mut model: Tokenizer, train: &dyn Speech, dir: &Path, device: &Device) -> Result<Tokenizer> {
    let network = &config.network;
    let making = Making {
        seconds: config.batch_seconds,
        seed: config.seed.wrapping_add(0x6b6d),
        chunk: network.chunk,
        augmented: AUGMENTED / 2.0,
        clean: false,
    };
    let mut rows: Vec<f32> = Vec::with_capacity(config.kmeans_frames * network.width);
    making.for_each(train, 0..u64::MAX, |_, batch| {
        let features: Vec<f32> = model.features(mel_tensor(&batch, &batch.mel, device)).into_data().try_to_vec().expect("features are f32");
        for (i, frames) in features.chunks(batch.frames * network.width).enumerate() {
            rows.extend_from_slice(&frames[..batch.lengths[i] * network.width]);
        }
        Ok(rows.len() < config.kmeans_frames * network.width)
    })?;
    let codebook = kmeans::fit(&rows, network.width, network.units, config.kmeans_iterations, config.seed, device);
    eprintln!(
        "k-means: {} units over {} frames, distortion {:.3}, perplexity {:.0}",
        network.units,
        rows.len() / network.width,
        codebook.distortion,
        codebook.perplexity
    );
    let centroids = Tensor::from_data(TensorData::new(codebook.centroids, [network.units, network.width]), device);
    model.centroids = Param::initialized(model.centroids.id, centroids).set_require_grad(false);
    checkpoint::save(dir, network, &model, Precision::F32)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::data::tests::Tones;
    use crate::train::DeviceChoice;

    fn config() -> TrainConfig {
        let mut config = TrainConfig::new(6, 1);
        config.network = TokenizerConfig {
            width: 32,
            layers: 2,
            layer: 2,
            heads: 2,
            feed_forward: 64,
            phones: 6,
            units: 12,
            ..TokenizerConfig::default()
        };
        config.optimizer.warmup = 5;
        (config.batch_seconds, config.kmeans_frames, config.kmeans_iterations) = (6.0, 300, 4);
        config
    }

    fn args(output: &Path, minutes: Option<f64>) -> CommonArgs {
        CommonArgs { corpus: PathBuf::new(), output: output.to_owned(), minutes, seed: 1, device: DeviceChoice::Cpu, save_every: 1000 }
    }

    /// CTC loss, and masked loss where there is one, of every step of a stage.
    fn losses_of(folder: &Path) -> Vec<(f64, Option<f64>)> {
        let text = std::fs::read_to_string(folder.join("log.jsonl")).expect("a log");
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .map(|line| (line["ctc"].as_f64().expect("a loss"), line["masked"].as_f64()))
            .collect()
    }

    #[test]
    fn a_run_stopped_at_every_step_equals_an_uninterrupted_one() {
        let (tones, device) = (Tones::new(40), Device::flex());
        let (whole, parts) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let steps = Steps { ctc: 6, hubert: 4 };
        assert!(train(&config(), steps, &args(whole.path(), None), &tones, &tones, &device).expect("trains"));
        let mut calls = 0;
        while !train(&config(), steps, &args(parts.path(), Some(0.0)), &tones, &tones, &device).expect("trains") {
            calls += 1;
            assert!(calls < 20);
        }
        assert!(calls > 5);
        for stage in ["ctc", "hubert"] {
            assert_eq!(losses_of(&whole.path().join(stage)), losses_of(&parts.path().join(stage)), "{stage}");
        }
        let read = |dir: &Path| std::fs::read(dir.join("checkpoint/model.safetensors")).expect("a checkpoint");
        let (a, b) = (read(whole.path()), read(parts.path()));
        let tensors = |bytes| safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
        let (a, b) = (tensors(&a), tensors(&b));
        assert_eq!(a.len(), b.len());
        for (name, tensor) in a.tensors() {
            assert!(tensor.data() == b.tensor(&name).expect("the same names").data(), "{name} differs");
        }
    }

    #[test]
    fn a_tiny_set_is_learnt_by_heart() {
        let (tones, device) = (Tones::new(12), Device::flex());
        let folder = tempfile::tempdir().expect("a folder");
        train(&config(), Steps { ctc: 150, hubert: 20 }, &args(folder.path(), None), &tones, &tones, &device).expect("trains");
        let losses = losses_of(&folder.path().join("ctc"));
        assert!(losses[149].0 < 0.3 * losses[0].0, "{:?}", losses[149]);
        let (_, model) = load(&folder.path().join("checkpoint"), &device).expect("a checkpoint");
        let error = phone_error(&model, &dev_batches(&tones, &config()).expect("batches"), &config(), &device, false);
        assert!(error < 0.2, "phone error {error}");
    }

    #[test]
    fn centroids_follow_their_features_and_the_others_stay() {
        let device = Device::flex();
        let mut model = config().network.init(&device);
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
