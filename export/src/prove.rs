//! The proof of the fp32 graphs: each runs beside its Burn network, step by step, on the engine that will run it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sa_models::decoder::Decoder;
use sa_models::lm::network::Cache;
use sa_models::lm::{self, Network};
use sa_models::tokenizer::{Tokenizer, TokenizerConfig};

use crate::runner::{Outputs, RunError, Runner};

/// A graph computes what its network does if its outputs are this near (relative L2).
pub const FP32_BUDGET: f64 = 1e-4;

/// How far a graph's outputs lie from the reference's, over all steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    difference: f64,
    norm: f64,
    same: usize,
    decisions: usize,
}

impl Distance {
    /// Counts values.
    pub fn values(&mut self, reference: &[f32], other: &[f32]) {
        // A missing or surplus value is as wrong as can be.
        if reference.len() != other.len() {
            self.difference = f64::INFINITY;
        }
        for (&a, &b) in reference.iter().zip(other) {
            self.difference += f64::from(a - b).powi(2);
            self.norm += f64::from(a).powi(2);
        }
    }

    /// Counts decisions: units, or the likeliest tokens.
    pub fn decisions<T: PartialEq>(&mut self, reference: &[T], other: &[T]) {
        self.same += reference.iter().zip(other).filter(|(a, b)| a == b).count();
        self.decisions += reference.len().max(other.len());
    }

    /// ‖other − reference‖ / ‖reference‖.
    pub fn error(&self) -> f64 {
        match self.difference {
            0.0 => 0.0,
            _ => (self.difference / self.norm.max(f64::MIN_POSITIVE)).sqrt(),
        }
    }

    /// Share of equal decisions; 1 where none were counted.
    pub fn agreement(&self) -> f64 {
        match self.decisions {
            0 => 1.0,
            all => self.same as f64 / all as f64,
        }
    }
}

/// Index of the greatest value, the first of equals.
pub fn arg_max(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32 in this line")
}

/// The tokenizer's graph (drawn with `features`) on `audio`, chunk by chunk.
pub fn tokenizer(network: &Tokenizer, config: &TokenizerConfig, runner: &mut Runner, audio: &[f32]) -> Result<Distance, RunError> {
    let device = Device::flex();
    let mut state = network.initial_state(&device);
    let mut distance = Distance::default();
    runner.reset()?;
    for chunk in audio.chunks(config.chunk_samples()) {
        let mut samples = chunk.to_vec();
        samples.resize(config.chunk_samples(), 0.0);
        let outputs = runner.step(&[("audio", &samples)], &[])?;
        let length = samples.len();
        let (units, features) = network.step(Tensor::from_data(TensorData::new(samples, [1, length]), &device), &mut state);
        let units: Vec<i64> = units.into_data().convert::<i64>().try_into_vec().expect("converted to i64 in this line");
        distance.decisions(&units, &outputs.i64("units")?);
        distance.values(&floats(features), &outputs.f32("features")?);
    }
    Ok(distance)
}

/// The decoder's initial state in the order of its graph's `state.*` inputs.
pub fn decoder_state(network: &Decoder) -> Vec<f32> {
    let state = network.initial_state(1);
    state.units.into_iter().chain(state.frames).flat_map(floats).collect()
}

/// The decoder's graph on `units`, chunk by chunk, from the initial state.
pub fn decoder(network: &Decoder, runner: &mut Runner, units: &[i64]) -> Result<Distance, RunError> {
    let device = Device::flex();
    let mut state = network.initial_state(1);
    let mut distance = Distance::default();
    let bins = network.config.bins();
    runner.reset()?;
    for chunk in units.chunks_exact(crate::graphs::decoder::CHUNK) {
        let outputs = runner.step(&[], &[("units", chunk)])?;
        let input = Tensor::<2, Int>::from_data(TensorData::new(chunk.to_vec(), [1, chunk.len()]), &device);
        let frames = floats(network.step(input, &mut state)); // [8, 2 bins]
        let split =
            |start: usize| -> Vec<f32> { frames.chunks_exact(2 * bins).flat_map(|frame| &frame[start..start + bins]).copied().collect() };
        distance.values(&split(0), &outputs.f32("log_magnitude")?);
        distance.values(&split(bins), &outputs.f32("phase")?);
    }
    Ok(distance)
}

/// What stands at a position of the language model's sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Token(i64),
    Group(Vec<i64>),
}

/// The language model's graph and its head on a sequence, position by position: text logits and hidden states, and
/// the unit logits that the head gives for the network's hidden state.
pub fn lm(
    network: &Network,
    config: &lm::Config,
    runner: &mut Runner,
    head: &mut Runner,
    items: &[Item],
) -> Result<(Distance, Distance), RunError> {
    let device = Device::flex();
    let (mut trunk, mut groups) = (Distance::default(), Distance::default());
    let mut cache = Cache::default();
    runner.reset()?;
    for (position, item) in items.iter().enumerate() {
        let outputs = lm_step(runner, config.group, item, position)?;
        let row = match item {
            Item::Token(id) => network.embed_tokens(Tensor::from_data(TensorData::new(vec![*id], [1]), &device)),
            Item::Group(units) => network.embed_groups(Tensor::from_data(TensorData::new(units.clone(), [1, units.len()]), &device)),
        };
        let (logits, hidden) = network.step(config, row, &mut cache);
        let unit_logits = floats(network.unit_logits(hidden.clone()));
        let (logits, hidden) = (floats(logits), floats(hidden));
        trunk.decisions(&[arg_max(&logits)], &[arg_max(&outputs.0)]);
        trunk.values(&logits, &outputs.0);
        trunk.values(&hidden, &outputs.1);
        let from_graph = head.step(&[("hidden", &hidden)], &[])?.f32("unit_logits")?;
        let width = config.units + 1;
        for (a, b) in unit_logits.chunks_exact(width).zip(from_graph.chunks_exact(width)) {
            groups.decisions(&[arg_max(a)], &[arg_max(b)]);
        }
        groups.values(&unit_logits, &from_graph);
    }
    Ok((trunk, groups))
}

/// Feeds one item to a trunk or to the first piece of one. A trunk that reads text only has no groups, and is given tokens.
pub fn feed<'a>(runner: &'a mut Runner, group: Option<usize>, item: &Item, position: usize) -> Result<Outputs<'a>, RunError> {
    let none = vec![0; group.unwrap_or(0)];
    let (token, units, is_group) = match item {
        Item::Token(id) => (*id, &none, 0.0),
        Item::Group(units) => (0, units, 1.0),
    };
    let i64s: [(&str, &[i64]); 3] = [("token", &[token]), ("position", &[position as i64]), ("units", units)];
    match (group, item) {
        (None, Item::Token(_)) => runner.step(&[], &i64s[..2]),
        _ => runner.step(&[("is_group", &[is_group])], &i64s),
    }
}

/// Feeds one item: text logits and hidden state.
pub fn lm_step(runner: &mut Runner, group: usize, item: &Item, position: usize) -> Result<(Vec<f32>, Vec<f32>), RunError> {
    feed(runner, Some(group), item, position)?.text()
}

/// Feeds one token to a trunk that reads text only: text logits and hidden state.
pub fn text_step(runner: &mut Runner, token: i64, position: usize) -> Result<(Vec<f32>, Vec<f32>), RunError> {
    feed(runner, None, &Item::Token(token), position)?.text()
}

#[cfg(test)]
mod tests;
