//! One end-to-end test: every committed question is asked, and text, tool call and speech are checked.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sa_tests::{Outcome, Sample, Talk, conversations, levels, read_wav, root, samples, tools_for};

/// Of the sample questions, so many percent must be answered exactly: the shipped model gets 89 (24 of 27), and must not get
/// worse unnoticed. The bar that it has not reached is 95 (see the README's table); raise this with every better model.
const RIGHT_PERCENT: usize = 90;

#[test]
fn the_samples_are_answered() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let conversations = conversations()?;
    ensure!(conversations.len() >= 10, "only {} sample conversations", conversations.len());
    let (mut right, mut all) = (0, 0);
    for (index, conversation) in conversations.iter().enumerate() {
        let answers = folder.path().join(index.to_string());
        std::fs::create_dir(&answers)?;
        let mut talk = Talk::new().output_dir(&answers).tools(&tools_for(conversation, &answers)?);
        for sample in conversation {
            talk = talk.input(&sample.wav);
        }
        let outcome = talk.run()?.succeeded()?;
        for (turn, sample) in conversation.iter().enumerate() {
            all += 1;
            match answered(&outcome, turn, sample) {
                Ok(()) => right += 1,
                Err(error) => println!("{}: {error:#}", sample.wav.display()),
            }
            speech_is_sound(&outcome, turn, &answers.join(sample.wav.file_name().context("no file name")?))
                .with_context(|| format!("in the answer to '{}'", sample.text))?;
        }
    }
    println!("{right} of {all} right");
    ensure!(right * 100 >= all * RIGHT_PERCENT, "{right} of {all} sample questions answered exactly");
    Ok(())
}

/// A conversation that is taken up again by another process goes on as if it had never ended.
#[test]
fn an_earlier_conversation_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let conversation = conversations()?.into_iter().find(|turns| turns.len() == 2).context("no sample conversation of two turns")?;
    let tools = tools_for(&conversation, folder.path())?;
    let talk = || Talk::new().output_dir(folder.path()).tools(&tools);
    let whole = talk().input(&conversation[0].wav).input(&conversation[1].wav).run()?.succeeded()?;
    let turns = whole.of_kind("turn")?;
    let history = folder.path().join("history.jsonl");
    std::fs::write(&history, format!("{}\n", turns[0]))?;
    let later = talk().input(&conversation[1].wav).flag("--history").flag(history.to_str().context("text")?).run()?.succeeded()?;
    let alone = talk().input(&conversation[1].wav).run()?.succeeded()?;
    let said = |outcome: &Outcome| anyhow::Ok(outcome.of_kind("turn")?[0]["units"].clone());
    ensure!(said(&later)? == turns[1]["units"], "it answers otherwise than in one conversation");
    ensure!(said(&alone)? != turns[1]["units"], "the question does not depend on the turn before: no test");
    Ok(())
}

/// Call and reply must both be exact.
fn answered(outcome: &Outcome, turn: usize, sample: &Sample) -> Result<()> {
    let turns = outcome.of_kind("turn")?;
    let turn = turns.get(turn).context("the turn is missing")?;
    let calls: Vec<&str> = turn["calls"].as_array().context("no calls")?.iter().filter_map(|call| call["call"].as_str()).collect();
    ensure!(calls == sample.call.as_slice(), "calls {calls:?}, expected {:?}", sample.call);
    ensure!(turn["reply_text"] == *sample.reply, "reply {}, expected '{}'", turn["reply_text"], sample.reply);
    Ok(())
}

/// Duration, level, no clipping, no click at either end. (Whether it is understood is for the judge: tests/judge.)
fn speech_is_sound(outcome: &Outcome, turn: usize, answer: &Path) -> Result<()> {
    let turn = &outcome.of_kind("turn")?[turn];
    let words = turn["reply_text"].as_str().context("no reply_text")?.split(' ').count() as f32;
    let (samples, spec) = read_wav(answer)?;
    ensure!((spec.sample_rate, spec.channels, spec.bits_per_sample) == (16_000, 1, 16), "{spec:?}");
    let seconds = samples.len() as f32 / 16_000.0;
    ensure!((0.12 * words..1.0 * words + 1.0).contains(&seconds), "{seconds} s for {words} words");
    let (rms, peak, clipped) = levels(&samples);
    ensure!((0.01..0.3).contains(&rms), "root mean square {rms}");
    ensure!(peak > 0.05 && clipped < 1e-3, "peak {peak}, {} % clipped", 100.0 * clipped);
    let edge = |x: &[f32]| x.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    let (start, end) = (edge(&samples[..16]), edge(&samples[samples.len() - 16..]));
    ensure!(start < 0.1 && end < 0.1, "a click: it starts at {start} and ends at {end}");
    Ok(())
}

/// The settings that are shipped for boards are read, and lead to the same answer.
#[test]
fn the_boards_settings_work() -> Result<()> {
    let question = conversations()?.swap_remove(0).swap_remove(0).wav;
    let folder = tempfile::tempdir()?;
    let answer = folder.path().join("a.wav");
    let mut answers = Vec::new();
    for entry in std::fs::read_dir(root().join("firmware-config/boards"))? {
        let settings = entry?.path();
        let settings = settings.to_str().context("a path of this repository is text")?;
        let outcome = Talk::bare(&["talk", "--json", "--config", settings]).input(&question).output(&answer).run()?.succeeded()?;
        answers.push(outcome.of_kind("turn")?[0]["reply_text"].clone());
    }
    ensure!(answers.len() >= 4 && answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    Ok(())
}

/// The demo's tools know every call of the samples.
#[test]
fn the_demo_can_do_what_the_samples_ask() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut talk = Talk::new().output_dir(folder.path()).tools(&root().join("device/examples/tools.toml")).flag("--fresh");
    talk = talk.environment("SA_HOME_STATE", &folder.path().join("home.state"));
    for sample in samples()? {
        talk = talk.input(&sample.wav);
    }
    let outcome = talk.run()?.succeeded()?;
    let results = outcome.of_kind("result")?;
    let problems: Vec<_> = results.iter().filter(|result| result["problem"].is_string()).collect();
    ensure!(results.len() >= 10 && problems.is_empty(), "{} calls, problems: {problems:?}", results.len());
    Ok(())
}
