//! What time it is, as a value: tests and replays bring their own.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment on both clocks of the machine.
///
/// Boards without a clock of their own learn the time from the network, minutes after the start; then the wall clock jumps. A timer
/// must not: it counts on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// Seconds since 1970.
    pub wall: f64,
    /// Seconds since the machine started, suspended time included.
    pub monotonic: f64,
}

impl Now {
    /// Reads the clocks.
    pub fn read() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        Self { wall, monotonic: monotonic() }
    }

    /// The moment `seconds` later, on a clock that was not set in between.
    pub fn later(self, seconds: f64) -> Self {
        Self { wall: self.wall + seconds, monotonic: self.monotonic + seconds }
    }
}

#[cfg(target_os = "linux")]
fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a plain system call that writes to a value of ours; this clock is in every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn monotonic() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}
