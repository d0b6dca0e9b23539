//! What goes on beside a conversation, whatever its microphone is: the state that outlives it, its field log, and those who are told.

use std::path::PathBuf;

use anyhow::Context;
use sa_device::audio::Capture;
use sa_device::bundle::Bundle;
use sa_device::conversation::Happening;
use sa_device::events::{Events, Hooks, Signal, Socket};
use sa_device::field::{FieldLog, Keep};
use sa_device::pipeline::{Event, Turn};
use sa_device::tools::{Now, Tools};

use super::output::{Ready, Screen};
use super::settings::File;

/// The size of a field log, where nothing else is said.
const FIELD_LOG_MB: u32 = 500;

/// Flags of the commands that hold conversations.
#[derive(clap::Args)]
pub struct Around {
    /// Folder in which timers, alarms, reminders and the volume outlive the program. Without it they end with `talk`; `listen` keeps them
    /// in the state folder of systemd or of the user.
    #[arg(long, value_name = "DIR", env = "SA_STATE")]
    state: Option<PathBuf>,
    /// Keep each turn in this folder, readable by you alone: audio of the question, units, text, calls, results, times. For `sa-agent replay`.
    #[arg(long, value_name = "DIR", env = "SA_FIELD_LOG")]
    field_log: Option<PathBuf>,
    /// Size of the field log in megabytes (500); the oldest turns are removed.
    #[arg(long, value_name = "MB", env = "SA_FIELD_LOG_MB", value_parser = clap::value_parser!(u32).range(1..))]
    field_log_mb: Option<u32>,
    /// Keep the units of a question only, and not its audio.
    #[arg(long)]
    field_log_units_only: bool,
    /// A Unix socket at which other programs can read the events of the conversation as JSON Lines.
    #[arg(long, value_name = "PATH", env = "SA_EVENTS_SOCKET")]
    events_socket: Option<PathBuf>,
}

impl Around {
    /// Puts the flags over the settings file.
    pub fn resolve(&self, file: &mut File) {
        file.state = self.state.clone().or(file.state.take());
        file.field_log = self.field_log.clone().or(file.field_log.take());
        file.field_log_mb = self.field_log_mb.or(file.field_log_mb);
        file.field_log_units_only |= self.field_log_units_only;
        file.events_socket = self.events_socket.clone().or(file.events_socket.take());
    }
}

/// All of it, opened.
pub struct Company {
    log: Option<FieldLog>,
    events: Events,
    /// What is to be told when the screen is there.
    problems: Vec<String>,
}

impl Company {
    /// Opens what the settings ask for; what was kept goes into the tools. Where they name no folder for the state it is `usual_state`:
    /// nobody asked for that one, so the conversation takes place without it too.
    pub fn open(settings: &mut File, usual_state: Option<PathBuf>, bundle: &Bundle, tools: &mut Tools) -> anyhow::Result<Self> {
        let told = match (&settings.state, usual_state) {
            (Some(dir), _) => tools.keep_state(dir, Now::read())?,
            (None, Some(dir)) => tools.keep_state(&dir, Now::read()).unwrap_or_else(|error| {
                Some(format!("{error}; timers, alarms and the volume end with this program, unless --state names another folder"))
            }),
            (None, None) => None,
        };
        let hooks = Hooks::new(std::mem::take(&mut settings.hook)).context("while reading the settings")?;
        let socket = settings.events_socket.as_ref().map(|path| Socket::bind(path)).transpose()?;
        let bytes = u64::from(settings.field_log_mb.unwrap_or(FIELD_LOG_MB)) * 1_000_000;
        let keep = Keep { bytes, audio: !settings.field_log_units_only };
        let log = settings.field_log.as_ref().map(|dir| FieldLog::open(dir, keep, bundle, &settings.conversation)).transpose()?;
        Ok(Self { log, events: Events::new(hooks, socket), problems: told.into_iter().collect() })
    }

    /// The agent can be talked to.
    pub fn ready(&mut self, ready: &Ready) {
        let Ready { bundle, engine, ms } = *ready;
        self.events.signal(&Signal::Ready { bundle, engine, ms });
    }

    /// A question begins.
    pub fn begins(&mut self, capture: Capture) -> Capture {
        self.events.signal(&Signal::Listening);
        match &mut self.log {
            Some(log) => log.tap(capture),
            None => capture,
        }
    }

    /// In a turn.
    pub fn event(&mut self, event: &Event) {
        self.events.conversation(event);
    }

    /// A turn is over.
    pub fn turn(&mut self, turn: &Turn) {
        if let Some(log) = &mut self.log {
            log.turn(turn);
        }
    }

    /// In a live conversation.
    pub fn happening(&mut self, happening: &Happening) {
        if let Some(log) = &mut self.log {
            log.happening(happening);
        }
        self.events.happening(happening);
    }

    /// Something went wrong beside the conversation; whoever listens is told of it.
    pub fn trouble(&mut self, message: &str) {
        self.events.signal(&Signal::Error { message });
    }

    /// What went wrong with state, log and listeners since this was last asked, for the user. Whoever listens is told of it.
    pub fn problem(&mut self) -> Option<String> {
        let kept = if self.problems.is_empty() { None } else { Some(self.problems.remove(0)) };
        match kept.or_else(|| self.log.as_mut().and_then(FieldLog::problem)) {
            Some(message) => {
                self.trouble(&message);
                Some(message)
            }
            None => self.events.problem(),
        }
    }

    /// A turn failed; what there is of it, if it was being answered.
    pub fn failed(&mut self, message: &str, turn: Option<&Turn>) {
        if let Some(turn) = turn {
            self.turn(turn);
        }
        self.trouble(message);
        self.events.signal(&Signal::Idle);
    }

    /// Tells what fell due and what went wrong. To be called between turns.
    pub fn look(&mut self, tools: &mut Tools, screen: &mut Screen) -> std::io::Result<()> {
        let (due, problem) = tools.due(Now::read());
        for due in &due {
            screen.due(due)?;
            self.events.signal(&Signal::Due(due));
        }
        self.problems.extend(problem);
        while let Some(problem) = self.problem() {
            screen.problem(&problem)?;
        }
        Ok(())
    }

    /// The conversation is over: waits for the log's disk and for the programs of the last events.
    pub fn close(mut self, screen: &mut Screen) -> std::io::Result<()> {
        let of_log = self.log.take().and_then(FieldLog::close);
        of_log.iter().for_each(|problem| self.trouble(problem));
        [of_log, self.events.close()].into_iter().flatten().try_for_each(|problem| screen.problem(&problem))
    }
}
