//! The training loop of the group LM.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::optim::GradientsParams;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::corpus::{Grammar, Vocabulary};
use crate::train::checkpoint::{self, Precision};
use crate::train::{Next, Optimizer, OptimizerConfig, Run, average};

use super::config::Config;
use super::data::{Material, MixConfig, Sampler};
use super::fused::{Parameters, Score, gradients};
use super::network::Network;
use super::sequence::{Batch, Composer, Sequence, Task};

/// Everything that decides what a run learns; the number of steps may change when it is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    pub model: Config,
    pub mix: MixConfig,
    pub optimizer: OptimizerConfig,
    /// Sequences a step.
    pub batch: usize,
    /// Weight of the units' cross-entropy beside the text's.
    pub unit_weight: f32,
    pub seed: u64,
    /// Hash of the weights that it begins with, where it does not begin with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl TrainConfig {
    pub fn new(model: Config, seed: u64) -> Self {
        let optimizer = OptimizerConfig { learning_rate: 2e-3, weight_decay: 0.05, warmup: 200, ..OptimizerConfig::default() };
        Self { model, mix: MixConfig::default(), optimizer, batch: 64, unit_weight: 1.0, seed, from: None }
    }
}

/// What a run needs beside its configuration.
pub struct Resources<'a> {
    pub vocabulary: &'a Vocabulary,
    pub grammar: &'a Grammar,
    pub train: &'a Material,
    pub dev: &'a Material,
    /// Checkpoint whose weights a new run begins with, in place of random ones, and the share of these that stays in what the run writes.
    pub from: Option<(&'a Path, f64)>,
    /// Where Burn keeps the weights; gradients come from [`super::fused`] if `fused`, else from Burn on this device.
    pub device: Device,
    pub fused: bool,
    pub threads: usize,
    /// Bring the learning rate down within so much time of this call, however many steps that allows (such a run cannot be
    /// repeated bit by bit).
    pub finish_in: Option<Duration>,
}

/// Sequences in one pass of the fused gradients: small enough for the caches.
const SHARD: usize = 16;
/// Steps between two looks at the dev set.
const DEV_EVERY: u64 = 100;
/// Steps between two checkpoints, for who wants to listen to an unfinished model.
const CHECKPOINT_EVERY: u64 = 500;
/// Spoken questions in a look at the dev set.
const DEV_QUESTIONS: usize = 64;

fn sum(scores: &[Score; 4]) -> Score {
    let mut total = Score::default();
    scores.iter().for_each(|score| total += *score);
    total
}

fn ratio(a: f64, b: usize) -> f64 {
    if b == 0 { 0.0 } else { a / b as f64 }
}

/// Teacher-forced accuracy on spoken questions of `material`, undisturbed.
fn look(config: &TrainConfig, parameters: &Parameters, composer: &Composer<'_>, material: &Material, threads: usize) -> Score {
    let questions = material.questions.iter().filter_map(|question| Some((question, question.turn.as_ref()?)));
    let sequences: Vec<Sequence> =
        questions.take(DEV_QUESTIONS).map(|(question, turn)| composer.question(&question.history, &question.units, turn, None)).collect();
    let shards: Vec<Batch> = sequences.chunks(SHARD).map(|part| Batch::new(part, config.model.group)).collect();
    sum(&gradients(&config.model, parameters, &shards, config.unit_weight, threads).scores)
}

/// Writes what was learnt, with its share of the weights that the run began with.
fn write(run: &Run, config: &Config, network: &Network, kept: Option<&(Network, f64)>) -> Result<()> {
    let dir = run.dir().join("checkpoint");
    let mixed = kept.map(|(before, share)| average(before.clone(), network, *share));
    let written = checkpoint::save(&dir, config, mixed.as_ref().unwrap_or(network), Precision::F32);
    written.with_context(|| format!("while writing the checkpoint {}", dir.display()))
}

/// Trains until `run`'s last step or deadline; the folder `checkpoint` of the run then holds the network.
///
/// # Errors
/// The run folder cannot be written, the weights to begin with are not of this network, or the material lacks what the mixture asks for.
pub fn train(config: &TrainConfig, resources: &Resources<'_>, mut run: Run) -> Result<Network> {
    let model = &config.model;
    let composer =
        Composer { vocabulary: resources.vocabulary, group: model.group, end_unit: model.end_unit(), transcript: model.transcript };
    let mut sampler = Sampler::new(model, &config.mix, composer.clone(), resources.train, resources.grammar, config.seed, config.batch)?;
    let device = resources.device.clone().autodiff();
    let mut network = Network::seeded(model, config.seed, &device);
    let mut kept = None;
    if let Some((dir, share)) = resources.from {
        network = checkpoint::load_weights(dir, network)?;
        kept = (share > 0.0).then(|| (network.clone(), share));
    }
    let (mut network, mut optimizer, start) = run.resume(network, Optimizer::new(config.optimizer.clone()))?;
    let total = run.total();
    if start >= total {
        write(&run, model, &network, kept.as_ref())?; // a kill may have come between the last state and its checkpoint
    }
    let begin = Instant::now();
    for step in start..total {
        let clock = Instant::now();
        // Where the schedule stands: at the step, or further where time runs out sooner than the steps.
        let scheduled = resources.finish_in.map_or(step, |limit| {
            let share = begin.elapsed().as_secs_f64() / limit.as_secs_f64();
            step.max(start + ((total - start) as f64 * share) as u64).min(total)
        });
        let sequences = sampler.batch(step);
        let mut values: Vec<(String, f64)> = Vec::new();
        let norm;
        if resources.fused {
            let parameters = Parameters::of(&network, model);
            let shards: Vec<Batch> = sequences.chunks(SHARD).map(|part| Batch::new(part, model.group)).collect();
            let gradient = gradients(model, &parameters, &shards, config.unit_weight, resources.threads);
            let all = sum(&gradient.scores);
            let (text, unit) = (ratio(all.text_loss, all.text), ratio(all.unit_loss, all.units));
            values.extend([("loss".into(), text + f64::from(config.unit_weight) * unit), ("text".into(), text), ("unit".into(), unit)]);
            for (task, score) in Task::ALL.iter().zip(&gradient.scores) {
                if score.text > 0 {
                    values.push((format!("{}/text", task.name()), ratio(score.text_right as f64, score.text)));
                }
                if score.units > 0 {
                    values.push((format!("{}/unit", task.name()), ratio(score.unit_right as f64, score.units)));
                }
            }
            if (step + 1) % DEV_EVERY == 0 && !resources.dev.questions.is_empty() {
                let dev = look(config, &parameters, &composer, resources.dev, resources.threads);
                values.extend([
                    ("dev/loss".into(), ratio(dev.text_loss, dev.text)),
                    ("dev/text".into(), ratio(dev.text_right as f64, dev.text)),
                ]);
            }
            let mut burn = GradientsParams::new();
            gradient.parameters.register(&network, &mut burn, &resources.device);
            (network, norm) = optimizer.apply(network, burn, scheduled, total);
        } else {
            let loss = network.loss(model, &Batch::new(&sequences, model.group), config.unit_weight, &device);
            values.push(("loss".into(), loss.clone().into_scalar::<f32>().into()));
            (network, norm) = optimizer.step(network, loss.backward(), scheduled, total);
        }
        values.extend([("norm".into(), norm.into()), ("sequences/s".into(), sequences.len() as f64 / clock.elapsed().as_secs_f64())]);
        let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let stop = run.finish_step(step + 1, &values, &network, &optimizer)? == Next::Stop;
        if stop || (step + 1) % CHECKPOINT_EVERY == 0 {
            write(&run, model, &network, kept.as_ref())?;
        }
        if stop {
            break;
        }
    }
    Ok(network)
}
