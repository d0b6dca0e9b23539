//! Public checkpoints: the files they come in, and what they mean.
//!
//! - [`pickle`]: the data in a pickle; nothing of it is run. [`torch`]: tensors in PyTorch's files. [`arrays`]: NumPy's, and k-means.
//! - [`qwen`]: Qwen2 as a trunk. [`speech`]: what makes it speak.
//! - [`hubert`]: HuBERT of Hugging Face and of fairseq. [`hifigan`]: unit HiFi-GANs of speech-resynthesis and textlesslib.

pub mod arrays;
mod fairseq;
pub mod hifigan;
pub mod hubert;
pub mod pickle;
pub mod qwen;
pub mod speech;
pub mod torch;

use std::path::{Path, PathBuf};

use crate::weights::{Weights, WeightsError};

/// Why a public checkpoint was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// `config.json` (or what stands in its place) asks for something that this program does not have.
    #[error("{path}: {message}")]
    Config { path: PathBuf, message: String },
}

/// No network is wider, and the products of a few such sizes are numbers still.
const LARGEST_SIZE: usize = 1 << 24;
/// No head is wider.
const LARGEST_HEAD: usize = 1024;
/// No network has more convolutions after one another, or more of them side by side.
const MOST_CONVOLUTIONS: usize = 64;

/// Refuses sizes that no network has: what is computed with them would overflow.
fn check_sizes(sizes: impl IntoIterator<Item = usize>) -> Result<(), String> {
    match sizes.into_iter().find(|size| !(1..=LARGEST_SIZE).contains(size)) {
        Some(0) => Err("a size is zero".into()),
        Some(size) => Err(format!("a size of {size} is beyond {LARGEST_SIZE}")),
        None => Ok(()),
    }
}

/// Samples from one step of a network to the next, if they are a whole number of steps a second at 16 kHz.
fn hop_of(strides: impl IntoIterator<Item = usize>) -> Result<usize, String> {
    let hop = strides.into_iter().try_fold(1usize, usize::checked_mul).filter(|hop| (1..=16_000).contains(hop));
    let hop = hop.ok_or("a step is longer than a second at 16 kHz")?;
    if !16_000usize.is_multiple_of(hop) {
        return Err(format!("{hop} samples a unit are no whole number of units a second at 16 kHz"));
    }
    Ok(hop)
}

/// The bytes of a file.
fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    std::fs::read(path).map_err(|source| ImportError::Read { path: path.into(), source })
}

/// The kernel `name` under weight norm (Salimans & Kingma 2016), folded: `g · v / ‖v‖`, one gain for each place of `axis` (`dim` of
/// PyTorch's `weight_norm`).
fn folded(weights: &Weights, name: &str, shape: [usize; 3], axis: usize) -> Result<Vec<f32>, WeightsError> {
    // PyTorch 2 renamed the parts.
    let parametrised = weights.shape(&format!("{name}.parametrizations.weight.original1")).is_some();
    let [gain, direction] = match parametrised {
        true => ["parametrizations.weight.original0", "parametrizations.weight.original1"],
        false => ["weight_g", "weight_v"],
    };
    let mut gains = [1; 3];
    gains[axis] = shape[axis];
    let gain = weights.tensor(&format!("{name}.{gain}"), &gains)?;
    let mut weight = weights.tensor(&format!("{name}.{direction}"), &shape)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let place = |i: usize| i / inner % shape[axis];
    let mut squares = vec![0.0f64; shape[axis]];
    for (i, w) in weight.iter().enumerate() {
        squares[place(i)] += f64::from(*w).powi(2);
    }
    for (i, w) in weight.iter_mut().enumerate() {
        *w = (f64::from(*w) * f64::from(gain[place(i)]) / squares[place(i)].sqrt()) as f32;
    }
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_steps_have_bounds() {
        assert_eq!(check_sizes([1, LARGEST_SIZE]), Ok(()));
        assert!(check_sizes([1, 0]).expect_err("none").contains("zero"));
        assert!(check_sizes([1, LARGEST_SIZE + 1]).expect_err("too large").contains("beyond"));
        assert_eq!(hop_of([5, 4, 4, 2, 2]), Ok(320));
        for strides in [vec![3], vec![0, 5], vec![1 << 32, 1 << 32], vec![16_001]] {
            hop_of(strides).expect_err("no whole number of steps");
        }
    }
}
