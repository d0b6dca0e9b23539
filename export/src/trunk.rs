//! The export of a public Qwen2 as the trunk of a group language model: a bundle with the stage `lm`, and `head` where speech weights
//! are given beside it.
//!
//! There is no network to run beside the fp32 graph here: that it computes what transformers does is proven by
//! `tests/reference/qwen.py`. The other forms are held against it on text that it writes itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, FileEntry, Manifest, Stages};
use sa_device::engine::Engine;
use sa_device::vocabulary::SPECIALS;
use sa_models::lm::Config;
use tokenizers::Tokenizer;

use crate::budget::{Baseline, Budgets, Measured, choose};
use crate::choice::Choice;
use crate::graphs::{self, StageGraph};
use crate::import::qwen::Qwen;
use crate::import::speech::{Head, Speech};
use crate::onnx::{Form, Importance, Precision};
use crate::prove::{Distance, Item, arg_max, lm_step, text_step};
use crate::report::Report;
use crate::runner::{RunError, Runner};
use crate::samples::files;
use crate::target::{RATE, Target, progress};

/// Positions that forms are compared on; one different token of them is within the budget of 99.5 %.
const COMPARED: usize = 200;
/// Most tokens that are calibrated on.
const CALIBRATED: usize = 4096;
/// Tokens of them that are given; the others the fp32 graph writes.
const PROMPT: usize = 16;
/// Most bytes of one ONNX file: a protobuf message has no more.
const LARGEST_FILE: usize = (1 << 31) - 1;
/// Units a second of the bundles of this project; a trunk does not say.
const UNIT_RATE: usize = 25;

/// What to export and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder of Hugging Face.
    pub qwen: PathBuf,
    /// See [`Speech`]; without it the bundle reads and writes text only.
    pub speech: Option<PathBuf>,
    /// Folder of texts (`.txt`) on which it is measured how much each input of the layers matters.
    pub calibrate: Option<PathBuf>,
    /// Positions that the cache holds.
    pub context: usize,
    pub target: Target,
    pub lm: Choice,
    pub head: Choice,
    pub budgets: Budgets,
    /// Layers to keep in single precision, see [`Form`].
    pub exclude: Vec<String>,
    pub force: bool,
}

/// Exports the trunk; nothing is left behind unless all of it succeeded.
pub fn export(options: &Options) -> Result<(Bundle, Report)> {
    let qwen = Qwen::open(&options.qwen, options.context).with_context(|| format!("opening the Qwen2 {}", options.qwen.display()))?;
    let speech = match &options.speech {
        Some(dir) => Some(Speech::open(dir).with_context(|| {
            format!("opening the speech weights {}; without --speech the trunk becomes a bundle of text alone", dir.display())
        })?),
        None => None,
    };
    let config = speech.as_ref().map_or_else(|| qwen.config.clone(), |speech| speech.complete(&qwen.config));
    let tokenizer = qwen.tokenizer();
    ensure!(
        tokenizer.is_file(),
        "{} is missing: it says what the tokens mean; copy it from where the weights come from",
        tokenizer.display()
    );
    let mut inputs = vec![options.qwen.as_path()];
    inputs.extend(options.speech.as_deref());
    options.target.refuse_overwriting(&inputs)?;
    let engine = options.target.open_engine()?;
    let writer = options.target.writer()?;
    let bar = progress(6);
    let mut report = Report::on(&*engine, format!("{COMPARED} positions of text that the fp32 graph wrote"));
    let exporter = Exporter { qwen: &qwen, speech: speech.as_ref(), config: &config, options, engine: &*engine, bar: &bar };
    let (lm, head) = exporter.run(&mut report)?;
    bar.finish_and_clear();
    let drawn: Vec<&StageGraph> = std::iter::once(&lm).chain(&head).collect();
    for graph in drawn {
        ensure!(
            graph.onnx.len() <= LARGEST_FILE,
            "the {} graph has {} MB, one ONNX file at most {}: choose --fp16, --int8 or --int4",
            graph.stage,
            graph.onnx.len() / 1_000_000,
            LARGEST_FILE / 1_000_000
        );
        writer.add(&graph.file(), &graph.onnx)?;
    }
    std::fs::copy(&tokenizer, writer.path("tokenizer.json")).with_context(|| format!("copying {}", tokenizer.display()))?;
    let mut sources = vec![("qwen", qwen.files())];
    sources.extend(speech.as_ref().map(|speech| ("speech", speech.files())));
    let part = options.target.part(&sources, &lm, config.units, RATE / UNIT_RATE)?;
    let special_tokens = if speech.is_some() { qwen.special_tokens()? } else { Default::default() };
    let missing: Vec<&str> = SPECIALS[1..].iter().copied().filter(|token| !special_tokens.contains_key(*token)).collect();
    if speech.is_some() && !missing.is_empty() {
        eprintln!(
            "sa-export: it cannot hold a conversation: {} {} not among the added tokens of tokenizer.json",
            missing.join(", "),
            if missing.len() == 1 { "is" } else { "are" }
        );
    }
    let bundle = writer.finish(Manifest {
        group: config.group,
        transcript: speech.as_ref().is_some_and(|speech| speech.transcript),
        special_tokens,
        vocabulary: Some(FileEntry::named("tokenizer.json")),
        minimum_memory_mb: report.minimum_memory_mb(),
        stage: Stages { head: head.as_ref().map(StageGraph::entry), ..part.stage.clone() },
        measured: report.to_toml(),
        ..part
    })?;
    Ok((bundle, report))
}

struct Exporter<'a> {
    qwen: &'a Qwen,
    speech: Option<&'a Speech>,
    config: &'a Config,
    options: &'a Options,
    engine: &'a dyn Engine,
    bar: &'a ProgressBar,
}

/// What a trunk gave at every position.
#[derive(Default)]
struct Rows {
    logits: Vec<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
}

impl Exporter<'_> {
    fn run(&self, report: &mut Report) -> Result<(StageGraph, Option<StageGraph>)> {
        self.step("lm: fp32");
        let fp32 = self.draw_lm(Precision::Fp32.into())?;
        if !self.options.exclude.is_empty() {
            let head = self.speech.map(|speech| self.draw_head(speech, Precision::Fp32.into())).transpose()?;
            let drawn: Vec<&StageGraph> = std::iter::once(&fp32).chain(&head).collect();
            graphs::check_exclude(&self.options.exclude, &drawn).map_err(Error::msg)?;
        }
        let mut runner = Runner::new(self.engine, &fp32)?;
        let tokens = self.write(&mut runner)?;
        let rows = self.read(&mut runner, &tokens)?;
        let importance = self.importance()?;
        let calibrated = |precision| Form { importance: importance.as_ref(), ..self.form(precision) };
        let Options { lm, head, budgets, force, target, .. } = self.options;
        let library = target.ort_library.as_deref();
        let baseline = Baseline { fp32, parity: None, ms: runner.median_ms() };
        drop(runner);
        let (lm_graph, entry) = choose(lm, budgets, *force, self.engine, library, baseline, |precision| {
            self.step(&format!("lm: {precision}"));
            let graph = self.draw_lm(calibrated(precision))?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let mut distance = Distance::default();
            for (a, b) in rows.logits.iter().zip(&self.read(&mut runner, &tokens)?.logits) {
                distance.values(a, b);
                distance.decisions(&[arg_max(a)], &[arg_max(b)]);
            }
            Ok((graph, measured(&distance, runner.median_ms())))
        })?;
        report.stages.push(entry);

        let Some(speech) = self.speech else { return Ok((lm_graph, None)) };
        self.step("head: fp32");
        let fp32 = self.draw_head(speech, Precision::Fp32.into())?;
        let mut runner = Runner::new(self.engine, &fp32)?;
        let units = |runner: &mut Runner| -> Result<Vec<Vec<f32>>, RunError> {
            rows.hidden.iter().map(|hidden| runner.step(&[("hidden", hidden)], &[])?.f32("unit_logits")).collect()
        };
        let reference = units(&mut runner)?;
        let baseline = Baseline { fp32, parity: None, ms: runner.median_ms() };
        let (head_graph, entry) = choose(head, budgets, *force, self.engine, library, baseline, |precision| {
            self.step(&format!("head: {precision}"));
            let graph = self.draw_head(speech, calibrated(precision))?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let mut distance = Distance::default();
            for (a, b) in reference.iter().zip(&units(&mut runner)?) {
                distance.values(a, b);
                let rows = |logits: &[f32]| logits.chunks_exact(self.config.units + 1).map(arg_max).collect::<Vec<_>>();
                distance.decisions(&rows(a), &rows(b));
            }
            Ok((graph, measured(&distance, runner.median_ms())))
        })?;
        report.stages.push(entry);
        Ok((lm_graph, Some(head_graph)))
    }

    fn step(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.inc(1);
    }

    fn form(&self, precision: Precision) -> Form<'_> {
        Form { exclude: &self.options.exclude, ..Form::from(precision) }
    }

    /// How much the inputs of the layers matter while it reads the texts of the calibration.
    fn importance(&self) -> Result<Option<Importance>> {
        let Some(dir) = &self.options.calibrate else { return Ok(None) };
        self.step("lm: calibrating");
        let tokens = texts(dir, &self.qwen.tokenizer())?;
        let probe = Form { probe: true, ..Form::from(Precision::Fp32) };
        let mut trunk = Runner::new(self.engine, &self.draw_lm(probe)?)?;
        let mut importance = Importance::new();
        let mut hidden = Vec::new();
        for part in tokens.chunks(self.config.max_position_embeddings - 1) {
            for (position, token) in part.iter().enumerate() {
                let (_, row) = self.feed(&mut trunk, *token, position)?;
                hidden.extend(self.speech.map(|_| row));
            }
        }
        importance.extend(trunk.importance());
        if let Some(speech) = self.speech {
            let mut head = Runner::new(self.engine, &self.draw_head(speech, probe)?)?;
            hidden.iter().try_for_each(|hidden| head.step(&[("hidden", hidden)], &[]).map(|_| ()))?;
            importance.extend(head.importance());
        }
        Ok(Some(importance))
    }

    fn draw_lm(&self, form: Form) -> Result<StageGraph> {
        let speech = self.speech.map(|speech| &speech.weights);
        Ok(graphs::lm::draw_parts(self.config, &self.qwen.weights, speech, form)?)
    }

    fn draw_head(&self, speech: &Speech, form: Form) -> Result<StageGraph> {
        Ok(match speech.head {
            Head::Depth { hidden_size, .. } => graphs::head::draw_depth(self.config, hidden_size, &speech.weights, form)?,
            Head::Group(_) => graphs::head::draw(self.config, &speech.weights, form)?,
            Head::Linear => graphs::head::draw_linear(self.config, &speech.weights, form)?,
        })
    }

    fn feed(&self, runner: &mut Runner, token: i64, position: usize) -> Result<(Vec<f32>, Vec<f32>), RunError> {
        match self.speech {
            Some(_) => lm_step(runner, self.config.group, &Item::Token(token), position),
            None => text_step(runner, token, position),
        }
    }

    /// A seeded prompt and what the graph likes best after it.
    fn write(&self, runner: &mut Runner) -> Result<Vec<i64>, RunError> {
        let vocabulary = self.config.vocab_size;
        let length = COMPARED.min(self.config.max_position_embeddings - 1);
        let mut tokens: Vec<i64> = (0..PROMPT).map(|i| ((i * i * 2_654_435 + i * 40_503 + 7) % vocabulary) as i64).collect();
        for position in 0..length {
            let (logits, _) = self.feed(runner, tokens[position], position)?;
            if position + 1 == tokens.len() {
                tokens.push(arg_max(&logits) as i64);
            }
        }
        tokens.truncate(length);
        Ok(tokens)
    }

    fn read(&self, runner: &mut Runner, tokens: &[i64]) -> Result<Rows, RunError> {
        let mut rows = Rows::default();
        for (position, token) in tokens.iter().enumerate() {
            let (logits, hidden) = self.feed(runner, *token, position)?;
            rows.logits.push(logits);
            rows.hidden.push(hidden);
        }
        Ok(rows)
    }
}

/// The tokens of the `.txt` files of a folder, in order of their names; as many as say enough.
fn texts(dir: &Path, tokenizer: &Path) -> Result<Vec<i64>> {
    let wrong = |error: tokenizers::Error| anyhow!("{}: {error}", tokenizer.display());
    let tokenizer = Tokenizer::from_file(tokenizer).map_err(wrong)?;
    let mut tokens = Vec::new();
    for path in files(dir, "txt")? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let encoded = tokenizer.encode_fast(text, false).map_err(wrong)?;
        tokens.extend(encoded.get_ids().iter().map(|id| i64::from(*id)));
    }
    tokens.truncate(CALIBRATED);
    ensure!(!tokens.is_empty(), "{} holds no text (*.txt) to calibrate on", dir.display());
    Ok(tokens)
}

fn measured(distance: &Distance, ms: f64) -> Measured {
    Measured { error: distance.error(), agreement: Some(distance.agreement()), decibels: None, ms }
}
