//! Takes the program's own voice out of the microphone: WebRTC's AEC3, by the crate `aec3`.
//!
//! The reference is what was played, frame by frame as the microphone's frames came, and 20 ms late. The delay between the two is measured by
//! the canceller, not assumed.

use aec3::api::config::EchoCanceller3Config;
use aec3::audio_processing::aec3::block::Block;

use super::canceller::Canceller;
use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, Frame};

/// Samples of the canceller's blocks: 4 ms.
const BLOCK: usize = 64;
/// The canceller counts in 16-bit steps.
const SCALE: f32 = 32768.0;
/// A frame is two and a half blocks: every other frame half a block is late.
const LATE: usize = FRAME - FRAME / BLOCK * BLOCK;

/// Blocks of the room's answer that are learnt: 100 ms. In a room of 250 ms of reverberation the usual 13 (52 ms) leave so much that less is
/// understood of what is said into an answer; 40 learn the room too slowly.
const LENGTH: usize = 25;

/// Of the last 250 blocks with sound in them, a second, so many must agree on another delay than the one that was found.
const AGREE: i32 = 120;

/// Samples by which the canceller learns late what was played: so many can still be taken back. No echo comes as soon as that: what is played
/// waits in the speaker's ring and in the device's buffers for longer.
const REFERENCE_LATE: usize = 2 * FRAME;
const LATE_MS: i32 = (REFERENCE_LATE * 1000 / SAMPLE_RATE as usize) as i32;

/// Blocks from a frame of tones until its echo is gone: 400 ms.
const TONES_LAST: usize = 100;

/// The echo canceller of one microphone and one speaker.
pub struct Echo {
    canceller: Canceller,
    render: Block,
    capture: Block,
    /// The microphone less what the filter expects of the echo, and nothing suppressed.
    linear: Block,
    /// Samples that wait for a whole block, and those that are done.
    reference: Vec<f32>,
    microphone: Vec<f32>,
    clean: Vec<f32>,
    open: Vec<f32>,
    /// The canceller wants no offset: state of the filter that takes it out.
    offset: (f32, f32),
    /// Blocks until the room has forgotten the tones that were played; see [`Echo::tones`].
    tones: usize,
}

impl Default for Echo {
    fn default() -> Self {
        Self::new()
    }
}

impl Echo {
    /// Knows nothing of the room yet; it takes a second or two of speech to learn it.
    pub fn new() -> Self {
        let mut config = EchoCanceller3Config::default();
        config.filter.main.length_blocks = LENGTH;
        config.filter.shadow.length_blocks = LENGTH;
        // As it comes, the estimator finds delays that are none some twenty times an hour: for an early reflection, or for a vowel that is
        // like itself a little later. Most of them it does not find like this; the canceller keeps to the right one against the others.
        config.delay.detect_pre_echo = false;
        config.delay.delay_selection_thresholds.converged = AGREE;
        let mut reference = Vec::with_capacity(REFERENCE_LATE + FRAME + BLOCK);
        reference.resize(REFERENCE_LATE, 0.0);
        Self {
            canceller: Canceller::new(&config),
            render: Block::new(1, 1),
            capture: Block::new(1, 1),
            linear: Block::new(1, 1),
            reference,
            microphone: Vec::with_capacity(FRAME + BLOCK),
            clean: vec![0.0; LATE],
            open: vec![0.0; LATE],
            offset: (0.0, 0.0),
            tones: 0,
        }
    }

    /// A frame of the microphone without what was played, as `clean` with what is left of the echo suppressed (and much of a voice that
    /// speaks at the same time), as `open` with no suppression. Both come [`Echo::delay`] samples late.
    pub fn step(&mut self, microphone: &Frame, played: &Frame, clean: &mut Frame, open: &mut Frame) {
        self.reference.extend_from_slice(played);
        for sample in microphone {
            // First-order high pass at 30 Hz.
            let out = sample - self.offset.0 + 0.988 * self.offset.1;
            self.offset = (*sample, out);
            self.microphone.push(out);
        }
        while self.microphone.len() >= BLOCK {
            for (slot, sample) in self.render.view_mut(0, 0).iter_mut().zip(self.reference.drain(..BLOCK)) {
                *slot = sample * SCALE;
            }
            let mut saturated = false;
            for (slot, sample) in self.capture.view_mut(0, 0).iter_mut().zip(self.microphone.drain(..BLOCK)) {
                saturated |= sample.abs() >= 0.999;
                *slot = sample * SCALE;
            }
            let learns = !saturated && self.tones == 0;
            self.tones = self.tones.saturating_sub(1);
            self.canceller.step(&self.render, learns, &mut self.linear, &mut self.capture);
            let unscaled = |sample: &f32| (sample / SCALE).clamp(-1.0, 1.0);
            self.clean.extend(self.capture.view(0, 0).iter().map(unscaled));
            self.open.extend(self.linear.view(0, 0).iter().map(unscaled));
        }
        for (frame, done) in [(clean, &mut self.clean), (open, &mut self.open)] {
            for (slot, sample) in frame.iter_mut().zip(done.drain(..FRAME)) {
                *slot = sample;
            }
        }
    }

    /// What is played from here on are tones. Nothing can be learnt of the room from a few frequencies, but all that is known of the others
    /// would be forgotten.
    pub fn tones(&mut self) {
        self.tones = TONES_LAST;
    }

    /// Samples of what was played that can be taken back.
    pub const fn can_take_back() -> usize {
        REFERENCE_LATE
    }

    /// The last `count` samples that were played are not heard.
    pub fn take_back(&mut self, count: usize) {
        let from = self.reference.len().saturating_sub(count.min(REFERENCE_LATE));
        self.reference[from..].fill(0.0);
    }

    /// Samples by which the clean signal is late.
    pub const fn delay() -> usize {
        LATE
    }

    /// The measured delay from the program to the microphone in milliseconds; 0 while it is unknown.
    pub fn loop_delay_ms(&self) -> i32 {
        match self.canceller.delay_ms() {
            0 => 0,
            measured => measured + LATE_MS,
        }
    }

    /// By how many dB the echo is made weaker, by the canceller's own estimate.
    pub fn enhancement_db(&self) -> f64 {
        self.canceller.enhancement_db()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A room with one reflection: what is played comes back `late` samples later at half level.
    struct Reflecting {
        echo: Echo,
        past: std::collections::VecDeque<f32>,
        late: usize,
    }

    impl Reflecting {
        fn new(late: usize) -> Self {
            Self { echo: Echo::new(), past: vec![0.0; SAMPLE_RATE as usize].into(), late }
        }

        /// By how many dB the echo of the sound is made weaker from frame `from` on, with what is left of it suppressed and without.
        fn play(&mut self, sound: &[f32], from: usize) -> [f32; 2] {
            let (mut heard, mut left) = (0.0f32, [0.0f32; 2]);
            let (mut clean, mut open) = ([0.0; FRAME], [0.0; FRAME]);
            for (i, played) in sound.as_chunks::<FRAME>().0.iter().enumerate() {
                let mut microphone = [0.0; FRAME];
                for (mic, sample) in microphone.iter_mut().zip(played) {
                    self.past.push_back(*sample);
                    self.past.pop_front();
                    *mic = 0.5 * self.past[self.past.len() - 1 - self.late];
                }
                self.echo.step(&microphone, played, &mut clean, &mut open);
                if i >= from {
                    heard += energy(&microphone);
                    left[0] += energy(&clean);
                    left[1] += energy(&open);
                }
            }
            left.map(|left| 10.0 * (heard / left.max(1e-12)).log10())
        }
    }

    fn energy(frame: &Frame) -> f32 {
        frame.iter().map(|x| x * x).sum()
    }

    /// Seconds of noise that swells and fades like syllables.
    fn syllables(seconds: usize) -> Vec<f32> {
        let (mut state, mut smooth) = (1u32, 0.0f32);
        (0..seconds * SAMPLE_RATE as usize)
            .map(|n| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                smooth += 0.3 * ((state >> 16) as f32 / 32_768.0 - 1.0 - smooth);
                0.4 * ((n as f32 / 800.0).sin() * 0.5 + 0.5) * smooth
            })
            .collect()
    }

    /// Seconds of a sound that is like itself 12 ms later.
    fn vowel(seconds: usize) -> Vec<f32> {
        let pulse = |n: usize| if n.is_multiple_of(192) { 0.5 } else { 0.0 };
        let mut low = 0.0f32;
        (0..seconds * SAMPLE_RATE as usize)
            .map(|n| {
                low += 0.3 * (pulse(n) - low);
                low
            })
            .collect()
    }

    #[test]
    fn a_vowel_does_not_change_the_delay_and_another_room_does() {
        let mut room = Reflecting::new(800);
        room.play(&syllables(8), 0);
        let delay = room.echo.loop_delay_ms();
        assert!((30..=60).contains(&delay), "{delay} ms");
        room.play(&vowel(6), 0);
        let [_, after] = room.play(&syllables(2), 0);
        println!("after the vowel {after} dB, {} ms", room.echo.loop_delay_ms());
        assert!(after > 10.0 && room.echo.loop_delay_ms() == delay, "{after} dB, {} ms", room.echo.loop_delay_ms());
        // The loudspeaker is moved to a device that is 200 ms later.
        room.late += 3200;
        let [_, gone] = room.play(&syllables(8), 600);
        println!("moved {gone} dB, {} ms", room.echo.loop_delay_ms());
        assert!(gone > 15.0, "{gone} dB");
        assert!((delay + 180..=delay + 220).contains(&room.echo.loop_delay_ms()), "{} ms", room.echo.loop_delay_ms());
    }

    /// Speech-like noise over a path of 50 ms at half level: gone after a few seconds; the delay is found; what is not an echo stays.
    #[test]
    fn the_echo_goes_and_the_rest_stays() {
        let mut room = Reflecting::new(800);
        let [gone, _] = room.play(&syllables(6), 400);
        let mut echo = room.echo;
        let (mut clean, mut open) = ([0.0; FRAME], [0.0; FRAME]);
        assert!(gone > 20.0, "{gone} dB");
        assert!((30..=60).contains(&echo.loop_delay_ms()), "{} ms", echo.loop_delay_ms());
        // What is taken back is not in the room, and nothing is taken out for it.
        let loud: Frame = std::array::from_fn(|n| if n.is_multiple_of(2) { 0.2 } else { -0.1 });
        let mut phantom = |taken_back: usize| {
            let mut all = 0.0f32;
            for i in 0..60 {
                let played = if i < 2 { loud } else { [0.0; FRAME] };
                echo.step(&[0.0; FRAME], &played, &mut clean, &mut open);
                if i == 1 {
                    echo.take_back(taken_back);
                }
                all += energy(&open);
            }
            all
        };
        let (none, all) = (phantom(0), phantom(Echo::can_take_back()));
        assert!(none > 0.01 && all < 1e-3 * none, "{all} is left of {none}");
        // Nothing is played: a voice of the room passes.
        let (mut before, mut after) = (0.0f32, 0.0f32);
        for i in 0..200 {
            let voice: Frame = std::array::from_fn(|n| 0.2 * ((i * FRAME + n) as f32 * 0.15).sin());
            echo.step(&voice, &[0.0; FRAME], &mut clean, &mut open);
            if i >= 100 {
                before += energy(&voice);
                after += energy(&clean);
            }
        }
        assert!(after > 0.5 * before, "{before} became {after}");
    }
}
