//! The wake phrase ("hello jasper", said by a voice of flite at several speeds): who does not say it is not answered.

use std::path::{Path, PathBuf};

use sa_device::audio::live::Room;
use sa_device::audio::read_wav;
use sa_device::engine::Tract;
use sa_device::turns::State;
use sa_device::wake::{WakeError, WakePhrase, WakeSettings};

use super::live::{Bench, agent, voice};

fn recording(name: &str) -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("wake").join(format!("{name}.wav"));
    read_wav(&path, 10.0).expect("a recording")
}

fn enrolled() -> Vec<Vec<f32>> {
    ["enrol-1", "enrol-2", "enrol-3"].map(recording).to_vec()
}

#[test]
fn only_what_follows_the_phrase_is_answered() {
    let mut agent = agent();
    let settings = WakeSettings { phrase: Some(PathBuf::from("enrolled in this test")), ..WakeSettings::default() };
    let phrase = WakePhrase::enrol(&Tract, agent.bundle(), &enrolled(), &settings).expect("three good recordings");
    agent.wake_by(Some(phrase.matcher(agent.bundle(), settings.threshold).expect("a matcher")));
    let mut bench = Bench::with(Room { seed: 5, ..Room::default() }, agent, |live| live.wake = settings.clone());

    // Without the phrase: nothing, and nobody is told that somebody spoke.
    for name in ["11-lights", "10-facts", "05-brightness"] {
        bench.say(name);
        bench.run(7.0);
    }
    assert!(bench.turns.is_empty() && bench.states.is_empty() && bench.woken == 0, "{:?} {:?}", bench.states, bench.turns);

    bench.hear(&recording("what-time-is-it"));
    assert!(bench.answers(12.0), "{:?}", bench.states);
    bench.until(State::Idle, 20.0);
    let told = &bench.turns[0];
    assert_eq!((told.transcript.as_str(), bench.woken), ("what time is it", 1));
    assert!(told.question_units.len() < 60, "the phrase is not part of the question: {} units", told.question_units.len());

    // For a while it needs no phrase.
    bench.run(1.0);
    bench.say("18-thermostat");
    assert!(bench.answers(12.0), "awake behind an answer");
    bench.until(State::Idle, 20.0);
    assert_eq!((bench.turns.len(), bench.woken), (2, 1));
    bench.run(settings.awake.as_secs_f64() + 2.0);
    bench.say("18-thermostat");
    bench.run(7.0);
    assert_eq!(bench.turns.len(), 2, "asleep again");

    // The phrase alone is no question; the next one needs none.
    bench.hear(&recording("alone"));
    bench.run(4.0);
    assert_eq!((bench.turns.len(), bench.woken), (2, 2), "{:?}", bench.turns.last().map(|turn| &turn.transcript));
    bench.say("12-locks");
    assert!(bench.answers(12.0), "called, then asked");
    bench.until(State::Idle, 20.0);
    assert_eq!(bench.turns.len(), 3);
}

#[test]
fn bad_recordings_and_files_are_refused() {
    let agent = agent();
    let bundle = agent.bundle();
    let enrol = |recordings: &[Vec<f32>]| WakePhrase::enrol(&Tract, bundle, recordings, &WakeSettings::default());
    assert!(matches!(enrol(&[vec![0.0; 16_000]]), Err(WakeError::Silent { number: 1 })));
    let short = recording("alone")[6000..9000].to_vec();
    assert!(matches!(enrol(&[recording("alone"), short]), Err(WakeError::Short { number: 2, .. })));
    let other = voice("10-facts");
    assert!(matches!(enrol(&[recording("enrol-1"), recording("enrol-2"), other]), Err(WakeError::Different { .. })));

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wake.json");
    let phrase = enrol(&enrolled()).expect("three good recordings");
    phrase.save(&path).expect("room on the disk");
    assert_eq!(WakePhrase::load(&path, bundle).expect("what was saved"), phrase);
    let text = std::fs::read_to_string(&path).expect("what was saved");
    for (from, to, says) in [
        ("\"version\":1", "\"version\":7", "version 7"),
        ("{", "[", "is no wake phrase"),
        ("\"tokenizer\":\"", "\"tokenizer\":\"0", "another tokenizer"),
        ("\"patterns\":[[", "\"patterns\":[[60000,", "unusable"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).expect("room on the disk");
        let message = WakePhrase::load(&path, bundle).expect_err(to).to_string();
        assert!(message.contains(says) && message.contains("sa-agent enrol"), "{message}");
    }
    assert!(matches!(WakePhrase::load(Path::new("/nowhere"), bundle), Err(WakeError::Io { .. })));
}
