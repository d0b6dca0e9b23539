//! The wake phrase: any words of the user's, said three times, as patterns of the tokenizer's units.
//!
//! A pattern is compared with the stream of units by edit distance (Sellers 1980: it may begin and end anywhere), where a unit that
//! lasts counts once, and taking one unit for another costs by how far apart their centroids are. The distance by the pattern's length
//! is the score: 0.2 for the same voice as a rule, 0.5 for the nearest thing in an hour of other talk (measured by
//! `tests/figures.py wake`).

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::audio::SAMPLE_RATE;
use crate::bundle::{Bundle, BundleError};
use crate::engine::Engine;
use crate::files::{PUBLIC, write_beside};
use crate::stage::{StageError, Tokenizer};

const VERSION: u32 = 1;
/// Window for the loudness of a recording: 20 ms.
const WINDOW: usize = SAMPLE_RATE as usize / 50;
/// What is so much softer than a recording's loudest window (as a ratio of energies, 30 dB) is the silence around it.
const SILENCE: f32 = 1e-3;
/// Fewest units of a pattern, each counted once however long it lasts: shorter phrases are found everywhere.
pub const SHORTEST: usize = 10;
/// Units (40 ms each) that a match is given to become better before it counts.
const SETTLES: usize = 6;

/// Why there is no wake phrase.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WakeError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    /// The file is no wake phrase.
    #[error("{path} is no wake phrase: {message}; make it again with `sa-agent enrol`")]
    Format { path: String, message: String },
    /// It was enrolled with another tokenizer, whose units mean other sounds.
    #[error("{path} was enrolled with another tokenizer than that of this bundle: enrol it again with `sa-agent enrol`")]
    OtherTokenizer { path: String },
    /// Nothing was said.
    #[error("recording {number} is silent: say the phrase again, nearer to the microphone")]
    Silent { number: usize },
    /// Too short to be told from other talk.
    #[error(
        "recording {number} has {found} different units, and a phrase needs {SHORTEST}: choose a longer one, of three syllables or more"
    )]
    Short { number: usize, found: usize },
    /// The recordings differ so much that they would not find each other.
    #[error("the recordings are too different (score {score:.2}, {limit:.2} allowed): say the same words each time, in the same place")]
    Different { score: f32, limit: f32 },
    /// See [`StageError`].
    #[error(transparent)]
    Stage(#[from] StageError),
    /// See [`BundleError`].
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Settings: the table `live.wake`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WakeSettings {
    /// The file that `sa-agent enrol` wrote; without one every voice is answered.
    pub phrase: Option<std::path::PathBuf>,
    /// Greatest score that wakes it: less lets fewer strangers through and misses the phrase more often.
    pub threshold: f32,
    /// After an answer, questions need no phrase for so long.
    #[serde(rename = "awake_ms", deserialize_with = "crate::turns::milliseconds")]
    pub awake: std::time::Duration,
}

impl Default for WakeSettings {
    fn default() -> Self {
        Self { phrase: None, threshold: 0.45, awake: std::time::Duration::from_secs(8) }
    }
}

/// An enrolled phrase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WakePhrase {
    version: u32,
    /// SHA-256 of the tokenizer's graph.
    tokenizer: String,
    /// Units of each recording, repetitions left out.
    patterns: Vec<Vec<u32>>,
}

/// What makes a pattern: each unit once, however long it lasts.
fn distinct(units: &[u32]) -> Vec<u32> {
    let mut pattern = units.to_vec();
    pattern.dedup();
    pattern
}

/// The samples between the first and the last window that is not silence.
fn trimmed(samples: &[f32]) -> &[f32] {
    let energy = |window: &[f32]| window.iter().map(|sample| sample * sample).sum::<f32>();
    let loudest = samples.chunks(WINDOW).map(energy).fold(0.0, f32::max);
    let loud = |window: &[f32]| energy(window) > SILENCE * loudest;
    let first = samples.chunks(WINDOW).position(loud).unwrap_or(0);
    let last = samples.chunks(WINDOW).rposition(loud).map_or(0, |last| last + 1);
    &samples[first * WINDOW..samples.len().min(last * WINDOW)]
}

impl WakePhrase {
    /// Learns the phrase from recordings of it (16 kHz, silence around it does no harm).
    ///
    /// # Errors
    /// [`WakeError::Silent`], [`WakeError::Short`], [`WakeError::Different`]: record again.
    pub fn enrol(engine: &dyn Engine, bundle: &Bundle, recordings: &[Vec<f32>], settings: &WakeSettings) -> Result<Self, WakeError> {
        let mut tokenizer = Tokenizer::open(engine, bundle)?;
        let mut patterns = Vec::with_capacity(recordings.len());
        for (number, samples) in (1..).zip(recordings) {
            if samples.iter().all(|sample| sample.abs() < 1e-3) {
                return Err(WakeError::Silent { number });
            }
            let pattern = distinct(&tokenizer.forward(trimmed(samples))?);
            if pattern.len() < SHORTEST {
                return Err(WakeError::Short { number, found: pattern.len() });
            }
            patterns.push(pattern);
        }
        let phrase = Self { version: VERSION, tokenizer: tokenizer_of(bundle)?, patterns };
        // Each must be found by one of the others at least.
        let distances = Distances::open(bundle)?;
        for (own, pattern) in phrase.patterns.iter().enumerate() {
            let others = phrase.patterns.iter().enumerate().filter(|(other, _)| *other != own).map(|(_, other)| other.clone());
            let mut matcher = Matcher::new(others.collect(), distances.clone(), f32::INFINITY);
            for unit in pattern {
                matcher.step(*unit);
            }
            let score = matcher.best_score();
            if phrase.patterns.len() > 1 && score > settings.threshold + 0.1 {
                return Err(WakeError::Different { score, limit: settings.threshold + 0.1 });
            }
        }
        Ok(phrase)
    }

    /// Reads what [`WakePhrase::save`] wrote.
    pub fn load(path: &Path, bundle: &Bundle) -> Result<Self, WakeError> {
        let name = || path.display().to_string();
        let text = std::fs::read(path).map_err(|source| WakeError::Io { path: name(), source })?;
        let phrase: Self = serde_json::from_slice(&text).map_err(|error| WakeError::Format { path: name(), message: error.to_string() })?;
        let k = bundle.manifest().k as u32;
        let good = |pattern: &Vec<u32>| pattern.len() >= SHORTEST && pattern.iter().all(|unit| *unit < k);
        if phrase.tokenizer != tokenizer_of(bundle)? {
            return Err(WakeError::OtherTokenizer { path: name() });
        }
        if phrase.version != VERSION || phrase.patterns.is_empty() || !phrase.patterns.iter().all(good) {
            return Err(WakeError::Format { path: name(), message: format!("version {} of unusable patterns", phrase.version) });
        }
        Ok(phrase)
    }

    /// Writes the file, beside its place and then renamed.
    pub fn save(&self, path: &Path) -> Result<(), WakeError> {
        let at = |source| WakeError::Io { path: path.display().to_string(), source };
        let json = serde_json::to_vec(self).map_err(|error| at(error.into()))?;
        write_beside(path, PUBLIC, |mut file| file.write_all(&json)).map_err(at)
    }

    /// Looks for it in a stream of units.
    pub fn matcher(&self, bundle: &Bundle, threshold: f32) -> Result<Matcher, WakeError> {
        Ok(Matcher::new(self.patterns.clone(), Distances::open(bundle)?, threshold))
    }
}

fn tokenizer_of(bundle: &Bundle) -> Result<String, BundleError> {
    Ok(bundle.manifest().stage.require(crate::bundle::StageName::Tokenizer)?.graph.sha256.clone())
}

/// What it costs to take one unit for another, 0 to 1.
#[derive(Debug, Clone)]
struct Distances {
    k: usize,
    /// In 255ths; without a table every other unit costs 1.
    table: Option<Vec<u8>>,
}

impl Distances {
    fn open(bundle: &Bundle) -> Result<Self, BundleError> {
        Ok(Self { k: bundle.manifest().k, table: bundle.unit_distances()? })
    }

    fn between(&self, a: u32, b: u32) -> f32 {
        match &self.table {
            _ if a == b => 0.0,
            Some(table) => f32::from(table.get(a as usize * self.k + b as usize).copied().unwrap_or(u8::MAX)) / 255.0,
            None => 1.0,
        }
    }
}

/// Looks for a phrase in a stream of units.
#[derive(Debug, Clone)]
pub struct Matcher {
    patterns: Vec<Vec<u32>>,
    distances: Distances,
    threshold: f32,
    /// For each pattern, the cost of each of its beginnings ending at the newest unit.
    rows: Vec<Vec<f32>>,
    last: Option<u32>,
    taken: usize,
    /// The best score until now, and how many units had been taken in then.
    best: (f32, usize),
}

impl Matcher {
    fn new(patterns: Vec<Vec<u32>>, distances: Distances, threshold: f32) -> Self {
        let mut matcher = Self { rows: Vec::new(), patterns, distances, threshold, last: None, taken: 0, best: (f32::INFINITY, 0) };
        matcher.reset();
        matcher
    }

    /// Forgets what was heard.
    pub fn reset(&mut self) {
        self.rows = self.patterns.iter().map(|pattern| (0..=pattern.len()).map(|cost| cost as f32).collect()).collect();
        (self.last, self.taken, self.best) = (None, 0, (f32::INFINITY, 0));
    }

    /// Takes in a unit. Once the phrase is over for certain: how many units had been taken in at its end.
    pub fn step(&mut self, unit: u32) -> Option<usize> {
        self.taken += 1;
        let goes_on = self.last == Some(unit);
        if !goes_on {
            self.last = Some(unit);
            for (pattern, row) in self.patterns.iter().zip(&mut self.rows) {
                let mut diagonal = row[0];
                for (j, wanted) in pattern.iter().enumerate() {
                    let taken_for = diagonal + self.distances.between(*wanted, unit);
                    diagonal = row[j + 1];
                    row[j + 1] = taken_for.min(diagonal + 1.0).min(row[j] + 1.0);
                }
                let score = row[pattern.len()] / pattern.len() as f32;
                if score < self.best.0 {
                    self.best = (score, self.taken);
                }
            }
        } else if self.best.1 + 1 == self.taken {
            // The unit that ended the phrase lasts.
            self.best.1 = self.taken;
        }
        self.found().filter(|end| self.taken - end >= SETTLES)
    }

    /// The end of the phrase, if it was there: for a stream that is over.
    pub fn found(&self) -> Option<usize> {
        (self.best.0 <= self.threshold).then_some(self.best.1)
    }

    /// The best score since the reset.
    pub fn best_score(&self) -> f32 {
        self.best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(table: Option<Vec<u8>>) -> Matcher {
        let pattern: Vec<u32> = (10..22).collect();
        Matcher::new(vec![pattern], Distances { k: 40, table }, 0.3)
    }

    fn run(matcher: &mut Matcher, units: &[u32]) -> Option<usize> {
        matcher.reset();
        units.iter().find_map(|unit| matcher.step(*unit)).or_else(|| matcher.found())
    }

    #[test]
    fn the_phrase_is_found_where_it_is() {
        let mut m = matcher(None);
        let said: Vec<u32> = (10..22).flat_map(|unit| [unit; 3]).collect();
        let stream = [vec![1, 2, 2, 3], said.clone(), vec![4; 2], (5..15).collect()].concat();
        assert_eq!(run(&mut m, &stream), Some(4 + 36));
        assert!(m.best_score() < 1e-6);
        // At the very end of the stream, with a slip of the tongue, and one unit left out.
        let slip: Vec<u32> = said.iter().filter(|unit| **unit != 13).map(|unit| if *unit == 17 { 30 } else { *unit }).collect();
        assert_eq!(run(&mut m, &slip), Some(slip.len()));
        assert!((m.best_score() - 2.0 / 12.0).abs() < 1e-6);
        assert_eq!(run(&mut m, &(0..40).rev().collect::<Vec<u32>>()), None);
        assert_eq!(run(&mut m, &[]), None);
    }

    #[test]
    fn near_units_cost_less() {
        let table = (0..40u32).flat_map(|a| (0..40u32).map(move |b| if a.abs_diff(b) <= 1 { 51 } else { 255 })).collect();
        let said: Vec<u32> = (11..23).collect();
        // The pattern is there one unit off: 11 of 12 are found, or all of them by their neighbours.
        let other: Vec<u32> = (10..22).map(|unit| if unit % 2 == 0 { unit + 1 } else { unit - 1 }).collect();
        assert_eq!(run(&mut matcher(None), &other), None);
        let mut near = matcher(Some(table));
        assert_eq!(run(&mut near, &other), Some(12));
        assert!(near.best_score() <= 0.2 + 1e-6 && run(&mut near, &said).is_some());
    }

    #[test]
    fn silence_around_a_recording_is_left_out() {
        let mut samples = vec![1e-4; 16_000];
        samples.extend((0..8000).map(|i| 0.3 * (i as f32 * 0.3).sin()));
        samples.extend(vec![1e-4; 16_000]);
        assert_eq!(trimmed(&samples).len(), 8000);
        assert_eq!(trimmed(&[0.0; 640]).len(), 0);
    }
}
