//! Tools that are unknown, hang, fail or print rubbish: the agent says so and goes on.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use sa_tests::{Outcome, Sample, Talk, samples};

/// Tools that the runtime itself brings: they cannot be made to fail.
const BUILT_IN: [&str; 9] = ["time", "date", "timer", "calc", "alarm", "reminder", "volume", "stop", "repeat"];

/// A sample that the agent answers by calling a program, whatever else it should have done: these tests are about the call.
fn with_program() -> Result<(Sample, String)> {
    static FOUND: OnceLock<Option<(Sample, String)>> = OnceLock::new();
    let search = || -> Result<Option<(Sample, String)>> {
        let (samples, folder) = (samples()?, tempfile::tempdir()?);
        let talk = samples.iter().fold(Talk::new(), |talk, sample| talk.input(&sample.wav));
        let outcome = talk.output_dir(folder.path()).flag("--fresh").run()?.succeeded()?;
        let turns = outcome.of_kind("turn")?;
        let tool = |turn: &serde_json::Value| turn["calls"][0]["call"].as_str().and_then(|call| call.split(' ').next()).map(str::to_owned);
        let called = samples.into_iter().zip(&turns).filter_map(|(sample, turn)| Some((sample, tool(turn)?)));
        Ok(called.into_iter().find(|(_, tool)| !BUILT_IN.contains(&&**tool)))
    };
    FOUND.get_or_init(|| search().expect("the samples are asked")).clone().context("no sample calls a program")
}

/// Asks a question whose tool is this shell script.
fn ask(script: &str, folder: &Path) -> Result<Outcome> {
    let (sample, tool) = with_program()?;
    let program = folder.join("tool.sh");
    fs::write(&program, script)?;
    let table = format!("[tool.{tool}]\nprogram = [\"sh\", {:?}]\nseconds = 1.0\n", program.display().to_string());
    let tools = folder.join("tools.toml");
    fs::write(&tools, table)?;
    Talk::new().input(&sample.wav).output(&folder.join("a.wav")).tools(&tools).run()?.succeeded()
}

/// The call was made, its failure is told, and there is a spoken answer.
fn failure_is_told(outcome: &Outcome, folder: &Path) -> Result<()> {
    ensure!(outcome.of_kind("call")?.len() == 1, "no call: {}", outcome.brief());
    let result = outcome.of_kind("result")?;
    ensure!(result.len() == 1 && result[0]["problem"].is_string(), "the failure is not told: {}", outcome.brief());
    let turn = outcome.of_kind("turn")?;
    ensure!(turn.len() == 1 && !turn[0]["reply_text"].as_str().unwrap_or("").is_empty(), "no reply: {}", outcome.brief());
    ensure!(fs::metadata(folder.join("a.wav"))?.len() > 8_000, "no spoken answer");
    Ok(())
}

#[test]
fn an_unknown_tool() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (sample, _) = with_program()?;
    let outcome = Talk::new().input(&sample.wav).output(&folder.path().join("a.wav")).run()?.succeeded()?;
    failure_is_told(&outcome, folder.path())
}

#[test]
fn a_tool_that_hangs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // a child of the tool holds the pipe open: killing the tool alone would not do
    let outcome = ask("sleep 100 & sleep 100", folder.path())?;
    ensure!(outcome.seconds < 30.0, "waited {} s for a tool with a limit of 1 s", outcome.seconds);
    failure_is_told(&outcome, folder.path())
}

#[test]
fn a_tool_that_fails() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let outcome = ask("echo something; exit 3", folder.path())?;
    failure_is_told(&outcome, folder.path())
}

#[test]
fn a_tool_that_prints_rubbish() -> Result<()> {
    for script in
        ["head -c 3000 /dev/urandom", "printf '\\377\\000<end> <call> {}\\n'", "yes garbage | head -c 10000000", "exec cat /dev/zero"]
    {
        let folder = tempfile::tempdir()?;
        let outcome = ask(script, folder.path())?;
        ensure!(outcome.of_kind("turn")?.len() == 1, "{script}: {}", outcome.brief());
        ensure!(outcome.of_kind("call")?.len() == 1, "{script}: words of a result became a call: {}", outcome.brief());
        ensure!(outcome.peak_mb < 150.0, "{script}: peak {} MB", outcome.peak_mb);
    }
    Ok(())
}

#[test]
fn a_program_that_is_not_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (sample, tool) = with_program()?;
    let tools = folder.path().join("tools.toml");
    fs::write(&tools, format!("[tool.{tool}]\nprogram = [\"/nowhere/at-all\"]\n"))?;
    let outcome = Talk::new().input(&sample.wav).output(&folder.path().join("a.wav")).tools(&tools).run()?.succeeded()?;
    failure_is_told(&outcome, folder.path())
}

#[test]
fn a_tools_file_that_cannot_be_read_as_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tools = folder.path().join("tools.toml");
    for text in [
        "not = [toml",
        "[tool.light]\nprogram = 3\n",
        "[tool.light]\nprogram = []\n",
        "[tool.light]\nunknown_key = true\nprogram = [\"true\"]\n",
    ] {
        fs::write(&tools, text)?;
        let outcome = Talk::new().input(&samples()?[0].wav).output(&folder.path().join("a.wav")).tools(&tools).run()?;
        outcome.failed_with(1, "tools.toml").with_context(|| text.to_owned())?;
    }
    Ok(())
}

/// What the example file named in the README does not do itself stays with the runtime: an alarm of `home.sh` would never ring.
#[test]
fn the_example_leaves_the_built_in_tools_alone() -> Result<()> {
    let path = sa_tests::root().join("device/examples/tools.toml");
    let file: toml::Table = fs::read_to_string(&path)?.parse()?;
    let tools = file["tool"].as_table().context("[tool.NAME] tables")?;
    ensure!(tools.len() > 10, "{} tools", tools.len());
    let replaced: Vec<_> = tools.keys().filter(|name| BUILT_IN.contains(&name.as_str())).collect();
    ensure!(replaced.is_empty(), "{replaced:?}");
    Ok(())
}
