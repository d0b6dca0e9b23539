//! The question: audio → units → groups → the model's cache, as it comes.

use std::time::Instant;

use super::gate::Gate;
use super::{Agent, AgentError};
use crate::audio::{AudioError, Capture, Captured};
use crate::stage::LmInput;
use crate::vocabulary::special;

/// What was heard. The groups are in the cache already.
pub(super) struct Heard {
    pub samples: usize,
    pub units: Vec<u32>,
    pub loud: bool,
    pub last_sample: Instant,
}

impl Agent {
    /// Takes in a question until the device says that it is over, then flushes the tokenizer. After a question with
    /// sound the model has read `<user> g g g … <transcribe>` or, without a transcript, `<user> g g g …`.
    pub(super) fn hear(&mut self, capture: &Capture) -> Result<Heard, AgentError> {
        let mut gate = Gate::new(self.settings.silence_dbfs);
        let mut heard = Heard { samples: 0, units: Vec::new(), loud: false, last_sample: Instant::now() };
        let mut read = 0;
        // Groups beyond this are not read: the answer needs room too.
        let limit = self.lm.position() + self.lm.context() * 3 / 8;
        loop {
            match capture.pieces.recv() {
                Ok(Captured::Samples(samples, at)) => {
                    heard.last_sample = at.unwrap_or_else(Instant::now);
                    heard.samples += samples.len();
                    heard.loud = gate.step(&samples);
                    self.tokenizer.step(&samples, &mut heard.units)?;
                    if heard.loud {
                        self.read_groups(&heard.units, &mut read, limit, false)?;
                    }
                }
                Ok(Captured::End) => break,
                Ok(Captured::Failed(error)) => return Err(error.into()),
                Err(_) => return Err(AudioError::Stopped.into()),
            }
        }
        self.tokenizer.flush(&mut heard.units)?;
        if heard.loud {
            self.read_groups(&heard.units, &mut read, limit, true)?;
            if self.bundle.manifest().transcript {
                self.lm.step(LmInput::Token(special::TRANSCRIBE))?;
            }
        }
        Ok(heard)
    }

    /// The same of a question whose units are known.
    pub(super) fn hear_units(&mut self, units: &[u32]) -> Result<Heard, AgentError> {
        let samples = units.len() * self.bundle.manifest().samples_per_unit();
        let heard = Heard { samples, units: units.to_vec(), loud: !units.is_empty(), last_sample: Instant::now() };
        let limit = self.lm.position() + self.lm.context() * 3 / 8;
        if heard.loud {
            self.read_groups(units, &mut 0, limit, true)?;
            if self.bundle.manifest().transcript {
                self.lm.step(LmInput::Token(special::TRANSCRIBE))?;
            }
        }
        Ok(heard)
    }

    /// Reads the groups of `units` from `read` on that are complete; the last one is filled with END units.
    fn read_groups(&mut self, units: &[u32], read: &mut usize, limit: usize, last: bool) -> Result<(), AgentError> {
        let size = self.lm.group();
        while *read + size <= units.len() || (last && *read < units.len()) {
            if *read == 0 {
                self.lm.step(LmInput::Token(special::USER))?;
            }
            let group = &units[*read..units.len().min(*read + size)];
            // `Lm::step` fills a short group with END units.
            if self.lm.position() < limit {
                self.lm.step(LmInput::Group(group))?;
            }
            *read += group.len();
        }
        Ok(())
    }
}
