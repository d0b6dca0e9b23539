//! The export of a public HuBERT with a k-means as a streaming tokenizer: a bundle with one stage.
//!
//! HuBERT looks both ways over a whole recording; a device cannot wait for its end. So a window slides over the audio (see
//! `graphs::hubert`), and what that costs is measured here: the share of units that are those of the offline pass, as a curve over
//! the look-ahead. The curve goes into the bundle, and the shortest look-ahead that reaches [`AGREEMENT`] is the default.

use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, FileEntry, Manifest, StageName, TOKENIZER_MAX_DELAY};
use sa_device::engine::Engine;
use toml::{Table, Value};

use crate::budget::{Budgets, Measured};
use crate::choice::{Choice, first_within};
use crate::graphs::{StageGraph, Window, check_exclude, hubert};
use crate::import::arrays::{self, Array};
use crate::import::hubert::Hubert;
use crate::onnx::{Form, Precision};
use crate::prove::Distance;
use crate::runner::Runner;
use crate::samples::Samples;
use crate::target::{RATE, Target, picture, progress};
use crate::units::{self, UNIT_DISTANCES};

/// The share of offline units that the default look-ahead reaches.
pub const AGREEMENT: f64 = 0.95;
/// Windows that the curve is measured on.
const CURVE_WINDOWS: usize = 12;
/// Seconds of the offline pass.
const OFFLINE_SECONDS: usize = 10;
/// Seconds on which forms of the graph are compared and timed.
const COMPARED_SECONDS: usize = 6;

/// What to export and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder of Hugging Face or a `.pt` of fairseq.
    pub hubert: PathBuf,
    /// See [`arrays::kmeans`].
    pub kmeans: PathBuf,
    /// Blocks to run, from 1; the features behind the last of them are quantised. All by default.
    pub layer: Option<usize>,
    /// In milliseconds, rounded up to units.
    pub look_back_ms: f64,
    pub chunk_ms: f64,
    /// The shortest that reaches [`AGREEMENT`], at most `longest_look_ahead_ms`, if not given.
    pub look_ahead_ms: Option<f64>,
    pub longest_look_ahead_ms: f64,
    pub target: Target,
    pub samples: Option<PathBuf>,
    pub choice: Choice,
    pub budgets: Budgets,
    /// Layers to keep in single precision, see [`Form`].
    pub exclude: Vec<String>,
    pub force: bool,
}

/// Share of units as in the offline pass, by look-ahead in units.
pub type Curve = Vec<(usize, f64)>;

/// What was made and measured.
#[derive(Debug)]
pub struct Report {
    pub engine: &'static str,
    pub window: Window,
    pub unit_ms: f64,
    pub curve: Curve,
    pub precision: Precision,
    pub reason: String,
    /// Share of units that are as in fp32.
    pub agreement: f64,
    pub bytes: usize,
    pub ms: f64,
    pub fp32_ms: f64,
    samples: String,
}

/// Exports the tokenizer; nothing is left behind unless all of it succeeded.
pub fn export(options: &Options) -> Result<(Bundle, Report)> {
    let hubert = Hubert::open(&options.hubert).with_context(|| format!("opening the HuBERT {}", options.hubert.display()))?;
    let codebook = arrays::kmeans(&options.kmeans).with_context(|| format!("opening the k-means {}", options.kmeans.display()))?;
    let [_, d] = codebook.shape[..] else { bail!("a codebook is a matrix") };
    ensure!(d == hubert.config.width, "the k-means has centroids of {d} values, the HuBERT features of {}", hubert.config.width);
    let layer = options.layer.unwrap_or(hubert.config.layers);
    ensure!((1..=hubert.config.layers).contains(&layer), "layer {layer}: this HuBERT has layers 1 to {}", hubert.config.layers);
    options.target.refuse_overwriting(&[&options.hubert, &options.kmeans])?;
    let samples = match &options.samples {
        Some(dir) => Samples::read(dir)?,
        None => Samples::synthetic(),
    };
    let engine = options.target.open_engine()?;
    let writer = options.target.writer()?;
    let bar = progress(6);
    let exporter = Exporter { hubert: &hubert, codebook: &codebook, layer, options, engine: &*engine, samples: &samples, bar: &bar };
    let (graph, report) = exporter.run()?;
    bar.finish_and_clear();
    writer.add(&graph.file(), &graph.onnx)?;
    let points: Vec<(f64, f64)> = report.curve.iter().map(|(ahead, share)| (*ahead as f64 * report.unit_ms, *share)).collect();
    picture(&writer, "share of units as in the offline pass, by look-ahead", &points)?;
    let sources = [("hubert", hubert.files()), ("kmeans", vec![options.kmeans.clone()])];
    let part = options.target.part(&sources, &graph, codebook.shape[0], hubert.config.hop())?;
    writer.add(UNIT_DISTANCES, &units::distances(&codebook.data, codebook.shape[0]))?;
    let unit_distances = Some(FileEntry::named(UNIT_DISTANCES));
    let bundle = writer.finish(Manifest { measured: report.to_toml(), unit_distances, ..part })?;
    Ok((bundle, report))
}

struct Exporter<'a> {
    hubert: &'a Hubert,
    codebook: &'a Array,
    layer: usize,
    options: &'a Options,
    engine: &'a dyn Engine,
    samples: &'a Samples,
    bar: &'a ProgressBar,
}

impl Exporter<'_> {
    fn run(&self) -> Result<(StageGraph, Report)> {
        let hop = self.hubert.config.hop();
        let unit_ms = 1000.0 * hop as f64 / RATE as f64;
        let units = |ms: f64| ((ms / unit_ms) - 1e-9).ceil().max(0.0) as usize;
        let (look_back, chunk) = (units(self.options.look_back_ms), units(self.options.chunk_ms).max(1));
        let longest = units(self.options.look_ahead_ms.unwrap_or(self.options.longest_look_ahead_ms));
        let late = longest + hubert::tail(self.hubert);
        ensure!(
            late <= TOKENIZER_MAX_DELAY,
            "a look-ahead of {longest} units makes the units {late} late: at most {TOKENIZER_MAX_DELAY} are possible"
        );

        let audio: Vec<f32> = self.samples.recordings.concat();
        let length = audio.len().min(OFFLINE_SECONDS * RATE);
        let window_units = look_back + chunk + longest;
        let field = self.hubert.config.receptive_field();
        let window_samples = window_units * hop + field - hop;
        ensure!(
            length > window_samples + hop,
            "the samples have {:.1} s; a window of {:.1} s needs more: give longer --samples or a shorter window",
            length as f64 / RATE as f64,
            window_samples as f64 / RATE as f64
        );
        self.step("the offline pass");
        let offline = self.offline_units(&audio[..length])?;
        self.step("the curve over the look-ahead");
        let curve = self.curve(&audio[..length], &offline, window_units, longest)?;
        let look_ahead = match self.options.look_ahead_ms {
            Some(_) => longest,
            None => curve.iter().find(|(_, share)| *share >= AGREEMENT).map_or(longest, |(ahead, _)| *ahead),
        };
        let window = Window { look_back, chunk, look_ahead };
        self.choose(window, unit_ms, curve, &audio[..audio.len().min(COMPARED_SECONDS * RATE)])
    }

    fn step(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.inc(1);
    }

    fn offline_units(&self, audio: &[f32]) -> Result<Vec<i64>> {
        let graph = hubert::draw_offline(self.hubert, self.layer, Some(self.codebook), audio.len(), Precision::Fp32)?;
        Ok(Runner::spend(self.engine, graph)?.step(&[("audio", audio)], &[])?.i64("units")?)
    }

    /// One window holds every look-ahead at once: the unit `a` before its end has a look-ahead of `a`. Each point is the mean over
    /// the windows of the units from there to the next point, which see more, so the share of the shortest is not flattered.
    fn curve(&self, audio: &[f32], offline: &[i64], window_units: usize, longest: usize) -> Result<Curve> {
        let hop = self.hubert.config.hop();
        let samples = window_units * hop + self.hubert.config.receptive_field() - hop;
        let graph = hubert::draw_offline(self.hubert, self.layer, Some(self.codebook), samples, Precision::Fp32)?;
        let mut runner = Runner::spend(self.engine, graph)?;
        let last = offline.len().saturating_sub(window_units);
        let mut equal = vec![0usize; longest + 1];
        let windows = CURVE_WINDOWS.min(last + 1);
        for i in 0..windows {
            let start = if windows > 1 { i * last / (windows - 1) } else { 0 };
            let units = runner.step(&[("audio", &audio[start * hop..][..samples])], &[])?.i64("units")?;
            for (ahead, equal) in equal.iter_mut().enumerate() {
                let at = units.len() - 1 - ahead;
                *equal += usize::from(units[at] == offline[start + at]);
            }
        }
        // Neighbouring units are pooled, for a dozen windows are few.
        let pooled = |ahead: usize| {
            let range = ahead.saturating_sub(1)..(ahead + 2).min(longest + 1);
            let count = range.len() * windows;
            range.map(|a| equal[a]).sum::<usize>() as f64 / count as f64
        };
        Ok((0..=longest).map(|ahead| (ahead, pooled(ahead))).collect())
    }

    /// The first form within the budget that is not slower than fp32.
    fn choose(&self, window: Window, unit_ms: f64, curve: Curve, audio: &[f32]) -> Result<(StageGraph, Report)> {
        let exclude = &self.options.exclude;
        let draw = |precision| hubert::draw(self.hubert, self.layer, self.codebook, window, Form { exclude, ..Form::from(precision) });
        let run = |chunk: usize, mut runner: Runner| -> Result<(Vec<i64>, f64)> {
            let units = crate::compare::units_of(&mut runner, chunk, audio)?;
            Ok((units, runner.median_ms()))
        };
        self.step("fp32");
        // Drawn again if it is what is chosen: memory is dearer than the second that this takes.
        let fp32 = draw(Precision::Fp32)?;
        check_exclude(exclude, &[&fp32]).map_err(Error::msg)?;
        let (reference, fp32_ms) = run(fp32.chunk, Runner::spend(self.engine, fp32)?)?;
        let chosen = first_within(StageName::Tokenizer, &self.options.choice, self.options.force, |precision| {
            self.step(precision.name());
            let graph = draw(precision)?;
            if precision == Precision::Fp32 {
                return Ok(((graph, 1.0, fp32_ms), None));
            }
            let (units, ms) = run(graph.chunk, Runner::new(self.engine, &graph)?)?;
            let mut distance = Distance::default();
            distance.decisions(&reference, &units);
            let agreement = distance.agreement();
            let measured = Measured { agreement: Some(agreement), ms, ..Measured::default() };
            let missed = self.options.budgets.missed(StageName::Tokenizer, precision, &measured, fp32_ms);
            Ok(((graph, agreement, ms), missed))
        })?;
        let (graph, agreement, ms) = chosen.made;
        let report = Report {
            engine: self.engine.name(),
            window,
            unit_ms,
            curve,
            precision: chosen.precision,
            reason: chosen.reason,
            agreement,
            bytes: graph.onnx.len(),
            ms,
            fp32_ms,
            samples: self.samples.source.clone(),
        };
        Ok((graph, report))
    }
}

impl Report {
    /// For `[measured]`.
    fn to_toml(&self) -> Table {
        let rounded = |value: f64| Value::Float((value * 1e4).round() / 1e4);
        let mut table = Table::new();
        table.insert("engine".into(), self.engine.into());
        table.insert("samples".into(), self.samples.clone().into());
        table.insert("reason".into(), self.reason.clone().into());
        table.insert("agreement_with_fp32".into(), rounded(self.agreement));
        table.insert("step_ms".into(), rounded(self.ms));
        table.insert("fp32_step_ms".into(), rounded(self.fp32_ms));
        table.insert("look_back_ms".into(), rounded(self.window.look_back as f64 * self.unit_ms));
        table.insert("look_ahead_ms".into(), rounded(self.window.look_ahead as f64 * self.unit_ms));
        let curve = self.curve.iter().map(|(ahead, share)| Value::Array(vec![rounded(*ahead as f64 * self.unit_ms), rounded(*share)]));
        table.insert("agreement_by_look_ahead_ms".into(), Value::Array(curve.collect()));
        table
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let ms = |units: usize| units as f64 * self.unit_ms;
        writeln!(f, "measured on {}", self.samples)?;
        writeln!(f, "units as in the offline pass, by look-ahead:")?;
        let step = self.curve.len().div_ceil(16).max(1);
        for (ahead, share) in self.curve.iter().step_by(step) {
            let bar = "█".repeat((share * 40.0).round() as usize);
            writeln!(f, "{:>7.0} ms {:>6.1} % {bar}", ms(*ahead), 100.0 * share)?;
        }
        let reached = self.curve.iter().any(|(ahead, share)| *ahead <= self.window.look_ahead && *share >= AGREEMENT);
        let verdict = if reached { "reaches" } else { "does not reach" };
        let Window { look_back, chunk, look_ahead } = self.window;
        writeln!(
            f,
            "window: {:.0} ms back, {:.0} ms chunk, {:.0} ms ahead, which {verdict} {:.0} %",
            ms(look_back),
            ms(chunk),
            ms(look_ahead),
            100.0 * AGREEMENT
        )?;
        writeln!(
            f,
            "tokenizer: {} ({}), {:.1} MB, {:.2} % of units as in fp32, {:.1} ms a step of {:.0} ms on {} (fp32 {:.1} ms)",
            self.precision,
            self.reason,
            self.bytes as f64 / 1e6,
            100.0 * self.agreement,
            self.ms,
            ms(chunk),
            self.engine,
            self.fp32_ms
        )
    }
}
