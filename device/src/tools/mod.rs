//! What the agent can do: the calls that the language model writes, carried out.
//!
//! A call is words: the name of a tool, then its arguments (`timer set five minutes`). So is its result. The built-ins
//! are `time`, `date`, `timer` and `calc`; everything else is a program or a fixed answer named in `tools.toml` (see
//! [`ToolsFile`]), where a tool of a built-in's name takes its place. Whatever goes wrong becomes a short result for the
//! model, of the words it was trained on, and a message for the user; the conversation goes on.

mod calc;
mod calendar;
mod program;
mod settings;
mod timer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

pub use settings::{ToolEntry, ToolsError, ToolsFile};

use crate::words;
use timer::Timer;

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
    configured: BTreeMap<String, ToolEntry>,
    timer: Timer,
}

impl Tools {
    /// The built-ins alone.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// The built-ins and the tools of a `tools.toml`.
    pub fn load(path: &Path) -> Result<Self, ToolsError> {
        Ok(Self { configured: ToolsFile::load(path)?.tool, timer: Timer::default() })
    }

    /// Carries out a call. Never fails and never hangs: a program has its time limit.
    pub fn call(&mut self, call: &str) -> Outcome {
        let words: Vec<&str> = call.split_whitespace().collect();
        let Some((&name, arguments)) = words.split_first() else {
            return Outcome::problem("unknown tool", "the model made an empty call");
        };
        if let Some(entry) = self.configured.get(name) {
            return run(name, entry, arguments);
        }
        match name {
            "time" if arguments.is_empty() => calendar::time(),
            "time" => Outcome::problem("not available", format!("the time of `{}` needs a tool of its own", arguments.join(" "))),
            "date" => calendar::date(),
            "timer" => self.timer.call(arguments, Instant::now()),
            "calc" => calc::call(arguments),
            _ => Outcome::problem(
                "unknown tool",
                format!("there is no tool `{name}`; it can be named in tools.toml (the call was `{}`)", beginning(&words)),
            ),
        }
    }
}

/// The first words of a call, for messages.
fn beginning(words: &[&str]) -> String {
    let rest = if words.len() > 8 { " …" } else { "" };
    words.iter().take(8).copied().collect::<Vec<_>>().join(" ") + rest
}

fn run(name: &str, entry: &ToolEntry, arguments: &[&str]) -> Outcome {
    let (command, limits) = match entry {
        ToolEntry::Answer { answer } => return Outcome::ok(words::spoken(answer, RESULT_WORDS)),
        ToolEntry::Program { program, limits } => (program, limits),
    };
    let output = match program::run(&settings::expand(command, arguments), limits) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(text: &str) -> (tempfile::TempDir, Tools) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("tools.toml");
        std::fs::write(&path, text).expect("writable");
        let tools = Tools::load(&path).expect("well formed");
        (dir, tools)
    }

    #[test]
    fn built_ins_answer() {
        let mut tools = Tools::built_in();
        assert_eq!(tools.call("calc twenty three plus forty five"), Outcome::ok("sixty eight"));
        assert_eq!(tools.call("timer status"), Outcome::ok("none"));
        assert_eq!(tools.call("timer set five minutes"), Outcome::ok("ok"));
        assert!(tools.call("timer status").words.ends_with("left"));
        for name in ["time", "date"] {
            let outcome = tools.call(name);
            assert!(outcome.problem.is_none() && outcome.words.split(' ').count() >= 2, "{outcome:?}");
        }
        assert_eq!(tools.call("dance").words, "unknown tool");
        assert_eq!(tools.call("").words, "unknown tool");
        assert_eq!(tools.call("time paris").words, "not available");
    }

    #[test]
    fn programs_get_arguments_and_nothing_else() {
        let (_dir, mut tools) = tools(
            r#"
            [tool.weather]
            program = ["/bin/sh", "-c", "echo \"$1: 21.5 °C; ${SECRET:-no secrets}\"", "sh", "{all}"]
            [tool.each]
            program = ["/bin/echo", "{words}"]
            [tool.second]
            program = ["/bin/echo", "<{2}>", "x{3}y"]
            [tool.quiet]
            program = ["/bin/true"]
            [tool.light]
            answer = "OK"
            [tool.calc]
            answer = "seven"
            "#,
        );
        assert_eq!(tools.call("weather san jose"), Outcome::ok("san jose twenty one point five degrees c no secrets"));
        assert_eq!(tools.call("each a $(reboot)"), Outcome::ok("a reboot"));
        assert_eq!(tools.call("second a b"), Outcome::ok("b xy"));
        assert_eq!(tools.call("quiet"), Outcome::ok("ok"));
        assert_eq!(tools.call("light set kitchen on"), Outcome::ok("ok"));
        assert_eq!(tools.call("calc one plus one"), Outcome::ok("seven"));
    }

    #[test]
    fn what_goes_wrong_is_told_and_bounded() {
        let (_dir, mut tools) = tools(
            r#"
            [tool.absent]
            program = ["/no/such/program"]
            [tool.fails]
            program = ["/bin/sh", "-c", "echo not this; echo the cable is out >&2; exit 3"]
            [tool.hangs]
            program = ["/bin/sh", "-c", "sleep 30 & sleep 30"]
            seconds = 0.2
            [tool.floods]
            program = ["/bin/sh", "-c", "while :; do echo noise; done"]
            output_bytes = 100
            [tool.garbage]
            program = ["/usr/bin/printf", "\\377\\376\\001\\002"]
            [tool.noise]
            program = ["/usr/bin/printf", "light\\377on"]
            [tool.signs]
            program = ["/usr/bin/printf", "\\001 ... --"]
            "#,
        );
        let started = Instant::now();
        let outcome = tools.call("absent");
        assert_eq!(outcome.words, "not available");
        assert!(outcome.problem.expect("told").contains("/no/such/program"));
        let outcome = tools.call("fails");
        assert_eq!(outcome.words, "failed");
        let problem = outcome.problem.expect("told");
        assert!(problem.contains("3") && problem.contains("the cable is out"), "{problem}");
        assert_eq!(tools.call("hangs").words, "timed out");
        let outcome = tools.call("floods");
        assert_eq!(outcome.words, "failed");
        assert!(outcome.problem.expect("told").contains("100 bytes"));
        for name in ["garbage", "noise", "signs"] {
            assert_eq!(tools.call(name).words, "no answer", "{name}");
        }
        assert!(started.elapsed().as_secs() < 10, "nothing hangs");
    }
}
