//! `alarm` and `reminder`: clock times and days, in the words that the model was trained on.

use super::calendar::{self, Local, WEEKDAYS};
use super::schedule::{Entry, Kind, Schedule};
use super::timer::some;
use super::{Now, Outcome};
use crate::words;

/// When a reminder for a day is told: at nine in the morning.
const DAY_HOUR: u32 = 9;

/// `set seven thirty in the morning` → `ok`; `status` → `seven thirty in the morning` of the next one, or `none`; `cancel` → `ok` or `none`.
/// `instead` replaces the last one.
pub fn alarm(schedule: &mut Schedule, arguments: &[&str], instead: bool, now: Now) -> Outcome {
    match arguments {
        ["set", rest @ ..] => {
            let Some(at) = read_clock(rest).and_then(|(time, taken)| moment(time, &rest[taken..], now)) else {
                return Outcome::problem("failed", format!("an alarm takes a time of day, not `{}`", rest.join(" ")));
            };
            if instead {
                schedule.remove_last(Kind::Alarm);
            }
            add(schedule, Kind::Alarm, at, say(at, now), None, now)
        }
        ["status"] | [] => match schedule.next(Kind::Alarm, now) {
            Some(alarm) => Outcome::ok(say(alarm.at, now)),
            None => Outcome::ok("none"),
        },
        ["cancel" | "stop"] => some(schedule.silence(Some(Kind::Alarm)) || schedule.remove_last(Kind::Alarm).is_some()),
        ["cancel" | "stop", "all"] => some(schedule.remove_all(Kind::Alarm) > 0),
        _ => Outcome::problem("failed", format!("alarm does not know `{}`: set, status or cancel", arguments.join(" "))),
    }
}

/// `add six thirty call mom` and `add monday pay the rent` → `ok`; `list` → `call mom`, `monday pay the rent` or `none`: the next one.
pub fn reminder(schedule: &mut Schedule, arguments: &[&str], instead: bool, now: Now) -> Outcome {
    match arguments {
        ["add", rest @ ..] => {
            let Some((at, day, task)) = read_reminder(rest, now).filter(|(.., task)| !task.is_empty()) else {
                return Outcome::problem("failed", format!("a reminder takes a time or a day and a task, not `{}`", rest.join(" ")));
            };
            if instead {
                schedule.remove_last(Kind::Reminder);
            }
            add(schedule, Kind::Reminder, at, task, day, now)
        }
        ["list"] | [] => match schedule.next(Kind::Reminder, now) {
            Some(Entry { words, day: Some(day), .. }) => Outcome::ok(format!("{day} {words}")),
            Some(Entry { words, .. }) => Outcome::ok(words.clone()),
            None => Outcome::ok("none"),
        },
        ["cancel"] => some(schedule.remove_last(Kind::Reminder).is_some()),
        ["cancel", "all"] => some(schedule.remove_all(Kind::Reminder) > 0),
        _ => Outcome::problem("failed", format!("reminder does not know `{}`: add, list or cancel", arguments.join(" "))),
    }
}

fn add(schedule: &mut Schedule, kind: Kind, at: f64, words: String, day: Option<String>, now: Now) -> Outcome {
    match schedule.add(kind, at, words, day, now) {
        true => Outcome::ok("ok"),
        false => Outcome::problem("failed", "there are too many of them; cancel some"),
    }
}

/// Moment, day and task.
fn read_reminder(words: &[&str], now: Now) -> Option<(f64, Option<String>, String)> {
    if let Some(weekday) = WEEKDAYS.iter().position(|day| words.first() == Some(day)) {
        let today = calendar::local(now.wall)?;
        let ahead = (weekday + 7 - today.weekday) % 7;
        let at = calendar::moment(&today, ahead, DAY_HOUR, 0).filter(|at| *at > now.wall);
        let at = at.or_else(|| calendar::moment(&today, ahead + 7, DAY_HOUR, 0))?;
        return Some((at, Some(words[0].to_owned()), words[1..].join(" ")));
    }
    let (time, taken) = read_clock(words)?;
    let (part, rest) = read_part(&words[taken..]);
    Some((moment(time, part, now)?, None, rest.join(" ")))
}

/// Hour and minute, and the number of words they took: `seven oh five`, `seven o'clock`, `twelve thirty`, `seven`.
fn read_clock(words: &[&str]) -> Option<((u32, u32), usize)> {
    let whole = |words: &[&str], most: f64| {
        words::read_number(words).filter(|(n, _)| (0.0..=most).contains(n) && n.fract() == 0.0).map(|(n, taken)| (n as u32, taken))
    };
    let (hour, taken) = whole(words, 23.0)?;
    let rest = &words[taken..];
    Some(match rest {
        ["o'clock", ..] => ((hour, 0), taken + 1),
        ["oh", minute @ ..] => {
            let (minute, more) = whole(minute, 9.0)?;
            ((hour, minute), taken + 1 + more)
        }
        _ => match whole(rest, 59.0) {
            Some((minute, more)) => ((hour, minute), taken + more),
            None => ((hour, 0), taken),
        },
    })
}

/// The words that say which part of which day, and those behind them.
fn read_part<'a>(words: &'a [&'a str]) -> (&'a [&'a str], &'a [&'a str]) {
    let day = usize::from(matches!(words.first(), Some(&("tomorrow" | "today" | "tonight"))));
    let part = match &words[day..] {
        ["in", "the", "morning" | "afternoon" | "evening", ..] => 3,
        ["at", "night", ..] => 2,
        _ => 0,
    };
    words.split_at(day + part)
}

/// The next moment at which the clock shows this, in the part of the day that was said.
fn moment((hour, minute): (u32, u32), part: &[&str], now: Now) -> Option<f64> {
    let (part, rest) = read_part(part);
    if !rest.is_empty() {
        return None;
    }
    let today = calendar::local(now.wall)?;
    let tomorrow = part.first() == Some(&"tomorrow");
    let hours = hours(hour, part, tomorrow);
    // Tomorrow's, or the first one from now on.
    let days = if tomorrow { 1..=1 } else { 0..=1 };
    let moments = days.flat_map(|day| hours.iter().map(move |hour| (day, *hour)));
    moments.filter_map(|(day, hour)| calendar::moment(&today, day, hour, minute)).filter(|at| *at > now.wall).min_by(f64::total_cmp)
}

/// The hours of the day that may be meant.
fn hours(hour: u32, part: &[&str], tomorrow: bool) -> Vec<u32> {
    let (morning, afternoon) = (hour % 12, hour % 12 + 12);
    match part.last() {
        // On the dial of 24 hours there is no doubt.
        _ if hour == 0 || hour > 12 => vec![hour],
        Some(&"morning") => vec![morning],
        Some(&"afternoon") => vec![afternoon],
        Some(&("evening" | "night" | "tonight")) => vec![if matches!(hour, 6..=11) { afternoon } else { late(hour, part) }],
        // Somebody who wants to be woken tomorrow means the morning, and twelve means noon.
        _ if tomorrow => vec![if hour == 12 { 12 } else { morning }],
        _ => vec![morning, afternoon],
    }
}

/// Twelve to five: at night they belong to the next day; in the evening five is still the day's.
fn late(hour: u32, part: &[&str]) -> u32 {
    if hour == 12 || part.last() != Some(&"evening") { hour % 12 } else { hour + 12 }
}

/// A moment as the model was trained to hear it: `seven thirty in the morning`, `three tomorrow`, `three`.
fn say(at: f64, now: Now) -> String {
    let (Some(t), Some(today)) = (calendar::local(at), calendar::local(now.wall)) else { return "none".to_owned() };
    let day = |t: &Local| (t.year, t.month, t.day);
    let tomorrow = calendar::moment(&today, 1, 12, 0).and_then(calendar::local).is_some_and(|next| day(&next) == day(&t));
    let part = match t.hour {
        0..=11 => " in the morning",
        17.. => " in the evening",
        _ if tomorrow => " tomorrow",
        _ => "",
    };
    format!("{}{part}", words::clock(t.hour, t.minute))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saturday, November 21, 2026 at this local time.
    fn now(hour: u32, minute: u32) -> Now {
        let day = Local { year: 2026, month: 10, day: 21, hour: 0, minute: 0, weekday: 6 };
        Now { wall: calendar::moment(&day, 0, hour, minute).expect("a time"), monotonic: 1000.0 }
    }

    /// Days after that Saturday, hour and minute at which an alarm falls due.
    fn falls_due(words: &str, now: Now) -> Option<(usize, u32, u32)> {
        let mut schedule = Schedule::default();
        let arguments: Vec<&str> = words.split(' ').collect();
        alarm(&mut schedule, &arguments, false, now);
        let t = calendar::local(schedule.next(Kind::Alarm, now)?.at)?;
        Some((t.day - 21, t.hour, t.minute))
    }

    #[test]
    fn clock_times_mean_their_next_moment() {
        for (words, at, due) in [
            ("set seven thirty in the morning", now(20, 0), (1, 7, 30)),
            ("set seven thirty in the morning", now(6, 0), (0, 7, 30)),
            ("set seven oh five in the evening", now(6, 0), (0, 19, 5)),
            ("set seven o'clock", now(20, 0), (1, 7, 0)),
            ("set seven o'clock", now(7, 0), (0, 19, 0)),
            ("set seven forty five tomorrow", now(6, 0), (1, 7, 45)),
            ("set seven forty five tomorrow in the evening", now(6, 0), (1, 19, 45)),
            ("set twelve thirty tomorrow", now(6, 0), (1, 12, 30)),
            ("set twelve thirty in the morning", now(6, 0), (1, 0, 30)),
            ("set twelve o'clock in the evening", now(6, 0), (1, 0, 0)),
            ("set five fifty in the evening", now(6, 0), (0, 17, 50)),
            ("set ten at night", now(6, 0), (0, 22, 0)),
            ("set nine tonight", now(6, 0), (0, 21, 0)),
            ("set nineteen thirty", now(6, 0), (0, 19, 30)),
            ("set three in the afternoon", now(6, 0), (0, 15, 0)),
        ] {
            assert_eq!(falls_due(words, at), Some(due), "{words}");
        }
        for wrong in ["set", "set kitchen", "set twenty five", "set seven ninety", "set seven oh twelve", "set seven thirty blue"] {
            assert_eq!(falls_due(wrong, now(6, 0)), None, "{wrong}");
        }
    }

    #[test]
    fn alarms_answer_as_in_training() {
        let mut schedule = Schedule::default();
        let mut say = |words: &str, instead: bool, now: Now| {
            let arguments: Vec<&str> = words.split(' ').collect();
            alarm(&mut schedule, &arguments, instead, now).words
        };
        assert_eq!(say("status", false, now(20, 0)), "none");
        assert_eq!(say("set three fifteen tomorrow in the afternoon", false, now(20, 0)), "ok");
        assert_eq!(say("status", false, now(20, 0)), "three fifteen tomorrow");
        assert_eq!(say("set seven thirty tomorrow", false, now(20, 0)), "ok");
        assert_eq!(say("status", false, now(20, 0)), "seven thirty in the morning");
        assert_eq!(say("set eight thirty tomorrow", true, now(20, 0)), "ok", "not that one, this one");
        assert_eq!(say("status", false, now(20, 0)), "eight thirty in the morning");
        assert_eq!(say("cancel", false, now(20, 0)), "ok");
        assert_eq!(say("status", false, now(20, 0)), "three fifteen tomorrow");
        assert_eq!(say("cancel", false, now(20, 0)), "ok");
        assert_eq!(say("cancel", false, now(20, 0)), "none");
        assert_eq!(say("snooze", false, now(20, 0)), "failed");
    }

    #[test]
    fn reminders_answer_as_in_training() {
        let mut schedule = Schedule::default();
        let now = now(20, 0);
        let mut say = |words: &str| reminder(&mut schedule, &words.split(' ').collect::<Vec<_>>(), false, now).words;
        assert_eq!(say("list"), "none");
        assert_eq!(say("add saturday pay the rent"), "ok");
        assert_eq!(say("list"), "saturday pay the rent");
        assert_eq!(say("add nine thirty call mom"), "ok");
        assert_eq!(say("list"), "call mom");
        for wrong in ["add", "add monday", "add call mom", "add nine thirty"] {
            assert_eq!(say(wrong), "failed", "{wrong}");
        }
        let due = |seconds: f64, schedule: &mut Schedule| schedule.due(now.later(seconds)).0;
        assert_eq!(due(5399.0, &mut schedule), []);
        assert_eq!(due(5400.0, &mut schedule)[0].words, "call mom");
        assert_eq!(due(5400.0 + 6.0 * 86_400.0, &mut schedule), [], "this Saturday is nearly over: the next is meant");
        assert_eq!(due(7.0 * 86_400.0, &mut schedule)[0].words, "pay the rent");
    }
}
