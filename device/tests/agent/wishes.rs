//! Wishes for engines and devices: how they are written, and what becomes of them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use sa_device::bundle::{FileEntry, StageEntry, TensorEntry};
use sa_device::engine::{Device, Engine, EngineError, EngineName, Wish};

use super::onnx::Graph;

fn wish(engine: EngineName, device: Device) -> Wish {
    Wish { engine, device, library: Some("/none/libonnxruntime.so".into()) }
}

fn open(wish: &Wish) -> Result<Box<dyn Engine>, EngineError> {
    wish.open(|message| panic!("nothing is to be said, but: {message}"))
}

#[test]
fn names_are_read_and_written_alike() {
    for (text, device) in [
        ("auto", Device::Auto),
        ("cpu", Device::Cpu { threads: 1 }),
        ("cpu:4", Device::Cpu { threads: 4 }),
        ("cuda:0", Device::Cuda { index: 0 }),
        ("tensorrt:1", Device::TensorRt { index: 1 }),
    ] {
        assert_eq!(text.parse::<Device>().expect("a device"), device);
        assert_eq!(device.to_string(), text);
    }
    assert_eq!("cuda".parse::<Device>().expect("a device"), Device::Cuda { index: 0 });
    assert_eq!("tensorrt".parse::<Device>().expect("a device"), Device::TensorRt { index: 0 });
    for text in ["", "gpu", "cpu:", "cpu:0", "cpu:65", "cpu:x", "cuda:-1", "cuda:0:1", "auto:1", "CPU"] {
        let error = text.parse::<Device>().expect_err(text).to_string();
        assert!(error.starts_with(&format!("no device `{text}`")) && error.contains("cpu:N"), "{error}");
    }
    assert_eq!("ort".parse::<EngineName>().expect("an engine"), EngineName::Ort);
    assert!("onnx".parse::<EngineName>().is_err_and(|e| e.to_string() == "no engine `onnx`; there are: auto, tract, ort"));
}

#[test]
fn tract_is_what_runs_on_one_thread() {
    for engine in [EngineName::Auto, EngineName::Tract] {
        for device in [Device::Auto, Device::Cpu { threads: 1 }] {
            assert_eq!(open(&wish(engine, device)).expect("always there").name(), "tract");
        }
    }
    for (device, part) in [(Device::Cpu { threads: 2 }, "one thread"), (Device::Cuda { index: 0 }, "the CPU")] {
        let error = open(&wish(EngineName::Tract, device)).err().expect("tract cannot");
        assert!(matches!(&error, EngineError::Device { engine: "tract", .. }) && error.to_string().contains(part), "{error}");
    }
}

/// More threads or a graphics card need ONNX Runtime, whether it is named or not.
#[test]
fn what_tract_cannot_do_needs_onnx_runtime() {
    let devices = [Device::Cpu { threads: 2 }, Device::Cuda { index: 0 }, Device::TensorRt { index: 0 }];
    let automatic = devices.map(|device| wish(EngineName::Auto, device));
    for wish in automatic.iter().chain(&[wish(EngineName::Ort, Device::Auto)]) {
        let error = open(wish).err().expect("there is no library");
        let fits = if cfg!(feature = "ort") {
            matches!(&error, EngineError::Library { message } if message.contains("/none/libonnxruntime.so"))
        } else {
            matches!(&error, EngineError::NotBuilt { .. }) && error.to_string().contains("--features ort")
        };
        assert!(fits, "{wish:?}: {error}");
    }
}

/// A graph that is good ONNX, of an operator that tract lacks: the determinant of a matrix.
fn unusual(dir: &Path) -> StageEntry {
    let mut g = Graph::new(1);
    let x = g.input("x", &[2, 2], false);
    let y = g.op("Det", &[&x], &[]);
    let y = g.reshape(&y, &[1]);
    g.output("y", &y, &[1], false);
    std::fs::write(dir.join("unusual.onnx"), g.encode("unusual")).expect("writable");
    StageEntry {
        graph: FileEntry::named("unusual.onnx"),
        precision: "fp32".into(),
        chunk: 1,
        latency_ms: 0.0,
        initial: None,
        inputs: vec![TensorEntry::f32("x", &[2, 2])],
        outputs: vec![TensorEntry::f32("y", &[1])],
    }
}

/// Loads it with `auto`: the outcome, what was said, and the engine's name then.
fn load_unusual(library: &Path) -> (Result<f32, EngineError>, Vec<String>, &'static str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let entry = unusual(dir.path());
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = said.clone();
    let engine = Wish { library: Some(library.to_owned()), ..Wish::default() }
        .open(move |message| listener.lock().expect("not poisoned").push(message.to_owned()))
        .expect("always there");
    let outcome = engine.load(&dir.path().join("unusual.onnx"), &entry).map(|mut session| {
        session.f32_input(0).expect("f32").copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        session.run().expect("runs");
        session.f32_output(0).expect("was run")[0]
    });
    let said = said.lock().expect("not poisoned").clone();
    (outcome, said, engine.name())
}

#[test]
fn a_graph_that_no_engine_can_load_is_told_with_both_reasons() {
    let (outcome, said, name) = load_unusual(Path::new("/none/libonnxruntime.so"));
    let error = outcome.expect_err("no library");
    assert!(matches!(&error, EngineError::Load { engine: "tract", .. }), "{error}");
    let reason = if cfg!(feature = "ort") { "/none/libonnxruntime.so" } else { "built without it" };
    assert!(error.to_string().contains("nor does ONNX Runtime") && error.to_string().contains(reason), "{error}");
    assert_eq!((said.len(), name), (0, "tract"));
}

#[cfg(feature = "ort")]
mod on_ort {
    use super::*;

    #[test]
    #[ignore = "needs ONNX Runtime in SA_ORT_LIBRARY"]
    fn a_graph_that_tract_cannot_load_goes_to_onnx_runtime_aloud() {
        let library = crate::each::onnx_runtime().library().to_owned();
        let (outcome, said, name) = load_unusual(&library);
        let determinant = outcome.expect("loads");
        assert!((determinant + 2.0).abs() < 1e-6, "{determinant}");
        assert!(matches!(&said[..], [one] if one.contains("unusual.onnx") && one.contains("ONNX Runtime runs it instead")), "{said:?}");
        assert_eq!(name, "tract and ort");
    }

    /// PyPI's library for the CPU has no CUDA; one that has it would need a card.
    #[test]
    #[ignore = "needs ONNX Runtime in SA_ORT_LIBRARY"]
    fn threads_and_cards() {
        let library = Some(crate::each::onnx_runtime().library().to_owned());
        let open = |device| Wish { engine: EngineName::Auto, device, library: library.clone() }.open(|_| ());
        assert_eq!(open(Device::Cpu { threads: 2 }).expect("any library has threads").name(), "ort");
        for device in [Device::Cuda { index: 0 }, Device::TensorRt { index: 0 }] {
            if let Err(error) = open(device) {
                assert!(matches!(&error, EngineError::Device { engine: "ort", .. }), "{error}");
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
        }
        // The process has one library: another one is refused, the same again is not.
        let again = Wish { engine: EngineName::Ort, device: Device::Auto, library: library.clone() };
        assert_eq!(again.open(|_| ()).expect("the same").name(), "ort");
        let own = std::env::current_exe().expect("known");
        let error = Wish { library: Some(own), ..again }.open(|_| ()).err().expect("another");
        assert!(error.to_string().contains("already uses"), "{error}");
    }
}
