//! The conversation on the screen: to read, or as JSON Lines.

use std::io::{self, Write};

use sa_device::audio::AudioError;
use sa_device::conversation::Happening;
use sa_device::pipeline::{Event, Stopped, Turn};
use sa_device::tools::{Due, Kind};
use sa_device::words;
use serde::Serialize;

/// The agent is loaded.
#[derive(Serialize)]
pub struct Ready<'a> {
    pub bundle: &'a str,
    pub engine: &'a str,
    /// Milliseconds since the start of the program.
    pub ms: f64,
}

/// Writes to standard output; a message that is an error goes to standard error as well.
pub struct Screen {
    json: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn ready(&mut self, ready: &Ready) -> io::Result<()> {
        if self.json {
            return self.line("ready", ready);
        }
        writeln!(io::stdout(), "{} on {}, ready in {:.0} ms", ready.bundle, ready.engine, ready.ms)
    }

    /// As it happens. To read, the answer comes whole, at its end.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, event)?;
            return writeln!(out);
        }
        match event {
            Event::Heard { silence: true, question_s, .. } => writeln!(out, "\n(heard nothing: {question_s:.1} s of silence)"),
            Event::Heard { transcript, .. } if transcript.is_empty() => writeln!(out, "\nyou    (not understood)"),
            Event::Heard { transcript, .. } => writeln!(out, "\nyou    {transcript}"),
            Event::Call { call, .. } => write!(out, "       [{call}]"),
            Event::Result { result, problem, .. } => {
                writeln!(out, " → {result}")?;
                if let Some(problem) = problem {
                    eprintln!("sa-agent: {problem}");
                }
                Ok(())
            }
            Event::Turn(turn) if turn.stopped != Stopped::Silence => answered(&mut out, turn),
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
        writeln!(io::stdout(), "\n(due)  {what}{late}")
    }

    /// Something went wrong beside the conversation.
    pub fn problem(&mut self, message: &str) -> io::Result<()> {
        #[derive(Serialize)]
        struct Problem<'a> {
            message: &'a str,
        }
        eprintln!("sa-agent: {message}");
        if self.json {
            return self.line("error", &Problem { message });
        }
        Ok(())
    }

    /// A live conversation, as it happens.
    pub fn happening(&mut self, happening: &Happening) -> io::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, happening)?;
            writeln!(out)?;
            return out.flush();
        }
        match happening {
            // Told when it is known how much of it was heard.
            Happening::Agent(Event::Turn(_)) | Happening::State { .. } => Ok(()),
            Happening::Failed { .. } | Happening::Abandoned { .. } => Ok(()),
            Happening::Wake { .. } => writeln!(io::stdout().lock(), "(awake)"),
            Happening::Agent(event) => self.event(event),
            Happening::Due(due) => self.due(due),
            Happening::Settled { turn, waited_ms: w, .. } => {
                let mut out = io::stdout().lock();
                answered(&mut out, turn)?;
                writeln!(
                    out,
                    "       {:.0} ms from voice to voice: end of question {:.0}, first word {:.0}, first sound {:.0}, given out {:.0}, heard {:.0}",
                    w.voice_to_voice, w.endpoint, w.first_text, w.first_audio, w.playback, w.audible
                )
            }
            Happening::Problem { message } => {
                eprintln!("sa-agent: {message}");
                Ok(())
            }
        }
    }

    /// Something the user should know, that is no answer.
    pub fn note(&mut self, message: &str) -> io::Result<()> {
        if self.json {
            return self.line("note", &serde_json::json!({ "message": message }));
        }
        writeln!(io::stdout(), "{message}")
    }

    pub fn failed(&mut self, source: &str, error: &AudioError) -> io::Result<()> {
        #[derive(Serialize)]
        struct Failed<'a> {
            source: &'a str,
            message: String,
        }
        eprintln!("sa-agent: {error}");
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
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &Line { event, content })?;
        writeln!(out)
    }
}

/// The answer, and what it took.
fn answered(out: &mut impl Write, turn: &Turn) -> io::Result<()> {
    let cut = match turn.stopped {
        Stopped::Limit | Stopped::Context => " … (cut off: too long)",
        Stopped::Interrupted => " … (interrupted)",
        Stopped::Repetition => " … (cut off: going round in circles)",
        _ => "",
    };
    writeln!(out, "agent  {}{cut}", turn.reply_text)?;
    let stages: Vec<String> = turn.stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms:.0}")).collect();
    let speed = if turn.real_time_factor > 0.0 { 1.0 / turn.real_time_factor } else { 0.0 };
    writeln!(
        out,
        "       question {:.1} s, answer {:.1} s; first sound after {:.0} ms; {speed:.0} times real time ({} ms)",
        turn.question_s,
        turn.answer_s,
        turn.timing_ms.first_audio,
        stages.join(", ")
    )?;
    match &turn.output {
        Some(path) => writeln!(out, "       {path}"),
        None => Ok(()),
    }
}
