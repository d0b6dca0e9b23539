//! Audio that graphs are compared on: WAV files of a folder, test questions of a corpus, or seeded sounds where there
//! is neither.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sa_models::corpus::{Corpus, Split, wave};
use sa_models::folder::files;

/// Most seconds of one file, and of all of them: enough for figures, quick enough for every export.
const FILE_SECONDS: usize = 20;
const TOTAL_SECONDS: usize = 240;
const RATE: usize = 16_000;
/// Questions taken from a corpus.
const CORPUS_QUESTIONS: usize = 100;

/// Audio for the comparisons.
pub struct Samples {
    /// Where it comes from, for the report.
    pub source: String,
    /// Mono at 16 kHz.
    pub recordings: Vec<Vec<f32>>,
}

impl Samples {
    /// The WAV files of a folder in order of their names, or test questions of a corpus from all over it: up to four
    /// minutes.
    pub fn read(dir: &Path) -> Result<Self> {
        match dir.join("manifest.json").is_file() {
            true => Self::of_corpus(dir),
            false => Self::of_folder(dir),
        }
    }

    fn of_corpus(dir: &Path) -> Result<Self> {
        let corpus = Corpus::open(dir).with_context(|| format!("opening the corpus {}", dir.display()))?;
        let questions = corpus.questions(Split::Test);
        ensure!(!questions.is_empty(), "the corpus {} has no test questions", dir.display());
        let mut recordings = Vec::new();
        let mut left = TOTAL_SECONDS * RATE;
        for question in questions.iter().step_by(questions.len().div_ceil(CORPUS_QUESTIONS)) {
            let mut audio = corpus.audio(question).with_context(|| format!("reading question {}", question.id))?;
            audio.truncate(left.min(FILE_SECONDS * RATE));
            left -= audio.len();
            recordings.push(audio);
            if left == 0 {
                break;
            }
        }
        Ok(Self { source: format!("{} test questions of {}", recordings.len(), dir.display()), recordings })
    }

    fn of_folder(dir: &Path) -> Result<Self> {
        let paths = files(dir, "wav")?;
        ensure!(!paths.is_empty(), "{} holds no WAV files", dir.display());
        let mut recordings = Vec::new();
        let mut left = TOTAL_SECONDS * RATE;
        for path in paths {
            let mut audio = wave::read(&path, 1.0).with_context(|| format!("reading the sample {}", path.display()))?;
            audio.truncate(left.min(FILE_SECONDS * RATE));
            left -= audio.len();
            recordings.push(audio);
            if left == 0 {
                break;
            }
        }
        Ok(Self { source: format!("{} files of {}", recordings.len(), dir.display()), recordings })
    }

    /// Seeded sounds: harmonics that glide and pulse, with noise. They prove that graphs compute the same; agreement
    /// on them says little about agreement on speech.
    pub fn synthetic() -> Self {
        let mut state = 1u32;
        let mut uniform = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let recordings = (0..4)
            .map(|_| {
                let (base, glide, pulse) = (80.0 + 160.0 * uniform(), uniform() - 0.5, 2.0 + 4.0 * uniform());
                (0..5 * RATE)
                    .map(|n| {
                        let t = n as f32 / RATE as f32;
                        let phase = std::f32::consts::TAU * base * t * (1.0 + 0.1 * glide * t);
                        let voice: f32 = (1..12).map(|h| (h as f32 * phase).sin() / h as f32).sum();
                        let envelope = (std::f32::consts::PI * pulse * t).sin().max(0.0);
                        0.15 * envelope * voice + 0.02 * (uniform() - 0.5)
                    })
                    .collect()
            })
            .collect();
        Self { source: "built-in synthetic sounds".into(), recordings }
    }

    /// Seconds in all.
    pub fn seconds(&self) -> f64 {
        self.recordings.iter().map(Vec::len).sum::<usize>() as f64 / RATE as f64
    }
}

/// Seeded numbers in -0.5..0.5.
#[cfg(test)]
pub(crate) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}
