//! One process at a time in a folder: two that make the same corpus or train the same run would write over each other's files.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Holds `folder` (it must exist) until the file is dropped or the process ends, however it ends.
///
/// # Errors
/// Another process holds it, or the file cannot be made.
pub fn hold(folder: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::other("another process is at work in this folder: wait for it, or give another --output"))
        }
        // A file system without locks (some network shares): as it was before there were any.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
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
