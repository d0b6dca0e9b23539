//! How much of the phones the units carry: a small network reads units, and its phone error is told by kind of voice.
//!
//! The probe (embedding, two bidirectional convolutions, CTC) is trained on units of clean training questions and read greedily on the
//! test sets. Beside it stands the phone error of the tokenizer's own CTC head, which sees the features before quantisation.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::seq::index;
use serde::Serialize;

use super::ctc::{ctc_loss, edit_distance, greedy};
use super::data::Batch;
use super::losses::mel_tensor;
use super::network::Tokenizer;
use super::train::load;
use crate::audio::LogMel;
use crate::corpus::{Corpus, Split, Utterance, augment};
use crate::train::{Optimizer, OptimizerConfig, step_rng};

/// Purpose of the random draws; see [`step_rng`].
const PROBE: u64 = 0x7072_6f62;
/// Frames that a convolution of the probe sees, half of them ahead.
const KERNEL: usize = 5;
const BATCH: usize = 32;

/// How much is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Training questions that the probe learns from.
    pub training: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Test questions of each set.
    pub test: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { training: 2_500, epochs: 4, test: 200, seed: 1 }
    }
}

/// Phone errors of one kind of voice.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub utterances: usize,
    pub phones: usize,
    /// Share of phones wrong, read from units by the probe.
    pub probe: f64,
    /// Share of phones wrong, read by the tokenizer's own CTC head.
    pub ctc: f64,
}

/// The probe's report, by set.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub units: usize,
    /// Units of k that occur in the probe's training questions.
    pub units_used: usize,
    /// Share of neighbouring units that are equal: how long units last.
    pub repeats: f64,
    pub sets: BTreeMap<String, Row>,
}

impl Report {
    /// As a table.
    pub fn table(&self) -> String {
        let mut lines = vec![format!("{:<22} {:>10} {:>8} {:>12} {:>12}", "set", "questions", "phones", "from units", "CTC head")];
        for (set, row) in &self.sets {
            let (probe, ctc) = (100.0 * row.probe, 100.0 * row.ctc);
            lines.push(format!("{set:<22} {:>10} {:>8} {probe:>10.1} % {ctc:>10.1} %", row.utterances, row.phones));
        }
        lines.push(format!(
            "{} of {} units used; {:.0} % of units repeat the one before",
            self.units_used,
            self.units,
            100.0 * self.repeats
        ));
        lines.join("\n")
    }
}

/// Units to phones.
#[derive(Module, Debug)]
struct Probe {
    embedding: Embedding,
    first: Linear,
    second: Linear,
    output: Linear,
}

impl Probe {
    fn new(units: usize, phones: usize, device: &Device) -> Self {
        let (embedding, width) = (64, 128);
        Self {
            embedding: EmbeddingConfig::new(units + 1, embedding).init(device),
            first: LinearConfig::new(KERNEL * embedding, width).init(device),
            second: LinearConfig::new(KERNEL * width, width).init(device),
            output: LinearConfig::new(width, phones).init(device),
        }
    }

    /// `[B, T]` to logits `[B, T, phones]`.
    fn forward(&self, units: Tensor<2, Int>) -> Tensor<3> {
        let x = self.embedding.forward(units);
        let x = relu(self.first.forward(neighbours(x)));
        let x = x.clone() + relu(self.second.forward(neighbours(x)));
        self.output.forward(x)
    }
}

/// Each frame with its neighbours on both sides: `[B, T, c]` to `[B, T, KERNEL * c]`.
fn neighbours(x: Tensor<3>) -> Tensor<3> {
    let [b, t, c] = x.dims();
    let side = Tensor::zeros([b, KERNEL / 2, c], &x.device());
    let padded = Tensor::cat(vec![side.clone(), x, side], 1);
    Tensor::cat((0..KERNEL).map(|tap| padded.clone().slice([0..b, tap..tap + t, 0..c])).collect(), 2)
}

/// What the tokenizer made of an utterance.
struct Heard {
    units: Vec<u16>,
    /// Greedy reading of the CTC head.
    read: Vec<u16>,
    phones: Vec<u16>,
}

/// Trains the probe and reads the test sets.
pub fn probe(checkpoint: &Path, corpus: &Corpus, options: Options, device: &Device) -> Result<Report> {
    let (config, model) = load(checkpoint, device).with_context(|| format!("while loading the tokenizer {}", checkpoint.display()))?;
    let hear = |utterances: &[&Utterance], snr_db: Option<f32>| -> Result<Vec<Heard>> {
        let mut heard = Vec::with_capacity(utterances.len());
        let mut sorted = utterances.to_vec();
        sorted.sort_by_key(|utterance| utterance.samples);
        let front_end = LogMel::default();
        for chunk in sorted.chunks(BATCH) {
            let mut audio = chunk.iter().map(|utterance| corpus.audio(utterance)).collect::<Result<Vec<_>, _>>()?;
            if let Some(snr_db) = snr_db {
                for (i, samples) in audio.iter_mut().enumerate() {
                    augment::add_noise(
                        &mut step_rng(options.seed, (heard.len() + i) as u64, PROBE),
                        samples,
                        snr_db,
                        &augment::Crowd::default(),
                    );
                }
            }
            let targets = chunk.iter().map(|utterance| corpus.phones_of(&utterance.text)).collect();
            let batch = Batch::new(&front_end, &audio, None, targets, config.chunk);
            heard.extend(hear_batch(&model, &batch, config.width, config.phones, device));
        }
        Ok(heard)
    };
    let questions = corpus.questions(Split::Train);
    let mut rng = step_rng(options.seed, 0, PROBE);
    let chosen = index::sample(&mut rng, questions.len(), options.training.min(questions.len()));
    let training = hear(&chosen.iter().map(|i| &questions[i]).filter(|q| !q.text.is_empty()).collect::<Vec<_>>(), None)?;
    let reader = train(&training, config.units, config.phones, options, device)?;

    let mut by_set: BTreeMap<String, Vec<&Utterance>> = BTreeMap::new();
    for utterance in corpus.questions(Split::Test).iter().filter(|q| !q.text.is_empty()) {
        by_set.entry(utterance.set.clone()).or_default().push(utterance);
    }
    let mut sets = BTreeMap::new();
    for (set, utterances) in by_set {
        let step = utterances.len().div_ceil(options.test.max(1)).max(1);
        let chosen: Vec<&Utterance> = utterances.into_iter().step_by(step).collect();
        if set == "trained" {
            sets.insert(format!("{set}, 10 dB noise"), read(&reader, &hear(&chosen, Some(10.0))?, config.phones, device));
        }
        sets.insert(set, read(&reader, &hear(&chosen, None)?, config.phones, device));
    }
    let mut used = vec![false; config.units];
    training.iter().flat_map(|heard| &heard.units).for_each(|unit| used[usize::from(*unit)] = true);
    let pairs = training.iter().flat_map(|heard| heard.units.windows(2));
    let (repeats, count) = pairs.fold((0, 0), |(repeats, count), pair| (repeats + usize::from(pair[0] == pair[1]), count + 1));
    let units_used = used.iter().filter(|used| **used).count();
    Ok(Report { units: config.units, units_used, repeats: f64::from(repeats as u32) / f64::from(count.max(1)), sets })
}

fn hear_batch(model: &Tokenizer, batch: &Batch, width: usize, phones: usize, device: &Device) -> Vec<Heard> {
    let mel = mel_tensor(batch, &batch.mel, device);
    let features = model.features(mel.clone()).reshape([batch.size * batch.frames, width]);
    let units: Vec<u16> = model.quantise(features).into_data().iter::<i64>().map(|unit| unit as u16).collect();
    let logits: Vec<f32> = model.phone_logits(model.forward(mel)).into_data().try_to_vec().expect("logits are f32");
    (0..batch.size)
        .map(|i| {
            let rows = &logits[i * batch.frames * phones..][..batch.lengths[i] * phones];
            Heard {
                units: units[i * batch.frames..][..batch.lengths[i]].to_vec(),
                read: greedy(rows, phones),
                phones: batch.targets[i].clone(),
            }
        })
        .collect()
}

/// Units padded to the longest (with k), `[B, T]`.
fn unit_tensor(heard: &[Heard], units: usize, device: &Device) -> Tensor<2, Int> {
    let t = heard.iter().map(|heard| heard.units.len()).max().unwrap_or(0);
    let padded = heard.iter().flat_map(|heard| {
        let padding = std::iter::repeat_n(units as i64, t - heard.units.len());
        heard.units.iter().map(|unit| i64::from(*unit)).chain(padding).collect::<Vec<_>>()
    });
    Tensor::from_data(TensorData::new(padded.collect::<Vec<_>>(), [heard.len(), t]), device)
}

fn train(heard: &[Heard], units: usize, phones: usize, options: Options, device: &Device) -> Result<Probe> {
    anyhow::ensure!(!heard.is_empty(), "the corpus has no training questions to probe with");
    let device = device.clone().autodiff();
    let mut model = Probe::new(units, phones, &device);
    let mut optimizer = Optimizer::new(OptimizerConfig { learning_rate: 4e-3, warmup: 20, ..OptimizerConfig::default() });
    let batches: Vec<&[Heard]> = heard.chunks(BATCH).collect();
    let total = (batches.len() * options.epochs) as u64;
    for step in 0..total {
        // The utterances are sorted by length; a stride mixes the order of the batches.
        let batch = batches[(step as usize * 37 + step as usize / batches.len()) % batches.len()];
        let logits = model.forward(unit_tensor(batch, units, &device));
        let [b, t, classes] = logits.dims();
        let lengths: Vec<usize> = batch.iter().map(|heard| heard.units.len()).collect();
        let targets: Vec<Vec<u16>> = batch.iter().map(|heard| heard.phones.clone()).collect();
        let values: Vec<f32> = logits.clone().into_data().try_to_vec().expect("logits are f32");
        let loss = ctc_loss(&values, t, classes, &lengths, &targets, 0.0);
        let gradient = Tensor::<3>::from_data(TensorData::new(loss.gradient, [b, t, classes]), &device);
        model = optimizer.step(model, (logits * gradient).sum().backward(), step, total).0;
    }
    Ok(model.valid())
}

fn read(reader: &Probe, heard: &[Heard], phones: usize, device: &Device) -> Row {
    let units = reader.embedding.weight.val().dims()[0] - 1;
    let (mut from_units, mut from_head, mut count) = (0, 0, 0);
    for batch in heard.chunks(BATCH) {
        let logits = reader.forward(unit_tensor(batch, units, device));
        let t = logits.dims()[1];
        let logits: Vec<f32> = logits.into_data().try_to_vec().expect("logits are f32");
        for (i, heard) in batch.iter().enumerate() {
            let rows = &logits[i * t * phones..][..heard.units.len() * phones];
            from_units += edit_distance(&greedy(rows, phones), &heard.phones);
            from_head += edit_distance(&heard.read, &heard.phones);
            count += heard.phones.len();
        }
    }
    let share = |errors: usize| errors as f64 / count.max(1) as f64;
    Row { utterances: heard.len(), phones: count, probe: share(from_units), ctc: share(from_head) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_are_phones_are_read_without_error() {
        let device = Device::flex();
        let heard: Vec<Heard> = (0..64)
            .map(|i| {
                let phones: Vec<u16> = (0..5).map(|j| 1 + (i * 7 + j * j * 3 + j * i) as u16 % 6).collect();
                let units = phones.iter().flat_map(|phone| [7, *phone, *phone]).collect();
                Heard { units, read: phones.clone(), phones }
            })
            .collect();
        let options = Options { epochs: 60, ..Options::default() };
        let reader = train(&heard, 8, 7, options, &device).expect("trains");
        let row = read(&reader, &heard, 7, &device);
        assert!(row.probe < 0.05, "{}", row.probe);
        assert_eq!(row.ctc, 0.0);
    }
}
