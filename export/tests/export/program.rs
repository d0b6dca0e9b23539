//! `sa-export` as a program: its exit codes, and what it leaves when it is stopped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sa_device::bundle::{Bundle, StageName};
use sa_export::choice::Choice;
use sa_export::export::export;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{entries, options, random_checkpoint, rewrite, tiny};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sa-export");

type Arguments<'a> = &'a [&'a dyn AsRef<OsStr>];

fn run(arguments: Arguments) -> (Option<i32>, String) {
    said(&Command::new(PROGRAM).args(arguments).output().expect("it starts"))
}

/// The exit code and what was said, which is never a panic.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

/// A tiny checkpoint, and a bundle made of it.
fn exported(dir: &Path) -> (PathBuf, PathBuf) {
    let (checkpoint, output) = (dir.join("checkpoint"), dir.join("bundles/nano"));
    random_checkpoint(&checkpoint, 10, tiny);
    export(&options(&checkpoint, output.clone(), StageName::ALL.map(|_| Choice::fp32()))).expect("exported");
    (checkpoint, output)
}

#[test]
fn an_invalid_bundle_gives_exit_code_4() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (_, bundle) = exported(dir.path());
    let other = dir.path().join("other");
    let all = |code: i32, what: &str| {
        let ways: [Arguments; 4] = [
            &[&"--inspect", &bundle],
            &[&"--verify", &bundle],
            &[&"--compare", &bundle, &bundle],
            &[&"--join", &bundle, &"--output", &other],
        ];
        for way in ways {
            let (found, text) = run(way);
            assert_eq!(found, Some(code), "{what}: {text}");
        }
    };
    all(0, "whole");
    // A graph that is not as bundle.toml says: it shows when it is loaded.
    let decoder = std::fs::read(bundle.join("decoder.onnx")).expect("read");
    rewrite(&bundle, &[(StageName::Head, decoder)], |_| ());
    let ways: [Arguments; 2] = [&[&"--verify", &bundle], &[&"--compare", &bundle, &bundle]];
    for way in ways {
        let (code, text) = run(way);
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains("head.onnx") && text.contains("bundle.toml says"), "{text}");
    }
    // A product of sizes beyond any number.
    let toml = bundle.join("bundle.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    assert!(text.contains("shape = [1, 5120]"), "{text}");
    std::fs::write(&toml, text.replace("shape = [1, 5120]", "shape = [4294967296, 4294967296]")).expect("written");
    all(4, "too large");
    std::fs::write(&toml, "rubbish").expect("written");
    all(4, "rubbish");
    // Not the bundle's fault.
    let (code, text) = run(&[&"--checkpoint", &dir.path().join("nowhere"), &"--output", &other]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = run(&[&"--qwen", &dir.path(), &"--output", &other, &"--int8", &"tokenizer"]);
    assert_eq!(code, Some(2), "{text}");
}

#[test]
fn ort_is_looked_for_where_the_user_says() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (_, bundle) = exported(dir.path());
    let (code, text) = run(&[&"--verify", &bundle, &"--ort-library", &dir.path().join("no-such-library.so")]);
    assert_eq!(code, Some(0), "{text}");
    // Or the program was built without it.
    let without = !cfg!(feature = "ort") && text.contains("built without");
    assert!(text.contains("not looked at on ort") && (without || text.contains("no-such-library")), "{text}");
}

/// Checkpoints that open; no tensor of them is looked at before the output is.
fn imported(dir: &Path) -> [(&'static str, PathBuf); 3] {
    let number = 1.0f32.to_le_bytes();
    let write = |name: &str, config: &str| {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join("config.json"), config).expect("written");
        std::fs::write(folder.join("tokenizer.json"), "{}").expect("written");
        let tensors = [("model.layers.0.input_layernorm.weight", TensorView::new(Dtype::F32, vec![1], &number).expect("fits"))];
        safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).expect("written");
        folder
    };
    let qwen = r#"{"model_type": "qwen2", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2}"#;
    let hifigan = r#"{"resblock": "1", "upsample_rates": [5, 4], "upsample_kernel_sizes": [11, 8], "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "num_embeddings": 10, "embedding_dim": 8}"#;
    [
        ("--qwen", write("qwen", qwen)),
        ("--hubert", write("hubert", r#"{"model_type": "hubert", "hidden_size": 64, "num_attention_heads": 4}"#)),
        ("--hifigan", write("hifigan", hifigan)),
    ]
}

#[test]
fn no_output_takes_the_place_of_an_input() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let kmeans = dir.path().join("kmeans.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64), }";
    let npy = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), &[0; 512]].concat();
    std::fs::write(&kmeans, npy).expect("written");
    for (flag, folder) in imported(dir.path()) {
        // As if it were a bundle too: what is none is refused anyway.
        std::fs::write(folder.join("bundle.toml"), "").expect("written");
        let before = entries(&folder);
        for output in [folder.clone(), folder.join("../").join(folder.file_name().expect("it has a name"))] {
            let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&flag, &folder, &"--output", &output];
            if flag == "--hubert" {
                arguments.extend([&"--kmeans" as &dyn AsRef<OsStr>, &kmeans]);
            }
            let (code, text) = run(&arguments);
            assert!(code == Some(1) && text.contains("would be replaced"), "{flag}: {text}");
            assert_eq!(entries(&folder), before, "{flag}");
        }
    }
    let (_, bundle) = exported(dir.path());
    let (code, text) = run(&[&"--join", &bundle, &"--output", &bundle]);
    assert!(code == Some(1) && text.contains("would be replaced"), "{text}");
    let (code, text) = run(&[&"--join", &bundle, &"--output", &dir.path().join("bundles")]);
    assert!(code == Some(1) && text.contains("would be replaced"), "{text}");
    Bundle::open(&bundle).expect("it is as it was");
}

/// Sizes are looked at before any tensor is: there is none but the one that each block is known by.
#[test]
fn a_trunk_that_is_no_one_file_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let number = 1.0f32.to_le_bytes();
    let refused = |vocabulary: usize, flags: Arguments| {
        let config = format!(
            r#"{{"model_type": "qwen2", "vocab_size": {vocabulary}, "hidden_size": 2048, "intermediate_size": 11008,
            "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2}}"#
        );
        std::fs::write(dir.path().join("config.json"), config).expect("written");
        std::fs::write(dir.path().join("tokenizer.json"), "{}").expect("written");
        let view = || TensorView::new(Dtype::F32, vec![1], &number).expect("fits");
        let tensors = (0..36).map(|i| (format!("model.layers.{i}.input_layernorm.weight"), view()));
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).expect("written");
        let output = dir.path().join("bundle");
        let (code, text) = run(&[&[&"--qwen" as &dyn AsRef<OsStr>, &dir.path(), &"--output", &output], flags].concat());
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("one ONNX file at most 2147"), "{text}");
        text
    };
    let half = refused(100, &[&"--fp16"]);
    assert!(half.contains("the lm in fp16 has 5549 MB") && half.contains("choose --int4,"), "{half}");
    let text = refused(100, &[&"--int4", &"lm"]);
    assert!(text.contains("--samples gives one") && text.contains("the lm in int8 has 2775 MB"), "{text}");
    let large = refused(151_936, &[&"--int4"]);
    assert!(large.contains("the lm in int4 has") && large.contains("too large in every form"), "{large}");
}

/// What there is of a bundle, file by file.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    entries(dir).into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).expect("read"))).collect()
}

#[test]
fn a_full_disk_leaves_the_bundle_that_is_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (checkpoint, bundle) = exported(dir.path());
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).expect("made");
    let before = content(&bundle);
    // Files of no more than so many kilobytes; the signal would end the program, a disk does not send one.
    for limit in ["1", "20"] {
        let output = Command::new("bash")
            .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", limit, PROGRAM, "--checkpoint"])
            .args([&checkpoint, &PathBuf::from("--output"), &bundle])
            .env("TMPDIR", &temporary)
            .output()
            .expect("it starts");
        let (code, text) = said(&output);
        assert!(code == Some(1) && text.contains("cannot write"), "{limit}: {text}");
        assert!(content(&bundle) == before, "the old bundle has changed");
        assert_eq!((entries(&dir.path().join("bundles")), entries(&temporary)), (vec!["nano".to_owned()], vec![]));
    }
}

#[test]
fn a_killed_export_leaves_the_bundle_that_is_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (checkpoint, bundle) = exported(dir.path());
    let (temporary, partial) = (dir.path().join("tmp"), dir.path().join("bundles/nano.partial"));
    std::fs::create_dir(&temporary).expect("made");
    let start = || {
        Command::new(PROGRAM)
            .args([Path::new("--checkpoint"), &checkpoint, Path::new("--output"), &bundle])
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts")
    };
    let before = content(&bundle);
    for pause in [0, 100, 400] {
        let mut export = start();
        let begun = Instant::now();
        while !partial.exists() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(pause));
        export.kill().expect("it runs");
        let status = export.wait().expect("it ends");
        assert_eq!(entries(&temporary), Vec::<String>::new(), "a temporary file was left");
        Bundle::open(&bundle).expect("there is a bundle at every moment");
        // Where it was quicker than the pause it is a new one, with other times in it.
        assert!(status.success() || content(&bundle) == before, "the old bundle has changed");
    }
    assert!(start().wait().expect("it ends").success(), "the next export fails");
    assert_eq!(entries(&dir.path().join("bundles")), ["nano"], "the next export does not clean up");
}
