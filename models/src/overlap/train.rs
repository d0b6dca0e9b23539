//! Training: weighted cross-entropy on random pieces of random rooms.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use super::rooms::Rooms;
use super::{Overlap, OverlapConfig};
use crate::train::checkpoint::{self, Precision};
use crate::train::{CommonArgs, Next, Optimizer, OptimizerConfig, Run, step_rng};

/// Every number of a training run; kept as the run folder's `config.json`.
#[derive(Clone, Debug, Serialize)]
pub struct TrainConfig {
    pub model: OverlapConfig,
    pub optimizer: OptimizerConfig,
    #[serde(skip)]
    pub steps: u64,
    pub seed: u64,
    /// Pieces a step.
    pub batch: usize,
    /// Frames of a piece.
    pub frames: usize,
}

/// One step; returns the network and the loss.
fn step(
    network: Overlap,
    optimizer: &mut Optimizer,
    config: &TrainConfig,
    rooms: &Rooms,
    device: &Device,
    step: u64,
) -> (Overlap, f32, f32) {
    let mut rng = step_rng(config.seed, step, 0);
    let crops: Vec<_> = (0..config.batch).map(|_| rooms.crop(&mut rng, config.frames)).collect();
    let width = config.model.features;
    let frames = (0..config.frames).map(|frame| {
        let rows = crops.iter().flat_map(|crop| &crop.features[frame * width..(frame + 1) * width]).copied().collect::<Vec<f32>>();
        Tensor::<2>::from_data(TensorData::new(rows, [config.batch, width]), device)
    });
    let scores = network.forward(frames.collect());
    let matrix = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [config.batch, config.frames]), device);
    let targets = matrix(crops.iter().flat_map(|crop| crop.targets.iter().copied()).collect());
    let weights = crops.iter().flat_map(|crop| crop.weights.iter().copied()).collect::<Vec<f32>>();
    let sum = weights.iter().sum::<f32>().max(1.0);
    // -log p of the right answer, in the form that does not overflow: max(x, 0) - x y + log(1 + e^-|x|).
    let entropy = scores.clone().clamp_min(0.0) - scores.clone() * targets + (scores.abs().neg().exp() + 1.0).log();
    let loss = (entropy * matrix(weights)).sum() / sum;
    let value = loss.clone().into_scalar::<f32>();
    let (network, norm) = optimizer.step(network, loss.backward(), step, config.steps);
    (network, value, norm)
}

/// Trains in `args.output` until the steps or the minutes are over; writes `checkpoint/` there.
pub fn train(config: &TrainConfig, rooms: &Rooms, args: &CommonArgs) -> Result<()> {
    let (frames, shortest) = (config.frames, rooms.shortest());
    ensure!(frames <= shortest, "a piece has {frames} frames, and the shortest room {shortest}: give --frames a smaller number");
    let device = args.device.device()?.autodiff();
    device.seed(config.seed);
    let mut run = Run::open(&args.output, config, config.steps, args)?;
    let fresh = Overlap::new(&config.model, &device);
    let (mut network, mut optimizer, start) = run.resume(fresh, Optimizer::new(config.optimizer.clone()))?;
    let folder = args.output.join("checkpoint");
    for number in start..config.steps {
        let (next, loss, norm) = step(network, &mut optimizer, config, rooms, &device, number);
        network = next;
        if (number + 1).is_multiple_of(args.save_every) {
            write(&folder, config, &network)?;
        }
        if run.finish_step(number + 1, &[("loss", loss.into()), ("norm", norm.into())], &network, &optimizer)? == Next::Stop {
            break;
        }
    }
    write(&folder, config, &network)
}

fn write(folder: &Path, config: &TrainConfig, network: &Overlap) -> Result<()> {
    checkpoint::save(folder, &config.model, &network.valid(), Precision::F32)
        .with_context(|| format!("while writing the checkpoint {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlap::{LOUD, SILENT, write_room};
    use crate::train::DeviceChoice;

    /// Two rooms of ten seconds, in which the user speaks where the first feature is high now and the second was high before.
    fn rooms(folder: &Path) {
        for room in 0..2u32 {
            let frames = 1000usize;
            let loud = |frame: usize| (frame / 50 + room as usize).is_multiple_of(3);
            let features: Vec<f32> = (0..frames)
                .flat_map(|frame| {
                    let noise = (frame as f32 * 0.7).sin() * 0.1;
                    [if loud(frame) { 0.5 } else { -0.5 } + noise, if frame.is_multiple_of(50) { 1.0 } else { 0.0 }]
                })
                .collect();
            let voice: Vec<u8> = (0..frames).map(|frame| if loud(frame) { LOUD } else { SILENT }).collect();
            let path = folder.join(format!("room-{room:04}.safetensors"));
            write_room(&path, &features, &voice, &vec![1; frames], &[100, 400]).expect("written");
        }
    }

    fn losses(rooms: &Rooms, steps: u64, count: u64) -> Vec<f32> {
        let config = config(steps);
        let device = Device::flex().autodiff();
        device.seed(1);
        let (mut network, mut optimizer) = (Overlap::new(&config.model, &device), Optimizer::new(config.optimizer.clone()));
        (0..count)
            .map(|number| {
                let (next, loss, _) = step(network.clone(), &mut optimizer, &config, rooms, &device, number);
                network = next;
                loss
            })
            .collect()
    }

    fn config(steps: u64) -> TrainConfig {
        let optimizer = OptimizerConfig { learning_rate: 2e-2, warmup: 5, ..OptimizerConfig::default() };
        TrainConfig { model: OverlapConfig { features: 2, width: 8 }, optimizer, steps, seed: 1, batch: 4, frames: 80 }
    }

    #[test]
    fn it_learns_and_the_first_twenty_steps_are_the_same_again() {
        let folder = tempfile::tempdir().expect("a folder");
        rooms(folder.path());
        let rooms = Rooms::open(folder.path()).expect("rooms");
        assert_eq!((rooms.features(), rooms.frames()), (2, 2000));
        let all = losses(&rooms, 60, 60);
        assert!(all[50..].iter().sum::<f32>() / 10.0 < 0.3 * all[0], "{all:?}");
        assert_eq!(losses(&rooms, 60, 20), all[..20]);
    }

    #[test]
    fn a_run_goes_on_where_it_stopped_and_leaves_a_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        rooms(folder.path());
        let (rooms, run, whole) = (Rooms::open(folder.path()).expect("rooms"), folder.path().join("run"), folder.path().join("whole"));
        let args = |output: &Path, minutes| CommonArgs {
            corpus: folder.path().into(),
            output: output.into(),
            minutes,
            seed: 1,
            device: DeviceChoice::Cpu,
            save_every: 2,
        };
        train(&config(6), &rooms, &args(&whole, None)).expect("an uninterrupted run");
        train(&config(6), &rooms, &args(&run, Some(0.0))).expect("a step");
        let read = |run: &Path| std::fs::read(run.join("checkpoint/model.safetensors")).expect("a checkpoint");
        assert!(read(&run) != read(&whole), "it did not stop");
        train(&config(6), &rooms, &args(&run, None)).expect("the rest");
        assert!(read(&run) == read(&whole), "the checkpoints differ");
        let log = std::fs::read_to_string(run.join("log.jsonl")).expect("a log");
        let steps: Vec<u64> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["step"].as_u64().expect("a step"))
            .collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
        let loaded: OverlapConfig = checkpoint::load_config(&run.join("checkpoint")).expect("a configuration");
        assert_eq!(loaded, config(6).model);
        let long = TrainConfig { frames: 1001, ..config(6) };
        assert!(train(&long, &rooms, &args(&whole, None)).expect_err("refused").to_string().contains("the shortest room 1000"));
        let empty = tempfile::tempdir().expect("a folder");
        assert!(Rooms::open(empty.path()).err().expect("refused").to_string().contains("no rooms"));
    }
}
