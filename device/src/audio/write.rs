//! Writes a WAV beside its place and renames it when it is complete.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavSpec, WavWriter};

use super::{AudioError, SAMPLE_RATE, check_folder};
use crate::files::{PARTIAL, beside};

/// A 16-bit mono WAV in the making, at `PATH.partial`. Dropped without [`WavSink::finish`], it leaves nothing behind.
pub struct WavSink {
    path: PathBuf,
    partial: PathBuf,
    writer: Option<WavWriter<BufWriter<File>>>,
}

impl WavSink {
    /// Begins a file that will lie at `path`, replacing what is there.
    pub fn create(path: &Path) -> Result<Self, AudioError> {
        check_folder(path)?;
        let partial = beside(path, PARTIAL);
        let spec = WavSpec { channels: 1, sample_rate: SAMPLE_RATE, bits_per_sample: 16, sample_format: SampleFormat::Int };
        let writer = WavWriter::create(&partial, spec).map_err(|e| AudioError::Write { path: path.to_owned(), message: e.to_string() })?;
        Ok(Self { path: path.to_owned(), partial, writer: Some(writer) })
    }

    /// Appends samples; beyond -1..1 they are clipped.
    pub fn write(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for sample in samples {
            let value = (sample.clamp(-1.0, 1.0) * 32767.0).round() as i16;
            writer.write_sample(value).map_err(|e| AudioError::Write { path: self.path.clone(), message: e.to_string() })?;
        }
        Ok(())
    }

    /// Completes the file and moves it to its place.
    pub fn finish(mut self) -> Result<PathBuf, AudioError> {
        let failed = |message: String| AudioError::Write { path: self.path.clone(), message };
        if let Some(writer) = self.writer.take() {
            writer.finalize().map_err(|e| failed(e.to_string()))?;
        }
        std::fs::rename(&self.partial, &self.path).map_err(|e| failed(e.to_string()))?;
        Ok(self.path.clone())
    }
}

impl Drop for WavSink {
    fn drop(&mut self) {
        self.writer = None;
        // After `finish` it is no longer there; otherwise nothing can be done about a failure here.
        let _ = std::fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("a.wav");
        let mut sink = WavSink::create(&path).expect("writable");
        sink.write(&[0.0, 0.5, -2.0]).expect("writable");
        assert!(!path.exists());
        sink.finish().expect("writable");
        let samples: Vec<i16> = hound::WavReader::open(&path).expect("a WAV").samples().map(|s| s.expect("whole")).collect();
        assert_eq!(samples, [0, 16384, -32767]);
        let dropped = dir.path().join("b.wav");
        drop(WavSink::create(&dropped).expect("writable"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
        let error = WavSink::create(&dir.path().join("none/c.wav")).err().expect("no folder");
        assert!(error.to_string().ends_with("none is not there"), "{error}");
    }
}
