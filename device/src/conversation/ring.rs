//! The sound of a timer or an alarm: two short tones a second, until somebody stops it.

use std::f32::consts::TAU;

use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, FRAMES_PER_SECOND, Frame};
use crate::turns::State;

/// Hertz of the two tones, a major third apart.
const TONES: [f32; 2] = [880.0, 1108.7];
/// Samples of a tone, of the fade at its ends, and from one pair to the next.
const TONE: usize = SAMPLE_RATE as usize * 15 / 100;
const FADE: usize = SAMPLE_RATE as usize / 100;
const PERIOD: usize = SAMPLE_RATE as usize;
/// Peak, of full scale.
const LEVEL: f32 = 0.25;

/// Whoever speaks is not drowned out for so many frames: long enough to say "stop". After that it may be a television, and the alarm goes
/// on, softer by this factor.
const HUSH: u32 = 3 * FRAMES_PER_SECOND;
const SOFT: f32 = 0.35;
/// What rings is heard at any volume: at least as at half of it.
pub const LEAST_GAIN: f32 = 0.25;
/// Pairs of tones in place of words that cannot be said.
pub const WORDLESS: usize = 3;

/// Tones that call attention: so many pairs, and a breath behind them.
pub fn chime(pairs: usize) -> Vec<f32> {
    let (mut ringer, mut frame, mut sound) = (Ringer::default(), [0.0; FRAME], Vec::new());
    while sound.len() < length(pairs) {
        ringer.frame(true, State::Idle, &mut frame);
        sound.extend(frame);
    }
    sound
}

/// Samples of a chime.
fn length(pairs: usize) -> usize {
    pairs * PERIOD - 2 * TONE
}

/// How long a chime of one pair takes.
pub fn chime_seconds() -> f64 {
    length(1) as f64 / f64::from(SAMPLE_RATE)
}

/// Makes the sound, 10 ms at a time.
#[derive(Debug, Default)]
pub struct Ringer {
    /// Sample of the period; a tone that has begun is not cut off with a click.
    at: usize,
    /// Factor of this pair of tones.
    level: f32,
    /// Frames for which somebody has had the word.
    hushed: u32,
}

impl Ringer {
    /// Leaves off a tone that has begun: its rest is not to be heard after something else.
    pub fn stop(&mut self) {
        self.at = 0;
    }

    /// Fills `out` with the next samples if it is to ring while the agent does this, or rings out; false where there is nothing to hear.
    pub fn frame(&mut self, ringing: bool, state: State, out: &mut Frame) -> bool {
        self.hushed = if state == State::Idle { 0 } else { self.hushed.saturating_add(1) };
        let on = ringing
            && match state {
                State::Idle => true,
                State::Listening | State::Thinking => self.hushed > HUSH,
                State::Speaking | State::Interrupted => false,
            };
        if self.at == 0 {
            if !on {
                return false;
            }
            self.level = if state == State::Idle { 1.0 } else { SOFT };
        }
        for sample in out {
            let within = self.at % TONE;
            *sample = match TONES.get(self.at / TONE) {
                Some(tone) => {
                    let fade = within.min(TONE - 1 - within).min(FADE) as f32 / FADE as f32;
                    LEVEL * self.level * fade * (TAU * tone * within as f32 / SAMPLE_RATE as f32).sin()
                }
                None => 0.0,
            };
            self.at += 1;
            if self.at == PERIOD || (!on && self.at >= TONE && within == TONE - 1) {
                self.at = 0;
                if !on {
                    return true;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_once_a_second_and_ends_without_a_click() {
        let mut ringer = Ringer::default();
        let mut frame: Frame = [0.0; FRAME];
        assert!(!ringer.frame(false, State::Idle, &mut frame));
        let mut sound = Vec::new();
        for i in 0..300 {
            frame.fill(0.0);
            let on = i < 205; // in the middle of a tone
            if ringer.frame(on, State::Idle, &mut frame) {
                assert!(i < 235, "it does not end");
            }
            sound.extend(frame);
        }
        let loud = |from: usize, to: usize| sound[from..to].iter().any(|x| x.abs() > 0.2);
        assert!(loud(0, 4800) && !loud(4800, 16_000) && loud(16_000, 20_800) && loud(32_000, 34_000));
        let step = sound.windows(2).fold(0.0f32, |most, pair| most.max((pair[1] - pair[0]).abs()));
        assert!(step < 0.12, "a click of {step}");
        assert!(sound[40_000..].iter().all(|x| *x == 0.0));
    }

    /// Somebody who speaks is heard for three seconds; a television does not silence the alarm.
    #[test]
    fn it_gives_way_to_a_voice_for_a_moment_only() {
        let mut ringer = Ringer::default();
        let mut frame: Frame = [0.0; FRAME];
        let mut loudest = |state: State, seconds: usize| {
            let mut most = 0.0f32;
            for _ in 0..seconds * 100 {
                frame.fill(0.0);
                ringer.frame(true, state, &mut frame);
                most = frame.iter().fold(most, |most, x| most.max(x.abs()));
            }
            most
        };
        let loud = loudest(State::Idle, 2);
        assert!(loud > 0.24);
        assert_eq!(loudest(State::Listening, 2), 0.0);
        assert_eq!(loudest(State::Thinking, 1), 0.0);
        let soft = loudest(State::Listening, 5);
        assert!(soft > 0.05 && soft < 0.5 * loud, "{soft}");
        assert_eq!(loudest(State::Speaking, 5), 0.0, "the agent is not drowned out");
        assert!(loudest(State::Idle, 2) > 0.24);
    }

    #[test]
    fn a_chime_is_so_many_pairs() {
        let sound = chime(3);
        let begins = |from: usize| sound[from..from + 1600].iter().any(|x| x.abs() > 0.2);
        assert!(begins(0) && begins(16_000) && begins(32_000) && sound.len() < 3 * PERIOD);
        assert_eq!(sound.last(), Some(&0.0));
        assert_eq!(chime(1).len(), PERIOD - 2 * TONE);
        assert_eq!(chime(1).len() as f64, chime_seconds() * f64::from(SAMPLE_RATE));
    }
}
