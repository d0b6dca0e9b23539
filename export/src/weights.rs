//! Reading a checkpoint's tensors: `model.safetensors` in f32 or f16, shapes checked, errors that name what is near.

use std::path::{Path, PathBuf};

use half::f16;
use safetensors::{Dtype, SafeTensors};

/// Why a tensor or a file of tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Copy or download the file again.
    #[error("{path} is not a whole safetensors file ({bytes} bytes): {reason}; it may be truncated")]
    Damaged { path: PathBuf, bytes: usize, reason: String },
    /// The checkpoint is of another architecture or configuration.
    #[error("{path} has no tensor `{name}`; nearest: {nearest}")]
    Missing { path: PathBuf, name: String, nearest: String },
    /// `config.json` and `model.safetensors` do not belong together.
    #[error("{path}: tensor `{name}` has shape {actual:?}, the configuration asks for {expected:?}")]
    Shape { path: PathBuf, name: String, expected: Vec<usize>, actual: Vec<usize> },
    #[error("{path}: tensor `{name}` is of type {actual:?}; f32 and f16 can be read")]
    Type { path: PathBuf, name: String, actual: Dtype },
    /// Training diverged, or the file is damaged.
    #[error("{path}: tensor `{name}` holds a value that is not finite")]
    NotFinite { path: PathBuf, name: String },
}

/// The tensors of one network.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Weights {
    /// Reads and checks `model.safetensors`; no tensor is converted yet.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let bytes = std::fs::read(path).map_err(|source| WeightsError::Read { path: path.into(), source })?;
        let weights = Self { path: path.into(), bytes };
        weights.parsed()?;
        Ok(weights)
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, WeightsError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| WeightsError::Damaged {
            path: self.path.clone(),
            bytes: self.bytes.len(),
            reason: error.to_string(),
        })
    }

    /// The tensor `name`, which must have exactly this shape, as f32 in row-major order.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let tensors = self.parsed()?;
        let path = || self.path.clone();
        let Ok(view) = tensors.tensor(name) else {
            return Err(WeightsError::Missing { path: path(), name: name.into(), nearest: nearest(name, &tensors.names()) });
        };
        if view.shape() != shape {
            let (expected, actual) = (shape.into(), view.shape().into());
            return Err(WeightsError::Shape { path: path(), name: name.into(), expected, actual });
        }
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            actual => return Err(WeightsError::Type { path: path(), name: name.into(), actual }),
        };
        if data.iter().any(|x| !x.is_finite()) {
            return Err(WeightsError::NotFinite { path: path(), name: name.into() });
        }
        Ok(data)
    }
}

/// The three names most like `name`, for an error message.
fn nearest(name: &str, names: &[&str]) -> String {
    let mut ranked: Vec<_> = names.iter().map(|other| (edit_distance(name, other), *other)).collect();
    ranked.sort();
    match ranked.as_slice() {
        [] => "the file holds no tensors".into(),
        some => some.iter().take(3).map(|(_, n)| format!("`{n}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn write(dir: &Path) -> PathBuf {
        let path = dir.join("model.safetensors");
        let f32s: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let nans: Vec<u8> = f32::NAN.to_le_bytes().into();
        let tensors = [
            ("blocks.0.up.weight", TensorView::new(Dtype::F32, vec![2, 3], &f32s)),
            ("blocks.0.up.bias", TensorView::new(Dtype::F16, vec![2], &f16s)),
            ("norm.weight", TensorView::new(Dtype::F32, vec![1], &nans)),
            ("steps", TensorView::new(Dtype::I32, vec![1], &nans)),
        ]
        .map(|(name, view)| (name, view.expect("shape and data fit")));
        safetensors::serialize_to_file(tensors, None, &path).expect("written");
        path
    }

    #[test]
    fn both_float_types_are_read() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let weights = Weights::open(&write(dir.path())).expect("opens");
        assert_eq!(weights.tensor("blocks.0.up.weight", &[2, 3]).expect("read"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(weights.tensor("blocks.0.up.bias", &[2]).expect("read"), [0.5, -2.0]);
    }

    #[test]
    fn errors_name_the_tensor_and_what_is_near() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let weights = Weights::open(&write(dir.path())).expect("opens");
        let message = |name: &str, shape: &[usize]| weights.tensor(name, shape).expect_err("fails").to_string();
        let missing = message("blocks.0.up.weights", &[2, 3]);
        assert!(missing.contains("no tensor `blocks.0.up.weights`; nearest: `blocks.0.up.weight`"), "{missing}");
        let shape = message("blocks.0.up.weight", &[3, 2]);
        assert!(shape.contains("[2, 3]") && shape.contains("[3, 2]"), "{shape}");
        assert!(message("norm.weight", &[1]).contains("not finite"));
        assert!(message("steps", &[1]).contains("I32"));
    }

    #[test]
    fn a_truncated_file_is_refused_at_every_length() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let whole = std::fs::read(write(dir.path())).expect("read");
        let path = dir.path().join("cut.safetensors");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let error = Weights::open(&path).expect_err("a truncated file opens");
            assert!(matches!(error, WeightsError::Damaged { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
