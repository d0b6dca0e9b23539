//! The program `sa-agent`: arguments, exit codes, messages, files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::tiny::{Tiny, noise, wav};

pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new(tiny: &Tiny) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        tiny.write(&dir.path().join("bundle")).expect("fits together");
        wav(&dir.path().join("q.wav"), &noise(12_000));
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sa-agent"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in [
            "SA_BUNDLE",
            "SA_CONFIG",
            "SA_DEVICE",
            "SA_ENGINE",
            "SA_ORT_LIBRARY",
            "SA_THREADS",
            "SA_TOOLS",
            "SA_STATE",
            "SA_FIELD_LOG",
            "SA_FIELD_LOG_MB",
            "SA_EVENTS_SOCKET",
            "ORT_DYLIB_PATH",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("starts")
    }

    /// Exit code and standard error of a call that must fail and leave nothing behind.
    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let before = listing(self.dir.path());
        let output = self.run(arguments);
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(listing(self.dir.path()), before, "something was left behind");
        assert!(!message.contains("panicked"), "{message}");
        (output.status.code().expect("not by a signal"), message)
    }
}

pub fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).expect("readable").map(|e| e.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub fn events(output: &Output) -> Vec<serde_json::Value> {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn talks_in_json_and_on_paper() {
    let place = Place::new(&Tiny::default());
    let output = place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "--output", "a.wav", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = events(&output);
    assert_eq!(events[0]["event"], "ready");
    let turn = events.last().expect("events");
    assert_eq!(turn["event"], "turn");
    assert_eq!(turn["turn_id"], 1);
    assert_eq!(turn["reply_text"], "okay");
    assert_eq!(turn["calls"][0]["call"], "calc two plus three");
    assert_eq!(turn["output"], "a.wav");
    assert!(turn["timing_ms"]["first_audio"].is_f64());
    let answer = hound::WavReader::open(place.path("a.wav")).expect("a WAV");
    assert_eq!((answer.spec().sample_rate, answer.spec().bits_per_sample), (16_000, 16));
    assert_eq!(answer.duration() as usize, turn["units"].as_array().expect("units").len() * 640);

    let output = place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "--input", "q.wav", "--output-dir", "."]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    // q.wav in this folder is the question itself.
    assert_eq!(output.status.code(), Some(1), "{text}");
    std::fs::create_dir(place.path("answers")).expect("writable");
    let output =
        place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "q.wav", "--output-dir", "answers", "--fresh", "--realtime"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success());
    assert!(text.contains("you    light on") && text.contains("[calc two plus three] → five") && text.contains("agent  okay"), "{text}");
    assert_eq!(listing(&place.path("answers")), ["q-2.wav", "q.wav"]);
}

#[test]
fn bad_questions_have_their_messages() {
    let place = Place::new(&Tiny::default());
    std::fs::write(place.path("empty.wav"), b"").expect("writable");
    std::fs::write(place.path("text.wav"), b"not a wav file at all, really").expect("writable");
    let good = std::fs::read(place.path("q.wav")).expect("there");
    std::fs::write(place.path("cut.wav"), &good[..good.len() / 2]).expect("writable");
    wav(&place.path("long.wav"), &noise(16_000 * 40));
    wav(&place.path("silent.wav"), &[0.0; 8000]);
    let talk = |name: &str| place.fails(&["talk", "--bundle", "bundle", "--output", "a.wav", "--input", name]);
    for (name, part) in [
        ("empty.wav", "empty.wav is empty"),
        ("text.wav", "text.wav is not a WAV file"),
        ("cut.wav", "cut.wav is cut off"),
        ("long.wav", "long.wav lasts 40 s; a question may last at most"),
        ("none.wav", "cannot open none.wav"),
    ] {
        let (code, message) = talk(name);
        assert!(code == 1 && message.contains(part) && message.lines().count() == 1, "{code} {message}");
    }
    let (code, message) = talk("silent.wav");
    assert_eq!((code, message.as_str()), (0, ""), "silence is no failure, and has no answer");
    // One bad file does not end the conversation.
    std::fs::create_dir(place.path("answers")).expect("writable");
    let output = place.run(&["talk", "--bundle", "bundle", "--output-dir", "answers", "--json", "--input", "cut.wav", "q.wav"]);
    assert_eq!(output.status.code(), Some(1));
    let kinds: Vec<_> = events(&output).iter().map(|e| e["event"].as_str().expect("a kind").to_owned()).collect();
    assert!(kinds.contains(&"error".to_owned()) && kinds.last().is_some_and(|kind| kind == "turn"), "{kinds:?}");
    assert_eq!(listing(&place.path("answers")), ["q.wav"]);
}

#[test]
fn bad_bundles_exit_with_four() {
    let place = Place::new(&Tiny::default());
    let talk = || place.fails(&["talk", "--bundle", "bundle", "--output", "a.wav", "--input", "q.wav"]);
    let damage = |file: &str, change: &dyn Fn(&mut Vec<u8>), part: &str| {
        let path = place.path("bundle").join(file);
        let good = std::fs::read(&path).expect("there");
        let mut bad = good.clone();
        change(&mut bad);
        std::fs::write(&path, bad).expect("writable");
        let (code, message) = talk();
        assert!(code == 4 && message.contains(part), "{file}: {code} {message}");
        std::fs::write(&path, good).expect("writable");
    };
    for file in ["tokenizer.onnx", "lm.onnx", "head.onnx", "decoder.onnx", "decoder.f32", "vocabulary.txt"] {
        damage(file, &|bytes| *bytes.last_mut().expect("bytes") ^= 1, "is damaged");
        damage(file, &|bytes| bytes.truncate(bytes.len() / 2), "bytes, bundle.toml says");
        let path = place.path("bundle").join(file);
        let aside = place.path("bundle").join("aside");
        std::fs::rename(&path, &aside).expect("writable");
        let (code, message) = talk();
        assert!(code == 4 && message.contains(&format!("{file} is missing")), "{code} {message}");
        std::fs::rename(&aside, &path).expect("writable");
    }
    damage("bundle.toml", &|bytes| *bytes = String::from_utf8_lossy(bytes).replace("group = 4", "group = 3").into_bytes(), "`units`");
    damage("bundle.toml", &|bytes| bytes.truncate(40), "bundle.toml");
    let (code, message) = place.fails(&["talk", "--bundle", "none", "--input", "q.wav"]);
    assert!(code == 4 && message.contains("none"), "{message}");
}

#[test]
fn usage_and_places() {
    let place = Place::new(&Tiny::default());
    for (arguments, code, part) in [
        (&["talk", "--bundle", "bundle"][..], 2, "--input"),
        (&["talk", "--input", "q.wav"], 2, "which bundle"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--engine", "onnx"], 2, "no engine `onnx`"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--device", "gpu"], 2, "no device `gpu`"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--engine", "tract", "--device", "cuda"], 3, "--engine ort"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "q.wav", "--output", "a.wav"], 2, "--output-dir"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--outptu", "a.wav"], 2, "--output"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--threads", "0"], 2, "threads"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--output", "none/a.wav"], 1, "the output folder none is not there"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--output-dir", "none"], 1, "the output folder none is not there"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--output", "q.wav"], 1, "cannot be the output"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--tools", "none.toml"], 1, "none.toml"),
        (&["talk", "--config", "none.toml", "--input", "q.wav"], 1, "none.toml"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--history", "none.jsonl"], 1, "the conversation none.jsonl"),
        (&["talk", "--bundle", "bundle", "--input", "q.wav", "--history", "bundle/vocabulary.txt"], 1, "vocabulary.txt:1: not a line that"),
    ] {
        let (found, message) = place.fails(arguments);
        assert!(found == code && message.contains(part), "{arguments:?}: {found} {message}");
    }
}

#[test]
fn settings_come_from_file_environment_and_flags() {
    let place = Place::new(&Tiny::default());
    let file = "bundle = \"bundle\"\nthreads = 2\ntools = \"tools.toml\"\n[conversation]\ncalls = 1\n";
    std::fs::write(place.path("sa.toml"), file).expect("writable");
    std::fs::write(place.path("tools.toml"), "[tool.calc]\nanswer = \"five\"\n").expect("writable");
    let output = place.command(&["talk", "--input", "q.wav", "--json"]).env("SA_CONFIG", "sa.toml").output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(events(&output).last().expect("events")["calls"][0]["result"], "five");
    // The environment is above the file, flags are above both.
    let output = place.command(&["talk", "--config", "sa.toml", "--input", "q.wav"]).env("SA_BUNDLE", "none").output().expect("starts");
    assert_eq!(output.status.code(), Some(4));
    let output = place
        .command(&["talk", "--config", "sa.toml", "--input", "q.wav", "--bundle", "bundle"])
        .env("SA_BUNDLE", "none")
        .output()
        .expect("starts");
    assert!(output.status.success());
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/settings.toml");
    assert!(place.run(&["talk", "--config", example, "--bundle", "bundle", "--input", "q.wav"]).status.success(), "the example");
    std::fs::write(place.path("sa.toml"), "bundel = \"bundle\"").expect("writable");
    let (code, message) = place.fails(&["talk", "--config", "sa.toml", "--input", "q.wav"]);
    assert!(code == 1 && message.contains("bundel"), "{message}");
}

#[test]
fn the_device_comes_from_file_and_environment_too() {
    let place = Place::new(&Tiny::default());
    std::fs::write(place.path("sa.toml"), "bundle = \"bundle\"\nengine = \"tract\"\ndevice = \"cpu:2\"\n").expect("writable");
    let talk = ["talk", "--config", "sa.toml", "--input", "q.wav"];
    let (code, message) = place.fails(&talk);
    assert!(code == 3 && message.contains("tract cannot run on cpu:2"), "{code} {message}");
    assert!(place.command(&talk).env("SA_DEVICE", "cpu").output().expect("starts").status.success(), "the environment is above the file");
    std::fs::write(place.path("sa.toml"), "bundle = \"bundle\"\ndevice = \"gpu\"\n").expect("writable");
    let (code, message) = place.fails(&talk);
    assert!(code == 1 && message.contains("no device `gpu`"), "{code} {message}");
}

/// Every way in which a library cannot be used has its message; none of them is a panic.
#[cfg(feature = "ort")]
#[test]
fn libraries_that_cannot_be_used_are_told() {
    let place = Place::new(&Tiny::default());
    let version = |version: &str| {
        format!(
            "struct base {{ const void *(*api)(unsigned); const char *(*version)(void); }};\n\
             static const void *api(unsigned v) {{ return 0; }}\nstatic const char *version(void) {{ return \"{version}\"; }}\n\
             const struct base *OrtGetApiBase(void) {{ static struct base b = {{ api, version }}; return &b; }}\n"
        )
    };
    for (name, source) in [("other.so", "int other(void) { return 1; }\n".to_owned()), ("old.so", version("1.16.3"))] {
        std::fs::write(place.path("library.c"), source).expect("writable");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o", name, "library.c"]).current_dir(place.dir.path()).status();
        assert!(built.expect("the linker of every Rust program is there").success());
    }
    std::fs::write(place.path("text.so"), "version https://git-lfs.github.com/spec/v1\n".repeat(3)).expect("writable");
    let whole = std::fs::read(place.path("other.so")).expect("there");
    std::fs::write(place.path("cut.so"), &whole[..whole.len() / 4]).expect("writable");
    std::fs::write(place.path("short.so"), b"\x7fELF").expect("writable");
    let machine = if cfg!(target_arch = "x86_64") { 183u16 } else { 62 };
    let mut foreign = whole;
    foreign[18..20].copy_from_slice(&machine.to_le_bytes());
    std::fs::write(place.path("foreign.so"), foreign).expect("writable");
    std::fs::create_dir(place.path("folder")).expect("writable");
    let talk = ["talk", "--bundle", "bundle", "--input", "q.wav", "--engine", "ort"];
    for (library, part) in [
        ("none.so", "there is no file none.so"),
        ("folder", "there is no libonnxruntime.so in the folder folder"),
        ("text.so", "no ELF header"),
        ("short.so", "is no shared library"),
        ("cut.so", "was cut off"),
        ("foreign.so", "processors, this program is for"),
        ("other.so", "not ONNX Runtime"),
        ("old.so", "is version 1.16.3, which is too old"),
    ] {
        let (code, message) = place.fails(&[&talk[..], &["--ort-library", library]].concat());
        let fits = message.contains(part) && message.contains("--ort-library") && message.lines().count() == 1;
        assert!(code == 1 && fits, "{library}: {code} {message}");
        let output = place.command(&talk).env("ORT_DYLIB_PATH", library).output().expect("starts");
        assert_eq!(String::from_utf8_lossy(&output.stderr), message, "by the environment");
    }
    // A bundle that tract runs does not ask for the library at all.
    assert!(place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "--ort-library", "none.so"]).status.success());
}

#[test]
fn a_failing_tool_is_told_and_the_answer_comes() {
    let place = Place::new(&Tiny::default());
    let tools = "[tool.calc]\nprogram = [\"/bin/sh\", \"-c\", \"sleep 60\"]\nseconds = 0.2\n";
    std::fs::write(place.path("tools.toml"), tools).expect("writable");
    let output = place.run(&["talk", "--bundle", "bundle", "--input", "q.wav", "--tools", "tools.toml"]);
    assert!(output.status.success());
    let (text, message) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("[calc two plus three] → timed out"), "{text}");
    assert!(message.contains("tool `calc`") && message.contains("0.2 s"), "{message}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new(&Tiny::default());
    let mut child =
        place.command(&["talk", "--bundle", "bundle", "--input", "q.wav", "--json"]).stdout(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn bench_prints_every_stage() {
    let place = Place::new(&Tiny::default());
    let output = place.run(&["bench", "--bundle", "bundle", "--seconds", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in ["tokenizer", "lm", "head", "decoder", "together"] {
        assert!(text.contains(part), "{text}");
    }
    let output = place.run(&["bench", "--bundle", "bundle", "--seconds", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["stages"].as_array().expect("stages").len(), 4);
}
