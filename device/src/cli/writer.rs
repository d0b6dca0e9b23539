//! Output that neither waits nor fails, for what must go on whoever reads it: a reader that sleeps or a disk that is full costs the output,
//! and not the conversation.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Pieces that wait to be written: half a minute of a conversation in JSON.
const WAITING: usize = 512;
/// At the end, what still waits is given so long.
const LAST: Duration = Duration::from_secs(2);

/// What the thread tells of itself.
#[derive(Default)]
struct Progress {
    /// Pieces that are on their way, and that did not arrive.
    waiting: AtomicUsize,
    lost: AtomicUsize,
    /// The last one did not; the reader has gone for good.
    failing: AtomicBool,
    gone: AtomicBool,
}

/// A thread that writes. Dropped, it waits until everything is written, two seconds at most.
pub struct Writer {
    pieces: Option<SyncSender<Vec<u8>>>,
    progress: Arc<Progress>,
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Writer {
    pub fn new(out: impl Write + Send + 'static) -> Self {
        let (pieces, work) = sync_channel(WAITING);
        let (ending, ended) = sync_channel(0);
        let progress = Arc::new(Progress::default());
        let shared = progress.clone();
        std::thread::spawn(move || {
            write_all(out, &work, &shared);
            drop::<SyncSender<()>>(ending);
        });
        Self { pieces: Some(pieces), progress, ended }
    }

    /// Returns at once; what does not find room is lost, and counted.
    pub fn write(&self, piece: Vec<u8>) {
        self.progress.waiting.fetch_add(1, AcqRel);
        if self.pieces.as_ref().is_none_or(|pieces| pieces.try_send(piece).is_err()) {
            self.progress.waiting.fetch_sub(1, AcqRel);
            self.progress.lost.fetch_add(1, AcqRel);
        }
    }

    /// Has the reader gone for good, as that of a pipe may?
    pub fn gone(&self) -> bool {
        self.progress.gone.load(Acquire)
    }

    /// How many pieces were lost since this was last asked; nothing as long as it would be lost too.
    pub fn lost(&self) -> usize {
        let Progress { waiting, lost, failing, gone } = &*self.progress;
        if waiting.load(Acquire) > 0 || failing.load(Acquire) || gone.load(Acquire) { 0 } else { lost.swap(0, AcqRel) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pieces = None;
        // Nothing is ever sent: this returns when the thread has ended, or when it is given up with what it has.
        let _ = self.ended.recv_timeout(LAST);
    }
}

fn write_all(mut out: impl Write, work: &Receiver<Vec<u8>>, progress: &Progress) {
    let mut torn = false;
    for mut piece in work {
        if torn {
            // A line that was written in part must not spoil the next one.
            piece.insert(0, b'\n');
        }
        let mut written = 0;
        let done = write(&mut out, &piece, &mut written);
        if let Err(error) = &done {
            progress.lost.fetch_add(1, AcqRel);
            if error.kind() == ErrorKind::BrokenPipe {
                progress.gone.store(true, Release);
            }
        }
        torn = done.is_err() && (written > 0 || torn);
        progress.failing.store(done.is_err(), Release);
        progress.waiting.fetch_sub(1, AcqRel);
    }
}

fn write(out: &mut impl Write, piece: &[u8], written: &mut usize) -> io::Result<()> {
    while *written < piece.len() {
        match out.write(&piece[*written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => *written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever gave us this output made it so that it does not wait; this thread may.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    /// A disk of so many bytes, until there is room again.
    #[derive(Clone, Default)]
    struct Disk {
        room: Arc<AtomicUsize>,
        text: Arc<std::sync::Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room.load(Acquire));
            if n == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room.fetch_sub(n, AcqRel);
            self.text.lock().expect("nobody panicked").extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn until(what: &str, ready: impl Fn() -> bool) {
        let started = Instant::now();
        while !ready() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_find_no_room() {
        let disk = Disk::default();
        disk.room.store(9, Release);
        let writer = Writer::new(disk.clone());
        for line in ["first\n", "second\n", "third\n"] {
            writer.write(line.into());
        }
        until("all are tried", || writer.progress.waiting.load(Acquire) == 0);
        assert_eq!((writer.lost(), writer.gone()), (0, false), "there is nobody to tell it to");
        disk.room.store(100, Release);
        writer.write(b"fourth\n".to_vec());
        until("it is told", || writer.lost() == 2);
        drop(writer);
        let text = String::from_utf8(disk.text.lock().expect("nobody panicked").clone()).expect("text");
        assert_eq!(text, "first\nsec\nfourth\n", "every line but the torn one is whole");
        let full = Writer::new(OpenOptions::new().write(true).open("/dev/full").expect("Linux has it"));
        full.write(b"nothing comes of it\n".to_vec());
        until("it is tried", || full.progress.lost.load(Acquire) == 1);
        assert!(!full.gone());
    }

    #[test]
    fn a_reader_that_sleeps_is_not_waited_for() {
        const LINES: usize = 5000;
        let (pipe, reader) = UnixStream::pair().expect("two ends");
        let writer = Writer::new(pipe);
        let started = Instant::now();
        for n in 0..LINES {
            writer.write(format!("{n:01000}\n").into());
        }
        assert!(started.elapsed() < Duration::from_secs(2), "nothing waits");
        assert_eq!(writer.lost(), 0, "not as long as nobody reads");
        let reading = std::thread::spawn(move || BufReader::new(reader).lines().map(|line| line.expect("text")).collect::<Vec<_>>());
        until("all are read", || writer.progress.waiting.load(Acquire) == 0);
        let lost = writer.lost();
        drop(writer);
        let lines = reading.join().expect("it does not panic");
        assert!(lost > 0 && lines.len() + lost == LINES, "{} were read, {lost} lost", lines.len());
        assert!(lines.iter().all(|line| line.len() == 1000) && lines.is_sorted(), "whole, and in their order");
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (pipe, reader) = UnixStream::pair().expect("two ends");
        let writer = Writer::new(pipe);
        (0..WAITING).for_each(|_| writer.write(vec![b'x'; 10_000]));
        let started = Instant::now();
        drop(writer);
        assert!((LAST..LAST * 10).contains(&started.elapsed()));
        let (pipe, closed) = UnixStream::pair().expect("two ends");
        drop((reader, closed));
        let writer = Writer::new(pipe);
        writer.write(b"for nobody\n".to_vec());
        until("the reader's end is seen", || writer.gone());
    }
}
