//! Quantised graphs against fp32 graphs, on audio: what a user of the bundle would notice.

use sa_device::vocabulary::{Vocabulary, special};
use sa_models::lm;

use crate::prove::{Distance, Item, arg_max, lm_step};
use crate::runner::{RunError, Runner};

/// Units of a recording.
pub fn units_of(runner: &mut Runner, chunk: usize, audio: &[f32]) -> Result<Vec<i64>, RunError> {
    runner.reset()?;
    let mut units = Vec::new();
    for samples in audio.chunks(chunk) {
        let mut samples = samples.to_vec();
        samples.resize(chunk, 0.0);
        units.extend(runner.step(&[("audio", &samples)], &[])?.i64("units")?);
    }
    Ok(units)
}

/// Units of two tokenizers on the same recordings.
pub fn tokenizer(reference: &[Vec<i64>], runner: &mut Runner, chunk: usize, recordings: &[Vec<f32>]) -> Result<Distance, RunError> {
    let mut distance = Distance::default();
    for (units, audio) in reference.iter().zip(recordings) {
        distance.decisions(units, &units_of(runner, chunk, audio)?);
    }
    Ok(distance)
}

/// What the fp32 language model did with a question: the sequence, and what it decided where.
#[derive(Debug, Default)]
pub struct Trace {
    pub items: Vec<Item>,
    /// Positions after which the model chose a text token.
    pub texts: Vec<usize>,
    /// Positions after which the head chose a group.
    pub groups: Vec<usize>,
}

impl Trace {
    /// The units that were spoken, without the end units.
    pub fn spoken(&self, end: i64) -> Vec<i64> {
        let groups = self.groups.iter().filter_map(|position| match self.items.get(position + 1) {
            Some(Item::Group(units)) => Some(units),
            _ => None,
        });
        groups.flatten().copied().filter(|unit| *unit != end).collect()
    }
}

/// Most groups of one word: two seconds at the least.
const WORD_GROUPS: usize = 16;
/// Most text tokens that the model writes for one question.
const TEXTS: usize = 60;

/// Lets the language model answer a question greedily, by the rule of the layout: a word, then its groups. The result
/// of a call is always `ok`, for no tool is called here.
pub fn answer(
    config: &lm::Config,
    vocabulary: &Vocabulary,
    trunk: &mut Runner,
    head: &mut Runner,
    question: &[i64],
) -> Result<Trace, RunError> {
    let end = i64::from(config.end_unit());
    let last = config.max_position_embeddings - 2;
    let mut trace = Trace::default();
    trunk.reset()?;
    let mut feed = |trace: &mut Trace, item: Item| {
        let outputs = lm_step(trunk, config.group, &item, trace.items.len());
        trace.items.push(item);
        outputs
    };
    feed(&mut trace, Item::Token(i64::from(special::USER)))?;
    // Half of the memory at most is the question's.
    for units in question.chunks(config.group).take(config.max_position_embeddings / 2) {
        let mut group = units.to_vec();
        group.resize(config.group, end);
        feed(&mut trace, Item::Group(group))?;
    }
    let first = if config.transcript { special::TRANSCRIBE } else { special::AGENT };
    let (mut logits, _) = feed(&mut trace, Item::Token(i64::from(first)))?;
    let mut speaking = false;
    while trace.texts.len() < TEXTS && trace.items.len() < last {
        let token = arg_max(&logits) as u32;
        trace.texts.push(trace.items.len() - 1);
        let mut hidden;
        (logits, hidden) = feed(&mut trace, Item::Token(i64::from(token)))?;
        match token {
            special::END => break,
            special::SPEAK => speaking = true,
            special::RESULT => {
                for id in vocabulary.encode("ok") {
                    (logits, _) = feed(&mut trace, Item::Token(i64::from(id)))?;
                }
            }
            _ if speaking && !vocabulary.is_special(token) && !vocabulary.is_letter(token) => {
                for _ in 0..WORD_GROUPS {
                    let group = group_of(head, config, &hidden)?;
                    trace.groups.push(trace.items.len() - 1);
                    let done = group.contains(&end);
                    (logits, hidden) = feed(&mut trace, Item::Group(group))?;
                    if done || trace.items.len() >= last {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(trace)
}

/// The likeliest group after a hidden state.
fn group_of(head: &mut Runner, config: &lm::Config, hidden: &[f32]) -> Result<Vec<i64>, RunError> {
    let logits = head.step(&[("hidden", hidden)], &[])?.f32("unit_logits")?;
    Ok(logits.chunks_exact(config.units + 1).map(|row| arg_max(row) as i64).collect())
}

/// Logits at the decisions of some traces, one row a decision.
#[derive(Debug, Default)]
pub struct Decided {
    pub texts: Vec<Vec<f32>>,
    pub groups: Vec<Vec<f32>>,
}

/// Runs the sequences of `traces` through a trunk and a head, and collects the logits at the decisions. Every graph
/// reads the same sequence, so that one different token does not make all that follow it incomparable. Where nothing
/// was spoken (an untrained model may never speak) the head is asked after every text token.
pub fn decide(config: &lm::Config, trunk: &mut Runner, head: &mut Runner, traces: &[Trace]) -> Result<Decided, RunError> {
    let mut decided = Decided::default();
    let silent = traces.iter().all(|trace| trace.groups.is_empty());
    for trace in traces {
        trunk.reset()?;
        let groups = if silent { &trace.texts } else { &trace.groups };
        for (position, item) in trace.items.iter().enumerate() {
            let (logits, hidden) = lm_step(trunk, config.group, item, position)?;
            if trace.texts.contains(&position) {
                decided.texts.push(logits);
            }
            if groups.contains(&position) {
                decided.groups.push(head.step(&[("hidden", &hidden)], &[])?.f32("unit_logits")?);
            }
        }
    }
    Ok(decided)
}

/// Text tokens and units that two runs of [`decide`] chose.
pub fn decisions(config: &lm::Config, reference: &Decided, other: &Decided) -> (Distance, Distance) {
    let (mut text, mut units) = (Distance::default(), Distance::default());
    for (a, b) in reference.texts.iter().zip(&other.texts) {
        text.values(a, b);
        text.decisions(&[arg_max(a)], &[arg_max(b)]);
    }
    for (a, b) in reference.groups.iter().zip(&other.groups) {
        units.values(a, b);
        for (a, b) in a.chunks_exact(config.units + 1).zip(b.chunks_exact(config.units + 1)) {
            units.decisions(&[arg_max(a)], &[arg_max(b)]);
        }
    }
    (text, units)
}

/// Spectra of a decoder.
#[derive(Debug, Default)]
pub struct Spectra {
    pub log_magnitude: Vec<f32>,
    pub phase: Vec<f32>,
}

/// Decodes units from the initial state.
pub fn decode(runner: &mut Runner, units: &[i64]) -> Result<Spectra, RunError> {
    let mut spectra = Spectra::default();
    runner.reset()?;
    for chunk in units.chunks_exact(crate::graphs::decoder::CHUNK) {
        let outputs = runner.step(&[], &[("units", chunk)])?;
        spectra.log_magnitude.extend(outputs.f32("log_magnitude")?);
        spectra.phase.extend(outputs.f32("phase")?);
    }
    Ok(spectra)
}

/// The complex spectra's distance, and the mean difference of log-magnitudes in dB.
pub fn spectra(reference: &Spectra, other: &Spectra) -> (Distance, f64) {
    let complex = |s: &Spectra| -> Vec<f32> {
        let bins = s.log_magnitude.iter().zip(&s.phase);
        bins.flat_map(|(m, p)| [m.min(5.0).exp() * p.cos(), m.min(5.0).exp() * p.sin()]).collect()
    };
    let mut distance = Distance::default();
    distance.values(&complex(reference), &complex(other));
    let pairs = reference.log_magnitude.iter().zip(&other.log_magnitude);
    let nepers: f64 = pairs.map(|(a, b)| f64::from((a - b).abs())).sum();
    let decibels = nepers / reference.log_magnitude.len().max(1) as f64 * 20.0 / std::f64::consts::LN_10;
    (distance, decibels)
}
