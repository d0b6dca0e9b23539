//! A checkpoint with random weights through the whole exporter: tiny for what must hold, full size (ignored) for figures.

mod program;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Distribution, Tensor};
use sa_device::bundle::{Bundle, BundleWriter, Manifest, StageName, TensorEntry};
use sa_device::engine::EngineName;
use sa_device::vocabulary::Vocabulary;
use sa_export::budget::Budgets;
use sa_export::choice::{BeyondBudget, Choice};
use sa_export::export::{Options, export};
use sa_export::inspect;
use sa_export::onnx::{DataType, Graph, Precision};
use sa_export::target::Target;
use sa_models::decoder::{Decoder, DecoderConfig};
use sa_models::lm::config::HeadConfig;
use sa_models::lm::{Config, Network};
use sa_models::tokenizer::TokenizerConfig;
use sa_models::train::checkpoint::{Precision as Stored, save};

struct Sizes {
    tokenizer: TokenizerConfig,
    decoder: DecoderConfig,
    lm: Config,
}

fn tiny(vocabulary: usize) -> Sizes {
    Sizes {
        tokenizer: TokenizerConfig {
            width: 16,
            layers: 2,
            heads: 2,
            feed_forward: 24,
            phones: 6,
            units: 12,
            layer: 2,
            ..TokenizerConfig::default()
        },
        decoder: DecoderConfig { units: 12, dimension: 16, feed_forward: 24, unit_blocks: 2, frame_blocks: 2, ..DecoderConfig::default() },
        lm: Config {
            group: 3,
            unit_embedding_size: 4,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            head_dim: 8,
            max_position_embeddings: 96,
            head: HeadConfig { num_hidden_layers: 1, num_attention_heads: 2, head_dim: 8, intermediate_size: 20 },
            ..Config::nano(vocabulary, 12)
        },
    }
}

fn full(vocabulary: usize) -> Sizes {
    Sizes { tokenizer: TokenizerConfig::default(), decoder: DecoderConfig::default(), lm: Config::nano(vocabulary, 500) }
}

/// Saves networks of these sizes with random weights, in half precision as a shipped checkpoint is.
fn random_checkpoint(dir: &Path, words: usize, sizes: fn(usize) -> Sizes) {
    let words: Vec<String> = (0..words).map(|i| format!("w{i}")).collect();
    let vocabulary = Vocabulary::from_words(words.iter().map(String::as_str)).expect("different words");
    let sizes = sizes(vocabulary.len());
    let device = Device::flex();
    device.seed(7);
    let mut tokenizer = sizes.tokenizer.init(&device);
    // Far apart, as trained centroids are.
    tokenizer.centroids = tokenizer.centroids.map(|c| Tensor::random(c.dims(), Distribution::Normal(0.0, 1.0), &device));
    save(&dir.join("tokenizer"), &sizes.tokenizer, &tokenizer, Stored::F16).expect("saved");
    save(&dir.join("decoder"), &sizes.decoder, &Decoder::new(&sizes.decoder, &device), Stored::F16).expect("saved");
    save(&dir.join("lm"), &sizes.lm, &Network::new(&sizes.lm, &device), Stored::F16).expect("saved");
    std::fs::write(dir.join("vocabulary.txt"), vocabulary.to_text()).expect("saved");
}

/// A folder with a tiny checkpoint in it.
fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let checkpoint = dir.path().join("checkpoint");
    random_checkpoint(&checkpoint, 10, tiny);
    (dir, checkpoint)
}

fn options(checkpoint: &Path, output: PathBuf, choices: [Choice; 4]) -> Options {
    Options {
        checkpoint: checkpoint.into(),
        target: Target {
            output,
            name: "test".into(),
            licence: "MIT".into(),
            provenance: "random weights".into(),
            engine: EngineName::Tract,
            ort_library: None,
        },
        samples: None,
        choices,
        budgets: Budgets::default(),
        exclude: Vec::new(),
        calibrate: None,
        force: false,
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).expect("readable").map(|e| e.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn fp32_and_int8_bundles_are_written_and_verify() {
    let (dir, checkpoint) = checkpoint();
    let output = dir.path().join("bundles/nano");
    // What a killed export left behind goes with the next one.
    std::fs::create_dir_all(dir.path().join("bundles/nano.partial")).expect("made");
    std::fs::write(dir.path().join("bundles/nano.partial/lm.onnx"), b"half").expect("written");
    for choices in [StageName::ALL.map(|_| Choice::fp32()), StageName::ALL.map(|_| Choice::int8())] {
        let (bundle, report) = export(&options(&checkpoint, output.clone(), choices)).expect("exported");
        assert_eq!(report.stages.len(), 4);
        assert!(report.stages.iter().all(|stage| stage.parity.is_some_and(|error| error < 1e-4)), "{report}");
        assert_eq!(bundle.manifest().measured["lm"]["parity_error"].as_float().map(|e| e < 1e-4), Some(true));
        let lines = inspect::verify(&output, None).expect("runs");
        assert_eq!(lines.iter().filter(|line| line.contains("loads and runs on tract")).count(), 4, "{lines:?}");
        assert!(inspect::inspect(&output).expect("opens").contains("random weights"));
        let compared = inspect::compare(&output, &output, None).expect("runs");
        assert_eq!(compared.matches(" 0.0e0 relative L2").count(), 3, "a bundle differs from itself:\n{compared}");
        assert!(compared.contains("100.0 % of units equal"), "{compared}");
        assert_eq!(entries(dir.path()), ["bundles", "checkpoint"]);
        assert_eq!(entries(&dir.path().join("bundles")), ["nano"]);
    }
    let tokenizer = Bundle::open(&output).expect("opens").manifest().stage.tokenizer.clone();
    assert_eq!(tokenizer.expect("it has one").chunk, 5120);
}

#[test]
fn nothing_is_written_where_an_export_is_refused() {
    let (dir, checkpoint) = checkpoint();
    let other = dir.path().join("photos");
    std::fs::create_dir(&other).expect("made");
    std::fs::write(other.join("cat.jpg"), b"").expect("written");
    let refuse = |output: PathBuf| {
        let error = export(&options(&checkpoint, output, StageName::ALL.map(|_| Choice::fp32()))).expect_err("refused");
        assert_eq!(entries(dir.path()), ["checkpoint", "photos"]);
        format!("{error:#}")
    };
    assert!(refuse(checkpoint.clone()).contains("checkpoint itself"));
    assert!(refuse(checkpoint.join("../checkpoint")).contains("checkpoint itself"));
    assert!(refuse(checkpoint.join("bundle")).contains("inside the checkpoint"));
    assert!(refuse(dir.path().into()).contains("inside the output"));
    assert!(refuse(other.clone()).contains("is not a bundle"));
    assert_eq!(entries(&other), ["cat.jpg"]);

    // A file cut short, a part of another run, a missing part.
    let output = dir.path().join("nano");
    let lm = checkpoint.join("lm/model.safetensors");
    let whole = std::fs::read(&lm).expect("read");
    std::fs::write(&lm, &whole[..whole.len() - 1]).expect("written");
    assert!(refuse(output.clone()).contains("truncated"));
    std::fs::write(&lm, &whole).expect("written");
    let config = checkpoint.join("decoder/config.json");
    let text = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, text.replace("\"units\": 12", "\"units\": 13")).expect("written");
    assert!(refuse(output.clone()).contains("do not belong together"));
    std::fs::write(&config, text.replace("\"frame_blocks\": 2", "\"frame_blocks\": 3")).expect("written");
    assert!(refuse(output.clone()).contains("frame_blocks.2"));
    std::fs::write(&config, text).expect("written");
    // More units than there may be, which is seen before any graph is drawn.
    for part in ["tokenizer", "decoder", "lm"] {
        let config = checkpoint.join(part).join("config.json");
        let text = std::fs::read_to_string(&config).expect("read");
        std::fs::write(&config, text.replace("\"units\": 12", "\"units\": 9000")).expect("written");
    }
    assert!(refuse(output.clone()).contains("at most 8192"));
    std::fs::remove_file(&config).expect("there");
    assert!(refuse(output).contains("it has no decoder/config.json"));
}

#[test]
fn a_named_form_beyond_its_budget_is_an_error_and_an_unnamed_one_gives_way() {
    let (dir, checkpoint) = checkpoint();
    // No form but fp32 gives exactly the spectra of fp32.
    let mut budgets = Budgets::default();
    budgets.set(StageName::Decoder, 0.0).expect("a number of decibels");
    let decoder = |choice: Choice| StageName::ALL.map(|name| if name == StageName::Decoder { choice.clone() } else { Choice::fp32() });
    let options =
        |output: &str, choice| Options { budgets: budgets.clone(), ..options(&checkpoint, dir.path().join(output), decoder(choice)) };
    let strict = options("strict", Choice::named(Precision::Int8));
    let error = export(&strict).map(|_| ()).expect_err("it was named, and misses");
    assert!(error.is::<BeyondBudget>() && error.to_string().contains("decoder in int8: spectra differ"), "{error:#}");
    assert_eq!(entries(dir.path()), ["checkpoint"]);
    let forced = Options { force: true, ..options("forced", Choice::named(Precision::Int8)) };
    let (bundle, report) = export(&forced).expect("--force writes it all the same");
    let stage = report.stages.last().expect("the decoder is the last");
    assert_eq!(stage.precision, Precision::Int8);
    assert!(stage.reason.starts_with("forced: spectra differ"), "{}", stage.reason);
    assert!(bundle.manifest().measured["decoder"]["reason"].as_str().is_some_and(|reason| reason.starts_with("forced")), "no trace");
    let (_, report) = export(&options("free", Choice::convolutions())).expect("fp32 is left");
    let stage = report.stages.last().expect("the decoder is the last");
    assert_eq!(stage.precision, Precision::Fp32);
    assert!(stage.reason.starts_with("fp16 was left: spectra differ"), "{}", stage.reason);
}

#[test]
fn every_pattern_of_layers_must_match_one() {
    let (dir, checkpoint) = checkpoint();
    let export = |patterns: &[&str]| {
        let options = options(&checkpoint, dir.path().join("nano"), StageName::ALL.map(|_| Choice::named(Precision::Fp16)));
        export(&Options { exclude: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(), force: true, ..options })
    };
    let error = export(&["lm_head", "lm_heat"]).map(|_| ()).expect_err("one of them is dead").to_string();
    assert!(error.starts_with("--exclude lm_heat matches no layer; there are "), "{error}");
    assert_eq!(entries(dir.path()), ["checkpoint"]);
    export(&["lm_head", "head.output"]).expect("each is a layer of another stage");
}

/// Writes the bundle at `dir` anew, with changes to its manifest and other graphs for some stages.
fn rewrite(dir: &Path, graphs: &[(StageName, Vec<u8>)], change: impl FnOnce(&mut Manifest)) {
    let bundle = Bundle::open(dir).expect("opens");
    let mut manifest = bundle.manifest().clone();
    change(&mut manifest);
    let writer = BundleWriter::create(dir).expect("begins");
    for entry in manifest.files() {
        writer.add(&entry.file, &std::fs::read(dir.join(&entry.file)).expect("read")).expect("written");
    }
    for (name, graph) in graphs {
        writer.add(&format!("{name}.onnx"), graph).expect("written");
    }
    writer.finish(manifest).expect("fits together");
}

#[test]
fn a_head_with_a_state_of_its_own_is_verified() {
    let (dir, checkpoint) = checkpoint();
    let output = dir.path().join("nano");
    let (bundle, _) = export(&options(&checkpoint, output.clone(), StageName::ALL.map(|_| Choice::fp32()))).expect("exported");
    let Manifest { group, k, .. } = *bundle.manifest();
    let mut graph = Graph::new("head", "A head that remembers.");
    let hidden = graph.input("hidden", DataType::F32, &[1, 16]);
    let state = graph.input("state.x", DataType::F32, &[1, 4]);
    let next = graph.add_scalar(&state, 1.0);
    let logits = graph.linear(&hidden, &vec![0.5; group * (k + 1) * 16], None, Precision::Fp32);
    let logits = graph.reshape(&logits, &[1, group, k + 1]);
    graph.output("unit_logits", &logits);
    graph.output("state.x.next", &next);
    let graph = graph.encode().expect("written");
    rewrite(&output, &[(StageName::Head, std::fs::read(graph.path()).expect("read"))], |manifest| {
        let head = manifest.stage.head.as_mut().expect("it has one");
        head.inputs.push(TensorEntry::f32("state.x", &[1, 4]));
        head.outputs.push(TensorEntry::f32("state.x.next", &[1, 4]));
    });
    let lines = inspect::verify(&output, None).expect("runs");
    assert!(lines.iter().any(|line| line.starts_with("head: loads and runs on tract")), "{lines:?}");
}

/// `SA_RANDOM=/tmp/random cargo test -p sa-export --test export -- --ignored --nocapture`: figures at full size; the
/// checkpoint and the bundles stay in that folder.
#[test]
#[ignore = "a minute; prints figures"]
fn full_size() {
    let dir = std::env::var_os("SA_RANDOM").map_or_else(|| std::env::temp_dir().join("sa-random"), PathBuf::from);
    let checkpoint = dir.join("checkpoint");
    random_checkpoint(&checkpoint, 1500, full);
    let all = |precision| StageName::ALL.map(|_| Choice::named(precision));
    for (name, choices) in [
        ("fp32", StageName::ALL.map(|_| Choice::fp32())),
        ("int8-default", StageName::ALL.map(|_| Choice::int8())),
        ("fp16", all(Precision::Fp16)),
        ("int8-weights", all(Precision::Int8Weights)),
        ("int8", all(Precision::Int8)),
    ] {
        let options = Options { force: true, ..options(&checkpoint, dir.join(name), choices) };
        let (_, report) = export(&options).expect("exported");
        println!("{report}");
    }
}
