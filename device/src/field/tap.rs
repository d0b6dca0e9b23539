//! Listens in on a capture.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use crate::audio::{Capture, Captured};

/// Full scale of 16 bits; reading a WAV divides by the same.
const SCALE: f32 = 32768.0;

/// Rounds samples to the 16 bits of the log, and appends them to `kept`.
pub fn round(samples: &mut [f32], kept: &mut Vec<i16>) {
    for sample in samples {
        // The cast saturates, and makes 0 of what is not a number.
        let rounded = (*sample * SCALE).round() as i16;
        kept.push(rounded);
        *sample = f32::from(rounded) / SCALE;
    }
}

/// The capture, rounded to 16 bits, and the samples that have come so far.
pub(super) fn tap(capture: Capture) -> (Capture, Arc<Mutex<Vec<i16>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (sender, pieces) = sync_channel(0);
    let (source, samples) = (capture.source, kept.clone());
    std::thread::spawn(move || {
        for mut piece in capture.pieces {
            if let Captured::Samples(piece, _) = &mut piece {
                round(piece, &mut samples.lock().unwrap_or_else(|e| e.into_inner()));
            }
            // The pipeline may have given up already.
            if sender.send(piece).is_err() {
                return;
            }
        }
    });
    (Capture { source, pieces }, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_is_passed_on() {
        let (sender, pieces) = sync_channel(8);
        let sent = [0.1, -1.0, 1.0, 2.0, f32::NAN, 12_345.0 / 32768.0];
        sender.send(Captured::Samples(sent[..2].to_vec(), None)).expect("room");
        sender.send(Captured::Samples(sent[2..].to_vec(), None)).expect("room");
        sender.send(Captured::End).expect("room");
        let (capture, kept) = tap(Capture { source: "test".into(), pieces });
        let mut heard = Vec::new();
        for piece in &capture.pieces {
            match piece {
                Captured::Samples(samples, _) => heard.extend(samples),
                Captured::End => break,
                Captured::Failed(error) => panic!("{error}"),
            }
        }
        let kept = kept.lock().expect("nobody panicked").clone();
        assert_eq!(kept, [3277, -32768, 32767, 32767, 0, 12_345]);
        assert_eq!(heard, kept.iter().map(|x| f32::from(*x) / SCALE).collect::<Vec<_>>());
    }
}
