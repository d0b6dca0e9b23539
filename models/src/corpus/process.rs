//! Other programs, run for what they print or write.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Error;

/// The error of a program that did not start, with what to install.
fn not_started(program: &str, package: &str, error: &std::io::Error) -> Error {
    Error::Synthesiser(if error.kind() == std::io::ErrorKind::NotFound {
        format!("{program} is not installed: on Debian or Ubuntu, `apt-get install {package}`")
    } else {
        format!("{program} could not be started: {error}")
    })
}

/// Longest that a synthesiser may take over one sentence, or over the phones of all words: far more than a slow one needs, and not for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a program that must succeed, and returns what it printed; `package` is what to install where it is missing.
///
/// # Errors
/// [`Error::Synthesiser`] when it is missing, fails, or comes to no end.
pub(super) fn execute(program: &str, package: &str, arguments: &[String]) -> Result<String, Error> {
    execute_within(PATIENCE, program, package, arguments, None)
}

/// The same, with `input` on the program's standard input.
///
/// # Errors
/// As those of [`execute`].
pub(super) fn execute_on(input: Vec<u8>, program: &str, package: &str, arguments: &[String]) -> Result<String, Error> {
    execute_within(PATIENCE, program, package, arguments, Some(input))
}

fn execute_within(patience: Duration, program: &str, package: &str, arguments: &[String], input: Option<Vec<u8>>) -> Result<String, Error> {
    let failed = |what: String| Error::Synthesiser(format!("{program} {}: {what}", arguments.join(" ")));
    let started = Instant::now();
    let mut command = Command::new(program);
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| not_started(program, package, &error))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // On a thread: it may never be read. Whoever does not want it closes the pipe, which is no failure.
        std::thread::spawn(move || drop(pipe.write_all(&input)));
    }
    // Both pipes are read while it runs: it would wait for a full one to be emptied.
    let (printed, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let mut in_time = || {
        let left = || patience.saturating_sub(started.elapsed());
        let texts = (printed.recv_timeout(left()).ok()?, errors.recv_timeout(left()).ok()?);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(Ok((status, texts))),
                Ok(None) if left().is_zero() => return None,
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Some(Err(failed(error.to_string()))),
            }
        }
    };
    let Some(ended) = in_time() else {
        // It may have ended just now; there is nothing more to do about it.
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("stopped after {} s without an end: try this command by hand", patience.as_secs_f32())));
    };
    let (status, (printed, errors)) = ended?;
    if status.success() { Ok(printed) } else { Err(failed(format!("{status}: {}", errors.trim()))) }
}

/// All that comes out of a pipe, in a thread that ends with the pipe.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is what there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody listens any more where the program took too long.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_stopped_and_much_print_is_read() {
        let given = |input, patience, script: &str| {
            execute_within(Duration::from_millis(patience), "sh", "dash", &["-c".to_owned(), script.to_owned()], input)
        };
        let shell = |patience, script: &str| given(None, patience, script);
        let started = Instant::now();
        for script in ["exec sleep 60", "exec sleep 60 >&- 2>&-"] {
            let error = shell(300, script).unwrap_err().to_string();
            assert!(error.contains("sleep 60") && error.contains("after 0.3 s"), "{error}");
        }
        // More than a pipe holds, which nobody reads.
        let error = given(Some(vec![0; 1 << 20]), 300, "exec sleep 60").unwrap_err().to_string();
        assert!(error.contains("after 0.3 s"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(given(Some(vec![b'a'; 1 << 20]), 60_000, "cat").unwrap().len(), 1 << 20);
        assert_eq!(given(Some(vec![b'a'; 1 << 20]), 60_000, "echo no need").unwrap(), "no need\n");
        let printed = shell(60_000, "head -c 200000 /dev/zero >&2; head -c 200000 /dev/zero").unwrap();
        assert_eq!(printed.len(), 200_000);
        let error = shell(60_000, "echo no voice >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("no voice") && error.contains('3'), "{error}");
    }
}
