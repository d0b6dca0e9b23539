//! Parts into an agent: an imported tokenizer, a language model and a decoder, each a bundle of its own, become one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sa_device::bundle::{Bundle, Manifest, StageName, hexadecimal};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::target::Target;

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
        // Each part's estimate has the 40 MB of the program in it.
        minimum_memory_mb: 40 + sources.iter().map(|part| part.manifest().minimum_memory_mb.saturating_sub(40)).sum::<u32>(),
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
        let slot = match name {
            StageName::Tokenizer => &mut manifest.stage.tokenizer,
            StageName::Lm => &mut manifest.stage.lm,
            StageName::Head => &mut manifest.stage.head,
            StageName::Decoder => &mut manifest.stage.decoder,
        };
        *slot = Some(entry.clone());
        let mut measured = Table::from_iter([("from".to_owned(), Value::String(from.name.clone()))]);
        if let Some(Value::Table(table)) = from.measured.get(name.as_str()) {
            measured.extend(table.clone());
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
