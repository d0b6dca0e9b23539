//! The export of a public unit HiFi-GAN as a streaming decoder: a bundle with one stage.
//!
//! The generator sees a bounded number of units to both sides; waiting for all of them on the right would delay every answer. So the
//! look-ahead is chosen by what it costs: the difference in the mel spectrum from the whole utterance, as a curve that goes into the
//! bundle.

use std::path::PathBuf;

use anyhow::{Context, Error, Result, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, DECODER_MAX_DELAY};
use sa_device::engine::Engine;

use crate::budget::{Baseline, Budgets, Measured, Rules, choose};
use crate::choice::Choice;
use crate::compare::mel_distance;
use crate::graphs::{StageGraph, Window, check_exclude, hifigan};
use crate::import::hifigan::HifiGan;
use crate::onnx::{Form, Precision};
use crate::prove::Distance;
use crate::report::{Report, Scale, Streaming};
use crate::runner::Runner;
use crate::target::{RATE, Target, draw_curves, progress, step};

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

/// Exports the decoder; nothing is left behind unless all of it succeeded.
pub fn export(options: &Options) -> Result<(Bundle, Report)> {
    let gan = HifiGan::open(&options.hifigan).with_context(|| format!("opening the HiFi-GAN {}", options.hifigan.display()))?;
    options.target.refuse_overwriting(&[&options.hifigan])?;
    let engine = options.target.open_engine()?;
    let writer = options.target.writer()?;
    let bar = progress(5);
    let (graph, report) = Exporter { gan: &gan, options, engine: &*engine, bar: &bar }.run()?;
    bar.finish_and_clear();
    graph.save(&writer)?;
    draw_curves(&writer, &report)?;
    let part = options.target.part(&[("hifigan", gan.files())], &graph, gan.config.num_embeddings, gan.config.hop(), &report)?;
    let bundle = writer.finish(part)?;
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
        step(self.bar, "the whole utterance");
        let offline = hifigan::draw_offline(self.gan, units.len(), Precision::Fp32)?;
        // Its layers are those of the bundle's graph.
        check_exclude(&self.options.exclude, &offline.names).map_err(Error::msg)?;
        let whole = Runner::new(self.engine, &offline)?.step(&[], &[("units", &units)])?.f32("audio")?;
        step(self.bar, "the curve over the look-ahead");
        let curve = self.curve(&units, &whole, look_back, chunk, longest)?;
        let near =
            curve.iter().find(|(_, decibels)| Scale::Decibels.reaches(*decibels, LOOK_AHEAD_DB)).map_or(longest, |(ahead, _)| *ahead);
        let look_ahead = self.options.look_ahead_ms.map_or(near, |_| longest);
        self.choose(Window { look_back, chunk, look_ahead }, unit_ms, curve, &units, &whole)
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
    fn choose(&self, window: Window, unit_ms: f64, curve: Vec<(usize, f64)>, units: &[i64], whole: &[f32]) -> Result<(StageGraph, Report)> {
        let Options { exclude, choice, budgets, force, target, .. } = self.options;
        let draw = |precision| hifigan::draw(self.gan, window, Form { exclude, ..Form::from(precision) });
        let run = |graph: &StageGraph| -> Result<(Vec<f32>, f64)> {
            let mut runner = Runner::new(self.engine, graph)?;
            let mut audio = Vec::new();
            for chunk in units.chunks_exact(window.chunk) {
                audio.extend(runner.step(&[], &[("units", chunk)])?.f32("audio")?);
            }
            Ok((audio, runner.median_ms()))
        };
        step(self.bar, "fp32");
        let fp32 = draw(Precision::Fp32)?;
        let (reference, fp32_ms) = run(&fp32)?;
        let mut of_form = None;
        let rules = Rules::new(choice, budgets, *force, self.engine, target);
        let (graph, mut entry) = choose(&rules, Baseline::new(fp32, None, fp32_ms), |precision| {
            step(self.bar, precision.name());
            let graph = draw(precision)?;
            let (audio, ms) = run(&graph)?;
            let mut distance = Distance::default();
            distance.values(&reference, &audio);
            let decibels = Some(mel_distance(&reference, &audio));
            of_form = Some(audio);
            Ok((graph, Measured { error: distance.error(), decibels, ms, ..Measured::default() }))
        })?;
        // The form that is drawn last is the chosen one, unless that is the baseline.
        let streamed = of_form.filter(|_| graph.precision != Precision::Fp32).unwrap_or(reference);
        // It comes `look_ahead` units late. What is before the first and behind the last unit sounds otherwise in the whole utterance,
        // which has none there.
        let (late, edge) = (window.look_ahead, window.look_back);
        let hop = self.gan.config.hop();
        let end = (streamed.len() / hop).saturating_sub(late);
        let chosen = match edge < end {
            true => mel_distance(&whole[edge * hop..end * hop], &streamed[(edge + late) * hop..(end + late) * hop]),
            false => f64::NAN,
        };
        entry.streaming = Some(Streaming { window, unit_ms, scale: Scale::Decibels, curve, chosen, wanted: LOOK_AHEAD_DB });
        let mut report = Report::on(self.engine, format!("{UNITS} units"));
        report.stages.push(entry);
        Ok((graph, report))
    }
}
