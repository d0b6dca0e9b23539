//! Runs a program under a time limit and an output limit, with a cleared environment and no shell.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

#[cfg(unix)]
use std::os::unix::process::CommandExt;

use super::settings::Limits;

/// Where programs without a path are looked for.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} did not end within {seconds} s and was killed")]
    TimedOut { program: String, seconds: f64 },
    #[error("{program} printed more than {limit} bytes and was killed")]
    Flood { program: String, limit: usize },
    #[error("{program} failed ({status}){message}")]
    Failed { program: String, status: ExitStatus, message: String },
}

impl Failure {
    /// What the model reads; it was trained on these.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Start { .. } => "not available",
            Self::TimedOut { .. } => "timed out",
            Self::Flood { .. } | Self::Failed { .. } => "failed",
        }
    }
}

/// Runs `command` to its end and returns what it printed.
pub fn run(command: &[String], limits: &Limits) -> Result<Vec<u8>, Failure> {
    Running::start(command, limits, &[], None)?.finish()
}

/// A program that was started.
pub struct Running {
    program: String,
    child: Child,
    limits: Limits,
    deadline: Instant,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
}

impl Running {
    /// Starts `command` with these variables; `input` comes on its standard input.
    pub fn start(command: &[String], limits: &Limits, variables: &[(&str, &str)], input: Option<Vec<u8>>) -> Result<Self, Failure> {
        let program = command.first().cloned().unwrap_or_default();
        let mut child = Command::new(&program);
        child.args(command.iter().skip(1)).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        for name in &limits.environment {
            if let Some(value) = std::env::var_os(name) {
                child.env(name, value);
            }
        }
        child.envs(variables.iter().copied());
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        child.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that what it started is killed with it.
        #[cfg(unix)]
        child.process_group(0);
        let mut child = child.spawn().map_err(|source| Failure::Start { program: program.clone(), source })?;
        let deadline = Instant::now() + Duration::from_secs_f64(limits.seconds);
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // On a thread: it may never be read. Whoever does not want it closes the pipe, which is no failure.
            std::thread::spawn(move || drop(pipe.write_all(&input)));
        }
        // The pipes are read on threads of their own: a grandchild may keep them open for ever.
        let output = read_all(child.stdout.take(), limits.output_bytes);
        let errors = read_all(child.stderr.take(), 400);
        Ok(Self { program, child, limits: limits.clone(), deadline, output, errors })
    }

    /// Waits for its end, or kills it at a limit; returns what it printed.
    pub fn finish(self) -> Result<Vec<u8>, Failure> {
        let Self { program, mut child, limits, deadline, output, errors } = self;
        let printed = output.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let flooded = matches!(&printed, Ok(bytes) if bytes.len() > limits.output_bytes);
        let status = if flooded { None } else { wait(&mut child, deadline) };
        let Some(status) = status else {
            kill(&mut child);
            return Err(if flooded {
                Failure::Flood { program, limit: limits.output_bytes }
            } else {
                Failure::TimedOut { program, seconds: limits.seconds }
            });
        };
        if !status.success() {
            let said = errors.recv_timeout(Duration::from_millis(100)).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
            let message = if said.is_empty() { String::new() } else { format!(": {}", said.chars().take(200).collect::<String>()) };
            return Err(Failure::Failed { program, status, message });
        }
        match printed {
            Ok(bytes) => Ok(bytes),
            // It ended, but something it started still holds the pipe: that is a hang too.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                kill(&mut child);
                Err(Failure::TimedOut { program, seconds: limits.seconds })
            }
        }
    }
}

/// Reads up to `limit + 1` bytes on a thread; what comes after is not read, so that a flood blocks in its pipe.
fn read_all(pipe: Option<impl Read + Send + 'static>, limit: usize) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is still worth having.
            let _ = pipe.take(limit as u64 + 1).read_to_end(&mut bytes);
        }
        // Nobody listens any more once the time limit has passed.
        let _ = sender.send(bytes);
    });
    receiver
}

/// The exit status, or `None` at the deadline.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(pause),
            _ => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills the program and all of its group, and takes its exit status so that no zombie stays.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: a plain system call without pointers; the group is our own child's, which has not been waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    // It may have ended by itself in between: nothing is left to do then.
    let _ = child.kill();
    let _ = child.wait();
}
