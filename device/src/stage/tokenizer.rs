//! Audio → units, in chunks of any length.

use super::{Stage, StageError};
use crate::bundle::{Bundle, StageName};
use crate::engine::Engine;

/// The streaming tokenizer. The units do not depend on how the audio is cut into pushes.
pub struct Tokenizer {
    stage: Stage,
    /// Samples that wait for a whole chunk.
    waiting: Vec<f32>,
    chunk: usize,
    samples_per_unit: usize,
    /// Units by which the graph's units are late: what it looks ahead, or how long it takes to decide.
    delay: usize,
    /// Samples taken in since the reset.
    taken: usize,
    /// Units that came out since the reset, the `delay` before the audio included.
    given: usize,
}

impl Tokenizer {
    /// Loads the tokenizer of a bundle.
    pub fn open(engine: &dyn Engine, bundle: &Bundle) -> Result<Self, StageError> {
        let manifest = bundle.manifest();
        let chunk = manifest.stage.require(StageName::Tokenizer)?.chunk;
        Ok(Self {
            stage: Stage::open(engine, bundle, StageName::Tokenizer)?,
            waiting: Vec::with_capacity(chunk),
            chunk,
            samples_per_unit: manifest.samples_per_unit(),
            delay: manifest.tokenizer_delay(),
            taken: 0,
            given: 0,
        })
    }

    /// Takes in 16 kHz samples and appends the units of all chunks that are now whole. They come `delay` units late: the first of a
    /// stretch belong to the silence before it, as in the training of the language model that reads them.
    pub fn step(&mut self, mut samples: &[f32], units: &mut Vec<u32>) -> Result<(), StageError> {
        self.taken += samples.len();
        while !samples.is_empty() {
            let room = self.chunk - self.waiting.len();
            let (now, later) = samples.split_at(room.min(samples.len()));
            self.waiting.extend_from_slice(now);
            samples = later;
            if self.waiting.len() == self.chunk {
                self.run(units)?;
            }
        }
        Ok(())
    }

    /// Ends the audio: silence follows until the units of all samples are out (the last, incomplete one counts). The next
    /// [`Tokenizer::step`] begins a new stretch of audio.
    pub fn flush(&mut self, units: &mut Vec<u32>) -> Result<(), StageError> {
        while self.given < self.delay + self.taken.div_ceil(self.samples_per_unit) && self.taken > 0 {
            self.waiting.resize(self.chunk, 0.0);
            self.run(units)?;
        }
        self.reset()
    }

    /// Forgets everything that was heard.
    pub fn reset(&mut self) -> Result<(), StageError> {
        self.waiting.clear();
        (self.taken, self.given) = (0, 0);
        self.stage.reset()
    }

    /// The units of whole audio, from a fresh state, each where its sound is: the late ones are moved back.
    pub fn forward(&mut self, samples: &[f32]) -> Result<Vec<u32>, StageError> {
        self.reset()?;
        let mut units = Vec::with_capacity(samples.len() / self.samples_per_unit + 1);
        self.step(samples, &mut units)?;
        self.flush(&mut units)?;
        units.drain(..self.delay.min(units.len()));
        Ok(units)
    }

    /// Time and runs since the last call.
    pub fn take_busy(&mut self) -> (std::time::Duration, u64) {
        self.stage.take_busy()
    }

    fn run(&mut self, units: &mut Vec<u32>) -> Result<(), StageError> {
        self.stage.write_f32("audio", &self.waiting)?;
        self.waiting.clear();
        self.stage.step()?;
        // Units of silence behind the end are left out; before the end there are none.
        let count = (self.delay + self.taken.div_ceil(self.samples_per_unit)).saturating_sub(self.given);
        let made = self.stage.read_i64("units")?;
        self.given += made.len();
        units.extend(made.iter().take(count).map(|unit| *unit as u32));
        Ok(())
    }
}
