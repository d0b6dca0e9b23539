//! The export of a public Qwen2 as the trunk of a group language model: a bundle with the stage `lm`, and `head` where speech weights
//! are given beside it.
//!
//! There is no network to run beside the fp32 graph here: that it computes what transformers does is proven by
//! `tests/reference/qwen.py`. The other forms are held against it on given texts, or on text that the trunk writes itself.
//!
//! Memory stays near twice the checkpoint's largest file: graphs grow on the disk, and in single precision a large trunk is read in
//! pieces (see [`crate::reference`]).

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, FileEntry, Manifest, StageName, Stages};
use sa_device::engine::Engine;
use sa_device::vocabulary::SPECIALS;
use sa_models::folder::files;
use sa_models::lm::Config;
use tokenizers::Tokenizer;

use crate::budget::{Baseline, Budgets, Measured, Rules, choose};
use crate::choice::Choice;
use crate::compare::Surprise;
use crate::graphs::{self, StageGraph};
use crate::import::qwen::Qwen;
use crate::import::speech::{Head, Speech};
use crate::onnx::{Form, Importance, Precision};
use crate::prove::{Distance, Item, arg_max, feed};
use crate::reference::Reference;
use crate::report::Report;
use crate::runner::{RunError, Runner};
use crate::target::{RATE, Target, progress, step};

/// Positions that forms are compared on; one different token of them is within the budget of 99.5 %.
const COMPARED: usize = 200;
/// Most tokens that are calibrated on.
const CALIBRATED: usize = 4096;
/// Tokens of them that are given where the trunk writes the others.
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
    /// Folder of texts to compare the forms on; without it, what the trunk writes itself.
    pub samples: Option<PathBuf>,
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
    let bar = progress(7);
    let reference = Reference::new(&qwen.weights, speech.as_ref().map(|speech| &speech.weights), &config, &*engine);
    let exporter = Exporter { qwen: &qwen, speech: speech.as_ref(), config: &config, options, engine: &*engine, reference, bar: &bar };
    let (lm, head, report) = exporter.run()?;
    bar.finish_and_clear();
    let drawn: Vec<&StageGraph> = std::iter::once(&lm).chain(&head).collect();
    for graph in drawn {
        ensure!(
            graph.onnx.bytes() <= LARGEST_FILE,
            "the {} graph has {} MB, one ONNX file at most {}: choose --fp16, --int8 or --int4",
            graph.stage,
            graph.onnx.bytes() / 1_000_000,
            LARGEST_FILE / 1_000_000
        );
        graph.save(&writer)?;
    }
    std::fs::copy(&tokenizer, writer.path("tokenizer.json")).with_context(|| format!("copying {}", tokenizer.display()))?;
    let mut sources = vec![("qwen", qwen.files())];
    sources.extend(speech.as_ref().map(|speech| ("speech", speech.files())));
    let part = options.target.part(&sources, &lm, config.units, RATE / UNIT_RATE, &report)?;
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
        stage: Stages { head: head.as_ref().map(StageGraph::entry), ..part.stage.clone() },
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
    reference: Reference<'a>,
    bar: &'a ProgressBar,
}

/// What forms are compared on.
struct Text {
    tokens: Vec<i64>,
    /// Where it comes from, for the report.
    source: String,
    /// The graph that wrote it.
    writer: Option<StageGraph>,
}

/// What the trunk gave at every position in single precision.
#[derive(Default)]
struct Rows {
    logits: Vec<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
    surprise: Surprise,
}

impl Exporter<'_> {
    fn run(&self) -> Result<(StageGraph, Option<StageGraph>, Report)> {
        let Options { lm, head, .. } = self.options;
        // One of the forms must be a file; where none is, the first is told of.
        lm.candidates.iter().rev().map(|form| self.fits(*form)).reduce(Result::or).unwrap_or(Ok(()))?;
        self.check_exclude()?;
        let Text { tokens, source, mut writer } = self.text()?;
        let mut report = Report::on(self.engine, source);
        step(self.bar, "lm: fp32");
        let mut rows = Rows::default();
        let read = self.reference.read(&tokens, false, |position, logits, hidden| {
            rows.surprise.next(&logits, tokens.get(position + 1));
            rows.logits.push(logits);
            rows.hidden.push(hidden);
        })?;
        let importance = self.importance()?;
        let calibrated = |precision| Form { importance: importance.as_ref(), ..self.form(precision) };
        let fp32 = match &self.reference.pieces[..] {
            [_] => Ok(match writer.take_if(|writer| writer.precision == Precision::Fp32) {
                Some(written) => written,
                None => self.draw_lm(Precision::Fp32.into())?,
            }),
            pieces => Err(format!("it was measured in {} pieces, for it is large", pieces.len())),
        };
        let cross_entropy = rows.surprise.mean();
        let baseline = Baseline { stage: StageName::Lm, fp32, bytes: read.bytes, parity: None, cross_entropy, ms: read.ms };
        let (lm_graph, entry) = choose(&self.rules(lm), baseline, |precision| {
            step(self.bar, &format!("lm: {precision}"));
            if precision == Precision::Fp32 {
                return Ok((self.draw_lm(precision.into())?, Measured { agreement: Some(1.0), ms: read.ms, ..Measured::default() }));
            }
            let graph = match writer.take_if(|writer| writer.precision == precision) {
                Some(written) => written,
                None => self.draw_lm(calibrated(precision))?,
            };
            let mut runner = Runner::new(self.engine, &graph)?;
            let (mut distance, mut surprise) = (Distance::default(), Surprise::default());
            for (position, token) in tokens.iter().enumerate() {
                let (logits, _) = self.feed(&mut runner, *token, position)?;
                let expected = &rows.logits[position];
                distance.values(expected, &logits);
                distance.decisions(&[arg_max(expected)], &[arg_max(&logits)]);
                surprise.next(&logits, tokens.get(position + 1));
            }
            let measured = measured(&distance, runner.median_ms());
            Ok((graph, Measured { cross_entropy: surprise.mean(), ..measured }))
        })?;
        report.stages.push(entry);

        let Some(speech) = self.speech else { return Ok((lm_graph, None, report)) };
        step(self.bar, "head: fp32");
        let fp32 = self.draw_head(speech, Precision::Fp32.into())?;
        let mut runner = Runner::new(self.engine, &fp32)?;
        let units = |runner: &mut Runner| -> Result<Vec<Vec<f32>>, RunError> {
            rows.hidden.iter().map(|hidden| runner.step(&[("hidden", hidden)], &[])?.f32("unit_logits")).collect()
        };
        let reference = units(&mut runner)?;
        let baseline = Baseline::new(fp32, None, runner.median_ms());
        let (head_graph, entry) = choose(&self.rules(head), baseline, |precision| {
            step(self.bar, &format!("head: {precision}"));
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
        Ok((lm_graph, Some(head_graph), report))
    }

    /// Before anything is measured: each pattern must match a layer.
    fn check_exclude(&self) -> Result<()> {
        if self.options.exclude.is_empty() {
            return Ok(());
        }
        let mut names = self.reference.names()?;
        if let Some(speech) = self.speech {
            names.extend(self.draw_head(speech, Precision::Fp32.into())?.names);
        }
        graphs::check_exclude(&self.options.exclude, &names).map_err(Error::msg)
    }

    fn rules<'b>(&'b self, choice: &'b Choice) -> Rules<'b> {
        let Options { budgets, force, target, .. } = self.options;
        Rules::new(choice, budgets, *force, self.engine, target)
    }

    /// Refuses a form whose weights are no one file.
    fn fits(&self, precision: Precision) -> Result<()> {
        let size = |form| graphs::lm::bytes(self.config, form);
        let smaller = [Precision::Fp16, Precision::Int8, Precision::Int4].into_iter().filter(|form| size(*form) <= LARGEST_FILE);
        let smaller = smaller.map(|form| format!("--{form}")).collect::<Vec<_>>().join(" or ");
        ensure!(
            size(precision) <= LARGEST_FILE,
            "the lm in {precision} has {} MB, one ONNX file at most {}: {}",
            size(precision) / 1_000_000,
            LARGEST_FILE / 1_000_000,
            match smaller.as_str() {
                "" => "it is too large in every form".to_owned(),
                _ => format!("choose {smaller}, or accept a form that loses more than its budget by --precision lm=FORM --force"),
            }
        );
        Ok(())
    }

    fn form(&self, precision: Precision) -> Form<'_> {
        Form { exclude: &self.options.exclude, ..Form::from(precision) }
    }

    /// How much the inputs of the layers matter while it reads the texts of the calibration.
    fn importance(&self) -> Result<Option<Importance>> {
        let Some(dir) = &self.options.calibrate else { return Ok(None) };
        step(self.bar, "lm: calibrating");
        let tokens = texts(dir, &self.qwen.tokenizer())?;
        let probe = Form { probe: true, ..Form::from(Precision::Fp32) };
        let mut hidden = Vec::new();
        let mut importance = self.reference.read(&tokens, true, |_, _, row| hidden.extend(self.speech.map(|_| row)))?.importance;
        if let Some(speech) = self.speech {
            let mut head = Runner::new(self.engine, &self.draw_head(speech, probe)?)?;
            hidden.iter().try_for_each(|hidden| head.step(&[("hidden", hidden)], &[]).map(|_| ()))?;
            importance.extend(head.importance());
        }
        Ok(Some(importance))
    }

    fn draw_lm(&self, form: Form) -> Result<StageGraph> {
        self.fits(form.precision)?;
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
        feed(runner, self.speech.map(|_| self.config.group), &Item::Token(token), position)?.text()
    }

    /// What the forms are compared on: given texts, or what the trunk writes. A large one writes in 8 bits, for in single precision it is
    /// not in memory as a whole.
    fn text(&self) -> Result<Text> {
        let length = COMPARED.min(self.config.max_position_embeddings - 1);
        if let Some(dir) = &self.options.samples {
            let mut tokens = texts(dir, &self.qwen.tokenizer())?;
            tokens.truncate(length);
            return Ok(Text { source: format!("{} tokens of the texts in {}", tokens.len(), dir.display()), tokens, writer: None });
        }
        step(self.bar, "lm: writing text");
        let precision = if self.reference.pieces.len() == 1 { Precision::Fp32 } else { Precision::Int8 };
        self.fits(precision).context("drawing what writes the text to compare on; --samples gives one instead")?;
        let graph = self.draw_lm(self.form(precision))?;
        let tokens = self.write(&mut Runner::new(self.engine, &graph)?, length)?;
        let source = format!("{length} positions of text that the {precision} graph wrote");
        Ok(Text { tokens, source, writer: Some(graph) })
    }

    /// A seeded prompt and what the graph likes best after it.
    fn write(&self, runner: &mut Runner, length: usize) -> Result<Vec<i64>, RunError> {
        let vocabulary = self.config.vocab_size;
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
}

/// The tokens of the `.txt` files of a folder, in order of their names; as many as say enough.
fn texts(dir: &Path, tokenizer: &Path) -> Result<Vec<i64>> {
    let wrong = |error: tokenizers::Error| anyhow!("{}: {error}", tokenizer.display());
    let tokenizer = Tokenizer::from_file(tokenizer).map_err(wrong)?;
    let mut tokens = Vec::new();
    for path in files(dir, "txt")? {
        if tokens.len() >= CALIBRATED {
            break;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let encoded = tokenizer.encode_fast(text, false).map_err(wrong)?;
        tokens.extend(encoded.get_ids().iter().map(|id| i64::from(*id)));
    }
    tokens.truncate(CALIBRATED);
    ensure!(!tokens.is_empty(), "{} holds no text (*.txt)", dir.display());
    Ok(tokens)
}

fn measured(distance: &Distance, ms: f64) -> Measured {
    Measured { error: distance.error(), agreement: Some(distance.agreement()), ms, ..Measured::default() }
}
