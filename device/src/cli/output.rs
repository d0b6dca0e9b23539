//! The conversation on the screen: to read, or as JSON Lines.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use sa_device::audio::AudioError;
use sa_device::conversation::Happening;
use sa_device::pipeline::{Event, Stopped, Turn};
use sa_device::tools::{Due, Kind};
use sa_device::words;
use serde::Serialize;

use super::writer::Writer;

/// The agent is loaded.
#[derive(Serialize)]
pub struct Ready<'a> {
    pub bundle: &'a str,
    pub engine: &'a str,
    /// Milliseconds since the start of the program.
    pub ms: f64,
}

/// A message on standard error, which may be full or gone: there is nobody else to tell that to.
pub fn complain(message: &dyn Display) {
    let _ = writeln!(io::stderr(), "sa-agent: {message}");
}

/// Where it goes.
enum Out {
    /// To whoever reads it, at his speed; it fails where he does.
    Direct,
    /// Nobody is waited for.
    Live { out: Writer, err: Writer },
}

/// Writes to standard output; a message that is an error goes to standard error as well.
pub struct Screen {
    json: bool,
    out: Out,
}

impl Screen {
    /// For questions from files: waits for whoever reads, and fails when nothing can be written.
    pub fn new(json: bool) -> Self {
        Self { json, out: Out::Direct }
    }

    /// For a live conversation, which must not wait: what cannot be written is lost, see [`Screen::lost`]. Only a reader that has gone is
    /// an error, as for every program that writes into a pipe.
    pub fn live(json: bool) -> io::Result<Self> {
        let out = Writer::new(File::from(io::stdout().as_fd().try_clone_to_owned()?));
        let err = Writer::new(File::from(io::stderr().as_fd().try_clone_to_owned()?));
        Ok(Self { json, out: Out::Live { out, err } })
    }

    /// What was not written, once it can be told.
    pub fn lost(&self) -> Option<String> {
        let Out::Live { out, err } = &self.out else { return None };
        let (out, err) = (out.lost(), err.lost());
        (out + err > 0).then(|| format!("{out} lines of the output and {err} messages were lost: nobody read them, or the disk was full"))
    }

    pub fn ready(&mut self, ready: &Ready) -> io::Result<()> {
        if self.json {
            return self.line("ready", ready);
        }
        self.text(format!("{} on {}, ready in {:.0} ms\n", ready.bundle, ready.engine, ready.ms))
    }

    /// As it happens. To read, the answer comes whole, at its end.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        if self.json {
            return self.object(event);
        }
        match event {
            Event::Heard { silence: true, question_s, .. } => self.text(format!("\n(heard nothing: {question_s:.1} s of silence)\n")),
            Event::Heard { transcript, .. } if transcript.is_empty() => self.text("\nyou    (not understood)\n".to_owned()),
            Event::Heard { transcript, .. } => self.text(format!("\nyou    {transcript}\n")),
            Event::Call { call, .. } => self.text(format!("       [{call}]")),
            Event::Result { result, problem, .. } => {
                self.text(format!(" → {result}\n"))?;
                problem.iter().for_each(|problem| self.complain(problem));
                Ok(())
            }
            Event::Turn(turn) if turn.stopped != Stopped::Silence => self.text(answered(turn)),
            _ => Ok(()),
        }
    }

    /// A timer, an alarm or a reminder.
    pub fn due(&mut self, due: &Due) -> io::Result<()> {
        if self.json {
            return self.line("due", due);
        }
        let late = match due.late_s {
            late if late < 60.0 => String::new(),
            late => format!(" ({} late)", words::duration(late as u64)),
        };
        let what = match due.kind {
            Kind::Timer => format!("the timer for {} is over", due.words),
            Kind::Alarm => format!("alarm: {}", due.words),
            _ => format!("reminder: {}", due.words),
        };
        self.text(format!("\n(due)  {what}{late}\n"))
    }

    /// Something went wrong beside the conversation.
    pub fn problem(&mut self, message: &str) -> io::Result<()> {
        #[derive(Serialize)]
        struct Problem<'a> {
            message: &'a str,
        }
        self.complain(message);
        if self.json {
            return self.line("error", &Problem { message });
        }
        Ok(())
    }

    /// A live conversation, as it happens.
    pub fn happening(&mut self, happening: &Happening) -> io::Result<()> {
        if self.json {
            return self.object(happening);
        }
        match happening {
            // Told when it is known how much of it was heard.
            Happening::Agent(Event::Turn(_)) => Ok(()),
            Happening::State { .. } | Happening::Failed { .. } | Happening::Abandoned { .. } => Ok(()),
            Happening::Wake { .. } => self.text("(awake)\n".to_owned()),
            Happening::Agent(event) => self.event(event),
            Happening::Due(due) => self.due(due),
            Happening::Settled { turn, waited_ms: w, .. } => self.text(format!(
                "{}       {:.0} ms from voice to voice: end of question {:.0}, first word {:.0}, first sound {:.0}, given out {:.0}, heard {:.0}\n",
                answered(turn),
                w.voice_to_voice,
                w.endpoint,
                w.first_text,
                w.first_audio,
                w.playback,
                w.audible
            )),
            Happening::Problem { message } => {
                self.complain(message);
                Ok(())
            }
        }
    }

    /// Something the user should know, that is no answer.
    pub fn note(&mut self, message: &str) -> io::Result<()> {
        if self.json {
            return self.line("note", &serde_json::json!({ "message": message }));
        }
        self.text(format!("{message}\n"))
    }

    pub fn failed(&mut self, source: &str, error: &AudioError) -> io::Result<()> {
        #[derive(Serialize)]
        struct Failed<'a> {
            source: &'a str,
            message: String,
        }
        self.complain(&error.to_string());
        if self.json {
            return self.line("error", &Failed { source, message: error.to_string() });
        }
        Ok(())
    }

    fn line(&mut self, event: &'static str, content: &impl Serialize) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a, T> {
            event: &'static str,
            #[serde(flatten)]
            content: &'a T,
        }
        self.object(&Line { event, content })
    }

    fn object(&mut self, object: &impl Serialize) -> io::Result<()> {
        self.text(serde_json::to_string(object)? + "\n")
    }

    fn text(&mut self, text: String) -> io::Result<()> {
        match &self.out {
            Out::Direct => io::stdout().write_all(text.as_bytes()),
            Out::Live { out, .. } if out.gone() => Err(ErrorKind::BrokenPipe.into()),
            Out::Live { out, .. } => {
                out.write(text.into_bytes());
                Ok(())
            }
        }
    }

    fn complain(&self, message: &str) {
        match &self.out {
            Out::Direct => complain(&message),
            Out::Live { err, .. } => err.write(format!("sa-agent: {message}\n").into_bytes()),
        }
    }
}

/// The answer, and what it took.
fn answered(turn: &Turn) -> String {
    let cut = match turn.stopped {
        Stopped::Limit | Stopped::Context => " … (cut off: too long)",
        Stopped::Interrupted => " … (interrupted)",
        Stopped::Repetition => " … (cut off: going round in circles)",
        _ => "",
    };
    let stages: Vec<String> = turn.stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms:.0}")).collect();
    let speed = if turn.real_time_factor > 0.0 { 1.0 / turn.real_time_factor } else { 0.0 };
    let output = turn.output.as_ref().map(|path| format!("       {path}\n")).unwrap_or_default();
    format!(
        "agent  {}{cut}\n       question {:.1} s, answer {:.1} s; first sound after {:.0} ms; {speed:.0} times real time ({} ms)\n{output}",
        turn.reply_text,
        turn.question_s,
        turn.answer_s,
        turn.timing_ms.first_audio,
        stages.join(", ")
    )
}
