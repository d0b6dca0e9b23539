//! Does the user speak while the agent does? The network that stops an answer, trained in simulated rooms.
//!
//! ```text
//! rooms (features and labels of each frame, from the device's own hearing) ──▶ GRU ──▶ device/src/hearing/overlap.safetensors
//! ```
//! The rooms come as files (`tests/src/bin/rooms.rs`), since nothing here depends on the device. The device computes this network
//! itself, frame by frame; `tests/tests/agent/overlap.rs` compares the two.
//!
//! B: batch, T: frames of 10 ms, F: features of a frame, H: width.

pub mod cli;
mod rooms;
mod train;

pub use rooms::{LOUD, PAUSE, Rooms, SILENT, write_room};
pub use train::{TrainConfig, train};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlapConfig {
    /// F, as the device computes them.
    pub features: usize,
    /// H.
    pub width: usize,
}

/// A layer, a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, with the reset after the product, as cuDNN has it), a score.
#[derive(Module, Debug)]
pub struct Overlap {
    /// `[F, H]`, then tanh.
    pub input: Linear,
    /// Update, reset and new state from the layer before: `[H, 3 H]`.
    pub gates: Linear,
    /// The same from the state before: `[H, 3 H]`.
    pub state: Linear,
    /// `[H, 1]`: the logarithm of the odds that the user speaks.
    pub output: Linear,
    width: usize,
}

impl Overlap {
    /// Fresh weights, from Burn's generator.
    pub fn new(config: &OverlapConfig, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Self {
            input: linear(config.features, config.width),
            gates: linear(config.width, 3 * config.width),
            state: linear(config.width, 3 * config.width),
            output: linear(config.width, 1),
            width: config.width,
        }
    }

    /// Scores `[B, T]` of T frames `[B, F]` each; the state begins at zero.
    pub fn forward(&self, frames: Vec<Tensor<2>>) -> Tensor<2> {
        let width = self.width;
        let mut hidden: Option<Tensor<2>> = None;
        let mut scores = Vec::with_capacity(frames.len());
        for frame in frames {
            let [batch, _] = frame.dims();
            let before = hidden.take().unwrap_or_else(|| Tensor::zeros([batch, width], &frame.device()));
            let gates = self.gates.forward(tanh(self.input.forward(frame)));
            let state = self.state.forward(before.clone());
            let both = sigmoid(gates.clone().narrow(1, 0, 2 * width) + state.clone().narrow(1, 0, 2 * width));
            let (update, reset) = (both.clone().narrow(1, 0, width), both.narrow(1, width, width));
            let new = tanh(gates.narrow(1, 2 * width, width) + reset * state.narrow(1, 2 * width, width));
            let now = new.clone() + update * (before - new);
            scores.push(self.output.forward(now.clone()));
            hidden = Some(now);
        }
        Tensor::cat(scores, 1)
    }

    /// How sure it is in each frame that the user speaks, 0 to 1: of `features` `[T, F]`, all of a room.
    pub fn probabilities(&self, features: &[f32], device: &Device) -> Vec<f32> {
        let [in_frame, _] = self.input.weight.dims();
        let frame = |row: &[f32]| Tensor::from_data(TensorData::new(row.to_vec(), [1, in_frame]), device);
        let frames: Vec<Tensor<2>> = features.chunks_exact(in_frame).map(frame).collect();
        sigmoid(self.forward(frames)).into_data().try_to_vec().expect("the networks compute in f32")
    }
}
