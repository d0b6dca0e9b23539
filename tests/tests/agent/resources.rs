//! Memory, start-up, and the same answer twice.

use anyhow::{Context, Result, ensure};
use sa_tests::{Talk, conversations, plain_question, samples};

const PEAK_MB: f64 = 150.0;
const READY_SECONDS: f64 = 1.0;

#[test]
fn memory_stays_within_its_bar() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut talk = Talk::new().output_dir(folder.path()).flag("--fresh");
    for sample in samples()? {
        talk = talk.input(&sample.wav);
    }
    let outcome = talk.run()?.succeeded()?;
    println!("peak {:.0} MB", outcome.peak_mb);
    ensure!(outcome.peak_mb > 1.0 && outcome.peak_mb <= PEAK_MB, "peak {:.0} MB, the bar is {PEAK_MB} MB", outcome.peak_mb);
    Ok(())
}

/// The bar is for a machine at rest: the best of three, so that another test beside this one does not decide.
#[test]
fn it_is_ready_in_a_second() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let question = samples()?.swap_remove(0).wav;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let outcome = Talk::new().input(&question).output(&folder.path().join("a.wav")).run()?.succeeded()?;
        let ready = outcome.of_kind("ready")?;
        let milliseconds = ready.first().and_then(|event| event["ms"].as_f64()).context("no ready event")?;
        best = best.min(milliseconds / 1e3);
    }
    ensure!(best <= READY_SECONDS, "ready after {best} s");
    Ok(())
}

#[test]
fn the_same_question_gets_the_same_answer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let question = plain_question()?.wav;
    let mut answers = Vec::new();
    for name in ["a.wav", "b.wav"] {
        let path = folder.path().join(name);
        let outcome = Talk::new().input(&question).output(&path).run()?.succeeded()?;
        let turn = outcome.of_kind("turn")?.remove(0);
        answers.push((turn["reply_text"].clone(), turn["units"].clone(), std::fs::read(&path)?));
    }
    ensure!(answers[0] == answers[1], "two runs differ: {} / {}", answers[0].0, answers[1].0);
    Ok(())
}

/// `--fresh` forgets: in a pair of questions, the second is answered as if it had been asked alone.
#[test]
fn fresh_forgets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(pair) = conversations()?.into_iter().find(|turns| turns.len() > 1) else {
        return Ok(());
    };
    let alone = Talk::new().input(&pair[1].wav).output(&folder.path().join("a.wav")).run()?.succeeded()?;
    let fresh = Talk::new().input(&pair[0].wav).input(&pair[1].wav).flag("--fresh").output_dir(folder.path()).run()?.succeeded()?;
    let (alone, fresh) = (alone.of_kind("turn")?.remove(0), fresh.of_kind("turn")?.remove(1));
    ensure!(alone["reply_text"] == fresh["reply_text"] && alone["units"] == fresh["units"], "{alone} / {fresh}");
    Ok(())
}
