//! Quantised graphs against fp32 graphs, on audio: what a user of the bundle would notice.

use sa_device::stage::InverseStft;
use sa_device::vocabulary::{Vocabulary, special};
use sa_models::audio::LogMel;
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
    /// What the text tokens of the traces cost.
    pub surprise: Surprise,
}

/// The mean of -ln p over tokens that were to be foretold: the cross-entropy, in nats a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surprise {
    sum: f64,
    tokens: usize,
}

impl Surprise {
    /// Counts the token after a position, if there is one.
    pub fn next(&mut self, logits: &[f32], token: Option<&i64>) {
        if let Some(token) = token {
            self.token(logits, *token);
        }
    }

    /// Counts a token by the logits before it.
    pub fn token(&mut self, logits: &[f32], token: i64) {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - peak).exp()).sum();
        // A token that is not in the vocabulary is as surprising as can be.
        let own = usize::try_from(token).ok().and_then(|token| logits.get(token)).map_or(f64::NEG_INFINITY, |x| f64::from(x - peak));
        self.sum += sum.ln() - own;
        self.tokens += 1;
    }

    /// Nothing where no token was counted.
    pub fn mean(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.sum / self.tokens as f64)
    }
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
                if let Some(Item::Token(token)) = trace.items.get(position + 1) {
                    decided.surprise.token(&logits, *token);
                }
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

/// The complex spectra's distance, and that of the sounds' mel spectra in dB; a frame has `bins` bins and `hop` samples.
pub fn spectra(reference: &Spectra, other: &Spectra, bins: usize, hop: usize) -> (Distance, f64) {
    let complex = |s: &Spectra| -> Vec<f32> {
        let bins = s.log_magnitude.iter().zip(&s.phase);
        bins.flat_map(|(m, p)| [m.min(5.0).exp() * p.cos(), m.min(5.0).exp() * p.sin()]).collect()
    };
    let mut distance = Distance::default();
    distance.values(&complex(reference), &complex(other));
    // As the device makes sound of them.
    let sound = |s: &Spectra| -> Vec<f32> {
        let (mut stft, mut audio) = (InverseStft::new(bins, hop), Vec::new());
        for (magnitude, phase) in s.log_magnitude.chunks_exact(bins).zip(s.phase.chunks_exact(bins)) {
            stft.step(magnitude, phase, &mut audio);
        }
        audio
    };
    (distance, mel_distance(&sound(reference), &sound(other)))
}

/// Mean absolute difference of the log-mel spectra in dB.
pub fn mel_distance(a: &[f32], b: &[f32]) -> f64 {
    // Log-mel values are (ln power + 4) / 4.
    const DECIBELS: f64 = 4.0 * 10.0 / std::f64::consts::LN_10;
    let front_end = LogMel::default();
    let (a, b) = (front_end.frames(a), front_end.frames(b));
    let sum: f64 = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs())).sum();
    DECIBELS * sum / a.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_costs_the_logarithm_of_its_share() {
        let mut surprise = Surprise::default();
        assert_eq!(surprise.mean(), None);
        surprise.token(&[0.0; 4], 2);
        surprise.token(&[1000.0, 1000.0], 0);
        let expected = (4f64.ln() + 2f64.ln()) / 2.0;
        assert!((surprise.mean().expect("two tokens") - expected).abs() < 1e-9, "{:?}", surprise.mean());
    }

    /// Twice the amplitude is 6 dB.
    #[test]
    fn the_mel_distance_is_in_decibels() {
        let noise = crate::samples::noise(16_000, 1);
        let louder: Vec<f32> = noise.iter().map(|x| 2.0 * x).collect();
        let distance = mel_distance(&noise, &louder);
        assert!((distance - 6.02).abs() < 0.1, "{distance}");
        assert_eq!(mel_distance(&noise, &noise), 0.0);
    }
}
