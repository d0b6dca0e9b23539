//! Training of the decoder: spectral losses on crops, an average of the weights, held-out checks.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Serialize;

use super::clips::{Clip, Cropping, Geometry, draw};
use super::config::DecoderConfig;
use super::loss::{SpectralLoss, SpectralTerms};
use super::network::Decoder;
use super::synthesis::Synthesis;
use crate::train::checkpoint::{self, Precision};
use crate::train::{CommonArgs, Next, Optimizer, OptimizerConfig, Run, average, step_rng};

/// Every number of a training run; kept as the run folder's `config.json`.
#[derive(Clone, Debug, Serialize)]
pub struct TrainConfig {
    pub model: DecoderConfig,
    pub optimizer: OptimizerConfig,
    /// A run may be resumed with another number (the learning rate follows it).
    #[serde(skip)]
    pub steps: u64,
    pub seed: u64,
    /// Crops a step.
    pub batch: usize,
    /// Units of a crop whose audio enters the loss.
    pub crop: usize,
    /// Share of crops at the start and at the end of utterances.
    pub at_start: f64,
    pub at_end: f64,
    /// Share of units replaced by others.
    pub corruption: f64,
    /// STFT sizes of the loss.
    pub resolutions: Vec<usize>,
    pub mel_weight: f32,
    /// Decay a step of the average of the weights.
    pub average: f64,
}

/// Steps between two updates of the average: it is slow, and an update costs a pass over all weights.
const AVERAGE_EVERY: u64 = 4;
/// Held-out utterances that a check decodes.
const CHECKED: usize = 24;

/// The trained weights and their average, saved together so that a resumed run goes on exactly.
#[derive(Module, Debug)]
pub struct Pair {
    pub network: Decoder,
    pub average: Decoder,
}

impl Pair {
    fn new(config: &DecoderConfig, seed: u64, device: &Device) -> Self {
        Pair { network: Decoder::seeded(config, seed, device), average: Decoder::seeded(config, seed, device) }
    }

    /// `average = decay * average + (1 - decay) * network`.
    fn update_average(self, decay: f64) -> Self {
        Pair { average: average(self.average, &self.network, decay), network: self.network }
    }
}

/// What a step needs besides the weights.
pub struct Trainer {
    config: TrainConfig,
    geometry: Geometry,
    cropping: Cropping,
    synthesis: Synthesis,
    loss: SpectralLoss,
    device: Device,
}

impl Trainer {
    /// `device` without autodiff.
    pub fn new(config: TrainConfig, device: Device) -> Self {
        Trainer {
            geometry: Geometry::new(&config.model, config.crop),
            cropping: Cropping { units: config.crop, at_start: config.at_start, at_end: config.at_end, corruption: config.corruption },
            synthesis: Synthesis::new(&config.model),
            loss: SpectralLoss::new(&config.resolutions, config.mel_weight),
            device: device.autodiff(),
            config,
        }
    }

    /// Fresh weights, from the run's seed.
    pub fn weights(&self) -> Pair {
        Pair::new(&self.config.model, self.config.seed, &self.device)
    }

    /// A fresh optimiser.
    pub fn optimizer(&self) -> Optimizer {
        Optimizer::new(self.config.optimizer.clone())
    }

    /// One step, number `step` from 0, at the learning rate of `scheduled` (a step of `self.config.steps`).
    ///
    /// Everything that is drawn depends on the seed and the step only.
    pub fn step(&self, pair: Pair, optimizer: &mut Optimizer, clips: &[Clip], step: u64, scheduled: u64) -> (Pair, SpectralTerms, f32) {
        let (batch, geometry) = (self.config.batch, &self.geometry);
        let mut rng = step_rng(self.config.seed, step, 0);
        let (mut units, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let crop = draw(&mut rng, clips, &self.config.model, &self.cropping);
            units.extend(crop.units);
            targets.extend(crop.audio);
        }
        let units = Tensor::<2, Int>::from_data(TensorData::new(units, [batch, geometry.units]), &self.device);
        let head = pair.network.forward(units, geometry.first_frame..geometry.first_frame + geometry.frames);
        let frames = values(head.clone());
        let row = geometry.frames * self.config.model.head_width();
        let mut audio = Vec::with_capacity(targets.len());
        for frames in frames.chunks_exact(row) {
            let wide = self.synthesis.synthesise(frames);
            audio.extend_from_slice(&wide[geometry.lead..geometry.lead + geometry.samples]);
        }
        let (terms, by_audio) = self.loss.value_and_gradient(&audio, &targets, geometry.samples);
        let mut by_head = Vec::with_capacity(frames.len());
        let mut wide = vec![0.0; self.synthesis.span(geometry.frames)];
        for (frames, by_audio) in frames.chunks_exact(row).zip(by_audio.chunks_exact(geometry.samples)) {
            wide[geometry.lead..geometry.lead + geometry.samples].copy_from_slice(by_audio);
            by_head.extend(self.synthesis.backward(frames, &wide));
        }
        // The chain rule by a scalar product: its gradient by the head is `by_head`.
        let by_head = Tensor::<3>::from_data(TensorData::new(by_head, head.dims()), &self.device);
        let gradients = (head * by_head).sum().backward();
        let (mut pair, norm) = optimizer.step(pair, gradients, scheduled, self.config.steps);
        if step.is_multiple_of(AVERAGE_EVERY) {
            let decay = self.config.average.powi(AVERAGE_EVERY as i32).min((1 + step) as f64 / (10 + step) as f64);
            pair = pair.update_average(decay);
        }
        (pair, terms, norm)
    }

    /// Log-mel L1 of the average of the weights on whole held-out utterances.
    pub fn check(&self, pair: &Pair, clips: &[Clip]) -> f32 {
        let network = pair.average.valid();
        let mut sum = 0.0;
        let mut samples = 0.0;
        for clip in clips.iter().take(CHECKED).filter(|clip| !clip.units.is_empty()) {
            let audio = speak(&network, &self.synthesis, &clip.units);
            let terms = self.loss.value(&audio, &clip.target(&self.config.model), audio.len());
            sum += terms.mel * audio.len() as f32;
            samples += audio.len() as f32;
        }
        sum / f32::max(samples, 1.0)
    }
}

fn values(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("the networks compute in f32")
}

/// The audio of an utterance: 640 samples a unit.
pub fn speak(network: &Decoder, synthesis: &Synthesis, units: &[u16]) -> Vec<f32> {
    if units.is_empty() {
        return Vec::new();
    }
    let units: Vec<usize> = units.iter().map(|&unit| usize::from(unit)).collect();
    synthesis.utterance(&values(network.decode(&units)))
}

/// How long the call may take and what it reports.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Steps between two checks on held-out utterances; each also writes the checkpoint.
    pub check_every: u64,
    /// Let the learning rate fall with the minutes of this call where these run ahead of the steps.
    pub by_time: bool,
}

/// Trains in `args.output` until the steps or the minutes are over; writes `checkpoint/` there at each check and at
/// the end (the average of the weights).
pub fn train(config: TrainConfig, clips: &[Clip], held_out: &[Clip], args: &CommonArgs, schedule: Schedule) -> Result<Decoder> {
    anyhow::ensure!(!clips.is_empty(), "there are no utterances to train on: does the unit folder belong to this corpus?");
    config.model.check()?;
    let steps = config.steps;
    let trainer = Trainer::new(config, args.device.device()?);
    let mut run = Run::open(&args.output, &trainer.config, steps, args)?;
    let (mut pair, mut optimizer, start) = run.resume(trainer.weights(), trainer.optimizer())?;
    let begun = std::time::Instant::now();
    for step in start..steps {
        let mut scheduled = step;
        if let (true, Some(minutes)) = (schedule.by_time, args.minutes) {
            let passed = begun.elapsed().as_secs_f64() / (60.0 * minutes);
            scheduled = scheduled.max((passed.min(1.0) * steps as f64) as u64);
        }
        let (next, terms, norm) = trainer.step(pair, &mut optimizer, clips, step, scheduled);
        pair = next;
        let mut notes: Vec<(&str, f64)> =
            vec![("loss", terms.total.into()), ("mel", terms.mel.into()), ("stft", terms.stft.into()), ("norm", norm.into())];
        let done = step + 1;
        if done % schedule.check_every == 0 || done == steps {
            notes.push(("dev_mel", trainer.check(&pair, held_out).into()));
            write(&args.output.join("checkpoint"), &pair)?;
        }
        if run.finish_step(done, &notes, &pair, &optimizer)? == Next::Stop {
            break;
        }
    }
    write(&args.output.join("checkpoint"), &pair)?;
    Ok(pair.average.valid())
}

fn write(folder: &Path, pair: &Pair) -> Result<()> {
    let network = pair.average.valid();
    checkpoint::save(folder, &network.config, &network, Precision::F32)
        .with_context(|| format!("while writing the checkpoint {}", folder.display()))
}

/// Loads a checkpoint folder.
///
/// # Errors
/// A missing or foreign `config.json`, missing or misshapen weights: named.
pub fn load(folder: &Path, device: &Device) -> Result<Decoder> {
    let config: DecoderConfig = checkpoint::load_config(folder)?;
    config.check()?;
    Ok(checkpoint::load_weights(folder, Decoder::new(&config, device))?)
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::tiny;
    use super::*;
    use crate::train::DeviceChoice;

    /// Two "phones", tones of different pitch, that follow one another.
    fn clips(config: &DecoderConfig) -> Vec<Clip> {
        (0..2)
            .map(|which| {
                let units: Vec<u16> = (0..60).map(|i| if (i / (5 + which)) % 2 == 0 { 3 } else { 11 }).collect();
                let audio = (0..units.len() * config.unit_samples())
                    .map(|at| {
                        let pitch = if units[at / config.unit_samples()] == 3 { 0.2 } else { 0.9 };
                        ((at as f32 * pitch).sin() * 6000.0) as i16
                    })
                    .collect();
                Clip { id: which.to_string(), text: String::new(), units, audio }
            })
            .collect()
    }

    fn config(steps: u64) -> TrainConfig {
        TrainConfig {
            model: tiny(),
            optimizer: OptimizerConfig { learning_rate: 5e-3, warmup: 5, ..OptimizerConfig::default() },
            steps,
            seed: 5,
            batch: 4,
            crop: 20,
            at_start: 0.2,
            at_end: 0.1,
            corruption: 0.01,
            resolutions: vec![256, 1024],
            mel_weight: 2.0,
            average: 0.9,
        }
    }

    fn losses(steps: u64, count: u64) -> Vec<f32> {
        let trainer = Trainer::new(config(steps), Device::flex());
        let clips = clips(&trainer.config.model);
        let (mut pair, mut optimizer) = (trainer.weights(), trainer.optimizer());
        (0..count)
            .map(|step| {
                let (next, terms, _) = trainer.step(pair.clone(), &mut optimizer, &clips, step, step);
                pair = next;
                terms.total
            })
            .collect()
    }

    #[test]
    fn the_first_twenty_steps_are_the_same_again() {
        assert_eq!(losses(20, 20), losses(20, 20));
    }

    #[test]
    fn a_tiny_set_is_learnt() {
        let all = losses(150, 150);
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
        let (first, last) = (mean(&all[..5]), mean(&all[145..]));
        assert!(last < 0.5 * first, "{first} to {last}");
    }

    #[test]
    fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
        let (whole, parts) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let clips = clips(&tiny());
        let args = |folder: &Path, minutes| CommonArgs {
            corpus: folder.into(),
            output: folder.into(),
            minutes,
            seed: 5,
            device: DeviceChoice::Cpu,
            save_every: 3,
        };
        let schedule = Schedule { check_every: 4, by_time: false };
        let go = |folder: &Path, steps, minutes| train(config(steps), &clips, &clips, &args(folder, minutes), schedule).expect("trained");
        let done = |folder: &Path| std::fs::read_to_string(folder.join("state/step")).unwrap_or_default();
        let expected = go(whole.path(), 8, None);
        while done(parts.path()) != "8" {
            go(parts.path(), 8, Some(0.0)); // one step a call
        }
        let resumed = load(&parts.path().join("checkpoint"), &Device::flex()).expect("a checkpoint");
        let units = [3, 3, 11, 11, 3];
        assert_eq!(values(expected.decode(&units)), values(resumed.decode(&units)));
        go(parts.path(), 10, None);
        assert_eq!(done(parts.path()), "10", "more steps than before");
    }
}
