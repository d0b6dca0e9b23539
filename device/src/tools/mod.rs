//! What the agent can do: the calls that the language model writes, carried out.
//!
//! A call is words: the name of a tool, then its arguments (`timer set five minutes`). So is its result. Whatever goes wrong becomes a
//! short result for the model, of the words it was trained on, and a message for the user; the conversation goes on.
//!
//! | tool | calls |
//! |---|---|
//! | `time`, `date`, `calc` | `time`, `date`, `calc two plus three` |
//! | `timer` | `timer set five minutes`, `timer status`, `timer cancel` |
//! | `alarm` | `alarm set seven thirty in the morning`, `alarm status`, `alarm cancel` |
//! | `reminder` | `reminder add six thirty call mom`, `reminder add monday pay the rent`, `reminder list` |
//! | `volume` | `volume set forty`, `volume louder`, `volume quieter` |
//! | `stop` | silences what rings |
//! | `repeat` | the last reply |
//!
//! Everything else is a program, an MQTT message or a fixed answer named in `tools.toml` (see [`ToolsFile`]), where a tool of a built-in's
//! name takes its place. Timers, alarms and reminders fall due: the program that runs the conversation asks [`Tools::due`] about once a second,
//! and plays a sound for as long as [`Tools::ringing`] says. With [`Tools::keep_state`] they outlive a restart.

mod alarm;
mod calc;
mod calendar;
mod clock;
mod form;
#[cfg(feature = "mqtt")]
mod mqtt;
pub(crate) mod program;
mod schedule;
mod settings;
mod state;
mod timer;
mod volume;

use std::collections::VecDeque;
use std::path::Path;

pub use clock::Now;
pub use schedule::{Due, Kind, RING_SECONDS};
pub use settings::{Broker, Limits, Message, ToolAction, ToolEntry, ToolsError, ToolsFile};
pub use state::{StateError, default_state_dir};
pub use volume::Volume;

use crate::pipeline::CallReport;
use crate::words;
use schedule::Schedule;
use state::State;

/// Words of a result that the model is given; more is cut off.
pub const RESULT_WORDS: usize = 20;

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the model reads: lower-case words.
    pub words: String,
    /// What the user should know, if something went wrong.
    pub problem: Option<String>,
}

impl Outcome {
    fn ok(words: impl Into<String>) -> Self {
        Self { words: words.into(), problem: None }
    }

    fn problem(words: &str, problem: impl Into<String>) -> Self {
        Self { words: words.to_owned(), problem: Some(problem.into()) }
    }
}

/// The tools of a conversation, with what they remember.
#[derive(Debug, Default)]
pub struct Tools {
    file: ToolsFile,
    schedule: Schedule,
    volume: Volume,
    state: Option<State>,
    /// The results of a log, in place of everything else.
    recorded: Option<VecDeque<CallReport>>,
    last_reply: String,
    /// The question corrects what was just set ("make it ten minutes").
    correction: bool,
}

impl Tools {
    /// The built-ins alone.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// The built-ins and the tools of a `tools.toml`.
    pub fn load(path: &Path) -> Result<Self, ToolsError> {
        Ok(Self { file: ToolsFile::load(path)?, ..Self::default() })
    }

    /// Gives the results of these calls, in their order, and carries nothing out: for replays.
    pub fn recorded(calls: Vec<CallReport>) -> Self {
        Self { recorded: Some(calls.into()), ..Self::default() }
    }

    /// Keeps timers, alarms, reminders and the volume in this folder, and goes on with what is kept there. Returns what the user should
    /// know: that what was kept could not be understood.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or another program uses it.
    pub fn keep_state(&mut self, dir: &Path, now: Now) -> Result<Option<String>, StateError> {
        let (state, kept, told) = State::open(dir)?;
        self.schedule = Schedule::restore(kept.entries, now);
        if let Some(volume) = kept.volume {
            self.volume.set(volume);
        }
        self.state = Some(state);
        Ok(told)
    }

    /// Carries out a call. Never fails and never hangs: a program and a broker have their time limits.
    pub fn call(&mut self, call: &str) -> Outcome {
        self.call_at(call, Now::read())
    }

    /// The same at a moment of the caller's choice.
    pub fn call_at(&mut self, call: &str, now: Now) -> Outcome {
        let words: Vec<&str> = call.split_whitespace().collect();
        let Some((&name, arguments)) = words.split_first() else {
            return Outcome::problem("unknown tool", "the model made an empty call");
        };
        if let Some(recorded) = &mut self.recorded {
            return match recorded.pop_front() {
                Some(known) if known.call == call => Outcome { words: known.result, problem: known.problem },
                _ => Outcome::problem("not available", format!("the log has no result of `{}`", beginning(&words))),
            };
        }
        if let Some(entries) = self.file.tool.get(name) {
            return run(name, entries, self.file.mqtt.as_ref(), arguments);
        }
        let (instead, before) = (self.correction, (self.volume.percent(), self.schedule.entries().to_vec()));
        let mut outcome = match name {
            "time" if arguments.is_empty() => calendar::time(now),
            "time" => Outcome::problem("not available", format!("the time of `{}` needs a tool of its own", arguments.join(" "))),
            "date" => calendar::date(now),
            "calc" => calc::call(arguments),
            "timer" => timer::call(&mut self.schedule, arguments, instead, now),
            "alarm" => alarm::alarm(&mut self.schedule, arguments, instead, now),
            "reminder" => alarm::reminder(&mut self.schedule, arguments, instead, now),
            "volume" => self.volume.call(arguments),
            "stop" => timer::some(self.silence()),
            "repeat" if self.last_reply.is_empty() => Outcome::ok("none"),
            "repeat" => Outcome::ok(words::spoken(&self.last_reply, RESULT_WORDS)),
            _ => Outcome::problem(
                "unknown tool",
                format!("there is no tool `{name}`; it can be named in tools.toml (the call was `{}`)", beginning(&words)),
            ),
        };
        if before != (self.volume.percent(), self.schedule.entries().to_vec()) {
            // It works until the program ends; that it will not work after that is for the user, not for the model.
            outcome.problem = outcome.problem.or(self.save());
        }
        outcome
    }

    /// What fell due since the last time, each once; and what the user should know, if it could not be kept.
    pub fn due(&mut self, now: Now) -> (Vec<Due>, Option<String>) {
        let (due, changed) = self.schedule.due(now);
        (due, if changed { self.save() } else { None })
    }

    /// Is something ringing?
    pub fn ringing(&self) -> bool {
        self.schedule.ringing().next().is_some()
    }

    /// Silences what rings, as the call `stop` does: for a button. True if something rang.
    pub fn silence(&mut self) -> bool {
        let silenced = self.schedule.silence(None);
        if silenced {
            // Should this fail, it rings again after a restart; the next change tries again and tells.
            let _ = self.save();
        }
        silenced
    }

    /// How loud the agent is to speak: a handle that follows the tool.
    pub fn volume(&self) -> Volume {
        self.volume.clone()
    }

    /// The last reply, for somebody who did not hear it; empty before the first.
    pub fn last_reply(&self) -> &str {
        &self.last_reply
    }

    /// A question was understood: tells whether it is to correct what was set last.
    pub(crate) fn heard(&mut self, transcript: &str) {
        self.correction = ["make it ", "change it to ", "no "].iter().any(|start| transcript.starts_with(start));
    }

    /// A reply was given.
    pub(crate) fn said(&mut self, reply: &str) {
        reply.clone_into(&mut self.last_reply);
    }

    fn save(&self) -> Option<String> {
        let failed = self.state.as_ref()?.save(self.volume.percent(), self.schedule.entries()).err()?;
        Some(format!("{failed}; timers, alarms and the volume will be lost when the program ends"))
    }
}

/// The first words of a call, for messages.
fn beginning(words: &[&str]) -> String {
    let rest = if words.len() > 8 { " …" } else { "" };
    words.iter().take(8).copied().collect::<Vec<_>>().join(" ") + rest
}

/// The first entry whose form fits the call.
fn run(name: &str, entries: &[ToolEntry], broker: Option<&Broker>, arguments: &[&str]) -> Outcome {
    let fitting = entries.iter().find_map(|entry| Some((entry, entry.form.matches(arguments)?)));
    let Some((entry, values)) = fitting else {
        let forms = entries.iter().map(|entry| format!("`{}`", entry.form)).collect::<Vec<_>>().join(", ");
        let call = beginning(arguments);
        return Outcome::problem("not available", format!("tool `{name}`: `{call}` is not allowed by tools.toml, which has {forms}"));
    };
    let (command, limits) = match &entry.action {
        ToolAction::Answer { answer } => return Outcome::ok(words::spoken(answer, RESULT_WORDS)),
        ToolAction::Message(message) => return publish(name, message, broker, &values),
        ToolAction::Program { program, limits } => (program, limits),
    };
    let output = match program::run(&form::command(command, arguments, &values), limits) {
        Ok(output) => output,
        Err(failure) => return Outcome::problem(failure.words(), format!("tool `{name}`: {failure}")),
    };
    // The letters that happen to be in noise would confuse the model, which was trained on results that mean something.
    let text = match std::str::from_utf8(&output) {
        Ok(text) if !text.contains('\0') => text,
        _ => return Outcome::problem("no answer", format!("tool `{name}` printed {} bytes that are no text (UTF-8)", output.len())),
    };
    let said = words::spoken(text, RESULT_WORDS);
    if said.is_empty() && !text.trim().is_empty() {
        return Outcome::problem("no answer", format!("tool `{name}` printed nothing that can be said ({} bytes)", output.len()));
    }
    Outcome::ok(if said.is_empty() { "ok".to_owned() } else { said })
}

#[cfg(feature = "mqtt")]
fn publish(name: &str, message: &Message, broker: Option<&Broker>, values: &form::Values) -> Outcome {
    let Some(broker) = broker else { return Outcome::problem("not available", format!("tool `{name}`: tools.toml has no `[mqtt]`")) };
    match mqtt::publish(broker, &form::fill(&message.topic, values), &form::fill(&message.payload, values), message.retain) {
        Ok(()) => Outcome::ok("ok"),
        Err(failure) => Outcome::problem(failure.words(), format!("tool `{name}`: {failure}")),
    }
}

#[cfg(not(feature = "mqtt"))]
fn publish(name: &str, _: &Message, _: Option<&Broker>, _: &form::Values) -> Outcome {
    Outcome::problem("not available", format!("tool `{name}` needs a program with MQTT: build it with `--features mqtt`"))
}

#[cfg(test)]
mod tests;
