//! The answer: word by word, each word followed by its groups, each group spoken as soon as it is there.

use super::think::Next;
use super::{Agent, AgentError, Clock, Event, Listener, Stopped, Turn};
use crate::audio::AudioDevice;
use crate::stage::LmInput;

impl Agent {
    /// After `<speak>`: speaks the words of the plan, or without one until the model ends, or a limit is reached.
    pub(super) fn speak(
        &mut self,
        plan: Option<Vec<Vec<u32>>>,
        turn: &mut Turn,
        clock: &Clock,
        device: &mut dyn AudioDevice,
        listener: &mut Listener,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), AgentError> {
        let rate = f64::from(self.bundle.manifest().unit_rate);
        let most_units = (self.settings.reply_seconds * rate) as usize;
        let mut plan = plan.map(Vec::into_iter);
        let mut words = Vec::new();
        loop {
            let stopped = if turn.units.len() >= most_units { Some(Stopped::Limit) } else { self.stop(&words) };
            if let Some(stopped) = stopped {
                turn.stopped = stopped;
                break;
            }
            let next = match &mut plan {
                Some(plan) => self.read_word(plan.next())?,
                None => self.next_word(self.special.end)?,
            };
            let Next::Word(tokens) = next else { break };
            if plan.is_none() && words.is_empty() {
                turn.timing_ms.first_text = clock.ms();
            }
            let word = self.text.decode(&tokens);
            listener(&Event::Text { turn_id: turn.turn_id, text: word.clone() });
            words.push(word);
            self.speak_word(turn, clock, device, listener, go_on)?;
            turn.word_units.push(turn.units.len());
            if !go_on() {
                turn.stopped = Stopped::Interrupted;
                turn.reply_text = words.join(" ");
                // What waits in the decoder will not be heard.
                return self.voice.reset();
            }
        }
        turn.reply_text = words.join(" ");
        self.voice.flush()?;
        while let Some(samples) = self.voice.wait()? {
            if !go_on() {
                turn.stopped = Stopped::Interrupted;
                return self.voice.reset();
            }
            play(&samples, turn, clock, device, listener)?;
        }
        Ok(())
    }

    /// A word that is already known, or the end.
    fn read_word(&mut self, word: Option<Vec<u32>>) -> Result<Next, AgentError> {
        let Some(word) = word else { return Ok(Next::Ended) };
        for token in &word {
            if !self.full() {
                self.lm.step(LmInput::Token(*token))?;
            }
        }
        Ok(Next::Word(word))
    }

    /// The groups of the word that was just read.
    fn speak_word(
        &mut self,
        turn: &mut Turn,
        clock: &Clock,
        device: &mut dyn AudioDevice,
        listener: &mut Listener,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), AgentError> {
        let size = self.lm.group();
        let end = self.lm.end_unit();
        let rate = f64::from(self.bundle.manifest().unit_rate);
        let most = (self.settings.word_seconds * rate / size as f64).ceil().max(1.0) as usize;
        let mut group = Vec::with_capacity(size);
        for n in 0.. {
            if n == most || self.full() || !go_on() {
                // The word did not end by itself: end it as training would, so that the model goes on with the next.
                group.clear();
            } else {
                self.lm.next_group(&mut group)?;
            }
            let speech = group.iter().position(|unit| *unit == end).unwrap_or(group.len());
            if speech > 0 {
                // The voice first: on a thread of its own it speaks while the model reads.
                self.voice.speak(&group[..speech])?;
                turn.units.extend_from_slice(&group[..speech]);
            }
            while let Some(samples) = self.voice.ready()? {
                play(&samples, turn, clock, device, listener)?;
            }
            // A short group is filled with END units.
            self.lm.step(LmInput::Group(&group))?;
            if speech < size {
                break;
            }
        }
        Ok(())
    }
}

fn play(samples: &[f32], turn: &mut Turn, clock: &Clock, device: &mut dyn AudioDevice, listener: &mut Listener) -> Result<(), AgentError> {
    if samples.is_empty() {
        return Ok(());
    }
    if turn.answer_s == 0.0 {
        turn.timing_ms.first_audio = clock.ms();
    }
    device.play(samples)?;
    turn.answer_s += samples.len() as f64 / f64::from(crate::audio::SAMPLE_RATE);
    listener(&Event::Speech { turn_id: turn.turn_id, samples: samples.len(), answer_s: turn.answer_s });
    Ok(())
}
