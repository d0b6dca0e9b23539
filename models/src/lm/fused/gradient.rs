//! Loss and gradients of a batch.
//!
//! loss = Σ text cross-entropy / text targets + unit weight · Σ unit cross-entropy / units, sums over the whole batch: a text
//! token counts the same in every task, and speech does not drown text although it has many more targets.

use std::ops::AddAssign;

use super::super::config::Config;
use super::super::network::rope_tables;
use super::super::sequence::Batch;
use super::block::{Rotation, Shape, Tape, rms_norm, rms_norm_backward};
use super::matrix::{Matrix, multiply, project, project_backward, softmax};
use super::parameters::Parameters;

/// Sums over the targets of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Summed cross-entropy of text tokens, in nats.
    pub text_loss: f64,
    pub text_right: usize,
    pub text: usize,
    /// Summed cross-entropy of units, in nats.
    pub unit_loss: f64,
    pub unit_right: usize,
    pub units: usize,
}

impl AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.text_loss += other.text_loss;
        self.text_right += other.text_right;
        self.text += other.text;
        self.unit_loss += other.unit_loss;
        self.unit_right += other.unit_right;
        self.units += other.units;
    }
}

/// What [`gradients`] returns.
pub struct Gradient {
    pub parameters: Parameters,
    /// By task, in the order of [`Task::ALL`](super::super::sequence::Task::ALL).
    pub scores: [Score; 4],
}

/// What each target weighs.
#[derive(Clone, Copy)]
struct Weights {
    text: f32,
    unit: f32,
}

/// Gradients of the loss over all `shards` together; each thread works through a run of shards that follow one another.
/// The result depends on `threads` only through the order of summation.
pub fn gradients(config: &Config, parameters: &Parameters, shards: &[Batch], unit_weight: f32, threads: usize) -> Gradient {
    let text = shards.iter().map(|shard| shard.text_targets.len()).sum::<usize>().max(1);
    let units = shards.iter().map(|shard| shard.unit_targets.len() * config.group).sum::<usize>().max(1);
    let weights = Weights { text: 1.0 / text as f32, unit: unit_weight / units as f32 };
    let work = |shards: &[Batch]| {
        let mut sum = Gradient { parameters: parameters.zeros(), scores: [Score::default(); 4] };
        for shard in shards {
            let pass = Pass::forward(config, parameters, shard);
            let scores = pass.backward(config, parameters, shard, weights, &mut sum.parameters);
            sum.scores.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
        sum
    };
    let share = shards.len().div_ceil(threads.max(1)).max(1);
    let mut parts = std::thread::scope(|scope| {
        let mut chunks = shards.chunks(share);
        let first = chunks.next().unwrap_or_default();
        let others = chunks.map(|chunk| scope.spawn(move || work(chunk))).collect::<Vec<_>>();
        let mut parts = vec![work(first)];
        parts.extend(others.into_iter().map(|other| other.join().expect("the shards' arithmetic does not panic")));
        parts
    })
    .into_iter();
    let mut sum = parts.next().expect("at least one part");
    for mut part in parts {
        sum.parameters.add(&mut part.parameters);
        sum.scores.iter_mut().zip(part.scores).for_each(|(sum, score)| *sum += score);
    }
    sum
}

/// The forward half of a step.
struct Pass {
    trunk: Shape,
    head: Shape,
    rotation: Rotation,
    group_embeddings: Vec<f32>, // [groups, G e]
    tapes: Vec<Tape>,
    last: Vec<f32>, // rows before the last norm
    scales: Vec<f32>,
    hidden: Vec<f32>, // rows after it
}

impl Config {
    /// The trunk's blocks.
    pub(in super::super) fn trunk_shape(&self) -> Shape {
        Shape {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            hidden: self.intermediate_size,
            eps: self.rms_norm_eps as f32,
            causal: true,
        }
    }

    /// The GroupModel's blocks.
    pub(in super::super) fn head_shape(&self) -> Shape {
        let head = &self.head;
        Shape {
            width: self.hidden_size,
            heads: head.num_attention_heads,
            kv_heads: head.num_attention_heads,
            head_dim: head.head_dim,
            hidden: head.intermediate_size,
            eps: self.rms_norm_eps as f32,
            causal: false,
        }
    }
}

/// The embeddings of `units` side by side: [units, e] of the table `embedding`.
fn unit_rows(embedding: &[f32], width: usize, units: &[u16]) -> Vec<f32> {
    units.iter().flat_map(|unit| &embedding[usize::from(*unit) * width..][..width]).copied().collect()
}

fn gather(x: &[f32], width: usize, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    rows.flat_map(|row| &x[row * width..][..width]).copied().collect()
}

fn scatter_add(x: &mut [f32], width: usize, rows: impl Iterator<Item = usize>, from: &[f32]) {
    for (row, more) in rows.zip(from.chunks_exact(width)) {
        x[row * width..][..width].iter_mut().zip(more).for_each(|(a, b)| *a += b);
    }
}

/// Logits to the gradient of their cross-entropy, in place; returns (cross-entropy, whether the target is the most likely).
fn cross_entropy(logits: &mut [f32], target: usize, weight: f32) -> (f64, bool) {
    let aimed = logits[target];
    let right = logits.iter().all(|logit| *logit <= aimed);
    let loss = softmax(logits) - aimed;
    logits.iter_mut().for_each(|p| *p *= weight);
    logits[target] -= weight;
    (f64::from(loss), right)
}

impl Pass {
    fn forward(config: &Config, w: &Parameters, batch: &Batch) -> Self {
        let d = config.hidden_size;
        let groups = batch.group_rows.len();
        let mut x = vec![0.0; batch.rows() * d];
        for &(row, token) in &batch.tokens {
            x[row * d..][..d].copy_from_slice(&w.embedding[usize::from(token) * d..][..d]);
        }
        let group_embeddings = unit_rows(&w.unit_embedding, config.unit_embedding_size, &batch.groups);
        let adapted = project(&group_embeddings, &w.adaptor, groups, config.group * config.unit_embedding_size, d);
        for (row, from) in batch.group_rows.iter().zip(adapted.chunks_exact(d)) {
            x[row * d..][..d].copy_from_slice(from);
        }
        let longest = batch.lengths.iter().max().copied().unwrap_or(0);
        let (cos, sin) = rope_tables(config.head_dim, config.rope_theta, 0, longest);
        let rotation = Rotation { cos, sin };
        let trunk = config.trunk_shape();
        let mut tapes = Vec::with_capacity(w.layers.len());
        for layer in &w.layers {
            let tape;
            (x, tape) = trunk.forward(layer, x, &batch.lengths, Some(&rotation));
            tapes.push(tape);
        }
        let (hidden, scales) = rms_norm(&x, &w.norm, trunk.eps);
        Self { trunk, head: config.head_shape(), rotation, group_embeddings, tapes, last: x, scales, hidden }
    }

    fn backward(self, config: &Config, w: &Parameters, batch: &Batch, weights: Weights, g: &mut Parameters) -> [Score; 4] {
        let d = config.hidden_size;
        let mut scores = [Score::default(); 4];
        let mut dhidden = vec![0.0; self.hidden.len()];
        self.text_loss(config, w, batch, weights.text, g, &mut dhidden, &mut scores);
        self.unit_loss(config, w, batch, weights.unit, g, &mut dhidden, &mut scores);

        let mut dx = vec![0.0; dhidden.len()];
        rms_norm_backward(&self.last, &w.norm, &self.scales, &dhidden, &mut dx, &mut g.norm);
        for ((layer, grads), tape) in w.layers.iter().zip(&mut g.layers).zip(&self.tapes).rev() {
            dx = self.trunk.backward(layer, grads, tape, dx, &batch.lengths, Some(&self.rotation));
        }
        for &(row, token) in &batch.tokens {
            let sum = &mut g.embedding[usize::from(token) * d..][..d];
            sum.iter_mut().zip(&dx[row * d..][..d]).for_each(|(a, b)| *a += b);
        }
        let (groups, e) = (batch.group_rows.len(), config.unit_embedding_size);
        let dadapted = gather(&dx, d, batch.group_rows.iter().copied());
        let mut dgroups = vec![0.0; self.group_embeddings.len()];
        project_backward(&self.group_embeddings, &w.adaptor, &dadapted, groups, config.group * e, d, &mut g.adaptor, &mut dgroups, false);
        scatter_add(&mut g.unit_embedding, e, batch.groups.iter().map(|unit| usize::from(*unit)), &dgroups);
        scores
    }

    #[allow(clippy::too_many_arguments)]
    fn text_loss(
        &self,
        config: &Config,
        w: &Parameters,
        batch: &Batch,
        weight: f32,
        g: &mut Parameters,
        dhidden: &mut [f32],
        scores: &mut [Score; 4],
    ) {
        let (d, vocabulary, n) = (config.hidden_size, config.vocab_size, batch.text_targets.len());
        let rows = || batch.text_targets.iter().map(|(row, _, _)| *row);
        let hidden = gather(&self.hidden, d, rows());
        let mut logits = vec![0.0; n * vocabulary];
        multiply(n, d, vocabulary, 1.0, Matrix::rows(&hidden, d), Matrix::transposed(&w.embedding, d), &mut logits, vocabulary, false);
        for ((_, target, sequence), logits) in batch.text_targets.iter().zip(logits.chunks_exact_mut(vocabulary)) {
            let (loss, right) = cross_entropy(logits, usize::from(*target), weight);
            let score = &mut scores[batch.tasks[*sequence] as usize];
            *score += Score { text_loss: loss, text_right: right.into(), text: 1, ..Score::default() };
        }
        multiply(vocabulary, n, d, 1.0, Matrix::transposed(&logits, vocabulary), Matrix::rows(&hidden, d), &mut g.embedding, d, true);
        let back = project(&logits, &w.embedding, n, vocabulary, d);
        scatter_add(dhidden, d, rows(), &back);
    }

    #[allow(clippy::too_many_arguments)]
    fn unit_loss(
        &self,
        config: &Config,
        w: &Parameters,
        batch: &Batch,
        weight: f32,
        g: &mut Parameters,
        dhidden: &mut [f32],
        scores: &mut [Score; 4],
    ) {
        let (d, group, kinds, n) = (config.hidden_size, config.group, config.units + 1, batch.unit_targets.len());
        if n == 0 {
            return;
        }
        let rows = || batch.unit_targets.iter().map(|(row, _, _)| *row);
        let hidden = gather(&self.hidden, d, rows());
        let state = project(&hidden, &w.head_input, n, d, d);
        let block = (1 + group) * d;
        let mut x = Vec::with_capacity(n * block);
        for row in state.chunks_exact(d) {
            x.extend_from_slice(row);
            x.extend_from_slice(&w.queries);
        }
        let lengths = vec![1 + group; n];
        let mut tapes = Vec::with_capacity(w.head_layers.len());
        for layer in &w.head_layers {
            let tape;
            (x, tape) = self.head.forward(layer, x, &lengths, None);
            tapes.push(tape);
        }
        let asked = x.chunks_exact(block).flat_map(|rows| &rows[d..]).copied().collect::<Vec<_>>(); // [n G, d]
        let (normed, scales) = rms_norm(&asked, &w.head_norm, self.head.eps);
        let mut logits = project(&normed, &w.head_output, n * group, d, kinds);
        for ((_, index, sequence), logits) in batch.unit_targets.iter().zip(logits.chunks_exact_mut(group * kinds)) {
            let units = &batch.groups[index * group..][..group];
            let score = &mut scores[batch.tasks[*sequence] as usize];
            for (unit, logits) in units.iter().zip(logits.chunks_exact_mut(kinds)) {
                let (loss, right) = cross_entropy(logits, usize::from(*unit), weight);
                *score += Score { unit_loss: loss, unit_right: right.into(), units: 1, ..Score::default() };
            }
        }
        let mut dnormed = vec![0.0; normed.len()];
        project_backward(&normed, &w.head_output, &logits, n * group, d, kinds, &mut g.head_output, &mut dnormed, false);
        let mut dasked = vec![0.0; asked.len()];
        rms_norm_backward(&asked, &w.head_norm, &scales, &dnormed, &mut dasked, &mut g.head_norm);
        let mut dx = vec![0.0; n * block];
        for (rows, from) in dx.chunks_exact_mut(block).zip(dasked.chunks_exact(group * d)) {
            rows[d..].copy_from_slice(from);
        }
        for ((layer, grads), tape) in w.head_layers.iter().zip(&mut g.head_layers).zip(&tapes).rev() {
            dx = self.head.backward(layer, grads, tape, dx, &lengths, None);
        }
        let mut dstate = Vec::with_capacity(n * d);
        for rows in dx.chunks_exact(block) {
            dstate.extend_from_slice(&rows[..d]);
            g.queries.iter_mut().zip(&rows[d..]).for_each(|(a, b)| *a += b);
        }
        let mut back = vec![0.0; n * d];
        project_backward(&hidden, &w.head_input, &dstate, n, d, d, &mut g.head_input, &mut back, false);
        scatter_add(dhidden, d, rows(), &back);
    }
}
