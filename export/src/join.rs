//! Parts into an agent: an imported tokenizer, a language model and a decoder, each a bundle of its own, become one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sa_device::bundle::{Bundle, Manifest, StageName, hexadecimal};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::report::PROGRAM_MB;
use crate::target::{PICTURE, Target};

/// Takes each stage from the first of the bundles `from` that holds it; head and vocabulary come with the language model. Nothing is
/// computed anew: the graphs are copied as they are.
///
/// Returns the bundle and, for each stage, where it comes from, as lines to print.
///
/// # Errors
/// Parts that do not speak of the same units: their number k or their rate. What [`sa_device::bundle::BundleWriter::finish`] refuses.
pub fn join(from: &[PathBuf], target: &Target) -> Result<(Bundle, Vec<String>)> {
    let parts = from.iter().map(|dir| Bundle::open(dir).with_context(|| format!("opening {}", dir.display())));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    target.refuse_overwriting(&from.iter().map(PathBuf::as_path).collect::<Vec<&Path>>())?;
    let holds = |name: StageName| {
        // A head belongs to its trunk.
        let asked = if name == StageName::Head { StageName::Lm } else { name };
        parts.iter().find(|part| part.manifest().stage.get(asked).is_some()).filter(|part| part.manifest().stage.get(name).is_some())
    };
    let taken: Vec<(StageName, &Bundle)> = StageName::ALL.into_iter().filter_map(|name| Some((name, holds(name)?))).collect();
    // A trunk of text alone knows no units.
    let speaks = |bundle: &Bundle, name| name != StageName::Lm || bundle.manifest().stage.head.is_some();
    let of_units: Vec<_> = taken.iter().filter(|(name, bundle)| speaks(bundle, *name)).collect();
    for pair in of_units.windows(2) {
        let ((a, first), (b, second)) = (pair[0], pair[1]);
        let (a_units, b_units) = (first.manifest(), second.manifest());
        ensure!(
            (a_units.k, a_units.unit_rate) == (b_units.k, b_units.unit_rate),
            "the {a} of {} has {} units at {} Hz, the {b} of {} has {} at {} Hz: they must be of the same units",
            first.dir().display(),
            a_units.k,
            a_units.unit_rate,
            second.dir().display(),
            b_units.k,
            b_units.unit_rate
        );
    }

    let sources: Vec<&Bundle> = parts.iter().filter(|part| taken.iter().any(|(_, from)| std::ptr::eq(*from, *part))).collect();
    let words = |of: &dyn Fn(&Manifest) -> String| sources.iter().map(|part| of(part.manifest())).collect::<BTreeSet<String>>();
    let licences = words(&|manifest| manifest.licence.clone());
    let licence = match licences.len() {
        0 | 1 => licences.into_iter().collect(),
        _ => licences.iter().map(|licence| format!("({licence})")).collect::<Vec<_>>().join(" AND "),
    };
    let checkpoints: String = sources.iter().map(|part| part.manifest().source_checkpoint.as_str()).collect();
    let checkpoint = hexadecimal(&Sha256::digest(checkpoints));
    let mut manifest = Manifest {
        licence,
        provenance: words(&|manifest| format!("{}: {}", manifest.name, manifest.provenance)).into_iter().collect::<Vec<_>>().join("; "),
        // Each part's estimate has the program in it.
        minimum_memory_mb: PROGRAM_MB
            + sources.iter().map(|part| part.manifest().minimum_memory_mb.saturating_sub(PROGRAM_MB)).sum::<u32>(),
        ..target.manifest(checkpoint)
    };
    let writer = target.writer()?;
    let mut lines = Vec::new();
    for (name, part) in &taken {
        let (from, entry) = (part.manifest(), part.manifest().stage.require(*name)?);
        let mut files = vec![&entry.graph];
        files.extend(&entry.initial);
        if *name == StageName::Tokenizer {
            files.extend(&from.unit_distances);
            manifest.unit_distances.clone_from(&from.unit_distances);
        }
        if *name == StageName::Lm {
            files.extend(&from.vocabulary);
            manifest.vocabulary.clone_from(&from.vocabulary);
            manifest.special_tokens.clone_from(&from.special_tokens);
            (manifest.group, manifest.layout, manifest.transcript) = (from.group, from.layout, from.transcript);
        }
        if speaks(part, *name) {
            (manifest.k, manifest.unit_rate, manifest.sample_rate) = (from.k, from.unit_rate, from.sample_rate);
        }
        for file in files {
            let (source, copy) = (part.dir().join(&file.file), writer.path(&file.file));
            ensure!(!copy.exists(), "two of the parts have a file {}: export one of them again", file.file);
            std::fs::copy(&source, copy).with_context(|| format!("copying {}", source.display()))?;
        }
        *manifest.stage.slot(*name) = Some(entry.clone());
        let mut measured = Table::from_iter([("from".to_owned(), Value::String(from.name.clone()))]);
        measured.extend(figures(from, *name));
        if let Some(picture) = picture(part, *name) {
            let copy = writer.path(&format!("{name}.{PICTURE}"));
            std::fs::copy(&picture, copy).with_context(|| format!("copying {}", picture.display()))?;
        }
        manifest.measured.insert(name.as_str().to_owned(), Value::Table(measured));
        lines.push(format!("{name:<10} {}, from {}", entry.precision, part.dir().display()));
    }
    let missing: Vec<&str> = StageName::ALL.into_iter().filter(|name| holds(*name).is_none()).map(StageName::as_str).collect();
    if !missing.is_empty() {
        lines.push(format!("no {}: still a part of an agent", missing.join(", no ")));
    }
    Ok((writer.finish(manifest)?, lines))
}

/// What was measured of a stage. What a bundle says of all its stages, such as the machine, is said of each.
fn figures(from: &Manifest, name: StageName) -> Table {
    let of_all = from.measured.iter().filter(|(_, value)| !value.is_table());
    let of_stage = from.measured.get(name.as_str()).and_then(Value::as_table).into_iter().flatten();
    of_all.chain(of_stage).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The curve of a stage over its look-ahead: of a bundle with this stage alone, or of one that was joined.
fn picture(part: &Bundle, name: StageName) -> Option<PathBuf> {
    let joined = part.dir().join(format!("{name}.{PICTURE}"));
    let alone = Some(part.dir().join(PICTURE)).filter(|_| part.manifest().stage.present().count() == 1);
    std::iter::once(joined).chain(alone).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sa_device::bundle::{BundleWriter, FileEntry, StageEntry, Stages, TensorEntry};
    use sa_device::engine::EngineName;

    fn target(output: PathBuf) -> Target {
        let word = || "test".to_owned();
        Target { output, name: "joined".into(), licence: word(), provenance: word(), engine: EngineName::Tract, ort_library: None }
    }

    /// A bundle of one stage, as `sa-export --hubert` and `--hifigan` write it; nothing here looks into graphs.
    fn part(dir: &Path, name: StageName, measured: Table) -> PathBuf {
        let output = dir.join(name.as_str());
        let (f32, i64) = (TensorEntry::f32, TensorEntry::i64);
        let (inputs, outputs, chunk, latency_ms) = match name {
            StageName::Tokenizer => (vec![f32("audio", &[1, 640])], vec![i64("units", &[1, 1])], 640, 40.0),
            _ => (vec![i64("units", &[1, 1])], vec![f32("audio", &[1, 640])], 1, 0.0),
        };
        let graph = FileEntry::named(format!("{name}.onnx"));
        let entry = Some(StageEntry { graph, precision: "fp32".into(), chunk, latency_ms, initial: None, inputs, outputs });
        let stage = match name {
            StageName::Tokenizer => Stages { tokenizer: entry, ..Stages::default() },
            _ => Stages { decoder: entry, ..Stages::default() },
        };
        let writer = BundleWriter::create(&output).expect("begins");
        writer.add(&format!("{name}.onnx"), b"graph").expect("written");
        writer.add(PICTURE, name.as_str().as_bytes()).expect("written");
        let manifest = Manifest { name: name.to_string(), stage, measured, k: 10, ..target(output.clone()).manifest("00".into()) };
        writer.finish(manifest).expect("a part of an agent");
        output
    }

    #[test]
    fn figures_and_pictures_of_parts_come_along() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let hearing = toml::toml! { engine = "tract"
        tokenizer = { agreement_by_look_ahead_ms = [[0.0, 0.5], [40.0, 0.97]] } };
        let speaking = toml::toml! { machine = "board"
        decoder = { step_ms = 2.5 } };
        let parts = [part(dir.path(), StageName::Tokenizer, hearing), part(dir.path(), StageName::Decoder, speaking)];
        let (agent, _) = join(&parts, &target(dir.path().join("agent"))).expect("they fit together");
        // And once more, as one of them is replaced in an agent.
        let (again, _) = join(&[agent.dir().to_owned()], &target(dir.path().join("again"))).expect("an agent is a part too");
        for bundle in [agent, again] {
            let measured = &bundle.manifest().measured;
            let tokenizer = measured["tokenizer"].as_table().expect("figures of the tokenizer");
            assert_eq!((tokenizer["from"].as_str(), tokenizer["engine"].as_str()), (Some("tokenizer"), Some("tract")));
            assert_eq!(tokenizer["agreement_by_look_ahead_ms"].as_array().map(Vec::len), Some(2), "{measured}");
            let decoder = measured["decoder"].as_table().expect("figures of the decoder");
            assert_eq!((decoder["step_ms"].as_float(), decoder["machine"].as_str()), (Some(2.5), Some("board")), "{measured}");
            for name in ["tokenizer", "decoder"] {
                assert_eq!(std::fs::read(bundle.dir().join(format!("{name}.{PICTURE}"))).expect("copied"), name.as_bytes());
            }
        }
    }
}
