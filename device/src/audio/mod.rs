//! Sound in and out: devices behind one trait, WAV files.
//!
//! Inside the program audio is 16 kHz, mono, f32 in -1..1. A device gives questions as streams of short pieces and takes
//! answers as they are made; the pipeline cannot tell whether they come from files or from a microphone.
//! [`live`]: microphone and loudspeaker at once.

mod device;
pub mod live;
mod read;
mod write;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::Instant;

pub use device::{Pace, WavDevice};
pub use read::read_wav;
pub use write::WavSink;

/// Samples per second inside the program.
pub const SAMPLE_RATE: u32 = 16_000;

/// Why sound could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// Check the path.
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    /// The file has no bytes.
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
    /// Convert it to WAV first.
    #[error("{} is not a WAV file that can be read: {message}", path.display())]
    NotWav { path: PathBuf, message: String },
    /// The header promises more than the file holds: it was cut off, or is still being written.
    #[error("{} is cut off: its header promises {expected} bytes of audio, it has {found}", path.display())]
    Truncated { path: PathBuf, expected: u64, found: u64 },
    /// The header is fine, and there are no samples.
    #[error("{} holds no audio", path.display())]
    NoSamples { path: PathBuf },
    /// Cut the file: a turn is one question.
    #[error("{} lasts {seconds:.0} s; a question may last at most {limit:.0} s", path.display())]
    TooLong { path: PathBuf, seconds: f64, limit: f64 },
    /// Convert the file to a usual rate.
    #[error("{} has {rate} samples a second; 2000 to 768000 can be converted", path.display())]
    Rate { path: PathBuf, rate: u32 },
    /// Make the folder first.
    #[error("the output folder {} is not there", dir.display())]
    NoFolder { dir: PathBuf },
    /// The output would overwrite a question.
    #[error("{} is an input and cannot be the output", path.display())]
    OutputIsInput { path: PathBuf },
    /// The disk is full or the folder cannot be written to. Nothing half-written stays behind.
    #[error("cannot write {}: {message}", path.display())]
    Write { path: PathBuf, message: String },
    /// See the message: it says what there is, and which flag to use.
    #[error("{message}")]
    Device { message: String },
    /// The capturing thread ended without a word; a defect.
    #[error("the audio device stopped")]
    Stopped,
}

/// A piece of a question, as the device gives it.
#[derive(Debug)]
pub enum Captured {
    /// Samples at 16 kHz, with the time at which the last of them was captured, where the device knows it.
    Samples(Vec<f32>, Option<Instant>),
    /// The question is over.
    End,
    /// The device failed in the middle; the question is dropped.
    Failed(AudioError),
}

/// A question that is being captured.
#[derive(Debug)]
pub struct Capture {
    /// Where it comes from, for messages.
    pub source: String,
    /// Its pieces, then [`Captured::End`].
    pub pieces: Receiver<Captured>,
}

/// A microphone and a loudspeaker, or what stands for them.
pub trait AudioDevice {
    /// Waits for the next question and begins to capture it; `None` when there will be no more.
    fn capture(&mut self) -> Result<Option<Capture>, AudioError>;

    /// Plays the next samples of the answer.
    fn play(&mut self, samples: &[f32]) -> Result<(), AudioError>;

    /// The answer to the last question is complete; returns the file that holds it, if there is one.
    fn finish(&mut self) -> Result<Option<PathBuf>, AudioError>;

    /// The answer to the last question is not to be kept.
    fn discard(&mut self);
}

/// Is the folder of an output there? To be asked before the work begins.
pub fn check_folder(output: &Path) -> Result<(), AudioError> {
    let dir = match output.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => Path::new("/"),
    };
    if dir.is_dir() { Ok(()) } else { Err(AudioError::NoFolder { dir: dir.to_owned() }) }
}
