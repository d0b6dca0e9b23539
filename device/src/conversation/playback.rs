//! The answer on its way to the speaker: it can be held, resumed, and cut, and knows how much of it was heard.

use std::collections::VecDeque;

use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, Frame};

/// Samples over which the sound fades where it is held, and where it comes back.
const FADE: usize = 80;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Played {
    /// Silence.
    Nothing,
    /// The first samples of the answer.
    First,
    /// More of it.
    More,
    /// There is nothing more to come; what is in the device's buffers is being heard.
    Last,
}

/// The samples of one answer.
#[derive(Debug, Default)]
pub struct Playback {
    waiting: VecDeque<f32>,
    /// Samples given out.
    given: usize,
    complete: bool,
    held: bool,
    /// Held a frame ago.
    was_held: bool,
    over: bool,
}

impl Playback {
    /// Forgets everything: a new answer may come.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Appends samples (16 kHz).
    pub fn push(&mut self, samples: &[f32]) {
        self.waiting.extend(samples);
    }

    /// All samples are there.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Holds the answer where it is.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Goes on where it was held.
    pub fn resume(&mut self) {
        self.held = false;
    }

    /// Seconds that were heard, if `latency` frames that were given out have not become sound yet.
    pub fn heard(&self, latency: f64) -> f64 {
        ((self.given as f64 - latency * FRAME as f64) / f64::from(SAMPLE_RATE)).max(0.0)
    }

    /// The next frame.
    pub fn frame(&mut self, frame: &mut Frame) -> Played {
        frame.fill(0.0);
        let (fade_out, fade_in) = (self.held && !self.was_held, !self.held && self.was_held);
        self.was_held = self.held;
        if self.held && !fade_out {
            return Played::Nothing;
        }
        let first = self.given == 0 && !self.waiting.is_empty();
        let count = if fade_out { FADE } else { FRAME }.min(self.waiting.len());
        for (slot, sample) in frame.iter_mut().zip(self.waiting.drain(..count)) {
            *slot = sample;
        }
        if fade_out {
            frame[..FADE].iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 - i as f32 / FADE as f32);
        } else if fade_in {
            frame[..FADE].iter_mut().enumerate().for_each(|(i, x)| *x *= i as f32 / FADE as f32);
        }
        self.given += count;
        if self.complete && self.waiting.is_empty() && !self.held && !std::mem::replace(&mut self.over, true) {
            return Played::Last;
        }
        match (first, count) {
            (true, _) => Played::First,
            (false, 0) => Played::Nothing,
            (false, _) => Played::More,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_held_and_goes_on_and_nothing_is_lost() {
        let mut playback = Playback::default();
        let mut frame = [0.0; FRAME];
        assert_eq!(playback.frame(&mut frame), Played::Nothing);
        playback.push(&vec![0.5; 500]);
        playback.complete();
        assert_eq!(playback.frame(&mut frame), Played::First);
        playback.hold();
        assert_eq!(playback.frame(&mut frame), Played::More, "it fades");
        assert!(frame[0] == 0.5 && frame[79] < 0.01 && frame[80] == 0.0);
        for _ in 0..10 {
            assert_eq!(playback.frame(&mut frame), Played::Nothing);
        }
        assert!((playback.heard(0.0) - 0.015).abs() < 1e-9 && playback.heard(1.0) < 0.006);
        playback.resume();
        assert_eq!(playback.frame(&mut frame), Played::More);
        assert!(frame[0] == 0.0 && frame[159] == 0.5);
        assert_eq!(playback.frame(&mut frame), Played::Last);
        assert_eq!(playback.frame(&mut frame), Played::Nothing, "once");
        assert!((playback.heard(0.0) - 500.0 / 16_000.0).abs() < 1e-9);
    }
}
