//! Realtime priority for the audio threads, where the system allows it (`RLIMIT_RTPRIO`; `sa-agent doctor` says how).
//!
//! cpal has a feature for this, which does nothing without D-Bus and needs a system library with it. As there, only streams of a sound card
//! get it: those of a sound server wait for ordinary threads, and spin when the server is gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
    card: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

impl Caller {
    /// Of a stream of `rate` samples a second; its clock counts from `epoch`. Whether a `card` is behind it is known when it is open.
    pub(super) fn new(epoch: Instant, rate: u32, card: &Arc<AtomicBool>, counters: &Arc<Counters>) -> Self {
        let (card, counters) = (card.clone(), counters.clone());
        Self { epoch, rate: f64::from(rate), first: None, samples: 0, asked: false, card, counters }
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
        self.card.load(Relaxed) && now.saturating_sub(first).as_secs_f64() > 0.5 * played
    }
}

/// Does this process have a sound card open, `p` to play or `c` to capture? `files` is `/proc/self/fd`.
pub(super) fn has_card(files: &Path, direction: char) -> bool {
    let Ok(files) = std::fs::read_dir(files) else { return false };
    let is_card = |path: &Path| path.to_str().is_some_and(|path| path.starts_with("/dev/snd/pcm") && path.ends_with(direction));
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|path| is_card(&path)))
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
    fn asked(every: u64, card: bool) -> usize {
        let mut caller = Caller::new(Instant::now(), 48_000, &Arc::new(card.into()), &Arc::default());
        (0..1000).filter(|i| caller.due(Duration::from_millis(i * every), 480)).count()
    }

    #[test]
    fn it_is_asked_for_once_for_a_card_and_not_by_a_stream_that_never_waits() {
        assert_eq!((asked(10, true), asked(11, true), asked(0, true), asked(2, true)), (1, 1, 0, 0));
        assert_eq!(asked(10, false), 0);
    }

    #[cfg(unix)]
    #[test]
    fn an_open_card_is_found_in_its_direction() {
        let files = tempfile::tempdir().expect("a folder");
        for (number, path) in ["/dev/null", "/dev/snd/controlC0", "/dev/snd/pcmC0D0p"].iter().enumerate() {
            std::os::unix::fs::symlink(path, files.path().join(number.to_string())).expect("links");
        }
        assert_eq!((has_card(files.path(), 'p'), has_card(files.path(), 'c')), (true, false));
        assert!(!has_card(&files.path().join("missing"), 'p'));
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
