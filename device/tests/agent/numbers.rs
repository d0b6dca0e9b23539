//! What engines compute: 8-bit products against sums done here, and every graph of every bundle against tract.

use std::path::Path;

use sa_device::bundle::{DType, FileEntry, StageEntry, StageName, TensorEntry};
use sa_device::engine::{Engine, Session, Tract, Values};

use super::engines::{caches, each_stage, fill, load, outputs, states};
use super::onnx::{Attribute, Graph};

on_each_engine!(dynamic_quantisation_is_exact, an_input_that_passes_through_is_not_shared, steps_agree_with_tract);

/// Relative L2 error that single precision may show after the steps of a test: other orders of summation.
const CLOSE: f64 = 1e-5;
/// The same for 8-bit products. Here the engines agree to 1e-6; on another processor an activation may fall on the other
/// side of a rounding, by 1/255 of its range. A tenth of what quantisation itself costs (0.02), so that it is noticed
/// when an engine computes in another precision.
const QUANTISED: f64 = 2e-3;
/// The same for one step: what has fallen on the other side is quantised again by every layer behind it. In twelve steps 0.008 in a tokenizer's
/// states from the third on, with the same units, 0.007 in a decoder's phases in the last and 1e-7 in the eleven before, 0.008 in a language
/// model's logits in the second and 0.009 in its head's in the fifth, 1e-7 or nothing in the eleven others.
const QUANTISED_STEP: f64 = 1e-2;

/// A graph of one input `x` and one output `y`.
fn small(dir: &Path, width: usize, out: usize, draw: impl FnOnce(&mut Graph, &str) -> String) -> StageEntry {
    let mut g = Graph::new(21);
    let x = g.input("x", &[1, width], false);
    let y = draw(&mut g, &x);
    g.output("y", &y, &[1, out], false);
    std::fs::write(dir.join("small.onnx"), g.encode("small")).expect("writable");
    StageEntry {
        graph: FileEntry::named("small.onnx"),
        precision: "fp32".into(),
        chunk: 1,
        latency_ms: 0.0,
        initial: None,
        inputs: vec![TensorEntry::f32("x", &[1, width])],
        outputs: vec![TensorEntry::f32("y", &[1, out])],
    }
}

/// The exporter's int8 form, against the same sums done here: the engines agree to the last 8-bit step.
fn dynamic_quantisation_is_exact(engine: &dyn Engine) {
    const WIDTH: usize = 96;
    const OUT: usize = 64;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let weights: Vec<i8> = (0..WIDTH * OUT).map(|i| ((i * 37 + i / 7) % 255) as i8).map(|w| w.max(-127)).collect();
    let scales: Vec<f32> = (0..OUT).map(|i| 0.001 + 0.0001 * i as f32).collect();
    let entry = small(dir.path(), WIDTH, OUT, |g, x| {
        let [quantised, scale, zero] = g.op_many("DynamicQuantizeLinear", &[x]);
        let (w, w_zero, w_scales) = (g.i8(&[WIDTH, OUT], &weights), g.i8(&[], &[0]), g.f32(&[OUT], &scales));
        let product = g.op("MatMulInteger", &[&quantised, &w, &zero, &w_zero], &[]);
        let product = g.op("Cast", &[&product], &[("to", Attribute::Int(1))]);
        let scale = g.op("Mul", &[&scale, &w_scales], &[]);
        g.op("Mul", &[&product, &scale], &[])
    });
    let mut session = engine.load(&dir.path().join("small.onnx"), &entry).expect("loads");
    for seed in 1..6 {
        fill(&mut *session, seed);
        let x = session.f32_input(0).expect("f32").to_vec();
        let low = x.iter().fold(0.0f32, |a, b| a.min(*b));
        let high = x.iter().fold(0.0f32, |a, b| a.max(*b));
        let scale = (high - low) / 255.0;
        let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i32;
        let quantised: Vec<i32> = x.iter().map(|v| ((v / scale).round_ties_even() as i32 + zero).clamp(0, 255)).collect();
        let expected: Vec<f32> = (0..OUT)
            .map(|o| {
                let sum: i32 = quantised.iter().enumerate().map(|(i, q)| (q - zero) * i32::from(weights[i * OUT + o])).sum();
                sum as f32 * (scale * scales[o])
            })
            .collect();
        let Values::F32(found) = outputs(&mut *session).remove(0).1 else { panic!("y is f32") };
        let error = relative(&found, &expected);
        assert!(error < 1e-6, "seed {seed}: error {error:e}");
    }
}

/// An output that is an input, unchanged, keeps its value when the input is written.
fn an_input_that_passes_through_is_not_shared(engine: &dyn Engine) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let entry = small(dir.path(), 4, 4, |_, x| x.to_owned());
    let mut session = engine.load(&dir.path().join("small.onnx"), &entry).expect("loads");
    session.f32_input(0).expect("f32").fill(1.0);
    session.run().expect("runs");
    session.f32_input(0).expect("f32").fill(2.0);
    assert_eq!(session.f32_output(0).expect("was run"), [1.0; 4]);
    session.run().expect("runs");
    session.hand_over(0, 0).expect("fits");
    session.run().expect("runs");
    assert_eq!(session.f32_output(0).expect("was run"), [2.0; 4]);
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (difference / square(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)).sqrt()
}

/// Both engines make the same steps, each with its own states and caches; errors of a step go on into the next.
fn steps_agree_with_tract(engine: &dyn Engine) {
    const STEPS: usize = 12;
    each_stage(|bundle, name, entry| {
        let (mut one, mut two) = (load(&Tract, bundle, name), load(engine, bundle, name));
        let initial = bundle.initial_states(name).expect("readable");
        for session in [&mut one, &mut two] {
            for (state, values) in &initial {
                let input = session.input(state).expect("declared");
                session.f32_input(input).expect("f32").copy_from_slice(values);
            }
        }
        // What a step may show, what the others may, and how many are no others: a tokenizer keeps what fell on the other side for as long as it
        // looks back, a decoder for a few frames, a language model and its head for that step.
        let (bound, usual, exceptions) = match (entry.precision.as_str(), name) {
            ("int8", StageName::Tokenizer) => (QUANTISED_STEP, QUANTISED_STEP, 0),
            ("int8", StageName::Decoder) => (QUANTISED_STEP, QUANTISED, STEPS / 2 - 1),
            ("int8", _) => (QUANTISED_STEP, QUANTISED, 1),
            _ => (CLOSE, CLOSE, 0),
        };
        let (mut same, mut all, mut worst) = (0, 0, [0.0f64; STEPS]);
        for (step, worst) in worst.iter_mut().enumerate() {
            let (expected, found) = (advance(&mut *one, step), advance(&mut *two, step));
            for (output, values) in expected {
                let other = found.iter().find(|(name, _)| *name == output).map(|(_, values)| values);
                match (values, other) {
                    (Values::F32(expected), Some(Values::F32(found))) => {
                        let error = relative(found, &expected);
                        *worst = worst.max(error);
                        assert!(error <= bound, "{} {name} {output}, step {step}: error {error:e}", bundle.manifest().name);
                    }
                    (Values::I64(expected), Some(Values::I64(found))) => {
                        same += expected.iter().zip(found).filter(|(a, b)| a == b).count();
                        all += expected.len();
                    }
                    _ => panic!("{name} {output}: another type"),
                }
            }
        }
        worst.sort_by(f64::total_cmp);
        let (median, most, other) = (worst[STEPS / 2], worst[STEPS - 1], worst[STEPS - 1 - exceptions]);
        println!(
            "{} {name}: error {median:.1e}, at most {most:.1e} in {STEPS} steps, {same} of {all} units the same",
            bundle.manifest().name
        );
        assert!(other <= usual, "{} {name}: error {other:e} in more than {exceptions} of {STEPS} steps", bundle.manifest().name);
        assert!(same * 100 >= all * 98, "{name}: {same} of {all} units are the same");
    });
}

/// One step on seeded inputs, as the runtime makes it.
fn advance(session: &mut dyn Session, step: usize) -> Vec<(String, Values)> {
    let mut random = Graph::new(step as u64 + 1);
    for (input, tensor) in session.inputs().to_vec().iter().enumerate() {
        match (tensor.name.as_str(), tensor.dtype) {
            ("position", _) => session.i64_input(input).expect("i64")[0] = step as i64,
            ("is_group", _) => session.f32_input(input).expect("f32")[0] = (step % 2) as f32,
            (name, _) if name.starts_with("state.") || name.starts_with("cache.") => {}
            (_, DType::F32) => session.f32_input(input).expect("f32").iter_mut().for_each(|v| *v = 0.3 * random.random()),
            (_, DType::I64) => session.i64_input(input).expect("i64").iter_mut().for_each(|v| *v = (11.0 * random.random().abs()) as i64),
        }
    }
    let outputs = outputs(session);
    for (input, output) in states(session) {
        session.hand_over(output, input).expect("fits");
    }
    for (input, output) in caches(session) {
        session.write_rows(output, input, step).expect("fits");
    }
    outputs
}
