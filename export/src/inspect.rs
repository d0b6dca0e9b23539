//! What is inside a bundle, whether it runs, and how two differ.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sa_device::bundle::{Bundle, StageName};
use sa_device::engine::{Engine, EngineName, Tract, Wish};

use crate::onnx::Precision;
use crate::prove::{Distance, Item, lm_step, text_step};
use crate::runner::Runner;

/// Steps of each graph in a verification: states go round, and the median time means something.
const VERIFY_STEPS: usize = 10;

/// What a bundle holds, where it comes from, what it needs and what was measured, as text.
pub fn inspect(dir: &Path) -> Result<String> {
    let bundle = Bundle::open(dir)?;
    let manifest = bundle.manifest();
    let mut text = String::new();
    let mut line = |label: &str, value: String| writeln!(text, "{label:<12} {value}");
    line("bundle", format!("{} (format {})", manifest.name, manifest.format_version))?;
    line("made by", manifest.created_by.clone())?;
    line("from", format!("checkpoint {}", manifest.source_checkpoint))?;
    line("licence", manifest.licence.clone())?;
    line("provenance", manifest.provenance.clone())?;
    line(
        "speech",
        format!("{} Hz, {} units a second of {}, groups of {}", manifest.sample_rate, manifest.unit_rate, manifest.k, manifest.group),
    )?;
    if let Some(tokenizer) = bundle.text_tokenizer() {
        let file = tokenizer.file_name().unwrap_or_default().to_string_lossy().into_owned();
        line("text", format!("tokens of {file}"))?;
    } else if manifest.vocabulary.is_some() {
        let transcript = if manifest.transcript { "with" } else { "without" };
        line("text", format!("{} tokens, {transcript} a transcript first", bundle.vocabulary().len()))?;
    }
    line("memory", format!("{} MB", manifest.minimum_memory_mb))?;
    for (name, stage) in manifest.stage.present() {
        let states: usize = stage.inputs.iter().filter(|t| t.name.starts_with("state.")).map(|t| 4 * t.elements()).sum();
        let caches: usize = stage.inputs.iter().filter(|t| t.name.starts_with("cache.")).map(|t| 4 * t.elements()).sum();
        line(
            name.as_str(),
            format!(
                "{}, {:.2} MB, {} a step, latency {} ms, states {:.1} kB, caches {:.1} kB",
                stage.precision,
                stage.graph.bytes as f64 / 1e6,
                match name {
                    StageName::Tokenizer => format!("{} samples", stage.chunk),
                    StageName::Decoder => format!("{} units", stage.chunk),
                    StageName::Lm | StageName::Head => "1 position".into(),
                },
                stage.latency_ms,
                states as f64 / 1e3,
                caches as f64 / 1e3
            ),
        )?;
    }
    if !manifest.measured.is_empty() {
        let measured = toml::to_string(&manifest.measured).context("printing what was measured")?;
        write!(text, "\nmeasured\n{measured}")?;
    }
    Ok(text)
}

/// Opens a bundle (hashes, shapes, vocabulary) and runs every graph a few times, on tract and, where a library of it is found, on
/// ONNX Runtime. Returns the lines to print.
pub fn verify(dir: &Path) -> Result<Vec<String>> {
    let bundle = Bundle::open(dir)?;
    let mut lines = vec![format!("{}: files, hashes, shapes and vocabulary fit together", dir.display())];
    let second = Wish { engine: EngineName::Ort, ..Wish::default() }.open(|_| ());
    let engines = std::iter::once(&Tract as &dyn Engine).chain(second.as_deref().ok());
    for engine in engines {
        for (name, entry) in bundle.manifest().stage.present() {
            let mut runner = Runner::open(engine, &bundle, name).with_context(|| format!("loading the stage {name}"))?;
            for step in 0..VERIFY_STEPS {
                run_once(&bundle, name, &mut runner, step).with_context(|| format!("running the stage {name} on {}", engine.name()))?;
            }
            let (precision, ms) = (&entry.precision, runner.median_ms());
            lines.push(format!("{name}: loads and runs on {}, {precision} in {ms:.3} ms a step", engine.name()));
        }
    }
    if let Err(reason) = &second {
        lines.push(format!("not looked at on ort: {reason}"));
    }
    Ok(lines)
}

/// What two bundles have in common and where they differ, stage by stage: form, size, time, and the outputs on the same inputs. As text.
pub fn compare(first: &Path, second: &Path) -> Result<String> {
    let open = |dir: &Path| Bundle::open(dir).with_context(|| format!("opening {}", dir.display()));
    let (a, b) = (open(first)?, open(second)?);
    let mut text = String::new();
    writeln!(text, "A {} ({})\nB {} ({})", first.display(), a.manifest().name, second.display(), b.manifest().name)?;
    let source = |bundle: &Bundle| bundle.manifest().source_checkpoint.clone();
    writeln!(text, "{}", if source(&a) == source(&b) { "from the same checkpoint" } else { "from different checkpoints" })?;
    writeln!(text, "{:<10} {:<27} {:>15} {:>17}  {:<22}", "stage", "precision", "MB", "ms a step", "difference (relative L2)")?;
    for name in StageName::ALL {
        let (entry_a, entry_b) = match (a.manifest().stage.get(name), b.manifest().stage.get(name)) {
            (Some(entry_a), Some(entry_b)) => (entry_a, entry_b),
            (None, None) => continue,
            (here, _) => {
                writeln!(text, "{:<10} only in {}", name.as_str(), if here.is_some() { "A" } else { "B" })?;
                continue;
            }
        };
        let forms = format!("{} → {}", entry_a.precision, entry_b.precision);
        let bytes = format!("{:.2} → {:.2}", entry_a.graph.bytes as f64 / 1e6, entry_b.graph.bytes as f64 / 1e6);
        if (&entry_a.inputs, &entry_a.outputs) != (&entry_b.inputs, &entry_b.outputs) {
            writeln!(text, "{:<10} {forms:<27} {bytes:>15} {:>17}  inputs or outputs differ", name.as_str(), "")?;
            continue;
        }
        let (mut runner_a, mut runner_b) = (Runner::open(&Tract, &a, name)?, Runner::open(&Tract, &b, name)?);
        let mut distance = Distance::default();
        for step in 0..VERIFY_STEPS {
            let outputs = run_once(&a, name, &mut runner_a, step)?;
            distance.values(&outputs, &run_once(&b, name, &mut runner_b, step)?);
        }
        let times = format!("{:.3} → {:.3}", runner_a.median_ms(), runner_b.median_ms());
        writeln!(text, "{:<10} {forms:<27} {bytes:>15} {times:>17}  {:.1e}", name.as_str(), distance.error())?;
    }
    Ok(text)
}

/// A step with small inputs; what comes out must be finite, and units in range.
fn run_once(bundle: &Bundle, name: StageName, runner: &mut Runner, step: usize) -> Result<Vec<f32>> {
    let manifest = bundle.manifest();
    let entry = manifest.stage.require(name)?;
    let outputs = match name {
        StageName::Tokenizer => {
            let audio: Vec<f32> = (0..entry.chunk).map(|n| 0.1 * (n as f32 * 0.05).sin()).collect();
            let units = runner.step(&[("audio", &audio)], &[])?.i64("units")?;
            ensure!(units.iter().all(|unit| (0..manifest.k as i64).contains(unit)), "units out of range: {units:?}");
            return Ok(units.iter().map(|unit| *unit as f32).collect());
        }
        StageName::Lm => {
            let token = step as i64 + 1;
            let (logits, hidden) = match entry.input("units") {
                Some(_) => lm_step(runner, manifest.group, &Item::Token(token), step)?,
                None => text_step(runner, token, step)?,
            };
            [logits, hidden].concat()
        }
        StageName::Head => {
            let width = entry.inputs.iter().map(|input| input.elements()).sum();
            runner.step(&[("hidden", &vec![0.1; width])], &[])?.f32("unit_logits")?
        }
        StageName::Decoder => {
            let outputs = runner.step(&[], &[("units", &vec![step.min(manifest.k) as i64; entry.chunk])])?;
            match entry.output("audio") {
                Some(_) => outputs.f32("audio")?,
                None => [outputs.f32("log_magnitude")?, outputs.f32("phase")?].concat(),
            }
        }
    };
    ensure!(outputs.iter().all(|x| x.is_finite()), "an output is not finite");
    Ok(outputs)
}

/// The precision of a name in a manifest or on the command line.
pub fn precision(name: &str) -> Option<Precision> {
    Precision::ALL.into_iter().find(|p| p.name() == name)
}
