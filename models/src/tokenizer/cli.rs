//! `sa-align tokenizer`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::data::CorpusSpeech;
use super::train::{Folders, Steps, TrainConfig, train};
use crate::corpus::{Corpus, Split};
use crate::train::CommonArgs;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Steps of the phone-CTC stage; a run may be resumed with another number
    #[arg(long, default_value_t = 1500, value_name = "N")]
    steps_ctc: u64,
    /// Steps of the HuBERT stage (masked prediction of units, with CTC); 0 leaves it out
    #[arg(long, default_value_t = 700, value_name = "N")]
    steps_hubert: u64,
    /// Seconds of audio per step
    #[arg(long, default_value_t = 80.0, value_name = "S")]
    batch: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Number of units, k
    #[arg(long, default_value_t = 500, value_name = "K")]
    units: usize,
    /// Width of the network
    #[arg(long, default_value_t = 192)]
    width: usize,
    /// Blocks of the network
    #[arg(long, default_value_t = 5)]
    layers: usize,
    /// Layer to quantise; the last one by default
    #[arg(long)]
    layer: Option<usize>,
    /// Strength of the label priors that keep CTC from spiking; 0 is plain CTC
    #[arg(long, default_value_t = 0.3)]
    prior_scale: f32,
    /// A JSON file with the whole training configuration, in place of the flags above
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let corpus = Corpus::open(&args.common.corpus).with_context(|| format!("while opening the corpus {}", args.common.corpus.display()))?;
    let phones = corpus.lexicon().inventory().len() + 1;
    let config = match &args.config {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("while reading {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("while reading {}", path.display()))?
        }
        None => {
            let mut config = TrainConfig::new(phones, args.common.seed);
            config.batch_seconds = args.batch;
            config.optimizer.learning_rate = args.lr;
            config.prior_scale = args.prior_scale;
            config.network.units = args.units;
            config.network.width = args.width;
            config.network.feed_forward = 4 * args.width;
            config.network.layers = args.layers;
            config.network.layer = args.layer.unwrap_or(args.layers);
            config
        }
    };
    anyhow::ensure!(config.network.phones == phones, "the configuration has {} phones, the corpus {phones} (with blank)", config.network.phones);
    let device = args.common.device.device()?;
    let (training, dev) = (CorpusSpeech::new(&corpus, Split::Train, true), CorpusSpeech::new(&corpus, Split::Dev, false));
    let steps = Steps { ctc: args.steps_ctc, hubert: args.steps_hubert };
    if train(&config, steps, &args.common, &training, &dev, &device)? {
        eprintln!("the tokenizer is in {}", Folders::new(&args.common.output).checkpoint().display());
    } else {
        eprintln!("the minutes are over: the same command goes on");
    }
    Ok(())
}
