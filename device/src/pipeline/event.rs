//! What a turn reports while it runs and when it is over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that happened in a turn. As JSON: one object, its kind in `event`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Event {
    /// The question is over and was understood so.
    Heard {
        turn_id: u64,
        transcript: String,
        /// There was nothing to hear; the turn ends here.
        silence: bool,
        question_s: f64,
    },
    /// The next word of the reply, before it is spoken.
    Text { turn_id: u64, text: String },
    /// The model asks for a tool.
    Call { turn_id: u64, call: String },
    /// What the tool answered, as the model reads it; `problem` is for the user.
    Result { turn_id: u64, result: String, problem: Option<String> },
    /// Samples of the answer went to the device.
    Speech { turn_id: u64, samples: usize, answer_s: f64 },
    /// The turn is over.
    Turn(Box<Turn>),
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stopped {
    /// The model ended it.
    #[default]
    End,
    /// Nothing was heard, and nothing answered.
    Silence,
    /// It reached the limit of words or of seconds.
    Limit,
    /// It went round in circles.
    Repetition,
    /// The model's context was full.
    Context,
    /// The user took the word.
    Interrupted,
    /// Something broke, see [`Turn::problem`]; the turn is not remembered.
    Failed,
}

/// A call and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallReport {
    /// Tool and arguments.
    pub call: String,
    /// What the model read.
    pub result: String,
    /// What went wrong, for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Milliseconds from the last sample of the question, without the time that tools took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timing {
    /// The question was known to be over.
    pub endpoint: f64,
    /// The transcript was complete.
    pub transcript: f64,
    /// The first word of the reply was there.
    pub first_text: f64,
    /// All words of the reply were there (0 where they are chosen while it is spoken).
    pub plan: f64,
    /// The first samples of the answer were there.
    pub first_audio: f64,
    /// The answer was complete.
    pub total: f64,
    /// Time that tools took (not a point in time, and in none of the others).
    pub tools: f64,
}

/// What is remembered of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// What was understood.
    pub transcript: String,
    /// Calls and results.
    pub calls: Vec<CallReport>,
    /// What was answered, as far as it was heard.
    pub reply_text: String,
}

impl Past {
    /// What is remembered of this turn.
    pub fn of(turn: &Turn) -> Self {
        Self { transcript: turn.transcript.clone(), calls: turn.calls.clone(), reply_text: turn.reply_text.clone() }
    }

    /// A turn, for [`crate::pipeline::Agent::recall`].
    pub fn turn(&self) -> Turn {
        Turn { transcript: self.transcript.clone(), calls: self.calls.clone(), reply_text: self.reply_text.clone(), ..Turn::default() }
    }
}

/// A turn.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Turn {
    /// From 1.
    pub turn_id: u64,
    /// What the agent remembered when it answered; for the field log.
    #[serde(skip)]
    pub context: Vec<Past>,
    /// The file or device that the question came from.
    pub source: String,
    /// The question, as it was understood.
    pub transcript: String,
    /// The answer.
    pub reply_text: String,
    /// Calls, in order.
    pub calls: Vec<CallReport>,
    /// How the answer ended.
    pub stopped: Stopped,
    /// The file that holds the answer, if there is one.
    pub output: Option<String>,
    /// Units of the question.
    pub question_units: Vec<u32>,
    /// Units of the answer, END units left out.
    pub units: Vec<u32>,
    /// For each word of the answer, how many of the units had been made when it was complete.
    pub word_units: Vec<usize>,
    /// Seconds of the question.
    pub question_s: f64,
    /// Seconds of the answer.
    pub answer_s: f64,
    /// Times.
    pub timing_ms: Timing,
    /// Milliseconds of computing in each stage.
    pub stages_ms: BTreeMap<&'static str, f64>,
    /// Computing time over time of audio, question and answer.
    pub real_time_factor: f64,
    /// What broke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
