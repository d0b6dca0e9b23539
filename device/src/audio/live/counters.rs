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
    /// The most that there is room for in the microphone's ring.
    pub mic_room: AtomicU64,
    /// Lost by the device itself, where no callback sees it: samples of the microphone, and of time in which the speaker stood still.
    pub mic_missed: AtomicU64,
    pub speaker_missed: AtomicU64,
    /// Frames of silence that stood for a microphone that was away.
    pub absent: AtomicU64,
    /// Reported by the device, for what that is worth.
    pub xruns: AtomicU64,
    /// Other errors reported by the device.
    pub errors: AtomicU64,
    /// Times that a device was opened again.
    pub reopened: AtomicU64,
    /// Audio threads that run with realtime priority, of those opened last.
    pub realtime: AtomicU64,
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
    /// What the microphone's ring can hold in samples.
    pub mic_room: u64,
    /// Samples that the microphone lost by itself: its stream stood still.
    pub mic_missed: u64,
    /// Samples of the time in which the speaker stood still by itself.
    pub speaker_missed: u64,
    /// Frames of silence in place of a microphone that was away.
    pub absent: u64,
    /// Underruns and overruns that the device reported.
    pub xruns: u64,
    /// Other errors that it reported.
    pub errors: u64,
    /// Times that a device was opened again.
    pub reopened: u64,
    /// Audio threads that run with realtime priority: of microphone and speaker.
    pub realtime: u64,
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
            mic_room: self.mic_room.load(Relaxed),
            mic_missed: self.mic_missed.load(Relaxed),
            speaker_missed: self.speaker_missed.load(Relaxed),
            absent: self.absent.load(Relaxed),
            xruns: self.xruns.load(Relaxed),
            errors: self.errors.load(Relaxed),
            reopened: self.reopened.load(Relaxed),
            realtime: self.realtime.load(Relaxed),
            drift_ppm: self.drift.load(Relaxed) as f64 / 1000.0,
        }
    }
}

impl Counts {
    /// What was counted since `before`; levels and the clocks as they are.
    pub fn since(&self, before: &Counts) -> Counts {
        Counts {
            captured: self.captured - before.captured,
            dropped: self.dropped - before.dropped,
            played: self.played - before.played,
            invented: self.invented - before.invented,
            mic_missed: self.mic_missed - before.mic_missed,
            speaker_missed: self.speaker_missed - before.speaker_missed,
            xruns: self.xruns - before.xruns,
            errors: self.errors - before.errors,
            absent: self.absent - before.absent,
            reopened: self.reopened - before.reopened,
            ..*self
        }
    }

    /// What got worse since `before`, in words, with the cure; `None` if nothing did.
    pub fn complaint(&self, before: &Counts) -> Option<String> {
        let new = self.since(before);
        let all: Vec<String> = [new.slow(), self.close(before), new.device()].into_iter().flatten().collect();
        if all.is_empty() { None } else { Some(all.join(". Also, ")) }
    }

    /// What the device lost by itself.
    fn device(&self) -> Option<String> {
        let Self { xruns, errors, mic_missed: microphone, speaker_missed: speaker, .. } = *self;
        if xruns + errors + microphone + speaker == 0 {
            return None;
        }
        Some(format!(
            "the audio device lost sound by itself: {microphone} samples of the microphone never came, the speaker stood still for {speaker}, {xruns} \
             overruns or underruns and {errors} errors reported; allow realtime priority (`sa-agent doctor` says how), on a Pi take another USB \
             port or power supply, and look into `dmesg`"
        ))
    }

    /// Nothing was lost, and that was luck: the microphone's ring was fuller than ever, and more than half full.
    fn close(&self, before: &Counts) -> Option<String> {
        if self.mic_high <= before.mic_high || self.mic_high * 2 <= self.mic_room || self.dropped > before.dropped {
            return None;
        }
        let share = self.mic_high * 100 / self.mic_room.max(1);
        Some(format!(
            "the program stalled, and the microphone's ring was {share} % full: at 100 % sound is lost; close other programs, or use a faster SD card"
        ))
    }

    /// What was lost between the device and the program.
    fn slow(&self) -> Option<String> {
        let Self { dropped, invented, .. } = *self;
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

    /// What no callback sees, and what nearly went wrong.
    #[test]
    fn losses_of_the_device_and_full_rings_are_told() {
        let before = Counts { xruns: 3, mic_missed: 100, mic_high: 500, mic_room: 4000, ..Counts::default() };
        let complaint = |after: Counts| after.complaint(&before).unwrap_or_default();
        let overrun = complaint(Counts { xruns: 5, mic_missed: 1540, ..before });
        assert!(overrun.contains("1440 samples of the microphone never came") && overrun.contains("2 overruns"), "{overrun}");
        assert!(overrun.contains("realtime priority") && !overrun.contains("too slow"), "{overrun}");
        assert!(complaint(Counts { speaker_missed: 480, ..before }).contains("stood still for 480"));
        assert!(complaint(Counts { errors: 1, ..before }).contains("1 errors"));
        assert_eq!(complaint(Counts { mic_high: 1999, ..before }), "");
        assert!(complaint(Counts { mic_high: 3000, ..before }).contains("75 % full"));
        let both = complaint(Counts { mic_high: 4000, dropped: 10, xruns: 4, ..before });
        assert!(both.contains("too slow") && both.contains(". Also, the audio device") && !both.contains("100 %"), "{both}");
    }
}
