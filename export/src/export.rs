//! The export: draw, prove, quantise, compare, and write the bundle.
//!
//! Each stage has a form, chosen by `crate::choice`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use indicatif::ProgressBar;
use sa_device::bundle::{Bundle, FileEntry, Layout, Manifest, StageName, Stages};
use sa_device::engine::Engine;
use sa_device::vocabulary::SPECIALS;
use sa_models::lm::config::Layout as TrainedLayout;

use crate::budget::{Baseline, Budgets, Measured, Rules, choose};
use crate::checkpoint::Checkpoint;
use crate::choice::{BeyondBudget, Choice};
use crate::compare::{self, Decided, Spectra, Trace};
use crate::graphs::{self, StageGraph};
use crate::onnx::{Form, Importance, Precision};
use crate::prove::{self, FP32_BUDGET};
use crate::report::Report;
use crate::runner::Runner;
use crate::samples::Samples;
use crate::target::{Target, progress, step};
use crate::units::{self, MOST_UNITS, UNIT_DISTANCES};

/// What to export and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub checkpoint: PathBuf,
    pub target: Target,
    /// Folder of WAV files, or a corpus, for the comparisons.
    pub samples: Option<PathBuf>,
    /// Folder of WAV files, or a corpus, on which it is measured how much each input of the language model's layers matters.
    pub calibrate: Option<PathBuf>,
    /// By stage, in the order of [`StageName::ALL`].
    pub choices: [Choice; 4],
    pub budgets: Budgets,
    /// Layers to keep in single precision, see [`Form`].
    pub exclude: Vec<String>,
    /// Write the bundle even where a named form misses its budget.
    pub force: bool,
}

/// Exports a checkpoint; nothing is left behind unless all of it succeeded.
pub fn export(options: &Options) -> Result<(Bundle, Report)> {
    check_paths(&options.checkpoint, &options.target.output)?;
    let checkpoint = Checkpoint::open(&options.checkpoint)?;
    let (k, width) = (checkpoint.tokenizer.units, checkpoint.tokenizer.width);
    ensure!(k <= MOST_UNITS, "the tokenizer has {k} units: at most {MOST_UNITS} are possible");
    let samples = match &options.samples {
        Some(dir) => Samples::read(dir)?,
        None => Samples::synthetic(),
    };
    let engine = options.target.open_engine()?;
    let writer = options.target.writer()?;
    let calibration = options.calibrate.as_deref().map(Samples::read).transpose()?;
    let mut exporter = Exporter {
        checkpoint: &checkpoint,
        samples: &samples,
        calibration: calibration.as_ref(),
        options,
        engine: &*engine,
        progress: progress(12),
    };
    let (stages, report) = exporter.run()?;
    for stage in &stages {
        stage.save(&writer)?;
    }
    let centroids = checkpoint.tokenizer_weights.tensor("centroids", &[k, width])?;
    writer.add(UNIT_DISTANCES, &units::distances(&centroids, k))?;
    writer.add("vocabulary.txt", checkpoint.vocabulary.to_text().as_bytes())?;
    let manifest = manifest(&checkpoint, options, &stages, &report)?;
    exporter.progress.finish_and_clear();
    Ok((writer.finish(manifest)?, report))
}

/// Refuses an output that is, holds or lies in the checkpoint.
fn check_paths(checkpoint: &Path, output: &Path) -> Result<()> {
    let input = checkpoint.canonicalize().with_context(|| format!("opening the checkpoint {}", checkpoint.display()))?;
    // What does not exist yet is compared by the folder that will hold it.
    let mut existing = std::path::absolute(output).with_context(|| format!("resolving {}", output.display()))?;
    let mut rest = PathBuf::new();
    while !existing.exists() {
        let Some(name) = existing.file_name().map(PathBuf::from) else { break };
        rest = if rest.as_os_str().is_empty() { name } else { name.join(rest) };
        existing.pop();
    }
    let target = existing.canonicalize().with_context(|| format!("resolving {}", output.display()))?.join(rest);
    ensure!(target != input, "the output is the checkpoint itself: choose another folder for --output");
    ensure!(!target.starts_with(&input), "the output lies inside the checkpoint: choose a folder beside it for --output");
    ensure!(!input.starts_with(&target), "the checkpoint lies inside the output, which would be replaced: choose another --output");
    Ok(())
}

struct Exporter<'a> {
    checkpoint: &'a Checkpoint,
    samples: &'a Samples,
    calibration: Option<&'a Samples>,
    options: &'a Options,
    engine: &'a dyn Engine,
    progress: ProgressBar,
}

impl Exporter<'_> {
    fn run(&mut self) -> Result<([StageGraph; 4], Report)> {
        self.check_exclude()?;
        let mut report = Report::new(self.engine, self.samples);
        let (tokenizer, units) = self.tokenizer(&mut report)?;
        let (lm, head, spoken) = self.language_model(&units, &mut report)?;
        let decoder = self.decoder(&spoken, &units, &mut report)?;
        Ok(([tokenizer, lm, head, decoder], report))
    }

    /// Before anything is measured: each pattern must match a layer of some stage.
    fn check_exclude(&self) -> Result<()> {
        if self.options.exclude.is_empty() {
            return Ok(());
        }
        let Checkpoint { tokenizer, tokenizer_weights, decoder, decoder_weights, lm, lm_weights, .. } = self.checkpoint;
        let drawn = [
            graphs::tokenizer::draw(tokenizer, tokenizer_weights, Precision::Fp32, false)?,
            graphs::lm::draw(lm, lm_weights, Precision::Fp32)?,
            graphs::head::draw(lm, lm_weights, Precision::Fp32)?,
            // Names do not depend on the initial state, for which the network would have to be loaded.
            graphs::decoder::draw(decoder, decoder_weights, Precision::Fp32, Vec::new())?,
        ];
        let names = drawn.map(|graph| graph.names).concat();
        graphs::check_exclude(&self.options.exclude, &names).map_err(Error::msg)
    }

    fn form(&self, precision: Precision) -> Form<'_> {
        Form { exclude: &self.options.exclude, ..Form::from(precision) }
    }

    fn choice(&self, stage: StageName) -> &Choice {
        let index = StageName::ALL.iter().position(|s| *s == stage).expect("ALL holds every stage");
        &self.options.choices[index]
    }

    /// The tokenizer's graph, and the units of the samples as the fp32 graph gives them.
    fn tokenizer(&self, report: &mut Report) -> Result<(StageGraph, Vec<Vec<i64>>)> {
        let Checkpoint { tokenizer: config, tokenizer_weights: weights, .. } = self.checkpoint;
        step(&self.progress, "tokenizer: proving the fp32 graph");
        let probe = graphs::tokenizer::draw(config, weights, Precision::Fp32, true)?;
        let network = self.checkpoint.tokenizer_network()?;
        let audio: Vec<f32> = self.samples.recordings.concat().into_iter().take(20 * 16_000).collect();
        let parity = prove::tokenizer(&network, config, &mut Runner::new(self.engine, &probe)?, &audio)?;
        proven(StageName::Tokenizer, parity.error())?;
        ensure!(parity.agreement() > 0.999, "the tokenizer's graph gives other units than its network: {:.4} agree", parity.agreement());

        let fp32 = graphs::tokenizer::draw(config, weights, Precision::Fp32, false)?;
        let mut reference = Runner::new(self.engine, &fp32)?;
        step(&self.progress, "tokenizer: units of the samples");
        let chunk = config.chunk_samples();
        let recordings = &self.samples.recordings;
        let units = recordings.iter().map(|audio| compare::units_of(&mut reference, chunk, audio)).collect::<Result<Vec<_>, _>>()?;
        let baseline = Baseline::new(fp32, Some(parity.error()), reference.median_ms());
        let graph = self.choose(StageName::Tokenizer, baseline, report, |precision| {
            let graph = graphs::tokenizer::draw(config, weights, self.form(precision), false)?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let distance = compare::tokenizer(&units, &mut runner, chunk, recordings)?;
            let (agreement, ms) = (distance.agreement(), runner.median_ms());
            Ok((graph, Measured { error: 1.0 - agreement, agreement: Some(agreement), ms, ..Measured::default() }))
        })?;
        Ok((graph, units))
    }

    /// The language model's graphs, and units that it spoke.
    fn language_model(&self, units: &[Vec<i64>], report: &mut Report) -> Result<(StageGraph, StageGraph, Vec<i64>)> {
        let Checkpoint { lm: config, lm_weights: weights, vocabulary, .. } = self.checkpoint;
        step(&self.progress, "lm: proving the fp32 graphs");
        let trunk32 = graphs::lm::draw(config, weights, Precision::Fp32)?;
        let head32 = graphs::head::draw(config, weights, Precision::Fp32)?;
        let (mut trunk, mut head) = (Runner::new(self.engine, &trunk32)?, Runner::new(self.engine, &head32)?);
        step(&self.progress, "lm: answering the samples");
        let mut traces: Vec<Trace> = Vec::new();
        for question in units {
            traces.push(compare::answer(config, vocabulary, &mut trunk, &mut head, question)?);
        }
        let network = self.checkpoint.lm_network()?;
        let longest = traces.iter().max_by_key(|t| t.items.len()).context("there are no samples")?;
        let (text, groups) = prove::lm(&network, config, &mut trunk, &mut head, &longest.items)?;
        proven(StageName::Lm, text.error())?;
        proven(StageName::Head, groups.error())?;
        let reference = compare::decide(config, &mut trunk, &mut head, &traces)?;
        let spoken = traces.iter().flat_map(|trace| trace.spoken(i64::from(config.end_unit()))).collect();

        let importance = self.importance(&mut trunk, &mut head)?;
        let calibrated = |precision| Form { importance: importance.as_ref(), ..self.form(precision) };

        // Each half is compared with the other half in fp32, so that its own error shows.
        let lm_base =
            Baseline { cross_entropy: reference.surprise.mean(), ..Baseline::new(trunk32, Some(text.error()), trunk.median_ms()) };
        let head_base = Baseline::new(head32, Some(groups.error()), head.median_ms());
        let measured = |decided: &Decided, of_text: bool, ms: f64| {
            let (text, units) = compare::decisions(config, &reference, decided);
            let distance = if of_text { text } else { units };
            let cross_entropy = decided.surprise.mean().filter(|_| of_text);
            Measured { error: distance.error(), agreement: Some(distance.agreement()), cross_entropy, ms, ..Measured::default() }
        };
        let lm_graph = self.choose(StageName::Lm, lm_base, report, |precision| {
            let graph = graphs::lm::draw(config, weights, calibrated(precision))?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let decided = compare::decide(config, &mut runner, &mut head, &traces)?;
            Ok((graph, measured(&decided, true, runner.median_ms())))
        })?;
        let head_graph = self.choose(StageName::Head, head_base, report, |precision| {
            let graph = graphs::head::draw(config, weights, calibrated(precision))?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let decided = compare::decide(config, &mut trunk, &mut runner, &traces)?;
            Ok((graph, measured(&decided, false, runner.median_ms())))
        })?;
        Ok((lm_graph, head_graph, spoken))
    }

    /// How much the inputs of the layers matter while it answers the questions of the calibration.
    fn importance(&self, trunk: &mut Runner, head: &mut Runner) -> Result<Option<Importance>> {
        let Some(calibration) = self.calibration else { return Ok(None) };
        let Checkpoint { tokenizer, tokenizer_weights, lm: config, lm_weights: weights, vocabulary, .. } = self.checkpoint;
        step(&self.progress, "lm: calibrating");
        let mut hearing = Runner::new(self.engine, &graphs::tokenizer::draw(tokenizer, tokenizer_weights, Precision::Fp32, false)?)?;
        let mut traces = Vec::new();
        for audio in &calibration.recordings {
            let units = compare::units_of(&mut hearing, tokenizer.chunk_samples(), audio)?;
            traces.push(compare::answer(config, vocabulary, trunk, head, &units)?);
        }
        let probe = Form { probe: true, ..Form::from(Precision::Fp32) };
        let (mut trunk, mut head) = (
            Runner::new(self.engine, &graphs::lm::draw(config, weights, probe)?)?,
            Runner::new(self.engine, &graphs::head::draw(config, weights, probe)?)?,
        );
        compare::decide(config, &mut trunk, &mut head, &traces)?;
        Ok(Some(trunk.importance().into_iter().chain(head.importance()).collect()))
    }

    /// The decoder's graph, compared on what the language model spoke (or, where that is little, on the samples' units).
    fn decoder(&self, spoken: &[i64], heard: &[Vec<i64>], report: &mut Report) -> Result<StageGraph> {
        let Checkpoint { decoder: config, decoder_weights: weights, .. } = self.checkpoint;
        step(&self.progress, "decoder: proving the fp32 graph");
        let network = self.checkpoint.decoder_network()?;
        let initial = prove::decoder_state(&network);
        let fp32 = graphs::decoder::draw(config, weights, Precision::Fp32, initial.clone())?;
        let mut reference = Runner::new(self.engine, &fp32)?;
        let units: Vec<i64> = spoken.iter().copied().chain(heard.iter().flatten().copied()).take(1000).collect();
        let parity = prove::decoder(&network, &mut reference, &units[..units.len().min(200)])?;
        proven(StageName::Decoder, parity.error())?;
        let spectra: Spectra = compare::decode(&mut reference, &units)?;
        let baseline = Baseline::new(fp32, Some(parity.error()), reference.median_ms());
        self.choose(StageName::Decoder, baseline, report, |precision| {
            let graph = graphs::decoder::draw(config, weights, self.form(precision), initial.clone())?;
            let mut runner = Runner::new(self.engine, &graph)?;
            let (distance, decibels) = compare::spectra(&spectra, &compare::decode(&mut runner, &units)?, config.bins(), config.hop);
            let ms = runner.median_ms();
            Ok((graph, Measured { error: distance.error(), decibels: Some(decibels), ms, ..Measured::default() }))
        })
    }

    fn choose(
        &self,
        stage: StageName,
        baseline: Baseline,
        report: &mut Report,
        mut draw: impl FnMut(Precision) -> Result<(StageGraph, Measured)>,
    ) -> Result<StageGraph> {
        let Options { budgets, force, target, .. } = self.options;
        let rules = Rules::new(self.choice(stage), budgets, *force, self.engine, target);
        let (graph, entry) = choose(&rules, baseline, |precision| {
            step(&self.progress, &format!("{stage}: {precision}"));
            draw(precision)
        })?;
        report.stages.push(entry);
        Ok(graph)
    }
}

/// An fp32 graph that differs from its network is a defect of the exporter or the engine.
fn proven(stage: StageName, error: f64) -> Result<()> {
    // Written so that NaN fails.
    if error <= FP32_BUDGET {
        return Ok(());
    }
    bail!(BeyondBudget(format!("the {stage} graph does not compute what its network does: error {error:.2e}, budget {FP32_BUDGET:.0e}")))
}

fn manifest(checkpoint: &Checkpoint, options: &Options, stages: &[StageGraph; 4], report: &Report) -> Result<Manifest> {
    let [tokenizer, lm, head, decoder] = stages;
    let layout = match checkpoint.lm.layout {
        TrainedLayout::InterleavedWords => Layout::InterleavedWords,
    };
    let mut special_tokens = std::collections::BTreeMap::new();
    for token in SPECIALS {
        let id = checkpoint.vocabulary.id(token).with_context(|| format!("vocabulary.txt has no {token}"))?;
        special_tokens.insert(token.to_owned(), id);
    }
    Ok(Manifest {
        k: checkpoint.tokenizer.units,
        group: checkpoint.lm.group,
        layout,
        transcript: checkpoint.lm.transcript,
        minimum_memory_mb: report.minimum_memory_mb(),
        vocabulary: Some(FileEntry::named("vocabulary.txt")),
        special_tokens,
        unit_distances: Some(FileEntry::named(UNIT_DISTANCES)),
        stage: Stages {
            tokenizer: Some(tokenizer.entry()),
            lm: Some(lm.entry()),
            head: Some(head.entry()),
            decoder: Some(decoder.entry()),
        },
        measured: report.to_toml(),
        ..options.target.manifest(checkpoint.sha256()?)
    })
}
