//! `sa-export`: a checkpoint in, a proven bundle out.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result, bail};
use clap::{ArgGroup, Parser};
use sa_device::bundle::{BundleError, StageName};
use sa_device::engine::EngineName;
use sa_export::budget::Budgets;
use sa_export::choice::{BeyondBudget, Choice};
use sa_export::export::{Options, export};
use sa_export::inspect;
use sa_export::onnx::Precision;
use sa_export::target::Target;
use sa_export::{decoder, join, tokenizer, trunk};

/// Turns a checkpoint into a bundle of streaming ONNX graphs, and proves each graph against its network.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 4 bundle invalid, 5 beyond budget (a graph differs too much).
#[derive(Parser)]
#[command(name = "sa-export", version, max_term_width = 100)]
#[command(group(ArgGroup::new("mode").required(true).args(["checkpoint", "hubert", "hifigan", "qwen", "join", "inspect", "verify", "compare"])))]
struct Cli {
    /// Checkpoint folder: tokenizer/, decoder/, lm/, vocabulary.txt
    #[arg(long, value_name = "DIR", requires = "output")]
    checkpoint: Option<PathBuf>,
    /// Bundle folder to write; a bundle that is there is replaced
    #[arg(long, value_name = "BUNDLE")]
    output: Option<PathBuf>,
    /// A public HuBERT to export as a streaming tokenizer: a folder of Hugging Face, or a .pt of fairseq
    #[arg(long, value_name = "PATH", requires_all = ["output", "kmeans"])]
    hubert: Option<PathBuf>,
    /// With --hubert: its centroids (.npy, .safetensors, or a scikit-learn KMeans pickled or saved by joblib)
    #[arg(long, value_name = "FILE", requires = "hubert")]
    kmeans: Option<PathBuf>,
    /// With --hubert: the layer whose features the k-means knows, from 1 (the last by default; 11 for mHuBERT-25Hz)
    #[arg(long, value_name = "N", requires = "hubert")]
    layer: Option<usize>,
    /// A public unit HiFi-GAN to export as a streaming decoder: a folder with config.json and a generator, or the generator's file
    #[arg(long, value_name = "PATH", requires = "output", conflicts_with = "look_back")]
    hifigan: Option<PathBuf>,
    /// A public Qwen2 or Qwen2.5 to export as the trunk of a language model: a folder of Hugging Face
    #[arg(long, value_name = "DIR", requires = "output")]
    qwen: Option<PathBuf>,
    /// With --qwen: what makes it speak (config.json, model.safetensors: unit embedding, adaptor, head); text alone without it
    #[arg(long, value_name = "DIR", requires = "qwen")]
    speech: Option<PathBuf>,
    /// With --qwen: positions that it can remember
    #[arg(long, value_name = "N", requires = "qwen", default_value_t = 1024)]
    context: usize,
    /// With --hubert: audio before the chunk that the network hears again at every step (2000)
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    look_back: Option<f64>,
    /// With --hubert and --hifigan: audio of a step (320 and 160 by default)
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    chunk: Option<f64>,
    /// With --hubert and --hifigan: audio after the chunk that a step waits for (by default the shortest that gives 95 % of the offline
    /// units, or spectra within half a decibel)
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    look_ahead: Option<f64>,
    /// Everything in single precision (the default)
    #[arg(long, conflicts_with_all = ["int8", "int4", "precision"])]
    fp32: bool,
    /// Half precision on disk, computed in single precision
    #[arg(long, conflicts_with_all = ["fp32", "int8"])]
    fp16: bool,
    /// 8 bits: each stage in the form that pays, chosen by measurement; or 8-bit products in the named stages only
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    int8: Option<Vec<StageName>>,
    /// 4 bits for the language model and its head where they keep their budget, and 8 bits elsewhere; or 4 bits in the named stages only
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage, conflicts_with_all = ["fp32", "fp16"])]
    int4: Option<Vec<StageName>>,
    /// What a form may lose: the least share of decisions as in fp32 (tokenizer 0.985, lm 0.995, head 0.95), for the decoder dB (1)
    #[arg(long, value_name = "STAGE=VALUE", value_delimiter = ',', value_parser = stage_budget)]
    budget: Vec<(StageName, f64)>,
    /// Layers to keep in single precision, by the names that the table of worst layers has, such as model.layers.0.* (* any text, ? a character)
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    exclude: Vec<String>,
    /// The form of one stage, such as lm=int8-weights (fp32, fp16, int8-weights, int8, int4); overrides --int8 and --int4
    #[arg(long, value_name = "STAGE=FORM", value_delimiter = ',', value_parser = stage_form)]
    precision: Vec<(StageName, Precision)>,
    /// Folder of WAV files, or a corpus, to compare the quantised graphs on (built-in sounds otherwise)
    #[arg(long, value_name = "DIR")]
    samples: Option<PathBuf>,
    /// With --checkpoint or --qwen: measure on this folder how much each input of a layer matters, and store 4-bit weights by that: WAV
    /// files or a corpus, texts (*.txt) for a Qwen2. Best other data than --samples
    #[arg(long, value_name = "DIR", conflicts_with_all = ["hubert", "hifigan", "join"])]
    calibrate: Option<PathBuf>,
    /// The bundle's name (the output folder's otherwise)
    #[arg(long)]
    name: Option<String>,
    /// Licence of the weights, an SPDX expression
    #[arg(long, default_value = "MIT OR Apache-2.0")]
    licence: String,
    /// Where the weights come from, in words
    #[arg(long, default_value = "trained by sa-align")]
    provenance: String,
    /// The engine that will run the bundle: forms are proven, timed and chosen on it
    #[arg(long, value_name = "tract|ort", default_value = "tract", value_parser = engine, conflicts_with_all = ["join", "inspect", "verify", "compare"])]
    engine: EngineName,
    /// The library of ONNX Runtime or its folder; else ORT_DYLIB_PATH and the usual places are looked at
    #[arg(long, value_name = "FILE", env = "SA_ORT_LIBRARY")]
    ort_library: Option<PathBuf>,
    /// Write the bundle even where a named form misses its budget
    #[arg(long)]
    force: bool,
    /// Print what a bundle holds
    #[arg(long, value_name = "BUNDLE")]
    inspect: Option<PathBuf>,
    /// Check a bundle's hashes and shapes and run its graphs
    #[arg(long, value_name = "BUNDLE")]
    verify: Option<PathBuf>,
    /// Bundles that are parts into one: each stage comes from the first that holds it
    #[arg(long, num_args = 1.., value_name = "BUNDLE", requires = "output")]
    join: Vec<PathBuf>,
    /// Two bundles side by side: forms, sizes, times, and their outputs on the same inputs
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Vec<PathBuf>,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "milliseconds are expected")?;
    if (0.0..=30_000.0).contains(&value) { Ok(value) } else { Err("0 to 30000 are possible".into()) }
}

/// `auto` is for who runs a bundle: what is measured is measured on one engine.
fn engine(text: &str) -> Result<EngineName, String> {
    match text.parse() {
        Ok(engine @ (EngineName::Tract | EngineName::Ort)) => Ok(engine),
        _ => Err("the engines are tract and ort".into()),
    }
}

fn stage(text: &str) -> Result<StageName, String> {
    let known = StageName::ALL.map(StageName::as_str).join(", ");
    StageName::ALL.into_iter().find(|stage| stage.as_str() == text).ok_or(format!("the stages are {known}"))
}

fn stage_form(text: &str) -> Result<(StageName, Precision), String> {
    let (name, form) = text.split_once('=').ok_or("write STAGE=FORM")?;
    let precision = inspect::precision(form).ok_or("the forms are fp32, fp16, int8-weights, int8, int4")?;
    Ok((stage(name)?, precision))
}

fn stage_budget(text: &str) -> Result<(StageName, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write STAGE=VALUE")?;
    let (stage, value) = (stage(name)?, value.parse().map_err(|_| "a number is expected")?);
    Budgets::default().set(stage, value).map(|()| (stage, value))
}

impl Cli {
    fn budgets(&self) -> Result<Budgets> {
        let mut budgets = Budgets::default();
        self.budget.iter().try_for_each(|(stage, value)| budgets.set(*stage, *value)).map_err(Error::msg)?;
        Ok(budgets)
    }

    /// The forms of a stage; `int8` is what `--int8` alone means for it.
    fn choice(&self, stage: StageName, int8: Choice) -> Choice {
        let named = self.precision.iter().find(|(name, _)| *name == stage).map(|(_, precision)| *precision);
        let listed = |stages: &Option<Vec<StageName>>| stages.as_ref().is_some_and(|stages| stages.contains(&stage));
        let alone = |stages: &Option<Vec<StageName>>| stages.as_ref().is_some_and(Vec::is_empty);
        match named {
            Some(precision) => Choice::named(precision),
            None if self.fp16 => Choice::named(Precision::Fp16),
            None if listed(&self.int4) => Choice::named(Precision::Int4),
            None if listed(&self.int8) => Choice::named(Precision::Int8),
            None if alone(&self.int4) && matches!(stage, StageName::Lm | StageName::Head) => Choice::int4(stage),
            None if alone(&self.int4) || alone(&self.int8) => int8,
            None => Choice::fp32(),
        }
    }

    fn choices(&self) -> [Choice; 4] {
        StageName::ALL.map(|stage| self.choice(stage, Choice::int8()))
    }

    fn target(&self, output: &Path) -> Target {
        let folder = || output.file_name().map_or_else(|| "bundle".into(), |name| name.to_string_lossy().into_owned());
        Target {
            output: output.into(),
            name: self.name.clone().unwrap_or_else(folder),
            licence: self.licence.clone(),
            provenance: self.provenance.clone(),
            engine: self.engine,
            ort_library: self.ort_library.clone(),
        }
    }
}

/// Prints; a reader that has gone away (`| head`) has seen enough.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(dir) = &cli.inspect {
        say(&inspect::inspect(dir)?)?;
    } else if let Some(dir) = &cli.verify {
        say(&format!("{}\n", inspect::verify(dir)?.join("\n")))?;
    } else if let [first, second] = &cli.compare[..] {
        say(&inspect::compare(first, second)?)?;
    } else if let (false, Some(output)) = (cli.join.is_empty(), &cli.output) {
        let (bundle, lines) = join::join(&cli.join, &cli.target(output))?;
        say(&format!("{}\nwritten: {}\n", lines.join("\n"), bundle.dir().display()))?;
    } else if let (Some(checkpoint), Some(output)) = (&cli.checkpoint, &cli.output) {
        let options = Options {
            checkpoint: checkpoint.clone(),
            target: cli.target(output),
            samples: cli.samples.clone(),
            calibrate: cli.calibrate.clone(),
            choices: cli.choices(),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        };
        let (bundle, report) = export(&options)?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))?;
    } else if let (Some(hubert), Some(kmeans), Some(output)) = (&cli.hubert, &cli.kmeans, &cli.output) {
        let (bundle, report) = tokenizer::export(&tokenizer::Options {
            hubert: hubert.clone(),
            kmeans: kmeans.clone(),
            layer: cli.layer,
            look_back_ms: cli.look_back.unwrap_or(2000.0),
            chunk_ms: cli.chunk.unwrap_or(320.0),
            look_ahead_ms: cli.look_ahead,
            longest_look_ahead_ms: 1000.0,
            target: cli.target(output),
            samples: cli.samples.clone(),
            choice: cli.choice(StageName::Tokenizer, Choice::int8()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))?;
    } else if let (Some(hifigan), Some(output)) = (&cli.hifigan, &cli.output) {
        let (bundle, report) = decoder::export(&decoder::Options {
            hifigan: hifigan.clone(),
            chunk_ms: cli.chunk.unwrap_or(160.0),
            look_ahead_ms: cli.look_ahead,
            target: cli.target(output),
            choice: cli.choice(StageName::Decoder, Choice::convolutions()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))?;
    } else if let (Some(qwen), Some(output)) = (&cli.qwen, &cli.output) {
        let (bundle, report) = trunk::export(&trunk::Options {
            qwen: qwen.clone(),
            speech: cli.speech.clone(),
            calibrate: cli.calibrate.clone(),
            context: cli.context,
            target: cli.target(output),
            lm: cli.choice(StageName::Lm, Choice::int8()),
            head: cli.choice(StageName::Head, Choice::int8()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))?;
    } else {
        bail!("nothing to do"); // the argument group asks for one of the three
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Err(error) = run(&cli) else { return ExitCode::SUCCESS };
    eprintln!("sa-export: {error:#}");
    let invalid =
        (cli.inspect.is_some() || cli.verify.is_some() || !cli.compare.is_empty()) && error.chain().any(|cause| cause.is::<BundleError>());
    ExitCode::from(match error.is::<BeyondBudget>() {
        true => 5,
        false if invalid => 4,
        false => 1,
    })
}
