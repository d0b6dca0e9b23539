//! The field log as its users have it: written by `sa-agent talk`, replayed by `sa-agent replay`.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use super::command::{Place, events, listing};
use super::tiny::{Tiny, noise, wav};

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn line(place: &Place, name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(place.path(&format!("log/{name}.jsonl"))).expect("there")).expect("JSON")
}

/// A place with three questions of different lengths and loudness, and one of another rate.
fn place() -> Place {
    let place = Place::new(&Tiny::default());
    wav(&place.path("silent.wav"), &[0.0; 8000]);
    let spec = hound::WavSpec { channels: 1, sample_rate: 22_050, bits_per_sample: 32, sample_format: hound::SampleFormat::Float };
    let mut writer = hound::WavWriter::create(place.path("r.wav"), spec).expect("writable");
    noise(20_000).into_iter().for_each(|sample| writer.write_sample(sample).expect("writable"));
    writer.finalize().expect("writable");
    place
}

const TALK: [&str; 10] = ["talk", "--bundle", "bundle", "--input", "q.wav", "silent.wav", "r.wav", "q.wav", "--field-log", "log"];

#[test]
fn a_log_holds_every_turn_and_replays_to_the_same_decisions() {
    let place = place();
    let output = place.run(&[&TALK[..], &["--json"]].concat());
    succeeded(&output);
    let turns: Vec<_> = events(&output).into_iter().filter(|event| event["event"] == "turn").collect();
    assert_eq!(turns.len(), 4);
    let wavs = listing(&place.path("log")).into_iter().filter(|name| name.ends_with(".wav")).count();
    assert_eq!(wavs, 4);
    assert_eq!(std::fs::metadata(place.path("log")).expect("there").permissions().mode() & 0o777, 0o700);
    for (n, told) in turns.iter().enumerate() {
        let logged = line(&place, &format!("00001-{:06}", n + 1));
        for key in ["turn_id", "transcript", "reply_text", "calls", "units", "question_units", "stopped", "timing_ms"] {
            assert_eq!(logged["turn"][key], told[key], "{key}");
        }
        assert_eq!(logged["bundle"]["name"], "tiny");
        assert_eq!(logged["bundle"]["sha256"].as_str().map(str::len), Some(64));
        assert!(logged["settings"]["calls"].is_u64() && logged["time"].as_f64().expect("a time") > 1.7e9);
        // The silence between is not remembered.
        assert_eq!(logged["context"].as_array().map(Vec::len), Some([0, 1, 1, 2][n]), "{n}");
    }
    let replay = ["replay", "log", "--bundle", "bundle"];
    let output = place.run(&replay);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("4 turns: 4 the same, 0 different, 0 not replayed"), "{text}");
    // A decision that was another one, and a file that is gone, are found.
    let path = place.path("log/00001-000003.jsonl");
    let changed = std::fs::read_to_string(&path).expect("there").replace("\"reply_text\":\"okay\"", "\"reply_text\":\"nine\"");
    std::fs::write(&path, changed).expect("writable");
    std::fs::remove_file(place.path("log/00001-000004.wav")).expect("there");
    let output = place.run(&[&replay[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let reports = events(&output);
    let total = reports.last().expect("a total");
    assert_eq!((&total["same"], &total["different"], &total["failed"]), (&2.into(), &1.into(), &1.into()), "{reports:?}");
    assert_eq!(reports[2]["differences"][0]["decision"], "reply_text");
    assert_eq!((&reports[2]["differences"][0]["logged"], &reports[2]["differences"][0]["now"]), (&"nine".into(), &"okay".into()));
    assert!(reports[3]["problem"].as_str().expect("told").contains("00001-000004.wav"));
}

#[test]
fn another_bundle_shows_what_it_would_have_done() {
    let place = place();
    succeeded(&place.run(&TALK));
    Tiny { seed: 8, ..Tiny::default() }.write(&place.path("other")).expect("fits together");
    let output = place.run(&["replay", "log", "--bundle", "other", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let reports = events(&output);
    assert_eq!(reports.last().expect("a total")["other_bundle"], 4);
    let decisions: Vec<_> = reports[0]["differences"].as_array().expect("some").iter().map(|d| d["decision"].clone()).collect();
    assert!(decisions.contains(&"question_units".into()), "{decisions:?}");
}

#[test]
fn without_audio_the_units_are_replayed() {
    let place = place();
    succeeded(&place.run(&[&TALK[..], &["--field-log-units-only"]].concat()));
    assert!(listing(&place.path("log")).iter().all(|name| !name.ends_with(".wav")));
    let output = place.run(&["replay", "log", "--bundle", "bundle"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("4 the same") && text.contains("from units"), "{text}");
}

#[test]
fn the_log_is_bounded_and_off_unless_asked_for() {
    let place = Place::new(&Tiny::default());
    wav(&place.path("long.wav"), &noise(16_000 * 3));
    let before = listing(place.dir.path());
    succeeded(&place.run(&["talk", "--bundle", "bundle", "--input", "q.wav"]));
    assert_eq!(listing(place.dir.path()), before);
    // Twelve turns of 96 kB each are more than a megabyte.
    let inputs = ["long.wav"; 12];
    let talk = [&["talk", "--bundle", "bundle", "--field-log", "log", "--field-log-mb", "1", "--input"][..], &inputs].concat();
    succeeded(&place.run(&talk));
    let names = listing(&place.path("log"));
    let total: u64 = names.iter().map(|name| std::fs::metadata(place.path("log").join(name)).expect("there").len()).sum();
    assert!((800_000..=1_000_000).contains(&total), "{total} bytes: {names:?}");
    assert!(names.contains(&"00001-000012.wav".to_owned()) && !names.contains(&"00001-000001.wav".to_owned()), "{names:?}");
    let (code, message) = place.fails(&["talk", "--bundle", "bundle", "--input", "q.wav", "--field-log", "bundle"]);
    assert!(code == 1 && message.contains("is no field log"), "{message}");
    let (code, message) = place.fails(&["replay", "bundle", "--bundle", "bundle"]);
    assert!(code == 1 && message.contains("is no field log"), "{message}");
}

/// A file that may not grow beyond a limit fails in the middle, as on a full disk.
#[test]
fn a_full_disk_costs_the_newest_turn_only() {
    let place = place();
    succeeded(&place.run(&TALK));
    let before = listing(&place.path("log"));
    let talk = place.command(&[&TALK[..], &["--json"]].concat());
    let mut limited = std::process::Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"").arg(talk.get_program()).args(talk.get_args());
    let output = limited.current_dir(place.dir.path()).stdin(Stdio::null()).output().expect("starts");
    succeeded(&output);
    assert_eq!(events(&output).iter().filter(|event| event["event"] == "turn").count(), 4, "the conversation goes on");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("the conversation goes on without its log") && message.lines().count() == 1, "{message}");
    let after = listing(&place.path("log"));
    assert!(before.iter().all(|name| after.contains(name)), "{before:?} → {after:?}");
    assert!(after.iter().all(|name| !name.ends_with(".partial")), "{after:?}");
    succeeded(&place.run(&["replay", "log", "--bundle", "bundle"]));
}

/// The turn that somebody will ask about: the answer cannot be written, as its place is a folder.
#[test]
fn a_turn_that_fails_is_logged_as_far_as_it_came() {
    let place = place();
    std::fs::create_dir_all(place.path("answers/r.wav")).expect("writable");
    let talk = ["talk", "--bundle", "bundle", "--input", "q.wav", "r.wav", "--output-dir", "answers", "--field-log", "log"];
    let output = place.run(&talk);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("r.wav"), "{message}");
    let turn = &line(&place, "00001-000002")["turn"];
    assert_eq!((&turn["stopped"], &turn["transcript"], &turn["reply_text"]), (&"failed".into(), &"light on".into(), &"okay".into()));
    assert!(turn["problem"].as_str().expect("told").contains("r.wav"), "{turn}");
    assert!(place.path("log/00001-000002.wav").is_file());
    // Now it does not fail.
    let output = place.run(&["replay", "log", "--bundle", "bundle", "--json"]);
    let reports = events(&output);
    assert_eq!(reports[1]["differences"], serde_json::json!([{ "decision": "stopped", "logged": "failed", "now": "end" }]));
}

#[test]
fn a_kill_costs_the_newest_turn_only() {
    let place = Place::new(&Tiny::default());
    let inputs = ["q.wav"; 50];
    let talk = [&["talk", "--bundle", "bundle", "--field-log", "log", "--json", "--realtime", "--input"][..], &inputs].concat();
    let mut child = place.command(&talk).stdout(Stdio::piped()).spawn().expect("starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut turns = 0;
    while turns < 3 {
        let mut line = String::new();
        assert!(out.read_line(&mut line).expect("open") > 0, "it ended by itself");
        turns += usize::from(line.contains("\"event\":\"turn\""));
    }
    child.kill().expect("runs");
    child.wait().expect("ends");
    drop(out.read_to_end(&mut Vec::new()));
    let whole = |dir: &Path| listing(dir).iter().filter(|name| name.ends_with(".jsonl")).count();
    let kept = whole(&place.path("log"));
    assert!(kept >= 2, "{:?}", listing(&place.path("log")));
    succeeded(&place.run(&["replay", "log", "--bundle", "bundle"]));
    succeeded(&place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "--field-log", "log"]));
    assert_eq!(whole(&place.path("log")), kept + 1);
    assert!(listing(&place.path("log")).iter().any(|name| name.starts_with("00002-")), "a session of its own");
}
