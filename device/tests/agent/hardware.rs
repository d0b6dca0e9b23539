//! Machines without microphone and speaker, and what is told of them. A test has no card; should there be one, or a sound server, it is hidden.

use super::command::{Place, listing};
use super::tiny::Tiny;

/// No sound at all: ALSA has no configuration, so that not even a real card can be opened, and PulseAudio and PipeWire are nowhere.
fn silent(place: &Place, arguments: &[&str]) -> (i32, String, String) {
    let mut command = place.command(arguments);
    command.env("ALSA_CONFIG_PATH", "/dev/null").env("PULSE_SERVER", "unix:/nowhere").env("PIPEWIRE_REMOTE", "nowhere");
    let output = command.env_remove("XDG_RUNTIME_DIR").env("HOME", place.dir.path()).output().expect("starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (out, message) = (text(output.stdout), text(output.stderr));
    assert!(!message.contains("panicked"), "{message}");
    (output.status.code().expect("not by a signal"), out, message)
}

/// Exit code 3, one line, and what to do.
#[cfg(all(feature = "mic", target_os = "linux"))]
#[test]
fn no_sound_device_exits_with_three() {
    let place = Place::new(&Tiny::default());
    let asked: [&[&str]; 3] = [&[], &["--microphone", "usb"], &["--speaker", "usb"]];
    for more in asked {
        let (code, out, message) =
            silent(&place, &[&["listen", "--bundle", "bundle", "--host", "alsa", "--state", "state"], more].concat());
        assert_eq!((code, message.lines().count()), (3, 1), "{message}");
        assert!(message.starts_with("sa-agent: while opening microphone and speaker: no "), "{message}");
        assert!(message.contains("there is none at all") && message.contains("group `audio`"), "{message}");
        assert!(!out.contains("ready"), "{out}");
    }
    for more in [&[][..], &["--json"]] {
        let (code, out, message) = silent(&place, &[&["devices", "--host", "alsa"], more].concat());
        assert_eq!((code, out.as_str(), message.lines().count()), (3, "", 1), "{message}");
        assert!(message.contains("there is no audio device") && message.contains("arecord -l"), "{message}");
    }
    let (code, _, message) = silent(&place, &["devices", "--host", "gramophone"]);
    assert!(code == 3 && message.contains("no audio host `gramophone`; there are: "), "{message}");
}

/// What was found is printed, whether the report can be written or not.
#[test]
fn doctor_without_a_place_for_its_report_prints_all_the_same() {
    let place = Place::new(&Tiny::default());
    let before = listing(place.dir.path());
    let (code, out, message) = silent(&place, &["doctor", "--no-sound", "--bundle", "bundle", "--report", "missing/report.json"]);
    assert_eq!((code, listing(place.dir.path())), (1, before));
    assert!(out.contains("machine ") && out.contains("tokenizer: ") && out.contains("an answer (lm, head and decoder): "), "{out}");
    assert!(out.ends_with("; there is no report\n"), "{out}");
    assert!(message.contains("missing/report.json") && message.contains("`--report FILE`"), "{message}");

    let (_, out, message) = silent(&place, &["doctor", "--no-sound", "--bundle", "bundle", "--report", "report.json"]);
    assert!(out.ends_with("the report is in report.json\n") && message.is_empty(), "{out}{message}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(place.path("report.json")).expect("written")).expect("JSON");
    let speeds = report["findings"].as_array().expect("findings").iter().filter(|finding| finding["what"] == "speed").count();
    assert_eq!(speeds, 6, "four stages, a question, and an answer");
}

/// The same where microphone and speaker were to be tried.
#[cfg(all(feature = "mic", target_os = "linux"))]
#[test]
fn doctor_tells_that_there_is_no_sound() {
    let place = Place::new(&Tiny::default());
    let (code, out, _) = silent(&place, &["doctor", "--host", "alsa", "--report", "report.json"]);
    assert_eq!(code, 1);
    assert!(out.contains("PROBLEM  sound devices") && out.contains("no microphone that can be opened; there is none at all"), "{out}");
}
