//! The group language model: text tokens and unit groups in, text logits and unit groups out.

use super::{Stage, StageError, argmax};
use crate::bundle::{Bundle, StageName};
use crate::engine::Engine;

/// What one position of the sequence holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LmInput<'a> {
    /// A text token.
    Token(u32),
    /// G units.
    Group(&'a [u32]),
}

/// The language model with its cache, and the head that predicts groups.
pub struct Lm {
    lm: Stage,
    head: Stage,
    group: usize,
    k: usize,
    tokens: usize,
    no_units: Vec<i64>,
}

impl Lm {
    /// Loads the `lm` and `head` graphs of a bundle.
    pub fn open(engine: &dyn Engine, bundle: &Bundle) -> Result<Self, StageError> {
        let manifest = bundle.manifest();
        Ok(Self {
            lm: Stage::open(engine, bundle, StageName::Lm)?,
            head: Stage::open(engine, bundle, StageName::Head)?,
            group: manifest.group,
            k: manifest.k,
            tokens: manifest.text_logits(),
            no_units: vec![manifest.k as i64; manifest.group],
        })
    }

    /// Units in a group.
    pub fn group(&self) -> usize {
        self.group
    }

    /// The unit that ends a word.
    pub fn end_unit(&self) -> u32 {
        self.k as u32
    }

    /// Positions read so far.
    pub fn position(&self) -> usize {
        self.lm.rows()
    }

    /// Positions that the cache can hold.
    pub fn context(&self) -> usize {
        self.lm.capacity()
    }

    /// Reads one position.
    ///
    /// # Errors
    /// [`StageError::ContextFull`] when the cache is full, [`StageError::Range`] for an id the bundle does not have.
    pub fn step(&mut self, input: LmInput<'_>) -> Result<(), StageError> {
        let position = self.lm.rows() as i64;
        match input {
            LmInput::Token(token) => {
                check("token", token as usize, self.tokens)?;
                self.lm.write_i64("token", &[i64::from(token)])?;
                self.lm.write_i64("units", &self.no_units)?;
                self.lm.write_f32("is_group", &[0.0])?;
            }
            LmInput::Group(units) => {
                check("number of units in a group", units.len(), self.group + 1)?;
                let mut ids = self.no_units.clone();
                for (slot, unit) in ids.iter_mut().zip(units) {
                    check("unit", *unit as usize, self.k + 1)?;
                    *slot = i64::from(*unit);
                }
                self.lm.write_i64("token", &[0])?;
                self.lm.write_i64("units", &ids)?;
                self.lm.write_f32("is_group", &[1.0])?;
            }
        }
        self.lm.write_i64("position", &[position])?;
        self.lm.step()
    }

    /// Logits of the next text token, `[V]`.
    pub fn logits(&self) -> Result<&[f32], StageError> {
        self.lm.read_f32("logits")
    }

    /// The most likely next token among those that `allowed` lets through; the first token if none is.
    pub fn next_token(&self, mut allowed: impl FnMut(u32) -> bool) -> Result<u32, StageError> {
        let logits = self.logits()?;
        let mut best = None;
        for (id, value) in logits.iter().enumerate() {
            if best.is_none_or(|(_, max)| *value > max) && allowed(id as u32) {
                best = Some((id as u32, *value));
            }
        }
        Ok(best.map_or(0, |(id, _)| id))
    }

    /// The probability of the most likely next token.
    pub fn certainty(&self) -> Result<f32, StageError> {
        let logits = self.logits()?;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Ok(1.0 / logits.iter().map(|logit| (logit - most).exp()).sum::<f32>())
    }

    /// The most likely group after the last position: G units, END included.
    pub fn next_group(&mut self, group: &mut Vec<u32>) -> Result<(), StageError> {
        let hidden = self.lm.read_f32("hidden")?;
        self.head.write_f32("hidden", hidden)?;
        self.head.step()?;
        let logits = self.head.read_f32("unit_logits")?;
        group.clear();
        group.extend(logits.chunks_exact(self.k + 1).map(|row| argmax(row) as u32));
        Ok(())
    }

    /// Forgets everything from `position` on.
    pub fn truncate(&mut self, position: usize) {
        self.lm.truncate(position);
    }

    /// Forgets everything.
    pub fn reset(&mut self) -> Result<(), StageError> {
        self.lm.reset()?;
        self.head.reset()
    }

    /// Time and runs of the trunk since the last call.
    pub fn take_busy(&mut self) -> (std::time::Duration, u64) {
        self.lm.take_busy()
    }

    /// Time and runs of the head since the last call.
    pub fn take_head_busy(&mut self) -> (std::time::Duration, u64) {
        self.head.take_busy()
    }
}

fn check(what: &'static str, id: usize, count: usize) -> Result<(), StageError> {
    if id < count { Ok(()) } else { Err(StageError::Range { what, id, count }) }
}
