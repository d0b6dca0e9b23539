//! Qwen2 and Qwen2.5 causal language models in Hugging Face's layout: the trunk of a group language model.
//!
//! `config.json`, `model.safetensors` (or shards with an index), `tokenizer.json`. The blocks are those of our own trunk, with biases
//! on queries, keys and values (Yang et al. 2024).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sa_device::vocabulary::SPECIALS;
use sa_models::lm::Config;
use serde::Deserialize;

use super::{ImportError, read};
use crate::weights::Weights;

/// Fewest positions that a runtime can work with.
const SHORTEST_CONTEXT: usize = 64;

/// No model is wider, and the products of such sizes are numbers still.
const LARGEST_SIZE: usize = 1 << 24;
const LARGEST_HEAD: usize = 1024;

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
    #[serde(default = "theta")]
    rope_theta: f64,
    #[serde(default)]
    rope_scaling: serde_json::Value,
    #[serde(default)]
    use_sliding_window: bool,
    tie_word_embeddings: Option<bool>,
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

fn theta() -> f64 {
    10_000.0
}

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
        if self.use_sliding_window {
            return Err("it attends through a sliding window (`use_sliding_window`), which is not known here".into());
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers, heads, kv_heads];
        if sizes.iter().any(|size| !(1..=LARGEST_SIZE).contains(size)) {
            return Err(format!("a size is zero, or beyond {LARGEST_SIZE}"));
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        if !heads.is_multiple_of(kv_heads) || head_dim == 0 || head_dim > LARGEST_HEAD || head_dim % 2 == 1 {
            return Err(format!("{heads} heads of {head_dim} over {kv_heads} pairs of keys and values do not fit together"));
        }
        if !(SHORTEST_CONTEXT..=self.max_position_embeddings).contains(&context) {
            return Err(format!(
                "a context of {context} positions: {SHORTEST_CONTEXT} to {} are possible (--context)",
                self.max_position_embeddings
            ));
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
            rope_theta: self.rope_theta,
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
        Ok(Self { config, weights, dir: dir.into() })
    }

    /// The file that holds the weights, or their index.
    pub fn path(&self) -> &Path {
        self.weights.path()
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
        for (change, context, says) in [
            (serde_json::json!({ "model_type": "llama" }), 64, "llama"),
            (serde_json::json!({ "rope_scaling": { "type": "yarn" } }), 64, "rope_scaling"),
            (serde_json::json!({ "use_sliding_window": true }), 64, "sliding"),
            (serde_json::json!({ "hidden_act": "gelu" }), 64, "gelu"),
            (serde_json::json!({ "num_key_value_heads": 3 }), 64, "14 heads"),
            (serde_json::json!({ "num_attention_heads": 0 }), 64, "zero"),
            (serde_json::json!({ "vocab_size": 1u64 << 60 }), 64, "beyond"),
            (serde_json::json!({ "head_dim": 1u64 << 40 }), 64, "14 heads"),
            (serde_json::json!({}), 63, "--context"),
            (serde_json::json!({}), 32769, "32768"),
        ] {
            let message = config(change, context).expect_err("must be refused");
            assert!(message.contains(says), "{message}");
        }
    }
}
