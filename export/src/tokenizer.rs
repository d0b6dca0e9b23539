//! The export of a public HuBERT with a k-means as a streaming tokenizer: a bundle with one stage.
//!
//! HuBERT looks both ways over a whole recording; a device cannot wait for its end. So a window slides over the audio (see
//! `graphs::hubert`), and what that costs is measured here: the share of units that are those of the offline pass, as a curve over
//! the look-ahead. Each point is the very graph that a bundle with that look-ahead would have, in the midst of the same sounds. The
//! curve goes into the bundle, and the shortest look-ahead of it that reaches [`AGREEMENT`] is the default.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Error, Result, bail, ensure};
use indicatif::ProgressBar;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use sa_device::bundle::{Bundle, FileEntry, Manifest, TOKENIZER_MAX_DELAY};
use sa_device::engine::Engine;

use crate::budget::{Baseline, Budgets, Measured, Rules, choose};
use crate::choice::Choice;
use crate::graphs::{StageGraph, Window, check_exclude, hubert};
use crate::import::arrays::{self, Array};
use crate::import::hubert::Hubert;
use crate::onnx::{Form, Precision};
use crate::prove::Distance;
use crate::report::{Report, Scale, Streaming};
use crate::runner::Runner;
use crate::samples::Samples;
use crate::target::{RATE, Target, draw_curves, progress, step};
use crate::units::{self, UNIT_DISTANCES};

/// The share of offline units that the default look-ahead reaches.
pub const AGREEMENT: f64 = 0.95;
/// Look-aheads of the curve at even distances; between the last of them that is too short and the first that is not, the distance is
/// halved until the shortest is found.
const EVEN_POINTS: usize = 5;
/// The sounds of the offline pass: so many stretches of at most so many seconds, from all over the samples.
const STRETCHES: usize = 2;
const STRETCH_SECONDS: usize = 6;
/// Chunks at which graphs are compared and timed, evenly over the stretches. A window depends on nothing but the audio in it, so not
/// every chunk of a stream has to be computed.
const CHUNKS: usize = 8;
/// Points that are measured side by side, on a thread each. Memory is for one graph that is being loaded and so many that run.
const SIDE_BY_SIDE: usize = 2;
/// After so many of them a point of the curve is left that cannot reach [`AGREEMENT`] any more.
const FEWEST: usize = 3;

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
    let bar = progress(EVEN_POINTS as u64 + 5);
    let exporter = Exporter {
        hubert: &hubert,
        codebook: &codebook,
        layer,
        options,
        engine: &*engine,
        samples: &samples,
        bar: &bar,
        loading: Mutex::new(()),
    };
    let (graph, report) = exporter.run()?;
    bar.finish_and_clear();
    graph.save(&writer)?;
    draw_curves(&writer, &report)?;
    let sources = [("hubert", hubert.files()), ("kmeans", vec![options.kmeans.clone()])];
    let part = options.target.part(&sources, &graph, codebook.shape[0], hubert.config.hop(), &report)?;
    writer.add(UNIT_DISTANCES, &units::distances(&codebook.data, codebook.shape[0]))?;
    let unit_distances = Some(FileEntry::named(UNIT_DISTANCES));
    let bundle = writer.finish(Manifest { unit_distances, ..part })?;
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
    /// Held while a graph is drawn and loaded, which takes twice the memory of one that runs.
    loading: Mutex<()>,
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
        let length = audio.len().min(STRETCH_SECONDS * RATE);
        let window = |look_ahead| Window { look_back, chunk, look_ahead };
        let longest_window = (look_back + chunk + longest) * hop;
        ensure!(
            length > longest_window + hop,
            "the samples have {:.1} s; a window of {:.1} s needs more: give longer --samples or a shorter window",
            length as f64 / RATE as f64,
            longest_window as f64 / RATE as f64
        );
        step(self.bar, "the offline pass");
        let chunks = self.offline(&audio, length, chunk)?;
        let mut even: Vec<usize> = (0..EVEN_POINTS).map(|point| longest * point / (EVEN_POINTS - 1)).collect();
        even.dedup();
        let threads = ThreadPoolBuilder::new().num_threads(SIDE_BY_SIDE).build()?;
        let mut curve: Vec<Point> =
            threads.install(|| even.par_iter().map(|look_ahead| self.measure(&chunks, window(*look_ahead))).collect::<Result<_>>())?;
        let reaches = |point: &&Point| Scale::Agreement.reaches(chunks.agreement(&point.units), AGREEMENT);
        let look_ahead = match self.options.look_ahead_ms {
            Some(_) => longest,
            None => loop {
                let Some(found) = curve.iter().find(reaches).map(|point| point.look_ahead) else { break longest };
                let too_short = curve.iter().map(|point| point.look_ahead).take_while(|ahead| *ahead < found).last();
                match too_short.filter(|too_short| too_short + 1 < found) {
                    Some(too_short) => {
                        let point = self.measure(&chunks, window((too_short + found) / 2))?;
                        curve.insert(curve.partition_point(|other| other.look_ahead < point.look_ahead), point);
                    }
                    None => break found,
                }
            },
        };
        self.choose(window(look_ahead), unit_ms, curve, &chunks)
    }

    /// Chunks of stretches of so many samples, with the units that the whole of a stretch gives.
    fn offline(&self, audio: &[f32], length: usize, chunk: usize) -> Result<Chunks> {
        let graph = hubert::draw_offline(self.hubert, self.layer, Some(self.codebook), length, Precision::Fp32)?;
        // Its layers are those of the bundle's graph.
        check_exclude(&self.options.exclude, &graph.names).map_err(Error::msg)?;
        let mut runner = Runner::new(self.engine, &graph)?;
        let count = STRETCHES.min(audio.len() / length);
        let mut chunks = Chunks::default();
        for i in 0..count {
            let start = (audio.len() - length) * i / count.saturating_sub(1).max(1);
            let audio = audio[start..start + length].to_vec();
            let units = runner.step(&[("audio", &audio)], &[])?.i64("units")?;
            let of_stretch = CHUNKS / count;
            for j in 0..of_stretch {
                let first = (units.len() - chunk) * (2 * j + 1) / (2 * of_stretch);
                chunks.places.push((i, first));
                chunks.offline.extend(&units[first..first + chunk]);
            }
            chunks.stretches.push(audio);
        }
        Ok(chunks)
    }

    /// The point of a window.
    fn measure(&self, chunks: &Chunks, window: Window) -> Result<Point> {
        let Window { look_ahead, .. } = window;
        let lost = |units: &[i64]| units.len() >= FEWEST * window.chunk && chunks.differing(units) > chunks.may_differ();
        let loading = self.loading.lock();
        step(self.bar, &format!("the curve: {look_ahead} units ahead"));
        let graph = hubert::draw(self.hubert, self.layer, self.codebook, window, Precision::Fp32)?;
        let mut runner = Runner::new(self.engine, &graph)?;
        drop(loading);
        Ok(Point { look_ahead, units: self.units_at(chunks, &mut runner, graph.chunk, window, &lost)? })
    }

    /// What a streaming graph that takes so many new samples gives at each chunk, until it is enough.
    fn units_at(
        &self,
        chunks: &Chunks,
        runner: &mut Runner,
        new: usize,
        window: Window,
        enough: &dyn Fn(&[i64]) -> bool,
    ) -> Result<Vec<i64>> {
        let hop = self.hubert.config.hop();
        let total = (window.units() + hubert::tail(self.hubert)) * hop;
        let mut units = Vec::new();
        for &(stretch, first) in &chunks.places {
            let heard = heard(&chunks.stretches[stretch], first * hop, window.look_back * hop, total);
            let (past, new) = heard.split_at(total - new);
            units.extend(runner.step(&[("state.audio", past), ("audio", new)], &[])?.i64("units")?);
            if enough(&units) {
                break;
            }
        }
        Ok(units)
    }

    /// [`Self::units_at`] of a graph with nothing beside it, and the median of its steps in milliseconds.
    fn timed(&self, chunks: &Chunks, graph: &StageGraph, window: Window, enough: &dyn Fn(&[i64]) -> bool) -> Result<(Vec<i64>, f64)> {
        let mut runner = Runner::new(self.engine, graph)?;
        let units = self.units_at(chunks, &mut runner, graph.chunk, window, enough)?;
        Ok((units, runner.median_ms()))
    }

    /// The first form within the budget that is not slower than fp32.
    fn choose(&self, window: Window, unit_ms: f64, mut curve: Vec<Point>, chunks: &Chunks) -> Result<(StageGraph, Report)> {
        let Options { exclude, choice, budgets, force, target, .. } = self.options;
        let draw = |precision| hubert::draw(self.hubert, self.layer, self.codebook, window, Form { exclude, ..Form::from(precision) });
        step(self.bar, "fp32");
        let fp32 = draw(Precision::Fp32)?;
        // The point that was taken is told by all chunks, even where it was left early; where it was not, the steps only tell its time.
        let point = curve.iter_mut().find(|point| point.look_ahead == window.look_ahead);
        let known = point.as_ref().filter(|point| point.units.len() == chunks.offline.len()).map(|point| point.units.clone());
        let (units, fp32_ms) = self.timed(chunks, &fp32, window, &|units| known.is_some() && units.len() >= FEWEST * window.chunk)?;
        let reference = known.unwrap_or(units);
        if let Some(point) = point {
            point.units.clone_from(&reference);
        }
        let mut of_form = None;
        let rules = Rules::new(choice, budgets, *force, self.engine, target);
        let (graph, mut entry) = choose(&rules, Baseline::new(fp32, None, fp32_ms), |precision| {
            step(self.bar, precision.name());
            let graph = draw(precision)?;
            let (units, ms) = self.timed(chunks, &graph, window, &|_| false)?;
            of_form = Some(chunks.agreement(&units));
            let mut distance = Distance::default();
            distance.decisions(&reference, &units);
            let agreement = distance.agreement();
            Ok((graph, Measured { error: 1.0 - agreement, agreement: Some(agreement), ms, ..Measured::default() }))
        })?;
        // The form that is drawn last is the chosen one, unless that is the baseline.
        let chosen = of_form.filter(|_| graph.precision != Precision::Fp32).unwrap_or_else(|| chunks.agreement(&reference));
        let curve = curve.iter().map(|point| (point.look_ahead, chunks.agreement(&point.units))).collect();
        entry.streaming = Some(Streaming { window, unit_ms, scale: Scale::Agreement, curve, chosen, wanted: AGREEMENT });
        let mut report = Report::new(self.engine, self.samples);
        report.stages.push(entry);
        Ok((graph, report))
    }
}

/// A point of the curve.
struct Point {
    /// In units.
    look_ahead: usize,
    /// Of all chunks, or of the first of them where it was left early.
    units: Vec<i64>,
}

/// Where graphs are compared.
#[derive(Default)]
struct Chunks {
    stretches: Vec<Vec<f32>>,
    /// The stretch and the first unit of each chunk.
    places: Vec<(usize, usize)>,
    /// The units of all chunks as the whole of their stretches gives them.
    offline: Vec<i64>,
}

impl Chunks {
    /// How many of these, the first of them, are not those of the offline pass.
    fn differing(&self, units: &[i64]) -> usize {
        units.iter().zip(&self.offline).filter(|(streamed, offline)| streamed != offline).count()
    }

    /// How many of all may be others where [`AGREEMENT`] is reached.
    fn may_differ(&self) -> usize {
        ((1.0 - AGREEMENT) * self.offline.len() as f64 + 1e-9) as usize
    }

    /// The share of these that are those of the offline pass.
    fn agreement(&self, units: &[i64]) -> f64 {
        1.0 - self.differing(units) as f64 / units.len().max(1) as f64
    }
}

/// So many samples from `back` before `place` on; outside the audio is silence.
fn heard(audio: &[f32], place: usize, back: usize, total: usize) -> Vec<f32> {
    let before = back.saturating_sub(place);
    let from = place.saturating_sub(back);
    let mut heard = vec![0.0; before];
    heard.extend(&audio[from..audio.len().min(from + total - before)]);
    heard.resize(total, 0.0);
    heard
}
