//! What the decoder is trained on: utterances of the agent's voice with their units, and crops of them.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::config::DecoderConfig;

/// An utterance with its units; unit i stands for the samples `[640 i, 640 (i + 1))`.
#[derive(Clone, Debug)]
pub struct Clip {
    /// Its id in the corpus.
    pub id: String,
    /// What is said.
    pub text: String,
    /// Units at 25 Hz.
    pub units: Vec<u16>,
    /// 16 kHz, 16 bits: an hour is 115 MB.
    pub audio: Vec<i16>,
}

impl Clip {
    /// Sample `at`, in -1..1; silence outside.
    fn sample(&self, at: i64) -> f32 {
        usize::try_from(at).ok().and_then(|at| self.audio.get(at)).map_or(0.0, |&sample| f32::from(sample) / 32768.0)
    }

    /// The audio under the units, in -1..1, silence where it is shorter.
    pub fn target(&self, config: &DecoderConfig) -> Vec<f32> {
        (0..(self.units.len() * config.unit_samples()) as i64).map(|at| self.sample(at)).collect()
    }
}

/// How crops are cut.
#[derive(Clone, Copy, Debug)]
pub struct Cropping {
    /// Units whose audio enters the loss.
    pub units: usize,
    /// Share of crops at the start of an utterance, with padding before it.
    pub at_start: f64,
    /// Share of crops at the end, with padding after it.
    pub at_end: f64,
    /// Share of units replaced, so that a slip of the language model does not derail the voice.
    pub corruption: f64,
}

/// Units with their whole context, and the audio of the inner ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Crop {
    /// See [`Geometry`] for which are context.
    pub units: Vec<i32>,
    /// `unit_samples` per inner unit.
    pub audio: Vec<f32>,
}

/// Which units and frames the audio of `inner` units needs: nothing is computed in vain and nothing is missing.
///
/// Of the frames that overlap the audio, two stand before its first unit and two after its last (a window spans
/// four hops, centred on its own).
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Units of context before the inner ones.
    pub before: usize,
    /// All units: context, inner ones, look-ahead.
    pub units: usize,
    /// First frame to take of those that the units determine ([`super::Decoder::forward`]).
    pub first_frame: usize,
    /// Frames to take.
    pub frames: usize,
    /// Samples of the overlap-added frames before the inner ones.
    pub lead: usize,
    /// Samples of the inner units.
    pub samples: usize,
}

/// Frames before and after an utterance's piece that overlap it.
const OVERLAP: usize = 2;

impl Geometry {
    pub fn new(config: &DecoderConfig, inner: usize) -> Self {
        let r = config.upsampling;
        let frames_before = OVERLAP + config.frame_history();
        let units_before = frames_before.div_ceil(r);
        let before = units_before + config.unit_history();
        Geometry {
            before,
            units: before + inner + OVERLAP.div_ceil(r) + config.look_ahead,
            first_frame: r * units_before - frames_before,
            frames: r * inner + 2 * OVERLAP,
            // The first frame's window starts 1.5 hops before its own hop, which is two hops before the audio.
            lead: OVERLAP * config.hop + (config.n_fft - config.hop) / 2,
            samples: inner * config.unit_samples(),
        }
    }
}

/// Draws a crop of a random clip.
///
/// # Panics
/// When there are no clips.
pub fn draw(rng: &mut impl Rng, clips: &[Clip], config: &DecoderConfig, cropping: &Cropping) -> Crop {
    let clip = clips.choose(rng).expect("training has clips");
    let (inner, length) = (cropping.units as i64, clip.units.len() as i64);
    let place: f64 = rng.random();
    let start = if place < cropping.at_start {
        rng.random_range(-4..=0)
    } else if place < cropping.at_start + cropping.at_end {
        length - inner + rng.random_range(1..=4)
    } else {
        rng.random_range(0..=(length - inner).max(0))
    };
    let geometry = Geometry::new(config, cropping.units);
    let first = start - geometry.before as i64;
    let unit = |at: i64| usize::try_from(at).ok().and_then(|at| clip.units.get(at)).copied();
    let units = (first..first + geometry.units as i64)
        .map(|at| {
            let Some(mut unit_id) = unit(at) else { return config.pad() as i32 };
            if rng.random_bool(cropping.corruption) {
                // Half the slips are of a neighbour in time, half are of any unit.
                unit_id = if rng.random() {
                    unit(at + if rng.random() { 1 } else { -1 }).unwrap_or(unit_id)
                } else {
                    rng.random_range(0..config.units) as u16
                };
            }
            i32::from(unit_id)
        })
        .collect();
    let from = start * config.unit_samples() as i64;
    let audio = (from..from + geometry.samples as i64).map(|at| clip.sample(at)).collect();
    Crop { units, audio }
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::tiny;
    use super::super::{Decoder, Synthesis};
    use super::*;
    use burn::tensor::{Device, Tensor, TensorData};
    use rand::SeedableRng;

    fn clip(config: &DecoderConfig, length: usize) -> Clip {
        let samples = length * config.unit_samples();
        Clip {
            id: "a".into(),
            text: String::new(),
            units: (0..length).map(|i| ((i * 7) % config.units) as u16).collect(),
            audio: (0..samples).map(|i| ((i as f32 * 0.3).sin() * 8000.0) as i16).collect(),
        }
    }

    /// What a crop computes must be what a whole utterance computes there, at its start and end also.
    #[test]
    fn a_crop_sounds_as_the_same_place_of_the_whole() {
        let device = Device::flex();
        let config = tiny();
        let network = Decoder::new(&config, &device);
        let synthesis = Synthesis::new(&config);
        let clip = clip(&config, 40);
        let units: Vec<usize> = clip.units.iter().map(|&u| usize::from(u)).collect();
        let frames: Vec<f32> = network.decode(&units).into_data().try_to_vec().expect("f32");
        let whole = synthesis.utterance(&frames);
        assert_eq!(whole.len(), 40 * config.unit_samples());
        let inner = 6;
        let geometry = Geometry::new(&config, inner);
        for start in [0usize, 5, 17, 34] {
            let first = start as i64 - geometry.before as i64;
            let ids: Vec<i32> = (first..first + geometry.units as i64)
                .map(|at| usize::try_from(at).ok().and_then(|at| units.get(at)).map_or(config.pad() as i32, |&u| u as i32))
                .collect();
            let ids = Tensor::from_data(TensorData::new(ids, [1, geometry.units]), &device);
            let range = geometry.first_frame..geometry.first_frame + geometry.frames;
            let frames: Vec<f32> = network.forward(ids, range).into_data().try_to_vec().expect("f32");
            let audio = synthesis.synthesise(&frames);
            // The whole utterance has no frames outside itself: two hops at either end differ by these.
            let margin = if start == 0 || start == 34 { 2 * config.hop } else { 0 };
            for at in margin..geometry.samples - margin {
                let (a, b) = (audio[geometry.lead + at], whole[start * config.unit_samples() + at]);
                assert!((a - b).abs() < 1e-4, "start {start}, sample {at}: {a} against {b}");
            }
        }
    }

    #[test]
    fn crops_are_padded_where_the_utterance_ends_and_seeded() {
        let config = tiny();
        let clips = [clip(&config, 9)];
        let cropping = Cropping { units: 6, at_start: 1.0, at_end: 0.0, corruption: 0.0 };
        let rng = || rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let crop = draw(&mut rng(), &clips, &config, &cropping);
        assert_eq!(crop, draw(&mut rng(), &clips, &config, &cropping));
        let geometry = Geometry::new(&config, 6);
        assert_eq!((crop.units.len(), crop.audio.len()), (geometry.units, geometry.samples));
        let padded = crop.units.iter().take_while(|&&u| u == config.pad() as i32).count();
        assert!(padded >= geometry.before, "{padded} of {}", geometry.before);
        let cropping = Cropping { at_start: 0.0, at_end: 1.0, ..cropping };
        let crop = draw(&mut rng(), &clips, &config, &cropping);
        assert_eq!(crop.units.last(), Some(&(config.pad() as i32)));
        assert_eq!(crop.audio.last(), Some(&0.0));
    }
}
