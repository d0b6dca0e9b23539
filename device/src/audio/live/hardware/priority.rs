//! Realtime priority for the audio threads, where the system allows it (`RLIMIT_RTPRIO`; `sa-agent doctor` says how).
//!
//! cpal has a feature for this, which does nothing without D-Bus and needs a system library with it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::audio::live::Counters;

/// Of 1 to 99: before all ordinary threads, behind the kernel's own (50). The second is for a system that allows no more.
#[cfg(target_os = "linux")]
const PRIORITIES: [i32; 2] = [10, 1];
/// Seconds of sound after which it is asked for.
const AFTER: f64 = 0.5;

/// The thread that calls back for one stream: its clock, and its priority.
pub(super) struct Caller {
    epoch: Instant,
    rate: f64,
    first: Option<Duration>,
    samples: u64,
    asked: bool,
    counters: Arc<Counters>,
}

impl Caller {
    /// Of a stream of `rate` samples a second; its clock counts from `epoch`.
    pub(super) fn new(epoch: Instant, rate: u32, counters: &Arc<Counters>) -> Self {
        Self { epoch, rate: f64::from(rate), first: None, samples: 0, asked: false, counters: counters.clone() }
    }

    /// For the callback, with the samples of one channel: the time. One of the first calls asks for priority, which takes some microseconds.
    pub(super) fn now(&mut self, samples: usize) -> Duration {
        let now = self.epoch.elapsed();
        if self.due(now, samples) && ask() {
            self.counters.realtime.fetch_add(1, Relaxed);
        }
        now
    }

    /// Once, and only if it runs at the pace of sound: a stream that never waits (ALSA's `null`) would take the processor from all others.
    fn due(&mut self, now: Duration, samples: usize) -> bool {
        let first = *self.first.get_or_insert(now);
        self.samples += samples as u64;
        let played = self.samples as f64 / self.rate;
        if self.asked || played < AFTER {
            return false;
        }
        self.asked = true;
        now.saturating_sub(first).as_secs_f64() > 0.5 * played
    }
}

/// Asks for this thread. If it may not, everything goes on as before: `doctor` tells the user.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    PRIORITIES.into_iter().any(|priority| {
        // SAFETY: zeros are a valid `sched_param` on every libc; the call reads it and changes nothing but this thread.
        unsafe {
            let mut parameter: libc::sched_param = std::mem::zeroed();
            parameter.sched_priority = priority;
            libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_FIFO, &parameter) == 0
        }
    })
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of 10 ms of samples, `every` milliseconds apart: how often it is asked for.
    fn asked(every: u64) -> usize {
        let mut caller = Caller::new(Instant::now(), 48_000, &Arc::default());
        (0..1000).filter(|i| caller.due(Duration::from_millis(i * every), 480)).count()
    }

    #[test]
    fn it_is_asked_for_once_and_not_by_a_stream_that_never_waits() {
        assert_eq!((asked(10), asked(11), asked(0), asked(2)), (1, 1, 0, 0));
    }

    /// As root it works, for others it depends; either way the thread then has what it was told.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_it_says_is_so() {
        std::thread::spawn(|| {
            let got = ask();
            // SAFETY: asks about this thread, and nothing else.
            let policy = unsafe { libc::sched_getscheduler(0) };
            assert_eq!(policy == libc::SCHED_FIFO, got);
        })
        .join()
        .expect("the thread ended well");
    }
}
