//! What lies before the question in a recording: nobody speaks yet.
//!
//! A live question begins just before its first sound, and the networks know no other; after two seconds of silence they understand
//! nothing. So a recording is heard from shortly before its first voice on.

use crate::audio::SAMPLE_RATE;
use crate::hearing::{Activity, ActivitySettings, Heard};

/// Samples before the first voice that are heard: more than questions of the training have, so that these are heard whole.
const KEPT: usize = SAMPLE_RATE as usize * 6 / 10;

/// Holds a recording back until somebody speaks in it.
pub(super) struct Lead {
    /// None as soon as somebody has spoken.
    activity: Option<Box<Activity>>,
    held: Vec<f32>,
}

impl Lead {
    pub(super) fn new() -> Self {
        Self { activity: Some(Box::new(Activity::new(ActivitySettings::default()))), held: Vec::new() }
    }

    /// Takes in samples; returns those that are to be heard now.
    pub(super) fn step(&mut self, samples: Vec<f32>) -> Vec<f32> {
        let Some(activity) = &mut self.activity else { return samples };
        activity.step(Heard::direct(&samples));
        self.held.extend(samples);
        if !activity.speaking() {
            return Vec::new();
        }
        self.activity = None;
        let mut held = std::mem::take(&mut self.held);
        // The voice began some 50 ms ago; that is little against what is kept.
        held.drain(..held.len().saturating_sub(KEPT));
        held
    }

    /// The recording is over: all of it, where nobody spoke.
    pub(super) fn rest(self) -> Vec<f32> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_question_is_heard_from_shortly_before_its_voice() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano/samples/12-locks.wav");
        let voice = crate::audio::read_wav(&path, 30.0).expect("a sample");
        let hear = |recording: &[f32]| {
            let mut lead = Lead::new();
            let mut heard: Vec<f32> = recording.chunks(320).flat_map(|piece| lead.step(piece.to_vec())).collect();
            heard.extend(lead.rest());
            heard
        };
        assert_eq!(hear(&voice), voice, "nothing is taken from a question as they are trained");
        let mut late = vec![0.0; 80_000];
        late.extend(&voice);
        let heard = hear(&late);
        assert!(heard.ends_with(&voice) && heard.len() <= voice.len() + KEPT, "{} of {} samples", heard.len(), late.len());
        assert_eq!(hear(&[0.0; 40_000]).len(), 40_000, "where nobody speaks it is for others to say so");
    }
}
