//! One process at a time in a folder: two that make the same corpus or train the same run would write over each other's files.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// A folder that is held: until this is dropped, or the process ends, however it ends.
#[derive(Debug)]
pub struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone would leave it to a synthesiser that is just being started, which has the file too for a moment.
        let _ = self.0.unlock();
    }
}

/// Holds `folder`, which must exist.
///
/// # Errors
/// Another process holds it, or the file cannot be made.
pub fn hold(folder: &Path) -> io::Result<Held> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Held(file)),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::other("another process is at work in this folder: wait for it, or give another --output"))
        }
        // A file system without locks (some network shares): as it was before there were any.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(Held(file)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_turned_away_until_the_first_has_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = hold(folder.path()).expect("nobody else is there");
        let second = hold(folder.path()).expect_err("it is held");
        assert!(second.to_string().contains("another process"), "{second}");
        drop(first);
        hold(folder.path()).expect("the first has gone");
    }
}
