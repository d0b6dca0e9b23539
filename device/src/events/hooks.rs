//! Programs that are run when something happens.
//!
//! ```toml
//! [hook.listening]
//! program = ["/usr/local/bin/led", "green"]   # no shell; the event comes as JSON on the standard input, its name in SA_EVENT
//! seconds = 2.0                               # time limit, then it is killed (2 by default, 30 at most)
//! environment = ["HOME"]                      # passed through; everything else but PATH is cleared
//! ```
//! A path that begins with `./` is looked up beside the settings file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::Deserialize;

use super::NAMES;
use crate::tools::Limits;
use crate::tools::program::{Failure, Running};

/// Programs that run at the same time; further events are left out.
const IN_FLIGHT: usize = 4;
/// Events that wait for their program to be started.
const WAITING: usize = 32;
/// What a program prints is not used.
const OUTPUT_BYTES: usize = 64 * 1024;

/// Why the hooks of a settings file were refused: correct the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    #[error("hook `{name}`: there is no such event; there are {}", NAMES.join(", "))]
    Unknown { name: String },
    #[error("hook `{name}`: {message}")]
    Wrong { name: String, message: String },
}

/// The table `hook` of a settings file: by the name of the event.
pub type HooksTable = BTreeMap<String, Hook>;

/// A program for an event.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Its time limit.
    #[serde(default = "seconds")]
    pub seconds: f64,
    /// Variables that it sees.
    #[serde(default)]
    pub environment: Vec<String>,
}

fn seconds() -> f64 {
    2.0
}

/// An event on its way to its program.
struct Job {
    name: String,
    line: Vec<u8>,
}

/// What went wrong with a hook.
pub(super) struct Problem {
    pub message: String,
    /// It came of too many events, or of the hook that is told of problems: to run hooks for it would make more of it.
    pub of_telling: bool,
}

impl Problem {
    fn of(name: &str, failure: &Failure) -> Self {
        Self { message: format!("hook `{name}`: {failure}"), of_telling: name == "error" }
    }
}

/// The programs, started in the order of the events by a thread of their own. Dropped, it waits for those that run, which their time
/// limits bound: the last event is often the one that switches the light off.
pub struct Hooks {
    names: Vec<String>,
    jobs: Option<SyncSender<Job>>,
    starter: Option<JoinHandle<()>>,
    problems: Receiver<Problem>,
    left_out: Arc<AtomicUsize>,
}

impl Hooks {
    /// Checks the table; `None` when it is empty.
    pub fn new(table: HooksTable) -> Result<Option<Self>, HookError> {
        for (name, hook) in &table {
            let wrong = |message: String| HookError::Wrong { name: name.clone(), message };
            if !NAMES.contains(&name.as_str()) {
                return Err(HookError::Unknown { name: name.clone() });
            }
            if name == "speech" {
                return Err(wrong("it comes many times a second; `speaking` comes once".to_owned()));
            }
            if hook.program.is_empty() {
                return Err(wrong("`program` is empty".to_owned()));
            }
            if !(hook.seconds > 0.0 && hook.seconds <= 30.0) {
                return Err(wrong(format!("`seconds` is {}, and must be above 0 and at most 30", hook.seconds)));
            }
        }
        if table.is_empty() {
            return Ok(None);
        }
        let names = table.keys().cloned().collect();
        let left_out = Arc::new(AtomicUsize::new(0));
        let (jobs, work) = sync_channel(WAITING);
        let (tell, problems) = sync_channel(WAITING);
        let counter = left_out.clone();
        let starter = std::thread::spawn(move || start(&table, &work, &tell, &counter));
        Ok(Some(Self { names, jobs: Some(jobs), starter: Some(starter), problems, left_out }))
    }

    /// Is there a program for this event?
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Runs the program of an event, or leaves it out where too many run already. Returns at once.
    pub(super) fn run(&mut self, name: &str, line: Vec<u8>) {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(Job { name: name.to_owned(), line }).is_ok());
        if !sent {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for the programs that run or are to run; nothing more is run afterwards.
    pub(super) fn finish(&mut self) {
        self.jobs = None;
        if let Some(starter) = self.starter.take() {
            // Had it panicked, there would be nothing left to wait for.
            let _ = starter.join();
        }
    }

    /// What went wrong since this was last asked.
    pub(super) fn problem(&mut self) -> Option<Problem> {
        if let Ok(problem) = self.problems.try_recv() {
            return Some(problem);
        }
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        (left_out > 0).then(|| Problem {
            message: format!("{left_out} events had no hook run, because {IN_FLIGHT} programs were running already"),
            of_telling: true,
        })
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Starts programs one after the other; waits for their end when there will be no more.
fn start(table: &HooksTable, work: &Receiver<Job>, tell: &SyncSender<Problem>, left_out: &AtomicUsize) {
    let running = Arc::new(AtomicUsize::new(0));
    let mut waiting: Vec<JoinHandle<()>> = Vec::new();
    for Job { name, line } in work {
        let Some(hook) = table.get(&name) else { continue };
        if running.load(Ordering::Acquire) >= IN_FLIGHT {
            left_out.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let limits = Limits { seconds: hook.seconds, output_bytes: OUTPUT_BYTES, environment: hook.environment.clone() };
        match Running::start(&hook.program, &limits, &[("SA_EVENT", &name)], Some(line)) {
            Ok(program) => {
                running.fetch_add(1, Ordering::AcqRel);
                let (running, tell) = (running.clone(), tell.clone());
                waiting.retain(|thread| !thread.is_finished());
                waiting.push(std::thread::spawn(move || {
                    if let Err(failure) = program.finish() {
                        // Nobody may be asking.
                        let _ = tell.try_send(Problem::of(&name, &failure));
                    }
                    running.fetch_sub(1, Ordering::AcqRel);
                }));
            }
            Err(failure) => drop(tell.try_send(Problem::of(&name, &failure))),
        }
    }
    for thread in waiting {
        // It does not panic; if it did, its program would be all that is lost.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn hooks(text: &str) -> Result<Option<Hooks>, HookError> {
        Hooks::new(toml::from_str(text).expect("a table"))
    }

    #[test]
    fn a_program_gets_the_event() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let out = dir.path().join("out");
        let script = format!("cat >>{0}; echo $SA_EVENT ${{HOME:-nowhere}} >>{0}", out.display());
        let mut hooks = hooks(&format!("[error]\nprogram = [\"/bin/sh\", \"-c\", {script:?}]\n")).expect("sound").expect("one");
        assert!(hooks.has("error") && !hooks.has("wake"));
        hooks.run("error", b"{\"event\":\"error\"}\n".to_vec());
        drop(hooks);
        let text = std::fs::read_to_string(out).expect("it has run to its end");
        assert_eq!(text, "{\"event\":\"error\"}\nerror nowhere\n");
    }

    #[test]
    fn programs_that_hang_are_bounded_and_told() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let out = dir.path().join("out");
        let text = format!(
            "[wake]\nprogram = [\"/bin/sh\", \"-c\", \"echo x >>{}; sleep 100\"]\nseconds = 3.0\n[idle]\nprogram = [\"/none\"]\n",
            out.display()
        );
        let mut hooks = hooks(&text).expect("sound").expect("two");
        let started = Instant::now();
        for _ in 0..200 {
            hooks.run("wake", vec![b'x'; 200_000]);
        }
        assert!(started.elapsed() < Duration::from_secs(2), "nothing waits for them");
        let mut told = Vec::new();
        while told.iter().filter(|problem: &&String| problem.contains("did not end within 3 s")).count() < IN_FLIGHT {
            told.extend(hooks.problem().map(|problem| problem.message));
            assert!(started.elapsed() < Duration::from_secs(60), "{told:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(told.iter().any(|problem| problem.contains("had no hook run")), "{told:?}");
        hooks.run("idle", Vec::new());
        while !told.iter().any(|problem| problem.contains("cannot start /none")) {
            told.extend(hooks.problem().map(|problem| problem.message));
            assert!(started.elapsed() < Duration::from_secs(60), "{told:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(hooks("").expect("nothing to do").is_none());
        for (text, part) in [
            ("[lisening]\nprogram = [\"x\"]", "there are wake, listening"),
            ("[speech]\nprogram = [\"x\"]", "`speaking` comes once"),
            ("[wake]\nprogram = []", "`program` is empty"),
            ("[wake]\nprogram = [\"x\"]\nseconds = 0", "above 0"),
        ] {
            let message = hooks(text).err().expect(text).to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
