//! The types of `bundle.toml`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BundleError, FORMAT_VERSION};

/// The content of `bundle.toml`. Fill `sha256` and `bytes` of the files with anything when writing:
/// [`super::BundleWriter::finish`] sets them, and [`Manifest::format_version`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The bundle's name, such as `nano-int8`.
    pub name: String,
    /// The program and version that wrote it.
    pub created_by: String,
    /// SHA-256 over the source checkpoint.
    pub source_checkpoint: String,
    /// Samples per second of audio in and out.
    pub sample_rate: u32,
    /// Units per second.
    pub unit_rate: u32,
    /// Number of units; id `k` is END (and the decoder's padding).
    pub k: usize,
    /// Units in a group.
    pub group: usize,
    /// The order of text and units in the language model's sequence.
    pub layout: Layout,
    /// Does the model write the transcript of a question before it answers?
    pub transcript: bool,
    /// Resident memory that the runtime needs.
    pub minimum_memory_mb: u32,
    /// SPDX expression.
    pub licence: String,
    /// Training data and alignment rounds, in words.
    pub provenance: String,
    /// `vocabulary.txt`, or an imported trunk's `tokenizer.json`; a bundle without a language model has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<FileEntry>,
    /// How unlike the units are: k · k bytes, 255 for those as far apart as half of all pairs or farther. The wake phrase is found
    /// better with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit_distances: Option<FileEntry>,
    /// Special token → id; must agree with the vocabulary.
    #[serde(default)]
    pub special_tokens: BTreeMap<String, u32>,
    /// The graphs. An agent has all four; a bundle may also hold a part, such as an imported tokenizer.
    pub stage: Stages,
    /// What the exporter measured; free.
    #[serde(default)]
    pub measured: toml::Table,
}

impl Manifest {
    /// Reads the text of a `bundle.toml`; the version is looked at before anything else, so that a bundle
    /// of a later format is told by its version and not by a field that is missing.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let parse = |e: toml::de::Error| BundleError::Parse { message: e.to_string().trim_end().to_owned() };
        let version: Version = toml::from_str(text).map_err(parse)?;
        if version.format_version != FORMAT_VERSION {
            return Err(BundleError::Version { found: version.format_version });
        }
        toml::from_str(text).map_err(parse)
    }

    /// Samples that one unit stands for.
    pub fn samples_per_unit(&self) -> usize {
        (self.sample_rate / self.unit_rate.max(1)) as usize
    }

    /// Units by which the decoder's frames are late: its look-ahead, from `stage.decoder.latency_ms`.
    pub fn decoder_delay(&self) -> usize {
        self.stage.decoder.as_ref().map_or(0.0, |decoder| self.units_of_ms(decoder.latency_ms)).round() as usize
    }

    /// Units by which the tokenizer's units are late: what `stage.tokenizer.latency_ms` says beyond its chunk.
    pub fn tokenizer_delay(&self) -> usize {
        self.late_units().round() as usize
    }

    /// The same before rounding, never below 0: bundles from before units could be late may say a latency of 0.
    pub(super) fn late_units(&self) -> f64 {
        let samples = self.samples_per_unit().max(1) as f64;
        let late = |tokenizer: &StageEntry| self.units_of_ms(tokenizer.latency_ms) - tokenizer.chunk as f64 / samples;
        self.stage.tokenizer.as_ref().map_or(0.0, late).max(0.0)
    }

    pub(super) fn units_of_ms(&self, ms: f64) -> f64 {
        ms * f64::from(self.unit_rate) / 1000.0
    }

    /// All files but the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.vocabulary
            .iter()
            .chain(&self.unit_distances)
            .chain(self.stage.present().flat_map(|(_, stage)| std::iter::once(&stage.graph).chain(&stage.initial)))
    }

    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut FileEntry> {
        let Stages { tokenizer, lm, head, decoder } = &mut self.stage;
        let stages = [tokenizer, lm, head, decoder].into_iter().flatten();
        self.vocabulary
            .iter_mut()
            .chain(&mut self.unit_distances)
            .chain(stages.flat_map(|s| std::iter::once(&mut s.graph).chain(&mut s.initial)))
    }
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name in the bundle's folder.
    pub file: String,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Size.
    pub bytes: u64,
}

impl FileEntry {
    /// An entry whose hash and size the writer fills in.
    pub fn named(file: impl Into<String>) -> Self {
        Self { file: file.into(), ..Self::default() }
    }
}

/// The order of text and units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Layout {
    /// The model writes a word, then speaks it.
    InterleavedWords,
}

/// Names of the four graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageName {
    /// Audio → units.
    Tokenizer,
    /// One text token or one group → text logits and hidden state.
    Lm,
    /// Hidden state → logits of a group's units.
    Head,
    /// Units → spectrum frames.
    Decoder,
}

impl StageName {
    /// In the order of the data flow.
    pub const ALL: [Self; 4] = [Self::Tokenizer, Self::Lm, Self::Head, Self::Decoder];

    /// As in `[stage.NAME]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Lm => "lm",
            Self::Head => "head",
            Self::Decoder => "decoder",
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `[stage.*]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Stages {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<StageEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lm: Option<StageEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<StageEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder: Option<StageEntry>,
}

impl Stages {
    /// The entry of a stage, if the bundle holds it.
    pub fn get(&self, name: StageName) -> Option<&StageEntry> {
        match name {
            StageName::Tokenizer => self.tokenizer.as_ref(),
            StageName::Lm => self.lm.as_ref(),
            StageName::Head => self.head.as_ref(),
            StageName::Decoder => self.decoder.as_ref(),
        }
    }

    /// Where the entry of a stage stands, to be set.
    pub fn slot(&mut self, name: StageName) -> &mut Option<StageEntry> {
        match name {
            StageName::Tokenizer => &mut self.tokenizer,
            StageName::Lm => &mut self.lm,
            StageName::Head => &mut self.head,
            StageName::Decoder => &mut self.decoder,
        }
    }

    /// The entry of a stage that is needed.
    ///
    /// # Errors
    /// [`BundleError::NoStage`] when the bundle does not hold it.
    pub fn require(&self, name: StageName) -> Result<&StageEntry, BundleError> {
        self.get(name).ok_or(BundleError::NoStage { stage: name })
    }

    /// The stages that the bundle holds, in the order of the data flow.
    pub fn present(&self) -> impl Iterator<Item = (StageName, &StageEntry)> {
        StageName::ALL.into_iter().filter_map(|name| Some((name, self.get(name)?)))
    }
}

/// One graph: advances by one chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageEntry {
    /// The ONNX file.
    #[serde(flatten)]
    pub graph: FileEntry,
    /// `fp32`, `int8`, …: what the weights are.
    pub precision: String,
    /// What one run takes in: samples (tokenizer), positions (lm, head), units (decoder).
    pub chunk: usize,
    /// Algorithmic latency in milliseconds; 0 for lm and head. For the tokenizer it is its chunk and how late its units are; for the
    /// decoder, how late its frames are. Both latenesses must be whole numbers of units (80 ms for a look-ahead of 2 units): the
    /// runtime feeds so much silence (or as many pad units) at the end, and drops as many of the decoder's first frames.
    pub latency_ms: f64,
    /// Initial values of the `state.*` inputs, in their order, as little-endian f32; zeros if there is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<FileEntry>,
    /// Inputs by name, in the order of the graph.
    pub inputs: Vec<TensorEntry>,
    /// Outputs by name, in the order of the graph.
    pub outputs: Vec<TensorEntry>,
}

impl StageEntry {
    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&TensorEntry> {
        self.inputs.iter().find(|t| t.name == name)
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&TensorEntry> {
        self.outputs.iter().find(|t| t.name == name)
    }
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// As in the graph.
    pub name: String,
    /// All dimensions are fixed.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl TensorEntry {
    /// An f32 tensor.
    pub fn f32(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dtype: DType::F32 }
    }

    /// An i64 tensor.
    pub fn i64(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dtype: DType::I64 }
    }

    /// Number of elements; [`Manifest::check`] has seen to it that it is a number.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Element types that cross a graph's border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DType {
    F32,
    I64,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I64 => "i64",
        })
    }
}
