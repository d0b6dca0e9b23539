//! When a device is given up, when it is opened again, and how often that is said. Pure: it is told the time.

use std::time::Duration;

/// A microphone that gives nothing for so long is gone; and a speaker that takes nothing: by Bluetooth it may begin late.
const SILENT: Duration = Duration::from_secs(2);
const STUCK: Duration = Duration::from_secs(4);
/// A device that ran for so long was well: what happens to it then is something new.
const GOOD: Duration = Duration::from_secs(10);
/// Before it is opened again: at first; at most while it cannot be opened; and at most while it can and is lost again soon after.
const FIRST: Duration = Duration::from_millis(250);
const ABSENT: Duration = Duration::from_secs(5);
const BARREN: Duration = Duration::from_secs(60);

/// Over both devices, which are opened together.
#[derive(Debug)]
pub(super) struct Watch {
    /// When they were opened, the microphone last gave a frame, and the speaker last took something.
    opened: Duration,
    heard: Duration,
    taken: Duration,
    /// Callbacks of the speaker until then.
    calls: u64,
    /// Times in a row that they were lost before they had run well.
    losses: u32,
    /// The user knows that they are lost, and not yet that they are back.
    told: bool,
    /// The next attempt, and the pause before the one after it.
    next: Duration,
    pause: Duration,
}

impl Watch {
    /// They are open since `now`.
    pub(super) fn new(now: Duration) -> Self {
        Self { opened: now, heard: now, taken: now, calls: 0, losses: 0, told: false, next: now, pause: FIRST }
    }

    /// They are open again.
    pub(super) fn opened(&mut self, now: Duration) {
        (self.opened, self.heard, self.taken, self.calls) = (now, now, now, 0);
    }

    /// They could not be opened.
    pub(super) fn failed(&mut self, now: Duration) {
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(ABSENT);
    }

    /// Is it time to open them again?
    pub(super) fn due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// The microphone gave a frame. Is the user to be told that it is back?
    pub(super) fn heard(&mut self, now: Duration) -> bool {
        self.heard = now;
        std::mem::take(&mut self.told)
    }

    /// The speaker has called so many times.
    pub(super) fn called(&mut self, now: Duration, calls: u64) {
        if calls != self.calls {
            (self.taken, self.calls) = (now, calls);
        }
    }

    /// What is wrong, if nothing came or nothing was taken for too long.
    pub(super) fn dead(&self, now: Duration) -> Option<&'static str> {
        if now.saturating_sub(self.heard) > SILENT {
            Some("gives no more sound")
        } else if now.saturating_sub(self.taken) > STUCK {
            Some("plays no more sound")
        } else {
            None
        }
    }

    /// They are lost. How many times in a row that is, where the user is to be told: of the first, the second, the fourth, the eighth ….
    pub(super) fn lost(&mut self, now: Duration) -> Option<u32> {
        if self.heard.min(self.taken).saturating_sub(self.opened) >= GOOD {
            (self.losses, self.pause) = (0, FIRST);
        }
        self.losses = self.losses.saturating_add(1);
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(BARREN);
        let tell = self.losses.is_power_of_two();
        self.told |= tell;
        tell.then_some(self.losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A simulated minute after minute in steps of 10 ms: `open` says whether it can be opened, `alive` how many milliseconds microphone and
    /// speaker then run. Counts the openings, what was said about losses and about being back.
    fn run(minutes: u64, mut open: impl FnMut(u64) -> bool, mut alive: impl FnMut(u64) -> (u64, u64)) -> (u64, Vec<u32>, u64) {
        let mut watch = Watch::new(ms(0));
        let (mut since, mut lives) = (Some(0), alive(0));
        let (mut openings, mut said, mut back, mut calls) = (0, Vec::new(), 0, 0);
        for at in (0..minutes * 60_000).step_by(10) {
            let now = ms(at);
            let Some(began) = since else {
                if watch.due(now) && open(at) {
                    watch.opened(now);
                    openings += 1;
                    (since, lives, calls) = (Some(at), alive(openings), 0);
                } else if watch.due(now) {
                    watch.failed(now);
                }
                continue;
            };
            calls += u64::from(at < began + lives.1);
            watch.called(now, calls);
            if at < began + lives.0 {
                back += u64::from(watch.heard(now));
            }
            if watch.dead(now).is_some() {
                said.extend(watch.lost(now));
                since = None;
            }
        }
        (openings, said, back)
    }

    /// Opened and silent for ever: once a minute in the end, and seven messages in an hour, not fifteen hundred.
    #[test]
    fn a_device_that_gives_nothing_is_tried_less_and_less() {
        let (openings, said, back) = run(60, |_| true, |_| (0, 3_600_000));
        assert!((55..75).contains(&openings), "{openings}");
        assert_eq!(said, [1, 2, 4, 8, 16, 32, 64][..said.len()]);
        assert!(said.len() >= 6 && back == 0, "{said:?}, {back}");
    }

    /// The same for a speaker that takes nothing, while the microphone is well.
    #[test]
    fn the_speaker_is_watched_too() {
        let (openings, said, _) = run(10, |_| true, |_| (3_600_000, 0));
        assert!((8..20).contains(&openings), "{openings}");
        assert_eq!(said[..4], [1, 2, 4, 8]);
        let (openings, said, back) = run(10, |_| true, |_| (3_600_000, 3_600_000));
        assert_eq!((openings, said.len(), back), (0, 0, 0), "nothing is wrong with it");
    }

    /// Unplugged for two minutes: it is back within five seconds of being plugged in, and both are said once; the next time it begins anew.
    #[test]
    fn a_device_that_comes_back_is_soon_there() {
        let mut opened = Vec::new();
        let plugged = |at: u64| (at / 60_000) % 5 < 3;
        let (openings, said, back) = run(
            10,
            |at| {
                opened.extend(plugged(at).then_some(at));
                plugged(at)
            },
            |_| (180_000, 3_600_000),
        );
        assert_eq!((openings, &said[..], back), (1, &[1, 1][..], 1), "{opened:?}");
        assert!((300_000..305_100).contains(&opened[0]), "{opened:?}");
    }

    /// A second of sound, and gone again: no reason to begin anew with short pauses.
    #[test]
    fn a_moment_of_sound_is_not_well() {
        let (openings, said, back) = run(30, |_| true, |_| (1000, 1000));
        assert!((25..45).contains(&openings), "{openings}");
        assert!(said.len() <= 6 && back <= said.len() as u64, "{said:?}, {back}");
    }

    /// A program that stalled for longer than a microphone may be silent reads on first.
    #[test]
    fn what_was_heard_late_was_heard() {
        let mut watch = Watch::new(ms(0));
        watch.called(ms(9000), 900);
        assert_eq!(watch.dead(ms(9000)), Some("gives no more sound"));
        assert!(!watch.heard(ms(9000)), "nothing was lost, so nothing is back");
        assert_eq!((watch.dead(ms(9000)), watch.dead(ms(11_001))), (None, Some("gives no more sound")));
    }
}
