//! How long each state lasts and what ends it.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Settings of turn-taking, one table a state. All times are in milliseconds in the settings file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TurnSettings {
    /// Only a key opens the microphone and closes it again: voice neither begins nor ends a question.
    pub push_to_talk: bool,
    pub idle: Idle,
    pub listening: Listening,
    pub thinking: Thinking,
    pub speaking: Speaking,
    pub interrupted: Interrupted,
}

/// Nobody speaks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Idle {
    /// After so long the conversation is over: what was said is forgotten.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    pub timeout: Duration,
    /// Sound from before the voice was noticed that belongs to the question.
    #[serde(rename = "before_ms", deserialize_with = "milliseconds")]
    pub before: Duration,
}

impl Default for Idle {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), before: Duration::from_millis(300) }
    }
}

/// A question is being heard.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listening {
    /// Silence that ends a question that is certainly complete.
    #[serde(rename = "end_min_ms", deserialize_with = "milliseconds")]
    pub end_min: Duration,
    /// Silence that ends a question that is certainly incomplete. Between them the probability decides.
    #[serde(rename = "end_max_ms", deserialize_with = "milliseconds")]
    pub end_max: Duration,
    /// Where a voice goes on, a television say, in which the model hears no new word: so much longer than the silence until the question ends.
    #[serde(rename = "talk_on_ms", deserialize_with = "milliseconds")]
    pub talk_on: Duration,
    /// A question with less voice than this was a noise and is thrown away.
    #[serde(rename = "speech_min_ms", deserialize_with = "milliseconds")]
    pub speech_min: Duration,
    /// With the key pressed and nobody speaking: how long to wait.
    #[serde(rename = "silence_ms", deserialize_with = "milliseconds")]
    pub silence: Duration,
    /// The longest question; what was heard until then is answered.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    pub timeout: Duration,
}

impl Default for Listening {
    fn default() -> Self {
        Self {
            end_min: Duration::from_millis(400),
            end_max: Duration::from_millis(1000),
            talk_on: Duration::from_millis(900),
            speech_min: Duration::from_millis(150),
            silence: Duration::from_secs(8),
            timeout: Duration::from_secs(25),
        }
    }
}

/// The question is over, the answer not yet to be heard.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thinking {
    /// Voice of this length, before the question was read to its end, means that the user goes on: the thought is thrown away.
    #[serde(rename = "go_on_ms", deserialize_with = "milliseconds")]
    pub go_on: Duration,
    /// An answer that has not begun by then is given up. Slow tools need room here.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    pub timeout: Duration,
}

impl Default for Thinking {
    fn default() -> Self {
        Self { go_on: Duration::from_millis(100), timeout: Duration::from_secs(40) }
    }
}

/// The answer is being played.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Speaking {
    /// The user's voice may interrupt. Off: only the key and the stop word.
    pub barge_in: bool,
    /// Voice of this length pauses the answer: shorter is a cough or a door.
    #[serde(rename = "pause_after_ms", deserialize_with = "milliseconds")]
    pub pause_after: Duration,
    /// The longest answer, pauses included.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    pub timeout: Duration,
}

impl Default for Speaking {
    fn default() -> Self {
        Self { barge_in: true, pause_after: Duration::from_millis(20), timeout: Duration::from_secs(60) }
    }
}

/// The answer is paused: a question, or a false alarm?
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interrupted {
    /// Voice of this length (the pause included) is a question.
    #[serde(rename = "question_after_ms", deserialize_with = "milliseconds")]
    pub question_after: Duration,
    /// Sound from before the voice was noticed that belongs to the question: less than in silence, because the agent spoke.
    #[serde(rename = "before_ms", deserialize_with = "milliseconds")]
    pub before: Duration,
    /// After a false alarm, silence of this length before the answer goes on.
    #[serde(rename = "resume_after_ms", deserialize_with = "milliseconds")]
    pub resume_after: Duration,
    /// Whatever is heard, the state ends by then.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    pub timeout: Duration,
}

impl Default for Interrupted {
    fn default() -> Self {
        Self {
            question_after: Duration::from_millis(340),
            before: Duration::from_millis(250),
            resume_after: Duration::from_millis(400),
            timeout: Duration::from_secs(3),
        }
    }
}

/// The longest time that a setting can have: an hour.
const LONGEST_MS: u64 = 3_600_000;

pub(crate) fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let ms = u64::deserialize(deserializer)?;
    if ms > LONGEST_MS {
        return Err(serde::de::Error::custom(format!("{ms} ms is longer than an hour ({LONGEST_MS} ms)")));
    }
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_milliseconds_and_mistakes_are_refused() {
        let text = "push_to_talk = true\n[listening]\nend_min_ms = 250\n[speaking]\nbarge_in = false";
        let settings: TurnSettings = toml::from_str(text).expect("well formed");
        assert!(settings.push_to_talk && !settings.speaking.barge_in);
        assert_eq!(settings.listening.end_min, Duration::from_millis(250));
        assert_eq!(settings.listening.end_max, Listening::default().end_max);
        for (text, part) in [
            ("[listening]\nend_min = 250", "unknown field"),
            ("[speaking]\ntimeout_ms = -1", "invalid value"),
            ("[idle]\ntimeout_ms = 99999999", "longer than an hour"),
        ] {
            let message = toml::from_str::<TurnSettings>(text).expect_err(text).to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
