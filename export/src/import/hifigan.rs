//! Unit HiFi-GANs in the layout of speech-resynthesis and textlesslib: `config.json` beside a generator's state (`g_00400000`, say).
//!
//! Generator: Kong et al. 2020; over units: Polyak et al. 2021. One speaker, no pitch input. A duration predictor may be in the file
//! and is left out: the units of a stream come with their durations, one unit a frame.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ImportError, MOST_CONVOLUTIONS, check_sizes, folded, hop_of, read};
use crate::weights::{Weights, WeightsError};

/// Most units on either side that a sample can depend on: public generators see about 20.
const MOST_REACH: usize = 100;

/// What `config.json` says; names are those of the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct HifiGanConfig {
    /// "1": two convolutions a step, "2": one.
    #[serde(deserialize_with = "text_or_number")]
    pub resblock: String,
    pub upsample_rates: Vec<usize>,
    pub upsample_kernel_sizes: Vec<usize>,
    pub upsample_initial_channel: usize,
    pub resblock_kernel_sizes: Vec<usize>,
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    pub num_embeddings: usize,
    pub embedding_dim: usize,
    #[serde(default)]
    pub model_in_dim: Option<usize>,
    #[serde(default = "sixteen_thousand")]
    pub sampling_rate: usize,
    #[serde(default)]
    multispkr: serde_json::Value,
    #[serde(default)]
    f0: serde_json::Value,
}

fn sixteen_thousand() -> usize {
    16_000
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    })
}

impl HifiGanConfig {
    /// Samples of one unit.
    pub fn hop(&self) -> usize {
        self.upsample_rates.iter().product()
    }

    /// Channels behind upsampling `i`.
    pub fn channels(&self, i: usize) -> usize {
        self.upsample_initial_channel >> (i + 1)
    }

    /// Units on either side that a sample can depend on.
    pub fn reach(&self) -> usize {
        // conv_pre sees 3 frames; then each stage's widest block, in its own samples; conv_post sees 3 samples.
        let (mut rate, mut units) = (1.0, 3.0);
        let widest = |kernel: usize, dilations: &[usize]| {
            let second = if self.resblock == "1" { 1 } else { 0 };
            dilations.iter().map(|d| (kernel - 1) / 2 * (d + second)).sum::<usize>()
        };
        let block = self.resblock_kernel_sizes.iter().zip(&self.resblock_dilation_sizes).map(|(k, d)| widest(*k, d)).max().unwrap_or(0);
        for (up, kernel) in self.upsample_rates.iter().zip(&self.upsample_kernel_sizes) {
            // A transposed convolution sees kernel / rate inputs.
            units += kernel.div_ceil(*up) as f64 / 2.0 / rate;
            rate *= *up as f64;
            units += block as f64 / rate;
        }
        (units + 3.0 / rate).ceil() as usize
    }

    fn check(&self) -> Result<(), String> {
        let dilations = || self.resblock_dilation_sizes.iter();
        let lists = [self.upsample_rates.len(), self.resblock_kernel_sizes.len()].into_iter().chain(dilations().map(Vec::len));
        if lists.max().is_some_and(|longest| longest > MOST_CONVOLUTIONS) {
            return Err(format!("more than {MOST_CONVOLUTIONS} convolutions after one another"));
        }
        let said = |value: &serde_json::Value| !matches!(value, serde_json::Value::Null | serde_json::Value::Bool(false));
        if said(&self.f0) {
            return Err("it wants the pitch beside the units (`f0`), which no language model here gives".into());
        }
        if said(&self.multispkr) {
            return Err("it wants a speaker beside the units (`multispkr`); only generators of one voice can be read".into());
        }
        if !["1", "2"].contains(&self.resblock.as_str()) {
            return Err(format!("resblock `{}`: 1 and 2 are known", self.resblock));
        }
        if self.sampling_rate != 16_000 {
            return Err(format!("it speaks at {} Hz; 16000 is expected", self.sampling_rate));
        }
        check_sizes([self.upsample_initial_channel, self.num_embeddings, self.embedding_dim])?;
        let kernels = self.upsample_kernel_sizes.iter().chain(&self.resblock_kernel_sizes);
        check_sizes(self.upsample_rates.iter().chain(kernels).chain(dilations().flatten()).copied())?;
        let stages = self.upsample_rates.len();
        if stages == 0
            || stages != self.upsample_kernel_sizes.len()
            || self.upsample_initial_channel.checked_shr(stages as u32).unwrap_or(0) == 0
        {
            return Err("upsample_rates, upsample_kernel_sizes and upsample_initial_channel do not fit together".into());
        }
        let odd = |(rate, kernel): (&usize, &usize)| *rate == 0 || kernel < rate || (kernel - rate) % 2 == 1;
        if self.upsample_rates.iter().zip(&self.upsample_kernel_sizes).any(odd) {
            return Err("an upsampling whose kernel less its rate is no even number".into());
        }
        if self.resblock_kernel_sizes.len() != self.resblock_dilation_sizes.len()
            || self.resblock_kernel_sizes.is_empty()
            || self.resblock_kernel_sizes.iter().any(|kernel| kernel % 2 == 0)
            || dilations().any(Vec::is_empty)
        {
            return Err("resblock_kernel_sizes (odd numbers) and resblock_dilation_sizes do not fit together".into());
        }
        if self.model_in_dim.is_some_and(|inputs| inputs != self.embedding_dim) {
            return Err("model_in_dim is not embedding_dim: something else than units goes in".into());
        }
        hop_of(self.upsample_rates.iter().copied())?;
        if self.reach() > MOST_REACH {
            return Err(format!("a sample depends on {} units on either side: at most {MOST_REACH} are possible", self.reach()));
        }
        Ok(())
    }
}

/// A unit HiFi-GAN.
#[derive(Debug)]
pub struct HifiGan {
    pub config: HifiGanConfig,
    config_path: PathBuf,
    weights: Weights,
}

impl HifiGan {
    /// Opens a folder with `config.json` and one generator, or the generator's file beside its `config.json`.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let (folder, file) = if path.is_dir() {
            (path.to_owned(), generator(path)?)
        } else {
            (path.parent().unwrap_or(Path::new(".")).to_owned(), path.to_owned())
        };
        let config_path = folder.join("config.json");
        let wrong = |message: String| ImportError::Config { path: config_path.clone(), message };
        let config: HifiGanConfig = serde_json::from_slice(&read(&config_path)?).map_err(|error| wrong(error.to_string()))?;
        config.check().map_err(wrong)?;
        Ok(Self { config, weights: Weights::open(&file)?, config_path })
    }

    /// Every file that it is read from.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.config_path.clone()];
        files.extend(self.weights.files());
        files
    }

    /// The units' embeddings `[k, d]`.
    pub fn embeddings(&self) -> Result<Vec<f32>, WeightsError> {
        self.weights.tensor("dict.weight", &[self.config.num_embeddings, self.config.embedding_dim])
    }

    /// A convolution's kernel and bias; its weight norm (one gain for each place of the first axis), if there is one, folded in.
    /// `shape` is `[out, in, K]`, of a transposed convolution `[in, out, K]`.
    pub fn convolution(&self, name: &str, shape: [usize; 3], outputs: usize) -> Result<(Vec<f32>, Vec<f32>), WeightsError> {
        let bias = self.weights.tensor(&format!("{name}.bias"), &[outputs])?;
        if self.weights.shape(&format!("{name}.weight")).is_some() {
            return Ok((self.weights.tensor(&format!("{name}.weight"), &shape)?, bias));
        }
        Ok((folded(&self.weights, name, shape, 0)?, bias))
    }
}

/// The generator in a folder: the newest of `g_…` (their names are the step), or the one file of weights.
fn generator(dir: &Path) -> Result<PathBuf, ImportError> {
    let entries = std::fs::read_dir(dir).map_err(|source| ImportError::Read { path: dir.into(), source })?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let newest = files.iter().rev().find(|path| name(path).starts_with("g_"));
    let known = |path: &&PathBuf| ["safetensors", "pt", "pth", "bin"].iter().any(|end| path.extension().is_some_and(|e| e == *end));
    let found: Vec<&PathBuf> = newest.map_or_else(|| files.iter().filter(known).collect(), |path| vec![path]);
    match found.as_slice() {
        [file] => Ok((*file).clone()),
        others => {
            let message =
                format!("one generator (g_…, .pt, .pth, .bin or .safetensors) is expected, there are {}: name the file", others.len());
            Err(ImportError::Config { path: dir.into(), message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: serde_json::Value) -> Result<HifiGanConfig, String> {
        let mut config = serde_json::json!({
            "resblock": "1", "upsample_rates": [5, 4, 4, 2, 2], "upsample_kernel_sizes": [11, 8, 8, 4, 4], "upsample_initial_channel": 512,
            "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "num_embeddings": 100, "embedding_dim": 128, "model_in_dim": 128, "sampling_rate": 16000, "f0": null,
        });
        config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        let config: HifiGanConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn the_public_shape_is_read_and_strangers_are_refused() {
        let public = config(serde_json::json!({})).expect("the public shape");
        assert_eq!((public.hop(), public.channels(4)), (320, 16));
        assert!((16..24).contains(&public.reach()), "{}", public.reach());
        for (change, says) in [
            (serde_json::json!({ "f0": true }), "pitch"),
            (serde_json::json!({ "multispkr": "from_input_file" }), "speaker"),
            (serde_json::json!({ "sampling_rate": 22050 }), "22050"),
            (serde_json::json!({ "upsample_kernel_sizes": [11, 8, 8, 4, 5] }), "even"),
            (serde_json::json!({ "resblock": 3 }), "resblock `3`"),
            (
                serde_json::json!({ "upsample_rates": [1u64 << 32, 1u64 << 32], "upsample_kernel_sizes": [1u64 << 32, 1u64 << 32] }),
                "beyond",
            ),
            (serde_json::json!({ "upsample_rates": [1 << 23, 1 << 23, 2], "upsample_kernel_sizes": [1 << 23, 1 << 23, 2] }), "a second"),
            (serde_json::json!({ "upsample_rates": vec![2; 70], "upsample_kernel_sizes": vec![4; 70] }), "more than 64"),
            (serde_json::json!({ "upsample_rates": vec![1; 64], "upsample_kernel_sizes": vec![3; 64] }), "do not fit"),
            (serde_json::json!({ "upsample_rates": [], "upsample_kernel_sizes": [] }), "do not fit"),
            (serde_json::json!({ "resblock_dilation_sizes": [[1, 3], [1, u64::MAX], [1, 5]] }), "beyond"),
            (serde_json::json!({ "resblock_dilation_sizes": [[1, 3], [1, 0], [1, 5]] }), "zero"),
            (serde_json::json!({ "resblock_dilation_sizes": [[1, 3], [1, 1 << 20], [1, 5]] }), "at most 100"),
            (serde_json::json!({ "num_embeddings": u64::MAX }), "beyond"),
            (serde_json::json!({ "num_embeddings": 0 }), "zero"),
        ] {
            let message = config(change).expect_err("must be refused");
            assert!(message.contains(says), "{message}");
        }
    }
}
