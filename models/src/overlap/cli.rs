//! `sa-align overlap`.

use anyhow::{Context, Result};

use super::{OverlapConfig, Rooms, TrainConfig, train};
use crate::train::{CommonArgs, OptimizerConfig};

/// Trains. `--corpus` is the folder of rooms.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Steps of the whole run
    #[arg(long, default_value_t = 4000, value_name = "N")]
    steps: u64,
    /// Pieces of rooms a step
    #[arg(long, default_value_t = 48, value_name = "N")]
    batch: usize,
    /// Frames of 10 ms of a piece
    #[arg(long, default_value_t = 400, value_name = "N")]
    frames: usize,
    /// Width of the network
    #[arg(long, default_value_t = 48)]
    width: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 5e-3)]
    lr: f64,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let rooms = Rooms::open(&args.common.corpus).context("while opening the rooms")?;
    eprintln!("{} frames ({:.1} hours) of {} features", rooms.frames(), rooms.frames() as f64 / 360_000.0, rooms.features());
    let config = TrainConfig {
        model: OverlapConfig { features: rooms.features(), width: args.width },
        optimizer: OptimizerConfig { learning_rate: args.lr, ..OptimizerConfig::default() },
        steps: args.steps,
        seed: args.common.seed,
        batch: args.batch,
        frames: args.frames,
    };
    train(&config, &rooms, &args.common)?;
    println!("{}", args.common.output.join("checkpoint/model.safetensors").display());
    Ok(())
}
