//! Units → samples in the agent's voice.

use super::{InverseStft, Stage, StageError};
use crate::bundle::{Bundle, StageName};
use crate::engine::Engine;

/// The streaming decoder: the spectrum graph and the inverse STFT. U units give exactly U × 640 samples.
pub struct Decoder {
    stage: Stage,
    stft: InverseStft,
    /// Units that wait for a whole chunk.
    waiting: Vec<i64>,
    chunk: usize,
    bins: usize,
    frames_per_unit: usize,
    /// Units by which the graph's frames are late: its look-ahead.
    delay: usize,
    /// Units taken in since the reset.
    taken: usize,
    /// Units whose frames came out, those of the padding before the utterance included.
    given: usize,
    k: usize,
}

impl Decoder {
    /// Loads the decoder of a bundle.
    pub fn open(engine: &dyn Engine, bundle: &Bundle) -> Result<Self, StageError> {
        let manifest = bundle.manifest();
        let entry = manifest.stage.require(StageName::Decoder)?;
        let shape = entry.output("log_magnitude").map(|t| t.shape.clone()).unwrap_or_default();
        let (frames, bins) = (shape.get(1).copied().unwrap_or(1), shape.get(2).copied().unwrap_or(2));
        let frames_per_unit = (frames / entry.chunk).max(1);
        Ok(Self {
            stage: Stage::open(engine, bundle, StageName::Decoder)?,
            stft: InverseStft::new(bins, manifest.samples_per_unit() / frames_per_unit),
            waiting: Vec::with_capacity(entry.chunk),
            chunk: entry.chunk,
            bins,
            frames_per_unit,
            delay: manifest.decoder_delay(),
            taken: 0,
            given: 0,
            k: manifest.k,
        })
    }

    /// Takes in units (END units are not speech and are left out by the caller) and appends the samples that are
    /// final: they come `delay` units and 15 ms after their units.
    pub fn step(&mut self, units: &[u32], samples: &mut Vec<f32>) -> Result<(), StageError> {
        for unit in units {
            if *unit as usize > self.k {
                return Err(StageError::Range { what: "unit", id: *unit as usize, count: self.k + 1 });
            }
            self.taken += 1;
            self.push(i64::from(*unit), samples)?;
        }
        Ok(())
    }

    /// Ends the utterance: pad units push the last frames out, the rest of the samples is appended, and the decoder is
    /// ready for the next utterance.
    pub fn flush(&mut self, samples: &mut Vec<f32>) -> Result<(), StageError> {
        if self.taken > 0 {
            while self.given < self.taken + self.delay {
                self.push(self.k as i64, samples)?;
            }
        }
        self.stft.flush(samples);
        self.reset()
    }

    /// Forgets the utterance.
    pub fn reset(&mut self) -> Result<(), StageError> {
        self.waiting.clear();
        self.taken = 0;
        self.given = 0;
        self.stft.reset();
        self.stage.reset()
    }

    /// The samples of a whole utterance.
    pub fn forward(&mut self, units: &[u32]) -> Result<Vec<f32>, StageError> {
        self.reset()?;
        let mut samples = Vec::new();
        self.step(units, &mut samples)?;
        self.flush(&mut samples)?;
        Ok(samples)
    }

    /// Time and runs since the last call.
    pub fn take_busy(&mut self) -> (std::time::Duration, u64) {
        self.stage.take_busy()
    }

    fn push(&mut self, unit: i64, samples: &mut Vec<f32>) -> Result<(), StageError> {
        self.waiting.push(unit);
        if self.waiting.len() < self.chunk {
            return Ok(());
        }
        self.stage.write_i64("units", &self.waiting)?;
        self.waiting.clear();
        self.stage.step()?;
        let magnitude = self.stage.read_f32("log_magnitude")?;
        let phase = self.stage.read_f32("phase")?;
        let size = self.frames_per_unit * self.bins;
        for (magnitude, phase) in magnitude.chunks_exact(size).zip(phase.chunks_exact(size)) {
            self.given += 1;
            // The first units' frames belong to the padding before the utterance, those past the end to the one after.
            if self.given <= self.delay || self.given > self.taken + self.delay {
                continue;
            }
            for (magnitude, phase) in magnitude.chunks_exact(self.bins).zip(phase.chunks_exact(self.bins)) {
                self.stft.step(magnitude, phase, samples);
            }
        }
        Ok(())
    }
}
