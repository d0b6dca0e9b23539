//! Each writer's graph against the Burn network with random weights, at tiny sizes, through a checkpoint on disk.

use super::*;
use crate::graphs::{self, StageGraph};
use crate::onnx::Precision;
use crate::reference::Reference;
use crate::samples::noise;
use crate::weights::{Weights, WeightsError};
use burn::module::Module;
use sa_device::engine::{Engine, Tract};
use sa_models::decoder::DecoderConfig;
use sa_models::train::checkpoint;
use serde::Serialize;

/// Saves a network as training does and opens the file as the exporter does.
fn saved<M: Module, C: Serialize>(model: &M, config: &C, precision: checkpoint::Precision) -> Weights {
    let dir = tempfile::tempdir().expect("a temporary folder");
    checkpoint::save(dir.path(), config, model, precision).expect("saved");
    Weights::open(&dir.path().join("model.safetensors")).expect("opened")
}

fn device(seed: u64) -> Device {
    let device = Device::flex();
    device.seed(seed);
    device
}

fn ids(count: usize, below: usize, seed: u32) -> Vec<i64> {
    noise(count, seed).iter().map(|x| ((x + 0.5) * below as f32) as i64).collect()
}

fn runner(engine: &dyn Engine, graph: &StageGraph) -> Runner {
    Runner::new(engine, graph).expect("the engine loads the graph")
}

/// Widths are multiples of a block of 4-bit weights, here and below.
fn tiny_tokenizer() -> (TokenizerConfig, Tokenizer) {
    let config = TokenizerConfig {
        width: 32,
        layers: 2,
        heads: 2,
        feed_forward: 64,
        kernel: 5,
        left_chunks: 2,
        phones: 6,
        units: 20,
        layer: 2,
        ..TokenizerConfig::default()
    };
    let device = device(1);
    let mut network = config.init(&device);
    network.centroids = network.centroids.map(|c| Tensor::random(c.dims(), burn::tensor::Distribution::Normal(0.0, 1.0), &c.device()));
    (config, network)
}

fn tokenizer_graph_is_the_network(engine: &dyn Engine) {
    let (config, network) = tiny_tokenizer();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let graph = graphs::tokenizer::draw(&config, &weights, Precision::Fp32, true).expect("drawn");
    let mut runner = runner(engine, &graph);
    // Seven chunks: the context of two is filled and rolls on.
    let audio = noise(7 * config.chunk_samples() - 100, 2);
    let first = tokenizer(&network, &config, &mut runner, &audio).expect("ran");
    assert!(first.error() < FP32_BUDGET, "{}", first.error());
    assert_eq!(first.agreement(), 1.0);
    // A second utterance after a reset knows nothing of the first.
    let second = tokenizer(&network, &config, &mut runner, &noise(3 * config.chunk_samples(), 3)).expect("ran");
    assert!(second.error() < FP32_BUDGET, "{}", second.error());
}

#[test]
fn tokenizer_graph_is_the_network_chunk_by_chunk() {
    tokenizer_graph_is_the_network(&Tract);
}

fn tiny_decoder() -> (DecoderConfig, Decoder) {
    let config = DecoderConfig { units: 20, dimension: 32, feed_forward: 64, unit_blocks: 2, frame_blocks: 2, ..DecoderConfig::default() };
    let network = Decoder::new(&config, &device(4));
    (config, network)
}

fn decoder_graph_is_the_network(engine: &dyn Engine) {
    let (config, network) = tiny_decoder();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let initial = decoder_state(&network);
    let graph = graphs::decoder::draw(&config, &weights, Precision::Fp32, initial).expect("drawn");
    let mut runner = runner(engine, &graph);
    for seed in 5..7 {
        let distance = decoder(&network, &mut runner, &ids(16, config.units + 1, seed)).expect("ran");
        assert!(distance.error() < FP32_BUDGET, "{}", distance.error());
    }
}

#[test]
fn decoder_graph_is_the_network_chunk_by_chunk() {
    decoder_graph_is_the_network(&Tract);
}

fn tiny_lm() -> (lm::Config, Network) {
    let config = lm::Config {
        group: 3,
        unit_embedding_size: 4,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 64,
        head: lm::config::HeadConfig { num_hidden_layers: 1, num_attention_heads: 2, head_dim: 16, intermediate_size: 32 },
        ..lm::Config::nano(40, 7)
    };
    let network = Network::new(&config, &device(8));
    (config, network)
}

fn sequence(config: &lm::Config, length: usize, seed: u32) -> Vec<Item> {
    ids(length, 1000, seed)
        .into_iter()
        .enumerate()
        .map(|(i, n)| match i % 3 {
            0 => Item::Token(n % config.vocab_size as i64),
            _ => Item::Group(ids(config.group, config.units + 1, n as u32)),
        })
        .collect()
}

fn lm_and_head_graphs_are_the_network(engine: &dyn Engine) {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let mut trunk = runner(engine, &graphs::lm::draw(&config, &weights, Precision::Fp32).expect("drawn"));
    let mut head = runner(engine, &graphs::head::draw(&config, &weights, Precision::Fp32).expect("drawn"));
    // To the last row of the cache, then anew.
    for (length, seed) in [(config.max_position_embeddings, 9), (10, 10)] {
        let items = sequence(&config, length, seed);
        let (text, units) = lm(&network, &config, &mut trunk, &mut head, &items).expect("ran");
        assert!(text.error() < FP32_BUDGET, "{}", text.error());
        assert!(units.error() < FP32_BUDGET, "{}", units.error());
        assert_eq!((text.agreement(), units.agreement()), (1.0, 1.0));
    }
}

#[test]
fn lm_and_head_graphs_are_the_network_position_by_position() {
    lm_and_head_graphs_are_the_network(&Tract);
}

/// Pieces of one layer each, one after another, are the whole: what each is given and gives back, and its share of the cache.
#[test]
fn a_trunk_in_pieces_is_the_trunk() {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let mut whole = runner(&Tract, &graphs::lm::draw(&config, &weights, Precision::Fp32).expect("drawn"));
    let tokens = ids(20, config.vocab_size, 13);
    let pieces = graphs::lm::pieces(&config, 1);
    assert_eq!(pieces.len(), config.num_hidden_layers);
    let reference = Reference { trunk: &weights, speech: Some(&weights), config: &config, engine: &Tract, pieces };
    let mut read = 0;
    let each = |position, logits, hidden| {
        let expected = lm_step(&mut whole, config.group, &Item::Token(tokens[position]), position).expect("ran");
        assert_eq!((logits, hidden), expected);
        read += 1;
    };
    reference.read(&tokens, false, each).expect("ran");
    assert_eq!(read, tokens.len());
    assert_eq!(graphs::lm::pieces(&config, graphs::lm::weights(&config)).len(), 1);
}

#[test]
fn a_trunk_without_speech_is_the_trunk_on_text() {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let mut whole = runner(&Tract, &graphs::lm::draw(&config, &weights, Precision::Fp32).expect("drawn"));
    let mut text = runner(&Tract, &graphs::lm::draw_parts(&config, &weights, None, Precision::Fp32).expect("drawn"));
    for (position, token) in ids(20, config.vocab_size, 13).into_iter().enumerate() {
        let expected = lm_step(&mut whole, config.group, &Item::Token(token), position).expect("ran");
        assert_eq!(text_step(&mut text, token, position).expect("ran"), expected);
    }
}

#[test]
fn rows_beyond_the_position_are_not_seen() {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let mut runner = runner(&Tract, &graphs::lm::draw(&config, &weights, Precision::Fp32).expect("drawn"));
    let items = sequence(&config, 12, 11);
    let expected = lm_step(&mut runner, config.group, &items[0], 0).expect("ran");
    for (position, item) in items.iter().enumerate() {
        lm_step(&mut runner, config.group, item, position).expect("ran");
    }
    // The cache is full of what came after; a length of 0 forgets it all.
    assert_eq!(lm_step(&mut runner, config.group, &items[0], 0).expect("ran"), expected);
}

/// Forms with the relative error that random networks of this size may have in them.
const FORMS: [(Precision, f64); 4] =
    [(Precision::Fp16, 2e-3), (Precision::Int8Weights, 0.05), (Precision::Int8, 0.1), (Precision::Int4, 0.3)];

fn is_near(stage: &str, precision: Precision, error: f64, budget: f64) {
    assert!(error < budget, "{stage} in {precision}: {error}");
    assert!(error > 0.0, "the {stage} in {precision} is exact: it is not in that form");
}

fn quantised_lm_is_near(engine: &dyn Engine) {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    for (precision, budget) in FORMS {
        let mut trunk = runner(engine, &graphs::lm::draw(&config, &weights, precision).expect("drawn"));
        let mut head = runner(engine, &graphs::head::draw(&config, &weights, precision).expect("drawn"));
        let (text, units) = lm(&network, &config, &mut trunk, &mut head, &sequence(&config, 20, 12)).expect("ran");
        is_near("lm", precision, text.error(), budget);
        is_near("head", precision, units.error(), budget);
    }
}

fn quantised_tokenizer_is_near(engine: &dyn Engine) {
    let (config, network) = tiny_tokenizer();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    let audio = noise(5 * config.chunk_samples(), 14);
    for (precision, budget) in FORMS {
        let graph = graphs::tokenizer::draw(&config, &weights, precision, true).expect("drawn");
        let mut runner = match Runner::new(engine, &graph) {
            Ok(runner) => runner,
            // tract 0.23 slices the 4-bit weights of what is kept for the next chunk. That is told, and not passed on.
            Err(RunError::Engine { .. }) if (engine.name(), precision) == ("tract", Precision::Int4) => continue,
            Err(error) => panic!("{precision}: {error}"),
        };
        let distance = tokenizer(&network, &config, &mut runner, &audio).expect("ran");
        is_near("tokenizer", precision, distance.error(), budget);
    }
}

fn quantised_decoder_is_near(engine: &dyn Engine) {
    let (config, network) = tiny_decoder();
    let weights = saved(&network, &config, checkpoint::Precision::F32);
    for (precision, budget) in FORMS {
        let graph = graphs::decoder::draw(&config, &weights, precision, decoder_state(&network)).expect("drawn");
        let distance = decoder(&network, &mut runner(engine, &graph), &ids(16, config.units + 1, 15)).expect("ran");
        is_near("decoder", precision, distance.error(), budget);
    }
}

#[test]
fn quantised_graphs_are_near() {
    quantised_lm_is_near(&Tract);
    quantised_tokenizer_is_near(&Tract);
    quantised_decoder_is_near(&Tract);
}

/// The same on the second engine; `tests/run.sh` runs these where its library is.
mod on_ort {
    use super::*;
    use sa_device::engine::{EngineName, Wish};

    fn ort() -> Box<dyn Engine> {
        let library = std::env::var_os("SA_ORT_LIBRARY").map(Into::into);
        let wish = Wish { engine: EngineName::Ort, library, ..Wish::default() };
        wish.open(|_| ()).expect("SA_ORT_LIBRARY names the library of ONNX Runtime")
    }

    #[test]
    #[ignore = "needs the library of ONNX Runtime"]
    fn the_fp32_graphs_are_the_networks() {
        let engine = ort();
        tokenizer_graph_is_the_network(&*engine);
        decoder_graph_is_the_network(&*engine);
        lm_and_head_graphs_are_the_network(&*engine);
    }

    #[test]
    #[ignore = "needs the library of ONNX Runtime"]
    fn quantised_graphs_are_near() {
        let engine = ort();
        quantised_lm_is_near(&*engine);
        quantised_tokenizer_is_near(&*engine);
        quantised_decoder_is_near(&*engine);
    }
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused_by_name() {
    let (config, network) = tiny_lm();
    let weights = saved(&network, &config, checkpoint::Precision::F16);
    let deeper = lm::Config { num_hidden_layers: 3, ..config.clone() };
    let error = graphs::lm::draw(&deeper, &weights, Precision::Fp32).expect_err("a layer is missing");
    assert!(matches!(&error, WeightsError::Missing { name, .. } if name == "model.layers.2.self_attn.q_proj.weight"), "{error}");
    let wider = lm::Config { intermediate_size: 28, ..config };
    let error = graphs::lm::draw(&wider, &weights, Precision::Fp32).expect_err("the shape differs");
    assert!(matches!(&error, WeightsError::Shape { name, .. } if name.ends_with("gate_proj.weight")), "{error}");
}
