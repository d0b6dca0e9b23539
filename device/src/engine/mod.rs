//! What runs a graph. The stages know this interface only; behind it are two engines: tract, in every program, and
//! ONNX Runtime, in programs that are built with the feature `ort`. A [`Wish`] says which, and on what device.
//!
//! A [`Session`] owns the buffers of its inputs and outputs. They are written and read in place and kept from run
//! to run, so that a cache is never copied: the caller writes one row, the session passes the whole. Inputs and
//! outputs are counted in the order of the bundle's declaration; [`Session::input`] and [`Session::output`] find
//! them by name.

mod declared;
#[cfg(feature = "ort")]
pub mod ort;
pub mod tract;
mod wish;

use std::path::{Path, PathBuf};

use crate::bundle::{DType, StageEntry, TensorEntry};

#[cfg(feature = "ort")]
pub use ort::Ort;
pub use tract::Tract;
pub use wish::{Device, EngineName, Wish};

/// Loads graphs.
pub trait Engine: Send + Sync {
    /// As in `--engine`.
    fn name(&self) -> &'static str;

    /// Loads a graph and compares its inputs and outputs with their declaration. Takes tens of milliseconds to
    /// seconds; all the work on the weights is done here.
    fn load(&self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded graph with its buffers. All inputs are zeros at first.
pub trait Session: Send {
    /// Inputs in the order of their numbers.
    fn inputs(&self) -> &[TensorEntry];
    /// Outputs in the order of their numbers.
    fn outputs(&self) -> &[TensorEntry];

    /// The number of an input.
    fn input(&self, name: &str) -> Option<usize> {
        self.inputs().iter().position(|t| t.name == name)
    }

    /// The number of an output.
    fn output(&self, name: &str) -> Option<usize> {
        self.outputs().iter().position(|t| t.name == name)
    }

    /// The values of an f32 input, to be written.
    ///
    /// # Errors
    /// [`EngineError::Type`] when the input is of another type.
    fn f32_input(&mut self, input: usize) -> Result<&mut [f32], EngineError>;

    /// The values of an i64 input, to be written.
    ///
    /// # Errors
    /// [`EngineError::Type`] when the input is of another type.
    fn i64_input(&mut self, input: usize) -> Result<&mut [i64], EngineError>;

    /// Runs the graph once.
    fn run(&mut self) -> Result<(), EngineError>;

    /// The values of an f32 output of the last run.
    ///
    /// # Errors
    /// [`EngineError::Type`] when the output is of another type, [`EngineError::NotRun`] before the first run.
    fn f32_output(&self, output: usize) -> Result<&[f32], EngineError>;

    /// The values of an i64 output of the last run; errors as for [`Session::f32_output`].
    fn i64_output(&self, output: usize) -> Result<&[i64], EngineError>;

    /// Makes an output of the last run the input of the next, without a copy where the engine can. The output can still
    /// be read, and stays as it is when the input is written.
    ///
    /// # Errors
    /// [`EngineError::Input`] when type or shape differ, [`EngineError::NotRun`] before the first run.
    fn hand_over(&mut self, output: usize, input: usize) -> Result<(), EngineError>;

    /// Copies rows of an output into rows of an input: `count` rows of `row` values, both tensors seen as
    /// `[heads, rows, row]`; the input's rows are written from `at` on.
    ///
    /// This is how a cache grows: in place, one row a step.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the rows do not fit, [`EngineError::Type`] unless both are f32,
    /// [`EngineError::NotRun`] before the first run.
    fn write_rows(&mut self, output: usize, input: usize, at: usize) -> Result<(), EngineError>;
}

/// Why a graph does not load or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine cannot read or optimise the graph: the bundle was made for another engine or version.
    #[error("{engine} cannot load {}: {message}", path.display())]
    Load { engine: &'static str, path: PathBuf, message: String },
    /// The graph is not what `bundle.toml` says: export the bundle again.
    #[error("{}: {what} `{name}` is {found}, bundle.toml says {expected}", path.display())]
    Declared { path: PathBuf, what: &'static str, name: String, expected: String, found: String },
    /// A run failed: a defect of the graph or the engine; report it.
    #[error("{engine} failed while running: {message}")]
    Run { engine: &'static str, message: String },
    /// A tensor was asked for as another type.
    #[error("`{name}` holds {found}, not {expected}")]
    Type { name: String, expected: DType, found: DType },
    /// An output was read before the first run.
    #[error("`{name}` was read before the first run")]
    NotRun { name: String },
    /// A named input does not exist or has another size: see the graph's declaration.
    #[error("input `{name}`: {message}")]
    Input { name: String, message: String },
    /// Nothing has this name: the message lists what there is.
    #[error("no {what} `{name}`; there are: {known}")]
    Unknown { what: &'static str, name: String, known: &'static str },
    /// The wish needs an engine that this program was built without.
    #[error(
        "{wish} needs ONNX Runtime, and this program was built without it: build it with `cargo build --release -p sa-device \
         --features ort`, or use --engine tract --device cpu"
    )]
    NotBuilt { wish: String },
    /// ONNX Runtime is not there or cannot be used: the message says what was looked at, and what to do.
    #[error("no ONNX Runtime: {message}")]
    Library { message: String },
    /// The engine cannot run on this device; the message says what to use instead.
    #[error("{engine} cannot run on {device}: {message}")]
    Device { engine: &'static str, device: String, message: String },
}

/// Values that go into or come out of a graph.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Of an f32 tensor.
    F32(Vec<f32>),
    /// Of an i64 tensor.
    I64(Vec<i64>),
}

/// Runs a session once on inputs given by name (those not given keep their last values, zeros at first) and returns all
/// outputs by name. For tests and for the exporter's proofs: it copies everything.
pub fn run_by_name(session: &mut dyn Session, inputs: &[(&str, Values)]) -> Result<Vec<(String, Values)>, EngineError> {
    for (name, values) in inputs {
        let unknown = || EngineError::Input { name: (*name).to_owned(), message: "there is no such input".to_owned() };
        let number = session.input(name).ok_or_else(unknown)?;
        let expected = session.inputs()[number].elements();
        let size = |found: usize| EngineError::Input { name: (*name).to_owned(), message: format!("{found} values for {expected}") };
        match values {
            Values::F32(values) if values.len() == expected => session.f32_input(number)?.copy_from_slice(values),
            Values::I64(values) if values.len() == expected => session.i64_input(number)?.copy_from_slice(values),
            Values::F32(values) => return Err(size(values.len())),
            Values::I64(values) => return Err(size(values.len())),
        }
    }
    session.run()?;
    let read = |(number, entry): (usize, &TensorEntry)| {
        let values = match entry.dtype {
            DType::F32 => Values::F32(session.f32_output(number)?.to_vec()),
            DType::I64 => Values::I64(session.i64_output(number)?.to_vec()),
        };
        Ok((entry.name.clone(), values))
    };
    session.outputs().iter().enumerate().map(read).collect()
}
