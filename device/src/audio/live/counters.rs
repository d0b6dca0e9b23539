//! What was lost or made up, counted by samples: losses were seen with no underrun reported.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// What helps where the program is too slow.
pub(crate) const CURE: &str = "close other programs, set the processor's governor to `performance` (`sa-agent doctor` looks at it), or take a \
     smaller bundle (`sa-agent bench` shows what each stage takes)";

/// Counters that the audio threads and the program share. All in samples of the device's rate unless said otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    pub captured: AtomicU64,
    pub dropped: AtomicU64,
    pub played: AtomicU64,
    pub invented: AtomicU64,
    /// The most that ever waited in the microphone's ring, and in the speaker's.
    pub mic_high: AtomicU64,
    pub speaker_high: AtomicU64,
    /// Frames of silence that stood for a microphone that was away.
    pub absent: AtomicU64,
    /// Reported by the device, for what that is worth.
    pub xruns: AtomicU64,
    /// Other errors reported by the device.
    pub errors: AtomicU64,
    /// Times that a device was opened again.
    pub reopened: AtomicU64,
    /// Speaker clock against microphone clock, in thousandths of a ppm.
    pub drift: AtomicI64,
}

/// What [`Counters`] said at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Samples that the microphone gave.
    pub captured: u64,
    /// Of these, lost because the program did not take them in time.
    pub dropped: u64,
    /// Samples that the speaker took.
    pub played: u64,
    /// Of these, silence because the program gave none in time.
    pub invented: u64,
    /// High-water mark of the microphone's ring in samples.
    pub mic_high: u64,
    /// High-water mark of the speaker's ring in samples.
    pub speaker_high: u64,
    /// Frames of silence in place of a microphone that was away.
    pub absent: u64,
    /// Underruns and overruns that the device reported.
    pub xruns: u64,
    /// Other errors that it reported.
    pub errors: u64,
    /// Times that a device was opened again.
    pub reopened: u64,
    /// How much faster the speaker's clock runs than the microphone's, in parts per million.
    pub drift_ppm: f64,
}

impl Counters {
    /// Reads all counters.
    pub fn read(&self) -> Counts {
        Counts {
            captured: self.captured.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            played: self.played.load(Relaxed),
            invented: self.invented.load(Relaxed),
            mic_high: self.mic_high.load(Relaxed),
            speaker_high: self.speaker_high.load(Relaxed),
            absent: self.absent.load(Relaxed),
            xruns: self.xruns.load(Relaxed),
            errors: self.errors.load(Relaxed),
            reopened: self.reopened.load(Relaxed),
            drift_ppm: self.drift.load(Relaxed) as f64 / 1000.0,
        }
    }
}

impl Counts {
    /// What got worse since `before`, in words, with the cure; `None` if nothing did.
    pub fn complaint(&self, before: &Counts) -> Option<String> {
        let dropped = self.dropped - before.dropped;
        let invented = self.invented - before.invented;
        if dropped == 0 && invented == 0 {
            return None;
        }
        Some(format!(
            "the program was too slow for the audio device: {dropped} samples of the microphone lost, {invented} of the speaker silent; {CURE}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_names_numbers_and_the_cure() {
        let before = Counts { dropped: 5, invented: 7, ..Counts::default() };
        assert_eq!(before.complaint(&before), None);
        let after = Counts { dropped: 165, ..before };
        let text = after.complaint(&before).expect("something was lost");
        assert!(text.contains("160 samples") && text.contains("sa-agent bench"), "{text}");
    }
}
