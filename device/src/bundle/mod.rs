//! The bundle: a folder of ONNX graphs, a vocabulary and `bundle.toml`, the only thing that passes
//! from the exporter to the runtime.
//!
//! ```text
//! bundle.toml      the manifest: see `Manifest`; written by `BundleWriter`, checked by `Bundle::open`
//! vocabulary.txt   see `crate::vocabulary`; or tokenizer.json, of an imported trunk
//! tokenizer.onnx   audio f32 [1, chunk] → units i64 [1, n]
//! lm.onnx          token i64 [1], units i64 [1, G], is_group f32 [1], position i64 [1],
//!                  cache.* f32 [KV, C, dh] → logits f32 [1, V], hidden f32 [1, d], cache.*.new f32 [KV, 1, dh]
//! head.onnx        hidden f32 [1, d] → unit_logits f32 [1, G, k+1]
//! decoder.onnx     units i64 [1, n] → log_magnitude f32 [1, 4n, bins], phase f32 [1, 4n, bins]
//!                  or, from a network that makes samples itself, → audio f32 [1, n · samples per unit]
//! *.f32            initial states that are not zeros (optional, one file a stage)
//! unit_distances.u8  k · k bytes, see `Manifest::unit_distances` (optional)
//! ```
//! A bundle may hold a part of an agent, such as an imported tokenizer alone; lm, head and vocabulary go together, but for a trunk that
//! reads text only: an lm without head and without the inputs `units` and `is_group`.
//! Every `state.X` input comes back as `state.X.next`, same shape; every `cache.X` input has the output
//! `cache.X.new` with its new row. What does not fit together does not open, and the error names it.

mod check;
mod error;
mod manifest;
mod writer;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use error::BundleError;
pub use manifest::{DType, FileEntry, Layout, Manifest, StageEntry, StageName, Stages, TensorEntry};
pub use writer::BundleWriter;

use crate::vocabulary::Vocabulary;

/// The version of the bundle format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The name of the manifest in the folder.
pub const MANIFEST: &str = "bundle.toml";
/// Most units by which a tokenizer's units may be late beyond its chunk: so much silence is fed at the end of a question.
pub const TOKENIZER_MAX_DELAY: usize = 256;
/// Most units by which a decoder's frames may be late: so many pad units are decoded at the end of every answer.
pub const DECODER_MAX_DELAY: usize = 64;

/// An opened bundle: every file was there, had its size and hash, and the shapes fit together.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    vocabulary: Vocabulary,
}

impl Bundle {
    /// Opens and checks a bundle: version, sizes, SHA-256 of every file, vocabulary, special tokens, and
    /// the agreement of k, G, vocabulary and hidden width between the declared shapes. The graphs
    /// themselves are compared with their declaration when an engine loads them.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        if !dir.is_dir() {
            return Err(BundleError::NoFolder { dir: dir.to_owned() });
        }
        if !path.is_file() {
            return Err(BundleError::NoManifest { dir: dir.to_owned() });
        }
        let text = std::fs::read_to_string(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
        let manifest = Manifest::parse(&text)?;
        manifest.check()?;
        for entry in manifest.files() {
            verify_file(dir, entry)?;
        }
        let mut vocabulary = Vocabulary::default();
        if let Some(entry) = &manifest.vocabulary {
            let path = dir.join(&entry.file);
            let text = std::fs::read_to_string(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
            if is_json(entry) {
                manifest.check_tokenizer_json(&entry.file, &text)?;
            } else {
                vocabulary = Vocabulary::parse(&text).map_err(|source| BundleError::Vocabulary { file: entry.file.clone(), source })?;
                manifest.check_vocabulary(&vocabulary)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), manifest, vocabulary })
    }

    /// Where the bundle lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `bundle.toml` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The text tokens; none in a bundle without a language model, or whose text is that of a `tokenizer.json`.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The `tokenizer.json` of an imported trunk, if the text is its.
    pub fn text_tokenizer(&self) -> Option<PathBuf> {
        self.manifest.vocabulary.as_ref().filter(|entry| is_json(entry)).map(|entry| self.dir.join(&entry.file))
    }

    /// How unlike the units are, `[k, k]` in 255ths, where the bundle says it.
    pub fn unit_distances(&self) -> Result<Option<Vec<u8>>, BundleError> {
        let Some(entry) = &self.manifest.unit_distances else { return Ok(None) };
        let path = self.dir.join(&entry.file);
        std::fs::read(&path).map(Some).map_err(|source| BundleError::Read { path, source })
    }

    /// The path of a stage's graph.
    ///
    /// # Errors
    /// [`BundleError::NoStage`] when the bundle does not hold it.
    pub fn graph_path(&self, stage: StageName) -> Result<PathBuf, BundleError> {
        Ok(self.dir.join(&self.manifest.stage.require(stage)?.graph.file))
    }

    /// The initial values of a stage's `state.*` inputs in the order of the declaration: zeros, unless the
    /// stage has a file of them (little-endian f32, one state after the other).
    pub fn initial_states(&self, stage: StageName) -> Result<Vec<(String, Vec<f32>)>, BundleError> {
        let entry = self.manifest.stage.require(stage)?;
        let states = entry.inputs.iter().filter(|t| t.name.starts_with("state."));
        let Some(initial) = &entry.initial else {
            return Ok(states.map(|t| (t.name.clone(), vec![0.0; t.elements()])).collect());
        };
        let path = self.dir.join(&initial.file);
        let bytes = std::fs::read(&path).map_err(|source| BundleError::Read { path, source })?;
        let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(states.map(|t| (t.name.clone(), values.by_ref().take(t.elements()).collect())).collect())
    }
}

/// Is the vocabulary an imported `tokenizer.json`?
fn is_json(entry: &FileEntry) -> bool {
    entry.file.ends_with(".json")
}

/// Size first (cheap, and it names a truncated copy), then the hash.
fn verify_file(dir: &Path, entry: &FileEntry) -> Result<(), BundleError> {
    let path = dir.join(&entry.file);
    let bytes = match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => meta.len(),
        _ => return Err(BundleError::MissingFile { file: entry.file.clone(), dir: dir.to_owned() }),
    };
    if bytes != entry.bytes {
        return Err(BundleError::FileSize { file: entry.file.clone(), expected: entry.bytes, found: bytes });
    }
    let found = sha256_file(&path).map_err(|source| BundleError::Read { path, source })?;
    if !found.eq_ignore_ascii_case(&entry.sha256) {
        return Err(BundleError::Hash { file: entry.file.clone(), expected: entry.sha256.clone(), found });
    }
    Ok(())
}

/// The SHA-256 of a file in lower-case hexadecimal; reads it piece by piece.
pub fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Bytes in lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
