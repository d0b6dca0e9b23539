//! Does the user speak while the program does?
//!
//! A small recurrent network looks at what is heard in bands of frequency: the microphone, the echo that the canceller expects in it, what is
//! left without that, what suppression leaves of it, and what is played. The user's voice is what the echo does not explain. Where the canceller has lost
//! the room, and where the user begins with a hiss, it tells the two apart better than any threshold that was tried (`rooms CORPUS --split test`).
//!
//! It was trained in simulated rooms (`models/overlap.sh`): `tests/src/bin/rooms.rs` makes them with [`Front`] and [`Bands`], `sa-align overlap` trains.

use std::f32::consts::TAU;
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};
use safetensors::SafeTensors;

use super::Echo;
use crate::audio::SAMPLE_RATE;
use crate::audio::live::{FRAME, Frame};

/// Signals that are looked at.
const SIGNALS: usize = 5;
/// Bands of each.
const BANDS: usize = 20;
/// Values of a frame.
pub const FEATURES: usize = SIGNALS * BANDS;
/// Samples that are looked at: this frame and the one before.
const WINDOW: usize = 2 * FRAME;
const FFT: usize = 512;
/// From where to where the bands reach, in Hz.
const RANGE: (f32, f32) = (80.0, 7900.0);
/// Power of a band that counts as silence.
const FAINTEST: f32 = 1e-7;
/// Frames after the last sound of the program until its echo is gone: device buffers, the way through the room, reverberation.
const ECHO_TAIL: u32 = 45;
/// Softer frames of the program are silence.
const SILENT: f32 = 1e-4;

/// The weights of the release, by `sa-align overlap`.
static WEIGHTS: &[u8] = include_bytes!("overlap.safetensors");

/// What was heard in a frame, each signal half a block late ([`Echo::delay`]).
#[derive(Debug, Clone)]
pub struct Signals {
    /// The microphone.
    pub microphone: Frame,
    /// The same less the echo that is expected.
    pub open: Frame,
    /// The same with the rest of the echo suppressed.
    pub clean: Frame,
    /// What was played with it.
    pub played: Frame,
}

/// From microphone and speaker to the signals that all of the hearing works on.
#[derive(Default)]
pub struct Front {
    echo: Echo,
    before: Option<Frame>,
    /// Frames since the program was last audible; none if it never was.
    silent_for: Option<u32>,
}

impl Front {
    /// Takes in a frame of the microphone and the frame that was played with it (silence if none was).
    pub fn step(&mut self, microphone: &Frame, played: &Frame) -> Signals {
        let loud = played.iter().any(|sample| sample.abs() > SILENT);
        self.silent_for = if loud { Some(0) } else { self.silent_for.map(|frames| frames.saturating_add(1)) };
        let (mut clean, mut open) = ([0.0; FRAME], [0.0; FRAME]);
        self.echo.step(microphone, played, &mut clean, &mut open);
        // The cancelled signal is half a block late; the microphone waits for it, so that changing over leaves no gap.
        let late = Echo::delay();
        let before = self.before.replace(*microphone).unwrap_or([0.0; FRAME]);
        let mut direct = [0.0; FRAME];
        direct[..late].copy_from_slice(&before[FRAME - late..]);
        direct[late..].copy_from_slice(&microphone[..FRAME - late]);
        Signals { microphone: direct, open, clean, played: *played }
    }

    /// See [`Echo::tones`].
    pub fn tones(&mut self) {
        self.echo.tones();
    }

    /// The last `count` samples that were played are not heard; see [`Echo::can_take_back`].
    pub fn take_back(&mut self, count: usize) {
        self.echo.take_back(count);
    }

    /// Is the program's own voice, or its echo, in the room?
    pub fn echoes(&self) -> bool {
        self.silent_for().is_some_and(|frames| frames < ECHO_TAIL)
    }

    /// Frames since the program was last audible; none if it never was.
    pub fn silent_for(&self) -> Option<u32> {
        self.silent_for
    }

    /// The echo canceller, for reports.
    pub fn echo(&self) -> &Echo {
        &self.echo
    }
}

/// Frames in bands of frequency.
pub struct Bands {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    /// Of each band, its first bin and the weights from there on; they add up to 1.
    filters: Vec<(usize, Vec<f32>)>,
    before: [Frame; SIGNALS],
    samples: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
}

impl Default for Bands {
    fn default() -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(FFT);
        let mel = |hertz: f32| 2595.0 * (1.0 + hertz / 700.0).log10();
        let (low, high) = (mel(RANGE.0), mel(RANGE.1));
        let edge = |band: usize| low + (high - low) * band as f32 / (BANDS + 1) as f32;
        let filters = (0..BANDS).map(|band| {
            let weight = |bin: usize| {
                let at = mel(bin as f32 * SAMPLE_RATE as f32 / FFT as f32);
                let (rise, fall) = (at - edge(band), edge(band + 2) - at);
                rise.min(fall).max(0.0) / (edge(band + 1) - edge(band))
            };
            let first = (0..=FFT / 2).find(|bin| weight(*bin) > 0.0).unwrap_or(0);
            let weights: Vec<f32> = (first..=FFT / 2).map(weight).take_while(|weight| *weight > 0.0).collect();
            let sum: f32 = weights.iter().sum();
            (first, weights.iter().map(|weight| weight / sum).collect())
        });
        Self {
            window: (0..WINDOW).map(|n| 0.5 - 0.5 * (TAU * n as f32 / WINDOW as f32).cos()).collect(),
            filters: filters.collect(),
            before: [[0.0; FRAME]; SIGNALS],
            samples: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            fft,
        }
    }
}

impl Bands {
    /// The logarithms of the bands' powers, `[SIGNALS, BANDS]`, about -2 (silence) to 2.
    pub fn step(&mut self, signals: &Signals) -> [f32; FEATURES] {
        let expected = std::array::from_fn(|i| signals.microphone[i] - signals.open[i]);
        let mut features = [0.0; FEATURES];
        let all = [signals.microphone, signals.open, signals.clean, expected, signals.played];
        for ((signal, before), features) in all.into_iter().zip(&mut self.before).zip(features.chunks_exact_mut(BANDS)) {
            self.samples.fill(0.0);
            for ((slot, sample), weight) in self.samples.iter_mut().zip(before.iter().chain(&signal)).zip(&self.window) {
                *slot = sample * weight;
            }
            *before = signal;
            self.fft
                .process_with_scratch(&mut self.samples, &mut self.spectrum, &mut self.scratch)
                .expect("the buffers are the plan's own");
            for (feature, (first, weights)) in features.iter_mut().zip(&self.filters) {
                let power: f32 = self.spectrum[*first..].iter().zip(weights).map(|(bin, weight)| bin.norm_sqr() * weight).sum();
                *feature = 0.5 * ((power + FAINTEST).log10() + 3.0);
            }
        }
        features
    }
}

/// An affine map: weights `[rows, columns]` and a bias.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    fn forward(&self, input: &[f32], output: &mut [f32]) {
        for ((output, row), bias) in output.iter_mut().zip(self.weight.chunks_exact(input.len())).zip(&self.bias) {
            *output = bias + row.iter().zip(input).map(|(weight, value)| weight * value).sum::<f32>();
        }
    }
}

/// The network: a layer, a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, with the reset after the product), a score.
pub struct Overlap {
    input: Linear,
    gates: Linear,
    state: Linear,
    output: Linear,
    hidden: Vec<f32>,
    /// What the layers give: the input's, and the three gates' of input and state.
    inner: Vec<f32>,
    gated: Vec<f32>,
    stated: Vec<f32>,
}

impl Overlap {
    /// The network of the release.
    pub fn shipped() -> Self {
        Self::read(WEIGHTS).expect("the weights in the program are a network; a test reads them")
    }

    /// A network from the safetensors of `sa-align overlap`.
    ///
    /// # Errors
    /// What is wrong with them: not safetensors, a tensor that is missing or of another shape.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| format!("not safetensors: {error}"))?;
        let tensor = |name: &str, shape: &[usize]| {
            let view = file.tensor(name).map_err(|error| error.to_string())?;
            if view.dtype() != safetensors::Dtype::F32 || view.shape() != shape {
                return Err(format!("{name} is {:?} {:?} and not F32 {shape:?}", view.dtype(), view.shape()));
            }
            Ok(view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>())
        };
        let linear = |name: &str, rows: usize, columns: usize| {
            Ok::<_, String>(Linear {
                weight: tensor(&format!("{name}.weight"), &[rows, columns])?,
                bias: tensor(&format!("{name}.bias"), &[rows])?,
            })
        };
        let width = file.tensor("input.bias").map_err(|error| error.to_string())?.shape().iter().product();
        Ok(Self {
            input: linear("input", width, FEATURES)?,
            gates: linear("gates", 3 * width, width)?,
            state: linear("state", 3 * width, width)?,
            output: linear("output", 1, width)?,
            hidden: vec![0.0; width],
            inner: vec![0.0; width],
            gated: vec![0.0; 3 * width],
            stated: vec![0.0; 3 * width],
        })
    }

    /// How sure it is that the user speaks in this frame, 0 to 1.
    pub fn step(&mut self, features: &[f32; FEATURES]) -> f32 {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        self.input.forward(features, &mut self.inner);
        self.inner.iter_mut().for_each(|value| *value = value.tanh());
        self.gates.forward(&self.inner, &mut self.gated);
        self.state.forward(&self.hidden, &mut self.stated);
        let width = self.hidden.len();
        for (i, hidden) in self.hidden.iter_mut().enumerate() {
            let update = sigmoid(self.gated[i] + self.stated[i]);
            let reset = sigmoid(self.gated[width + i] + self.stated[width + i]);
            let new = (self.gated[2 * width + i] + reset * self.stated[2 * width + i]).tanh();
            *hidden = (1.0 - update) * new + update * *hidden;
        }
        let mut score = [0.0];
        self.output.forward(&self.hidden, &mut score);
        sigmoid(score[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(voice: impl Fn(usize) -> f32) -> Signals {
        let frame: Frame = std::array::from_fn(voice);
        Signals { microphone: frame, open: frame, clean: frame, played: [0.0; FRAME] }
    }

    /// A tone is in its band, a louder one is higher there by as much as it is louder; nothing is silence.
    #[test]
    fn a_tone_is_in_its_band() {
        let mut bands = Bands::default();
        let tone = |height: f32| move |i: usize| height * (TAU * 1000.0 * i as f32 / SAMPLE_RATE as f32).sin();
        let silent = bands.step(&signals(|_| 0.0));
        assert!(silent.iter().all(|value| (value + 2.0).abs() < 1e-3), "{silent:?}");
        let features = |bands: &mut Bands, height: f32| {
            bands.step(&signals(tone(height)));
            bands.step(&signals(tone(height)))
        };
        let (soft, loud) = (features(&mut bands, 0.05), features(&mut bands, 0.5));
        let highest = (0..BANDS).max_by(|a, b| loud[*a].total_cmp(&loud[*b])).expect("bands");
        let centre = |band: usize| bands.filters[band].0 as f32 * 31.25;
        assert!(centre(highest) < 1000.0 && 1000.0 < centre(highest) + 400.0, "band {highest} from {} Hz", centre(highest));
        assert!((loud[highest] - soft[highest] - 1.0).abs() < 0.01, "20 dB are two powers of ten, half of that as a feature");
        assert!(loud[3 * BANDS..].iter().all(|value| *value < -1.9), "no echo is expected, nothing was played");
    }

    #[test]
    fn broken_weights_are_told() {
        for (bytes, part) in [(&b"nothing"[..], "safetensors"), (&WEIGHTS[..WEIGHTS.len() - 9], "safetensors")] {
            assert!(Overlap::read(bytes).err().expect("refused").contains(part));
        }
        let empty = safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView)>::new(), None).expect("an empty file");
        assert!(Overlap::read(&empty).err().expect("refused").contains("input.bias"));
        assert!(Overlap::shipped().step(&[0.0; FEATURES]).is_finite());
    }
}
