//! The log-mel front end inside the network, as matrix products: what is streamed and exported.
//! Training feeds frames computed by [`crate::audio::LogMel`] on the host, the same numbers by FFT.

use burn::tensor::{Device, Tensor, TensorData};

use crate::audio::{BINS, HOP, LOG_FLOOR, MELS, WINDOW, dft_matrix, hann, mel_filters};

/// Samples of the past that the first frame needs.
pub const PAST: usize = WINDOW - HOP;

/// The constant matrices of the front end.
#[derive(Debug, Clone)]
pub struct FrontEnd {
    /// Windowed DFT, cosines then negative sines, `[400, 402]`.
    dft: Tensor<2>,
    /// Mel filters, `[201, 64]`.
    filters: Tensor<2>,
}

impl FrontEnd {
    /// Makes the matrices on the device.
    pub fn new(device: &Device) -> Self {
        Self {
            dft: Tensor::from_data(TensorData::new(dft_matrix(&hann(WINDOW)), [WINDOW, 2 * BINS]), device),
            filters: Tensor::from_data(TensorData::new(mel_filters(WINDOW, MELS), [BINS, MELS]), device),
        }
    }

    /// Audio that starts with its 240 samples of past, `[B, 240 + 160 T]`, to log-mel frames `[B, T, 64]`.
    pub fn forward(&self, audio: Tensor<2>) -> Tensor<3> {
        let [b, samples] = audio.dims();
        let t = (samples - PAST) / HOP;
        let hops = |from: usize| audio.clone().slice([0..b, from..from + t * HOP]).reshape([b, t, HOP]);
        // A window is two and a half hops: its last half hop is the second half of the hop 240 samples in.
        let end = hops(PAST).slice([0..b, 0..t, HOP / 2..HOP]);
        let windows = Tensor::cat(vec![hops(0), hops(HOP), end], 2).reshape([b * t, WINDOW]);
        let spectrum = windows.matmul(self.dft.clone()).powi_scalar(2); // [B T, 402]
        let power = spectrum.clone().slice([0..b * t, 0..BINS]) + spectrum.slice([0..b * t, BINS..2 * BINS]); // [B T, 201]
        let mel = power.matmul(self.filters.clone()); // [B T, 64]
        ((mel + LOG_FLOOR).log() + 4.0).div_scalar(4.0).reshape([b, t, MELS])
    }
}
