//! A checkpoint with random weights through the whole exporter: tiny for what must hold, full size (ignored) for figures.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Distribution, Tensor};
use sa_device::bundle::{Bundle, StageName};
use sa_device::engine::EngineName;
use sa_device::vocabulary::Vocabulary;
use sa_export::budget::Budgets;
use sa_export::choice::{BeyondBudget, Choice};
use sa_export::export::{Options, export};
use sa_export::inspect;
use sa_export::onnx::Precision;
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
    let dir = tempfile::tempdir().expect("a temporary folder");
    let checkpoint = dir.path().join("checkpoint");
    random_checkpoint(&checkpoint, 10, tiny);
    let output = dir.path().join("bundles/nano");
    // What a killed export left behind goes with the next one.
    std::fs::create_dir_all(dir.path().join("bundles/nano.partial")).expect("made");
    std::fs::write(dir.path().join("bundles/nano.partial/lm.onnx"), b"half").expect("written");
    for choices in [StageName::ALL.map(|_| Choice::fp32()), StageName::ALL.map(|_| Choice::int8())] {
        let (bundle, report) = export(&options(&checkpoint, output.clone(), choices)).expect("exported");
        assert_eq!(report.stages.len(), 4);
        assert!(report.stages.iter().all(|stage| stage.parity.is_some_and(|error| error < 1e-4)), "{report}");
        assert_eq!(bundle.manifest().measured["lm"]["parity_error"].as_float().map(|e| e < 1e-4), Some(true));
        let lines = inspect::verify(&output).expect("runs");
        assert_eq!(lines.iter().filter(|line| line.contains("loads and runs on tract")).count(), 4, "{lines:?}");
        assert!(inspect::inspect(&output).expect("opens").contains("random weights"));
        let compared = inspect::compare(&output, &output).expect("runs");
        assert_eq!(compared.matches(" 0.0e0").count(), 4, "a bundle differs from itself:\n{compared}");
        assert_eq!(entries(dir.path()), ["bundles", "checkpoint"]);
        assert_eq!(entries(&dir.path().join("bundles")), ["nano"]);
    }
    let tokenizer = Bundle::open(&output).expect("opens").manifest().stage.tokenizer.clone();
    assert_eq!(tokenizer.expect("it has one").chunk, 5120);
}

#[test]
fn nothing_is_written_where_an_export_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let checkpoint = dir.path().join("checkpoint");
    random_checkpoint(&checkpoint, 10, tiny);
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
    std::fs::remove_file(&config).expect("there");
    assert!(refuse(output).contains("it has no decoder/config.json"));
}

#[test]
fn a_named_form_beyond_its_budget_is_an_error_and_an_unnamed_one_gives_way() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let checkpoint = dir.path().join("checkpoint");
    random_checkpoint(&checkpoint, 10, tiny);
    // Random units lie nowhere near one another in eight bits of a tiny network: some budget is missed.
    let named = StageName::ALL.map(|_| Choice::named(Precision::Int8));
    let strict = options(&checkpoint, dir.path().join("strict"), named.clone());
    match export(&strict) {
        Err(error) => {
            assert!(error.is::<BeyondBudget>(), "{error:#}");
            assert_eq!(entries(dir.path()), ["checkpoint"]);
        }
        Ok((_, report)) => assert!(report.stages.iter().all(|stage| stage.precision == Precision::Int8)),
    }
    let target = Target { output: dir.path().join("forced"), ..strict.target.clone() };
    let forced = Options { force: true, target, ..strict };
    let (_, report) = export(&forced).expect("--force writes it all the same");
    assert!(report.stages.iter().all(|stage| stage.precision == Precision::Int8));
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
