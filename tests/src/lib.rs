//! Helpers for the tests that span crates: the shipped bundle and its sample questions, `sa-agent` run as a user runs it,
//! WAV files in all the forms that users have, and rooms that they may live in.

mod agent;
mod room;
mod wave;

pub use agent::{Outcome, Talk};
pub use room::any_room;
pub use wave::{Form, LOUD, levels, onset, question_in, read_wav, write_wav};

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a folder of the repository")
}

/// The bundle under test: the shipped one, unless `SA_TEST_BUNDLE` names another.
pub fn bundle() -> PathBuf {
    std::env::var_os("SA_TEST_BUNDLE").map_or_else(|| root().join("models/pretrained/nano/bundle"), PathBuf::from)
}

/// A committed sample question: what is said in the file, and what a right answer is.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// File name in the samples folder.
    pub wav: PathBuf,
    pub text: String,
    pub call: Option<String>,
    /// What the tool answered when the reply was written down.
    pub result: Option<String>,
    pub reply: String,
    pub category: String,
    pub voice: String,
    /// Is understood only after the question before.
    #[serde(default)]
    pub follows: bool,
}

impl Sample {
    /// Its file's name without `.wav`.
    pub fn name(&self) -> String {
        self.wav.with_extension("").file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The committed samples, with paths that can be opened.
pub fn samples() -> Result<Vec<Sample>> {
    let folder = root().join("models/pretrained/nano/samples");
    let file = folder.join("samples.jsonl");
    let text = std::fs::read_to_string(&file).with_context(|| format!("while reading {}", file.display()))?;
    text.lines()
        .map(|line| {
            let mut sample: Sample = serde_json::from_str(line).with_context(|| format!("while reading the sample {line}"))?;
            sample.wav = folder.join(&sample.wav);
            Ok(sample)
        })
        .collect()
}

/// The samples as conversations: each begins with a question that stands alone.
pub fn conversations() -> Result<Vec<Vec<Sample>>> {
    let mut all: Vec<Vec<Sample>> = Vec::new();
    for sample in samples()? {
        match all.last_mut() {
            Some(last) if sample.follows => last.push(sample),
            _ => all.push(vec![sample]),
        }
    }
    Ok(all)
}

/// A question that needs no tool.
pub fn plain_question() -> Result<Sample> {
    samples()?.into_iter().find(|sample| sample.call.is_none()).context("every sample calls a tool")
}

/// Writes a tools.toml into `folder` whose tools answer as they did when the replies of these samples were written down.
pub fn tools_for(conversation: &[Sample], folder: &Path) -> Result<PathBuf> {
    let mut tools = std::collections::BTreeMap::new();
    for sample in conversation {
        if let (Some(call), Some(result)) = (&sample.call, &sample.result) {
            let name = call.split(' ').next().unwrap_or_default();
            let before = tools.insert(name.to_owned(), result.clone());
            anyhow::ensure!(before.is_none_or(|before| before == *result), "tool {name} has two results in one conversation");
        }
    }
    let path = folder.join("tools.toml");
    let text: String = tools.iter().map(|(name, result)| format!("[tool.{name}]\nanswer = {result:?}\n")).collect();
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Copies the bundle under test to where a test may damage it.
pub fn copy_bundle(to: &Path) -> Result<Vec<String>> {
    copy_files(&bundle(), to)
}

/// Copies the files that lie in a folder into another, which is made if it is missing; returns their names, sorted.
pub fn copy_files(from: &Path, to: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(to)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("while listing {}", from.display()))? {
        let entry = entry?;
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).with_context(|| format!("while copying {}", entry.path().display()))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
