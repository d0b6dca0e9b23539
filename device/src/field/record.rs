//! One line of the log: written as [`Record`], read as [`Logged`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::conversation::Waited;
use crate::pipeline::{CallReport, Past, Settings, Stopped, Turn};

/// Which bundle answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleId {
    /// Its name.
    pub name: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
}

/// What a live conversation adds to a turn.
#[derive(Debug, Default, Serialize)]
pub(super) struct Live<'a> {
    /// How long the user waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<&'a Waited>,
    /// The turn was thrown away before it was heard: the user went on or wanted silence, or it took too long. It is not remembered, but
    /// its tools have been at work.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub abandoned: bool,
}

/// A turn as it is written. It stands for itself: what the agent remembered and how it was set is in it, so that a turn can be
/// replayed when those before it have been removed.
#[derive(Serialize)]
pub(super) struct Record<'a> {
    pub version: u32,
    /// Seconds since 1970, by the machine's clock.
    pub time: f64,
    pub program: &'static str,
    pub bundle: &'a BundleId,
    pub settings: &'a Settings,
    pub context: &'a [Past],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio: Option<String>,
    #[serde(flatten)]
    pub live: Live<'a>,
    pub turn: &'a Turn,
}

/// A turn as it is read.
#[derive(Debug, Clone, Deserialize)]
pub struct Logged {
    /// Seconds since 1970, by the machine's clock.
    pub time: f64,
    /// Program and version.
    pub program: String,
    /// Which bundle answered.
    pub bundle: BundleId,
    /// The limits of the conversation.
    pub settings: Settings,
    /// What the agent remembered.
    pub context: Vec<Past>,
    /// The file of the question in the log's folder.
    pub audio: Option<String>,
    /// It was thrown away before it was heard.
    #[serde(default)]
    pub abandoned: bool,
    /// What happened.
    pub turn: LoggedTurn,
    /// Where it was read.
    #[serde(skip)]
    pub path: PathBuf,
}

/// The decisions of a logged turn; see [`Turn`]. Times are in the file, for people.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct LoggedTurn {
    pub turn_id: u64,
    pub source: String,
    pub transcript: String,
    pub reply_text: String,
    pub calls: Vec<CallReport>,
    pub stopped: Stopped,
    pub question_units: Vec<u32>,
    pub units: Vec<u32>,
    pub question_s: f64,
    pub answer_s: f64,
}

impl Logged {
    /// The turn's name in the log: session and number.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file of the question, where there is one.
    pub fn audio_path(&self) -> Option<PathBuf> {
        self.audio.as_ref().map(|file| self.path.with_file_name(file))
    }
}
