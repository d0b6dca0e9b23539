//! What a conversation tells.

use serde::Serialize;

use crate::pipeline::{Event, Turn};
use crate::tools::Due;
use crate::turns::State;

/// How long the user waited, in the five parts of the way (milliseconds).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waited {
    /// End of the user's voice → the question is taken for over.
    pub endpoint: f64,
    /// → first word of the answer.
    pub first_text: f64,
    /// → first samples of it.
    pub first_audio: f64,
    /// → they are given to the device.
    pub playback: f64,
    /// → they are heard, by what waits before them.
    pub audible: f64,
    /// All of it: from voice to voice.
    pub voice_to_voice: f64,
}

/// What a conversation tells. As JSON: one object, its kind in `event`; events of the agent as they are.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Happening {
    /// The agent does something else now.
    State {
        /// Seconds since the beginning.
        at_s: f64,
        state: State,
    },
    /// The wake phrase was said.
    Wake {
        /// Seconds since the beginning.
        at_s: f64,
    },
    /// The turn is over; `turn` tells what was heard of it.
    Settled {
        turn: Box<Turn>,
        waited_ms: Waited,
        /// The question as it was heard, 16 kHz; for the field log.
        #[serde(skip)]
        question: Vec<i16>,
    },
    /// The turn broke off, see [`Turn::problem`]; told as a problem before.
    Failed {
        turn: Box<Turn>,
        /// The question as it was heard, 16 kHz; for the field log.
        #[serde(skip)]
        question: Vec<i16>,
    },
    /// An answer was made, its tools carried out, and thrown away before it was heard: the user went on or wanted silence, or it took too
    /// long. It is not remembered.
    Abandoned {
        turn: Box<Turn>,
        /// The question as it was heard, 16 kHz; for the field log.
        #[serde(skip)]
        question: Vec<i16>,
    },
    /// A timer, an alarm or a reminder.
    Due(Due),
    /// Something failed; the conversation goes on.
    Problem { message: String },
    /// See [`Event`]; the event `turn` tells what was made, not what was heard.
    #[serde(untagged)]
    Agent(Event),
}
