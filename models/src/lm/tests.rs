//! The language model as a whole: it learns a handful of dialogues by heart, generates them, and trains reproducibly.

use std::path::Path;

use burn::tensor::Device;

use crate::corpus::{Grammar, Turn, Vocabulary};
use crate::train::{CommonArgs, DeviceChoice, Run, average, checkpoint};

use super::config::{Config, HeadConfig};
use super::data::{Material, MixConfig, Question};
use super::fused::Parameters;
use super::generate::Generator;
use super::network::{Cache, Network};
use super::sequence::Spoken;
use super::train::{Resources, TrainConfig, train};

fn grammar() -> Grammar {
    Grammar::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/grammar/home.toml"))).expect("the shipped grammar")
}

fn vocabulary() -> Vocabulary {
    Vocabulary::from_words(&"and bedroom is it kitchen light now okay off on set the turn".split(' ').map(str::to_owned).collect())
}

fn turn(question: &str, call: Option<&str>, reply: &str) -> Turn {
    Turn { question: question.into(), call: call.map(Into::into), result: call.map(|_| "okay".into()), reply: reply.into() }
}

/// A reply whose word number i has 3 + i units, the second word's just a group.
fn spoken(text: &str) -> Spoken {
    let units = |i: u16| (0..3 + i).map(move |u| (11 * u + 5 * i) % 30).collect();
    Spoken { words: text.split(' ').enumerate().map(|(i, word)| (word.into(), units(i as u16))).collect() }
}

/// Three questions: with a call and a spoken reply, without a call, and one that leans on the turn before.
fn material() -> Material {
    let question = |id: u16, turn: Turn, history: Vec<Turn>| Question {
        id: format!("q{id}"),
        category: "lights".into(),
        set: "trained".into(),
        voice: "test".into(),
        text: turn.question.clone(),
        turn: Some(turn),
        history,
        copies: vec![],
        units: (0..14 + id).map(|i| (7 * i * (id + 1) + id) % 30).collect(),
    };
    let kitchen = turn("turn on the kitchen light", Some("light set kitchen on"), "okay the bo light is on");
    Material {
        questions: vec![
            question(0, kitchen.clone(), vec![]),
            question(1, turn("is the light on", None, "it is"), vec![]),
            question(2, turn("and the bedroom", Some("light set bedroom on"), "okay the bedroom light is on"), vec![kitchen]),
        ],
        replies: ["okay the bo light is on", "it is", "okay the bedroom light is on"].map(spoken).to_vec(),
    }
}

fn config(vocabulary: &Vocabulary) -> TrainConfig {
    let model = Config {
        vocab_size: vocabulary.len(),
        units: 30,
        group: 4,
        unit_embedding_size: 12,
        hidden_size: 48,
        intermediate_size: 96,
        num_hidden_layers: 2,
        head_dim: 12,
        max_position_embeddings: 96,
        head: HeadConfig { num_hidden_layers: 1, num_attention_heads: 4, head_dim: 12, intermediate_size: 64 },
        ..Config::nano(0, 0)
    };
    let mut config = TrainConfig::new(model, 3);
    config.batch = 8;
    config.optimizer.warmup = 10;
    config.optimizer.learning_rate = 5e-3;
    config.mix = MixConfig { question: 0.75, transcribe: 0.0, text: 0.0, say: 0.25, corruption: [0.0, 0.0], spoken: 1.0, shift: false };
    config
}

/// Trains in `dir` for `total` steps, or one step at a time.
fn run(dir: &Path, config: &TrainConfig, vocabulary: &Vocabulary, material: &Material, total: u64, one: bool) -> Network {
    run_on(&Where { dir, from: None, threads: 1 }, config, vocabulary, material, total, one)
}

/// A run's folder, the weights that it begins with, and its threads.
struct Where<'a> {
    dir: &'a Path,
    from: Option<(&'a Path, f64)>,
    threads: usize,
}

fn run_on(place: &Where<'_>, config: &TrainConfig, vocabulary: &Vocabulary, material: &Material, total: u64, one: bool) -> Network {
    let (dir, minutes) = (place.dir, one.then_some(0.0));
    let args =
        CommonArgs { corpus: dir.into(), output: dir.into(), minutes, seed: config.seed, device: DeviceChoice::Cpu, save_every: total };
    let (grammar, dev) = (grammar(), Material::default());
    let resources = Resources {
        vocabulary,
        grammar: &grammar,
        train: material,
        dev: &dev,
        from: place.from,
        device: Device::flex(),
        fused: true,
        threads: place.threads,
        finish_in: None,
    };
    train(config, &resources, Run::open(dir, config, total, &args).expect("opened")).expect("trained")
}

fn losses(dir: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(dir.join("log.jsonl")).expect("a log");
    log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["loss"].as_f64().expect("a loss")).collect()
}

#[test]
fn a_few_dialogues_are_learnt_by_heart_and_generated() {
    let (vocabulary, material) = (vocabulary(), material());
    let config = config(&vocabulary);
    let dir = tempfile::tempdir().expect("a folder");
    let network = run(dir.path(), &config, &vocabulary, &material, 160, false);
    let last = losses(dir.path())[159];
    assert!(last < 0.1, "loss {last}");
    let parameters = Parameters::of(&network, &config.model);
    let mut generator = Generator::new(&config.model, &parameters, &vocabulary);
    // The few dialogues are learnt spoken, not written.
    generator.plan = false;
    for question in &material.questions {
        let turn = question.turn.as_ref().expect("a turn");
        let answer = generator.answer(&question.history, &question.units, |_| "okay".into());
        assert_eq!(answer.transcript, turn.question);
        assert_eq!(
            answer.calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(),
            turn.call.as_deref().into_iter().collect::<Vec<_>>()
        );
        assert_eq!(answer.reply, turn.reply);
    }
    let answer = generator.answer(&[], &material.questions[0].units, |_| "okay".into());
    assert_eq!(answer.words, material.replies[0].words);
    assert_eq!(generator.say("okay the bo light is on").words, material.replies[0].words);
}

#[test]
fn the_same_seed_gives_the_same_losses_and_a_resumed_run_goes_on_exactly() {
    let (vocabulary, material) = (vocabulary(), material());
    let mut config = config(&vocabulary);
    config.mix = MixConfig::default();
    config.model.vocab_size = vocabulary.len();
    // models/train.sh trains on two threads.
    for threads in [1, 2] {
        let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
        let go = |dir: usize, one| {
            let place = Where { dir: dirs[dir].path(), from: None, threads };
            run_on(&place, &config, &vocabulary, &material, 20, one)
        };
        go(0, false);
        go(1, false);
        assert_eq!(losses(dirs[0].path()), losses(dirs[1].path()), "{threads} threads");
        for _ in 0..3 {
            go(2, true);
        }
        go(2, false);
        assert_eq!(losses(dirs[0].path()), losses(dirs[2].path()), "{threads} threads, resumed");
    }
}

#[test]
fn a_run_may_begin_where_another_ended_and_keep_some_of_it() {
    let (vocabulary, material) = (vocabulary(), material());
    let config = config(&vocabulary);
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    run(dirs[0].path(), &config, &vocabulary, &material, 60, false);
    let from = dirs[0].path().join("checkpoint");
    let place = Where { dir: dirs[1].path(), from: Some((&from, 0.25)), threads: 1 };
    let config = TrainConfig { seed: 4, ..config };
    let learnt = run_on(&place, &config, &vocabulary, &material, 2, false);
    let (first, then) = (losses(dirs[0].path()), losses(dirs[1].path()));
    assert!(then[0] < 0.5 * first[0], "{} at first, {} at the end, then {then:?}", first[0], first[59]);
    let weights = |dir: &Path| {
        let network = checkpoint::load_weights(dir, Network::seeded(&config.model, 9, &Device::flex())).expect("loaded");
        Parameters::of(&network, &config.model)
    };
    let expected = average(checkpoint::load_weights(&from, learnt.clone()).expect("loaded"), &learnt, 0.25);
    let expected = Parameters::of(&expected, &config.model);
    let written = weights(&dirs[1].path().join("checkpoint"));
    assert!(written == expected && written != weights(&from) && written != Parameters::of(&learnt, &config.model));
}

#[test]
fn generation_reads_as_burns_network_does() {
    let device = Device::flex();
    device.seed(9);
    let vocabulary = vocabulary();
    let config = config(&vocabulary).model;
    let network = Network::new(&config, &device);
    let parameters = Parameters::of(&network, &config);
    let generator = Generator::new(&config, &parameters, &vocabulary);
    let units = [3, 4, 5, 6, 7, 8];
    let (hidden, group) = generator.probe(&units);
    // <user> [3 4 5 6] [7 8 end end] <transcribe>
    let ints = |values: Vec<i32>, shape| {
        burn::tensor::Tensor::<1, burn::tensor::Int>::from_data(burn::tensor::TensorData::new(values, [shape]), &device)
    };
    let tokens = network.embed_tokens(ints(vec![1, 2], 2));
    let groups = network.embed_groups(ints(vec![3, 4, 5, 6, 7, 8, 30, 30], 8).reshape([2, 4]));
    let mut cache = Cache::default();
    let d = config.hidden_size;
    let rows = [tokens.clone().narrow(0, 0, 1), groups.clone().narrow(0, 0, 1), groups.narrow(0, 1, 1), tokens.narrow(0, 1, 1)];
    let mut last = None;
    for row in rows {
        last = Some(network.step(&config, row, &mut cache).1);
    }
    let last = last.expect("four steps");
    let expected = last.clone().reshape([d]).into_data().try_into_vec::<f32>().expect("floats");
    let error = hidden.iter().zip(&expected).fold(0.0f32, |e, (a, b)| e.max((a - b).abs()));
    assert!(error < 1e-4, "{error}");
    let logits = network.unit_logits(last);
    let best = logits.argmax(2).reshape([4]).into_data().convert::<i32>().try_into_vec::<i32>().expect("indices");
    assert_eq!(group.iter().map(|unit| i32::from(*unit)).collect::<Vec<_>>(), best);
}

#[test]
fn a_plan_leaves_no_trace() {
    let device = Device::flex();
    device.seed(11);
    let vocabulary = vocabulary();
    let config = config(&vocabulary).model;
    let parameters = Parameters::of(&Network::new(&config, &device), &config);
    let generator = Generator::new(&config, &parameters, &vocabulary);
    let units = [3, 4, 5, 6, 7, 8];
    assert_eq!(generator.probe_speak(&units, true), generator.probe_speak(&units, false));
    assert_eq!(generator.say("bo on").reply, "bo on", "a text is said as it is");
}

/// `cargo test -p sa-models rehearsal -- --ignored --nocapture`: the nano network on the shipped grammar, with each letter standing
/// for a few units in place of speech. Shows the pace and whether the mixture learns.
#[test]
#[ignore = "minutes; a rehearsal of the real training"]
fn rehearsal() {
    use super::evaluate::evaluate;
    use super::sequence::Task;
    use crate::corpus::Split;
    use rand::Rng;
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let grammar = grammar();
    let mut rng = crate::train::step_rng(1, 0, 0);
    let vocabulary = Vocabulary::from_words(grammar.words());
    let sound = |text: &str, rng: &mut rand_chacha::ChaCha8Rng| -> Vec<u16> {
        text.bytes()
            .flat_map(|letter| {
                (0..1 + rng.random_range(0..2)).map(|_| (u16::from(letter % 32) * 15 + rng.random_range(0..15)) % 500).collect::<Vec<_>>()
            })
            .collect()
    };
    let mut questions = |split, count| {
        let drawn = (0..count).map(|i| {
            let sampled = grammar.sample(&mut rng, split);
            let units = sound(&sampled.turn.question, &mut rng);
            let (set, voice, text) = ("trained".into(), "letters".into(), sampled.turn.question.clone());
            Question {
                id: format!("q{i}"),
                category: sampled.category,
                set,
                voice,
                text,
                turn: Some(sampled.turn),
                history: sampled.history,
                copies: vec![],
                units,
            }
        });
        drawn.collect::<Vec<_>>()
    };
    let mut material = Material { questions: questions(Split::Train, 60_000), replies: vec![] };
    let dev = Material { questions: questions(Split::Test, 400), replies: vec![] };
    let mut texts = std::collections::BTreeSet::new();
    for question in questions(Split::Train, 200_000) {
        if texts.len() < 5_000 {
            texts.extend(question.turn.map(|turn| turn.reply));
        }
    }
    let mut rng = crate::train::step_rng(2, 0, 0);
    material.replies = texts
        .iter()
        .map(|text| Spoken {
            words: text
                .split(' ')
                .map(|word| {
                    (
                        word.into(),
                        (0..3 * word.len()).map(|i| (u16::from(word.as_bytes()[i / 3] % 32) * 15 + rng.random_range(0..2)) % 500).collect(),
                    )
                })
                .collect(),
        })
        .collect();
    let mut config = TrainConfig::new(Config::nano(vocabulary.len(), 500), 1);
    config.batch = number("BATCH", 40) as usize;
    config.optimizer.learning_rate = number("LR_MICRO", 2000) as f64 * 1e-6;
    let composer = super::sequence::Composer { vocabulary: &vocabulary, group: 4, end_unit: 500, transcript: true };
    let mut sampler = super::data::Sampler::new(&config.model, &config.mix, composer, &material, &grammar, 1, 1_000).expect("a sampler");
    eprintln!("{} tokens, {} of 60000 questions have a spoken reply", vocabulary.len(), sampler.spoken_questions());
    let batch = sampler.batch(0);
    for task in Task::ALL {
        let lengths = batch.iter().filter(|sequence| sequence.task == task).map(|sequence| sequence.items.len()).collect::<Vec<_>>();
        eprintln!(
            "{}: {} sequences of {:.1} positions",
            task.name(),
            lengths.len(),
            lengths.iter().sum::<usize>() as f64 / lengths.len() as f64
        );
    }
    let dir = tempfile::tempdir().expect("a folder");
    let args = CommonArgs {
        corpus: dir.path().into(),
        output: dir.path().into(),
        minutes: None,
        seed: 1,
        device: DeviceChoice::Cpu,
        save_every: 10_000,
    };
    let resources = Resources {
        vocabulary: &vocabulary,
        grammar: &grammar,
        train: &material,
        dev: &dev,
        from: None,
        device: Device::flex(),
        fused: true,
        threads: number("THREADS", 1) as usize,
        finish_in: None,
    };
    let steps = number("STEPS", 100);
    let network = train(&config, &resources, Run::open(dir.path(), &config, steps, &args).expect("opened")).expect("trained");
    let parameters = Parameters::of(&network, &config.model);
    let generator = Generator::new(&config.model, &parameters, &vocabulary);
    for typed in [true, false] {
        let clock = std::time::Instant::now();
        let report = evaluate(&generator, &dev.questions[..number("QUESTIONS", 100) as usize], typed);
        eprintln!("typed {typed}, {:.1} s\n{}", clock.elapsed().as_secs_f64(), report.to_text(10));
    }
}
