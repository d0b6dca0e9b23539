//! Does somebody speak? Beginnings and ends of it, from frames that say yes or no.
//!
//! While the program is silent, `earshot` scores windows of 16 ms. While it speaks, a network that knows what was played does
//! ([`super::Overlap`]) scores every frame of 10 ms; its scores are added up as evidence (Page 1954, "Continuous inspection schemes"): two
//! frames that are sure begin a voice, and so do many that are not, a hiss say. What is taken for the user so may still be the program's own
//! voice: so far it is a suspicion, which holds the answer. It is sure as soon as the voice goes on while the program is silent.

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
    /// How sure the network must be, 0 to 1, that the user speaks while the program does: five frames of 10 ms like this begin it.
    pub over_score: f32,
}

/// Windows of voice after the program has become silent that make a suspicion sure.
const SURE: u32 = 6;
/// Windows for which a voice goes on by [`ActivitySettings::end_score`] alone. A voice has windows that could begin one again and again; steady
/// noise that the user has to speak above keeps a score between the two for ever. Of 120 questions in white noise at 10 dB nine had no end within
/// six seconds without this limit and all have one with it; half a second divides no more of them, in any noise, than a second does.
const UNSURE: u32 = 31;

/// Evidence that the user speaks over the program, in natural logarithms of odds: of a frame at [`ActivitySettings::over_score`], the most of
/// one frame, and what begins a voice. Tried on the scores of 2,152 simulated interruptions (`rooms`): as many answers are held for nothing
/// as with windows of 16 ms, and a voice is noticed 7 ms sooner.
const EVIDENCE: f32 = 2.67;
const MOST_EVIDENCE: f32 = 6.5;
const ENOUGH: f32 = 12.8;

impl Default for ActivitySettings {
    fn default() -> Self {
        Self { begin_score: 0.6, end_score: 0.35, begin_windows: 2, end_windows: 8, floor_dbfs: -50.0, over_score: 0.8 }
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

/// What is heard.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// The microphone, less the echo that is expected where there is any.
    pub samples: &'a [f32],
    /// Is the program's own voice in it?
    pub own: Own,
    /// How sure it is that the user speaks, 0 to 1, where the program's own voice is in it.
    pub over: f32,
}

impl<'a> Heard<'a> {
    /// A room in which only others speak.
    pub fn direct(samples: &'a [f32]) -> Self {
        Self { samples, own: Own::Silent, over: 0.0 }
    }
}

/// Mean square in dB of full scale.
fn decibel(samples: &[f32]) -> f32 {
    10.0 * (samples.iter().map(|x| x * x).sum::<f32>() / samples.len().max(1) as f32 + 1e-12).log10()
}

/// Follows what is heard.
pub struct Activity {
    settings: ActivitySettings,
    detector: Box<Detector>,
    window: Vec<f32>,
    score: f32,
    /// Windows since the last one that could have begun a voice.
    unsure: u32,
    /// Samples taken in.
    taken: u64,
    speaking: bool,
    /// Windows of the voice that cannot be the program's own; none any more as soon as they are enough.
    sure: Option<u32>,
    /// When the voice began.
    began: Duration,
    /// That the user speaks over the program; none where he does, or it is silent.
    evidence: f32,
    /// Windows in a row that speak for a change.
    streak: u32,
    /// Where the streak began.
    streak_from: u64,
}

impl Activity {
    /// Hears silence so far.
    pub fn new(settings: ActivitySettings) -> Self {
        Self {
            settings,
            detector: Detector::default_boxed(),
            window: Vec::with_capacity(WINDOW),
            score: 0.0,
            unsure: 0,
            taken: 0,
            speaking: false,
            sure: None,
            began: Duration::ZERO,
            evidence: 0.0,
            streak: 0,
            streak_from: 0,
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

    /// Takes in the samples of a frame at 16 kHz. Times count from the first sample ever.
    pub fn step(&mut self, heard: Heard) -> Option<Change> {
        let mut change = None;
        let begun = self.taken;
        for sample in heard.samples {
            self.window.push(sample.clamp(-1.0, 1.0));
            self.taken += 1;
            if self.window.len() == WINDOW {
                change = self.window(heard.own, heard.over).or(change);
            }
        }
        if heard.own != Own::Speaks || self.speaking {
            self.evidence = 0.0;
            return change;
        }
        self.weigh(heard.over, begun).or(change)
    }

    fn window(&mut self, own: Own, over: f32) -> Option<Change> {
        let loud = decibel(&self.window) >= self.settings.floor_dbfs;
        self.score = self.detector.predict_f32(&self.window);
        self.window.clear();
        if own == Own::Speaks && !self.speaking {
            return None;
        }
        let sure = loud && self.score >= self.settings.begin_score;
        self.unsure = if sure { 0 } else { self.unsure.saturating_add(1) };
        let voice = match own {
            Own::Silent => sure || (self.speaking && loud && self.score >= self.settings.end_score && self.unsure < UNSURE),
            Own::Speaks => over >= self.settings.over_score,
            // What is left of its own voice is no voice of a user, however like one it is: this makes a suspicion sure.
            Own::Fades => over >= self.settings.over_score && loud && self.score >= self.settings.end_score,
        };
        self.follow(voice, own)
    }

    /// A beginning while the program speaks, if there is enough evidence for it with the frame that begins at sample `begun`.
    fn weigh(&mut self, over: f32, begun: u64) -> Option<Change> {
        let logit = |p: f32| {
            let p = p.clamp(1e-4, 1.0 - 1e-4);
            (p / (1.0 - p)).ln()
        };
        if self.evidence == 0.0 {
            self.streak_from = begun;
        }
        let of_frame = logit(over) - logit(self.settings.over_score) + EVIDENCE;
        self.evidence = (self.evidence + of_frame.min(MOST_EVIDENCE)).max(0.0);
        self.streak = 0;
        if self.evidence < ENOUGH {
            return None;
        }
        self.evidence = 0.0;
        Some(self.begin(Own::Speaks))
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
        if self.speaking {
            self.speaking = false;
            return Some(Change::Ended(self.streak_begin()));
        }
        Some(self.begin(own))
    }

    /// A voice, from the first window of the streak on.
    fn begin(&mut self, own: Own) -> Change {
        self.speaking = true;
        self.began = self.streak_begin();
        self.sure = (own != Own::Silent).then_some(0);
        if self.sure.is_some() { Change::Suspected(self.began) } else { Change::Began(self.began) }
    }

    fn streak_begin(&self) -> Duration {
        Duration::from_secs_f64(self.streak_from as f64 / f64::from(SAMPLE_RATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::live::FRAME;
    use std::path::Path;

    const QUESTIONS: [&str; 6] = ["01-agenda", "05-brightness", "09-devices", "12-locks", "19-time", "26-thermostat"];

    /// Samples of a shipped question, and what is noticed with two seconds before and after it, in white noise of this height.
    fn in_noise(name: &str, height: f32) -> (usize, Vec<Change>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano/samples");
        let voice = crate::audio::read_wav(&folder.join(format!("{name}.wav")), 30.0).expect("a sample question");
        let mut all = vec![0.0; 32_000];
        all.extend(&voice);
        all.extend([0.0; 32_000]);
        let mut state = 7u32;
        for sample in &mut all {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *sample += ((state >> 16) as f32 / 32_768.0 - 1.0) * height;
        }
        let mut activity = Activity::new(ActivitySettings::default());
        (voice.len(), all.chunks(160).filter_map(|piece| activity.step(Heard::direct(piece))).collect())
    }

    /// The shipped questions, each between two seconds of faint noise: one voice each, found where it is.
    #[test]
    fn questions_are_found_where_they_are() {
        let mut checked = 0;
        for name in QUESTIONS {
            let (samples, changes) = in_noise(name, 0.0007);
            let length = Duration::from_secs_f64(samples as f64 / 16_000.0);
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
        assert_eq!(checked, QUESTIONS.len());
    }

    /// Noise that stays is no voice that goes on.
    #[test]
    fn a_question_in_steady_noise_has_an_end() {
        for height in [0.005, 0.01, 0.02, 0.03, 0.04, 0.06] {
            for name in QUESTIONS {
                let (_, changes) = in_noise(name, height);
                assert!(!matches!(changes.last(), Some(Change::Began(_) | Change::Suspected(_))), "{height} {name}: {changes:?}");
            }
        }
    }

    /// While the program speaks: two frames that are sure begin a voice, and so do many that are not; one, or an even doubt, does not.
    #[test]
    fn evidence_adds_up() {
        let begins = |scores: &[f32]| {
            let mut activity = Activity::new(ActivitySettings::default());
            let silence = [0.0; FRAME];
            scores.iter().position(|over| {
                let change = activity.step(Heard { samples: &silence, own: Own::Speaks, over: *over });
                assert!(change.is_none_or(|change| matches!(change, Change::Suspected(_))));
                change.is_some()
            })
        };
        assert_eq!(begins(&[0.01, 1.0, 1.0, 1.0]), Some(2));
        assert_eq!(begins(&[0.8; 9]), Some(4));
        assert_eq!(begins(&[0.52; 19]), Some(9));
        assert_eq!(begins(&[0.02, 1.0, 0.02, 0.02, 0.02, 1.0, 0.02, 0.02]), None, "a click each");
        assert_eq!(begins(&[0.2; 1000]), None, "neither for nor against");
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
