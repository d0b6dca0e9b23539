//! One line of the log: written as [`Record`], read as [`Logged`].

use std::collections::VecDeque;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pipeline::{CallReport, Settings, Stopped, Turn};

/// Which bundle answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleId {
    /// Its name.
    pub name: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
}

/// A turn that the agent remembered when the logged one began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// What was understood.
    pub transcript: String,
    /// Calls and results.
    pub calls: Vec<CallReport>,
    /// What was answered.
    pub reply_text: String,
}

impl Past {
    /// What is remembered of a turn.
    pub fn of(turn: &Turn) -> Self {
        Self { transcript: turn.transcript.clone(), calls: turn.calls.clone(), reply_text: turn.reply_text.clone() }
    }

    /// A turn, for [`crate::pipeline::Agent::recall`].
    pub fn turn(&self) -> Turn {
        Turn { transcript: self.transcript.clone(), calls: self.calls.clone(), reply_text: self.reply_text.clone(), ..Turn::default() }
    }
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
    pub context: &'a VecDeque<Past>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio: Option<String>,
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
