//! The stages of the pipeline, each over one graph of the bundle that advances one chunk a run.
//!
//! [`Stage`] is what they share: it knows which inputs are states and which are caches, hands states over from
//! one run to the next, and appends the new rows of the caches. [`Tokenizer`], [`Lm`] and [`Decoder`] give each
//! graph its meaning. All have `reset`; the two that buffer have `flush`.

mod decoder;
mod lm;
mod spectrum;
mod tokenizer;

use std::time::{Duration, Instant};

pub use decoder::Decoder;
pub use lm::{Lm, LmInput};
pub use spectrum::InverseStft;
pub use tokenizer::Tokenizer;

use crate::bundle::{Bundle, BundleError, StageName};
use crate::engine::{Engine, EngineError, Session};

/// Why a stage does not open or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// See [`BundleError`].
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// See [`EngineError`].
    #[error("stage {stage}: {source}")]
    Engine { stage: StageName, source: EngineError },
    /// The language model's cache is full: the caller must forget something first ([`Lm::truncate`]).
    #[error("the language model's context of {context} positions is full")]
    ContextFull { context: usize },
    /// A token or unit that the bundle does not have.
    #[error("{what} {id} is out of range, the bundle has {count}")]
    Range { what: &'static str, id: usize, count: usize },
}

/// An input that comes back as an output.
#[derive(Debug)]
struct State {
    input: usize,
    output: usize,
    initial: Vec<f32>,
}

/// An input that grows by an output.
#[derive(Debug, Clone, Copy)]
struct Cache {
    input: usize,
    output: usize,
}

/// A graph with its states and caches.
pub struct Stage {
    name: StageName,
    session: Box<dyn Session>,
    states: Vec<State>,
    caches: Vec<Cache>,
    /// Rows of the caches that are in use.
    rows: usize,
    /// Rows that the caches hold.
    capacity: usize,
    busy: Duration,
    runs: u64,
}

impl Stage {
    /// Loads a stage of a bundle and resets it.
    pub fn open(engine: &dyn Engine, bundle: &Bundle, name: StageName) -> Result<Self, StageError> {
        let declared = bundle.manifest().stage.require(name)?;
        let session = engine.load(&bundle.graph_path(name)?, declared).map_err(|source| StageError::Engine { stage: name, source })?;
        let missing = |what, name_: &str| BundleError::MissingTensor { stage: name.to_string(), what, name: name_.to_owned() };
        let find = |tensor: &str, suffix: &str| {
            let next = format!("{tensor}{suffix}");
            let input = session.input(tensor).ok_or_else(|| missing("input", tensor))?;
            let output = session.output(&next).ok_or_else(|| missing("output", &next))?;
            Ok::<_, BundleError>((input, output))
        };
        let mut states = Vec::new();
        for (tensor, initial) in bundle.initial_states(name)? {
            let (input, output) = find(&tensor, ".next")?;
            states.push(State { input, output, initial });
        }
        let mut caches = Vec::new();
        let mut capacity = 0;
        for tensor in declared.inputs.iter().filter(|t| t.name.starts_with("cache.")) {
            let (input, output) = find(&tensor.name, ".new")?;
            capacity = tensor.shape.get(1).copied().unwrap_or(0);
            caches.push(Cache { input, output });
        }
        let mut stage = Self { name, session, states, caches, rows: 0, capacity, busy: Duration::ZERO, runs: 0 };
        stage.reset()?;
        Ok(stage)
    }

    /// Back to the beginning: initial states, empty caches.
    pub fn reset(&mut self) -> Result<(), StageError> {
        self.rows = 0;
        for state in &self.states {
            let values = self.session.f32_input(state.input).map_err(|source| StageError::Engine { stage: self.name, source })?;
            values.copy_from_slice(&state.initial);
        }
        Ok(())
    }

    /// Runs the graph on the inputs as they were written, then hands over the states and appends to the caches.
    ///
    /// # Errors
    /// [`StageError::ContextFull`] when there is no row left; nothing was run then.
    pub fn step(&mut self) -> Result<(), StageError> {
        if !self.caches.is_empty() && self.rows >= self.capacity {
            return Err(StageError::ContextFull { context: self.capacity });
        }
        let started = Instant::now();
        let done = self.advance();
        self.busy += started.elapsed();
        self.runs += 1;
        done.map_err(|source| StageError::Engine { stage: self.name, source })
    }

    fn advance(&mut self) -> Result<(), EngineError> {
        self.session.run()?;
        for state in &self.states {
            self.session.hand_over(state.output, state.input)?;
        }
        for cache in &self.caches {
            self.session.write_rows(cache.output, cache.input, self.rows)?;
        }
        self.rows += usize::from(!self.caches.is_empty());
        Ok(())
    }

    /// Rows of the caches in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that the caches can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all rows from `rows` on: a change of length, nothing is moved.
    pub fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
    }

    /// Time spent in [`Stage::step`] since the last call, and the number of steps.
    pub fn take_busy(&mut self) -> (Duration, u64) {
        (std::mem::take(&mut self.busy), std::mem::take(&mut self.runs))
    }

    /// Writes an f32 input.
    pub fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<(), StageError> {
        let number = self.input(input)?;
        let slot = self.session.f32_input(number).map_err(|source| StageError::Engine { stage: self.name, source })?;
        if slot.len() != values.len() {
            return Err(StageError::Range { what: "number of values", id: values.len(), count: slot.len() });
        }
        slot.copy_from_slice(values);
        Ok(())
    }

    /// Writes an i64 input.
    pub fn write_i64(&mut self, input: &str, values: &[i64]) -> Result<(), StageError> {
        let number = self.input(input)?;
        let slot = self.session.i64_input(number).map_err(|source| StageError::Engine { stage: self.name, source })?;
        if slot.len() != values.len() {
            return Err(StageError::Range { what: "number of values", id: values.len(), count: slot.len() });
        }
        slot.copy_from_slice(values);
        Ok(())
    }

    /// Reads an f32 output of the last step.
    pub fn read_f32(&self, output: &str) -> Result<&[f32], StageError> {
        let number = self.output(output)?;
        self.session.f32_output(number).map_err(|source| StageError::Engine { stage: self.name, source })
    }

    /// Reads an i64 output of the last step.
    pub fn read_i64(&self, output: &str) -> Result<&[i64], StageError> {
        let number = self.output(output)?;
        self.session.i64_output(number).map_err(|source| StageError::Engine { stage: self.name, source })
    }

    fn input(&self, name: &str) -> Result<usize, StageError> {
        self.session.input(name).ok_or_else(|| self.missing("input", name))
    }

    fn output(&self, name: &str) -> Result<usize, StageError> {
        self.session.output(name).ok_or_else(|| self.missing("output", name))
    }

    fn missing(&self, what: &'static str, name: &str) -> StageError {
        StageError::Bundle(BundleError::MissingTensor { stage: self.name.to_string(), what, name: name.to_owned() })
    }
}

/// The place of the largest value; the first of equals. NaN never wins.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] || values[best].is_nan() {
            best = i;
        }
    }
    best
}
