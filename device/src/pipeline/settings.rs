//! The limits of a conversation.

use serde::{Deserialize, Serialize};

/// Limits and choices; all have defaults that suit the nano agent.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Turns that are remembered; older ones are forgotten. The nano agent was trained with up to two.
    pub history_turns: usize,
    /// Seconds of a question; less where the model's context is short.
    pub question_seconds: f64,
    /// Words of a transcript.
    pub transcript_words: usize,
    /// Words of a call.
    pub call_words: usize,
    /// Calls in one turn.
    pub calls: usize,
    /// Words of a reply.
    pub reply_words: usize,
    /// All words of a reply are settled before the first is spoken. Without it the first sound comes sooner, by about what ten
    /// tokens take, and the model more often loses its place while it speaks.
    pub plan: bool,
    /// Seconds of speech for one word.
    pub word_seconds: f64,
    /// Seconds of speech for one reply.
    pub reply_seconds: f64,
    /// A question none of whose 20 ms windows reaches this level (dB below full scale) was silence.
    pub silence_dbfs: f64,
    /// With 2 or more, the decoder has a thread of its own.
    pub threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            history_turns: 2,
            question_seconds: 30.0,
            transcript_words: 48,
            call_words: 24,
            calls: 2,
            reply_words: 48,
            plan: true,
            word_seconds: 2.4,
            reply_seconds: 30.0,
            silence_dbfs: -55.0,
            threads: 1,
        }
    }
}
