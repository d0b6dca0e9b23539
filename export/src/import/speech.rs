//! The speech parts beside an imported trunk: a folder with `config.json` and `model.safetensors`, of our own naming.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `unit_embedding.weight` | `[k + 1, e]` | one row a unit; the last is END |
//! | `adaptor.weight` | `[d, G · e]` | a group's embeddings side by side to one row of the trunk |
//! | `head.*` | | `group`: as in a checkpoint of `sa-align lm`; `linear`: `head.output.weight` `[G · (k + 1), d]` |
//! | | | `depth`: layers, norm and output as in `group`, w = `hidden_size` wide; `head.input.weight` `[G · w, d]`, a projection of the hidden state for each step; `head.embedding.weight` `[k + 1, w]` of the unit before |
//!
//! ```json
//! { "units": 500, "group": 5, "unit_embedding_size": 64, "transcript": true,
//!   "head": { "kind": "group", "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 64, "intermediate_size": 1024 } }
//! ```

use std::path::{Path, PathBuf};

use sa_models::lm::Config;
use sa_models::lm::config::HeadConfig;
use serde::Deserialize;

use super::{ImportError, LARGEST_HEAD, check_sizes, read};
use crate::weights::Weights;

/// What predicts the units of a group from the hidden state.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Head {
    /// G learnt queries through a small encoder (IntrinsicVoice).
    Group(HeadConfig),
    /// G steps of a small causal transformer, each reading the unit before (DrVoice).
    Depth {
        hidden_size: usize,
        #[serde(flatten)]
        sizes: HeadConfig,
    },
    /// One product for all units of the group (SLAM-Omni).
    Linear,
}

#[derive(Debug, Deserialize)]
struct File {
    units: usize,
    group: usize,
    unit_embedding_size: usize,
    /// Does it write down the question before it answers?
    #[serde(default)]
    transcript: bool,
    head: Head,
}

/// Unit embedding, adaptor and head.
#[derive(Debug)]
pub struct Speech {
    pub head: Head,
    pub weights: Weights,
    pub transcript: bool,
    config: PathBuf,
    units: usize,
    group: usize,
    unit_embedding_size: usize,
}

impl Speech {
    /// Opens the folder.
    pub fn open(dir: &Path) -> Result<Self, ImportError> {
        let path = dir.join("config.json");
        let wrong = |message: String| ImportError::Config { path: path.clone(), message };
        let File { units, group, unit_embedding_size, transcript, head } =
            serde_json::from_slice(&read(&path)?).map_err(|error| wrong(error.to_string()))?;
        if !(1..=16).contains(&group) {
            return Err(wrong(format!("groups of {group} units: 1 to 16 are possible")));
        }
        check_sizes([units, unit_embedding_size]).map_err(wrong)?;
        let (width, sizes) = match &head {
            Head::Group(sizes) => (1, Some(sizes)),
            Head::Depth { hidden_size, sizes } => (*hidden_size, Some(sizes)),
            Head::Linear => (1, None),
        };
        let weights = Weights::open_folder(dir)?;
        if let Some(HeadConfig { num_hidden_layers: layers, num_attention_heads: heads, head_dim, intermediate_size }) = sizes {
            check_sizes([width, *layers, *heads, *head_dim, *intermediate_size]).map_err(wrong)?;
            if *head_dim > LARGEST_HEAD {
                return Err(wrong(format!("heads of {head_dim}: at most {LARGEST_HEAD} are possible")));
            }
            weights.require_blocks("head.layers", "input_layernorm.weight", *layers)?;
        }
        Ok(Self { head, weights, transcript, config: path, units, group, unit_embedding_size })
    }

    /// Every file that it is read from.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.config.clone()];
        files.extend(self.weights.files());
        files
    }

    /// The trunk's configuration with the speech sizes filled in.
    pub fn complete(&self, trunk: &Config) -> Config {
        let head = match &self.head {
            Head::Group(head) | Head::Depth { sizes: head, .. } => head.clone(),
            Head::Linear => trunk.head.clone(),
        };
        Config { units: self.units, group: self.group, unit_embedding_size: self.unit_embedding_size, head, ..trunk.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    #[test]
    fn sizes_beyond_any_network_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let norm = [0; 4];
        let tensors =
            ["head.layers.0.input_layernorm.weight"].map(|name| (name, TensorView::new(Dtype::F32, vec![1], &norm).expect("fits")));
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).expect("written");
        let open = |changes: serde_json::Value| {
            let mut config = serde_json::json!({
                "units": 500, "group": 5, "unit_embedding_size": 64,
                "head": { "kind": "group", "num_hidden_layers": 1, "num_attention_heads": 8, "head_dim": 64, "intermediate_size": 1024 },
            });
            config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
            Speech::open(dir.path()).map_err(|error| error.to_string())
        };
        let head = |kind: &str, layers: u64, dim: u64, width: u64| {
            serde_json::json!({ "head": {
                "kind": kind, "num_hidden_layers": layers, "num_attention_heads": 8, "head_dim": dim, "intermediate_size": 1024, "hidden_size": width,
            } })
        };
        open(serde_json::json!({})).expect("the documented shape");
        open(head("depth", 1, 64, 32)).expect("a head of steps");
        open(serde_json::json!({ "head": { "kind": "linear" } })).expect("a head of one product");
        for (change, says) in [
            (serde_json::json!({ "units": u64::MAX }), "beyond"),
            (serde_json::json!({ "units": 0 }), "zero"),
            (serde_json::json!({ "unit_embedding_size": 1u64 << 61 }), "beyond"),
            (serde_json::json!({ "group": 17 }), "1 to 16"),
            (head("depth", 1, 64, 1 << 62), "beyond"),
            (head("depth", 1, 64, 0), "zero"),
            (head("group", 1, 1 << 20, 1), "at most 1024"),
            (head("depth", 1 << 24, 64, 32), "head.layers.1.input_layernorm.weight"),
        ] {
            let message = open(change).expect_err("must be refused");
            assert!(message.contains(says), "{message}");
        }
    }
}
