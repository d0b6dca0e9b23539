//! What a folder holds, and what a file is known by.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The files of a folder whose names end in `.extension`, in order of their names.
///
/// # Errors
/// A folder that cannot be read: named.
pub fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("opening the folder {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)));
    paths.sort();
    Ok(paths)
}

/// Sixty-four hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
