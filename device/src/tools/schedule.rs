//! What is to ring: timers, alarms and reminders, with the moments at which they fall due.
//!
//! A timer counts on the monotonic clock, so that a wall clock that is set does not move it; an alarm and a reminder go by the wall
//! clock. All are kept by their wall time over a restart. What fell due while the program was not running is told at the next start.

use serde::{Deserialize, Serialize};

use super::Now;

/// Seconds for which something rings if nobody stops it.
pub const RING_SECONDS: f64 = 300.0;
/// Something that is later than this (the machine was off) is told and does not ring.
const MISSED_SECONDS: f64 = 900.0;
/// Entries of all kinds.
const MOST: usize = 64;
/// A wall clock that moved by more than this was set, and did not drift.
const JUMP_SECONDS: f64 = 1.0;

/// What rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// After a time.
    Timer,
    /// At a time of day.
    Alarm,
    /// At a time of day or on a day, with what is to be done.
    Reminder,
}

/// Something that fell due.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Due {
    /// What it is.
    pub kind: Kind,
    /// A timer: for how long it was set. A reminder: what is to be done. An alarm: when.
    pub words: String,
    /// Seconds since it should have rung: more than a moment when the program was not running.
    pub late_s: f64,
    /// It is so late that it does not ring any more.
    pub missed: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub kind: Kind,
    /// Wall time at which it falls due.
    pub at: f64,
    /// See [`Due::words`].
    pub words: String,
    /// For a reminder that was set for a day: the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// Wall time at which it began to ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rang: Option<f64>,
    /// Monotonic time at which it falls due, and at which it was set.
    #[serde(skip)]
    pub deadline: f64,
    #[serde(skip)]
    pub set: f64,
    /// It was reported in this process.
    #[serde(skip)]
    pub told: bool,
}

/// All of them, in the order in which they were set.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: Vec<Entry>,
    /// Wall time minus monotonic time when it was last looked at.
    offset: Option<f64>,
}

impl Schedule {
    /// Goes on with what was kept.
    pub fn restore(entries: Vec<Entry>, now: Now) -> Self {
        let deadline = |entry: &Entry| now.monotonic + entry.at - now.wall;
        let entries = entries.into_iter().filter(|entry| entry.at.is_finite()).take(MOST);
        let entries = entries.map(|entry| Entry { deadline: deadline(&entry), set: f64::NEG_INFINITY, told: false, ..entry }).collect();
        Self { entries, offset: Some(now.wall - now.monotonic) }
    }

    /// What is to be kept.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds one that falls due at a wall time. False: there are too many.
    pub fn add(&mut self, kind: Kind, at: f64, words: String, day: Option<String>, now: Now) -> bool {
        let room = self.entries.len() < MOST;
        if room {
            let deadline = now.monotonic + at - now.wall;
            self.entries.push(Entry { kind, at, words, day, rang: None, deadline, set: now.monotonic, told: false });
            self.offset = Some(now.wall - now.monotonic);
        }
        room
    }

    /// The one that falls due next.
    pub fn next(&self, kind: Kind, now: Now) -> Option<&Entry> {
        let waiting = self.entries.iter().filter(|entry| entry.kind == kind && entry.rang.is_none() && entry.left(now) > 0.0);
        waiting.min_by(|a, b| a.left(now).total_cmp(&b.left(now)))
    }

    /// Removes the one that was set last and has not rung, and returns it.
    pub fn remove_last(&mut self, kind: Kind) -> Option<Entry> {
        let last = self.entries.iter().rposition(|entry| entry.kind == kind && entry.rang.is_none())?;
        Some(self.entries.remove(last))
    }

    /// Removes the one of these words that was set last; true if there was one.
    pub fn remove_said(&mut self, kind: Kind, words: &str) -> bool {
        let last = self.entries.iter().rposition(|entry| entry.kind == kind && entry.words == words);
        last.map(|last| self.entries.remove(last)).is_some()
    }

    /// Removes all of a kind; the number of them.
    pub fn remove_all(&mut self, kind: Kind) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.kind != kind);
        before - self.entries.len()
    }

    /// Silences what rings, of one kind or of all; true if something did.
    pub fn silence(&mut self, kind: Option<Kind>) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.rang.is_none() || kind.is_some_and(|kind| kind != entry.kind));
        self.entries.len() < before
    }

    /// What rings now.
    pub fn ringing(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.rang.is_some() && entry.told)
    }

    /// What fell due since the last time, each once; the second value says whether there is something new to keep.
    pub fn due(&mut self, now: Now) -> (Vec<Due>, bool) {
        let mut changed = self.follow_the_clock(now);
        let mut due = Vec::new();
        self.entries.retain_mut(|entry| {
            let late_s = -entry.left(now);
            let over = entry.rang.is_some_and(|rang| !(0.0..RING_SECONDS).contains(&(now.wall - rang)));
            if !over && (late_s < 0.0 || entry.told) {
                return true;
            }
            changed = true;
            // One that rang in an earlier process and is over needs no telling.
            if !over {
                let missed = late_s > MISSED_SECONDS;
                due.push(Due { kind: entry.kind, words: entry.words.clone(), late_s, missed });
                entry.told = true;
                entry.rang.get_or_insert(now.wall);
                // A reminder is said (`conversation::notice`), and does not ring.
                return !missed && entry.kind != Kind::Reminder;
            }
            false
        });
        (due, changed)
    }

    /// A wall clock that was set leaves the timers where they were; what is kept of them must follow.
    fn follow_the_clock(&mut self, now: Now) -> bool {
        let offset = now.wall - now.monotonic;
        let before = self.offset.replace(offset);
        let Some(jump) = before.map(|before| offset - before).filter(|jump| jump.abs() > JUMP_SECONDS) else { return false };
        for entry in &mut self.entries {
            match entry.kind {
                Kind::Timer if entry.set.is_finite() => entry.at += jump,
                // One from before a restart is only known by its wall time: a board without a clock may start in the past.
                _ => entry.deadline -= jump,
            }
            // What rings goes on ringing for as long as it would have.
            entry.rang = entry.rang.map(|rang| rang + jump);
        }
        true
    }
}

impl Entry {
    /// Seconds until it falls due.
    pub fn left(&self, now: Now) -> f64 {
        self.deadline - now.monotonic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now { wall: 1e9, monotonic: 50.0 };

    fn with(kind: Kind, seconds: f64) -> Schedule {
        let mut schedule = Schedule::default();
        assert!(schedule.add(kind, START.wall + seconds, "five minutes".into(), None, START));
        schedule
    }

    #[test]
    fn each_falls_due_once_and_rings_until_it_is_stopped() {
        let mut schedule = with(Kind::Timer, 300.0);
        assert!(schedule.add(Kind::Alarm, START.wall + 100.0, "seven".into(), None, START));
        assert_eq!(schedule.due(START.later(99.0)), (vec![], false));
        let (due, changed) = schedule.due(START.later(100.5));
        assert_eq!((due.len(), due[0].kind, due[0].late_s, due[0].missed, changed), (1, Kind::Alarm, 0.5, false, true));
        assert_eq!(schedule.due(START.later(101.0)), (vec![], false));
        assert_eq!(schedule.ringing().count(), 1);
        assert_eq!(schedule.due(START.later(300.0)).0[0].kind, Kind::Timer);
        assert!(schedule.silence(Some(Kind::Alarm)) && !schedule.silence(Some(Kind::Alarm)));
        assert_eq!(schedule.ringing().count(), 1, "the timer rings on");
        assert_eq!(schedule.due(START.later(300.0 + RING_SECONDS)), (vec![], true));
        assert_eq!(schedule.entries(), [], "nobody came");
    }

    #[test]
    fn a_clock_that_is_set_moves_alarms_and_not_timers() {
        let jumped = Now { wall: START.wall + 5000.0, monotonic: START.monotonic + 10.0 };
        let mut timer = with(Kind::Timer, 300.0);
        assert_eq!(timer.due(jumped), (vec![], true));
        assert_eq!(timer.next(Kind::Timer, jumped).map(|entry| (entry.left(jumped), entry.at - jumped.wall)), Some((290.0, 290.0)));
        let mut alarm = with(Kind::Alarm, 5100.0);
        assert_eq!(alarm.due(jumped), (vec![], true));
        assert_eq!(alarm.due(jumped.later(99.0)).0, []);
        assert_eq!(alarm.due(jumped.later(111.0)).0.len(), 1);
    }

    #[test]
    fn a_restart_changes_nothing_but_the_delay() {
        let again = |entries: &[Entry], now: Now| {
            let kept = serde_json::to_string(entries).expect("plain");
            Schedule::restore(serde_json::from_str(&kept).expect("the same"), now)
        };
        let schedule = with(Kind::Timer, 300.0);
        // The machine started anew: its monotonic clock did too.
        let reboot = |seconds: f64| Now { wall: START.wall + seconds, monotonic: 3.0 };
        let mut in_time = again(schedule.entries(), reboot(200.0));
        assert_eq!(in_time.due(reboot(200.0)).0, []);
        assert_eq!(in_time.due(reboot(200.0).later(100.0)).0.len(), 1);
        // Killed while it rang: it rings again, but not an hour later.
        let mut ringing = again(in_time.entries(), reboot(310.0));
        assert_eq!(ringing.due(reboot(310.0)).0.len(), 1);
        assert_eq!(again(in_time.entries(), reboot(4000.0)).due(reboot(4000.0)), (vec![], true));
        let (late, _) = again(schedule.entries(), reboot(400.0)).due(reboot(400.0));
        assert_eq!((late[0].late_s, late[0].missed), (100.0, false));
        let mut schedule = again(schedule.entries(), reboot(7200.0));
        assert!(schedule.due(reboot(7200.0)).0[0].missed);
        assert_eq!(schedule.ringing().count(), 0);
    }
}
