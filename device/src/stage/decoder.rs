//! Units → samples in the agent's voice.

use super::{InverseStft, Stage, StageError};
use crate::bundle::{Bundle, StageName};
use crate::engine::Engine;

/// The streaming decoder: the spectrum graph and the inverse STFT, or a graph that makes samples itself. U units give exactly
/// U × 640 samples (at 25 units a second).
pub struct Decoder {
    stage: Stage,
    form: Form,
    samples_per_unit: usize,
    /// Units that wait for a whole chunk.
    waiting: Vec<i64>,
    chunk: usize,
    /// Units by which the graph's frames are late: its look-ahead.
    delay: usize,
    /// Units taken in since the reset.
    taken: usize,
    /// Units whose frames came out, those of the padding before the utterance included.
    given: usize,
    k: usize,
}

/// What the graph gives.
enum Form {
    Spectrum { stft: InverseStft, bins: usize, frames_per_unit: usize },
    Audio,
}

impl Decoder {
    /// Loads the decoder of a bundle.
    pub fn open(engine: &dyn Engine, bundle: &Bundle) -> Result<Self, StageError> {
        let manifest = bundle.manifest();
        let entry = manifest.stage.require(StageName::Decoder)?;
        let form = match entry.output("log_magnitude").map(|t| &t.shape[..]) {
            Some([_, frames, bins]) => {
                let frames_per_unit = (frames / entry.chunk).max(1);
                let stft = InverseStft::new(*bins, manifest.samples_per_unit() / frames_per_unit);
                Form::Spectrum { stft, bins: *bins, frames_per_unit }
            }
            // The check of the bundle has seen to it that one of the two is there.
            _ => Form::Audio,
        };
        Ok(Self {
            stage: Stage::open(engine, bundle, StageName::Decoder)?,
            form,
            samples_per_unit: manifest.samples_per_unit(),
            waiting: Vec::with_capacity(entry.chunk),
            chunk: entry.chunk,
            delay: manifest.decoder_delay(),
            taken: 0,
            given: 0,
            k: manifest.k,
        })
    }

    /// Takes in units (END units are not speech and are left out by the caller) and appends the samples that are
    /// final: they come `delay` units, and 15 ms for the inverse STFT, after their units.
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
        if let Form::Spectrum { stft, .. } = &mut self.form {
            stft.flush(samples);
        }
        self.reset()
    }

    /// Forgets the utterance.
    pub fn reset(&mut self) -> Result<(), StageError> {
        self.waiting.clear();
        self.taken = 0;
        self.given = 0;
        if let Form::Spectrum { stft, .. } = &mut self.form {
            stft.reset();
        }
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
        // The first units' samples belong to the padding before the utterance, those past the end to the one after.
        let given = self.given;
        let spoken = |i: usize| (self.delay..self.taken + self.delay).contains(&(given + i));
        self.given += self.chunk;
        match &mut self.form {
            Form::Audio => {
                let audio = self.stage.read_f32("audio")?;
                let units = audio.chunks_exact(self.samples_per_unit).enumerate().filter(|(i, _)| spoken(*i));
                units.for_each(|(_, unit)| samples.extend_from_slice(unit));
            }
            Form::Spectrum { stft, bins, frames_per_unit } => {
                let magnitude = self.stage.read_f32("log_magnitude")?;
                let phase = self.stage.read_f32("phase")?;
                let size = *frames_per_unit * *bins;
                let units = magnitude.chunks_exact(size).zip(phase.chunks_exact(size)).enumerate().filter(|(i, _)| spoken(*i));
                for (_, (magnitude, phase)) in units {
                    for (magnitude, phase) in magnitude.chunks_exact(*bins).zip(phase.chunks_exact(*bins)) {
                        stft.step(magnitude, phase, samples);
                    }
                }
            }
        }
        Ok(())
    }
}
