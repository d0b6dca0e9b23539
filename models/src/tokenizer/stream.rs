//! Audio in pieces of any size to units: what the runtime does, on the Burn network.

use burn::tensor::{Device, Tensor, TensorData};

use super::config::{TokenizerConfig, units_of_samples};
use super::network::{State, Tokenizer};

/// A tokenizer with its streaming state.
pub struct Stream<'a> {
    model: &'a Tokenizer,
    device: Device,
    chunk: usize,
    state: State,
    pending: Vec<f32>,
}

impl<'a> Stream<'a> {
    /// At the start of an utterance.
    pub fn new(model: &'a Tokenizer, config: &TokenizerConfig, device: &Device) -> Self {
        Self { model, device: device.clone(), chunk: config.chunk_samples(), state: model.initial_state(device), pending: Vec::new() }
    }

    /// Takes samples (16 kHz) and gives the units of the chunks that are now complete.
    pub fn push(&mut self, samples: &[f32]) -> Vec<u16> {
        self.pending.extend_from_slice(samples);
        let mut units = Vec::new();
        while self.pending.len() >= self.chunk {
            let rest = self.pending.split_off(self.chunk);
            let chunk = std::mem::replace(&mut self.pending, rest);
            units.extend(self.step(chunk));
        }
        units
    }

    /// Ends the utterance: the units of what is left, zero padded to a chunk; then as new.
    pub fn flush(&mut self) -> Vec<u16> {
        let mut chunk = std::mem::take(&mut self.pending);
        let count = units_of_samples(chunk.len());
        let mut units = Vec::new();
        if count > 0 {
            chunk.resize(self.chunk, 0.0);
            units = self.step(chunk);
            units.truncate(count);
        }
        self.reset();
        units
    }

    /// Forgets the utterance.
    pub fn reset(&mut self) {
        self.state = self.model.initial_state(&self.device);
        self.pending.clear();
    }

    fn step(&mut self, chunk: Vec<f32>) -> Vec<u16> {
        let audio = Tensor::<2>::from_data(TensorData::new(chunk, [1, self.chunk]), &self.device);
        let (units, _) = self.model.step(audio, &mut self.state);
        units.into_data().iter::<i64>().map(|unit| unit as u16).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::LogMel;
    use crate::tokenizer::encode::encode_batch;
    use burn::module::Param;
    use rand::{Rng, SeedableRng};

    #[test]
    fn units_do_not_depend_on_the_pieces_and_equal_the_encoder_s() {
        let device = Device::flex();
        let config = TokenizerConfig {
            width: 32,
            layers: 2,
            layer: 2,
            heads: 2,
            feed_forward: 64,
            phones: 6,
            units: 40,
            ..TokenizerConfig::default()
        };
        let mut model = config.init(&device);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let centroids: Vec<f32> = (0..40 * 32).map(|_| rng.random_range(-1.0..1.0)).collect();
        model.centroids = Param::from_tensor(Tensor::from_data(TensorData::new(centroids, [40, 32]), &device));
        let audio: Vec<f32> =
            (0..31_000).map(|i| 0.3 * (i as f32 * 0.03 * (1.0 + i as f32 / 9000.0)).sin() + rng.random_range(-0.05..0.05)).collect();
        let whole = encode_batch(&model, &config, &LogMel::default(), std::slice::from_ref(&audio), &device);
        assert_eq!(whole[0].len(), 31_000usize.div_ceil(640));
        let mut stream = Stream::new(&model, &config, &device);
        // The second round shows that a flushed stream is as new.
        for piece in [5120, 997, 31_000, 997] {
            let mut units: Vec<u16> = audio.chunks(piece).flat_map(|samples| stream.push(samples)).collect();
            units.extend(stream.flush());
            assert_eq!(units, whole[0], "pieces of {piece}");
        }
        assert!(stream.flush().is_empty());
    }
}
