//! Training of the tokenizer in four stages, each resumable:
//!
//! 1. `ctc`: phones by CTC from scratch. Units that carry phones come from here (RECIPE.md).
//! 2. `teacher`: k-means on the features of the quantised layer; the frozen network with its codebook becomes the teacher.
//! 3. `hubert`: masked prediction of the teacher's units (HuBERT, Hsu et al. 2021) together with CTC. A quarter of the utterances of
//!    a batch are masked, the others are whole, as at run time; the teacher hears clean audio, the student augmented.
//!    The codebook learns along: CTC must also read the quantised features (straight-through, VQ-VAE, van den Oord et al. 2017;
//!    in a speech recogniser: CosyVoice, Du et al. 2024), so that what the units leave out is not what tells phones apart.
//! 4. `robust`: the network as it is becomes the teacher, hears clean audio, and its units are taught at every frame from audio that
//!    is disturbed more than before; the codebook stays ([`Lesson::Clean`]).
//! 5. `checkpoint`: the network with its final codebook.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::config::TokenizerConfig;
use super::ctc::{edit_distance, greedy};
use super::data::{AUGMENTED, Batch, Making, Speech};
use super::kmeans;
use super::losses::{Lesson, gradients, mel_tensor};
use super::network::Tokenizer;
use crate::audio::LogMel;
use crate::corpus::{Augment, Crowd};
use crate::train::checkpoint::{self, Precision};
use crate::train::{CommonArgs, Next, Optimizer, OptimizerConfig, Run, step_rng};

/// Purpose of the random masks; see [`step_rng`].
const MASKS: u64 = 0x6d61_736b;
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
    /// The same of the robust stage.
    pub robust_rate: f64,
    /// Weight of the clean units against the CTC losses, robust stage.
    pub clean_weight: f32,
    /// Twice the variance around a centroid, in each dimension, that makes distances probabilities; robust stage.
    pub clean_spread: f32,
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
            robust_rate: 0.35,
            clean_weight: 1.0,
            clean_spread: 0.25,
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
    pub robust: u64,
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

    let (model, done) = stage(config, &folders.stage("ctc"), "ctc", steps.ctc, &left(args), fresh, Lesson::Phones, (train, dev), device)?;
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
    let lesson = Lesson::Masked(&teacher);
    let (mut model, mut done) =
        stage(config, &folders.stage("hubert"), "hubert", steps.hubert, &left(args), model, lesson, (train, dev), device)?;
    if !done {
        return Ok(false);
    }
    if config.quantised_weight == 0.0 {
        let with_codebook = add_codebook(config, model.valid(), train, &folders.checkpoint(), device)?;
        model.centroids = Param::initialized(model.centroids.id, Tensor::from_inner(with_codebook.centroids.val())).set_require_grad(false);
    }
    if steps.robust > 0 {
        let teacher = model.valid();
        let lesson = Lesson::Clean(&teacher);
        (model, done) = stage(config, &folders.stage("robust"), "robust", steps.robust, &left(args), model, lesson, (train, dev), device)?;
    }
    if done {
        checkpoint::save(&folders.checkpoint(), &config.network, &model.valid(), Precision::F32)?;
    }
    Ok(done)
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

/// One training stage.
#[allow(clippy::too_many_arguments)]
fn stage(
    config: &TrainConfig,
    dir: &Path,
    name: &str,
    steps: u64,
    args: &CommonArgs,
    model: Tokenizer,
    lesson: Lesson<'_>,
    (train, dev): (&dyn Speech, &dyn Speech),
    device: &Device,
) -> Result<(Tokenizer, bool)> {
    let mut run = Run::open(dir, config, steps, args)?;
    let mut rates = config.optimizer.clone();
    // Each stage has an order of its own.
    let (rate, order, augment) = match lesson {
        Lesson::Phones => (1.0, 0, Augment::default()),
        Lesson::Masked(_) => (config.hubert_rate, 1, Augment::default()),
        Lesson::Clean(_) => (config.robust_rate, 2, Augment::harsh()),
    };
    rates.learning_rate *= rate;
    let (model, mut optimizer, done) = run.resume(model, Optimizer::new(rates))?;
    if done >= steps {
        return Ok((model, true));
    }
    let crowd = Crowd::new(Crowd::spread(train.len()).map(|index| train.audio(index)).collect::<Result<Vec<_>>>()?);
    let making = Making {
        seconds: config.batch_seconds,
        seed: config.seed.wrapping_add(order << 32),
        chunk: config.network.chunk,
        augmented: AUGMENTED,
        augment: augment.among(crowd),
        clean: order > 0,
    };
    let dev = dev_batches(dev, config)?;
    let quantised = match lesson {
        Lesson::Phones => false,
        Lesson::Masked(_) => config.quantised_weight > 0.0,
        Lesson::Clean(_) => true,
    };
    let mut model = Some(model);
    let mut finished = false;
    making.for_each(train, done..steps, |step, batch| {
        let began = Instant::now();
        let current = model.take().context("the model is between two steps")?;
        let (gradients, losses) = gradients(&current, &batch, lesson, config, &|part| step_rng(making.seed, step, MASKS + part));
        let (mut current, norm) = optimizer.apply(current, gradients, step, steps);
        let mut values = vec![("ctc", losses.ctc), ("norm", f64::from(norm))];
        if let Some((loss, accuracy)) = losses.masked {
            values.extend([("masked", loss), ("masked_accuracy", accuracy)]);
        }
        if let Some(quantised) = losses.quantised {
            values.extend([("quantised_ctc", quantised.ctc), ("quantised_distance", quantised.distance)]);
            match quantised.kept {
                Some(kept) => values.push(("units_kept", kept)),
                None => quantised.found.follow(&mut current, config.codebook_rate),
            }
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
        augment: Augment::default(),
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
        let steps = Steps { ctc: 20, hubert: 4, robust: 3 };
        assert!(train(&config(), steps, &args(whole.path(), None), &tones, &tones, &device).expect("trains"));
        let mut calls = 0;
        while !train(&config(), steps, &args(parts.path(), Some(0.0)), &tones, &tones, &device).expect("trains") {
            calls += 1;
            assert!(calls < 40);
        }
        assert!(calls > 20);
        for stage in ["ctc", "hubert", "robust"] {
            assert_eq!(losses_of(&whole.path().join(stage)), losses_of(&parts.path().join(stage)), "{stage}");
        }
        let read = |dir: &Path| std::fs::read(dir.join("checkpoint/model.safetensors")).expect("a checkpoint");
        let checkpoint = read(whole.path());
        assert!(checkpoint == read(parts.path()), "the checkpoints differ");
        // Called again when all is done, it leaves the file untouched: units know their tokenizer by its hash.
        assert!(train(&config(), steps, &args(whole.path(), None), &tones, &tones, &device).expect("nothing is left to train"));
        assert!(checkpoint == read(whole.path()), "the checkpoint was written anew");
    }

    #[test]
    fn a_tiny_set_is_learnt_by_heart() {
        let (tones, device) = (Tones::new(12), Device::flex());
        let folder = tempfile::tempdir().expect("a folder");
        train(&config(), Steps { ctc: 150, hubert: 20, robust: 0 }, &args(folder.path(), None), &tones, &tones, &device).expect("trains");
        let losses = losses_of(&folder.path().join("ctc"));
        assert!(losses[149].0 < 0.3 * losses[0].0, "{:?}", losses[149]);
        let (_, model) = load(&folder.path().join("checkpoint"), &device).expect("a checkpoint");
        let error = phone_error(&model, &dev_batches(&tones, &config()).expect("batches"), &config(), &device, false);
        assert!(error < 0.2, "phone error {error}");
    }
}
