//! `time` and `date`, in the local time zone of the machine.

use super::Outcome;
use crate::words;

const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];

/// `seven oh five in the evening`.
pub fn time() -> Outcome {
    now().map_or_else(unknown, |t| Outcome::ok(say_time(&t)))
}

/// `saturday november twenty first`.
pub fn date() -> Outcome {
    now().map_or_else(unknown, |t| Outcome::ok(say_date(&t)))
}

fn unknown() -> Outcome {
    Outcome::problem("failed", "the machine's clock cannot be read")
}

#[derive(Debug, Clone, Copy)]
struct Local {
    hour: u32,
    minute: u32,
    weekday: usize,
    month: usize,
    day: usize,
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

fn now() -> Option<Local> {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let seconds = libc::time_t::try_from(seconds).ok()?;
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
        hour: within(tm.tm_hour, 24)? as u32,
        minute: within(tm.tm_min, 60)? as u32,
        weekday: within(tm.tm_wday, 7)?,
        month: within(tm.tm_mon, 12)?,
        day: within(tm.tm_mday, 32)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn said_as_in_training() {
        let t = Local { hour: 19, minute: 5, weekday: 6, month: 10, day: 21 };
        assert_eq!(say_time(&t), "seven oh five in the evening");
        assert_eq!(say_time(&Local { hour: 0, minute: 0, ..t }), "twelve o'clock at night");
        assert_eq!(say_time(&Local { hour: 12, minute: 30, ..t }), "twelve thirty in the afternoon");
        assert_eq!(say_date(&t), "saturday november twenty first");
        assert!(now().is_some());
    }
}
