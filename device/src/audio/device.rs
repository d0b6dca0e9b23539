//! WAV files as a microphone and a loudspeaker.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::{AudioDevice, AudioError, Capture, Captured, SAMPLE_RATE, WavSink, check_folder, read_wav};

/// Samples in a piece: 20 ms, as a microphone gives them.
const PIECE: usize = SAMPLE_RATE as usize / 50;

/// How fast a file is played into the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the pipeline takes it in.
    Fast,
    /// One second a second.
    RealTime,
}

/// Questions from files, answers into files.
pub struct WavDevice {
    questions: std::vec::IntoIter<PathBuf>,
    answers: std::vec::IntoIter<PathBuf>,
    pace: Pace,
    limit: f64,
    sink: Option<WavSink>,
}

impl WavDevice {
    /// `answers` are as many as `questions`, or none at all. A question may last `limit` seconds.
    ///
    /// # Errors
    /// When an output's folder is not there, or an output is one of the inputs: before anything is heard.
    pub fn new(questions: Vec<PathBuf>, answers: Vec<PathBuf>, pace: Pace, limit: f64) -> Result<Self, AudioError> {
        for answer in &answers {
            check_folder(answer)?;
            if questions.iter().any(|question| same_file(question, answer)) {
                return Err(AudioError::OutputIsInput { path: answer.clone() });
            }
        }
        Ok(Self { questions: questions.into_iter(), answers: answers.into_iter(), pace, limit, sink: None })
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

impl AudioDevice for WavDevice {
    fn capture(&mut self) -> Result<Option<Capture>, AudioError> {
        let Some(path) = self.questions.next() else { return Ok(None) };
        self.sink = self.answers.next().map(|answer| WavSink::create(&answer)).transpose()?;
        // Without a buffer between: the reader never runs ahead of the pipeline, so that "after the last sample" means
        // the same here as with a microphone.
        let (sender, pieces) = sync_channel(0);
        let source = path.display().to_string();
        let (pace, limit) = (self.pace, self.limit);
        std::thread::spawn(move || {
            let samples = match read_wav(&path, limit) {
                Ok(samples) => samples,
                Err(error) => {
                    // The pipeline may have given up already.
                    let _ = sender.send(Captured::Failed(error));
                    return;
                }
            };
            let started = Instant::now();
            for (i, piece) in samples.chunks(PIECE).enumerate() {
                let mut at = None;
                if pace == Pace::RealTime {
                    let due = started + Duration::from_secs_f64((i * PIECE + piece.len()) as f64 / f64::from(SAMPLE_RATE));
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    at = Some(due);
                }
                if sender.send(Captured::Samples(piece.to_vec(), at)).is_err() {
                    return;
                }
            }
            let _ = sender.send(Captured::End);
        });
        Ok(Some(Capture { source, pieces }))
    }

    fn play(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        match &mut self.sink {
            Some(sink) => sink.write(samples),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<Option<PathBuf>, AudioError> {
        self.sink.take().map(WavSink::finish).transpose()
    }

    fn discard(&mut self) {
        self.sink = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(capture: &Capture) -> Vec<f32> {
        let mut all = Vec::new();
        for piece in &capture.pieces {
            match piece {
                Captured::Samples(samples, _) => all.extend(samples),
                Captured::End => return all,
                Captured::Failed(error) => panic!("{error}"),
            }
        }
        panic!("no end");
    }

    #[test]
    fn plays_questions_in_and_answers_out() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let question = dir.path().join("q.wav");
        let mut sink = WavSink::create(&question).expect("writable");
        let samples: Vec<f32> = (0..1000).map(|i| (i % 100) as f32 / 200.0).collect();
        sink.write(&samples).expect("writable");
        sink.finish().expect("writable");
        let answer = dir.path().join("a.wav");
        let mut device = WavDevice::new(vec![question.clone()], vec![answer.clone()], Pace::RealTime, 30.0).expect("folders are there");
        let started = Instant::now();
        let capture = device.capture().expect("readable").expect("one question");
        assert_eq!(collect(&capture).len(), 1000);
        assert!(started.elapsed().as_secs_f64() >= 1000.0 / 16_000.0, "at real time");
        device.play(&[0.5; 100]).expect("writable");
        assert_eq!(device.finish().expect("writable"), Some(answer.clone()));
        assert_eq!(read_wav(&answer, 1.0).expect("a WAV").len(), 100);
        assert!(device.capture().expect("fine").is_none());
        assert!(matches!(WavDevice::new(vec![question.clone()], vec![question], Pace::Fast, 30.0), Err(AudioError::OutputIsInput { .. })));
    }
}
