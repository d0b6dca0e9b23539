//! HuBERT checkpoints: Hugging Face's folders (`HubertModel`, `HubertForCTC`, …) and fairseq's `.pt` files.
//!
//! Both become one configuration and one set of names (Hugging Face's); the shapes of the network are HuBERT's base and large
//! (Hsu et al. 2021) and mHuBERT-25Hz's, which has one more convolution of stride 2 and a batch norm before its positions.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::pickle::{Id, Pickle, Value};
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

    /// Frames of so many samples.
    pub fn frames(&self, samples: usize) -> usize {
        self.stem.iter().fold(samples, |n, layer| if n < layer.kernel { 0 } else { (n - layer.kernel) / layer.stride + 1 })
    }

    fn check(&self) -> Result<(), String> {
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
enum Names {
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

    /// Is there a tensor of Hugging Face's name?
    pub fn has(&self, name: &str) -> Result<bool, WeightsError> {
        Ok(self.weights.shape(&self.stored_name(name)).is_some())
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

/// fairseq's name of what Hugging Face calls `name`.
fn fairseq_name(name: &str, config: &HubertConfig) -> String {
    if let Some(rest) = name.strip_prefix("feature_extractor.conv_layers.") {
        let (layer, field) = rest.split_once('.').unwrap_or((rest, ""));
        // A layer norm stands between two transpositions there.
        let norm = if config.stem_norm == StemNorm::Layer { "2.1" } else { "2" };
        let field = field.replacen("conv.", "0.", 1).replacen("layer_norm.", &format!("{norm}."), 1);
        return format!("feature_extractor.conv_layers.{layer}.{field}");
    }
    let convolution = if config.position_batch_norm { "encoder.pos_conv.1" } else { "encoder.pos_conv.0" };
    const PARTS: [(&str, &str); 6] = [
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        (".attention.", ".self_attn."),
        (".layer_norm.", ".self_attn_layer_norm."),
        (".feed_forward.intermediate_dense.", ".fc1."),
        (".feed_forward.output_dense.", ".fc2."),
    ];
    if let Some(field) = name.strip_prefix("encoder.pos_conv_embed.conv") {
        return format!("{convolution}{field}");
    }
    if let Some(field) = name.strip_prefix("encoder.pos_conv_embed.batch_norm.") {
        return format!("encoder.pos_conv.0.{field}");
    }
    if name.starts_with("encoder.layer_norm.") {
        return name.to_owned();
    }
    PARTS.iter().find(|(ours, _)| name.contains(ours)).map_or_else(|| name.to_owned(), |(ours, theirs)| name.replacen(ours, theirs, 1))
}

/// The file that says what becomes of the audio before the network.
const PREPROCESSOR: &str = "preprocessor_config.json";

type Opened = (HubertConfig, Weights, Names);

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

fn open_fairseq(path: &Path) -> Result<Opened, ImportError> {
    let wrong = |message: String| ImportError::Config { path: path.into(), message };
    let weights = Weights::open(path)?;
    let torch = weights.torch().ok_or_else(|| wrong("a folder of Hugging Face or a .pt of fairseq is expected".into()))?;
    let pickle = &torch.pickle;
    let root = pickle.root();
    let section = |name: &str| pickle.get(pickle.get(root, "cfg")?, name);
    let model = section("model").or_else(|| pickle.get(root, "args"));
    let model = model.ok_or_else(|| wrong("it has neither `cfg` nor `args`: no checkpoint of fairseq".into()))?;
    let task = section("task").or_else(|| pickle.get(root, "args"));
    let config = fairseq_config(&Settings { pickle, id: model }, task.map(|id| Settings { pickle, id })).map_err(wrong)?;
    Ok((config, weights, Names::Fairseq))
}

/// Settings of fairseq: a dictionary, a namespace, or a node of OmegaConf (whose values hide in `_content` and `_val`).
struct Settings<'a> {
    pickle: &'a Pickle,
    id: Id,
}

impl Settings<'_> {
    fn get(&self, key: &str) -> Option<Id> {
        let direct = self.pickle.get(self.id, key);
        let found = direct.or_else(|| self.pickle.get(self.pickle.get(self.id, "_content")?, key))?;
        Some(self.pickle.get(found, "_val").unwrap_or(found))
    }
    fn size(&self, key: &str, default: usize) -> Result<usize, String> {
        match self.get(key).map(|id| self.pickle.int(id)) {
            None => Ok(default),
            Some(Some(value)) => usize::try_from(value).map_err(|_| format!("{key} is {value}")),
            Some(None) => Err(format!("{key} is no whole number")),
        }
    }
    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|id| matches!(self.pickle.value(id), Value::Bool(true)))
    }
    /// Text, or the one argument of an enumeration.
    fn text(&self, key: &str) -> Option<&str> {
        let id = self.get(key)?;
        self.pickle.text(id).or_else(|| self.pickle.text(*self.pickle.object(id)?.arguments.first()?))
    }
}

fn fairseq_config(model: &Settings, task: Option<Settings>) -> Result<HubertConfig, String> {
    // `arch` is from before fairseq had configurations.
    let name = model.text("_name").or_else(|| model.text("arch")).unwrap_or("hubert");
    if name != "hubert" {
        return Err(format!("the model is `{name}`, a HuBERT without a head says `hubert`"));
    }
    let activation = model.text("activation_fn").unwrap_or("gelu");
    if activation != "gelu" {
        return Err(format!("activation `{activation}`: only gelu is known"));
    }
    let layers = model.text("conv_feature_layers").unwrap_or("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2");
    let stem_norm = match model.text("extractor_mode").unwrap_or("default") {
        "default" => StemNorm::Group,
        "layer_norm" => StemNorm::Layer,
        other => return Err(format!("extractor_mode `{other}`: default and layer_norm are known")),
    };
    Ok(HubertConfig {
        stem: convolutions(layers)?,
        stem_norm,
        stem_bias: model.flag("conv_bias"),
        projection_norm: true,
        width: model.size("encoder_embed_dim", 768)?,
        layers: model.size("encoder_layers", 12)?,
        heads: model.size("encoder_attention_heads", 12)?,
        feed_forward: model.size("encoder_ffn_embed_dim", 3072)?,
        position_kernel: model.size("conv_pos", 128)?,
        position_groups: model.size("conv_pos_groups", 16)?,
        position_batch_norm: model.flag("conv_pos_batch_norm"),
        norm_first: model.flag("layer_norm_first"),
        epsilon: 1e-5,
        normalise: task.is_some_and(|task| task.flag("normalize")),
    })
}

/// fairseq's list of convolutions, an expression such as `[(512,10,5)] + [(512,3,2)] * 4`.
fn convolutions(text: &str) -> Result<Vec<Convolution>, String> {
    let wrong = || format!("conv_feature_layers `{text}` cannot be read");
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let mut layers = Vec::new();
    for term in text.split('+') {
        let (list, times) = term.rsplit_once('*').filter(|(list, _)| list.trim_end().ends_with(']')).unwrap_or((term, "1"));
        let list = list.trim().strip_prefix('[').and_then(|list| list.strip_suffix(']')).ok_or_else(wrong)?;
        let mut group = Vec::new();
        for item in list.split(')').map(|item| item.trim_matches([' ', ',', '('])).filter(|item| !item.is_empty()) {
            let numbers = item.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
            let [channels, kernel, stride] = numbers[..] else { return Err(wrong()) };
            group.push(Convolution { channels, kernel, stride });
        }
        for _ in 0..number(times)?.min(64) {
            layers.extend_from_slice(&group);
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_of_fairseq_are_read() {
        let layers = convolutions("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 3").expect("reads");
        assert_eq!(layers.len(), 8);
        let config = HubertConfig {
            stem: layers,
            ..HuggingFace { model_type: "hubert".into(), ..HuggingFace::default() }.config(false).expect("a configuration")
        };
        assert_eq!((config.hop(), config.receptive_field(), config.frames(16_000)), (640, 720, 24));
        assert!(convolutions("__import__('os')").is_err());
    }

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
    fn only_a_hubert_of_fairseq_is_taken_for_one() {
        // A dictionary of text to text.
        let config = |entries: &[(&str, &str)]| {
            let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
            let items: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), text(value), b"s".to_vec()].concat()).collect();
            let pickle = Pickle::read(&[b"}".to_vec(), items, b".".to_vec()].concat()).expect("a dictionary");
            fairseq_config(&Settings { id: pickle.root(), pickle: &pickle }, None)
        };
        let plain = config(&[]).expect("all defaults");
        assert_eq!(config(&[("_name", "hubert"), ("activation_fn", "gelu"), ("extractor_mode", "default")]), Ok(plain.clone()));
        assert_eq!(config(&[("extractor_mode", "layer_norm")]).map(|config| config.stem_norm), Ok(StemNorm::Layer));
        plain.check().expect("HuBERT base");
        for (key, value) in
            [("_name", "wav2vec2"), ("_name", "hubert_ctc"), ("arch", "data2vec"), ("activation_fn", "relu"), ("extractor_mode", "mel")]
        {
            let message = config(&[(key, value)]).expect_err("must be refused");
            assert!(message.contains(value), "{message}");
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

    #[test]
    fn names_of_fairseq() {
        let base = HuggingFace { model_type: "hubert".into(), ..HuggingFace::default() }.config(false).expect("a configuration");
        let large = HubertConfig { stem_norm: StemNorm::Layer, position_batch_norm: true, ..base.clone() };
        for (ours, theirs) in [
            ("feature_extractor.conv_layers.0.conv.weight", "feature_extractor.conv_layers.0.0.weight"),
            ("feature_extractor.conv_layers.0.layer_norm.bias", "feature_extractor.conv_layers.0.2.bias"),
            ("feature_projection.layer_norm.weight", "layer_norm.weight"),
            ("feature_projection.projection.bias", "post_extract_proj.bias"),
            ("encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv.0.weight_g"),
            ("encoder.layers.3.attention.q_proj.weight", "encoder.layers.3.self_attn.q_proj.weight"),
            ("encoder.layers.3.layer_norm.weight", "encoder.layers.3.self_attn_layer_norm.weight"),
            ("encoder.layers.3.final_layer_norm.weight", "encoder.layers.3.final_layer_norm.weight"),
            ("encoder.layers.3.feed_forward.output_dense.bias", "encoder.layers.3.fc2.bias"),
            ("encoder.layer_norm.weight", "encoder.layer_norm.weight"),
        ] {
            assert_eq!(fairseq_name(ours, &base), theirs);
        }
        assert_eq!(fairseq_name("feature_extractor.conv_layers.2.layer_norm.bias", &large), "feature_extractor.conv_layers.2.2.1.bias");
        assert_eq!(fairseq_name("encoder.pos_conv_embed.conv.bias", &large), "encoder.pos_conv.1.bias");
        assert_eq!(fairseq_name("encoder.pos_conv_embed.batch_norm.running_mean", &large), "encoder.pos_conv.0.running_mean");
    }
}
