//! A microphone and a loudspeaker at once, in frames of 10 ms: hardware, or a simulation of it.
//!
//! ```text
//! microphone callback ─ring─▶ MicPort: to 16 kHz ─────▶ [`Duplex::listen`]
//! speaker callback ◀─ring─ SpeakerPort: to its rate ◀── [`Duplex::play`]
//! ```
//! - [`callback`]: what runs in the audio thread: a ring, atomics, a buffer on the stack. It never waits and never allocates.
//! - [`port`]: the program's side: resampling; the drift between the two clocks is steered out here.
//! - [`clock`]: where each device is in its stream, by the times of its callbacks.
//! - [`counters`]: what was lost or made up, by samples.
//! - [`sim`]: two clocks, a room and stalls, all simulated. `hardware`: cpal.
//!
//! **The microphone is the clock.** For each frame of the microphone at most one frame is played, and the time
//! between a sample of the microphone and the sample of the speaker that goes with it is kept by an asynchronous resampler. So
//! what was played stands in a fixed relation to what is heard, which is what an echo canceller needs, and both clocks may be
//! off without a sample being dropped.

pub mod callback;
pub mod clock;
pub mod counters;
#[cfg(feature = "mic")]
pub mod hardware;
pub mod port;
pub mod sim;

pub use counters::{Counters, Counts};
pub use sim::{Room, SimDevice};

use serde::Deserialize;

use super::{AudioError, SAMPLE_RATE};

/// Samples in a frame: 10 ms at 16 kHz.
pub const FRAME: usize = SAMPLE_RATE as usize / 100;

/// 10 ms of sound.
pub type Frame = [f32; FRAME];

/// Frames in a second.
pub const FRAMES_PER_SECOND: u32 = 100;

/// Which devices: by (part of) the id or the name that `sa-agent devices` shows. Ids stay the same after a reboot, but for those with the
/// number of a card, which `devices` marks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wish {
    pub microphone: Option<String>,
    pub speaker: Option<String>,
    /// `alsa`, `pulseaudio` or `pipewire`; else the first that is there, of those that were built in.
    pub host: Option<String>,
}

/// A microphone and a loudspeaker.
///
/// Call [`Duplex::listen`] over and over; after each, if [`Duplex::room`] says so, [`Duplex::play`] exactly one frame, of
/// silence where there is nothing to say.
pub trait Duplex: Send {
    /// Waits for the next frame of the microphone. Should the device fail, silence comes at the same pace until it is back.
    ///
    /// # Errors
    /// When it will never come back.
    fn listen(&mut self, microphone: &mut Frame) -> Result<(), AudioError>;

    /// Is there room for a frame? There is none for a moment after the program has stalled, or while the speaker is away.
    fn room(&mut self) -> bool;

    /// Plays a frame.
    fn play(&mut self, speaker: &Frame);

    /// Makes silence of the newest samples that were played and are not heard yet, of at most `most`; returns how many. The next frames must be
    /// silent.
    fn take_back(&mut self, most: usize) -> usize;

    /// Frames between [`Duplex::play`] and the sound, as far as the program knows: what waits in the ring and the device's buffer.
    fn latency(&self) -> f64;

    /// What was lost or made up until now.
    fn counts(&self) -> Counts;

    /// What happened to the device, for the user; each once.
    fn notice(&mut self) -> Option<String> {
        None
    }
}
