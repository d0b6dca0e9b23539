//! Local time: what `time` and `date` say, and which moment a clock time or a weekday means.

use super::{Now, Outcome};
use crate::words;

pub(super) const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];

/// `seven oh five in the evening`.
pub fn time(now: Now) -> Outcome {
    local(now.wall).map_or_else(unknown, |t| Outcome::ok(say_time(&t)))
}

/// `saturday november twenty first`.
pub fn date(now: Now) -> Outcome {
    local(now.wall).map_or_else(unknown, |t| Outcome::ok(say_date(&t)))
}

fn unknown() -> Outcome {
    Outcome::problem("failed", "the machine's clock cannot be read")
}

/// A moment in the time zone of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub year: i32,
    /// From 0.
    pub month: usize,
    pub day: usize,
    pub hour: u32,
    pub minute: u32,
    /// From Sunday.
    pub weekday: usize,
}

fn say_time(t: &Local) -> String {
    let part = match t.hour {
        5..=11 => "in the morning",
        12..=17 => "in the afternoon",
        18..=21 => "in the evening",
        _ => "at night",
    };
    format!("{} {part}", words::clock(t.hour, t.minute))
}

fn say_date(t: &Local) -> String {
    format!("{} {} {}", WEEKDAYS[t.weekday], MONTHS[t.month], words::ordinal(t.day))
}

/// The local time of a moment, in seconds since 1970.
pub fn local(wall: f64) -> Option<Local> {
    let seconds = wall.floor() as libc::time_t;
    // SAFETY: `tm` is plain data for which all zeros is a value, and `localtime_r` writes only to it.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&seconds, &mut tm).is_null() {
            return None;
        }
        tm
    };
    let within = |value: i32, limit: usize| usize::try_from(value).ok().filter(|v| *v < limit);
    Some(Local {
        year: tm.tm_year + 1900,
        month: within(tm.tm_mon, 12)?,
        day: within(tm.tm_mday, 32)?,
        hour: within(tm.tm_hour, 24)? as u32,
        minute: within(tm.tm_min, 60)? as u32,
        weekday: within(tm.tm_wday, 7)?,
    })
}

/// The moment at which the clock shows `hour` and `minute`, `days` after the day of `t`, in seconds since 1970. The change to and
/// from summer time is the library's business.
pub fn moment(t: &Local, days: usize, hour: u32, minute: u32) -> Option<f64> {
    // SAFETY: as above; `mktime` reads and writes only the value it is given.
    let seconds = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        tm.tm_year = t.year - 1900;
        tm.tm_mon = i32::try_from(t.month).ok()?;
        tm.tm_mday = i32::try_from(t.day + days).ok()?;
        tm.tm_hour = i32::try_from(hour).ok()?;
        tm.tm_min = i32::try_from(minute).ok()?;
        // Summer time or not: it is to find out.
        tm.tm_isdst = -1;
        libc::mktime(&mut tm)
    };
    (seconds != -1).then_some(seconds as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn said_as_in_training() {
        let t = Local { year: 2026, hour: 19, minute: 5, weekday: 6, month: 10, day: 21 };
        assert_eq!(say_time(&t), "seven oh five in the evening");
        assert_eq!(say_time(&Local { hour: 0, minute: 0, ..t }), "twelve o'clock at night");
        assert_eq!(say_time(&Local { hour: 12, minute: 30, ..t }), "twelve thirty in the afternoon");
        assert_eq!(say_date(&t), "saturday november twenty first");
    }

    #[test]
    fn moments_and_local_times_go_both_ways() {
        let t = Local { year: 2026, month: 10, day: 30, hour: 19, minute: 5, weekday: 1 };
        let wall = moment(&t, 0, 19, 5).expect("a time");
        assert_eq!(local(wall), Some(t));
        let next = moment(&t, 1, 7, 30).and_then(local).expect("a time");
        assert_eq!((next.month, next.day, next.hour, next.minute), (11, 1, 7, 30), "over the end of a month");
    }
}
