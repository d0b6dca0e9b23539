//! What the trainers share: run folders that resume, the optimiser, logs and curves.
//!
//! ```text
//! RUN/config.json      what is trained; fixed at the first start
//! RUN/state/           weights, optimiser moments and step: replaced as a whole at each save
//! RUN/log.jsonl        one line a step
//! RUN/curve.svg        the losses as a picture, drawn again at each save
//! ```

mod average;
pub mod checkpoint;
mod curve;
mod optimizer;
mod run;

pub use average::average;
pub use optimizer::{Optimizer, OptimizerConfig};
pub use run::{Next, Run};

use std::path::PathBuf;

use burn::tensor::Device;

/// Flags that every trainer has.
#[derive(clap::Args, Clone, Debug)]
pub struct CommonArgs {
    /// Corpus folder made by `sa-align corpus`
    #[arg(long, value_name = "DIR")]
    pub corpus: PathBuf,
    /// Run folder; an interrupted run goes on where it stopped
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Stop after so many minutes of this call; the next call goes on
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Seed of weights, batches and augmentation
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where to train: cpu or gpu (gpu needs the cargo feature `gpu`)
    #[arg(long, default_value = "cpu", env = "SA_DEVICE")]
    pub device: DeviceChoice,
    /// Steps between two saves
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub save_every: u64,
}

/// `--device`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    Gpu,
}

impl DeviceChoice {
    /// The Burn device, without autodiff.
    ///
    /// # Errors
    /// `gpu` in a build without the feature `gpu`: rebuild with `--features gpu`.
    pub fn device(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "gpu")]
            Self::Gpu => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(not(feature = "gpu"))]
            Self::Gpu => anyhow::bail!("this build has no GPU support: build with `cargo build -p sa-models --features gpu`"),
        }
    }
}

/// A generator that depends on the seed, the step and a purpose only: a resumed run draws what an
/// uninterrupted one would have drawn, with nothing to save.
pub fn step_rng(seed: u64, step: u64, purpose: u64) -> rand_chacha::ChaCha8Rng {
    use rand::SeedableRng;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&step.to_le_bytes());
    bytes[16..24].copy_from_slice(&purpose.to_le_bytes());
    rand_chacha::ChaCha8Rng::from_seed(bytes)
}
