//! Qwen2 and Qwen2.5 causal language models in Hugging Face's layout: the trunk of a group language model.
//!
//! `config.json`, `model.safetensors` (or shards with an index), `tokenizer.json`. The blocks are those of our own trunk, with biases
//! on queries, keys and values (Yang et al. 2024).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sa_device::vocabulary::SPECIALS;
use sa_models::lm::Config;
use serde::Deserialize;

use super::{ImportError, LARGEST_HEAD, check_sizes, read};
use crate::weights::Weights;

/// Fewest positions that a runtime can work with.
const SHORTEST_CONTEXT: usize = 64;
/// Most positions: as many as the longest Qwen2.5 knows.
const LONGEST_CONTEXT: usize = 1 << 20;

/// `config.json` as transformers writes it; what is missing has the value of its `Qwen2Config`.
#[derive(Debug, Deserialize)]
struct HuggingFace {
    #[serde(default)]
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "thirty_two_thousand")]
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: serde_json::Value,
    /// Where transformers keeps both of them from version 5 on.
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// Factors, or parameters for each kind of layer.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

impl RopeParameters {
    fn check(&self) -> Result<(), String> {
        let stretched = self.rope_type.as_deref().filter(|kind| *kind != "default");
        let other = self.others.iter().find(|(key, value)| {
            // The whole of a head turns.
            let whole = *key == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            !(value.is_null() || whole)
        });
        match stretched.or(other.map(|(key, _)| key.as_str())) {
            Some(what) => Err(format!("it stretches its positions (`rope_parameters`: {what}), which is not known here")),
            None => Ok(()),
        }
    }
}

fn silu() -> String {
    "silu".into()
}

fn thirty_two_thousand() -> usize {
    32_768
}

fn epsilon() -> f64 {
    1e-6
}

/// Where neither place names it.
const THETA: f64 = 10_000.0;

impl HuggingFace {
    /// `tied`: the file has no product of its own for the text logits.
    fn config(self, context: usize, tied: bool) -> Result<Config, String> {
        if self.model_type != "qwen2" {
            return Err(format!("model_type is `{}`, a Qwen2 or Qwen2.5 says `qwen2`", self.model_type));
        }
        if self.hidden_act != "silu" {
            return Err(format!("activation `{}`: only silu is known", self.hidden_act));
        }
        if !self.rope_scaling.is_null() {
            return Err(
                "it stretches its positions (`rope_scaling`), which is not known here: set it to null and keep to its own length".into()
            );
        }
        let in_parameters = match &self.rope_parameters {
            Some(parameters) => {
                parameters.check()?;
                parameters.rope_theta
            }
            None => None,
        };
        let rope_theta = in_parameters.or(self.rope_theta).unwrap_or(THETA);
        if self.rope_theta.is_some_and(|theta| theta != rope_theta) {
            return Err("rope_theta and rope_parameters.rope_theta differ".into());
        }
        if !(1.0..1e15).contains(&rope_theta) {
            return Err(format!("rope_theta is {rope_theta}"));
        }
        if self.use_sliding_window || self.layer_types.iter().flatten().any(|kind| kind != "full_attention") {
            return Err("it attends through a sliding window (`use_sliding_window`), which is not known here".into());
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        check_sizes([self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers, heads, kv_heads])?;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        if !heads.is_multiple_of(kv_heads) || head_dim == 0 || head_dim > LARGEST_HEAD || head_dim % 2 == 1 {
            return Err(format!("{heads} heads of {head_dim} over {kv_heads} pairs of keys and values do not fit together"));
        }
        let longest = self.max_position_embeddings.min(LONGEST_CONTEXT);
        if !(SHORTEST_CONTEXT..=longest).contains(&context) {
            return Err(format!("a context of {context} positions: {SHORTEST_CONTEXT} to {longest} are possible (--context)"));
        }
        Ok(Config {
            architecture: "qwen2".into(),
            units: 1,
            group: 1,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            attention_bias: true,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            max_position_embeddings: context,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(tied),
            ..Config::nano(self.vocab_size, 1)
        })
    }
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// A Qwen2 checkpoint.
#[derive(Debug)]
pub struct Qwen {
    /// With the context that was asked for; of the speech sizes nothing is known here.
    pub config: Config,
    pub weights: Weights,
    dir: PathBuf,
}

impl Qwen {
    /// Opens a folder; `context` positions are what the bundle's cache will hold.
    pub fn open(dir: &Path, context: usize) -> Result<Self, ImportError> {
        let path = dir.join("config.json");
        let config: Result<HuggingFace, _> = serde_json::from_slice(&read(&path)?);
        let wrong = |message: String| ImportError::Config { path: path.clone(), message };
        let config = config.map_err(|error| wrong(error.to_string()))?;
        let weights = Weights::open_folder(dir)?;
        let tied = weights.shape("lm_head.weight").is_none();
        let config = config.config(context, tied).map_err(wrong)?;
        weights.require_blocks("model.layers", "input_layernorm.weight", config.num_hidden_layers)?;
        Ok(Self { config, weights, dir: dir.into() })
    }

    /// Every file that it is read from.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.dir.join("config.json"), self.tokenizer()];
        files.extend(self.weights.files());
        files
    }

    /// What splits text into tokens.
    pub fn tokenizer(&self) -> PathBuf {
        self.dir.join("tokenizer.json")
    }

    /// Those of a conversation's special tokens that the tokenizer has been given, with their ids.
    pub fn special_tokens(&self) -> Result<BTreeMap<String, u32>, ImportError> {
        let path = self.tokenizer();
        let json: TokenizerJson = serde_json::from_slice(&read(&path)?)
            .map_err(|error| ImportError::Config { path: path.clone(), message: error.to_string() })?;
        let ours = json.added_tokens.into_iter().filter(|token| SPECIALS.contains(&token.content.as_str()));
        Ok(ours.map(|token| (token.content, token.id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: serde_json::Value, context: usize) -> Result<Config, String> {
        // Qwen2.5-0.5B's.
        let mut config = serde_json::json!({
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": false, "tie_word_embeddings": true,
        });
        config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        let config: HuggingFace = serde_json::from_value(config).map_err(|error| error.to_string())?;
        config.config(context, false)
    }

    #[test]
    fn the_public_shape_is_read_and_strangers_are_refused() {
        let public = config(serde_json::json!({}), 1024).expect("the public shape");
        assert_eq!((public.head_dim, public.num_key_value_heads, public.rope_theta), (64, 2, 1e6));
        assert!(public.attention_bias && public.tie_word_embeddings);
        assert!(!config(serde_json::json!({ "tie_word_embeddings": null }), 64).expect("as the file has it").tie_word_embeddings);
        // As transformers 5 writes it.
        let five = serde_json::json!({
            "rope_theta": null, "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" }, "layer_types": ["full_attention"],
        });
        assert_eq!(config(five, 64).expect("transformers 5").rope_theta, 5e5);
        assert_eq!(config(serde_json::json!({ "rope_theta": null }), 64).expect("the default").rope_theta, THETA);
        for (change, context, says) in [
            (serde_json::json!({ "model_type": "llama" }), 64, "llama"),
            (serde_json::json!({ "rope_scaling": { "type": "yarn" } }), 64, "rope_scaling"),
            (serde_json::json!({ "use_sliding_window": true }), 64, "sliding"),
            (serde_json::json!({ "hidden_act": "gelu" }), 64, "gelu"),
            (serde_json::json!({ "num_key_value_heads": 3 }), 64, "14 heads"),
            (serde_json::json!({ "num_attention_heads": 0 }), 64, "zero"),
            (serde_json::json!({ "vocab_size": 1u64 << 60 }), 64, "beyond"),
            (serde_json::json!({ "head_dim": 1u64 << 40 }), 64, "14 heads"),
            (serde_json::json!({ "num_hidden_layers": 1u64 << 25 }), 64, "beyond"),
            (serde_json::json!({ "max_position_embeddings": u64::MAX }), 1 << 40, "--context"),
            (serde_json::json!({ "rope_parameters": { "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0 } }), 64, "yarn"),
            (serde_json::json!({ "rope_parameters": { "rope_type": "default", "factor": 4.0 } }), 64, "factor"),
            (serde_json::json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e6 } } }), 64, "full_attention"),
            (serde_json::json!({ "rope_parameters": { "rope_theta": 1e4 } }), 64, "differ"),
            (serde_json::json!({ "rope_theta": 0.0 }), 64, "rope_theta is 0"),
            (serde_json::json!({ "layer_types": ["full_attention", "sliding_attention"] }), 64, "sliding"),
            (serde_json::json!({}), 63, "--context"),
            (serde_json::json!({}), 32769, "32768"),
        ] {
            let message = config(change, context).expect_err("must be refused");
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn as_many_blocks_as_the_weights_hold() {
        use safetensors::Dtype;
        use safetensors::tensor::TensorView;

        let dir = tempfile::tempdir().expect("a temporary folder");
        let norm = [0; 4];
        let norm = || TensorView::new(Dtype::F32, vec![1], &norm).expect("fits");
        let tensors = [("model.layers.0.input_layernorm.weight", norm()), ("model.layers.16777215.input_layernorm.weight", norm())];
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).expect("written");
        let open = |layers: u64| {
            let config = serde_json::json!({
                "model_type": "qwen2", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": layers,
                "num_attention_heads": 2,
            });
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
            Qwen::open(dir.path(), 64).map_err(|error| error.to_string())
        };
        open(1).expect("one block");
        let message = open(16_777_216).expect_err("so many caches would be made");
        assert!(message.contains("no tensor `model.layers.1."), "{message}");
    }
}
