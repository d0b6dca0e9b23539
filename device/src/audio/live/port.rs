//! The program's side of the rings: 16 kHz frames here, the device's rate there, the drift of the clocks steered out.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ringbuf::traits::{Consumer, Observer, Producer, Split};
use ringbuf::{HeapCons, HeapProd, HeapRb};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Adjustable, Async, FixedAsync, Resampler, SincInterpolationParameters, WindowFunction};

use super::callback::{MicCallback, SpeakerCallback};
use super::counters::Counters;
use super::{FRAME, FRAMES_PER_SECOND, Frame};
use crate::audio::{AudioError, SAMPLE_RATE};

/// Seconds of the microphone that wait before samples are lost: a turn's longest pause in listening fits in.
const MIC_SECONDS: usize = 4;
/// Length of the resampling filters in samples of the lower rate.
const FILTER: usize = 64;
/// The furthest that the playback rate is bent: 0.3 %, a twentieth of a semitone.
const BEND: f64 = 0.003;
/// Gains of the control of the ring's fill, per second and per second squared: critically damped, settles in half a minute.
const PROPORTIONAL: f64 = 0.1;
const INTEGRAL: f64 = PROPORTIONAL * PROPORTIONAL / 4.0;
/// Seconds over which the fill is averaged: callbacks take it in steps.
const AVERAGE: f64 = 0.5;

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
        Ok((MicCallback::new(producer, channels, counters.clone()), Self { ring, rate, resampler, waiting: vec![0.0; longest] }))
    }

    /// The next frame, if there is a whole one.
    pub fn frame(&mut self, frame: &mut Frame) -> bool {
        let needed = self.resampler.as_ref().map_or(FRAME, Async::input_frames_next);
        if self.ring.occupied_len() < needed {
            return false;
        }
        let Some(resampler) = &mut self.resampler else { return self.ring.pop_slice(frame) == FRAME };
        let samples = &mut self.waiting[..needed];
        self.ring.pop_slice(samples);
        let Ok(input) = InterleavedSlice::new(samples, 1, needed) else { return false };
        let Ok(mut output) = InterleavedSlice::new_mut(&mut frame[..], 1, FRAME) else { return false };
        // Sizes are what the resampler asked for: it has no other reason to fail.
        resampler.process_into_buffer(&input, &mut output, None).is_ok()
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
    /// Seconds that the speaker takes at a time.
    period: f64,
    /// Seconds that the ring is kept at: what it held on average in the first second, as its user sees it between callbacks. Steering to a
    /// figure of our own instead would let the delay creep, and the echo canceller run after it.
    kept: Option<f64>,
    /// Frames played, and the sum of what waited before each, until `kept` is known.
    begun: (u32, f64),
    average: f64,
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
        // One period for the callback, one frame for us, and 10 ms for a thread that comes late.
        let target = period as f64 / f64::from(rate) + 0.02;
        let (mut ring, consumer) = HeapRb::new(rate as usize / 2 + 4 * period).split();
        for _ in 0..(target * f64::from(rate)) as usize {
            let _ = ring.try_push(0.0);
        }
        let made = vec![0.0; resampler.output_frames_max()];
        let callback = SpeakerCallback::new(consumer, channels, counters.clone());
        Ok((
            callback,
            Self {
                ring,
                rate,
                resampler,
                made,
                target,
                period: period as f64 / f64::from(rate),
                kept: None,
                begun: (0, 0.0),
                average: target,
                integral: 0.0,
                counters: counters.clone(),
            },
        ))
    }

    /// Seconds that wait in the ring.
    pub fn waiting(&self) -> f64 {
        self.ring.occupied_len() as f64 / f64::from(self.rate)
    }

    /// Is there room for a frame? After a stall the frames that come all at once must not make the delay longer: there is none until
    /// the speaker has caught up.
    pub fn room(&self) -> bool {
        let most = self.kept.map_or(2.0 * self.target, |kept| kept + self.period + 0.005);
        self.waiting() < most && self.ring.vacant_len() >= self.made.len()
    }

    /// Puts a frame into the ring, and bends the rate so that the ring's fill comes back to its target.
    pub fn play(&mut self, frame: &Frame) {
        let step = FRAME as f64 / f64::from(SAMPLE_RATE);
        let waiting = self.waiting();
        let error = match self.kept {
            Some(kept) => {
                self.average += (waiting - self.average) * step / AVERAGE;
                (self.average - kept).clamp(-0.03, 0.03)
            }
            None => {
                self.begun = (self.begun.0 + 1, self.begun.1 + waiting);
                if self.begun.0 == FRAMES_PER_SECOND {
                    self.average = self.begun.1 / f64::from(FRAMES_PER_SECOND);
                    self.kept = Some(self.average);
                }
                0.0
            }
        };
        self.integral = (self.integral + error * INTEGRAL * step).clamp(-BEND, BEND);
        // Too full: make fewer samples.
        let bend = 1.0 - (error * PROPORTIONAL + self.integral).clamp(-BEND, BEND);
        let _ = self.resampler.set_resample_ratio_relative(bend, true);
        self.counters.drift.store((-self.integral * 1e9) as i64, Relaxed);
        let Ok(input) = InterleavedSlice::new(&frame[..], 1, FRAME) else { return };
        let room = self.made.len();
        let Ok(mut output) = InterleavedSlice::new_mut(&mut self.made, 1, room) else { return };
        if let Ok((_, made)) = self.resampler.process_into_buffer(&input, &mut output, None) {
            self.ring.push_slice(&self.made[..made]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::TAU;

    /// A tone goes through a microphone of any rate and comes out as the same tone.
    #[test]
    fn any_rate_becomes_frames() {
        for rate in [8000, 16_000, 44_100, 48_000, 96_000] {
            let counters = Arc::new(Counters::default());
            let (mut callback, mut port) = MicPort::new(rate, 1, &counters).expect("a usual rate");
            let tone: Vec<f32> = (0..rate).map(|i| 0.5 * (TAU * 440.0 * i as f32 / rate as f32).sin()).collect();
            let (mut frame, mut out) = ([0.0; FRAME], Vec::new());
            for period in tone.chunks(rate as usize / 77) {
                callback.feed(period, |x| x);
                while port.frame(&mut frame) {
                    out.extend_from_slice(&frame);
                }
            }
            assert!(out.len() > 15_500, "{rate}: {}", out.len());
            let energy: f32 = out[4000..12_000].iter().map(|x| x * x).sum::<f32>() / 8000.0;
            assert!((energy.sqrt() * 2f32.sqrt() - 0.5).abs() < 0.005, "{rate}: {}", energy.sqrt());
        }
    }

    /// A speaker whose clock is 300 ppm off is followed: after two minutes the fill is where it should be and nothing was made up.
    #[test]
    fn drift_is_steered_out() {
        for ppm in [-300.0, 0.0, 300.0] {
            let counters = Arc::new(Counters::default());
            let (mut callback, mut port) = SpeakerPort::new(48_000, 1, 480, &counters).expect("a usual rate");
            let (mut taken, mut data) = (0.0, [0.0f32; 480]);
            for i in 0..12_000 {
                assert!(port.room());
                port.play(&[0.1; FRAME]);
                let due = f64::from(i + 1) * 480.0 * (1.0 + ppm / 1e6);
                while taken + 480.0 <= due {
                    callback.fill(&mut data, |x| x);
                    taken += 480.0;
                }
            }
            let counts = counters.read();
            assert_eq!(counts.invented, 0, "{ppm} ppm");
            assert!((counts.drift_ppm - ppm).abs() < 60.0, "{ppm} ppm measured as {}", counts.drift_ppm);
            let kept = port.kept.expect("two minutes have passed");
            assert!((port.average - kept).abs() < 0.003, "{ppm} ppm: fill {} to be kept at {kept}", port.average);
        }
    }
}
