//! The conformance suite of engines: what `Engine` and `Session` promise, on every bundle of these tests and on the one
//! that is shipped.

use std::path::Path;

use prost::Message;
use sa_device::bundle::{Bundle, DType, StageEntry, StageName, TensorEntry};
use sa_device::engine::{Engine, EngineError, Session, Values, run_by_name};
use sa_device::stage::{Decoder, Tokenizer};
use tract_onnx::pb::ModelProto;

use super::onnx::Graph;
use super::tiny::{self, Tiny, noise};

on_each_engine!(
    a_graph_is_loaded_as_it_is_declared,
    a_graph_that_is_not_as_declared_is_refused,
    a_file_that_is_no_graph_is_refused,
    tensors_are_reached_by_name_and_type,
    a_state_is_handed_over,
    rows_go_to_their_place,
    the_same_input_gives_the_same_output,
    streaming_equals_offline,
);

/// A bundle, and the folder to be kept while it is used.
struct Place {
    _dir: Option<tempfile::TempDir>,
    bundle: Bundle,
}

fn bundles() -> Vec<Place> {
    let groups = [1, 3, 4, 5].map(|group| Tiny { group, ..Tiny::default() });
    let mut places: Vec<Place> = groups
        .iter()
        .map(|tiny| {
            let (dir, bundle) = tiny::bundle(tiny);
            Place { _dir: Some(dir), bundle }
        })
        .collect();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano/bundle");
    places.push(Place { _dir: None, bundle: Bundle::open(&shipped).expect("the shipped bundle is valid") });
    places
}

/// Calls `test` for every stage of every bundle.
pub fn each_stage(mut test: impl FnMut(&Bundle, StageName, &StageEntry)) {
    for place in bundles() {
        for name in StageName::ALL {
            test(&place.bundle, name, place.bundle.manifest().stage.require(name).expect("a whole agent"));
        }
    }
}

pub fn load(engine: &dyn Engine, bundle: &Bundle, name: StageName) -> Box<dyn Session> {
    let entry = bundle.manifest().stage.require(name).expect("a whole agent");
    engine
        .load(&bundle.graph_path(name).expect("a whole agent"), entry)
        .unwrap_or_else(|e| panic!("{} {name}: {e}", bundle.manifest().name))
}

/// Writes seeded values into all inputs: small numbers, and ids that every bundle has.
pub fn fill(session: &mut dyn Session, seed: u64) {
    let mut random = Graph::new(seed);
    for (input, entry) in session.inputs().to_vec().iter().enumerate() {
        match entry.dtype {
            DType::F32 => session.f32_input(input).expect("f32").iter_mut().for_each(|v| *v = 0.2 * random.random()),
            DType::I64 => session.i64_input(input).expect("i64").iter_mut().for_each(|v| *v = (4.0 * random.random().abs()) as i64),
        }
    }
}

pub fn outputs(session: &mut dyn Session) -> Vec<(String, Values)> {
    run_by_name(session, &[]).expect("runs")
}

fn a_graph_is_loaded_as_it_is_declared(engine: &dyn Engine) {
    each_stage(|bundle, name, entry| {
        let mut session = load(engine, bundle, name);
        let sorted = |tensors: &[TensorEntry]| {
            let mut tensors = tensors.to_vec();
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            tensors
        };
        assert_eq!(sorted(session.inputs()), sorted(&entry.inputs), "{name}");
        assert_eq!(sorted(session.outputs()), sorted(&entry.outputs), "{name}");
        for (input, tensor) in session.inputs().to_vec().iter().enumerate() {
            assert_eq!(session.input(&tensor.name), Some(input));
            let zeros = match tensor.dtype {
                DType::F32 => session.f32_input(input).expect("f32").iter().filter(|v| **v == 0.0).count(),
                DType::I64 => session.i64_input(input).expect("i64").iter().filter(|v| **v == 0).count(),
            };
            assert_eq!(zeros, tensor.elements(), "{name} {}: zeros at first", tensor.name);
        }
        assert_eq!((session.input("none"), session.output("none")), (None, None));
    });
}

fn a_graph_that_is_not_as_declared_is_refused(engine: &dyn Engine) {
    each_stage(|bundle, name, entry| {
        let refused = |culprit: &str, change: &dyn Fn(&mut StageEntry)| {
            let mut other = entry.clone();
            change(&mut other);
            let error =
                engine.load(&bundle.graph_path(name).expect("a whole agent"), &other).err().unwrap_or_else(|| panic!("{name} was loaded"));
            assert!(matches!(&error, EngineError::Declared { name, .. } if name == culprit), "{name}: {error}");
        };
        let (input, output) = (entry.inputs[0].name.clone(), entry.outputs[0].name.clone());
        refused("x", &|e| e.inputs[0].name = "x".into());
        refused("x", &|e| e.outputs[0].name = "x".into());
        refused(&input, &|e| e.inputs[0].shape[0] += 1);
        refused(&input, &|e| e.inputs[0].shape.push(1));
        refused(&output, &|e| e.outputs[0].shape[0] += 1);
        refused(&output, &|e| {
            e.outputs[0].dtype = if e.outputs[0].dtype == DType::F32 { DType::I64 } else { DType::F32 };
        });
        refused(&output, &|e| drop(e.outputs.remove(0)));
    });
}

fn a_file_that_is_no_graph_is_refused(engine: &dyn Engine) {
    let (dir, bundle) = tiny::bundle(&Tiny::default());
    let entry = bundle.manifest().stage.require(StageName::Head).expect("a whole agent");
    let good = std::fs::read(bundle.graph_path(StageName::Head).expect("a whole agent")).expect("there");
    let mut lost = ModelProto::decode(&good[..]).expect("a graph");
    lost.graph.as_mut().expect("a graph").output[0].name.push('x');
    let lost = lost.encode_to_vec();
    let files = [("text.onnx", &b"not a graph"[..]), ("empty.onnx", b""), ("cut.onnx", &good[..good.len() / 2]), ("lost.onnx", &lost)];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("writable");
        let error = engine.load(&path, entry).err().unwrap_or_else(|| panic!("{name} was loaded"));
        // An empty file is a graph of nothing to some readers.
        assert!(
            matches!(&error, EngineError::Load { path: told, .. } | EngineError::Declared { path: told, .. } if *told == path),
            "{error}"
        );
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
    assert!(matches!(engine.load(&dir.path().join("none.onnx"), entry), Err(EngineError::Load { .. })));
}

fn tensors_are_reached_by_name_and_type(engine: &dyn Engine) {
    each_stage(|bundle, name, entry| {
        let mut session = load(engine, bundle, name);
        for (output, tensor) in session.outputs().to_vec().iter().enumerate() {
            assert!(matches!(session.f32_output(output), Err(EngineError::NotRun { .. })), "{name} {}", tensor.name);
            assert!(matches!(session.i64_output(output), Err(EngineError::NotRun { .. })), "{name} {}", tensor.name);
        }
        let given = entry.inputs.iter().map(|tensor| {
            let values = match tensor.dtype {
                DType::F32 => Values::F32(vec![0.25; tensor.elements()]),
                DType::I64 => Values::I64(vec![1; tensor.elements()]),
            };
            (tensor.name.as_str(), values)
        });
        let given: Vec<(&str, Values)> = given.collect();
        let found = run_by_name(&mut *session, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.len(), entry.outputs.len());
        for (output, values) in &found {
            let tensor = entry.output(output).expect("declared");
            let (dtype, count) = match values {
                Values::F32(values) => (DType::F32, values.len()),
                Values::I64(values) => (DType::I64, values.len()),
            };
            assert_eq!((dtype, count), (tensor.dtype, tensor.elements()), "{name} {output}");
        }
        for (input, tensor) in session.inputs().to_vec().iter().enumerate() {
            let wrong = match tensor.dtype {
                DType::F32 => session.i64_input(input).err(),
                DType::I64 => session.f32_input(input).err(),
            };
            assert!(matches!(wrong, Some(EngineError::Type { .. })), "{name} {}", tensor.name);
            let error = run_by_name(&mut *session, &[(&tensor.name, Values::F32(vec![0.0; tensor.elements() + 1]))]);
            assert!(matches!(error, Err(EngineError::Input { .. } | EngineError::Type { .. })), "{name} {}", tensor.name);
        }
        for (output, tensor) in session.outputs().to_vec().iter().enumerate() {
            let wrong = match tensor.dtype {
                DType::F32 => session.i64_output(output).err(),
                DType::I64 => session.f32_output(output).err(),
            };
            assert!(matches!(wrong, Some(EngineError::Type { .. })), "{name} {}", tensor.name);
        }
        assert!(matches!(run_by_name(&mut *session, &[("none", Values::F32(vec![]))]), Err(EngineError::Input { .. })));
    });
}

/// Numbers of each state's input and output.
pub fn states(session: &dyn Session) -> Vec<(usize, usize)> {
    let inputs = session.inputs().iter().enumerate().filter(|(_, input)| input.name.starts_with("state."));
    inputs.map(|(input, tensor)| (input, session.output(&format!("{}.next", tensor.name)).expect("states come back"))).collect()
}

/// Numbers of each cache's input and output.
pub fn caches(session: &dyn Session) -> Vec<(usize, usize)> {
    let inputs = session.inputs().iter().enumerate().filter(|(_, input)| input.name.starts_with("cache."));
    inputs.map(|(input, tensor)| (input, session.output(&format!("{}.new", tensor.name)).expect("caches grow"))).collect()
}

fn a_state_is_handed_over(engine: &dyn Engine) {
    each_stage(|bundle, name, _| {
        let mut session = load(engine, bundle, name);
        let states = states(&*session);
        if let Some((input, output)) = states.first() {
            assert!(matches!(session.hand_over(*output, *input), Err(EngineError::NotRun { .. })), "{name}");
        }
        fill(&mut *session, 5);
        session.run().expect("runs");
        for (input, output) in &states {
            let next = session.f32_output(*output).expect("was run").to_vec();
            session.hand_over(*output, *input).expect("fits");
            // Once more changes nothing.
            session.hand_over(*output, *input).expect("fits");
            assert_eq!(session.f32_output(*output).expect("can still be read"), next, "{name}");
            assert_eq!(session.f32_input(*input).expect("f32"), next, "{name}");
            session.f32_input(*input).expect("f32").fill(7.0);
            assert_eq!(session.f32_output(*output).expect("stays as it is"), next, "{name}");
            session.hand_over(*output, *input).expect("fits");
            assert_eq!(session.f32_input(*input).expect("f32"), next, "{name}");
        }
        // A second run from the states that were handed over, and one from copies of them, are the same.
        let inputs: Vec<Vec<f32>> = states.iter().map(|(input, _)| session.f32_input(*input).expect("f32").to_vec()).collect();
        let second = outputs(&mut *session);
        let mut fresh = load(engine, bundle, name);
        fill(&mut *fresh, 5);
        for ((input, _), values) in states.iter().zip(&inputs) {
            fresh.f32_input(*input).expect("f32").copy_from_slice(values);
        }
        assert_eq!(outputs(&mut *fresh), second, "{name}");
        let wrong = (0..session.outputs().len()).flat_map(|output| (0..session.inputs().len()).map(move |input| (output, input)));
        let wrong = wrong.filter(|(output, input)| session.outputs()[*output].shape != session.inputs()[*input].shape);
        for (output, input) in wrong.collect::<Vec<_>>() {
            assert!(matches!(session.hand_over(output, input), Err(EngineError::Input { .. })), "{name}");
        }
    });
}

fn rows_go_to_their_place(engine: &dyn Engine) {
    each_stage(|bundle, name, _| {
        let mut session = load(engine, bundle, name);
        let caches = caches(&*session);
        fill(&mut *session, 6);
        if let Some((input, output)) = caches.first() {
            assert!(matches!(session.write_rows(*output, *input, 0), Err(EngineError::NotRun { .. })), "{name}");
        }
        session.run().expect("runs");
        for (input, output) in caches {
            let [heads, all, row] = session.inputs()[input].shape[..] else { panic!("caches have three dimensions") };
            let new = session.f32_output(output).expect("was run").to_vec();
            let mut expected = session.f32_input(input).expect("f32").to_vec();
            for at in [3, all - 1] {
                session.write_rows(output, input, at).expect("fits");
                for head in 0..heads {
                    expected[(head * all + at) * row..][..row].copy_from_slice(&new[head * row..][..row]);
                }
            }
            assert_eq!(session.f32_input(input).expect("f32"), expected, "{name}");
            assert!(matches!(session.write_rows(output, input, all), Err(EngineError::Input { .. })), "{name}: beyond the end");
            let token = session.input("token").expect("of every language model");
            assert!(matches!(session.write_rows(output, token, 0), Err(EngineError::Type { .. })), "{name}");
            // The next run sees what was written.
            let before = outputs(&mut *session);
            let position = session.input("position").expect("of every language model");
            session.i64_input(position).expect("i64")[0] = 5;
            session.f32_input(input).expect("f32").fill(0.5);
            assert_ne!(outputs(&mut *session), before, "{name}");
        }
    });
}

fn the_same_input_gives_the_same_output(engine: &dyn Engine) {
    each_stage(|bundle, name, _| {
        let (mut one, mut two) = (load(engine, bundle, name), load(engine, bundle, name));
        fill(&mut *one, 8);
        fill(&mut *two, 8);
        let first = outputs(&mut *one);
        assert_eq!(outputs(&mut *two), first, "{name}: two sessions");
        fill(&mut *one, 9);
        assert_ne!(outputs(&mut *one), first, "{name}: the input matters");
        fill(&mut *one, 8);
        assert_eq!(outputs(&mut *one), first, "{name}: two runs");
    });
}

fn streaming_equals_offline(engine: &dyn Engine) {
    for Place { bundle, .. } in bundles() {
        let audio = noise(30_000);
        let mut tokenizer = Tokenizer::open(engine, &bundle).expect("loads");
        let units = tokenizer.forward(&audio).expect("runs");
        let mut streamed = Vec::new();
        for piece in audio.chunks(997) {
            tokenizer.step(piece, &mut streamed).expect("runs");
        }
        tokenizer.flush(&mut streamed).expect("runs");
        assert_eq!(streamed[bundle.manifest().tokenizer_delay()..], units);
        let mut decoder = Decoder::open(engine, &bundle).expect("loads");
        let samples = decoder.forward(&units).expect("runs");
        let mut streamed = Vec::new();
        for piece in units.chunks(3) {
            decoder.step(piece, &mut streamed).expect("runs");
        }
        decoder.flush(&mut streamed).expect("runs");
        assert_eq!(streamed, samples);
    }
}
