//! From the microphone to "somebody speaks", and to what the model hears.
//!
//! The model hears the untouched microphone as soon as the program is silent, because cancelling costs more than it brings there
//! (`../shared/FINDINGS.md`, Echo). While the program's voice or its echo is in the room, it hears the microphone less the echo that the
//! canceller expects, and nothing suppressed: what suppression takes of the user's voice costs more than what is left of the echo.

mod activity;
mod echo;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use activity::{Activity, ActivitySettings, Change, Heard, Own};
pub use echo::Echo;

use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, FRAMES_PER_SECOND, Frame};

/// Seconds that can be heard again: the longest question, and what lay before it.
const MEMORY: usize = 40;
/// Frames after the last sound of the program until its echo is gone: device buffers, the way through the room, reverberation.
const ECHO_TAIL: u32 = 45;
/// Frames after it until the echo is too faint to be taken for a voice.
const GONE: u32 = 20;
/// Softer frames of the program are silence.
const SILENT: f32 = 1e-4;

/// All of the hearing before the model.
pub struct Hearing {
    echo: Echo,
    activity: Activity,
    /// What the model would hear, newest last.
    memory: VecDeque<f32>,
    frames: u64,
    /// Frames since the program was last audible.
    silent_for: u32,
    microphone_before: Frame,
}

impl Hearing {
    /// Hears nothing so far.
    pub fn new(settings: ActivitySettings) -> Self {
        Self {
            echo: Echo::new(),
            activity: Activity::new(settings),
            memory: VecDeque::with_capacity(MEMORY * SAMPLE_RATE as usize + FRAME),
            frames: 0,
            silent_for: u32::MAX,
            microphone_before: [0.0; FRAME],
        }
    }

    /// Takes in a frame of the microphone and the frame that was played with it (silence if none was).
    pub fn step(&mut self, microphone: &Frame, played: &Frame) -> Option<Change> {
        let loud = played.iter().any(|sample| sample.abs() > SILENT);
        self.silent_for = if loud { 0 } else { self.silent_for.saturating_add(1) };
        let (mut clean, mut open) = ([0.0; FRAME], [0.0; FRAME]);
        self.echo.step(microphone, played, &mut clean, &mut open);
        // The cancelled signal is half a block late; the microphone waits for it, so that changing over leaves no gap.
        let late = Echo::delay();
        let mut direct = [0.0; FRAME];
        direct[..late].copy_from_slice(&self.microphone_before[FRAME - late..]);
        direct[late..].copy_from_slice(&microphone[..FRAME - late]);
        self.microphone_before = *microphone;
        let echo = self.echoes();
        let heard = if echo { &open } else { &direct };
        if self.memory.len() + FRAME > MEMORY * SAMPLE_RATE as usize {
            self.memory.drain(..FRAME);
        }
        self.memory.extend(heard);
        self.frames += 1;
        let own = if self.silent_for < GONE { Own::Speaks } else { Own::Fades };
        self.activity.step(if echo { Heard { microphone: &direct, open: &open, clean: &clean, own } } else { Heard::direct(&direct) })
    }

    /// Is the program's own voice, or its echo, in the room?
    pub fn echoes(&self) -> bool {
        self.silent_for < ECHO_TAIL
    }

    /// The time of the newest sample, since the first.
    pub fn now(&self) -> Duration {
        Duration::from_secs(self.frames) / FRAMES_PER_SECOND
    }

    /// What was heard from `since` on, as far as it is remembered: the older and the newer part of it.
    pub fn since(&self, since: Duration) -> Vec<f32> {
        let back = self.now().saturating_sub(since).as_secs_f64() * f64::from(SAMPLE_RATE);
        let count = (back.round() as usize).min(self.memory.len());
        self.memory.range(self.memory.len() - count..).copied().collect()
    }

    /// The echo canceller, for reports.
    pub fn echo(&self) -> &Echo {
        &self.echo
    }

    /// The voice detector, for reports.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }
}
