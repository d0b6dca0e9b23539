//! Does somebody speak? `earshot` scores frames of 16 ms; this makes beginnings and ends of them.

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
    /// Where less than this (in dB) of the microphone is left after echo cancellation, it was the program's own voice.
    pub left_db: f32,
}

impl Default for ActivitySettings {
    fn default() -> Self {
        Self { begin_score: 0.6, end_score: 0.35, begin_windows: 2, end_windows: 8, floor_dbfs: -50.0, left_db: -9.0 }
    }
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A voice began at this time.
    Began(Duration),
    /// It ended at this time.
    Ended(Duration),
}

/// Follows one signal.
pub struct Activity {
    settings: ActivitySettings,
    detector: Box<Detector>,
    window: Vec<f32>,
    /// Samples taken in.
    taken: u64,
    speaking: bool,
    /// Windows in a row that speak for a change.
    streak: u32,
    /// Where the streak began.
    streak_from: u64,
    floor: f32,
    left: f32,
    /// Energy of the microphone in the window.
    microphone: f32,
    score: f32,
}

impl Activity {
    /// Hears silence so far.
    pub fn new(settings: ActivitySettings) -> Self {
        let floor = WINDOW as f32 * 10f32.powf(settings.floor_dbfs / 10.0);
        let left = 10f32.powf(settings.left_db / 10.0);
        Self {
            settings,
            detector: Detector::default_boxed(),
            window: Vec::with_capacity(WINDOW),
            taken: 0,
            speaking: false,
            streak: 0,
            streak_from: 0,
            floor,
            left,
            microphone: 0.0,
            score: 0.0,
        }
    }

    /// Is a voice heard now?
    pub fn speaking(&self) -> bool {
        self.speaking
    }

    /// The score of the last window, 0 to 1.
    pub fn score(&self) -> f32 {
        self.score
    }

    /// Takes in samples at 16 kHz, and those of the microphone before the echo was taken out of it (the same where none was). Times count
    /// from the first sample ever.
    pub fn step(&mut self, samples: &[f32], microphone: &[f32]) -> Option<Change> {
        let mut change = None;
        for (sample, raw) in samples.iter().zip(microphone) {
            self.microphone += raw * raw;
            self.window.push(sample.clamp(-1.0, 1.0));
            self.taken += 1;
            if self.window.len() == WINDOW {
                change = self.window().or(change);
                self.window.clear();
            }
        }
        change
    }

    fn window(&mut self) -> Option<Change> {
        let energy: f32 = self.window.iter().map(|x| x * x).sum();
        self.score = self.detector.predict_f32(&self.window);
        let from = self.taken - WINDOW as u64;
        let settings = &self.settings;
        let other = if self.speaking { self.score < settings.end_score } else { self.score >= settings.begin_score };
        let needed = if self.speaking { settings.end_windows } else { settings.begin_windows };
        let own = energy < self.left * std::mem::take(&mut self.microphone);
        let other = if energy < self.floor || own { self.speaking } else { other };
        if !other {
            // One window to the contrary does not undo the others.
            self.streak = self.streak.saturating_sub(1);
            return None;
        }
        if self.streak == 0 {
            self.streak_from = from;
        }
        self.streak += 1;
        if self.streak < needed.max(1) {
            return None;
        }
        self.streak = 0;
        self.speaking = !self.speaking;
        let at = Duration::from_secs_f64(self.streak_from as f64 / f64::from(SAMPLE_RATE));
        Some(if self.speaking { Change::Began(at) } else { Change::Ended(at) })
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
                changes.extend(activity.step(piece, piece));
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
        assert!(sound.chunks(160).all(|piece| activity.step(piece, piece).is_none()));
        assert!(!activity.speaking() && activity.score() < 0.5);
    }
}
