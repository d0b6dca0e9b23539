//! Simulated rooms on disk: `room-*.safetensors`, each with `features` [T, F] (f32), `voice` [T] and `echo` [T] (u8), `onsets` [n] (i64).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::folder::files;
use crate::train::checkpoint::write_atomically;

/// `voice` of a frame in which the user is silent, in a pause between two sounds, or loud.
pub const SILENT: u8 = 0;
pub const PAUSE: u8 = 1;
pub const LOUD: u8 = 2;
/// Frames behind an onset that count more: they decide how soon the answer stops.
const EARLY: usize = 20;
const EARLY_WEIGHT: f32 = 6.0;
/// Frames at the beginning of a crop that do not count: the state begins at zero there.
const SETTLING: usize = 40;
/// Largest change of loudness that a crop is heard at, in features (half a power of ten of power).
const GAIN: f32 = 0.3;

/// One room.
struct Room {
    features: Vec<f32>,
    /// 1 where the user speaks.
    targets: Vec<f32>,
    /// How much a frame counts; 0 where nothing echoes: there the device asks another detector.
    weights: Vec<f32>,
}

/// All rooms of a folder, in memory.
pub struct Rooms {
    rooms: Vec<Room>,
    features: usize,
}

/// A piece of a room.
pub struct Crop {
    /// `[T, F]`
    pub features: Vec<f32>,
    /// `[T]`
    pub targets: Vec<f32>,
    /// `[T]`
    pub weights: Vec<f32>,
}

impl Rooms {
    /// Reads the rooms of `folder`, in the order of their names.
    ///
    /// # Errors
    /// No room, or a file that is none: named.
    pub fn open(folder: &Path) -> Result<Self> {
        let paths = files(folder, "safetensors")?;
        ensure!(!paths.is_empty(), "{} has no rooms: make some with `rooms CORPUS --output {0}`", folder.display());
        let mut all = Self { rooms: Vec::new(), features: 0 };
        for path in paths {
            let (room, features) = read(&path).with_context(|| format!("while reading {}", path.display()))?;
            ensure!(all.features == 0 || all.features == features, "{} has {features} features, others {}", path.display(), all.features);
            all.features = features;
            all.rooms.push(room);
        }
        Ok(all)
    }

    /// F.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Frames of all rooms.
    pub fn frames(&self) -> usize {
        self.rooms.iter().map(|room| room.targets.len()).sum()
    }

    /// Frames of the shortest room.
    pub fn shortest(&self) -> usize {
        self.rooms.iter().map(|room| room.targets.len()).min().unwrap_or(0)
    }

    /// A random piece of `frames`, as loud as chance will have it; no more than the shortest room has.
    pub fn crop(&self, rng: &mut impl Rng, frames: usize) -> Crop {
        let room = &self.rooms[rng.random_range(0..self.rooms.len())];
        let start = rng.random_range(0..=room.targets.len() - frames);
        let end = start + frames;
        let gain = rng.random_range(-GAIN..GAIN);
        let mut crop = Crop {
            features: room.features[start * self.features..end * self.features].iter().map(|value| value + gain).collect(),
            targets: room.targets[start..end].to_vec(),
            weights: room.weights[start..end].to_vec(),
        };
        crop.weights.iter_mut().take(SETTLING).for_each(|weight| *weight = 0.0);
        crop
    }
}

/// Writes a room: of each frame its features, whether the user speaks ([`SILENT`], [`PAUSE`], [`LOUD`]) and whether something echoes (0 or 1);
/// and the frames in which the user begins to speak over the agent.
///
/// # Errors
/// Lengths that do not fit, or a file that cannot be written.
pub fn write_room(path: &Path, features: &[f32], voice: &[u8], echo: &[u8], onsets: &[usize]) -> Result<()> {
    let frames = voice.len();
    ensure!(
        frames > 0 && echo.len() == frames && features.len().is_multiple_of(frames),
        "a room of {frames} frames with {} features and {} marks of echo",
        features.len(),
        echo.len()
    );
    let width = features.len() / frames;
    let values: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let starts: Vec<u8> = onsets.iter().flat_map(|onset| (*onset as i64).to_le_bytes()).collect();
    let tensors = [
        ("features", TensorView::new(Dtype::F32, vec![frames, width], &values)?),
        ("voice", TensorView::new(Dtype::U8, vec![frames], voice)?),
        ("echo", TensorView::new(Dtype::U8, vec![frames], echo)?),
        ("onsets", TensorView::new(Dtype::I64, vec![onsets.len()], &starts)?),
    ];
    Ok(write_atomically(path, &serialize(tensors, None)?)?)
}

fn read(path: &Path) -> Result<(Room, usize)> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (features, voice, echo, onsets) = (file.tensor("features")?, file.tensor("voice")?, file.tensor("echo")?, file.tensor("onsets")?);
    let &[frames, width] = features.shape() else { anyhow::bail!("features has the shape {:?}, not [T, F]", features.shape()) };
    ensure!(features.dtype() == Dtype::F32, "features is {:?}, not F32", features.dtype());
    ensure!(voice.data().len() == frames && echo.data().len() == frames, "voice and echo must have a byte for each of the {frames} frames");
    let targets = voice.data().iter().map(|voice| f32::from(*voice == LOUD)).collect();
    // What a pause between two sounds is, nobody can tell from hearing it: it does not count.
    let weight = |(voice, echo): (&u8, &u8)| f32::from(*echo != 0 && *voice != PAUSE);
    let mut weights: Vec<f32> = voice.data().iter().zip(echo.data()).map(weight).collect();
    for onset in onsets.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as usize) {
        let early = weights.iter_mut().zip(voice.data()).skip(onset).take(EARLY);
        early.filter(|(_, voice)| **voice == LOUD).for_each(|(weight, _)| *weight *= EARLY_WEIGHT);
    }
    Ok((Room { features: features.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), targets, weights }, width))
}
