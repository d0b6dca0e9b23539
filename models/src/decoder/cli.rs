//! `sa-align decoder`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::clips::Clip;
use super::config::DecoderConfig;
use super::train::{self, Schedule, TrainConfig, speak};
use super::{Decoder, Synthesis};
use crate::corpus::{Corpus, Reply, Split};
use crate::tokenizer::UnitStore;
use crate::train::{CommonArgs, OptimizerConfig};

/// Trains, or with `--synthesise` speaks held-out replies.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Units of the corpus, made by `sa-align tokenizer`
    #[arg(long, value_name = "DIR")]
    units: PathBuf,
    /// JSON file with the network's sizes (default: the release `nano`)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Steps of the whole run; a run may be resumed with another number (the learning rate follows it)
    #[arg(long, default_value_t = 3_500, value_name = "N")]
    steps: u64,
    /// Crops a step
    #[arg(long, default_value_t = 12, value_name = "N")]
    batch: usize,
    /// Units of a crop whose audio enters the loss (their context comes on top)
    #[arg(long, default_value_t = 16, value_name = "UNITS")]
    crop: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Share of input units replaced in training, against slips of the language model
    #[arg(long, default_value_t = 0.015)]
    corruption: f64,
    /// Steps between two checks on held-out replies
    #[arg(long, default_value_t = 500, value_name = "N")]
    check_every: u64,
    /// Let the learning rate reach its floor when --minutes are over, even if the steps are not
    #[arg(long)]
    anneal_by_time: bool,
    /// Held-out replies to speak into RUN/samples at the end
    #[arg(long, default_value_t = 8, value_name = "N")]
    samples: usize,
    /// Instead of training: speak the replies of --split from their units with this checkpoint, into --output
    #[arg(long, value_name = "CHECKPOINT")]
    synthesise: Option<PathBuf>,
    /// Split to speak
    #[arg(long, value_enum, default_value_t = Split::Test)]
    split: Split,
    /// Speak at most so many replies
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let corpus = Corpus::open(&args.common.corpus).context("while opening the corpus")?;
    let units = UnitStore::open(&args.units).context("while opening the units")?;
    if let Some(folder) = &args.synthesise {
        let network = train::load(folder, &args.common.device.device()?)?;
        let clips = clips(&corpus, &units, corpus.replies(args.split), args.limit, &network.config)?;
        let count = write_speech(&network, &clips, &args.common.output)?;
        println!("{count} replies spoken into {}", args.common.output.display());
        return Ok(());
    }
    let model = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("while reading {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("while reading {}", path.display()))?
        }
        None => DecoderConfig { units: units.k(), ..DecoderConfig::default() },
    };
    let config = TrainConfig {
        model,
        optimizer: OptimizerConfig { learning_rate: args.lr, beta_1: 0.8, beta_2: 0.98, ..OptimizerConfig::default() },
        steps: args.steps,
        seed: args.common.seed,
        batch: args.batch,
        crop: args.crop,
        at_start: 0.2,
        at_end: 0.12,
        corruption: args.corruption,
        resolutions: vec![256, 512, 1024, 2048],
        mel_weight: 2.0,
        average: 0.999,
    };
    let trained = clips(&corpus, &units, corpus.replies(Split::Train), None, &config.model)?;
    let held_out = clips(&corpus, &units, corpus.replies(Split::Dev), Some(args.samples.max(24)), &config.model)?;
    let schedule = Schedule { check_every: args.check_every.max(1), by_time: args.anneal_by_time };
    let network = train::train(config, &trained, &held_out, &args.common, schedule)?;
    let samples = args.common.output.join("samples");
    write_speech(&network, &held_out[..args.samples.min(held_out.len())], &samples)?;
    Ok(())
}

/// Replies with their units and sound.
fn clips(corpus: &Corpus, units: &UnitStore, replies: &[Reply], limit: Option<usize>, config: &DecoderConfig) -> Result<Vec<Clip>> {
    let mut clips = Vec::new();
    for reply in replies.iter().take(limit.unwrap_or(usize::MAX)) {
        let ids = units.reply(&reply.id).with_context(|| format!("reply {} has no units: were they made from this corpus?", reply.id))?;
        if let Some(unit) = ids.iter().find(|&&unit| usize::from(unit) >= config.units) {
            anyhow::bail!("reply {} has the unit {unit}, but the decoder has {} units", reply.id, config.units);
        }
        let audio = corpus.reply_audio(reply).with_context(|| format!("while reading reply {}", reply.id))?;
        let audio = audio.iter().map(|sample| (sample * 32768.0).clamp(-32768.0, 32767.0) as i16).collect();
        clips.push(Clip { id: reply.id.clone(), text: reply.text.clone(), units: ids.to_vec(), audio });
    }
    Ok(clips)
}

/// Speaks `clips` from their units into `folder`: a WAV each and `list.jsonl` with `{"wav", "text"}` for a judge.
fn write_speech(network: &Decoder, clips: &[Clip], folder: &Path) -> Result<usize> {
    std::fs::create_dir_all(folder).with_context(|| format!("while making {}", folder.display()))?;
    let synthesis = Synthesis::new(&network.config);
    let mut list = String::new();
    for clip in clips {
        let audio = speak(network, &synthesis, &clip.units);
        let name = format!("{}.wav", clip.id);
        write_wav(&folder.join(&name), &audio).with_context(|| format!("while writing {name}"))?;
        list.push_str(&serde_json::json!({ "wav": name, "text": clip.text }).to_string());
        list.push('\n');
    }
    crate::train::checkpoint::write_atomically(&folder.join("list.jsonl"), list.as_bytes())?;
    Ok(clips.len())
}

fn write_wav(path: &Path, audio: &[f32]) -> Result<(), hound::Error> {
    let spec = hound::WavSpec { channels: 1, sample_rate: 16_000, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut writer = hound::WavWriter::create(path, spec)?;
    for sample in audio {
        writer.write_sample((sample * 32767.0).clamp(-32768.0, 32767.0) as i16)?;
    }
    writer.finalize()
}
