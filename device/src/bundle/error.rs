//! Why a bundle was refused.

use std::path::PathBuf;

use super::{FORMAT_VERSION, StageName};
use crate::vocabulary::VocabularyError;

/// Why a bundle does not open, or could not be written. All but the input/output kinds mean that the
/// bundle is damaged or was made by another version: copy it again or export it again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The path is not a folder: check `--bundle`.
    #[error("there is no bundle folder at {}", dir.display())]
    NoFolder { dir: PathBuf },
    /// The folder is not a bundle: check `--bundle`.
    #[error("{} has no bundle.toml: it is not a bundle", dir.display())]
    NoManifest { dir: PathBuf },
    /// A file could not be read: check permissions and the disk.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file could not be written: check that the disk has room and the folder can be written to.
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// `bundle.toml` is not what this program writes.
    #[error("bundle.toml cannot be read: {message}")]
    Parse { message: String },
    /// Made by another version of the exporter: export again, or use the matching program.
    #[error("bundle.toml has format_version {found}, this program reads {FORMAT_VERSION}")]
    Version { found: u32 },
    /// A file is not in the folder: the copy is incomplete.
    #[error("the file {file} is missing in {}", dir.display())]
    MissingFile { file: String, dir: PathBuf },
    /// A file has another size: the copy was cut off.
    #[error("{file} has {found} bytes, bundle.toml says {expected}")]
    FileSize { file: String, expected: u64, found: u64 },
    /// A file is not the one that was exported: the copy is damaged.
    #[error("{file} is damaged: its SHA-256 is {found}, bundle.toml says {expected}")]
    Hash { file: String, expected: String, found: String },
    /// A file name in the manifest leads out of the folder.
    #[error("bundle.toml names the file `{file}`, which is not a plain file name")]
    FileName { file: String },
    /// A number in the manifest does not fit.
    #[error("bundle.toml has {field} = {found}, and needs {expected}")]
    Value { field: String, found: String, expected: String },
    /// The bundle holds a part of an agent: export a whole one, or use it for what it holds.
    #[error("the bundle has no {stage}: it is a part, not a whole agent")]
    NoStage { stage: StageName },
    /// A bundle without any stage, or with half a language model.
    #[error("the stages do not make a bundle: {message}")]
    Stages { message: String },
    /// A stage lacks an input or an output of the contract.
    #[error("stage {stage} has no {what} `{name}`")]
    MissingTensor { stage: String, what: &'static str, name: String },
    /// An input or output has another shape or type than k, G, the vocabulary or its partner ask for.
    #[error("stage {stage}: `{name}` is {found}, and needs {expected}")]
    Tensor { stage: String, name: String, expected: String, found: String },
    /// `vocabulary.txt` is not well formed.
    #[error("{file}: {source}")]
    Vocabulary { file: String, source: VocabularyError },
    /// The language model's `tokenizer.json` is damaged, or of a kind that is not known: export again.
    #[error("{file}: {message}")]
    TextTokenizer { file: String, message: String },
    /// The manifest and the vocabulary number a special token differently.
    #[error("special token {token} is {found:?} in bundle.toml and {expected} in the vocabulary")]
    SpecialToken { token: String, expected: u32, found: Option<u32> },
    /// The vocabulary and the language model differ in size.
    #[error("the vocabulary has {words} tokens, the language model's logits have {logits}")]
    VocabularySize { words: usize, logits: usize },
}
