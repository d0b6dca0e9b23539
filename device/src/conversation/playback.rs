//! The answer on its way to the speaker: it can be held, resumed, and cut, and knows how much of it was heard.

use std::collections::VecDeque;

use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, Frame};
use crate::hearing::Echo;

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

/// Holes in answers: nothing was there to play, though there was more to come. The agent is slower than its voice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gaps {
    pub count: u64,
    /// Frames of silence in all of them.
    pub frames: u64,
}

/// The samples of one answer.
#[derive(Debug, Default)]
pub struct Playback {
    waiting: VecDeque<f32>,
    /// What was given out last, as much as can be taken back: sound, or silence.
    recent: VecDeque<Option<f32>>,
    begun: bool,
    /// Samples given out, and samples of silence given out since.
    given: usize,
    silent: usize,
    /// Frames for which nothing was there; a gap as soon as more of the answer comes.
    missing: u64,
    gaps: Gaps,
    complete: bool,
    held: bool,
    /// Held a frame ago.
    was_held: bool,
    over: bool,
}

impl Playback {
    /// Forgets everything but the gaps: a new answer may come.
    pub fn clear(&mut self) {
        *self = Self { gaps: self.gaps, ..Self::default() };
    }

    /// The gaps of all answers.
    pub fn gaps(&self) -> Gaps {
        self.gaps
    }

    /// Appends samples (16 kHz).
    pub fn push(&mut self, samples: &[f32]) {
        if !samples.is_empty() && self.missing > 0 {
            self.gaps.count += 1;
            self.gaps.frames += std::mem::take(&mut self.missing);
        }
        self.waiting.extend(samples);
    }

    /// All samples are there.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Holds the answer where it is; the last `taken_back` samples that were given out, of sound and silence, are not heard.
    pub fn hold(&mut self, taken_back: usize) {
        self.held = true;
        let back = self.recent.split_off(self.recent.len().saturating_sub(taken_back));
        // The device has faded it out, or there is nothing to fade.
        self.was_held |= taken_back > 0;
        for sample in back.iter().rev().flatten() {
            self.waiting.push_front(*sample);
            self.given -= 1;
            self.over = false;
        }
        if back.iter().any(Option::is_some) {
            self.silent = back.len() + self.recent.iter().rev().take_while(|sample| sample.is_none()).count();
        }
        self.recent.extend(back.iter().map(|_| None));
    }

    /// Notes what was given out.
    fn note(&mut self, frame: &Frame, sound: usize) {
        self.recent.extend(frame.iter().enumerate().map(|(i, sample)| (i < sound).then_some(*sample)));
        self.recent.drain(..self.recent.len().saturating_sub(Echo::can_take_back()));
    }

    /// Has all of it been given out?
    pub fn over(&self) -> bool {
        self.over
    }

    /// Goes on where it was held.
    pub fn resume(&mut self) {
        self.held = false;
    }

    /// Seconds that were heard, if `latency` frames that were given out have not become sound yet: the silence since the answer was held
    /// comes last.
    pub fn heard(&self, latency: f64) -> f64 {
        let unheard = (latency * FRAME as f64 - self.silent as f64).max(0.0);
        ((self.given as f64 - unheard) / f64::from(SAMPLE_RATE)).max(0.0)
    }

    /// The next frame.
    pub fn frame(&mut self, frame: &mut Frame) -> Played {
        frame.fill(0.0);
        let (fade_out, fade_in) = (self.held && !self.was_held, !self.held && self.was_held);
        self.was_held = self.held;
        if self.held && !fade_out {
            self.silent += FRAME;
            self.note(frame, 0);
            return Played::Nothing;
        }
        let first = !self.begun && !self.waiting.is_empty();
        self.begun |= first;
        let count = if fade_out { FADE } else { FRAME }.min(self.waiting.len());
        for (slot, sample) in frame.iter_mut().zip(self.waiting.drain(..count)) {
            *slot = sample;
        }
        self.note(frame, count);
        if fade_out {
            frame[..FADE].iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 - i as f32 / FADE as f32);
        } else if fade_in {
            frame[..FADE].iter_mut().enumerate().for_each(|(i, x)| *x *= i as f32 / FADE as f32);
        }
        self.given += count;
        self.silent = FRAME - count + if count == 0 { self.silent } else { 0 };
        if count == 0 && self.given > 0 && !self.complete && !self.held {
            self.missing += 1;
        }
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
        playback.hold(0);
        assert_eq!(playback.frame(&mut frame), Played::More, "it fades");
        assert!(frame[0] == 0.5 && frame[79] < 0.01 && frame[80] == 0.0);
        for _ in 0..10 {
            assert_eq!(playback.frame(&mut frame), Played::Nothing);
        }
        // 5 ms were given in the last frame with sound, and 105 ms of silence since.
        assert!((playback.heard(0.0) - 0.015).abs() < 1e-9 && (playback.heard(10.5) - 0.015).abs() < 1e-9, "all of it was heard");
        assert!((playback.heard(11.0) - 0.010).abs() < 1e-9, "what waits before the silence was not");
        playback.resume();
        assert_eq!(playback.frame(&mut frame), Played::More);
        assert!(frame[0] == 0.0 && frame[159] == 0.5);
        assert_eq!(playback.frame(&mut frame), Played::Last);
        assert_eq!(playback.frame(&mut frame), Played::Nothing, "once");
        assert!((playback.heard(0.0) - 500.0 / 16_000.0).abs() < 1e-9);
        assert!(playback.heard(2.0) < 0.031, "the last of it is on its way");
        assert_eq!(playback.gaps(), Gaps::default());
    }

    /// The end of an answer is taken back when it is held: it is said when the answer goes on, and only then it is over.
    #[test]
    fn what_is_taken_back_is_said_again() {
        let mut playback = Playback::default();
        let mut frame = [0.0; FRAME];
        let sound: Vec<f32> = (1..=500).map(|i| i as f32 / 500.0).collect();
        playback.push(&sound);
        playback.complete();
        for expected in [Played::First, Played::More, Played::More, Played::Last, Played::Nothing] {
            assert_eq!(playback.frame(&mut frame), expected);
        }
        assert!(playback.over());
        // 140 samples of silence stand behind the sound, and a frame of it.
        playback.hold(320);
        assert!(!playback.over() && (playback.heard(0.0) - 480.0 / 16_000.0).abs() < 1e-9);
        assert_eq!(playback.frame(&mut frame), Played::Nothing, "the device fades");
        playback.hold(320);
        assert!((playback.heard(0.0) - 480.0 / 16_000.0).abs() < 1e-9, "there is nothing more to take back");
        playback.resume();
        assert_eq!(playback.frame(&mut frame), Played::Last);
        assert!(frame[0] == 0.0 && (frame[19] - 19.0 / 80.0).abs() < 1e-6 && frame[20] == 0.0, "it fades in");
        // A gap in what is taken back: only what came behind it is said again.
        let mut playback = Playback::default();
        playback.push(&sound[..FRAME]);
        assert_eq!(playback.frame(&mut frame), Played::First);
        assert_eq!(playback.frame(&mut frame), Played::Nothing);
        playback.push(&sound[FRAME..]);
        assert_eq!(playback.frame(&mut frame), Played::More);
        playback.hold(2 * FRAME);
        assert!((playback.heard(2.0) - 0.01).abs() < 1e-9 && playback.heard(3.0) < 1e-9);
        playback.resume();
        assert_eq!(playback.frame(&mut frame), Played::More);
        assert!(frame[FRAME - 1] == sound[2 * FRAME - 1]);
        let mut playback = Playback::default();
        playback.push(&sound);
        assert_eq!(playback.frame(&mut frame), Played::First);
        playback.hold(FRAME);
        playback.resume();
        assert_eq!(playback.frame(&mut frame), Played::More, "it has begun only once");
        assert!(frame[100] == sound[100]);
    }

    #[test]
    fn gaps_are_what_lies_between_two_sounds() {
        let mut playback = Playback::default();
        let mut frame = [0.0; FRAME];
        let mut frames = |playback: &mut Playback, count: usize| {
            for _ in 0..count {
                playback.frame(&mut frame);
            }
        };
        frames(&mut playback, 5);
        playback.push(&[0.5; FRAME]);
        frames(&mut playback, 31);
        assert_eq!(playback.gaps(), Gaps::default(), "before the first sound, and as long as nothing follows");
        playback.push(&[0.5; 2 * FRAME]);
        assert_eq!(playback.gaps(), Gaps { count: 1, frames: 30 });
        frames(&mut playback, 1);
        playback.hold(0);
        frames(&mut playback, 50);
        playback.resume();
        frames(&mut playback, 1);
        playback.complete();
        frames(&mut playback, 50);
        playback.clear();
        frames(&mut playback, 5);
        assert_eq!(playback.gaps(), Gaps { count: 1, frames: 30 }, "held, and over");
    }
}
