//! What is said unasked when something falls due: words that the models were trained to speak.

use crate::tools::{Due, Kind};

/// The words for it; none for what rings.
pub fn words(due: &Due) -> Option<String> {
    let words = &due.words;
    match due.kind {
        Kind::Reminder => Some(format!("your reminder {words}")),
        Kind::Alarm => due.missed.then(|| format!("your alarm was set for {words}")),
        Kind::Timer => due.missed.then(|| format!("your timer was set for {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_ring_is_said() {
        let due = |kind, missed| Due { kind, words: "seven thirty in the morning".into(), late_s: 0.0, missed };
        assert_eq!(words(&due(Kind::Alarm, false)), None);
        assert_eq!(words(&due(Kind::Alarm, true)).as_deref(), Some("your alarm was set for seven thirty in the morning"));
        let reminder = |missed| words(&Due { words: "call mom".into(), ..due(Kind::Reminder, missed) });
        assert_eq!((reminder(false), reminder(true)), (Some("your reminder call mom".into()), Some("your reminder call mom".into())));
    }
}
