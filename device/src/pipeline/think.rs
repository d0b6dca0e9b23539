//! What the model writes as text: the transcript, calls, replies that are not spoken.

use std::time::Instant;

use super::{Agent, AgentError, CallReport, Clock, Event, Guess, Listener, Stopped, Turn};
use crate::stage::LmInput;

/// Positions that are kept free, so that what follows a full context can still be closed.
const RESERVE: usize = 4;

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A word, of one token or spelled; it has been read.
    Word(Vec<u32>),
    /// The token that ends the words; it has **not** been read.
    Ended,
}

impl Agent {
    /// The model's transcript, up to `<agent>`, which is read. Without a word, what was overheard is silence.
    pub(super) fn transcribe(
        &mut self,
        overheard: bool,
        turn: &mut Turn,
        clock: &Clock,
        listener: &mut Listener,
    ) -> Result<(), AgentError> {
        turn.transcript = self.write_words(self.special.agent, self.settings.transcript_words)?;
        self.lm.step(LmInput::Token(self.special.agent))?;
        turn.timing_ms.transcript = clock.ms();
        let silence = overheard && turn.transcript.is_empty();
        if silence {
            turn.stopped = Stopped::Silence;
        }
        listener(&Event::Heard { turn_id: turn.turn_id, transcript: turn.transcript.clone(), silence, question_s: turn.question_s });
        Ok(())
    }

    /// The transcript of a question that was read without one.
    pub(super) fn write_transcript(&mut self) -> Result<String, AgentError> {
        if self.full() {
            return Ok(String::new());
        }
        self.lm.step(LmInput::Token(self.special.transcribe))?;
        self.write_words(self.special.agent, self.settings.transcript_words)
    }

    /// Calls, carried out; afterwards the model is to reply: the token for that (`<speak>`) has not been read.
    pub(super) fn think(&mut self, turn: &mut Turn, clock: &mut Clock, listener: &mut Listener) -> Result<(), AgentError> {
        while turn.calls.len() < self.settings.calls && !self.full() {
            let next = self.lm.next_token(|t| t == self.special.call || t == self.special.speak)?;
            if next != self.special.call {
                break;
            }
            self.lm.step(LmInput::Token(self.special.call))?;
            let call = self.write_words(self.special.result, self.settings.call_words)?;
            listener(&Event::Call { turn_id: turn.turn_id, call: call.clone() });
            let started = Instant::now();
            let outcome = self.tools.call(&call);
            clock.tools += started.elapsed();
            listener(&Event::Result { turn_id: turn.turn_id, result: outcome.words.clone(), problem: outcome.problem.clone() });
            self.lm.step(LmInput::Token(self.special.result))?;
            for token in self.text.encode(&outcome.words) {
                if self.full() {
                    break;
                }
                self.lm.step(LmInput::Token(token))?;
            }
            turn.calls.push(CallReport { call, result: outcome.words, problem: outcome.problem });
        }
        Ok(())
    }

    /// A reply in text: `<text> words <end>`. Returns the words' tokens.
    pub(super) fn write_reply(&mut self, turn: &mut Turn, clock: &Clock, listener: &mut Listener) -> Result<Vec<Vec<u32>>, AgentError> {
        self.lm.step(LmInput::Token(self.special.text))?;
        let (mut words, mut written) = (Vec::new(), Vec::new());
        loop {
            if let Some(stopped) = self.stop(&words) {
                turn.stopped = stopped;
                break;
            }
            let Next::Word(tokens) = self.next_word(self.special.end)? else { break };
            if words.is_empty() {
                turn.timing_ms.first_text = clock.ms();
            }
            let word = self.text.decode(&tokens);
            listener(&Event::Text { turn_id: turn.turn_id, text: word.clone() });
            words.push(word);
            written.push(tokens);
        }
        turn.reply_text = words.join(" ");
        Ok(written)
    }

    /// The words of a reply that is going to be spoken: written as text, which the cache then forgets.
    pub(super) fn plan(&mut self, turn: &mut Turn, clock: &Clock) -> Result<Vec<Vec<u32>>, AgentError> {
        let before = self.lm.position();
        let plan = self.write_reply(turn, clock, &mut |_| {})?;
        self.lm.truncate(before);
        turn.timing_ms.plan = clock.ms();
        Ok(plan)
    }

    /// Is a reply of these words to be ended from outside?
    pub(super) fn stop(&self, words: &[String]) -> Option<Stopped> {
        if words.len() >= self.settings.reply_words {
            Some(Stopped::Limit)
        } else if circles(words) {
            Some(Stopped::Repetition)
        } else if self.full() {
            Some(Stopped::Context)
        } else {
            None
        }
    }

    /// Words up to `end` (not read), to the limit, or until they go round in circles.
    fn write_words(&mut self, end: u32, limit: usize) -> Result<String, AgentError> {
        let mut words = Vec::new();
        while words.len() < limit && !self.full() && !circles(&words) {
            let Next::Word(tokens) = self.next_word(end)? else { break };
            words.push(self.text.decode(&tokens));
        }
        Ok(words.join(" "))
    }

    /// Lets the model write words up to `end` and says how probable they were: the product of what it gave to its choice at the end and to
    /// each word before.
    pub(super) fn end_of_words(&mut self, end: u32, limit: usize) -> Result<Guess, AgentError> {
        let mut words = Vec::new();
        let mut all = 1.0f32;
        while words.len() < limit && !self.full() && !circles(&words) {
            all *= self.lm.certainty()?;
            let Next::Word(tokens) = self.next_word(end)? else { return Ok(Guess { complete: all, transcript: words.join(" ") }) };
            words.push(self.text.decode(&tokens));
        }
        Ok(Guess { complete: 0.0, transcript: words.join(" ") })
    }

    /// The model writes a word, or `end`. Nothing else is let through; a word is taken to its end.
    pub(super) fn next_word(&mut self, end: u32) -> Result<Next, AgentError> {
        let mut word = Vec::new();
        while !self.text.is_whole(&word) && (word.is_empty() || !self.full()) {
            let token = self.lm.next_token(|token| self.text.may_follow(&word, token, end))?;
            if token == end || (!word.is_empty() && self.text.begins_word(token)) {
                break;
            }
            word.push(token);
            self.lm.step(LmInput::Token(token))?;
        }
        Ok(if word.is_empty() { Next::Ended } else { Next::Word(word) })
    }

    /// Is there no more room in the context?
    pub(super) fn full(&self) -> bool {
        self.lm.position() + RESERVE >= self.lm.context()
    }
}

/// Does the text end in the same one to four words over and over?
fn circles(words: &[String]) -> bool {
    (1..=4).any(|size| {
        // Single words are said twice or thrice in earnest ("no no no").
        let times = if size == 1 { 5 } else { 4 };
        let Some(start) = words.len().checked_sub(size * times) else { return false };
        let tail = &words[start..];
        tail.chunks(size).all(|chunk| chunk == &tail[..size])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_seen() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(circles(&words("okay on on on on on")));
        assert!(circles(&words("well the cat the cat the cat the cat")));
        assert!(!circles(&words("no no no no")));
        assert!(!circles(&words("the cat the dog the cat the dog")));
        assert!(!circles(&[]));
    }
}
