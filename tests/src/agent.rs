//! `sa-agent` as a child process: its output, its exit code, its peak memory.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The binary, built if it is not there or older than its sources: a plain `cargo test` builds libraries and tests only.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--bin", "sa-agent"])
            .current_dir(crate::root())
            .status()
            .expect("cargo runs, it has started this test");
        assert!(built.success(), "sa-agent does not build");
        let test = std::env::current_exe().expect("the path of a running test is known");
        let folder = test.ancestors().nth(2).expect("tests lie in target/debug/deps");
        folder.join("sa-agent")
    })
}

/// A call of `sa-agent talk`.
pub struct Talk {
    command: Command,
    limit: Duration,
}

/// What a call did.
pub struct Outcome {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
    /// High-water mark of resident memory.
    pub peak_mb: f64,
}

impl Talk {
    /// `sa-agent talk --json` on the bundle under test.
    pub fn new() -> Self {
        Self::on(&crate::bundle())
    }

    /// The same on another bundle.
    pub fn on(bundle: &Path) -> Self {
        let mut talk = Self::bare(&["talk", "--json", "--bundle"]);
        talk.command.arg(bundle);
        talk
    }

    /// Any other command of `sa-agent`.
    pub fn bare(arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(crate::root());
        Self { command, limit: Duration::from_secs(120) }
    }

    /// The same call, started by a shell after `preparation` (for limits that a child inherits).
    pub fn after(self, preparation: &str) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{preparation}; exec \"$0\" \"$@\"")).arg(self.command.get_program());
        command.args(self.command.get_args()).current_dir(crate::root());
        Self { command, limit: self.limit }
    }

    pub fn input(mut self, wav: &Path) -> Self {
        self.command.arg("--input").arg(wav);
        self
    }

    pub fn output(mut self, wav: &Path) -> Self {
        self.command.arg("--output").arg(wav);
        self
    }

    pub fn output_dir(mut self, folder: &Path) -> Self {
        self.command.arg("--output-dir").arg(folder);
        self
    }

    pub fn tools(mut self, file: &Path) -> Self {
        self.command.arg("--tools").arg(file);
        self
    }

    pub fn environment(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.command.arg(flag);
        self
    }

    /// Runs it; a call that takes longer than two minutes is killed, and an error: nothing here may hang.
    pub fn run(mut self) -> Result<Outcome> {
        let started = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("while starting {:?}", self.command))?;
        let stdout = drain(child.stdout.take().expect("it is piped"));
        let stderr = drain(child.stderr.take().expect("it is piped"));
        let mut peak_mb = 0.0f64;
        let status = loop {
            peak_mb = peak_mb.max(high_water_mb(&child).unwrap_or(0.0));
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > self.limit {
                child.kill()?;
                child.wait()?;
                bail!("{:?} still ran after {:?}", self.command, self.limit);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let read = |reader: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| -> Result<String> {
            let bytes = reader.join().expect("reading a pipe does not panic")?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Outcome { code: status.code(), stdout: read(stdout)?, stderr: read(stderr)?, seconds: started.elapsed().as_secs_f64(), peak_mb })
    }
}

impl Default for Talk {
    fn default() -> Self {
        Self::new()
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    })
}

fn high_water_mb(child: &Child) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}

impl Outcome {
    /// The JSON events that were printed.
    pub fn events(&self) -> Result<Vec<Value>> {
        self.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not an event: {line}"))).collect()
    }

    /// What was printed, without the many events of speech: for messages.
    pub fn brief(&self) -> String {
        self.stdout.lines().filter(|line| !line.contains(r#""event":"speech""#)).collect::<Vec<_>>().join("\n")
    }

    /// The events of one kind.
    pub fn of_kind(&self, kind: &str) -> Result<Vec<Value>> {
        Ok(self.events()?.into_iter().filter(|event| event["event"] == kind).collect())
    }

    /// Checks a failure: the exit code, one line on stderr that names `culprit`, no panic.
    pub fn failed_with(&self, code: i32, culprit: &str) -> Result<()> {
        ensure!(self.code == Some(code), "exit code {:?}, expected {code}; stderr: {}", self.code, self.stderr);
        ensure!(!self.stderr.contains("panicked"), "it panicked: {}", self.stderr);
        ensure!(self.stderr.contains(culprit), "the message does not name '{culprit}': {}", self.stderr);
        let errors = self.stderr.lines().filter(|line| line.starts_with("sa-agent:")).count();
        ensure!(errors == 1, "{errors} error lines, expected one: {}", self.stderr);
        Ok(())
    }

    /// Checks a success, and returns itself for what else is to be seen.
    pub fn succeeded(self) -> Result<Self> {
        ensure!(self.code == Some(0), "exit code {:?}; stderr: {}", self.code, self.stderr);
        ensure!(!self.stderr.contains("panicked"), "a thread panicked: {}", self.stderr);
        Ok(self)
    }
}
