//! `timer`: countdowns, in the words that the model was trained on.

use super::schedule::{Kind, Schedule};
use super::{Now, Outcome};
use crate::words;

/// The longest countdown in seconds.
const LONGEST: f64 = 24.0 * 3600.0;

/// `set five minutes` → `ok`; `status` → `four minutes ten seconds left` of the one that rings next, or `none`; `cancel` → `ok` or `none`.
/// Cancelled is what rings; else the one that was set last; `cancel all` cancels all, `cancel five minutes` the one set for that.
/// `instead` replaces the last one.
pub fn call(schedule: &mut Schedule, arguments: &[&str], instead: bool, now: Now) -> Outcome {
    match arguments {
        ["set", rest @ ..] => match read_duration(rest) {
            Some(seconds) if seconds > 0.0 && seconds <= LONGEST => {
                if instead {
                    schedule.remove_last(Kind::Timer);
                }
                let said = words::duration(seconds.round() as u64);
                match schedule.add(Kind::Timer, now.wall + seconds, said, None, now) {
                    true => Outcome::ok("ok"),
                    false => Outcome::problem("failed", "there are too many timers; cancel some"),
                }
            }
            _ => Outcome::problem("failed", format!("a timer takes up to 24 hours, not `{}`", rest.join(" "))),
        },
        ["status"] | [] => match schedule.next(Kind::Timer, now) {
            // Rounded up: a timer that was just set for five minutes says five minutes.
            // Less a millisecond, for the moments are differences of large numbers.
            Some(timer) => Outcome::ok(format!("{} left", words::duration((timer.left(now) - 1e-3).ceil() as u64))),
            None => Outcome::ok("none"),
        },
        ["cancel" | "stop"] => some(schedule.silence(Some(Kind::Timer)) || schedule.remove_last(Kind::Timer).is_some()),
        ["cancel" | "stop", "all"] => some(schedule.remove_all(Kind::Timer) > 0),
        ["cancel" | "stop", rest @ ..] => match read_duration(rest) {
            Some(seconds) => some(schedule.remove_said(Kind::Timer, &words::duration(seconds.round() as u64))),
            None => Outcome::problem("failed", format!("there is no timer for `{}`", rest.join(" "))),
        },
        _ => Outcome::problem("failed", format!("timer does not know `{}`: set, status or cancel", arguments.join(" "))),
    }
}

/// `ok`, or `none` where there was nothing to do.
pub(super) fn some(done: bool) -> Outcome {
    Outcome::ok(if done { "ok" } else { "none" })
}

/// `two hours [and] five minutes`, in seconds.
fn read_duration(words: &[&str]) -> Option<f64> {
    let mut seconds = 0.0;
    let mut at = 0;
    while at < words.len() {
        if words[at] == "and" && at > 0 {
            at += 1;
        }
        let (value, taken) = words::read_number(&words[at..])?;
        let size = match *words.get(at + taken)? {
            "second" | "seconds" => 1.0,
            "minute" | "minutes" => 60.0,
            "hour" | "hours" => 3600.0,
            _ => return None,
        };
        seconds += value * size;
        at += taken + 1;
    }
    (at > 0).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now { wall: 1e9, monotonic: 50.0 };

    fn at(schedule: &mut Schedule, seconds: f64, words: &str) -> String {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        call(schedule, &arguments, false, START.later(seconds)).words
    }

    #[test]
    fn counts_down() {
        let mut timers = Schedule::default();
        let mut at = |seconds: f64, words: &str| at(&mut timers, seconds, words);
        assert_eq!(at(0.0, "status"), "none");
        assert_eq!(at(0.0, "cancel"), "none");
        assert_eq!(at(0.0, "set five minutes"), "ok");
        assert_eq!(at(0.0, "status"), "five minutes left");
        assert_eq!(at(50.0, "status"), "four minutes ten seconds left");
        assert_eq!(at(300.0, "status"), "none");
        assert_eq!(at(300.0, "cancel"), "ok", "it is due, and has not been looked at");
        assert_eq!(at(300.0, "set one hour and thirty minutes"), "ok");
        assert_eq!(at(301.0, "status"), "one hour twenty nine minutes left");
        assert_eq!(at(301.0, "cancel"), "ok");
        assert_eq!(at(301.0, "status"), "none");
        for wrong in ["set", "set minutes", "set five", "set ninety hours", "set minus two minutes", "wind up", "cancel bread"] {
            assert_eq!(at(400.0, wrong), "failed", "{wrong}");
        }
    }

    #[test]
    fn several_run_at_once() {
        let mut timers = Schedule::default();
        assert_eq!(at(&mut timers, 0.0, "set ten minutes"), "ok");
        assert_eq!(at(&mut timers, 1.0, "set one hour"), "ok");
        assert_eq!(at(&mut timers, 2.0, "set three minutes"), "ok");
        assert_eq!(at(&mut timers, 2.0, "status"), "three minutes left");
        assert_eq!(at(&mut timers, 3.0, "cancel"), "ok", "the last one");
        assert_eq!(at(&mut timers, 3.0, "status"), "nine minutes fifty seven seconds left");
        assert_eq!(at(&mut timers, 3.0, "cancel ten minutes"), "ok");
        assert_eq!(at(&mut timers, 3.0, "cancel ten minutes"), "none");
        assert_eq!(at(&mut timers, 61.0, "status"), "fifty nine minutes left");
        assert_eq!(call(&mut timers, &["set", "two", "hours"], true, START.later(61.0)).words, "ok", "in place of the hour");
        assert_eq!(at(&mut timers, 61.0, "status"), "two hours left");
        assert_eq!(at(&mut timers, 61.0, "cancel all"), "ok");
        assert_eq!(at(&mut timers, 61.0, "status"), "none");
    }

    #[test]
    fn cancelling_silences_what_rings_first() {
        let mut timers = Schedule::default();
        assert_eq!(at(&mut timers, 0.0, "set one minute"), "ok");
        assert_eq!(at(&mut timers, 0.0, "set one hour"), "ok");
        assert_eq!(timers.due(START.later(60.0)).0[0].words, "one minute");
        assert_eq!(at(&mut timers, 61.0, "cancel"), "ok");
        assert_eq!(
            (timers.ringing().count(), at(&mut timers, 61.0, "status").as_str()),
            (0, "fifty eight minutes fifty nine seconds left")
        );
    }
}
