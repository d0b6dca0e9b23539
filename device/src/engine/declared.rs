//! What all engines check alike: graphs against their declaration, and tensors against each other.

use std::path::Path;

use super::EngineError;
use crate::bundle::{DType, TensorEntry};

/// The declaration in the order of the graph.
///
/// # Errors
/// [`EngineError::Declared`] when a tensor is in one of the two only.
pub fn order(path: &Path, what: &'static str, declared: &[TensorEntry], graph: &[String]) -> Result<Vec<TensorEntry>, EngineError> {
    let wrong = |name: &str, expected: &str, found: &str| EngineError::Declared {
        path: path.to_owned(),
        what,
        name: name.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    for entry in declared {
        if !graph.contains(&entry.name) {
            return Err(wrong(&entry.name, "that it is there", "missing"));
        }
    }
    let find = |name: &String| declared.iter().find(|t| t.name == *name).cloned();
    graph.iter().map(|name| find(name).ok_or_else(|| wrong(name, "nothing of it", "in the graph"))).collect()
}

/// The error for a tensor whose type or shape in the graph is not as declared.
pub fn mismatch(path: &Path, what: &'static str, declared: &TensorEntry, found: String) -> EngineError {
    let expected = format!("{} {:?}", declared.dtype, declared.shape);
    EngineError::Declared { path: path.to_owned(), what, name: declared.name.clone(), expected, found }
}

/// The error for a tensor that is asked for as another type.
pub fn wrong_type(entry: &TensorEntry, expected: DType) -> EngineError {
    EngineError::Type { name: entry.name.clone(), expected, found: entry.dtype }
}

/// Can this output become that input as it is?
///
/// # Errors
/// [`EngineError::Input`] when type or shape differ.
pub fn same_tensor(output: &TensorEntry, input: &TensorEntry) -> Result<(), EngineError> {
    if (output.dtype, &output.shape) == (input.dtype, &input.shape) {
        return Ok(());
    }
    let message =
        format!("it takes {} {:?}, the output `{}` is {} {:?}", input.dtype, input.shape, output.name, output.dtype, output.shape);
    Err(EngineError::Input { name: input.name.clone(), message })
}

/// The sizes of a growing cache, as [`super::Session::write_rows`] sees it.
pub struct Rows {
    /// Rows that come out of a run.
    pub new: usize,
    /// Rows that the cache holds.
    pub all: usize,
    /// Values of a row.
    pub row: usize,
}

/// The rows of an output `[heads, new, row]` and of an input `[heads, all, row]`, to be written from row `at` on.
///
/// # Errors
/// [`EngineError::Type`] unless both are f32, [`EngineError::Input`] when heads or row differ or the rows do not fit.
pub fn rows(output: &TensorEntry, input: &TensorEntry, at: usize) -> Result<Rows, EngineError> {
    for entry in [output, input] {
        if entry.dtype != DType::F32 {
            return Err(wrong_type(entry, DType::F32));
        }
    }
    let split = |entry: &TensorEntry| match entry.shape[..] {
        [ref heads @ .., rows, row] => (heads.iter().product(), rows, row),
        _ => (1, 1, entry.elements()),
    };
    let ((heads, new, row), (input_heads, all, input_row)): ((usize, usize, usize), (usize, usize, usize)) = (split(output), split(input));
    if (heads, row) != (input_heads, input_row) || at + new > all {
        let message = format!("{:?} of `{}` does not fit into {:?} from row {at} on", output.shape, output.name, input.shape);
        return Err(EngineError::Input { name: input.name.clone(), message });
    }
    Ok(Rows { new, all, row })
}

impl Rows {
    /// Copies the new rows of every head into the cache.
    pub fn copy(&self, from: &[f32], to: &mut [f32], at: usize) {
        let Self { new, all, row } = *self;
        for (from, to) in from.chunks_exact(new * row).zip(to.chunks_exact_mut(all * row)) {
            to[at * row..(at + new) * row].copy_from_slice(from);
        }
    }
}
