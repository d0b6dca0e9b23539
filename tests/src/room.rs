//! Rooms unlike each other.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sa_device::audio::live::Room;

/// A room that somebody may live in, and by how many dB the user speaks louder than usual.
pub fn any_room(rng: &mut ChaCha8Rng) -> (Room, f32) {
    let room = Room {
        seed: rng.random(),
        mic_rate: [16_000, 44_100, 48_000][rng.random_range(0..3)],
        speaker_rate: [22_050, 44_100, 48_000][rng.random_range(0..3)],
        drift_ppm: rng.random_range(-200.0..200.0),
        echo_db: rng.random_range(-20.0..2.0),
        reverberation: rng.random_range(0.08..0.5),
        delay: rng.random_range(0.01..0.12),
        noise_dbfs: rng.random_range(-75.0..-45.0),
        distortion: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.3..3.0) },
        stall_every: if rng.random_bool(0.5) { f64::INFINITY } else { 20.0 },
        ..Room::default()
    };
    (room, rng.random_range(-12.0..4.0))
}
