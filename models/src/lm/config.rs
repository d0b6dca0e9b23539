//! Every number of the group language model. Names are Hugging Face's where Qwen2 has the same thing.

use serde::{Deserialize, Serialize};

/// How a reply is laid out in the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A word, then its groups, then the next word.
    #[default]
    InterleavedWords,
}

/// The network, as `config.json` of a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub architecture: String,
    pub layout: Layout,
    /// The model writes the question's words before it answers.
    pub transcript: bool,
    /// Text tokens (lines of `vocabulary.txt`).
    pub vocab_size: usize,
    /// Speech units, without the end unit.
    pub units: usize,
    /// Units in a group, G.
    pub group: usize,
    pub unit_embedding_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    /// Biases of the query, key and value products, as Qwen2 has them.
    pub attention_bias: bool,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Longest sequence, in positions.
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub head: HeadConfig,
}

/// The GroupModel: blocks like the trunk's, but without positions and seeing both ways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
}

impl Config {
    /// The nano model of this project: 4.9 M parameters at 1,000 text tokens.
    pub fn nano(vocab_size: usize, units: usize) -> Self {
        Self {
            architecture: "sa-group-lm".into(),
            layout: Layout::InterleavedWords,
            transcript: true,
            vocab_size,
            units,
            group: 4,
            unit_embedding_size: 64,
            hidden_size: 256,
            intermediate_size: 704,
            num_hidden_layers: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            attention_bias: false,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            max_position_embeddings: 512,
            tie_word_embeddings: true,
            head: HeadConfig { num_hidden_layers: 1, num_attention_heads: 4, head_dim: 64, intermediate_size: 512 },
        }
    }

    /// Id of the unit that ends a word (and pads a question's last group).
    pub fn end_unit(&self) -> u16 {
        self.units as u16
    }
}

#[cfg(test)]
impl Config {
    /// A network small enough for tests: 20 tokens, 7 units, two heads on one pair of keys and values.
    pub(crate) fn tiny() -> Self {
        Self {
            group: 3,
            unit_embedding_size: 4,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 64,
            head: HeadConfig { num_hidden_layers: 1, num_attention_heads: 2, head_dim: 8, intermediate_size: 20 },
            ..Self::nano(20, 7)
        }
    }
}
