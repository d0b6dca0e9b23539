//! A Unix socket on which every reader gets all events from now on, one JSON object a line.
//!
//! There is no thread and no queue: what the kernel buffers for a reader (about 200 kB) is all that it may lag behind. A reader that is
//! further behind, or gone, is dropped.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Readers at the same time.
const READERS: usize = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Check the folder and its permissions; a path has at most about 90 characters.
    #[error("cannot make the socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Something else would be overwritten.
    #[error("{} is there already and is no socket", path.display())]
    Taken { path: PathBuf },
    /// Stop the other one, or choose another path.
    #[error("another program is listening on {}", path.display())]
    Busy { path: PathBuf },
}

/// The socket and its readers. Removed when dropped.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    readers: Vec<UnixStream>,
}

impl Socket {
    /// Makes the socket, for its owner alone. One that a program left behind is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::Taken { path: path.to_owned() }),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::Busy { path: path.to_owned() }),
            _ => {}
        }
        // Made in a folder that nobody else can enter, then moved: at no time could others connect.
        let folder = path.with_file_name(format!(".sa-{}", std::process::id()));
        let inside = folder.join("s");
        let make = || {
            DirBuilder::new().mode(0o700).create(&folder)?;
            let listener = UnixListener::bind(&inside)?;
            listener.set_nonblocking(true)?;
            fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
            fs::rename(&inside, path)?;
            Ok(listener)
        };
        let made = make();
        // Whether it was made or not, the folder has done its work.
        let _ = fs::remove_file(&inside);
        let _ = fs::remove_dir(&folder);
        Ok(Self { path: path.to_owned(), listener: made.map_err(failed)?, readers: Vec::new() })
    }

    /// Sends a line to all readers. Never waits.
    pub fn send(&mut self, line: &[u8]) {
        // Those who came since the last event waited in the kernel's queue, and have missed nothing.
        while let Ok((reader, _)) = self.listener.accept() {
            if self.readers.len() < READERS && reader.set_nonblocking(true).is_ok() {
                self.readers.push(reader);
            }
        }
        // A line that was sent in part cannot be taken back: such a reader is as lost as one that is gone.
        self.readers.retain_mut(|reader| matches!(reader.write(line), Ok(n) if n == line.len()));
    }

    /// Readers that were there at the last event.
    pub fn readers(&self) -> usize {
        self.readers.len()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    #[test]
    fn several_readers_get_every_line_and_a_slow_one_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("events");
        let mut socket = Socket::bind(&path).expect("room");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing else stays");
        socket.send(b"before anybody came\n");
        let mut readers: Vec<_> = (0..2).map(|_| BufReader::new(UnixStream::connect(&path).expect("listening"))).collect();
        let mut slow = UnixStream::connect(&path).expect("listening");
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        // Ten megabytes are more than the kernel keeps for one who does not read.
        for n in 0..10_000 {
            socket.send(&line);
            for reader in &mut readers {
                let mut text = String::new();
                reader.read_line(&mut text).expect("open");
                assert_eq!(text.len(), 1000, "line {n}");
            }
        }
        assert_eq!(socket.readers(), 2);
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).expect("closed after what was sent");
        assert!(rest.len() < 10_000_000 && rest.starts_with(&line));
        drop(readers);
        socket.send(&line);
        socket.send(&line);
        assert_eq!(socket.readers(), 0, "those who left are forgotten");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_place_that_is_taken_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("events");
        fs::write(&path, b"mine").expect("writable");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken { .. })));
        fs::remove_file(&path).expect("ours");
        let _socket = Socket::bind(&path).expect("room");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Busy { .. })));
        // As after a kill: the socket's file stays, and nobody listens.
        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).expect("room"));
        assert!(stale.exists() && Socket::bind(&stale).is_ok());
        let error = Socket::bind(&dir.path().join("none/events")).err().expect("no folder");
        assert!(error.to_string().contains("none/events"), "{error}");
    }
}
