//! The field log: what was heard, decided and said, turn by turn, for whoever has to find out what went wrong.
//!
//! ```text
//! DIR/.sa-field-log            marks the folder as a log, and is locked while a program writes
//! DIR/00003-000017.jsonl       session 3, turn 17: one line, see `Record`; its presence makes the turn complete
//! DIR/00003-000017.wav         the question as it was heard, 16 kHz, 16 bit; absent where only units are kept
//! ```
//! - [`FieldLog`] writes: [`FieldLog::tap`] before a turn, [`FieldLog::turn`] after it; live, [`FieldLog::happening`]. The disk is written
//!   by a thread of its own, and nothing that happens to it disturbs the conversation.
//! - [`read`] reads a log, [`replay`] puts its turns through the pipeline again and compares the decisions.
//!
//! Files are written beside their place and renamed, readable by their owner alone. The oldest turns are removed when the log is
//! larger than its limit; a disk that is full costs the newest turn, never an older one.

mod record;
pub mod replay;
mod store;
mod tap;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

pub use record::{BundleId, Logged, LoggedTurn};
pub use store::read;
pub(crate) use tap::round;

use crate::audio::Capture;
use crate::bundle::{Bundle, hexadecimal};
use crate::conversation::Happening;
use crate::pipeline::{Settings, Turn};
use record::{Live, Record};
use store::Store;

/// The version of the records.
pub const FORMAT_VERSION: u32 = 1;
/// Turns that wait for the disk; more are left out and counted.
const WAITING: usize = 8;

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// The folder or a file of it cannot be read or written: check the path and the permissions.
    #[error("cannot use the field log {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Turns would be written between other files, and old ones removed: name a folder of its own.
    #[error("{} holds other files and is no field log; give a new or an empty folder", dir.display())]
    Foreign { dir: PathBuf },
    /// Each program needs a log of its own.
    #[error("another program is writing the field log {}", dir.display())]
    Busy { dir: PathBuf },
    /// There is nothing to replay.
    #[error("{} is no field log", dir.display())]
    NoLog { dir: PathBuf },
    /// The line cannot be read: the file was changed, or is of another program. Remove it or put it right.
    #[error("{}: {message}", path.display())]
    Record { path: PathBuf, message: String },
    /// Replay it with the program that wrote it, or a later one.
    #[error("{} has version {found}, this program reads up to {FORMAT_VERSION}", path.display())]
    Version { path: PathBuf, found: u64 },
}

/// What a log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The size of the log in bytes; the newest turn is kept whatever its size.
    pub bytes: u64,
    /// False: units only, no audio.
    pub audio: bool,
}

/// A log that is being written.
pub struct FieldLog {
    keep: Keep,
    session: u32,
    bundle: BundleId,
    settings: Settings,
    question: Option<Arc<Mutex<Vec<i16>>>>,
    jobs: Option<SyncSender<Job>>,
    disk: Option<JoinHandle<()>>,
    problems: Receiver<String>,
    left_out: u64,
}

/// A turn on its way to the disk.
struct Job {
    name: String,
    line: Vec<u8>,
    audio: Option<Vec<i16>>,
}

impl FieldLog {
    /// Opens or makes a log for conversations with this bundle and these settings.
    ///
    /// # Errors
    /// When the folder cannot be made, is no log, or is being written by another program.
    pub fn open(dir: &Path, keep: Keep, bundle: &Bundle, settings: &Settings) -> Result<Self, FieldError> {
        let mut store = Store::open(dir, keep.bytes)?;
        let session = store.session();
        let (jobs, work) = sync_channel::<Job>(WAITING);
        let (tell, problems) = sync_channel(WAITING);
        let disk = std::thread::spawn(move || {
            let mut failing = false;
            for job in work {
                let done = store.add(&job.name, &job.line, job.audio.as_deref());
                if let (Err(error), false) = (&done, failing) {
                    // Told once, not every turn; nobody may be asking.
                    let _ = tell.try_send(format!("{error}; the conversation goes on without its log until there is room"));
                }
                failing = done.is_err();
            }
        });
        Ok(Self {
            keep,
            session,
            bundle: BundleId::of(bundle),
            settings: settings.clone(),
            question: None,
            jobs: Some(jobs),
            disk: Some(disk),
            problems,
            left_out: 0,
        })
    }

    /// Keeps what is captured, and rounds it to the 16 bits of the log on its way, so that a replay hears the very same samples.
    pub fn tap(&mut self, capture: Capture) -> Capture {
        self.question = None;
        if !self.keep.audio {
            return capture;
        }
        let (capture, samples) = tap::tap(capture);
        self.question = Some(samples);
        capture
    }

    /// A turn is over whose question was tapped. Returns at once.
    pub fn turn(&mut self, turn: &Turn) {
        let audio = self.question.take().map(|samples| std::mem::take(&mut *samples.lock().unwrap_or_else(|e| e.into_inner())));
        self.write(turn, audio, Live::default());
    }

    /// In a live conversation: keeps the turns that are over, those that failed or were thrown away too. Returns at once.
    pub fn happening(&mut self, happening: &Happening) {
        match happening {
            Happening::Settled { turn, waited_ms, question } => {
                self.write(turn, self.kept(question), Live { waited_ms: Some(waited_ms), abandoned: false });
            }
            Happening::Failed { turn, question } => self.write(turn, self.kept(question), Live::default()),
            Happening::Abandoned { turn, question } => self.write(turn, self.kept(question), Live { waited_ms: None, abandoned: true }),
            _ => {}
        }
    }

    /// The samples of a question, where they are wanted.
    fn kept(&self, question: &[i16]) -> Option<Vec<i16>> {
        self.keep.audio.then(|| question.to_vec())
    }

    /// `audio` are the samples of the question, as the pipeline heard them.
    fn write(&mut self, turn: &Turn, audio: Option<Vec<i16>>, live: Live) {
        let audio = audio.filter(|samples| !samples.is_empty());
        let name = format!("{:05}-{:06}", self.session, turn.turn_id);
        let record = Record {
            version: FORMAT_VERSION,
            time: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64()),
            program: concat!("sa-agent ", env!("CARGO_PKG_VERSION")),
            bundle: &self.bundle,
            settings: &self.settings,
            context: &turn.context,
            audio: audio.as_ref().map(|_| format!("{name}.wav")),
            live,
            turn,
        };
        match serde_json::to_vec(&record) {
            Ok(mut line) => {
                line.push(b'\n');
                let sent = self.jobs.as_ref().map(|jobs| jobs.try_send(Job { name, line, audio }));
                if let Some(Err(TrySendError::Full(_))) = sent {
                    self.left_out += 1;
                }
            }
            // Only numbers that are not finite cannot be written; such a turn has no use.
            Err(_) => self.left_out += 1,
        }
    }

    /// What went wrong since the last time this was asked, for the user.
    pub fn problem(&mut self) -> Option<String> {
        if let Ok(problem) = self.problems.try_recv() {
            return Some(problem);
        }
        let left_out = std::mem::take(&mut self.left_out);
        (left_out > 0).then(|| format!("the field log's disk is too slow: {left_out} turns were left out"))
    }

    /// Waits until everything is on the disk, and returns what went wrong.
    pub fn close(mut self) -> Option<String> {
        self.finish();
        self.problem()
    }

    fn finish(&mut self) {
        self.jobs = None;
        if let Some(disk) = self.disk.take() {
            // It ends when the queue is empty; had it panicked, there would be nothing to do here.
            let _ = disk.join();
        }
    }
}

impl Drop for FieldLog {
    fn drop(&mut self) {
        self.finish();
    }
}

impl BundleId {
    /// The bundle's name, and the SHA-256 of its manifest, which names the hash of every file.
    pub fn of(bundle: &Bundle) -> Self {
        let manifest = toml::to_string(bundle.manifest()).unwrap_or_default();
        Self { name: bundle.manifest().name.clone(), sha256: hexadecimal(&Sha256::digest(manifest)) }
    }
}
