//! Does somebody speak? `earshot` scores frames of 16 ms; this makes beginnings and ends of them.
//!
//! While the program speaks, the user is looked for twice. Where the canceller suppresses what is left of the echo, nothing is
//! left that could be taken for a voice, but often nothing of the user's first words either. Where it only subtracts the echo it
//! expects, the user is all there, over a rest of the echo that is as far below the microphone as the canceller is good: a voice
//! that stands out from what it usually leaves is probably the user's. In a room of 250 ms of reverberation the answer stops 110 ms after the
//! user's first sound (median of 208; 140 for nine in ten); with the first alone it was 200, and 550 for one in ten.
//!
//! Probably: so far it is a suspicion, which holds the answer. It is sure as soon as the voice goes on while the program is silent.

use std::time::Duration;

use earshot::Detector;
use serde::Deserialize;

use crate::audio::SAMPLE_RATE;

/// Samples of a frame of the detector.
const WINDOW: usize = 256;

/// When a voice is taken for one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActivitySettings {
    /// Score (0 to 1) from which on a window is voice.
    pub begin_score: f32,
    /// Score below which it is none any more.
    pub end_score: f32,
    /// Windows of 16 ms of voice that begin it.
    pub begin_windows: u32,
    /// Windows without that end it.
    pub end_windows: u32,
    /// Softer windows (dB below full scale) are never voice.
    pub floor_dbfs: f32,
    /// Score that is enough while the program speaks, where it also has to stand out.
    pub over_score: f32,
    /// Where less than this (in dB) of the microphone is left after echo cancellation, it was the program's own voice.
    pub left_db: f32,
    /// By how many dB a voice stands out from what cancellation usually leaves.
    pub above_db: f32,
    /// By how many dB something of it has to be left even after suppression: a canceller that has lost the room leaves much before, and
    /// nothing after.
    pub rest_above_db: f32,
}

/// Windows of voice after the program has become silent that make a suspicion sure.
const SURE: u32 = 3;
/// How much of the microphone is left after cancellation until that is known, in dB.
const LEFT_AT_FIRST: f32 = -6.0;
/// What suppression leaves until that is known, in dB of full scale.
const REST_AT_FIRST: f32 = -60.0;
/// Share of a window in the average of it.
const LEFT_SHARE: f32 = 0.03;
/// Windows of the microphone that are louder tell something of it, in dB below full scale.
const LEFT_FLOOR: f32 = -45.0;

impl Default for ActivitySettings {
    fn default() -> Self {
        Self {
            begin_score: 0.6,
            end_score: 0.35,
            begin_windows: 2,
            end_windows: 8,
            floor_dbfs: -50.0,
            over_score: 0.4,
            left_db: -14.0,
            above_db: 8.0,
            rest_above_db: 1.0,
        }
    }
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A voice began at this time, which may be the program's own: it is surely not, or it ends, as soon as that one is silent.
    Suspected(Duration),
    /// A voice began at this time.
    Began(Duration),
    /// It ended at this time.
    Ended(Duration),
}

/// Where the program's own voice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// In the room, or just gone.
    Speaks,
    /// Silent; the room may still echo faintly.
    Fades,
    /// Gone.
    Silent,
}

/// What is heard: the same everywhere while the program is silent.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// The microphone.
    pub microphone: &'a [f32],
    /// The microphone less the echo that is expected.
    pub open: &'a [f32],
    /// The same with the rest of the echo suppressed.
    pub clean: &'a [f32],
    /// Is the program's own voice in it?
    pub own: Own,
}

impl<'a> Heard<'a> {
    /// A room in which only others speak.
    pub fn direct(samples: &'a [f32]) -> Self {
        Self { microphone: samples, open: samples, clean: samples, own: Own::Silent }
    }
}

/// One signal in windows.
struct Signal {
    detector: Box<Detector>,
    window: Vec<f32>,
    score: f32,
    energy: f32,
}

impl Signal {
    fn new() -> Self {
        Self { detector: Detector::default_boxed(), window: Vec::with_capacity(WINDOW), score: 0.0, energy: 0.0 }
    }

    /// Scores the window and begins the next.
    fn window(&mut self) {
        self.energy = decibel(&self.window);
        self.score = self.detector.predict_f32(&self.window);
        self.window.clear();
    }
}

/// Mean square in dB of full scale.
fn decibel(samples: &[f32]) -> f32 {
    10.0 * (samples.iter().map(|x| x * x).sum::<f32>() / samples.len().max(1) as f32 + 1e-12).log10()
}

/// Follows what is heard.
pub struct Activity {
    settings: ActivitySettings,
    open: Signal,
    clean: Signal,
    microphone: Vec<f32>,
    /// Samples taken in.
    taken: u64,
    speaking: bool,
    /// Windows of the voice that cannot be the program's own; none any more as soon as they are enough.
    sure: Option<u32>,
    /// When the voice began.
    began: Duration,
    /// Windows in a row that speak for a change.
    streak: u32,
    /// Where the streak began.
    streak_from: u64,
    /// What cancellation usually leaves, in dB of the microphone.
    left: f32,
    /// What suppression usually leaves, in dB of full scale.
    rest: f32,
}

impl Activity {
    /// Hears silence so far.
    pub fn new(settings: ActivitySettings) -> Self {
        let microphone = Vec::with_capacity(WINDOW);
        let (open, clean) = (Signal::new(), Signal::new());
        Self {
            settings,
            open,
            clean,
            microphone,
            taken: 0,
            speaking: false,
            sure: None,
            began: Duration::ZERO,
            streak: 0,
            streak_from: 0,
            left: LEFT_AT_FIRST,
            rest: REST_AT_FIRST,
        }
    }

    /// Is a voice heard now?
    pub fn speaking(&self) -> bool {
        self.speaking
    }

    /// The score of the last window, 0 to 1.
    pub fn score(&self) -> f32 {
        self.open.score
    }

    /// What echo cancellation usually leaves of the microphone, in dB.
    pub fn left_db(&self) -> f32 {
        self.left
    }

    /// Takes in samples at 16 kHz. Times count from the first sample ever.
    pub fn step(&mut self, heard: Heard) -> Option<Change> {
        let mut change = None;
        for ((microphone, open), clean) in heard.microphone.iter().zip(heard.open).zip(heard.clean) {
            self.microphone.push(*microphone);
            self.open.window.push(open.clamp(-1.0, 1.0));
            self.clean.window.push(clean.clamp(-1.0, 1.0));
            self.taken += 1;
            if self.microphone.len() == WINDOW {
                change = self.window(heard.own).or(change);
            }
        }
        change
    }

    fn window(&mut self, own: Own) -> Option<Change> {
        let echo = own != Own::Silent;
        self.open.window();
        self.clean.window();
        let microphone = decibel(&self.microphone);
        self.microphone.clear();
        let settings = &self.settings;
        let left = self.open.energy - microphone;
        let loud = self.open.energy >= settings.floor_dbfs;
        let threshold = match (self.speaking, echo) {
            (_, true) => settings.over_score,
            (true, false) => settings.end_score,
            (false, false) => settings.begin_score,
        };
        let voice = if echo {
            let stands_out = left > settings.left_db.max(self.left + settings.above_db)
                && self.clean.energy > self.rest + settings.rest_above_db
                && loud
                && self.open.score >= threshold;
            let remains = self.clean.energy >= settings.floor_dbfs && self.clean.score >= threshold;
            if !remains && microphone > LEFT_FLOOR {
                // A canceller that has lost the room leaves much, which must not be taken for a voice for ever.
                let share = if stands_out { LEFT_SHARE / 3.0 } else { LEFT_SHARE };
                self.left += share * (left.min(0.0) - self.left);
                self.rest += share * (self.clean.energy - self.rest);
            }
            stands_out || remains
        } else {
            loud && self.open.score >= threshold
        };
        self.follow(voice, own)
    }

    /// A beginning or an end, if enough windows say so.
    fn follow(&mut self, voice: bool, own: Own) -> Option<Change> {
        if voice == self.speaking {
            // One window to the contrary does not undo the others.
            self.streak = self.streak.saturating_sub(1);
            let sure = self.sure.as_mut().filter(|_| voice && own != Own::Speaks)?;
            *sure += 1;
            if *sure < SURE {
                return None;
            }
            self.sure = None;
            return Some(Change::Began(self.began));
        }
        if self.streak == 0 {
            self.streak_from = self.taken - WINDOW as u64;
        }
        self.streak += 1;
        let needed = if self.speaking { self.settings.end_windows } else { self.settings.begin_windows };
        if self.streak < needed.max(1) {
            return None;
        }
        self.streak = 0;
        self.speaking = !self.speaking;
        let at = Duration::from_secs_f64(self.streak_from as f64 / f64::from(SAMPLE_RATE));
        if !self.speaking {
            return Some(Change::Ended(at));
        }
        self.began = at;
        self.sure = (own != Own::Silent).then_some(0);
        Some(if self.sure.is_some() { Change::Suspected(at) } else { Change::Began(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The shipped questions, each between two seconds of faint noise: one voice each, found where it is.
    #[test]
    fn questions_are_found_where_they_are() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano/samples");
        let mut checked = 0;
        for name in ["01-agenda", "05-brightness", "09-devices", "12-locks", "19-time", "26-thermostat"] {
            let voice = crate::audio::read_wav(&folder.join(format!("{name}.wav")), 30.0).expect("a sample question");
            let mut state = 7u32;
            let mut noise = |count: usize| -> Vec<f32> {
                (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        ((state >> 16) as f32 / 32_768.0 - 1.0) * 0.0007
                    })
                    .collect()
            };
            let mut all = noise(32_000);
            all.extend(voice.iter().zip(noise(voice.len())).map(|(a, b)| a + b));
            all.extend(noise(32_000));
            let mut activity = Activity::new(ActivitySettings::default());
            let mut changes = Vec::new();
            for piece in all.chunks(160) {
                changes.extend(activity.step(Heard::direct(piece)));
            }
            let length = Duration::from_secs_f64(voice.len() as f64 / 16_000.0);
            let (Some(Change::Began(began)), Some(Change::Ended(ended))) = (changes.first(), changes.last()) else {
                panic!("{name}: {changes:?}");
            };
            // The files have up to half a second of their own silence around the words.
            let two = Duration::from_secs(2);
            assert!(*began + Duration::from_millis(40) >= two && *began <= two + Duration::from_millis(600), "{name}: {changes:?}");
            assert!(
                *ended <= two + length + Duration::from_millis(100) && *ended + Duration::from_millis(700) >= two + length,
                "{name}: {changes:?}"
            );
            checked += 1;
        }
        assert_eq!(checked, 6);
    }

    #[test]
    fn silence_and_a_click_are_no_voice() {
        let mut activity = Activity::new(ActivitySettings::default());
        let mut sound = vec![0.0f32; 16_000];
        sound[8000] = 0.9;
        assert!(sound.chunks(160).all(|piece| activity.step(Heard::direct(piece)).is_none()));
        assert!(!activity.speaking() && activity.score() < 0.5);
    }
}
