//! When the agent is asked what it hears in a question that is still open, and for how long it has heard that.

use std::time::Duration;

use crate::turns::Time;

/// Silence after which it is asked: the units come after their sound, by 120 ms in nano and by up to 200 in others.
const AFTER_VOICE: Duration = Duration::from_millis(260);
/// While a voice is heard it is asked from here on, and so often. It costs as much as to write the transcript.
const WHILE_VOICE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(300);

/// The guesses about one question.
#[derive(Debug, Default)]
pub struct Guesses {
    /// The voice has ended and it has not been asked since.
    pause: bool,
    /// When it was asked, until it answers.
    asked: Option<Time>,
    next: Time,
    /// What it hears, and since when.
    words: String,
    since: Time,
}

impl Guesses {
    /// Another question begins.
    pub fn begin(&mut self, now: Time) {
        *self = Self { pause: self.pause, next: now + WHILE_VOICE, since: now, ..Self::default() };
    }

    /// The voice ended.
    pub fn pause(&mut self) {
        self.pause = true;
    }

    /// Is it to be asked now? `voice`: one is heard; otherwise none since `silent`.
    pub fn due(&mut self, now: Time, voice: bool, silent: Time) -> bool {
        let due = if voice { self.asked.is_none() && now >= self.next } else { self.pause && now.saturating_sub(silent) >= AFTER_VOICE };
        if due {
            self.pause &= voice;
            (self.asked, self.next) = (Some(now), now + AGAIN);
        }
        due
    }

    /// When the last word was new, as far as is known.
    pub fn last_word(&self) -> Option<Time> {
        (!self.words.is_empty()).then_some(self.since)
    }

    /// It has answered: it hears these words, or cannot tell. For how long has it heard them? None if there are none.
    pub fn hears(&mut self, words: Option<&str>) -> Option<Duration> {
        let (asked, words) = (self.asked.take()?, words?);
        if words != self.words {
            (self.words, self.since) = (words.to_owned(), asked);
        }
        self.last_word().map(|since| asked.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_is_asked_in_each_pause_and_again_and_again_in_a_voice() {
        let mut guesses = Guesses::default();
        guesses.begin(ms(5000));
        assert!(!guesses.due(ms(5990), true, ms(0)) && guesses.due(ms(6000), true, ms(0)));
        assert!(!guesses.due(ms(7000), true, ms(0)), "it has not answered");
        assert_eq!(guesses.hears(Some("what")), Some(ms(0)));
        assert!(guesses.due(ms(7000), true, ms(0)) && guesses.hears(Some("what")) == Some(ms(1000)));
        assert!(!guesses.due(ms(7290), true, ms(0)) && guesses.due(ms(7300), true, ms(0)));
        assert_eq!(guesses.hears(Some("what time")), Some(ms(0)));
        guesses.pause();
        assert!(!guesses.due(ms(7500), false, ms(7400)) && guesses.due(ms(7660), false, ms(7400)));
        assert!(!guesses.due(ms(9000), false, ms(7400)), "once a pause");
        assert_eq!(guesses.hears(None), None);
        assert!(guesses.due(ms(9000), true, ms(7400)) && guesses.hears(Some("")).is_none());
        guesses.begin(ms(10_000));
        assert_eq!(guesses.hears(Some("what")), None, "of the question before");
    }
}
