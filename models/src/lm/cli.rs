//! `sa-align lm`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::config::Config;
use super::data::Material;
use super::evaluate::evaluate;
use super::fused::Parameters;
use super::generate::Generator;
use super::network::Network;
use super::train::{Resources, TrainConfig, train};
use crate::corpus::{Corpus, Split};
use crate::tokenizer::UnitStore;
use crate::train::{CommonArgs, DeviceChoice, Run, checkpoint};

#[derive(clap::Args)]
pub struct Args {
    /// Corpus folder made by `sa-align corpus`
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Units of the corpus, made by `sa-align tokenizer`
    #[arg(long, value_name = "DIR")]
    units: PathBuf,
    /// Run folder; an interrupted run goes on where it stopped
    #[arg(long, value_name = "DIR", required_unless_present = "evaluate")]
    output: Option<PathBuf>,
    /// Begin with the weights of this checkpoint (config.json, model.safetensors) in place of random ones: adapt an agent to another corpus
    #[arg(long, value_name = "CHECKPOINT", conflicts_with_all = ["evaluate", "config", "group", "no_transcript"])]
    from: Option<PathBuf>,
    /// Of the weights that it begins with, the share that stays in the checkpoint, an average with those that were learnt: less is forgotten
    #[arg(long, value_name = "SHARE", requires = "from", default_value_t = 0.0, value_parser = share)]
    keep: f64,
    /// Steps of the whole run; a run may be resumed with another number (the learning rate follows it)
    #[arg(long, default_value_t = 14_000, value_name = "N")]
    steps: u64,
    /// Stop after so many minutes of this call; the next call goes on
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// End this call after M minutes with the learning rate down, however many of the steps were done
    #[arg(long, value_name = "M", conflicts_with = "minutes")]
    finish_in: Option<f64>,
    /// Sequences a step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Units in a group, G
    #[arg(long, default_value_t = 4, value_name = "G")]
    group: usize,
    /// Answer at once, without writing down the question first
    #[arg(long)]
    no_transcript: bool,
    /// Shares of the tasks: question,transcribe,text,say
    #[arg(long, default_value = "0.52,0.22,0.14,0.12", value_parser = shares, value_name = "SHARES")]
    mix: [f64; 4],
    /// How often a question's reply is trained as speech where it was synthesised
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    spoken: f64,
    /// A JSON file with the whole training configuration, in place of the flags above
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to train: cpu or gpu (gpu needs the cargo feature `gpu`)
    #[arg(long, default_value = "cpu", env = "SA_DEVICE")]
    device: DeviceChoice,
    /// Threads that share a step (the sums' order, and so the last bits, depend on it)
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Steps between two saves
    #[arg(long, default_value_t = 200, value_name = "N")]
    save_every: u64,
    /// Instead of training, answer the test questions with this checkpoint (config.json, model.safetensors)
    #[arg(long, value_name = "CHECKPOINT")]
    evaluate: Option<PathBuf>,
    /// Test questions of these sets: trained, timbre, accent, synthesiser; all by default
    #[arg(long, value_delimiter = ',', value_name = "SET")]
    set: Vec<String>,
    /// Questions of the dev split instead of the test split
    #[arg(long)]
    dev: bool,
    /// At most this many questions of each set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Ask in text instead of speech
    #[arg(long)]
    typed: bool,
    /// With --evaluate: the reply's words are chosen one by one while it is spoken, not all before
    #[arg(long)]
    no_plan: bool,
    /// Mistakes to list
    #[arg(long, default_value_t = 20, value_name = "N")]
    mistakes: usize,
    /// Print the report as JSON, with all mistakes
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "a number from 0 to 1".to_owned())
}

fn shares(text: &str) -> Result<[f64; 4], String> {
    let shares = text.split(',').map(|share| share.trim().parse().ok().filter(|share| *share >= 0.0)).collect::<Option<Vec<f64>>>();
    let shares = shares.and_then(|shares| <[f64; 4]>::try_from(shares).ok()).filter(|shares| shares.iter().sum::<f64>() > 0.0);
    shares.ok_or_else(|| "four numbers separated by commas, not all of them 0".to_owned())
}

pub fn run(args: Args) -> Result<()> {
    let corpus = Corpus::open(&args.corpus).with_context(|| format!("while opening the corpus {}", args.corpus.display()))?;
    let units = UnitStore::open(&args.units).with_context(|| format!("while opening the units {}", args.units.display()))?;
    let load = |split| Material::load(&corpus, &units, split);
    if let Some(checkpoint) = &args.evaluate {
        let split = if args.dev { Split::Dev } else { Split::Test };
        if corpus.questions(split).iter().all(|question| question.dialogue.is_none()) {
            // Where the corpus is that small there is nothing to say, and nothing wrong.
            println!("the corpus is too small to have questions to answer here: from 20 on it has some");
            return Ok(());
        }
        return report(&args, checkpoint, &corpus, load(split));
    }
    let config = match &args.config {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("while reading {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("while reading {}", path.display()))?
        }
        None => {
            let mut model = Config::nano(corpus.vocabulary().len(), units.k());
            model.group = args.group;
            model.transcript = !args.no_transcript;
            let mut config = TrainConfig::new(model, args.seed);
            if let Some(from) = &args.from {
                config.model = checkpoint::load_config(from)?;
                same_words(from, &corpus)?;
                let weights = from.join("model.safetensors");
                let bytes = std::fs::read(&weights).with_context(|| format!("while reading {}", weights.display()))?;
                config.from = Some(crate::folder::sha256(&bytes));
            }
            config.batch = args.batch;
            config.optimizer.learning_rate = args.lr;
            config.mix.spoken = args.spoken;
            [config.mix.question, config.mix.transcribe, config.mix.text, config.mix.say] = args.mix;
            config
        }
    };
    anyhow::ensure!(
        config.model.vocab_size == corpus.vocabulary().len() && config.model.units == units.k(),
        "the configuration has {} tokens and {} units, the corpus {} and {}",
        config.model.vocab_size,
        config.model.units,
        corpus.vocabulary().len(),
        units.k()
    );
    let output = args.output.clone().context("--output is missing")?;
    let common = CommonArgs {
        corpus: args.corpus.clone(),
        output: output.clone(),
        minutes: args.finish_in.or(args.minutes),
        seed: args.seed,
        device: args.device,
        save_every: args.save_every,
    };
    let (material, dev, grammar) = (load(Split::Train), load(Split::Dev), corpus.grammar()?);
    let resources = Resources {
        vocabulary: corpus.vocabulary(),
        grammar: &grammar,
        train: &material,
        dev: &dev,
        from: args.from.as_deref().map(|from| (from, args.keep)),
        device: args.device.device()?,
        fused: args.device == DeviceChoice::Cpu && !config.model.attention_bias,
        threads: args.threads,
        finish_in: args.finish_in.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
    };
    let run = Run::open(&output, &config, args.steps, &common)?;
    train(&config, &resources, run)?;
    eprintln!("the language model is in {}", output.join("checkpoint").display());
    Ok(())
}

/// A token is a line of the vocabulary: where a checkpoint came with one, it must be the corpus' own.
fn same_words(checkpoint: &Path, corpus: &Corpus) -> Result<()> {
    let path = checkpoint.join("../vocabulary.txt");
    if path.exists() {
        let words = crate::corpus::Vocabulary::load(&path).with_context(|| format!("while reading {}", path.display()))?;
        anyhow::ensure!(
            words.to_text() == corpus.vocabulary().to_text(),
            "the words of {} are not those of the corpus: it was trained on another grammar; train from nothing, without --from",
            path.display()
        );
    }
    Ok(())
}

fn report(args: &Args, dir: &Path, corpus: &Corpus, material: Material) -> Result<()> {
    let config: Config = checkpoint::load_config(dir)?;
    anyhow::ensure!(
        config.vocab_size == corpus.vocabulary().len(),
        "the checkpoint has {} text tokens, the corpus {}: they do not belong together",
        config.vocab_size,
        corpus.vocabulary().len()
    );
    let device = burn::tensor::Device::flex();
    let network = checkpoint::load_weights(dir, Network::new(&config, &device))?;
    let parameters = Parameters::of(&network, &config);
    let mut generator = Generator::new(&config, &parameters, corpus.vocabulary());
    generator.plan = !args.no_plan;
    let mut seen = std::collections::HashMap::<&str, usize>::new();
    let questions = material.questions.iter().filter(|question| {
        let wanted = question.turn.is_some() && (args.set.is_empty() || args.set.contains(&question.set));
        let count = seen.entry(&question.set).or_default();
        *count += usize::from(wanted);
        wanted && args.limit.is_none_or(|limit| *count <= limit)
    });
    let report = evaluate(&generator, questions, args.typed);
    anyhow::ensure!(
        report.all.questions > 0,
        "no test question of the sets {:?} has units: run `sa-align tokenizer` on this corpus",
        args.set
    );
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.to_text(args.mistakes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_four_numbers() {
        assert_eq!(shares("0.4, 0.2,0.2,0"), Ok([0.4, 0.2, 0.2, 0.0]));
        for wrong in ["", "1,1,1", "0,0,0,0", "1,1,1,-1", "1,1,1,x", "1,1,1,1,1"] {
            assert!(shares(wrong).is_err(), "{wrong}");
        }
    }
}
