//! `timer`: one countdown at a time, kept in the process.

use std::time::{Duration, Instant};

use super::Outcome;
use crate::words;

/// The longest countdown.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The countdown that is running, if any.
#[derive(Debug, Default)]
pub struct Timer {
    ends: Option<Instant>,
}

impl Timer {
    /// `set five minutes` → `ok`; `status` → `four minutes ten seconds left` or `none`; `cancel` → `ok` or `none`.
    pub fn call(&mut self, arguments: &[&str], now: Instant) -> Outcome {
        let running = self.ends.filter(|ends| *ends > now);
        match arguments {
            ["set", rest @ ..] => match read_duration(rest) {
                Some(duration) if duration > Duration::ZERO && duration <= LONGEST => {
                    self.ends = Some(now + duration);
                    Outcome::ok("ok")
                }
                _ => Outcome::problem("failed", format!("a timer takes up to 24 hours, not `{}`", rest.join(" "))),
            },
            ["status"] | [] => match running {
                // Rounded up: a timer that was just set for five minutes says five minutes.
                Some(ends) => Outcome::ok(format!("{} left", words::duration((ends - now).as_secs_f64().ceil() as u64))),
                None => Outcome::ok("none"),
            },
            ["cancel"] | ["stop"] => {
                self.ends = None;
                Outcome::ok(if running.is_some() { "ok" } else { "none" })
            }
            _ => Outcome::problem("failed", format!("timer does not know `{}`: set, status or cancel", arguments.join(" "))),
        }
    }
}

/// `two hours [and] five minutes`.
fn read_duration(words: &[&str]) -> Option<Duration> {
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
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_down() {
        let mut timer = Timer::default();
        let start = Instant::now();
        let mut at = |seconds: u64, call: &str| {
            let arguments: Vec<&str> = call.split_whitespace().collect();
            timer.call(&arguments, start + Duration::from_secs(seconds)).words
        };
        assert_eq!(at(0, "status"), "none");
        assert_eq!(at(0, "cancel"), "none");
        assert_eq!(at(0, "set five minutes"), "ok");
        assert_eq!(at(0, "status"), "five minutes left");
        assert_eq!(at(50, "status"), "four minutes ten seconds left");
        assert_eq!(at(300, "status"), "none");
        assert_eq!(at(300, "set one hour and thirty minutes"), "ok");
        assert_eq!(at(301, "status"), "one hour twenty nine minutes left");
        assert_eq!(at(301, "cancel"), "ok");
        assert_eq!(at(301, "status"), "none");
        for wrong in ["set", "set minutes", "set five", "set ninety hours", "set minus two minutes", "wind up"] {
            assert_eq!(at(400, wrong), "failed", "{wrong}");
        }
    }
}
