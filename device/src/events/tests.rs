//! A live conversation, as it was recorded, and what its listeners are told.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::conversation::Waited;
use crate::pipeline::{Stopped, Turn};

fn state(at_s: f64, state: State) -> Happening {
    Happening::State { at_s, state }
}

fn turn(turn_id: u64, stopped: Stopped) -> Box<Turn> {
    Box::new(Turn { turn_id, stopped, ..Turn::default() })
}

/// The answer of one turn, which is made within a few frames of the question's end.
fn answered(turn_id: u64, transcript: &str) -> Vec<Happening> {
    let events = [
        Event::Heard { turn_id, transcript: transcript.to_owned(), silence: false, question_s: 1.2 },
        Event::Text { turn_id, text: "okay".to_owned() },
        Event::Speech { turn_id, samples: 3200, answer_s: 0.2 },
        Event::Turn(turn(turn_id, Stopped::End)),
    ];
    events.map(Happening::Agent).into()
}

/// A question that is answered; one whose answer holds for a door and is then interrupted by the next, which is a stop word.
fn recorded() -> Vec<Happening> {
    let waited_ms = Waited { endpoint: 440.0, voice_to_voice: 560.0, ..Waited::default() };
    let settled = |turn_id, stopped| Happening::Settled { turn: turn(turn_id, stopped), waited_ms, question: Vec::new() };
    let mut told = vec![state(1.0, State::Listening), state(2.5, State::Thinking)];
    told.extend(answered(1, "lock the door"));
    told.extend([state(2.6, State::Speaking), settled(1, Stopped::End), state(4.6, State::Idle)]);
    told.extend([state(6.0, State::Listening), state(7.5, State::Thinking)]);
    told.extend(answered(2, "what is on today"));
    told.extend([state(7.6, State::Speaking), state(8.0, State::Interrupted), state(8.4, State::Speaking)]);
    told.extend([state(9.0, State::Interrupted), settled(2, Stopped::Interrupted), state(9.3, State::Listening)]);
    told.push(state(10.0, State::Thinking));
    told.extend(answered(3, "stop"));
    told.extend([Happening::Abandoned { turn: turn(3, Stopped::End), question: Vec::new() }, state(10.1, State::Idle)]);
    told.push(Happening::Problem { message: "the microphone is gone".to_owned() });
    told
}

/// With a socket that is read, and these hooks.
fn events(dir: &Path, hooks: &str) -> (Events, BufReader<UnixStream>) {
    let socket = Socket::bind(&dir.join("socket")).expect("room");
    let reader = UnixStream::connect(dir.join("socket")).expect("listening");
    let hooks = Hooks::new(toml::from_str(hooks).expect("a table")).expect("sound");
    (Events::new(hooks, Some(socket)), BufReader::new(reader))
}

fn lines(reader: BufReader<UnixStream>) -> Vec<Value> {
    reader.lines().map(|line| serde_json::from_str(&line.expect("text")).expect("JSON")).collect()
}

#[test]
fn a_live_conversation_is_told_as_it_is_heard_not_as_it_is_made() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (mut events, reader) = events(dir.path(), "");
    events.signal(&Signal::Ready { bundle: "nano", engine: "tract", ms: 500.0 });
    recorded().iter().for_each(|happening| events.happening(happening));
    assert_eq!(events.close(), None);
    let told = lines(reader);
    let states = ["ready", "listening", "thinking", "speaking", "interrupted", "idle", "error"];
    let seen: Vec<String> = told
        .iter()
        .filter(|event| states.iter().any(|state| event["event"] == *state))
        .map(|event| format!("{} {}", event["event"], event["turn_id"]).replace(['"'], "").replace(" null", ""))
        .collect();
    let expected = "ready, listening, thinking, speaking 1, idle, \
                    listening, thinking, speaking 2, interrupted 2, speaking 2, interrupted 2, listening, thinking, idle, error";
    assert_eq!(seen.join(", "), expected);
    let of = |name: &str| told.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let settled: Vec<_> = of("settled").iter().map(|event| event["turn"]["turn_id"].clone()).collect();
    assert_eq!(settled, [1, 2]);
    assert_eq!(of("settled")[0]["waited_ms"]["voice_to_voice"], 560.0);
    assert_eq!((of("heard").len(), of("speech").len(), of("turn").len(), of("abandoned").len()), (3, 3, 3, 1));
    assert_eq!((of("state").len(), &of("state")[0]["state"]), (13, &Value::from("listening")));
}

#[test]
fn lights_go_off_with_the_program() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (mut events, reader) = events(dir.path(), "");
    events.happening(&state(1.0, State::Listening));
    events.close();
    assert_eq!(lines(reader).last().expect("told")["event"], "idle");
}

/// The hook of `error` is run for the failures of the others, and not for its own, which would never end.
#[test]
fn failures_of_hooks_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let seen = dir.path().join("seen");
    let script = format!("cat >>{}; exit 1", seen.display());
    let (mut events, reader) =
        events(dir.path(), &format!("idle.program = [\"/none\"]\nerror.program = [\"/bin/sh\", \"-c\", {script:?}]"));
    events.signal(&Signal::Idle);
    let mut told = Vec::new();
    let started = std::time::Instant::now();
    while told.len() < 2 {
        told.extend(events.problem());
        assert!(started.elapsed().as_secs() < 60, "{told:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(told[0].contains("hook `idle`") && told[1].contains("hook `error`"), "{told:?}");
    assert_eq!(events.close(), None, "it was not run for itself");
    let seen = std::fs::read_to_string(seen).expect("it ran");
    assert!(seen.lines().count() == 1 && seen.contains("hook `idle`"), "{seen}");
    let errors = lines(reader).iter().filter(|event| event["event"] == "error").count();
    assert_eq!(errors, 2, "the socket has both");
}
