//! Where each device is in its stream: the two clocks, by the times of their callbacks.
//!
//! Counting what waits in a ring is not enough: two callbacks of the same length run in step for a hundred seconds and then are
//! a whole period apart, while the sound has moved all along. So each callback notes when the first sample of its stream was,
//! by its own time and count; the program smooths that (callbacks come late by chance), and knows the time of any sample to a
//! fraction of one. After Adriaensen, "Using a DLL to filter time" (2005), with a plain average for the loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// No callback yet.
const UNKNOWN: i64 = i64::MIN;
/// Share of a new time in the average; one comes every 10 ms. The first ones, of a device that is still starting, count more.
const SHARE: f64 = 0.01;
const FIRST: u32 = 100;
/// How far one late callback may move it, in seconds.
const STEP: f64 = 0.002;
/// This far off, so many times in a row, the device has lost time: the average begins anew.
const JUMP: (f64, u32) = (0.02, 50);

/// Shared by a callback, which writes, and its port.
#[derive(Debug)]
pub struct Track {
    rate: f64,
    /// When the first sample of the stream was, in nanoseconds since the program's beginning.
    origin: AtomicI64,
    /// Samples of the stream that never went through the ring: lost ones of a microphone, made up ones of a speaker.
    astray: AtomicU64,
    /// Callbacks until now: a device that is alive has more and more.
    calls: AtomicU64,
}

impl Track {
    /// Of a device of `rate` samples a second.
    pub fn new(rate: u32) -> Arc<Self> {
        Arc::new(Self { rate: f64::from(rate), origin: AtomicI64::new(UNKNOWN), astray: AtomicU64::new(0), calls: AtomicU64::new(0) })
    }

    /// For the callback: it is `now`, and this is sample number `position`; `astray` more went past the ring. Waits for nothing.
    pub fn note(&self, now: Duration, position: u64, astray: usize) {
        self.calls.fetch_add(1, Relaxed);
        self.astray.fetch_add(astray as u64, Relaxed);
        self.origin.store(now.as_nanos() as i64 - (position as f64 / self.rate * 1e9) as i64, Relaxed);
    }

    /// Samples that never went through the ring.
    pub fn astray(&self) -> u64 {
        self.astray.load(Relaxed)
    }
}

/// The program's view of a [`Track`].
#[derive(Debug)]
pub struct Follower {
    track: Arc<Track>,
    /// Seconds; the smoothed time of the first sample.
    origin: Option<f64>,
    seen: u32,
    jumped: u32,
}

impl Follower {
    /// Knows nothing yet.
    pub fn new(track: Arc<Track>) -> Self {
        Self { track, origin: None, seen: 0, jumped: 0 }
    }

    /// Takes in what the callback noted last; call it once a frame. Tells the samples that the device itself has lost: its stream stands
    /// still in an overrun or underrun, and no callback sees any of that.
    pub fn follow(&mut self) -> u64 {
        let noted = self.track.origin.load(Relaxed);
        if noted == UNKNOWN {
            return 0;
        }
        let noted = noted as f64 * 1e-9;
        let Some(origin) = self.origin else {
            self.origin = Some(noted);
            return 0;
        };
        let off = noted - origin;
        self.jumped = if off.abs() > JUMP.0 { self.jumped + 1 } else { 0 };
        self.seen = self.seen.saturating_add(1);
        if self.seen <= FIRST {
            self.origin = Some(origin + off / 10.0);
        } else if self.jumped > JUMP.1 {
            (self.origin, self.jumped) = (Some(noted), 0);
            // The other way a device has only caught up.
            return (off.max(0.0) * self.track.rate).round() as u64;
        } else {
            self.origin = Some(origin + SHARE * off.clamp(-STEP, STEP));
        }
        0
    }

    /// When the sample is that went or will go through the ring as number `passed`, in seconds since the program's beginning.
    pub fn time_of(&self, passed: u64) -> Option<f64> {
        self.origin.map(|origin| origin + (passed + self.track.astray()) as f64 / self.track.rate)
    }

    /// Samples that never went through the ring.
    pub fn astray(&self) -> u64 {
        self.track.astray()
    }

    /// Callbacks until now.
    pub fn calls(&self) -> u64 {
        self.track.calls.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callbacks that come up to 2 ms late, one of them 80 ms; then the device loses a second.
    #[test]
    fn late_callbacks_hardly_move_it_and_lost_time_does() {
        let track = Track::new(48_000);
        let mut follower = Follower::new(track.clone());
        assert_eq!(follower.time_of(0), None);
        let (mut random, mut missed) = (1u32, 0);
        for i in 0..3000u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let late = if i == 2500 { 80_000 } else { u64::from(random >> 16) * 2_000 / 65_536 };
            let lost = if i > 2800 { 1_000_000 } else { 0 };
            track.note(Duration::from_micros(i * 10_000 + late + lost), i * 480, 0);
            missed += follower.follow();
            assert!(i > 2800 || missed == 0, "callback {i}: nothing was lost yet");
            let first = follower.time_of(0).expect("known");
            if (1000..2800).contains(&i) {
                assert!((first - 0.001).abs() < 2e-4, "callback {i}: {first}");
            }
        }
        let first = follower.time_of(0).expect("known");
        assert!((first - 1.001).abs() < 0.002, "{first}");
        assert!((47_900..48_100).contains(&missed), "a second of samples: {missed}");
        assert_eq!(follower.calls(), 3000);
        track.note(Duration::from_secs(40), 39 * 48_000, 480);
        assert!((follower.time_of(480).expect("known") - first - 0.02).abs() < 1e-9);
    }
}
