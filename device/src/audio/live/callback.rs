//! What runs in the audio threads.
//!
//! Nothing here waits, locks, allocates, logs or panics: the rings are made beforehand, samples are converted in a buffer on
//! the stack, everything else is an atomic. `device/tests/realtime.rs` counts the allocations of 10,000 callbacks.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::time::Duration;

use ringbuf::traits::{Consumer, Observer, Producer};
use ringbuf::{HeapCons, HeapProd};

use super::clock::Track;
use super::counters::Counters;

/// Samples that are converted at a time.
const PIECE: usize = 256;
/// Samples over which sound fades out where it breaks off, and in where it comes back: a click is not speech.
const FADE: f32 = 64.0;

/// What the device tells: too seldom to count by, but it says when to open it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// It was unplugged, or its server is gone: open it again.
    Gone = 1,
    /// It was changed under us: open it again.
    Changed,
}

/// From an error callback to the program: the last alarm, until it is taken. Each opening has its own: what a stream still tells while it
/// is being closed says nothing about the next one.
#[derive(Debug, Default)]
pub struct Alarms(AtomicU8);

impl Alarms {
    /// For the callback; waits for nothing.
    pub fn raise(&self, alarm: Alarm) {
        self.0.store(alarm as u8, Relaxed);
    }

    /// The alarm since the last call.
    pub fn take(&self) -> Option<Alarm> {
        let raised = self.0.swap(0, Relaxed);
        [Alarm::Gone, Alarm::Changed].into_iter().find(|alarm| *alarm as u8 == raised)
    }
}

/// From the program to the speaker's callback: samples in the ring that are not to be heard any more, by their numbers in the stream of what
/// was put into it.
#[derive(Debug, Default)]
pub struct TakenBack {
    from: AtomicU64,
    to: AtomicU64,
}

impl TakenBack {
    /// The samples from `from` on, up to `to`, are silence.
    pub fn set(&self, from: u64, to: u64) {
        // In between nothing is taken back, or what was before.
        self.to.store(0, Release);
        self.from.store(from, Release);
        self.to.store(to, Release);
    }

    fn get(&self) -> std::ops::Range<u64> {
        let to = self.to.load(Acquire);
        self.from.load(Acquire)..to
    }
}

/// The microphone's callback.
pub struct MicCallback {
    ring: HeapProd<f32>,
    channels: usize,
    /// Samples of the stream so far.
    position: u64,
    track: Arc<Track>,
    counters: Arc<Counters>,
}

impl MicCallback {
    /// `channels` interleaved channels are averaged into `ring`.
    pub fn new(ring: HeapProd<f32>, channels: usize, track: Arc<Track>, counters: Arc<Counters>) -> Self {
        Self { ring, channels: channels.max(1), position: 0, track, counters }
    }

    /// Takes in interleaved samples, the last of which is from `now`. What does not fit into the ring is lost, and counted.
    pub fn feed<T: Copy>(&mut self, now: Duration, data: &[T], convert: impl Fn(T) -> f32) {
        let share = 1.0 / self.channels as f32;
        let mut mono = [0.0; PIECE];
        let mut lost = 0;
        for piece in data.chunks(PIECE * self.channels) {
            let mut count = 0;
            for (slot, frame) in mono.iter_mut().zip(piece.chunks_exact(self.channels)) {
                let sum: f32 = frame.iter().map(|sample| convert(*sample)).sum();
                *slot = if sum.is_finite() { (sum * share).clamp(-1.0, 1.0) } else { 0.0 };
                count += 1;
            }
            lost += count - self.ring.push_slice(&mono[..count]);
        }
        self.position += (data.len() / self.channels) as u64;
        self.track.note(now, self.position, lost);
        self.counters.captured.fetch_add((data.len() / self.channels) as u64, Relaxed);
        self.counters.dropped.fetch_add(lost as u64, Relaxed);
        self.counters.mic_high.fetch_max(self.ring.occupied_len() as u64, Relaxed);
    }
}

/// The speaker's callback.
pub struct SpeakerCallback {
    ring: HeapCons<f32>,
    channels: usize,
    /// Samples of the stream so far.
    position: u64,
    /// Samples taken out of the ring so far.
    taken: u64,
    taken_back: Arc<TakenBack>,
    track: Arc<Track>,
    counters: Arc<Counters>,
    /// The last sample, and how much of the fade is left; both for the moments when the ring is empty.
    last: f32,
    gain: f32,
}

impl SpeakerCallback {
    /// Plays `ring` on `channels` interleaved channels, but for what is `taken_back`.
    pub fn new(ring: HeapCons<f32>, channels: usize, taken_back: Arc<TakenBack>, track: Arc<Track>, counters: Arc<Counters>) -> Self {
        Self { ring, channels: channels.max(1), position: 0, taken: 0, taken_back, track, counters, last: 0.0, gain: 0.0 }
    }

    /// Fills interleaved samples, the first of which is asked for at `now`. What the ring does not have is silence, and counted.
    pub fn fill<T: Copy>(&mut self, now: Duration, data: &mut [T], convert: impl Fn(f32) -> T) {
        let mut mono = [0.0; PIECE];
        let mut invented = 0;
        let silent = self.taken_back.get();
        self.counters.speaker_high.fetch_max(self.ring.occupied_len() as u64, Relaxed);
        for piece in data.chunks_mut(PIECE * self.channels) {
            let wanted = piece.len() / self.channels;
            let got = self.ring.pop_slice(&mut mono[..wanted]);
            for sample in &mut mono[..got] {
                let step = if silent.contains(&self.taken) { -1.0 / FADE } else { 1.0 / FADE };
                self.taken += 1;
                self.gain = (self.gain + step).clamp(0.0, 1.0);
                *sample *= self.gain;
                self.last = *sample;
            }
            for sample in &mut mono[got..wanted] {
                self.gain = 0.0;
                self.last *= 1.0 - 8.0 / FADE;
                *sample = self.last;
            }
            invented += wanted - got;
            for (frame, sample) in piece.chunks_mut(self.channels).zip(mono) {
                frame.fill(convert(sample));
            }
        }
        self.track.note(now, self.position, invented);
        self.position += (data.len() / self.channels) as u64;
        self.counters.played.fetch_add((data.len() / self.channels) as u64, Relaxed);
        self.counters.invented.fetch_add(invented as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbuf::HeapRb;
    use ringbuf::traits::Split;

    #[test]
    fn channels_are_averaged_and_losses_counted() {
        let counters = Arc::new(Counters::default());
        let (producer, mut consumer) = HeapRb::new(1000).split();
        let mut mic = MicCallback::new(producer, 2, Track::new(48_000), counters.clone());
        mic.feed(Duration::ZERO, &[16384i16, 0].repeat(700), |x| f32::from(x) / 32768.0);
        mic.feed(Duration::ZERO, &[f32::NAN; 800], |x| x);
        let mut got = vec![0.0; 1000];
        assert_eq!(consumer.pop_slice(&mut got), 1000);
        assert!(got[..700].iter().all(|x| *x == 0.25) && got[700..].iter().all(|x| *x == 0.0));
        let counts = counters.read();
        assert_eq!((counts.captured, counts.dropped, counts.mic_high), (1100, 100, 1000));
    }

    #[test]
    fn an_alarm_is_heard_once() {
        let alarms = Alarms::default();
        assert_eq!(alarms.take(), None);
        for alarm in [Alarm::Changed, Alarm::Gone] {
            alarms.raise(alarm);
            assert_eq!((alarms.take(), alarms.take()), (Some(alarm), None));
        }
    }

    /// Up to sample 900 it fades and is silent, also where the callback is past the first of them when it hears of that.
    #[test]
    fn what_is_taken_back_is_not_heard() {
        let (mut producer, consumer) = HeapRb::new(2000).split();
        let taken_back = Arc::new(TakenBack::default());
        let mut speaker = SpeakerCallback::new(consumer, 1, taken_back.clone(), Track::new(48_000), Arc::default());
        producer.push_slice(&[0.5; 1500]);
        let mut data = vec![0.0f32; 500];
        speaker.fill(Duration::ZERO, &mut data[..200], |x| x);
        taken_back.set(100, 900);
        let mut heard = data[..200].to_vec();
        for _ in 0..3 {
            speaker.fill(Duration::ZERO, &mut data[..400], |x| x);
            heard.extend(&data[..400]);
        }
        assert!(heard[100..200].iter().all(|x| *x == 0.5) && heard[264..900].iter().all(|x| *x == 0.0));
        assert!(heard[970..].iter().all(|x| *x == 0.5), "what comes after it is heard");
        assert!(heard.windows(2).skip(1).all(|w| (w[1] - w[0]).abs() < 0.01), "no click");
    }

    #[test]
    fn silence_is_made_up_and_counted_and_does_not_click() {
        let counters = Arc::new(Counters::default());
        let (mut producer, consumer) = HeapRb::new(2000).split();
        let mut speaker = SpeakerCallback::new(consumer, 2, Arc::default(), Track::new(48_000), counters.clone());
        producer.push_slice(&[0.5; 600]);
        let mut data = vec![9.0f32; 2000];
        speaker.fill(Duration::ZERO, &mut data, |x| x);
        assert_eq!((data[400], data[401]), (0.5, 0.5), "both channels");
        assert!(data.windows(3).all(|w| (w[2] - w[0]).abs() < 0.1), "no step, neither up nor down");
        assert!(data[1999].abs() < 1e-3, "it is silent in the end");
        let counts = counters.read();
        assert_eq!((counts.played, counts.invented, counts.speaker_high), (1000, 400, 600));
    }
}
