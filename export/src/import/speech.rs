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

use std::path::Path;

use sa_models::lm::Config;
use sa_models::lm::config::HeadConfig;
use serde::Deserialize;

use super::{ImportError, read};
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
        if units == 0 || unit_embedding_size == 0 || !(1..=16).contains(&group) {
            return Err(wrong(format!(
                "{units} units of {unit_embedding_size} in groups of {group}: groups of 1 to 16 units are possible"
            )));
        }
        let sizes = match &head {
            Head::Group(sizes) | Head::Depth { sizes, .. } => Some(sizes),
            Head::Linear => None,
        };
        let none =
            |sizes: &HeadConfig| [sizes.num_hidden_layers, sizes.num_attention_heads, sizes.head_dim, sizes.intermediate_size].contains(&0);
        if sizes.is_some_and(none) || matches!(head, Head::Depth { hidden_size: 0, .. }) {
            return Err(wrong("a size of the head is zero".into()));
        }
        Ok(Self { head, weights: Weights::open_folder(dir)?, transcript, units, group, unit_embedding_size })
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
