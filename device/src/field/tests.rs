//! The folder: whole turns, the bound, and what is refused.

use super::*;

const LINE: &[u8] = b"{\"version\":1}\n";

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).expect("readable").map(|e| e.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_oldest_turns_give_way() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path().join("log");
    let mut store = Store::open(&dir, 5000).expect("new");
    for turn in 1..=5 {
        store.add(&format!("00001-{turn:06}"), LINE, Some(&[7; 1000])).expect("room");
    }
    let kept = [".sa-field-log", "00001-000004.jsonl", "00001-000004.wav", "00001-000005.jsonl", "00001-000005.wav"];
    assert_eq!(listing(&dir), kept, "two turns of 2,058 bytes are within 5,000");
    let samples: Vec<i16> =
        hound::WavReader::open(dir.join("00001-000004.wav")).expect("a WAV").samples().map(|s| s.expect("whole")).collect();
    assert_eq!(samples, [7; 1000]);
    store.add("00001-000006", LINE, Some(&[7; 9000])).expect("room");
    assert_eq!(listing(&dir), [".sa-field-log", "00001-000006.jsonl", "00001-000006.wav"], "one that is too large stands alone");
    drop(store);
    let store = Store::open(&dir, 5000).expect("a log");
    assert_eq!((store.session(), store.turns.len()), (2, 1));
}

#[test]
fn only_the_owner_can_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("our own");
    let mut store = Store::open(dir.path(), 5000).expect("empty");
    store.add("00001-000001", LINE, Some(&[7; 10])).expect("room");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(dir.path()), 0o700);
    for name in listing(dir.path()) {
        assert_eq!(mode(&dir.path().join(&name)), 0o600, "{name}");
    }
}

#[test]
fn what_a_killed_program_left_is_cleared_away() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    Store::open(dir.path(), 5000).expect("empty").add("00003-000009", LINE, None).expect("room");
    for name in ["00003-000010.wav", "00003-000011.wav.partial", "00003-000011.jsonl.partial"] {
        fs::write(dir.path().join(name), b"half").expect("writable");
    }
    fs::write(dir.path().join("notes.txt"), b"of the user").expect("writable");
    assert_eq!(Store::open(dir.path(), 5000).expect("a log").session(), 4);
    assert_eq!(listing(dir.path()), [".sa-field-log", "00003-000009.jsonl", "notes.txt"]);
}

#[test]
fn a_failed_write_costs_its_own_turn_only() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut store = Store::open(dir.path(), 3000).expect("empty");
    store.add("00001-000001", LINE, Some(&[7; 1000])).expect("room");
    // A folder in the place of the line's file: the audio was written already.
    fs::create_dir(dir.path().join("00001-000002.jsonl")).expect("writable");
    let error = store.add("00001-000002", LINE, Some(&[7; 1000])).expect_err("in the way");
    assert!(error.to_string().contains("00001-000002.jsonl"), "{error}");
    fs::remove_dir(dir.path().join("00001-000002.jsonl")).expect("empty");
    assert_eq!(listing(dir.path()), [".sa-field-log", "00001-000001.jsonl", "00001-000001.wav"]);
}

#[test]
fn folders_and_lines_that_are_no_log() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("thesis.txt"), b"mine").expect("writable");
    assert!(matches!(Store::open(dir.path(), 1), Err(FieldError::Foreign { .. })));
    assert!(matches!(read(dir.path()), Err(FieldError::NoLog { .. })));
    let log = dir.path().join("log");
    let first = Store::open(&log, 1).expect("new");
    assert!(matches!(Store::open(&log, 1), Err(FieldError::Busy { .. })));
    drop(first);
    for (line, part) in [
        ("{\"version\":2}", "has version 2, this program reads up to 1"),
        ("{\"version\":1}", "missing field"),
        ("{\"version\":1,", "EOF"),
        ("", "EOF"),
    ] {
        fs::write(log.join("00001-000001.jsonl"), line).expect("writable");
        let error = read(&log).expect_err(line).to_string();
        assert!(error.contains(part) && error.contains("00001-000001.jsonl"), "{error}");
    }
}
