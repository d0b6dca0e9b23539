//! `sa-align tokenizer`: train, or `--encode` a corpus into units, or `--probe` what the units carry.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::config::TokenizerConfig;
use super::data::CorpusSpeech;
use super::encode::{self, encode_corpus};
use super::lag;
use super::probe::{self, probe};
use super::train::{Folders, Steps, TrainConfig, load, train};
use crate::corpus::{Corpus, Split};
use crate::train::{CommonArgs, DeviceChoice, checkpoint::write_atomically};

#[derive(clap::Args)]
pub struct Args {
    /// Corpus folder made by `sa-align corpus`
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Run folder to train in (an interrupted run goes on where it stopped; the result is DIR/checkpoint); with --encode, the folder of
    /// the units (default: `units` beside the checkpoint)
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Encode the corpus into units with this checkpoint, in place of training; goes on where it stopped
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "probe")]
    encode: Option<PathBuf>,
    /// With --encode: further encodings of each training question, augmented
    #[arg(long, default_value_t = 0, value_name = "N")]
    augment_copies: usize,
    /// With --encode: threads
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
    /// Report the phone error of this checkpoint's units by kind of voice, in place of training
    #[arg(long, value_name = "CHECKPOINT")]
    probe: Option<PathBuf>,
    /// With --probe: print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// Steps of the phone-CTC stage; a run may be resumed with another number
    #[arg(long, default_value_t = 2200, value_name = "N")]
    steps_ctc: u64,
    /// Steps of the HuBERT stage (masked prediction of units, with CTC); 0 leaves it out
    #[arg(long, default_value_t = 1400, value_name = "N")]
    steps_hubert: u64,
    /// Steps of the robust stage (the same units in noise); 0 leaves it out
    #[arg(long, default_value_t = 2300, value_name = "N")]
    steps_robust: u64,
    /// Stop after so many minutes of this call; the next call goes on
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Steps between two saves
    #[arg(long, default_value_t = 200, value_name = "N")]
    save_every: u64,
    /// Seed of weights, batches, masks, augmentation and k-means
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to train: cpu or gpu (gpu needs the cargo feature `gpu`)
    #[arg(long, default_value = "cpu", env = "SA_DEVICE")]
    device: DeviceChoice,
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
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Blocks of the network
    #[arg(long, default_value_t = 6)]
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
    let corpus = Corpus::open(&args.corpus).with_context(|| format!("while opening the corpus {}", args.corpus.display()))?;
    match (&args.encode, &args.probe) {
        (Some(checkpoint), _) => run_encode(&args, checkpoint, &corpus),
        (_, Some(checkpoint)) => run_probe(&args, checkpoint, &corpus),
        _ => run_train(&args, &corpus),
    }
}

fn run_encode(args: &Args, checkpoint: &Path, corpus: &Corpus) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| checkpoint.with_file_name("units"));
    let options = encode::Options { copies: args.augment_copies, seed: args.seed, threads: args.jobs };
    let started = Instant::now();
    let progress = |done: usize, total: usize| eprintln!("encoded {done}/{total} ({:.0?})", started.elapsed());
    encode_corpus(checkpoint, corpus, &output, options, &args.device.device()?, progress)
        .with_context(|| format!("while encoding {} into {}", args.corpus.display(), output.display()))?;
    eprintln!("the units are in {}", output.display());
    Ok(())
}

fn run_probe(args: &Args, checkpoint: &Path, corpus: &Corpus) -> Result<()> {
    let options = probe::Options { seed: args.seed, ..probe::Options::default() };
    let report = probe(checkpoint, corpus, options, &args.device.device()?)?;
    let json = serde_json::to_string_pretty(&report)?;
    let path = checkpoint.join("probe.json");
    write_atomically(&path, json.as_bytes()).with_context(|| format!("while writing {}", path.display()))?;
    println!("{}", if args.json { json } else { report.table() });
    Ok(())
}

fn run_train(args: &Args, corpus: &Corpus) -> Result<()> {
    let output = args.output.clone().context("--output DIR is needed to train: the run folder")?;
    let phones = corpus.lexicon().inventory().len() + 1;
    let config = match &args.config {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("while reading {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("while reading {}", path.display()))?
        }
        None => config_of(args, phones),
    };
    anyhow::ensure!(
        config.network.phones == phones,
        "the configuration has {} phones, the corpus {phones} (with blank)",
        config.network.phones
    );
    let common = CommonArgs {
        corpus: args.corpus.clone(),
        output: output.clone(),
        minutes: args.minutes,
        seed: args.seed,
        device: args.device,
        save_every: args.save_every,
    };
    let (training, dev) = (CorpusSpeech::new(corpus, Split::Train, true), CorpusSpeech::new(corpus, Split::Dev, false));
    let steps = Steps { ctc: args.steps_ctc, hubert: args.steps_hubert, robust: args.steps_robust };
    let device = args.device.device()?;
    if train(&config, steps, &common, &training, &dev, &device)? {
        let checkpoint = Folders::new(&output).checkpoint();
        let (mut network, model) = load(&checkpoint, &device)?;
        network.lag = lag::measure(&model, &network, corpus, &device).context("while measuring how late the phones come")?;
        write_atomically(&checkpoint.join("config.json"), &serde_json::to_vec_pretty(&network)?)?;
        eprintln!("phones come {} units after their sound; the agent's units are moved by as many", network.lag);
        eprintln!("the tokenizer is in {}", Folders::new(&output).checkpoint().display());
    } else {
        eprintln!("the minutes are over: the same command goes on");
    }
    Ok(())
}

fn config_of(args: &Args, phones: usize) -> TrainConfig {
    let mut config = TrainConfig::new(phones, args.seed);
    config.batch_seconds = args.batch;
    config.optimizer.learning_rate = args.lr;
    config.prior_scale = args.prior_scale;
    config.network = TokenizerConfig {
        units: args.units,
        width: args.width,
        feed_forward: 4 * args.width,
        layers: args.layers,
        layer: args.layer.unwrap_or(args.layers),
        ..config.network
    };
    config
}
