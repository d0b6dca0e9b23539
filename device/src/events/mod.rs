//! What happens in a conversation, told to other programs: lights, buttons, screens.
//!
//! - [`Signal`]: the state of the agent (listening, thinking, speaking, …), for whatever shows it. Beside it go the events of the pipeline
//!   ([`crate::pipeline::Event`]), with what was heard, called and said, and those of a live conversation ([`Happening`]).
//! - [`Hooks`]: programs of the settings file that are run for an event.
//! - [`Socket`]: a Unix socket on which readers get all events as JSON Lines.
//!
//! [`Events`] is all of it together. Telling an event never waits: a program that hangs or a reader that sleeps is their own loss. It is for
//! the thread that holds the conversation, and not for an audio callback, because it makes system calls.

mod hooks;
mod socket;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use hooks::{Hook, HookError, Hooks, HooksTable};
pub use socket::{Socket, SocketError};

use crate::conversation::Happening;
use crate::pipeline::Event;
use crate::tools::Due;
use crate::turns::State;
use hooks::Problem;

/// The names of all events, as they stand in `event` and in the settings file.
pub const NAMES: [&str; 19] = [
    "wake",
    "listening",
    "thinking",
    "speaking",
    "interrupted",
    "idle",
    "due",
    "error",
    "ready",
    "heard",
    "text",
    "call",
    "result",
    "speech",
    "turn",
    "state",
    "settled",
    "failed",
    "abandoned",
];

/// What the agent is doing. As JSON: one object, its kind in `event`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Signal<'a> {
    /// It is loaded, and can be talked to.
    Ready { bundle: &'a str, engine: &'a str, ms: f64 },
    /// It takes in a question.
    Listening,
    /// The question is over. Live, the turn has no number yet.
    Thinking {
        #[serde(skip_serializing_if = "Option::is_none")]
        turn_id: Option<u64>,
    },
    /// The answer can be heard, or goes on after it was interrupted by a noise. What is said unasked, a reminder, belongs to no turn.
    Speaking {
        #[serde(skip_serializing_if = "Option::is_none")]
        turn_id: Option<u64>,
    },
    /// The answer is held because somebody speaks.
    Interrupted {
        #[serde(skip_serializing_if = "Option::is_none")]
        turn_id: Option<u64>,
    },
    /// The answer is over, or there is none.
    Idle,
    /// A timer, an alarm or a reminder.
    Due(&'a Due),
    /// Something went wrong, and the conversation goes on.
    Error { message: &'a str },
}

impl Signal<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Listening => "listening",
            Self::Thinking { .. } => "thinking",
            Self::Speaking { .. } => "speaking",
            Self::Interrupted { .. } => "interrupted",
            Self::Idle => "idle",
            Self::Due(_) => "due",
            Self::Error { .. } => "error",
        }
    }
}

/// Everybody who wants to know.
#[derive(Default)]
pub struct Events {
    hooks: Option<Hooks>,
    socket: Option<Socket>,
    /// The turn whose question was understood, until its answer is over.
    turn: Option<u64>,
    /// From files: this turn is being spoken.
    speaking: bool,
    /// Somebody was told that it does something.
    busy: bool,
}

impl Events {
    /// With these listeners.
    pub fn new(hooks: Option<Hooks>, socket: Option<Socket>) -> Self {
        Self { hooks, socket, ..Self::default() }
    }

    /// Tells a signal. Returns at once.
    pub fn signal(&mut self, signal: &Signal) {
        match signal {
            Signal::Listening | Signal::Thinking { .. } | Signal::Speaking { .. } | Signal::Interrupted { .. } => self.busy = true,
            Signal::Idle => self.busy = false,
            Signal::Ready { .. } | Signal::Due(_) | Signal::Error { .. } => {}
        }
        self.tell(signal.name(), signal, true);
    }

    /// Tells an event of a turn from files, with the signals that it implies: thinking, speaking, idle. Returns at once.
    pub fn conversation(&mut self, event: &Event) {
        match event {
            Event::Heard { turn_id, silence: false, .. } => self.signal(&Signal::Thinking { turn_id: Some(*turn_id) }),
            Event::Speech { turn_id, .. } if !std::mem::replace(&mut self.speaking, true) => {
                self.signal(&Signal::Speaking { turn_id: Some(*turn_id) });
            }
            _ => {}
        }
        self.event(event);
        if matches!(event, Event::Turn(_)) {
            self.speaking = false;
            self.signal(&Signal::Idle);
        }
    }

    /// Tells what happened in a live conversation. An answer is played long after it was made, and may be thrown away: what the agent is
    /// doing is what its state says, and nothing else. Returns at once.
    pub fn happening(&mut self, happening: &Happening) {
        match happening {
            Happening::State { state, .. } => {
                self.tell("state", happening, true);
                if matches!(state, State::Idle | State::Listening) {
                    self.turn = None;
                }
                let turn_id = self.turn;
                self.signal(&match state {
                    State::Idle => Signal::Idle,
                    State::Listening => Signal::Listening,
                    State::Thinking => Signal::Thinking { turn_id: None },
                    State::Speaking => Signal::Speaking { turn_id },
                    State::Interrupted => Signal::Interrupted { turn_id },
                });
            }
            Happening::Wake { .. } => self.tell("wake", happening, true),
            Happening::Agent(event) => {
                if let Event::Heard { turn_id, .. } = event {
                    self.turn = Some(*turn_id);
                }
                self.event(event);
            }
            Happening::Settled { .. } => self.tell("settled", happening, true),
            Happening::Failed { .. } => self.tell("failed", happening, true),
            Happening::Abandoned { .. } => self.tell("abandoned", happening, true),
            Happening::Due(due) => self.signal(&Signal::Due(due)),
            Happening::Problem { message } => self.signal(&Signal::Error { message }),
        }
    }

    /// An event as it is; what a tool could not do is an error as well.
    fn event(&mut self, event: &Event) {
        let name = match event {
            Event::Heard { .. } => "heard",
            Event::Text { .. } => "text",
            Event::Call { .. } => "call",
            Event::Result { problem, .. } => {
                if let Some(message) = problem {
                    self.signal(&Signal::Error { message });
                }
                "result"
            }
            Event::Speech { .. } => "speech",
            Event::Turn(_) => "turn",
        };
        self.tell(name, event, true);
    }

    /// What went wrong with the listeners since this was last asked, for the user; the listeners are told of it as an error.
    pub fn problem(&mut self) -> Option<String> {
        let Problem { message, of_telling } = self.hooks.as_mut().and_then(Hooks::problem)?;
        self.tell("error", &Signal::Error { message: &message }, !of_telling);
        Some(message)
    }

    /// The conversation is over: tells that the agent is idle, waits for the programs that run, and returns what went wrong.
    pub fn close(mut self) -> Option<String> {
        if self.busy {
            self.signal(&Signal::Idle);
        }
        let hooks = self.hooks.as_mut()?;
        hooks.finish();
        hooks.problem().map(|problem| problem.message)
    }

    /// Tells an event of a name of [`NAMES`]; `run`: to the hooks too.
    fn tell(&mut self, name: &str, event: &impl Serialize, run: bool) {
        let wanted = run && self.hooks.as_ref().is_some_and(|hooks| hooks.has(name));
        if !wanted && self.socket.is_none() {
            return;
        }
        // Numbers that are not finite cannot be written; nobody can use them either.
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if let Some(socket) = &mut self.socket {
            socket.send(&line);
        }
        if let Some(hooks) = self.hooks.as_mut().filter(|_| wanted) {
            hooks.run(name, line);
        }
    }
}
