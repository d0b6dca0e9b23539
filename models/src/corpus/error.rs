//! What can go wrong while a corpus is made or read.

use std::path::{Path, PathBuf};

/// Errors of the corpus modules; each text says what was being done to what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written: check the path, its permissions and the free space.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A file's content is not what it should be; `line` counts from 1 (0: unknown). Correct that line.
    #[error("{path}:{line}: {message}")]
    Format { path: PathBuf, line: usize, message: String },
    /// A sound file could not be used.
    #[error("{path}: {message}")]
    Wav { path: PathBuf, message: String },
    /// A synthesiser is missing or failed; the text says what to install or what it printed.
    #[error("{0}")]
    Synthesiser(String),
    /// A folder does not hold what it should (another run's corpus, an unfinished one).
    #[error("{path}: {message}")]
    Corpus { path: PathBuf, message: String },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn corpus(path: &Path, message: impl Into<String>) -> Self {
        Self::Corpus { path: path.to_owned(), message: message.into() }
    }
}
