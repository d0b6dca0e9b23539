//! The network that notices who speaks over the agent: the device computes what was trained.

use rand::{Rng, SeedableRng};
use sa_device::hearing::{FEATURES, Overlap};
use sa_models::overlap::{Overlap as Trained, OverlapConfig};
use sa_models::train::DeviceChoice;
use sa_models::train::checkpoint::{self, Precision};

#[test]
fn the_device_computes_what_was_trained() {
    let device = DeviceChoice::Cpu.device().expect("a processor");
    device.seed(5);
    let config = OverlapConfig { features: FEATURES, width: 24 };
    let trained = Trained::new(&config, &device);
    let folder = tempfile::tempdir().expect("a folder");
    checkpoint::save(folder.path(), &config, &trained, Precision::F32).expect("written");
    let bytes = std::fs::read(folder.path().join("model.safetensors")).expect("written");
    let mut overlap = Overlap::read(&bytes).expect("what was trained can be read");

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let features: Vec<f32> = (0..100 * FEATURES).map(|_| rng.random_range(-2.0..2.0)).collect();
    let expected = trained.probabilities(&features, &device);
    let (frames, _) = features.as_chunks::<FEATURES>();
    let computed: Vec<f32> = frames.iter().map(|frame| overlap.step(frame)).collect();
    let (low, high) = expected.iter().fold((1.0f32, 0.0f32), |(low, high), value| (low.min(*value), high.max(*value)));
    assert!(expected.len() == 100 && high - low > 0.02, "they differ from frame to frame: {low} to {high}");
    for (frame, (expected, computed)) in expected.iter().zip(&computed).enumerate() {
        assert!((expected - computed).abs() < 1e-4, "frame {frame}: {expected} trained, {computed} on the device");
    }
}
