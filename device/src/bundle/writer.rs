//! Writes a bundle: beside its place, then renamed, so that a half-written bundle is never found.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Bundle, BundleError, FORMAT_VERSION, MANIFEST, Manifest, sha256_file};
use crate::files::{PARTIAL, beside};

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
        // What was to be replaced when a program was killed in the middle of it.
        let old = beside(output, ".old");
        if !output.exists() && old.join(MANIFEST).exists() {
            std::fs::rename(&old, output).map_err(|e| write(output, e))?;
        }
        if output.exists() && !output.join(MANIFEST).exists() {
            let empty = std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                let e = io::Error::new(io::ErrorKind::AlreadyExists, "it is there and is not a bundle");
                return Err(write(output, e));
            }
        }
        let partial = beside(output, PARTIAL);
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
        let bundle = Bundle::open(&self.partial)?;
        let write = |source| BundleError::Write { path: self.output.clone(), source };
        flush(&self.partial).map_err(write)?;
        replace(&self.partial, &self.output, exchange).map_err(write)?;
        let above = self.output.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above).and_then(|folder| folder.sync_all()).map_err(write)?;
        // It was read with all checks a moment ago.
        Ok(Bundle { dir: self.output.clone(), ..bundle })
    }
}

impl Drop for BundleWriter {
    fn drop(&mut self) {
        // A half-written bundle, or the one that was replaced. Nothing can be done about a failure here; the next `create` removes the
        // folder again.
        let _ = std::fs::remove_dir_all(&self.partial);
    }
}

/// Waits until the files of a folder are on the disk: a bundle must not come to its place before them.
fn flush(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(folder)?.sync_all()
}

/// Moves `new` to the place of `output`. What was there lies at `new` afterwards, or is gone: at every moment there is one of them at
/// `output`, where folders can be exchanged, and else at least beside it. After a failure `output` is as it was.
fn replace(new: &Path, output: &Path, exchange: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    if !output.exists() {
        return std::fs::rename(new, output);
    }
    if exchange(new, output).is_ok() {
        return Ok(());
    }
    let old = beside(output, ".old");
    if old.exists() {
        std::fs::remove_dir_all(&old)?;
    }
    // A program that is killed between the two leaves none at `output`: `BundleWriter::create` brings it back.
    std::fs::rename(output, &old)?;
    if let Err(error) = std::fs::rename(new, output) {
        std::fs::rename(&old, output)?;
        return Err(error);
    }
    std::fs::remove_dir_all(&old)
}

/// Makes two folders change places in one step. Not every file system can.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    let (a, b) = (CString::new(a.as_os_str().as_bytes())?, CString::new(b.as_os_str().as_bytes())?);
    // The system call and not the function of the C library: musl has none. SAFETY: both are strings that end in 0 and live on.
    let done = unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one file that names it.
    fn folder(path: &Path, name: &str) {
        std::fs::create_dir(path).expect("made");
        std::fs::write(path.join(MANIFEST), name).expect("written");
    }

    fn name(path: &Path) -> String {
        std::fs::read_to_string(path.join(MANIFEST)).unwrap_or_default()
    }

    #[test]
    fn the_new_takes_the_place_of_the_old_whatever_the_file_system_can() {
        fn unsupported(_: &Path, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        type Way = fn(&Path, &Path) -> io::Result<()>;
        let ways: [Way; 2] = [exchange, unsupported];
        for way in ways {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (new, output) = (dir.path().join("nano.partial"), dir.path().join("nano"));
            folder(&new, "first");
            replace(&new, &output, way).expect("nothing is there");
            folder(&new, "second");
            replace(&new, &output, way).expect("replaces");
            assert_eq!((name(&output), dir.path().join("nano.old").exists()), ("second".to_owned(), false));
        }
    }

    #[test]
    fn a_failure_leaves_the_old_in_its_place() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let output = dir.path().join("nano");
        folder(&output, "old");
        // What should come to its place is not there.
        replace(&dir.path().join("nano.partial"), &output, |_, _| Err(io::ErrorKind::Unsupported.into())).expect_err("nothing is there");
        assert_eq!(name(&output), "old");
    }

    #[test]
    fn what_a_killed_program_left_beside_comes_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let output = dir.path().join("nano");
        folder(&dir.path().join("nano.old"), "old");
        folder(&dir.path().join("nano.partial"), "new");
        drop(BundleWriter::create(&output).expect("begins"));
        assert_eq!(name(&output), "old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn there_is_a_bundle_at_every_moment() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let dir = tempfile::tempdir().expect("a temporary folder");
        let (new, output) = (dir.path().join("nano.partial"), dir.path().join("nano"));
        folder(&output, "0");
        folder(&new, "1");
        if exchange(&new, &output).is_err() {
            return; // a file system that cannot
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut missing = 0;
                while !done.load(Ordering::Relaxed) {
                    missing += usize::from(std::fs::symlink_metadata(&output).is_err());
                }
                missing
            });
            for _ in 0..2000 {
                replace(&new, &output, exchange).expect("exchanges");
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(looks.join().expect("no panic"), 0, "times that nothing was there");
        });
    }
}
