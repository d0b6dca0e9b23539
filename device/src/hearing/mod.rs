//! From the microphone to "somebody speaks", and to what the model hears.
//!
//! The model hears the untouched microphone as soon as the program is silent, because cancelling costs more than it brings there. While the
//! program's voice or its echo is in the room, it hears the microphone less the echo that the canceller expects, and nothing suppressed:
//! what suppression takes of the user's voice costs more than what is left of the echo.

mod activity;
mod canceller;
mod echo;
mod overlap;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use activity::{Activity, ActivitySettings, Change, Heard, Own};
pub use echo::Echo;
pub use overlap::{Bands, FEATURES, Front, Overlap, Signals};

use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, FRAMES_PER_SECOND, Frame};

/// Seconds that can be heard again: the longest question, and what lay before it.
const MEMORY: usize = 40;
/// Frames after the program's last sound until the echo is too faint to be taken for a voice.
const GONE: u32 = 20;

/// All of the hearing before the model.
pub struct Hearing {
    front: Front,
    bands: Bands,
    overlap: Overlap,
    activity: Activity,
    /// What the model would hear, newest last.
    memory: VecDeque<f32>,
    frames: u64,
}

impl Hearing {
    /// Hears nothing so far.
    pub fn new(settings: ActivitySettings) -> Self {
        Self::with(settings, Overlap::shipped())
    }

    /// The same with other weights.
    pub fn with(settings: ActivitySettings, overlap: Overlap) -> Self {
        Self {
            front: Front::default(),
            bands: Bands::default(),
            overlap,
            activity: Activity::new(settings),
            memory: VecDeque::with_capacity(MEMORY * SAMPLE_RATE as usize + FRAME),
            frames: 0,
        }
    }

    /// Takes in a frame of the microphone and the frame that was played with it (silence if none was).
    pub fn step(&mut self, microphone: &Frame, played: &Frame) -> Option<Change> {
        let signals = self.front.step(microphone, played);
        // Without the program's voice too: its state has to be warm when that begins.
        let over = self.overlap.step(&self.bands.step(&signals));
        let echo = self.echoes();
        let samples = if echo { &signals.open } else { &signals.microphone };
        if self.memory.len() + FRAME > MEMORY * SAMPLE_RATE as usize {
            self.memory.drain(..FRAME);
        }
        self.memory.extend(samples);
        self.frames += 1;
        let own = match self.front.silent_for() {
            Some(frames) if echo && frames < GONE => Own::Speaks,
            Some(_) if echo => Own::Fades,
            _ => Own::Silent,
        };
        self.activity.step(Heard { samples, own, over })
    }

    /// The next frame that is played are tones, see [`Echo::tones`].
    pub fn tones(&mut self) {
        self.front.tones();
    }

    /// The last `count` samples that were played are not heard; see [`Echo::can_take_back`].
    pub fn take_back(&mut self, count: usize) {
        self.front.take_back(count);
    }

    /// Is the program's own voice, or its echo, in the room?
    pub fn echoes(&self) -> bool {
        self.front.echoes()
    }

    /// The time of the newest sample, since the first.
    pub fn now(&self) -> Duration {
        Duration::from_secs(self.frames) / FRAMES_PER_SECOND
    }

    /// What was heard from `since` on, as far as it is remembered.
    pub fn since(&self, since: Duration) -> Vec<f32> {
        let back = self.now().saturating_sub(since).as_secs_f64() * f64::from(SAMPLE_RATE);
        let count = (back.round() as usize).min(self.memory.len());
        self.memory.range(self.memory.len() - count..).copied().collect()
    }

    /// The echo canceller, for reports.
    pub fn echo(&self) -> &Echo {
        self.front.echo()
    }

    /// The voice detector, for reports.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }
}
