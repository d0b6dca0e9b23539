//! What happens in a conversation, told to other programs: lights, buttons, screens.
//!
//! - [`Signal`]: the state of the agent (listening, thinking, speaking, …), for whatever shows it. Beside it go the events of the pipeline
//!   ([`crate::pipeline::Event`]), with what was heard, called and said.
//! - [`Hooks`]: programs of the settings file that are run for an event.
//! - [`Socket`]: a Unix socket on which readers get all events as JSON Lines.
//!
//! [`Events`] is all of it together. Telling an event never waits: a program that hangs or a reader that sleeps is their own loss. It is for
//! the thread that holds the conversation, and not for an audio callback, because it makes system calls.

mod hooks;
mod socket;

use serde::Serialize;

pub use hooks::{Hook, HookError, Hooks, HooksTable};
pub use socket::{Socket, SocketError};

use crate::pipeline::Event;
use crate::tools::Due;

/// The names of all events, as they stand in `event` and in the settings file.
pub const NAMES: [&str; 15] = [
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
];

/// What the agent is doing. As JSON: one object, its kind in `event`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Signal<'a> {
    /// The wake phrase or the button: it will listen.
    Wake,
    /// It takes in a question.
    Listening,
    /// The question is over.
    Thinking { turn_id: u64 },
    /// The answer can be heard.
    Speaking { turn_id: u64 },
    /// The answer was cut off by the user.
    Interrupted { turn_id: u64 },
    /// The answer is over.
    Idle,
    /// A timer, an alarm or a reminder.
    Due(&'a Due),
    /// Something went wrong, and the conversation goes on.
    Error { message: &'a str },
}

/// Everybody who wants to know.
#[derive(Default)]
pub struct Events {
    hooks: Option<Hooks>,
    socket: Option<Socket>,
    /// The turn that is being spoken.
    speaking: Option<u64>,
}

impl Events {
    /// With these listeners.
    pub fn new(hooks: Option<Hooks>, socket: Option<Socket>) -> Self {
        Self { hooks, socket, speaking: None }
    }

    /// Tells a signal. Returns at once.
    pub fn signal(&mut self, signal: &Signal) {
        let name = match signal {
            Signal::Wake => "wake",
            Signal::Listening => "listening",
            Signal::Thinking { .. } => "thinking",
            Signal::Speaking { .. } => "speaking",
            Signal::Interrupted { .. } => "interrupted",
            Signal::Idle => "idle",
            Signal::Due(_) => "due",
            Signal::Error { .. } => "error",
        };
        self.tell(name, signal);
    }

    /// Tells an event of the pipeline, with the signals that it implies: thinking, speaking, idle. Returns at once.
    pub fn conversation(&mut self, event: &Event) {
        let name = match event {
            Event::Heard { turn_id, silence, .. } => {
                if !silence {
                    self.signal(&Signal::Thinking { turn_id: *turn_id });
                }
                "heard"
            }
            Event::Text { .. } => "text",
            Event::Call { .. } => "call",
            Event::Result { problem, .. } => {
                if let Some(message) = problem {
                    self.signal(&Signal::Error { message });
                }
                "result"
            }
            Event::Speech { turn_id, .. } => {
                if self.speaking.replace(*turn_id) != Some(*turn_id) {
                    self.signal(&Signal::Speaking { turn_id: *turn_id });
                }
                "speech"
            }
            Event::Turn(_) => "turn",
        };
        self.tell(name, event);
        if matches!(event, Event::Turn(_)) {
            self.speaking = None;
            self.signal(&Signal::Idle);
        }
    }

    /// What went wrong with the listeners since this was last asked, for the user.
    pub fn problem(&mut self) -> Option<String> {
        self.hooks.as_mut().and_then(Hooks::problem)
    }

    /// Waits for the programs that run, and returns what went wrong.
    pub fn close(mut self) -> Option<String> {
        if let Some(hooks) = &mut self.hooks {
            hooks.finish();
        }
        self.problem()
    }

    /// Any event of a name of [`NAMES`]. Returns at once.
    pub fn tell(&mut self, name: &str, event: &impl Serialize) {
        let wanted = self.hooks.as_ref().is_some_and(|hooks| hooks.has(name));
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
