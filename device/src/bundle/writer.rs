//! Writes a bundle: beside its place, then renamed, so that a half-written bundle is never found.

use std::path::{Path, PathBuf};

use super::{Bundle, BundleError, FORMAT_VERSION, MANIFEST, Manifest, sha256_file};

/// A bundle in the making, in the folder `OUTPUT.partial`. Dropped without [`BundleWriter::finish`], it
/// leaves nothing behind.
///
/// ```no_run
/// # fn export(manifest: sa_device::bundle::Manifest) -> Result<(), sa_device::bundle::BundleError> {
/// use sa_device::bundle::BundleWriter;
/// let writer = BundleWriter::create("out/nano-int8".as_ref())?;
/// writer.add("vocabulary.txt", b"<pad>\n")?;
/// // … the graphs, either by `add` or written to `writer.path("lm.onnx")` …
/// let bundle = writer.finish(manifest)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct BundleWriter {
    output: PathBuf,
    partial: PathBuf,
}

impl BundleWriter {
    /// Begins a bundle that will lie at `output`. A folder that is there already is replaced at the end, if
    /// it is empty or a bundle; anything else is refused now. The folder above must exist.
    pub fn create(output: &Path) -> Result<Self, BundleError> {
        let write = |path: &Path, source| BundleError::Write { path: path.to_owned(), source };
        if output.exists() && !output.join(MANIFEST).exists() {
            let empty = std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                let e = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it is there and is not a bundle");
                return Err(write(output, e));
            }
        }
        let partial = beside(output, "partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(|e| write(&partial, e))?;
        }
        std::fs::create_dir(&partial).map_err(|e| write(&partial, e))?;
        Ok(Self { output: output.to_owned(), partial })
    }

    /// Where to write a file of the bundle.
    pub fn path(&self, file: &str) -> PathBuf {
        self.partial.join(file)
    }

    /// Writes a file of the bundle.
    pub fn add(&self, file: &str, content: &[u8]) -> Result<(), BundleError> {
        let path = self.path(file);
        std::fs::write(&path, content).map_err(|source| BundleError::Write { path, source })
    }

    /// Writes the initial values of a stage's states, in the order of its `state.*` inputs.
    pub fn add_states(&self, file: &str, values: impl IntoIterator<Item = f32>) -> Result<(), BundleError> {
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.add(file, &bytes)
    }

    /// Sets format version, sizes and hashes, writes `bundle.toml`, opens the bundle with all checks, and only
    /// then moves it to its place.
    pub fn finish(self, mut manifest: Manifest) -> Result<Bundle, BundleError> {
        manifest.format_version = FORMAT_VERSION;
        for entry in manifest.files_mut() {
            let path = self.partial.join(&entry.file);
            let missing = || BundleError::MissingFile { file: entry.file.clone(), dir: self.partial.clone() };
            entry.bytes = std::fs::metadata(&path).map_err(|_| missing())?.len();
            entry.sha256 = sha256_file(&path).map_err(|source| BundleError::Read { path, source })?;
        }
        let text = toml::to_string(&manifest).map_err(|e| BundleError::Parse { message: e.to_string() })?;
        self.add(MANIFEST, text.as_bytes())?;
        Bundle::open(&self.partial)?;
        let old = beside(&self.output, "old");
        let write = |source| BundleError::Write { path: self.output.clone(), source };
        if self.output.exists() {
            if old.exists() {
                std::fs::remove_dir_all(&old).map_err(write)?;
            }
            std::fs::rename(&self.output, &old).map_err(write)?;
        }
        std::fs::rename(&self.partial, &self.output).map_err(write)?;
        if old.exists() {
            std::fs::remove_dir_all(&old).map_err(write)?;
        }
        Bundle::open(&self.output)
    }
}

impl Drop for BundleWriter {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the next `create` removes the folder again.
        let _ = std::fs::remove_dir_all(&self.partial);
    }
}

/// `out/nano` → `out/nano.partial`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}
