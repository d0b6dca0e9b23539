//! Timers, alarms and reminders in a live conversation: they are heard, at any volume, until somebody stops them.

use std::time::{Duration, Instant};

use sa_device::audio::live::Room;
use sa_device::conversation::Control;
use sa_device::engine::Tract;
use sa_device::pipeline::Settings;
use sa_device::tools::Now;
use sa_device::turns::State;
use sa_tests::{LOUD, onset};

use super::live::{Bench, agent, agent_with, in_file_mode, voice};

/// Frames of 10 ms in which the speaker is louder than this are heard.
const HEARD: f64 = 0.01;

fn room() -> Room {
    Room { seed: 9, stall_every: f64::INFINITY, ..Room::default() }
}

/// Frames that are heard within so many seconds.
fn heard(bench: &mut Bench, seconds: f64) -> usize {
    let mut frame = || {
        bench.conversation.device().take_loudness();
        bench.frame();
        bench.conversation.device().take_loudness() > HEARD
    };
    (0..(seconds * 100.0) as usize).filter(|_| frame()).count()
}

/// Until something is heard; by the clock on the wall, as timers are.
fn until_heard(bench: &mut Bench) {
    let started = Instant::now();
    while heard(bench, 0.05) == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "it does not ring: {:?}", bench.states);
    }
}

#[test]
fn a_timer_rings_until_it_is_stopped() {
    let mut agent = agent();
    let stop = in_file_mode(&mut agent, "12-locks");
    for call in ["volume set zero", "timer set two seconds"] {
        assert_eq!(agent.tools().call(call).words, "ok");
    }
    let mut bench = Bench::with(room(), agent, |live| live.stop_words = vec![stop]);
    assert_eq!(heard(&mut bench, 0.5), 0);
    until_heard(&mut bench);
    assert_eq!(bench.conversation.state(), State::Idle);
    bench.run(0.3);
    let second = heard(&mut bench, 3.0);
    assert!((75..110).contains(&second), "two tones a second, though the volume is zero: {second}");
    // A question is heard without it, and answered; then it rings on.
    bench.say("10-facts");
    assert!(bench.listens(5.0));
    bench.run(0.3);
    assert_eq!(heard(&mut bench, 1.0), 0, "it gives way to a voice");
    assert!(bench.answers(10.0), "{:?}", bench.states);
    bench.until(State::Idle, 20.0);
    until_heard(&mut bench);
    // Who talks on and on does not silence it.
    let voice = voice("17-smalltalk");
    let words = onset(&voice).expect("words")..voice.iter().rposition(|x| x.abs() > LOUD).expect("words");
    bench.hear(&voice[words].iter().copied().cycle().take(8 * 16_000).collect::<Vec<f32>>());
    assert!(bench.listens(5.0));
    bench.run(4.0);
    assert_eq!(bench.conversation.state(), State::Listening);
    assert!(heard(&mut bench, 2.0) > 40);
    // The stop word.
    bench.until(State::Idle, 60.0);
    bench.say("12-locks");
    assert!(bench.listens(5.0));
    bench.until(State::Idle, 10.0);
    assert_eq!(heard(&mut bench, 3.0), 0, "it was told to stop");
}

#[test]
fn a_button_silences_what_rings() {
    let mut agent = agent();
    assert_eq!(agent.tools().call("timer set one second").words, "ok");
    let mut bench = Bench::with(room(), agent, |_| ());
    until_heard(&mut bench);
    bench.conversation.controls().enqueue(Control::Stop).expect("there is room");
    bench.run(0.4);
    assert_eq!(heard(&mut bench, 3.0), 0);
}

/// A conversation in which a reminder of an agent of these settings is just beginning to be heard. It fell due so many seconds from now.
fn reminds(settings: Settings, seconds: f64) -> Bench {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let entry = serde_json::json!({ "kind": "reminder", "at": Now::read().wall + seconds, "words": "call mom" });
    let state = serde_json::json!({ "version": 1, "entries": [entry] });
    std::fs::write(dir.path().join("state.json"), state.to_string()).expect("writable");
    let mut agent = agent_with(&Tract, settings);
    assert_eq!(agent.tools().keep_state(dir.path(), Now::read()).expect("ours"), None);
    let mut bench = Bench::with(room(), agent, |_| ());
    let started = Instant::now();
    while bench.conversation.state() != State::Speaking {
        bench.frame();
        assert!(started.elapsed() < Duration::from_secs(20), "nothing is said");
    }
    bench
}

/// How many frames are heard of it.
fn reminded(settings: Settings, seconds: f64) -> usize {
    let mut bench = reminds(settings, seconds);
    let frames = heard(&mut bench, 5.0);
    assert_eq!((bench.conversation.state(), heard(&mut bench, 3.0)), (State::Idle, 0), "once");
    assert!(bench.problems.is_empty() && bench.turns.is_empty(), "{:?}", bench.problems);
    frames
}

#[test]
fn a_reminder_is_said_behind_a_chime() {
    // The tones are heard for 0.3 s, and "your reminder call mom" takes more than a second.
    for seconds in [2.0, -7200.0] {
        let frames = reminded(Settings::default(), seconds);
        assert!((80..300).contains(&frames), "{frames}");
    }
}

#[test]
fn a_reminder_that_cannot_be_said_rings() {
    let frames = reminded(Settings { reply_seconds: 0.1, ..Settings::default() }, 1.0);
    assert!((75..100).contains(&frames), "three pairs of tones: {frames}");
}

/// Somebody speaks into the chime: then the words were not heard, and are said when there is room for them.
#[test]
fn a_reminder_of_which_only_the_chime_was_heard_is_said_again() {
    let mut bench = reminds(Settings::default(), 1.0);
    bench.run(0.1);
    bench.interrupt("10-facts").expect("it stops");
    bench.until(State::Listening, 2.0);
    assert!(bench.answers(15.0), "{:?}", bench.states);
    // As soon as the answer is over.
    bench.until(State::Thinking, 20.0);
    bench.until(State::Speaking, 5.0);
    let frames = heard(&mut bench, 5.0);
    assert!((80..300).contains(&frames), "{frames}");
    assert_eq!((bench.conversation.state(), heard(&mut bench, 3.0)), (State::Idle, 0), "once");
    assert_eq!(bench.turns.len(), 1, "the question");
}
