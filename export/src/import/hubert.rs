//! HuBERT checkpoints: Hugging Face's folders (`HubertModel`, `HubertForCTC`, …) and fairseq's `.pt` files.
//!
//! Both become one configuration and one set of names (Hugging Face's); the shapes of the network are HuBERT's base and large
//! (Hsu et al. 2021) and mHuBERT-25Hz's, which has one more convolution of stride 2 and a batch norm before its positions.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::fairseq::{fairseq_name, open_fairseq};
use super::{ImportError, MOST_CONVOLUTIONS, check_sizes, folded, hop_of, read};
use crate::weights::{Weights, WeightsError};

/// How the stem is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StemNorm {
    /// Each channel of the first convolution over time.
    Group,
    /// The channels of each frame after every convolution.
    Layer,
}

/// One convolution of the stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    pub channels: usize,
    pub kernel: usize,
    pub stride: usize,
}

/// Most samples that a frame sees: public HuBERTs see 400 and 720.
const LONGEST_FIELD: usize = 16_000;

/// The sizes of a HuBERT.
#[derive(Debug, Clone, PartialEq)]
pub struct HubertConfig {
    pub stem: Vec<Convolution>,
    pub stem_norm: StemNorm,
    pub stem_bias: bool,
    /// A layer norm before the projection to the width of the blocks.
    pub projection_norm: bool,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub feed_forward: usize,
    /// Kernel and groups of the positional convolution.
    pub position_kernel: usize,
    pub position_groups: usize,
    /// A batch norm before the positional convolution in place of its weight norm.
    pub position_batch_norm: bool,
    /// Norms before attention and feed-forward (`do_stable_layer_norm`), not after.
    pub norm_first: bool,
    pub epsilon: f32,
    /// The audio comes with zero mean and unit variance.
    pub normalise: bool,
}

impl HubertConfig {
    /// Samples from one frame to the next.
    pub fn hop(&self) -> usize {
        self.stem.iter().map(|layer| layer.stride).product()
    }

    /// Samples that one frame sees.
    pub fn receptive_field(&self) -> usize {
        self.stem.iter().rev().fold(1, |samples, layer| (samples - 1) * layer.stride + layer.kernel)
    }

    /// Frames of so many samples, counted from convolution to convolution: what the other sizes are held against.
    #[cfg(test)]
    pub fn frames(&self, samples: usize) -> usize {
        self.stem.iter().fold(samples, |n, layer| if n < layer.kernel { 0 } else { (n - layer.kernel) / layer.stride + 1 })
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Self { width, heads, position_groups, position_kernel, .. } = self;
        if !(1..=MOST_CONVOLUTIONS).contains(&self.stem.len()) {
            return Err(format!("{} convolutions: 1 to {MOST_CONVOLUTIONS} are possible", self.stem.len()));
        }
        check_sizes([*width, *heads, self.layers, self.feed_forward, *position_groups, *position_kernel])?;
        check_sizes(self.stem.iter().flat_map(|c| [c.channels, c.kernel, c.stride]))?;
        if !width.is_multiple_of(*heads) || !width.is_multiple_of(*position_groups) {
            return Err(format!("the width {width} is no multiple of {heads} heads and {position_groups} groups"));
        }
        hop_of(self.stem.iter().map(|layer| layer.stride))?;
        if !(self.hop()..=LONGEST_FIELD).contains(&self.receptive_field()) {
            return Err(format!(
                "a frame every {} samples sees {} samples: at least as many, and at most {LONGEST_FIELD} are possible",
                self.hop(),
                self.receptive_field()
            ));
        }
        Ok(())
    }
}

/// `config.json` as transformers writes it; what is missing has the value of its `HubertConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct HuggingFace {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    feat_extract_norm: StemNorm,
    feat_extract_activation: String,
    feat_proj_layer_norm: bool,
    conv_dim: Vec<usize>,
    conv_stride: Vec<usize>,
    conv_kernel: Vec<usize>,
    conv_bias: bool,
    num_conv_pos_embeddings: usize,
    num_conv_pos_embedding_groups: usize,
    conv_pos_batch_norm: bool,
    do_stable_layer_norm: bool,
    layer_norm_eps: f32,
}

impl Default for HuggingFace {
    fn default() -> Self {
        Self {
            model_type: String::new(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            feat_extract_norm: StemNorm::Group,
            feat_extract_activation: "gelu".into(),
            feat_proj_layer_norm: true,
            conv_dim: vec![512; 7],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_bias: false,
            num_conv_pos_embeddings: 128,
            num_conv_pos_embedding_groups: 16,
            conv_pos_batch_norm: false,
            do_stable_layer_norm: false,
            layer_norm_eps: 1e-5,
        }
    }
}

impl HuggingFace {
    fn config(self, normalise: bool) -> Result<HubertConfig, String> {
        if self.model_type != "hubert" {
            return Err(format!("model_type is `{}`, a HuBERT says `hubert`", self.model_type));
        }
        if self.hidden_act != "gelu" || self.feat_extract_activation != "gelu" {
            return Err(format!("activations `{}` and `{}`: only gelu is known", self.hidden_act, self.feat_extract_activation));
        }
        if self.conv_dim.len() != self.conv_stride.len() || self.conv_dim.len() != self.conv_kernel.len() {
            return Err("conv_dim, conv_stride and conv_kernel are not of one length".into());
        }
        let sizes = self.conv_dim.iter().zip(&self.conv_kernel).zip(&self.conv_stride);
        Ok(HubertConfig {
            stem: sizes.map(|((channels, kernel), stride)| Convolution { channels: *channels, kernel: *kernel, stride: *stride }).collect(),
            stem_norm: self.feat_extract_norm,
            stem_bias: self.conv_bias,
            projection_norm: self.feat_proj_layer_norm,
            width: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            feed_forward: self.intermediate_size,
            position_kernel: self.num_conv_pos_embeddings,
            position_groups: self.num_conv_pos_embedding_groups,
            position_batch_norm: self.conv_pos_batch_norm,
            norm_first: self.do_stable_layer_norm,
            epsilon: self.layer_norm_eps,
            normalise,
        })
    }
}

/// Whose names the tensors have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// Behind this prefix (`hubert.` in a model with a head).
    HuggingFace(&'static str),
    Fairseq,
}

/// A HuBERT checkpoint.
#[derive(Debug)]
pub struct Hubert {
    pub config: HubertConfig,
    weights: Weights,
    names: Names,
    /// Where its configuration is, if not in the file of the weights.
    dir: Option<PathBuf>,
}

impl Hubert {
    /// Opens a folder in Hugging Face's layout or a `.pt` of fairseq.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let (config, weights, names) = if path.is_dir() { open_folder(path)? } else { open_fairseq(path)? };
        config.check().map_err(|message| ImportError::Config { path: path.into(), message })?;
        Ok(Self { config, weights, names, dir: path.is_dir().then(|| path.into()) })
    }

    /// Every file that it is read from.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = self.weights.files();
        if let Some(dir) = &self.dir {
            files.push(dir.join("config.json"));
            files.extend(Some(dir.join(PREPROCESSOR)).filter(|path| path.is_file()));
        }
        files
    }

    /// A tensor by Hugging Face's name.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        self.weights.tensor(&self.stored_name(name), shape)
    }

    /// The positional convolution's kernel `[d, d / groups, K]`, its weight norm (one gain a tap), where it has one, folded in.
    pub fn position_weight(&self) -> Result<Vec<f32>, WeightsError> {
        let HubertConfig { width: d, position_groups: groups, position_kernel: taps, .. } = self.config;
        let (name, shape) = ("encoder.pos_conv_embed.conv", [d, d / groups, taps]);
        match self.config.position_batch_norm {
            true => self.tensor(&format!("{name}.weight"), &shape),
            false => folded(&self.weights, &self.stored_name(name), shape, 2),
        }
    }

    fn stored_name(&self, name: &str) -> String {
        match &self.names {
            Names::HuggingFace(prefix) => format!("{prefix}{name}"),
            Names::Fairseq => fairseq_name(name, &self.config),
        }
    }
}

/// The file that says what becomes of the audio before the network.
const PREPROCESSOR: &str = "preprocessor_config.json";

pub(super) type Opened = (HubertConfig, Weights, Names);

fn open_folder(dir: &Path) -> Result<Opened, ImportError> {
    let wrong = |message: String| ImportError::Config { path: dir.join("config.json"), message };
    #[derive(Deserialize)]
    struct Preprocessor {
        #[serde(default = "yes")]
        do_normalize: bool,
    }
    fn yes() -> bool {
        true
    }
    // Without a preprocessor's settings the audio is taken as it is.
    let normalise = match read(&dir.join(PREPROCESSOR)) {
        Ok(bytes) => {
            serde_json::from_slice::<Preprocessor>(&bytes).map_err(|error| wrong(format!("{PREPROCESSOR}: {error}")))?.do_normalize
        }
        Err(_) => false,
    };
    let config: HuggingFace = serde_json::from_slice(&read(&dir.join("config.json"))?).map_err(|error| wrong(error.to_string()))?;
    let config = config.config(normalise).map_err(wrong)?;
    let weights = Weights::open_folder(dir)?;
    let prefixed = weights.shape("hubert.feature_projection.projection.weight").is_some();
    Ok((config, weights, Names::HuggingFace(if prefixed { "hubert." } else { "" })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_any_network_are_refused() {
        let check = |changes: serde_json::Value| {
            let mut config = serde_json::json!({ "model_type": "hubert" });
            config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
            let config: HuggingFace = serde_json::from_value(config).map_err(|error| error.to_string())?;
            config.config(false)?.check()
        };
        assert_eq!(check(serde_json::json!({})), Ok(()));
        let stem = |kernels: &[u64], strides: &[u64]| serde_json::json!({ "conv_dim": vec![512; kernels.len()], "conv_kernel": kernels, "conv_stride": strides });
        for (change, says) in [
            (stem(&[10, 3, 3], &[1 << 32, 1 << 32, 2]), "beyond"),
            (stem(&[10, 3, 3], &[1 << 23, 1 << 23, 1 << 23]), "longer than a second"),
            (stem(&[1 << 63, 3], &[5, 2]), "beyond"),
            (stem(&[1 << 20, 1 << 20], &[5, 2]), "sees"),
            (stem(&[1, 1], &[5, 2]), "sees 1 samples"),
            (stem(&[3; 65], &[1; 65]), "65 convolutions"),
            (stem(&[], &[]), "0 convolutions"),
            (serde_json::json!({ "hidden_size": 1u64 << 62, "num_attention_heads": 1, "num_conv_pos_embedding_groups": 1 }), "beyond"),
            (serde_json::json!({ "hidden_size": 0 }), "zero"),
            (serde_json::json!({ "hidden_size": 100 }), "no multiple"),
        ] {
            let message = check(change).expect_err("must be refused");
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn frames_agree_with_the_receptive_field() {
        let config = HuggingFace { model_type: "hubert".into(), ..HuggingFace::default() }.config(false).expect("a configuration");
        assert_eq!((config.hop(), config.receptive_field()), (320, 400));
        for samples in [399, 400, 719, 720, 16_000] {
            let expected = if samples < 400 { 0 } else { (samples - 400) / 320 + 1 };
            assert_eq!(config.frames(samples), expected, "{samples}");
        }
    }
}
