//! `tools.toml`.
//!
//! ```toml
//! [tool.weather]
//! program = ["/usr/local/bin/weather", "{1}"]  # no shell; {1} {2} … one word, {all} all in one argument,
//!                                              # "{words}" alone: one argument a word
//! seconds = 2.0                                # time limit, then it is killed (2 by default, 30 at most)
//! output_bytes = 4096                          # more output is a failure
//! environment = ["HOME"]                       # passed through; everything else but PATH is cleared
//!
//! [tool.light]
//! answer = "ok"                                # a fixed answer, for trying things out
//! ```
//! What the program prints is the result; a program that prints nothing and succeeds answers `ok`. A path that begins
//! with `./` is looked up beside `tools.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Why a `tools.toml` was refused: correct the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: tool `{tool}`: {message}", path.display())]
    Tool { path: PathBuf, tool: String, message: String },
}

/// The content of `tools.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolsFile {
    /// By the first word of the call.
    #[serde(default)]
    pub tool: BTreeMap<String, ToolEntry>,
}

/// One tool.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Entry")]
pub enum ToolEntry {
    /// Always the same result.
    Answer { answer: String },
    /// A program.
    Program {
        /// The program and its arguments, with placeholders.
        program: Vec<String>,
        limits: Limits,
    },
}

/// What a program may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub seconds: f64,
    pub output_bytes: usize,
    pub environment: Vec<String>,
}

/// One tool as it is written: every key is known, so that a misspelt limit is not a limit left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    answer: Option<String>,
    program: Option<Vec<String>>,
    #[serde(default = "seconds")]
    seconds: f64,
    #[serde(default = "output_bytes")]
    output_bytes: usize,
    #[serde(default)]
    environment: Vec<String>,
}

impl TryFrom<Entry> for ToolEntry {
    type Error = &'static str;

    fn try_from(entry: Entry) -> Result<Self, Self::Error> {
        let Entry { answer, program, seconds, output_bytes, environment } = entry;
        match (answer, program) {
            (Some(answer), None) => Ok(Self::Answer { answer }),
            (None, Some(program)) => Ok(Self::Program { program, limits: Limits { seconds, output_bytes, environment } }),
            _ => Err("a tool has either a `program` or an `answer`"),
        }
    }
}

fn seconds() -> f64 {
    2.0
}

fn output_bytes() -> usize {
    4096
}

impl ToolsFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ToolsError> {
        let text = std::fs::read_to_string(path).map_err(|source| ToolsError::Read { path: path.to_owned(), source })?;
        let mut file: Self =
            toml::from_str(&text).map_err(|e| ToolsError::Parse { path: path.to_owned(), message: e.to_string().trim_end().to_owned() })?;
        // A bare file name has the empty path as its folder; joined to that, a program would be looked for in PATH.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for (tool, entry) in &mut file.tool {
            let refuse = |message: String| ToolsError::Tool { path: path.to_owned(), tool: tool.clone(), message };
            if tool.is_empty() || !tool.chars().all(|c| c.is_ascii_lowercase() || c == '\'') {
                return Err(refuse("a tool's name is one word in lower case".to_owned()));
            }
            let ToolEntry::Program { program, limits } = entry else { continue };
            let Some(first) = program.first_mut() else {
                return Err(refuse("`program` is empty".to_owned()));
            };
            if let Some(beside) = first.strip_prefix("./") {
                *first = folder.join(beside).to_string_lossy().into_owned();
            }
            if !(limits.seconds > 0.0 && limits.seconds <= 30.0) {
                return Err(refuse(format!("`seconds` is {}, and must be above 0 and at most 30", limits.seconds)));
            }
        }
        Ok(file)
    }
}

/// The placeholders filled in. The arguments are words of the vocabulary, but are passed as they are, never to a shell.
pub fn expand(program: &[String], arguments: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for (i, part) in program.iter().enumerate() {
        if i == 0 {
            // The program itself is fixed: the model does not choose what runs.
            out.push(part.clone());
        } else if part == "{words}" {
            out.extend(arguments.iter().map(|word| (*word).to_owned()));
        } else {
            let mut text = part.replace("{all}", &arguments.join(" "));
            for n in 1..=9 {
                text = text.replace(&format!("{{{n}}}"), arguments.get(n - 1).copied().unwrap_or(""));
            }
            out.push(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ToolsFile, ToolsError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("tools.toml");
        std::fs::write(&path, text).expect("writable");
        ToolsFile::load(&path)
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("[tool.Light]\nanswer = \"ok\"", "one word in lower case"),
            ("[tool.light]\nprogram = []", "`program` is empty"),
            ("[tool.light]\nprogram = [\"x\"]\nseconds = 90", "at most 30"),
            ("[tool.light]\nprogram = [\"x\"]\nseconds = nan", "at most 30"),
            ("[tools.light]\nanswer = \"ok\"", "unknown field"),
            ("[tool.light]\n", "either a `program` or an `answer`"),
            ("[tool.light]\nanswer = \"ok\"\nprogram = [\"x\"]", "either a `program` or an `answer`"),
            ("[tool.light]\nprogram = [\"x\"]\ntimeout = 1", "unknown field `timeout`"),
        ] {
            let message = load(text).expect_err(text).to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(ToolsFile::load(Path::new("/no/tools.toml")).expect_err("missing").to_string().contains("/no/tools.toml"));
    }

    #[test]
    fn programs_beside_the_file_are_found_there() {
        let file = load("[tool.light]\nprogram = [\"./light.sh\"]").expect("well formed");
        let ToolEntry::Program { program, limits } = &file.tool["light"] else { panic!("a program") };
        assert!(program[0].ends_with("/light.sh") && Path::new(&program[0]).is_absolute());
        assert_eq!(limits.seconds, 2.0);
    }
}
