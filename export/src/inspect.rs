//! What is inside a bundle, whether it runs, and how two differ.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Error, Result, ensure};
use sa_device::bundle::{Bundle, BundleError, StageName, TensorEntry};
use sa_device::engine::{Engine, EngineError, EngineName, Tract, Wish};

use crate::onnx::Precision;
use crate::prove::{Distance, Item, feed};
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

/// ONNX Runtime, where a library of it is found: at `library`, or in the usual places.
fn second_engine(library: Option<&Path>) -> Result<Box<dyn Engine>, EngineError> {
    Wish { engine: EngineName::Ort, library: library.map(Path::to_owned), ..Wish::default() }.open(|_| ())
}

/// Opens a bundle (hashes, shapes, vocabulary) and runs every graph a few times, on tract and, where a library of it is found, on
/// ONNX Runtime. Returns the lines to print.
///
/// # Errors
/// A bundle that does not open, a graph that is not as `bundle.toml` says, or one that no engine runs.
pub fn verify(dir: &Path, library: Option<&Path>) -> Result<Vec<String>> {
    let bundle = Bundle::open(dir)?;
    let mut lines = vec![format!("{}: files, hashes, shapes and vocabulary fit together", dir.display())];
    let second = second_engine(library);
    let engines: Vec<&dyn Engine> = std::iter::once(&Tract as &dyn Engine).chain(second.as_deref().ok()).collect();
    for (name, entry) in bundle.manifest().stage.present() {
        let mut failures = Vec::new();
        for engine in &engines {
            match run_steps(&bundle, name, *engine) {
                Ok(ms) => lines.push(format!("{name}: loads and runs on {}, {} in {ms:.3} ms a step", engine.name(), entry.precision)),
                Err(error) if is_invalid(&error) => return Err(error),
                Err(error) => {
                    lines.push(format!("{name}: does not run on {}: {error:#}", engine.name()));
                    failures.push(error);
                }
            }
        }
        if failures.len() == engines.len() {
            return Err(failures.swap_remove(0));
        }
    }
    if let Err(reason) = &second {
        lines.push(format!("not looked at on ort: {reason}"));
    }
    Ok(lines)
}

/// Is it the bundle's fault: its files, what they promise, or a graph that is not as `bundle.toml` says?
pub fn is_invalid(error: &Error) -> bool {
    error.chain().any(|cause| cause.is::<BundleError>() || matches!(cause.downcast_ref(), Some(EngineError::Declared { .. })))
}

/// Median milliseconds of a few steps.
fn run_steps(bundle: &Bundle, name: StageName, engine: &dyn Engine) -> Result<f64> {
    let mut runner = Runner::open(engine, bundle, name).with_context(|| format!("loading the stage {name}"))?;
    for step in 0..VERIFY_STEPS {
        run_once(bundle, name, &mut runner, step).with_context(|| format!("running the stage {name} on {}", engine.name()))?;
    }
    Ok(runner.median_ms())
}

/// What two bundles have in common and where they differ, stage by stage: form, size, time, and the outputs on the same inputs. As text.
pub fn compare(first: &Path, second: &Path, library: Option<&Path>) -> Result<String> {
    let open = |dir: &Path| Bundle::open(dir).with_context(|| format!("opening {}", dir.display()));
    let (a, b) = (open(first)?, open(second)?);
    let ort = second_engine(library);
    let mut text = String::new();
    writeln!(text, "A {} ({})\nB {} ({})", first.display(), a.manifest().name, second.display(), b.manifest().name)?;
    let source = |bundle: &Bundle| bundle.manifest().source_checkpoint.clone();
    writeln!(text, "{}", if source(&a) == source(&b) { "from the same checkpoint" } else { "from different checkpoints" })?;
    writeln!(text, "{:<10} {:<27} {:>15} {:>17}  {:<22}", "stage", "precision", "MB", "ms a step", "difference")?;
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
        // Both on one engine: the first that runs them.
        let on = |engine: &dyn Engine| -> Result<String> {
            let (mut runner_a, mut runner_b) = (Runner::open(engine, &a, name)?, Runner::open(engine, &b, name)?);
            let difference = difference(&a, &b, name, &mut runner_a, &mut runner_b)?;
            let times = format!("{:.3} → {:.3}", runner_a.median_ms(), runner_b.median_ms());
            Ok(format!("{times:>17}  {difference} on {}", engine.name()))
        };
        let compared = match (on(&Tract), &ort) {
            (Err(error), Ok(ort)) if !is_invalid(&error) => on(&**ort)?,
            (compared, _) => compared?,
        };
        writeln!(text, "{:<10} {forms:<27} {bytes:>15} {compared}", name.as_str())?;
    }
    Ok(text)
}

/// How far apart the outputs of two graphs are on the same inputs: units by the share that is equal, for the number of a unit says
/// nothing of its sound.
fn difference(a: &Bundle, b: &Bundle, name: StageName, runner_a: &mut Runner, runner_b: &mut Runner) -> Result<String> {
    let mut distance = Distance::default();
    for step in 0..VERIFY_STEPS {
        match (run_once(a, name, runner_a, step)?, run_once(b, name, runner_b, step)?) {
            (Output::Units(a), Output::Units(b)) => distance.decisions(&a, &b),
            (Output::Values(a), Output::Values(b)) => distance.values(&a, &b),
            _ => unreachable!("a stage gives units or values, never both"),
        }
    }
    Ok(match name {
        StageName::Tokenizer => format!("{:.1} % of units equal", 100.0 * distance.agreement()),
        _ => format!("{:.1e} relative L2", distance.error()),
    })
}

/// What a step gave.
enum Output {
    Units(Vec<i64>),
    Values(Vec<f32>),
}

/// A step with small inputs; what comes out must be finite, and units in range.
fn run_once(bundle: &Bundle, name: StageName, runner: &mut Runner, step: usize) -> Result<Output> {
    let manifest = bundle.manifest();
    let entry = manifest.stage.require(name)?;
    let outputs = match name {
        StageName::Tokenizer => {
            // A tone that rises from step to step: other units all the time.
            let pitch = 0.02 + 0.01 * step as f32;
            let audio: Vec<f32> = (0..entry.chunk).map(|n| 0.1 * (n as f32 * pitch).sin()).collect();
            let units = runner.step(&[("audio", &audio)], &[])?.i64("units")?;
            ensure!(units.iter().all(|unit| (0..manifest.k as i64).contains(unit)), "units out of range: {units:?}");
            return Ok(Output::Units(units));
        }
        StageName::Lm => {
            let token = ((step + 1) % manifest.text_logits().max(1)) as i64;
            let (logits, hidden) = feed(runner, entry.input("units").map(|_| manifest.group), &Item::Token(token), step)?.text()?;
            [logits, hidden].concat()
        }
        StageName::Head => {
            let width = entry.input("hidden").map_or(0, TensorEntry::elements);
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
    Ok(Output::Values(outputs))
}

/// The precision of a name in a manifest or on the command line.
pub fn precision(name: &str) -> Option<Precision> {
    Precision::ALL.into_iter().find(|p| p.name() == name)
}
