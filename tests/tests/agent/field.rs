//! The field log of the shipped agent: what it decided is decided again, from audio and from units alone.

use anyhow::{Context, Result, bail, ensure};
use sa_device::audio::live::Room;
use sa_device::conversation::Control;
use sa_device::engine::Tract;
use sa_device::field::replay::replay;
use sa_device::field::{self, FieldLog, Keep, Logged};
use sa_device::pipeline::{Past, Settings, Stopped};
use sa_device::turns::State;
use sa_tests::{Talk, bundle, conversations, tools_for};

use crate::live::{Bench, agent_with};

#[test]
fn a_conversation_is_replayed_to_the_same_decisions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // One whose later question is understood only after the one before.
    let conversation = conversations()?.into_iter().find(|turns| turns.len() > 1).context("no sample follows another")?;
    let tools = tools_for(&conversation, folder.path())?;
    for (name, units_only) in [("audio", false), ("units", true)] {
        let log = folder.path().join(name);
        let log = log.to_str().context("a temporary folder's path is text")?;
        let mut talk = Talk::new().tools(&tools).flag("--field-log").flag(log);
        for sample in &conversation {
            talk = talk.input(&sample.wav);
        }
        let talk = if units_only { talk.flag("--field-log-units-only") } else { talk };
        let turns = talk.run()?.succeeded()?.of_kind("turn")?.len();
        let bundle = bundle();
        let replay = ["replay", log, "--json", "--bundle", bundle.to_str().context("the bundle's path is text")?];
        let outcome = Talk::bare(&replay).run()?.succeeded().context("while replaying")?;
        let total = &outcome.of_kind("replayed")?[0];
        ensure!(total["same"] == turns && total["turns"] == turns && turns > 1, "{name}: {}", outcome.stdout);
    }
    Ok(())
}

/// A live conversation, with everything in it that the agent remembers otherwise than it said it: an answer that is interrupted, one that
/// is cut before its first word, a question that ends in a stop word after its tool was at work, and five quiet minutes.
#[test]
fn a_live_conversation_is_replayed_to_the_same_decisions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("log");
    let open = || agent_with(&Tract, Settings::default());
    let agent = open();
    let keep = Keep { bytes: 100_000_000, audio: true };
    let mut log = FieldLog::open(&dir, keep, agent.bundle(), &Settings::default())?;
    let mut bench = Bench::with(Room { seed: 7, stall_every: f64::INFINITY, ..Room::default() }, agent, |settings| {
        settings.turns.idle.timeout = std::time::Duration::from_secs(20);
        settings.stop_words = vec!["calculate one hundred divided by five please".to_owned()];
    });
    let (told, happenings) = std::sync::mpsc::channel();
    bench.also = Box::new(move |happening| drop(told.send(happening.clone())));
    // Remembered whole.
    bench.say("11-lights");
    bench.until(State::Speaking, 15.0);
    bench.until(State::Idle, 20.0);
    // Remembered as far as it was heard.
    bench.say("01-agenda");
    bench.until(State::Speaking, 15.0);
    bench.run(0.8);
    bench.interrupt("17-smalltalk").context("it stops")?;
    bench.until(State::Speaking, 15.0);
    // Not a word of this one is heard: a key is pressed.
    bench.conversation.controls().enqueue(Control::KeyDown).ok().context("room")?;
    bench.run(0.1);
    bench.conversation.controls().enqueue(Control::KeyUp).ok().context("room")?;
    bench.until(State::Idle, 15.0);
    // Thrown away when its calculation is done.
    bench.say("03-arithmetic");
    bench.until(State::Thinking, 15.0);
    bench.until(State::Idle, 15.0);
    bench.run(25.0);
    // Here everything is forgotten.
    bench.say("11-lights");
    bench.until(State::Speaking, 15.0);
    bench.until(State::Idle, 20.0);
    bench.run(1.0);
    happenings.try_iter().for_each(|happening| log.happening(&happening));
    ensure!(log.close().is_none(), "the disk has room");

    let mut agent = open();
    let logged = field::read(&dir)?;
    for turn in &logged {
        let (_, differences) = replay(&mut agent, turn)?;
        ensure!(differences.is_empty(), "{}: {differences:#?}", turn.name());
    }
    let [lights, battery, talk, sum, again] = &logged[..] else { bail!("{} turns were logged", logged.len()) };
    let of = |turn: &Logged| Past {
        transcript: turn.turn.transcript.clone(),
        calls: turn.turn.calls.clone(),
        reply_text: turn.turn.reply_text.clone(),
    };
    ensure!(battery.turn.stopped == Stopped::Interrupted && !battery.turn.reply_text.is_empty(), "{battery:#?}");
    ensure!(talk.turn.stopped == Stopped::Interrupted && talk.turn.reply_text.is_empty() && talk.turn.calls.is_empty(), "{talk:#?}");
    ensure!(sum.abandoned && sum.turn.calls.len() == 1, "{sum:#?}");
    ensure!(![lights, battery, talk, again].iter().any(|turn| turn.abandoned), "{logged:#?}");
    ensure!(lights.context.is_empty() && battery.context == [of(lights)] && talk.context == [of(lights), of(battery)], "{logged:#?}");
    ensure!(sum.context == talk.context, "of what is cut before its first word nothing is remembered: {:#?}", sum.context);
    ensure!(again.context.is_empty(), "everything is forgotten: {:#?}", again.context);
    Ok(())
}
