//! The program's side of the rings: 16 kHz frames here, the device's rate there, the drift of the clocks steered out.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ringbuf::traits::{Consumer, Observer, Producer, Split};
use ringbuf::{HeapCons, HeapProd, HeapRb};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Adjustable, Async, FixedAsync, Resampler, SincInterpolationParameters, WindowFunction};

use super::callback::{MicCallback, SpeakerCallback, TakenBack};
use super::clock::{Follower, Track};
use super::counters::Counters;
use super::{FRAME, FRAMES_PER_SECOND, Frame};
use crate::audio::{AudioError, SAMPLE_RATE};

/// Seconds of the microphone that wait before samples are lost: a turn's longest pause in listening fits in.
const MIC_SECONDS: usize = 4;
/// Length of the resampling filters in samples of the lower rate.
const FILTER: usize = 64;
/// The furthest that the playback rate is bent: 0.3 %, a twentieth of a semitone.
const BEND: f64 = 0.003;
/// Gains of the control of the delay, per second and per second squared: critically damped, settles in some seconds.
const PROPORTIONAL: f64 = 0.5;
const INTEGRAL: f64 = PROPORTIONAL * PROPORTIONAL / 4.0;
/// Frames without room after which the delay is learnt anew: longer than the microphone's ring can hold.
const PATIENCE: u32 = (MIC_SECONDS as u32 + 1) * FRAMES_PER_SECOND;
/// A speaker that runs dry so often within so many frames gets more in advance: this many seconds at a time, and so many in all. What it
/// has in advance beyond what can be taken back is heard after an interruption, and each change is a new delay to the echo canceller: a
/// stall now and then is no reason.
const DRY: (u32, u32) = (6, 10 * FRAMES_PER_SECOND);
const MORE: (f64, f64) = (0.01, 0.08);
/// Frames after which it is tried with less again: what kept the board busy may be over.
const CALM: u32 = 10 * 60 * FRAMES_PER_SECOND;
/// Seconds of a frame.
const STEP: f64 = FRAME as f64 / SAMPLE_RATE as f64;

/// A resampler between the device's rate and 16 kHz.
fn resampler(from: u32, to: u32, fixed: FixedAsync) -> Result<Async<f32>, AudioError> {
    let ratio = f64::from(to) / f64::from(from);
    let length = (FILTER as f64 * ratio.recip().max(1.0)).ceil() as usize;
    let parameters = SincInterpolationParameters::new(length.next_multiple_of(8), WindowFunction::BlackmanHarris2);
    Async::new_sinc(ratio, 1.0 + 2.0 * BEND, &parameters, FRAME, 1, fixed)
        .map_err(|e| AudioError::Device { message: format!("cannot convert between {from} and {to} samples a second: {e}") })
}

/// Frames from a microphone's ring.
pub struct MicPort {
    ring: HeapCons<f32>,
    rate: u32,
    /// None at 16 kHz.
    resampler: Option<Async<f32>>,
    waiting: Vec<f32>,
    clock: Follower,
    /// Samples taken out of the ring.
    taken: u64,
    counters: Arc<Counters>,
}

impl MicPort {
    /// The two ends of a microphone of `rate` samples a second and `channels` channels.
    ///
    /// # Errors
    /// For a rate that cannot be converted.
    pub fn new(rate: u32, channels: usize, counters: &Arc<Counters>) -> Result<(MicCallback, Self), AudioError> {
        let resampler = if rate == SAMPLE_RATE { None } else { Some(resampler(rate, SAMPLE_RATE, FixedAsync::Output)?) };
        let (producer, ring) = HeapRb::new(rate as usize * MIC_SECONDS).split();
        let longest = resampler.as_ref().map_or(FRAME, Async::input_frames_max);
        let track = Track::new(rate);
        let clock = Follower::new(track.clone());
        counters.mic_room.store(ring.capacity().get() as u64, Relaxed);
        let port = Self { ring, rate, resampler, waiting: vec![0.0; longest], clock, taken: 0, counters: counters.clone() };
        Ok((MicCallback::new(producer, channels, track, counters.clone()), port))
    }

    /// The next frame, if there is a whole one.
    pub fn frame(&mut self, frame: &mut Frame) -> bool {
        let needed = self.resampler.as_ref().map_or(FRAME, Async::input_frames_next);
        if self.ring.occupied_len() < needed {
            return false;
        }
        self.taken += needed as u64;
        self.counters.mic_missed.fetch_add(self.clock.follow(), Relaxed);
        let Some(resampler) = &mut self.resampler else { return self.ring.pop_slice(frame) == FRAME };
        let samples = &mut self.waiting[..needed];
        self.ring.pop_slice(samples);
        let Ok(input) = InterleavedSlice::new(samples, 1, needed) else { return false };
        let Ok(mut output) = InterleavedSlice::new_mut(&mut frame[..], 1, FRAME) else { return false };
        // Sizes are what the resampler asked for: it has no other reason to fail.
        resampler.process_into_buffer(&input, &mut output, None).is_ok()
    }

    /// When the last frame ended, in seconds since the program's beginning; none before the first callback.
    pub fn heard_until(&self) -> Option<f64> {
        self.clock.time_of(self.taken)
    }

    /// Seconds that wait in the ring.
    pub fn waiting(&self) -> f64 {
        self.ring.occupied_len() as f64 / f64::from(self.rate)
    }
}

/// Frames into a speaker's ring.
pub struct SpeakerPort {
    ring: HeapProd<f32>,
    rate: u32,
    resampler: Async<f32>,
    made: Vec<f32>,
    /// Seconds that are put into the ring at the start.
    target: f64,
    taken_back: Arc<TakenBack>,
    clock: Follower,
    /// Samples put into the ring, and how many they were when silence was last put in that is no frame's.
    given: u64,
    padded: u64,
    /// Seconds from the microphone's frame to the frame that is played with it, to be kept: what it was on average in the first second
    /// that ran well, after one in which the devices start. Steering to a figure of our own instead would let it creep, and the echo canceller run after it.
    kept: Option<f64>,
    /// Frames played, and the sum of their delays, until `kept` is known.
    begun: (u32, f64),
    /// Frames in a row for which there was no room.
    refused: u32,
    /// Times that the speaker ran dry, frames since the first of them, and seconds that it got in advance for it.
    dry: (u32, u32),
    more: f64,
    /// Frames since that has changed.
    calm: u32,
    /// Samples that the speaker had made up when the last frame was played.
    invented: u64,
    integral: f64,
    counters: Arc<Counters>,
}

impl SpeakerPort {
    /// The two ends of a speaker that takes `period` samples at a time.
    ///
    /// # Errors
    /// For a rate that cannot be converted.
    pub fn new(rate: u32, channels: usize, period: usize, counters: &Arc<Counters>) -> Result<(SpeakerCallback, Self), AudioError> {
        let resampler = resampler(SAMPLE_RATE, rate, FixedAsync::Input)?;
        // A device may take more at a time than it was asked to: there is room for that.
        let (ring, consumer) = HeapRb::new(rate as usize + 4 * period).split();
        let made = vec![0.0; resampler.output_frames_max()];
        let track = Track::new(rate);
        let clock = Follower::new(track.clone());
        let counted = counters.clone();
        let begun = (0, 0.0);
        let taken_back = Arc::new(TakenBack::default());
        let mut port = Self {
            ring,
            rate,
            resampler,
            made,
            target: 0.0,
            taken_back: taken_back.clone(),
            clock,
            given: 0,
            padded: 0,
            kept: None,
            begun,
            refused: 0,
            dry: (0, 0),
            more: 0.0,
            calm: 0,
            invented: 0,
            integral: 0.0,
            counters: counted,
        };
        port.takes(period);
        Ok((SpeakerCallback::new(consumer, channels, taken_back, track, counters.clone()), port))
    }

    /// The device takes `period` samples at a time, it turned out: puts into the ring what that needs in advance. Before the first callback.
    pub fn takes(&mut self, period: usize) {
        // One period for the callback, one frame for us, and 10 ms for a thread that comes late.
        let most = 0.5 * self.ring.capacity().get() as f64 / f64::from(self.rate);
        self.target = self.target.max((period as f64 / f64::from(self.rate) + 0.02).min(most));
        let missing = ((self.target * f64::from(self.rate)) as usize).saturating_sub(self.ring.occupied_len());
        self.given += self.ring.push_iter(std::iter::repeat_n(0.0, missing)) as u64;
    }

    /// Callbacks of the speaker until now.
    pub fn calls(&self) -> u64 {
        self.clock.calls()
    }

    /// Seconds that wait in the ring.
    pub fn waiting(&self) -> f64 {
        self.ring.occupied_len() as f64 / f64::from(self.rate)
    }

    /// Makes silence of the newest samples that were played and are not heard yet, of at most `most` (at 16 kHz); returns how many. Silence
    /// must be played next. A callback that is at work in this very moment is heard to its end.
    pub fn take_back(&mut self, most: usize) -> usize {
        let rate = f64::from(self.rate) / f64::from(SAMPLE_RATE);
        // In the resampler there is a little more.
        let end = self.given + self.resampler.output_delay() as u64;
        let frames = (end - self.padded) as usize;
        let back = (self.ring.occupied_len() + self.resampler.output_delay()).min(frames);
        let count = most.min((back as f64 / rate) as usize);
        if count > 0 {
            self.taken_back.set(end - (count as f64 * rate) as u64, end);
        }
        count
    }

    /// Seconds from a frame of the microphone that ended at `heard` to the frame that would be played with it.
    fn delay(&self, heard: Option<f64>) -> Option<f64> {
        Some(self.clock.time_of(self.given)? - heard?)
    }

    /// Is there room for the frame that goes with the microphone's that ended at `heard`? After a stall the frames that come all at
    /// once must not make the delay longer: there is none until the speaker has caught up.
    pub fn room(&mut self, heard: Option<f64>) -> bool {
        let room = match (self.kept, self.delay(heard)) {
            // After silence that the speaker made up, the first frame that is not too late.
            (Some(kept), Some(delay)) => delay <= kept + if self.stalled() { 0.0 } else { 0.6 * STEP },
            _ => self.waiting() < 2.0 * self.target,
        };
        let room = room && self.ring.vacant_len() >= 2 * self.made.len();
        self.refused = if room { 0 } else { self.refused + 1 };
        if self.refused > PATIENCE {
            // No stall takes so long: the device has changed, and what was to be kept cannot be.
            (self.kept, self.begun, self.refused) = (None, (0, 0.0), 0);
        }
        room
    }

    /// Has the speaker made up silence since the last frame?
    fn stalled(&self) -> bool {
        self.clock.astray() != self.invented
    }

    /// A program that is late again and again, on a busy board, needs more in advance; one that stalls once does not.
    fn prepare(&mut self, stalled: bool) {
        self.dry.1 += 1;
        if self.dry.0 == 0 || self.dry.1 > DRY.1 {
            self.dry = (0, 0);
        }
        self.dry.0 += u32::from(stalled);
        self.calm = self.calm.saturating_add(1);
        let change = if self.dry.0 >= DRY.0 && self.more < MORE.1 {
            self.dry = (0, 0);
            MORE.0
        } else if self.calm >= CALM && self.more > 0.5 * MORE.0 {
            -MORE.0
        } else {
            return;
        };
        self.calm = 0;
        self.more += change;
        self.kept = self.kept.map(|kept| kept + change);
    }

    /// Puts a frame into the ring, and bends the rate so that the delay from `heard`, the end of the microphone's frame, stays as it is.
    pub fn play(&mut self, frame: &Frame, heard: Option<f64>) {
        self.counters.speaker_missed.fetch_add(self.clock.follow(), Relaxed);
        let stalled = self.stalled();
        self.invented = self.clock.astray();
        self.prepare(stalled);
        let error = match (self.kept, self.delay(heard)) {
            (Some(kept), Some(delay)) if stalled => {
                // It was silent anyway: a little more silence, and the delay is what it was, to the sample.
                let missing = ((kept - delay).clamp(0.0, STEP) * f64::from(self.rate)).round() as usize;
                self.given += self.ring.push_iter(std::iter::repeat_n(0.0, missing)) as u64;
                self.padded = self.given;
                0.0
            }
            (Some(kept), Some(delay)) => (delay - kept).clamp(-0.03, 0.03),
            (None, Some(delay)) => {
                let (frames, sum) = if stalled { (0, 0.0) } else { self.begun };
                self.begun = (frames + 1, if frames < FRAMES_PER_SECOND { 0.0 } else { sum + delay });
                if self.begun.0 == 2 * FRAMES_PER_SECOND {
                    self.kept = Some(self.begun.1 / f64::from(FRAMES_PER_SECOND));
                }
                0.0
            }
            (_, None) => 0.0,
        };
        self.integral = (self.integral + error * INTEGRAL * STEP).clamp(-BEND, BEND);
        // Too late: make fewer samples.
        let bend = 1.0 - (error * PROPORTIONAL + self.integral).clamp(-BEND, BEND);
        let _ = self.resampler.set_resample_ratio_relative(bend, true);
        self.counters.drift.store((-self.integral * 1e9) as i64, Relaxed);
        let Ok(input) = InterleavedSlice::new(&frame[..], 1, FRAME) else { return };
        let room = self.made.len();
        let Ok(mut output) = InterleavedSlice::new_mut(&mut self.made, 1, room) else { return };
        if let Ok((_, made)) = self.resampler.process_into_buffer(&input, &mut output, None) {
            self.given += self.ring.push_slice(&self.made[..made]) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::TAU;
    use std::time::Duration;

    /// A tone goes through a microphone of any rate and comes out as the same tone.
    #[test]
    fn any_rate_becomes_frames() {
        for rate in [8000, 16_000, 44_100, 48_000, 96_000] {
            let counters = Arc::new(Counters::default());
            let (mut callback, mut port) = MicPort::new(rate, 1, &counters).expect("a usual rate");
            let tone: Vec<f32> = (0..rate).map(|i| 0.5 * (TAU * 440.0 * i as f32 / rate as f32).sin()).collect();
            let (mut frame, mut out) = ([0.0; FRAME], Vec::new());
            for period in tone.chunks(rate as usize / 77) {
                callback.feed(Duration::ZERO, period, |x| x);
                while port.frame(&mut frame) {
                    out.extend_from_slice(&frame);
                }
            }
            assert!(out.len() > 15_500, "{rate}: {}", out.len());
            let energy: f32 = out[4000..12_000].iter().map(|x| x * x).sum::<f32>() / 8000.0;
            assert!((energy.sqrt() * 2f32.sqrt() - 0.5).abs() < 0.005, "{rate}: {}", energy.sqrt());
        }
    }

    /// A program that comes 50 ms late in every second, after a few good ones: the speaker runs dry at first, then it has enough in advance.
    #[test]
    fn a_program_that_is_often_late_gets_more_in_advance() {
        let counters = Arc::new(Counters::default());
        let (mut callback, mut port) = SpeakerPort::new(48_000, 1, 480, &counters).expect("a usual rate");
        let (mut data, mut late) = ([0.0f32; 480], 0);
        let mut after = Vec::new();
        for i in 0..6000u32 {
            callback.fill(Duration::from_millis(u64::from(i) * 10), &mut data, |x| x);
            // The frames that waited meanwhile are played one after the other, each with its own time.
            late += 1;
            if i < 400 || i % 100 >= 5 {
                for back in (0..late).rev() {
                    let heard = Some(f64::from(i + 1 - back) * STEP);
                    if port.room(heard) {
                        port.play(&[0.1; FRAME], heard);
                    }
                }
                late = 0;
            }
            if i % 1000 == 999 {
                after.push(counters.read().invented);
            }
        }
        // A millisecond is nothing.
        assert!(after[0] > 4800 && after[5] - after[2] < 48, "made up, every ten seconds: {after:?}");
        let most = port.more;
        assert!((0.02..0.055).contains(&most), "no more than it takes: {most} s");
        // The board has nothing else to do any more: step by step it is as it was, and nothing is heard of that.
        for i in 6000..6000 + 6 * CALM {
            callback.fill(Duration::from_millis(u64::from(i) * 10), &mut data, |x| x);
            let heard = Some(f64::from(i + 1) * STEP);
            if port.room(heard) {
                port.play(&[0.1; FRAME], heard);
            }
        }
        assert!(port.more < 0.5 * MORE.0, "{} s", port.more);
        assert!(counters.read().invented - after[5] < 48);
    }

    /// Asked to take 10 ms at a time, the device takes 100: once that is known, nothing is made up.
    #[test]
    fn a_longer_period_than_asked_for_does_not_run_dry() {
        let invented = |told: bool| {
            let counters = Arc::new(Counters::default());
            let (mut callback, mut port) = SpeakerPort::new(48_000, 1, 480, &counters).expect("a usual rate");
            if told {
                port.takes(4800);
            }
            let mut data = [0.0f32; 4800];
            for i in 0..300u32 {
                if i % 10 == 0 {
                    callback.fill(Duration::from_millis(u64::from(i) * 10), &mut data, |x| x);
                }
                let heard = Some(f64::from(i + 1) * STEP);
                if port.room(heard) {
                    port.play(&[0.1; FRAME], heard);
                }
            }
            counters.read().invented
        };
        let (asked, obtained) = (invented(false), invented(true));
        assert!(asked > 3000 && obtained == 0, "made up: {asked}, and {obtained} when told");
    }

    /// A speaker whose clock is 300 ppm off is followed, by callbacks that come late by chance: after two minutes the delay is what it
    /// was in the first second, to what the average of a second is behind a clock that drifts, and nothing was made up.
    #[test]
    fn drift_is_steered_out() {
        for ppm in [-300.0, 0.0, 300.0] {
            let counters = Arc::new(Counters::default());
            let (mut callback, mut port) = SpeakerPort::new(48_000, 1, 480, &counters).expect("a usual rate");
            let (mut taken, mut data, mut late) = (0.0, [0.0f32; 480], 1u32);
            for i in 0..12_000 {
                let heard = f64::from(i) * STEP;
                assert!(port.room(Some(heard)), "{ppm} ppm, frame {i}");
                port.play(&[0.1; FRAME], Some(heard));
                while taken + 480.0 <= f64::from(i + 1) * 480.0 * (1.0 + ppm / 1e6) {
                    late = late.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let now = taken / 48_000.0 / (1.0 + ppm / 1e6) + f64::from(late >> 16) / 65_536.0 * 0.001;
                    callback.fill(Duration::from_secs_f64(now), &mut data, |x| x);
                    taken += 480.0;
                }
            }
            let counts = counters.read();
            assert_eq!(counts.invented, 0, "{ppm} ppm");
            assert!((counts.drift_ppm - ppm).abs() < 15.0, "{ppm} ppm measured as {}", counts.drift_ppm);
            // By the true clock of the speaker, half of the lateness of its callbacks added.
            let (kept, truth) = (port.kept.expect("two minutes have passed"), port.given as f64 / 48_000.0 / (1.0 + ppm / 1e6) + 0.0005);
            let delay = truth - 11_999.0 * STEP - STEP;
            assert!((delay - kept).abs() < 4e-4, "{ppm} ppm: delay {delay} to be kept at {kept}");
        }
    }
}
