//! What goes on beside a conversation: timers over restarts, hooks, the events' socket.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::command::{Place, events};
use super::tiny::Tiny;

#[test]
fn what_fell_due_while_nobody_ran_is_told_once() {
    let place = Place::new(&Tiny::default());
    std::fs::create_dir(place.path("state")).expect("writable");
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let entry = |at: u64, words: &str| format!("{{\"kind\":\"timer\",\"at\":{at},\"words\":\"{words}\"}}");
    let (past, future) = (entry(seconds - 100, "five minutes"), entry(seconds + 5000, "two hours"));
    std::fs::write(place.path("state/state.json"), format!("{{\"version\":1,\"entries\":[{past},{future}]}}")).expect("writable");
    let talk = ["talk", "--bundle", "bundle", "--input", "q.wav", "--state", "state", "--json"];
    let output = place.run(&talk);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let due: Vec<_> = events(&output).into_iter().filter(|event| event["event"] == "due").collect();
    assert_eq!(due.len(), 1, "{due:?}");
    assert_eq!((&due[0]["kind"], &due[0]["words"], &due[0]["missed"]), (&"timer".into(), &"five minutes".into(), &false.into()));
    assert!(due[0]["late_s"].as_f64().expect("a number") >= 100.0);
    let state = std::fs::read_to_string(place.path("state/state.json")).expect("there");
    assert!(state.contains("\"rang\":") && state.contains("two hours"), "{state}");
    std::fs::write(place.path("state/state.json"), "{").expect("writable");
    let output = place.run(&talk);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.contains("state.json.bad"), "{message}");
}

#[test]
fn hooks_run_for_events_and_their_failures_are_told() {
    let place = Place::new(&Tiny::default());
    let hook = |name: &str, script: &str| format!("[hook.{name}]\nprogram = [\"./shell\", \"-c\", {script:?}]\n");
    let out = place.path("out");
    std::os::unix::fs::symlink("/bin/sh", place.path("shell")).expect("writable");
    let write = format!("cat >{}", out.display());
    let settings = format!("bundle = \"bundle\"\n{}{}", hook("turn", &write), hook("listening", "exit 3"));
    std::fs::write(place.path("sa.toml"), settings).expect("writable");
    let output = place.run(&["talk", "--config", "sa.toml", "--input", "q.wav"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.contains("hook `listening`: ./shell failed"), "{message}");
    let event: serde_json::Value = serde_json::from_slice(&std::fs::read(out).expect("there")).expect("JSON");
    assert_eq!((&event["event"], &event["reply_text"]), (&"turn".into(), &"okay".into()));
    std::fs::write(place.path("sa.toml"), "bundle = \"bundle\"\n[hook.dance]\nprogram = [\"x\"]\n").expect("writable");
    let (code, message) = place.fails(&["talk", "--config", "sa.toml", "--input", "q.wav"]);
    assert!(code == 1 && message.contains("hook `dance`") && message.contains("listening"), "{message}");
}

#[test]
fn the_socket_tells_everything_in_order() {
    let place = Place::new(&Tiny::default());
    let inputs = ["q.wav"; 40];
    let talk = [&["talk", "--bundle", "bundle", "--events-socket", "events", "--realtime", "--json", "--input"][..], &inputs].concat();
    let mut child = place.command(&talk).stdout(Stdio::piped()).spawn().expect("starts");
    let started = Instant::now();
    let reader = loop {
        match UnixStream::connect(place.path("events")) {
            Ok(reader) => break reader,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // Its own output must not fill the pipe.
    let mut stdout = child.stdout.take().expect("piped");
    let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let mut kinds: Vec<String> = Vec::new();
    for line in BufReader::new(reader).lines() {
        let event: serde_json::Value = serde_json::from_str(&line.expect("open")).expect("JSON");
        let kind = event["event"].as_str().expect("a kind").to_owned();
        if kinds.is_empty() && kind != "listening" {
            continue;
        }
        if kinds.last() != Some(&kind) {
            kinds.push(kind);
        }
        if kinds.last().is_some_and(|kind| kind == "idle") {
            break;
        }
    }
    assert_eq!(kinds, ["listening", "thinking", "heard", "call", "result", "text", "speaking", "speech", "turn", "idle"]);
    child.kill().expect("runs");
    child.wait().expect("ends");
    drop(drain.join());
}
