//! The export of a public unit HiFi-GAN as a streaming decoder: a bundle with one stage.
//!
//! The generator sees a bounded number of units to both sides; waiting for all of them on the right would delay every answer. So the
//! look-ahead is chosen by what it costs: the difference in the mel spectrum from the whole utterance, as a curve that goes into the
//! bundle.

use std::path::PathBuf;

use anyhow::{Context, Error, Result, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, DECODER_MAX_DELAY, Manifest, StageName};
use sa_device::engine::Engine;
use sa_models::audio::LogMel;
use toml::{Table, Value};

use crate::budget::{Budgets, Measured};
use crate::choice::{Choice, first_within};
use crate::graphs::{StageGraph, Window, check_exclude, hifigan};
use crate::import::hifigan::HifiGan;
use crate::onnx::{Form, Precision};
use crate::runner::Runner;
use crate::target::{RATE, Target, picture, progress};

/// Mean difference of the mel spectrum, in dB, that the default look-ahead stays under: less than is heard.
pub const LOOK_AHEAD_DB: f64 = 0.5;
/// Units that the comparisons speak.
const UNITS: usize = 120;

/// What to export and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder with `config.json` and a generator, or the generator's file.
    pub hifigan: PathBuf,
    /// In milliseconds, rounded up to units.
    pub chunk_ms: f64,
    /// The shortest within [`LOOK_AHEAD_DB`] if not given.
    pub look_ahead_ms: Option<f64>,
    pub target: Target,
    pub choice: Choice,
    pub budgets: Budgets,
    /// Layers to keep in single precision, see [`Form`].
    pub exclude: Vec<String>,
    pub force: bool,
}

/// What was made and measured.
#[derive(Debug)]
pub struct Report {
    pub engine: &'static str,
    pub window: Window,
    pub unit_ms: f64,
    /// Difference from the whole utterance in dB, by look-ahead in units.
    pub curve: Vec<(usize, f64)>,
    pub precision: Precision,
    pub reason: String,
    /// Difference from fp32 in dB.
    pub decibels: f64,
    pub bytes: usize,
    pub ms: f64,
    pub fp32_ms: f64,
}

/// Exports the decoder; nothing is left behind unless all of it succeeded.
pub fn export(options: &Options) -> Result<(Bundle, Report)> {
    let gan = HifiGan::open(&options.hifigan).with_context(|| format!("opening the HiFi-GAN {}", options.hifigan.display()))?;
    options.target.refuse_overwriting(&[&options.hifigan])?;
    let engine = options.target.open_engine()?;
    let writer = options.target.writer()?;
    let bar = progress(5);
    let (graph, report) = Exporter { gan: &gan, options, engine: &*engine, bar: &bar }.run()?;
    bar.finish_and_clear();
    writer.add(&graph.file(), &graph.onnx)?;
    let points: Vec<(f64, f64)> = report.curve.iter().map(|(ahead, decibels)| (*ahead as f64 * report.unit_ms, *decibels)).collect();
    picture(&writer, "dB from the whole utterance, by look-ahead", &points)?;
    let part = options.target.part(&[("hifigan", gan.files())], &graph, gan.config.num_embeddings, gan.config.hop())?;
    let bundle = writer.finish(Manifest { measured: report.to_toml(), ..part })?;
    Ok((bundle, report))
}

struct Exporter<'a> {
    gan: &'a HifiGan,
    options: &'a Options,
    engine: &'a dyn Engine,
    bar: &'a ProgressBar,
}

impl Exporter<'_> {
    fn run(&self) -> Result<(StageGraph, Report)> {
        let config = &self.gan.config;
        let unit_ms = 1000.0 * config.hop() as f64 / RATE as f64;
        let units_of = |ms: f64| ((ms / unit_ms) - 1e-9).ceil().max(0.0) as usize;
        let chunk = units_of(self.options.chunk_ms).max(1);
        let look_back = config.reach();
        let longest = self.options.look_ahead_ms.map_or(look_back, units_of);
        ensure!(longest <= DECODER_MAX_DELAY, "a look-ahead of {longest} units: at most {DECODER_MAX_DELAY} are possible");

        // Held units, as speech has them, of all kinds.
        let units: Vec<i64> = (0..UNITS).map(|i| ((i / 3 * 37 + i / 17) % config.num_embeddings) as i64).collect();
        self.step("the whole utterance");
        let offline = hifigan::draw_offline(self.gan, units.len(), Precision::Fp32)?;
        let whole = Runner::new(self.engine, &offline)?.step(&[], &[("units", &units)])?.f32("audio")?;
        self.step("the curve over the look-ahead");
        let curve = self.curve(&units, &whole, look_back, chunk, longest)?;
        let near = curve.iter().find(|(_, decibels)| *decibels <= LOOK_AHEAD_DB).map_or(longest, |(ahead, _)| *ahead);
        let look_ahead = self.options.look_ahead_ms.map_or(near, |_| longest);
        self.choose(Window { look_back, chunk, look_ahead }, unit_ms, curve, &units)
    }

    fn step(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.inc(1);
    }

    /// One window at each place holds every look-ahead at once: the chunk `a` units before its end has a look-ahead of `a`.
    fn curve(&self, units: &[i64], whole: &[f32], look_back: usize, chunk: usize, longest: usize) -> Result<Vec<(usize, f64)>> {
        let hop = self.gan.config.hop();
        let size = look_back + chunk + longest;
        let graph = hifigan::draw_offline(self.gan, size, Precision::Fp32)?;
        let mut runner = Runner::new(self.engine, &graph)?;
        let places = (units.len().saturating_sub(size)) / chunk;
        ensure!(places > 0, "a window of {size} units is longer than the comparison: choose a shorter chunk or look-ahead");
        let mut streams = vec![Vec::new(); longest + 1];
        for place in 0..places {
            let audio = runner.step(&[], &[("units", &units[place * chunk..][..size])])?.f32("audio")?;
            for (ahead, stream) in streams.iter_mut().enumerate() {
                stream.extend_from_slice(&audio[(size - ahead - chunk) * hop..(size - ahead) * hop]);
            }
        }
        let start = |ahead: usize| (size - ahead - chunk) * hop;
        Ok(streams
            .iter()
            .enumerate()
            .map(|(ahead, stream)| (ahead, mel_distance(&whole[start(ahead)..][..stream.len()], stream)))
            .collect())
    }

    /// The first form within the budget that is not slower than fp32.
    fn choose(&self, window: Window, unit_ms: f64, curve: Vec<(usize, f64)>, units: &[i64]) -> Result<(StageGraph, Report)> {
        let run = |precision: Precision| -> Result<(StageGraph, Vec<f32>, f64)> {
            let graph = hifigan::draw(self.gan, window, Form { exclude: &self.options.exclude, ..Form::from(precision) })?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let mut audio = Vec::new();
            for chunk in units.chunks_exact(window.chunk) {
                audio.extend(runner.step(&[], &[("units", chunk)])?.f32("audio")?);
            }
            Ok((graph, audio, runner.median_ms()))
        };
        self.step("fp32");
        let (fp32, reference, fp32_ms) = run(Precision::Fp32)?;
        check_exclude(&self.options.exclude, &[&fp32]).map_err(Error::msg)?;
        let mut fp32 = Some(fp32);
        let chosen = first_within(StageName::Decoder, &self.options.choice, self.options.force, |precision| {
            if let Some(graph) = fp32.take_if(|_| precision == Precision::Fp32) {
                return Ok(((graph, 0.0, fp32_ms), None));
            }
            self.step(precision.name());
            let (graph, audio, ms) = run(precision)?;
            let decibels = mel_distance(&reference, &audio);
            let measured = Measured { decibels: Some(decibels), ms, ..Measured::default() };
            let missed = self.options.budgets.missed(StageName::Decoder, precision, &measured, fp32_ms);
            Ok(((graph, decibels, ms), missed))
        })?;
        let (graph, decibels, ms) = chosen.made;
        let (precision, reason, bytes) = (chosen.precision, chosen.reason, graph.onnx.len());
        Ok((graph, Report { engine: self.engine.name(), window, unit_ms, curve, precision, reason, decibels, bytes, ms, fp32_ms }))
    }
}

/// Mean absolute difference of the log-mel spectra in dB.
fn mel_distance(a: &[f32], b: &[f32]) -> f64 {
    // Log-mel values are (ln power + 4) / 4.
    const DECIBELS: f64 = 4.0 * 10.0 / std::f64::consts::LN_10;
    let front_end = LogMel::default();
    let (a, b) = (front_end.frames(a), front_end.frames(b));
    let sum: f64 = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs())).sum();
    DECIBELS * sum / a.len().max(1) as f64
}

impl Report {
    /// For `[measured]`.
    fn to_toml(&self) -> Table {
        let rounded = |value: f64| Value::Float((value * 1e4).round() / 1e4);
        let mut table = Table::new();
        table.insert("engine".into(), self.engine.into());
        table.insert("reason".into(), self.reason.clone().into());
        table.insert("spectral_distance_db".into(), rounded(self.decibels));
        table.insert("step_ms".into(), rounded(self.ms));
        table.insert("fp32_step_ms".into(), rounded(self.fp32_ms));
        table.insert("look_back_ms".into(), rounded(self.window.look_back as f64 * self.unit_ms));
        let curve = self.curve.iter().map(|(ahead, db)| Value::Array(vec![rounded(*ahead as f64 * self.unit_ms), rounded(*db)]));
        table.insert("distance_db_by_look_ahead_ms".into(), Value::Array(curve.collect()));
        table
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let ms = |units: usize| units as f64 * self.unit_ms;
        writeln!(f, "difference from the whole utterance, by look-ahead:")?;
        let step = self.curve.len().div_ceil(16).max(1);
        for (ahead, decibels) in self.curve.iter().step_by(step) {
            writeln!(f, "{:>7.0} ms {decibels:>7.2} dB {}", ms(*ahead), "█".repeat((decibels * 10.0).round().min(60.0) as usize))?;
        }
        let Window { look_back, chunk, look_ahead } = self.window;
        writeln!(f, "window: {:.0} ms back, {:.0} ms chunk, {:.0} ms ahead", ms(look_back), ms(chunk), ms(look_ahead))?;
        writeln!(
            f,
            "decoder: {} ({}), {:.1} MB, {:.2} dB from fp32, {:.1} ms a step of {:.0} ms on {} (fp32 {:.1} ms)",
            self.precision,
            self.reason,
            self.bytes as f64 / 1e6,
            self.decibels,
            self.ms,
            ms(chunk),
            self.engine,
            self.fp32_ms
        )
    }
}
