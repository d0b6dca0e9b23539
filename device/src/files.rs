//! Files that outlive the program: written beside their place, and folders that one program at a time may write.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `out/state.json` and `.partial` → `out/state.json.partial`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// What [`write_beside`] puts behind a name until the file is complete.
pub const PARTIAL: &str = ".partial";

/// Who may read a file: its owner alone, or everybody.
pub const PRIVATE: u32 = 0o600;
pub const PUBLIC: u32 = 0o644;

/// Writes a file under another name ([`PARTIAL`]), brings it to the disk, and renames it. Nothing stays behind where that fails.
pub fn write_beside(path: &Path, mode: u32, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let partial = beside(path, PARTIAL);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
    let done = write(&file).and_then(|()| file.sync_data()).and_then(|()| std::fs::rename(&partial, path));
    if done.is_err() {
        // The reason is what counts, not that this failed too.
        let _ = std::fs::remove_file(&partial);
    }
    done
}

/// A file that is locked until this is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Makes the file where it is missing; none if another program has it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).append(true).mode(PRIVATE).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it to a program that is just being started, which has the file too for a moment.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("a.json");
        write_beside(&path, PRIVATE, |mut file| file.write_all(b"one")).expect("written");
        let failed = write_beside(&path, PRIVATE, |mut file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(failed.expect_err("the disk is full").kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).expect("there"), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "nothing beside it");
    }

    #[test]
    fn a_lock_is_given_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("lock");
        let first = Lock::take(&path).expect("writable").expect("free");
        assert!(Lock::take(&path).expect("writable").is_none());
        drop(first);
        assert!(Lock::take(&path).expect("writable").is_some());
    }
}
