//! `parity hubert`, `parity hifigan` and `parity qwen`: runs the exporter's graph of a public checkpoint on an engine and compares it with
//! what a reference implementation computed. `parity stream`: what a bundle's tokenizer or decoder gives chunk by chunk. Prints one JSON
//! object; `tests/reference/*.py` make the files and judge the figures.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use sa_device::bundle::{Bundle, StageName};
use sa_device::engine::{Engine, EngineName, Wish};
use sa_export::compare::units_of;
use sa_export::graphs::{hifigan, hubert, lm};
use sa_export::import::arrays::{self, Array};
use sa_export::import::hifigan::HifiGan;
use sa_export::import::hubert::Hubert;
use sa_export::import::qwen::Qwen;
use sa_export::inspect;
use sa_export::onnx::Precision;
use sa_export::prove::{Distance, arg_max, text_step};
use sa_export::runner::Runner;

#[derive(Parser)]
enum Command {
    Hubert(HubertArgs),
    Hifigan(HifiGanArgs),
    Qwen(QwenArgs),
    Stream(StreamArgs),
}

/// Where the graph runs.
#[derive(clap::Args)]
struct EngineArgs {
    /// tract or ort (its library as `ORT_DYLIB_PATH` says)
    #[arg(long, default_value = "tract")]
    engine: EngineName,
}

impl EngineArgs {
    fn open(&self) -> Result<Box<dyn Engine>> {
        Ok(Wish { engine: self.engine, ..Wish::default() }.open(|_| ())?)
    }
}

#[derive(clap::Args)]
struct HifiGanArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// See `sa-export --hifigan`
    #[arg(long)]
    hifigan: PathBuf,
    /// `[n]`, .npy
    #[arg(long)]
    units: PathBuf,
    /// `[n · hop]`, .npy: what the reference computed
    #[arg(long)]
    audio: PathBuf,
}

#[derive(clap::Args)]
struct QwenArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// See `sa-export --qwen`
    #[arg(long)]
    qwen: PathBuf,
    /// `[n]`, .npy: the prompt, and what the reference wrote greedily after it
    #[arg(long)]
    tokens: PathBuf,
    /// `[n, V]`, .npy: the reference's logits at every position
    #[arg(long)]
    logits: PathBuf,
    /// Tokens of the prompt
    #[arg(long)]
    prompt: usize,
    /// fp32, fp16, int8-weights, int8 or int4
    #[arg(long, default_value = "fp32", value_parser = form)]
    form: Precision,
    #[arg(long, default_value_t = 128)]
    context: usize,
}

#[derive(clap::Args)]
struct HubertArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// A folder of Hugging Face or a .pt of fairseq
    #[arg(long)]
    hubert: PathBuf,
    #[arg(long)]
    kmeans: PathBuf,
    #[arg(long)]
    layer: usize,
    /// `[n]`, .npy
    #[arg(long)]
    audio: PathBuf,
    /// `[T, d]`, .npy: what the reference computed
    #[arg(long)]
    features: PathBuf,
    /// fp32, fp16, int8-weights, int8 or int4
    #[arg(long, default_value = "fp32", value_parser = form)]
    form: Precision,
    /// Run so often; the median time is printed
    #[arg(long, default_value_t = 1)]
    repeat: usize,
}

#[derive(clap::Args)]
struct StreamArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[arg(long)]
    bundle: PathBuf,
    /// `[n]`, .npy: samples for a tokenizer, units for a decoder; whole chunks
    #[arg(long)]
    input: PathBuf,
}

fn form(name: &str) -> Result<Precision, &'static str> {
    inspect::precision(name).ok_or("unknown")
}

fn read(path: &Path) -> Result<Array> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    arrays::npy(&bytes).map_err(|message| anyhow!("{}: {message}", path.display()))
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Hubert(args) => compare_hubert(&args),
        Command::Hifigan(args) => compare_hifigan(&args),
        Command::Qwen(args) => compare_qwen(&args),
        Command::Stream(args) => stream(&args),
    }
}

/// The units of a tokenizer or the samples of a decoder, from the initial state on.
fn stream(args: &StreamArgs) -> Result<()> {
    let (bundle, input) = (Bundle::open(&args.bundle)?, read(&args.input)?);
    let engine = args.engine.open()?;
    let stages = &bundle.manifest().stage;
    let values: Vec<f32> = if let Some(entry) = &stages.tokenizer {
        let mut runner = Runner::open(&*engine, &bundle, StageName::Tokenizer)?;
        units_of(&mut runner, entry.chunk, &input.data)?.iter().map(|unit| *unit as f32).collect()
    } else {
        let mut runner = Runner::open(&*engine, &bundle, StageName::Decoder)?;
        let units: Vec<i64> = input.data.iter().map(|unit| *unit as i64).collect();
        let chunks = units.chunks_exact(stages.require(StageName::Decoder)?.chunk);
        let audio = chunks.map(|units| runner.step(&[], &[("units", units)])?.f32("audio")).collect::<Result<Vec<_>, _>>()?;
        audio.concat()
    };
    println!("{}", serde_json::json!({ "values": values }));
    Ok(())
}

fn compare_hifigan(args: &HifiGanArgs) -> Result<()> {
    let gan = HifiGan::open(&args.hifigan)?;
    let units: Vec<i64> = read(&args.units)?.data.iter().map(|unit| *unit as i64).collect();
    let graph = hifigan::draw_offline(&gan, units.len(), Precision::Fp32)?;
    let mut runner = Runner::new(&*args.engine.open()?, &graph)?;
    let mut distance = Distance::default();
    distance.values(&read(&args.audio)?.data, &runner.step(&[], &[("units", &units)])?.f32("audio")?);
    println!("{}", serde_json::json!({ "error": distance.error() }));
    Ok(())
}

/// The logits over the given tokens, and the text that the graph writes itself from the prompt on.
fn compare_qwen(args: &QwenArgs) -> Result<()> {
    let qwen = Qwen::open(&args.qwen, args.context)?;
    let (tokens, logits) = (read(&args.tokens)?, read(&args.logits)?);
    let tokens: Vec<i64> = tokens.data.iter().map(|token| *token as i64).collect();
    let vocabulary = qwen.config.vocab_size;
    ensure!(logits.shape == [tokens.len(), vocabulary], "logits of shape {:?} for {} tokens of {vocabulary}", logits.shape, tokens.len());
    ensure!((1..tokens.len()).contains(&args.prompt), "a prompt of {} of {} tokens", args.prompt, tokens.len());
    let graph = lm::draw_parts(&qwen.config, &qwen.weights, None, args.form)?;
    let mut runner = Runner::new(&*args.engine.open()?, &graph)?;
    let mut distance = Distance::default();
    for (position, expected) in logits.data.chunks_exact(vocabulary).enumerate() {
        distance.values(expected, &text_step(&mut runner, tokens[position], position)?.0);
    }
    // Once more, by itself: the cache is written over from its first row.
    let mut written = tokens[..args.prompt].to_vec();
    for position in 0..tokens.len() - 1 {
        let (logits, _) = text_step(&mut runner, written[position], position)?;
        if position + 1 == written.len() {
            written.push(arg_max(&logits) as i64);
        }
    }
    let same = written.iter().zip(&tokens).skip(args.prompt).take_while(|(a, b)| a == b).count();
    let count = tokens.len() - args.prompt;
    println!("{}", serde_json::json!({ "error": distance.error(), "same": same, "written": count, "ms": runner.median_ms() }));
    Ok(())
}

fn compare_hubert(args: &HubertArgs) -> Result<()> {
    let hubert = Hubert::open(&args.hubert)?;
    let codebook = arrays::kmeans(&args.kmeans)?;
    let (audio, features) = (read(&args.audio)?, read(&args.features)?);
    let graph = hubert::draw_offline(&hubert, args.layer, Some(&codebook), audio.data.len(), args.form)?;
    let mut runner = Runner::new(&*args.engine.open()?, &graph)?;
    for _ in 1..args.repeat {
        runner.step(&[("audio", &audio.data)], &[])?;
    }
    let outputs = runner.step(&[("audio", &audio.data)], &[])?;
    let mut distance = Distance::default();
    distance.values(&features.data, &outputs.f32("features")?);
    let d = codebook.shape[1];
    ensure!(features.shape.last() == Some(&d), "features of shape {:?} for centroids of {d}", features.shape);
    // The reference's units by the definition, in double precision.
    let nearest = |frame: &[f32]| {
        let far = |c: &[f32]| c.iter().zip(frame).map(|(c, x)| f64::from(c - x).powi(2)).sum::<f64>();
        let distances: Vec<f64> = codebook.data.chunks_exact(d).map(far).collect();
        (0..distances.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap_or_default() as i64
    };
    let units: Vec<i64> = features.data.chunks_exact(d).map(nearest).collect();
    distance.decisions(&units, &outputs.i64("units")?);
    let (error, agreement) = (distance.error(), distance.agreement());
    println!("{}", serde_json::json!({ "error": error, "agreement": agreement, "units": units.len(), "ms": runner.median_ms() }));
    Ok(())
}
