//! WebRTC's AEC3 from the parts of the crate `aec3`, put together as its own `BlockProcessor` does, but for one thing: the delay between what
//! is played and what is heard stays as it is for as long as the filter cancels.
//!
//! The estimator takes another delay for true now and then, for a long vowel that is like itself a little later, and the filter begins anew
//! with nothing: for the seconds that it takes to learn the room again the program hears its own voice. The speaker's port keeps the delay,
//! so another one is likely to be wrong; where it is right, the filter does not cancel any more.

use aec3::api::config::EchoCanceller3Config;
use aec3::audio_processing::aec3::block::Block;
use aec3::audio_processing::aec3::delay_estimate::{DelayEstimate, DelayEstimateQuality};
use aec3::audio_processing::aec3::echo_path_variability::{DelayAdjustment, EchoPathVariability};
use aec3::audio_processing::aec3::echo_remover::EchoRemover;
use aec3::audio_processing::aec3::render_delay_buffer::RenderDelayBuffer;
use aec3::audio_processing::aec3::render_delay_controller::RenderDelayController;

use crate::audio::SAMPLE_RATE;

/// Milliseconds of a block.
const BLOCK_MS: i32 = 4;
/// Blocks with something played in them, about, over which it is judged whether the filter cancels: a second.
const JUDGED: f32 = 250.0;
/// The filter cancels if this share of what the microphone hears is left, at most: 3 dB less.
const LEFT: f32 = 0.5;
/// Something is played in a block from this root mean square on, in 16-bit steps.
const PLAYED: f32 = 100.0;

pub(super) struct Canceller {
    buffer: RenderDelayBuffer,
    estimator: RenderDelayController,
    remover: EchoRemover,
    delay: Option<DelayEstimate>,
    started: bool,
    /// Energy of the microphone, and of what the filter left of it, while something was played.
    heard: f32,
    left: f32,
}

impl Canceller {
    pub fn new(config: &EchoCanceller3Config) -> Self {
        let rate = SAMPLE_RATE as i32;
        Self {
            buffer: RenderDelayBuffer::new(config.clone(), rate, 1),
            estimator: RenderDelayController::new(config, rate, 1),
            remover: EchoRemover::new(config.clone(), rate, 1, 1),
            delay: None,
            started: false,
            heard: 0.0,
            left: 0.0,
        }
    }

    /// A block that is played and one that is heard with it, in 16-bit steps: `capture` becomes what is left with the echo suppressed,
    /// `linear` what the filter leaves. Nothing is learnt of the room where `learns` is false.
    pub fn step(&mut self, render: &Block, learns: bool, linear: &mut Block, capture: &mut Block) {
        // What these tell of, more blocks played than heard or fewer, does not happen: they come in pairs.
        self.buffer.insert(render);
        if !self.started {
            self.started = true;
            self.buffer.reset();
        }
        self.buffer.prepare_capture_processing();
        let mut change = DelayAdjustment::None;
        if learns
            && let Some(found) = self.estimator.get_delay(self.buffer.downsampled_render_buffer(), self.buffer.delay(), capture)
            && !self.keeps_to_another(found)
        {
            self.delay = Some(found);
            if self.buffer.align_from_delay(found.delay) {
                change = DelayAdjustment::NewDetectedDelay;
            }
        }
        let variability = EchoPathVariability::new(false, change, self.estimator.has_clockdrift());
        let heard = energy(capture);
        // A filter does not learn from what is saturated.
        self.remover.process_capture(variability, !learns, self.delay, &self.buffer.render_buffer(), Some(linear), capture);
        if learns && energy(render) > PLAYED * PLAYED {
            self.heard += (heard - self.heard) / JUDGED;
            self.left += (energy(linear) - self.left) / JUDGED;
        }
    }

    /// A delay that is no first guess is kept for as long as the filter cancels.
    fn keeps_to_another(&self, found: DelayEstimate) -> bool {
        let cancels = self.left < LEFT * self.heard;
        cancels && self.delay.is_some_and(|delay| delay.delay != found.delay && delay.quality == DelayEstimateQuality::Refined)
    }

    /// The delay in milliseconds; 0 while it is unknown.
    pub fn delay_ms(&self) -> i32 {
        if self.started { self.buffer.delay() as i32 * BLOCK_MS } else { 0 }
    }

    /// By how many dB the echo is made weaker, by the canceller's own estimate.
    pub fn enhancement_db(&self) -> f64 {
        self.remover.metrics().echo_return_loss_enhancement
    }
}

/// The mean square.
fn energy(block: &Block) -> f32 {
    let samples = block.view(0, 0);
    samples.iter().map(|x| x * x).sum::<f32>() / samples.len() as f32
}
