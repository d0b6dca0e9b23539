//! The question: audio → units → groups → the model's cache, as it comes.

use std::time::Instant;

use super::gate::Gate;
use super::lead::Lead;
use super::{Agent, AgentError};
use crate::audio::{AudioError, Capture, Captured};
use crate::stage::LmInput;

/// What the model hears in a question that may not be over.
#[derive(Debug, Clone, PartialEq)]
pub struct Guess {
    /// How probable it is that the question is complete, 0 to 1: how sure the model is of the transcript, to its end. Of a question that breaks
    /// off it cannot be: it guesses words that were not said.
    pub complete: f32,
    /// The transcript as it would be now.
    pub transcript: String,
}

/// What was heard until now. The groups that are complete are in the cache already.
pub(super) struct Heard {
    pub source: String,
    pub samples: usize,
    pub units: Vec<u32>,
    pub loud: bool,
    pub last_sample: Instant,
    /// All units are there: the tokenizer has nothing to add.
    whole: bool,
    gate: Gate,
    /// Units that the model has read.
    read: usize,
    /// Groups beyond this position are not read: the answer needs room too.
    limit: usize,
    called: Called,
    /// Energy of the sound of each unit of the question.
    energies: Vec<f32>,
    /// Samples that were taken away with the wake phrase.
    skipped: usize,
    /// See [`Agent::overhear`].
    pub overheard: bool,
}

/// Has the wake phrase been said?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Called {
    /// It need not be.
    NeedNot,
    /// Not yet; so many units have been looked at.
    NotYet(usize),
    /// It has: so many units were taken away with it.
    Yes(usize),
}

/// Units of a question behind the wake phrase that must be about as loud as the phrase (25 dB).
const ASKED: usize = 4;
const AS_LOUD: f32 = 3e-3;

impl Heard {
    /// Samples of the question, without the wake phrase.
    pub(super) fn asked_samples(&self) -> usize {
        self.samples.saturating_sub(self.skipped)
    }
}

impl Agent {
    /// Begins to hear a question. One that is still open, and an answer that was not settled, are forgotten.
    ///
    /// # Errors
    /// When a graph fails. The agent is then as it was before the question; so it is with all that follows here.
    pub fn begin(&mut self, source: &str) -> Result<(), AgentError> {
        if self.heard.take().is_some() || self.lm.position() != self.history.positions() {
            self.recover()?;
        }
        self.count_turn();
        self.heard = Some(Heard {
            source: source.to_owned(),
            samples: 0,
            units: Vec::new(),
            loud: false,
            last_sample: Instant::now(),
            whole: false,
            gate: Gate::new(self.settings.silence_dbfs),
            read: 0,
            limit: self.lm.position() + self.lm.context() * 3 / 8,
            called: Called::NeedNot,
            energies: Vec::new(),
            skipped: 0,
            overheard: false,
        });
        Ok(())
    }

    /// As [`Agent::begin`], but only what is said behind the wake phrase counts: the language model does not hear what comes before.
    /// Without a phrase ([`Agent::wake_by`]) it is the same. Before [`Agent::answer`] ask [`Agent::asked`].
    ///
    /// # Errors
    /// See [`Agent::begin`].
    pub fn begin_asleep(&mut self, source: &str) -> Result<(), AgentError> {
        self.begin(source)?;
        if let (Some(matcher), Some(heard)) = (&mut self.wake, &mut self.heard) {
            matcher.reset();
            heard.called = Called::NotYet(0);
        }
        Ok(())
    }

    /// Has the wake phrase been heard in this question?
    pub fn called(&self) -> bool {
        self.heard.as_ref().is_some_and(|heard| matches!(heard.called, Called::Yes(_)))
    }

    /// Nobody need have spoken to the agent in this question: if it hears no word in it, that is silence.
    pub fn overhear(&mut self) {
        if let Some(heard) = &mut self.heard {
            heard.overheard = true;
        }
    }

    /// The question is over: is there anything to answer? What began asleep needs the wake phrase, and something said behind it.
    ///
    /// # Errors
    /// See [`Agent::begin`].
    pub fn asked(&mut self) -> Result<bool, AgentError> {
        let Some(mut heard) = self.heard.take() else { return Ok(false) };
        let asked = self.end_of_question(&mut heard);
        self.heard = Some(heard);
        asked
    }

    fn end_of_question(&mut self, heard: &mut Heard) -> Result<bool, AgentError> {
        self.flush(heard)?;
        self.look_for_phrase(heard, true);
        let Called::Yes(phrase) = heard.called else { return Ok(heard.called == Called::NeedNot) };
        // Units are late: the sound of unit n is that of n - late.
        let end = phrase.saturating_sub(self.bundle.manifest().tokenizer_delay()).min(heard.energies.len());
        let (before, behind) = heard.energies.split_at(end);
        let loudest = before.iter().copied().fold(0.0, f32::max);
        Ok(behind.iter().filter(|energy| **energy > AS_LOUD * loudest).count() >= ASKED)
    }

    fn flush(&mut self, heard: &mut Heard) -> Result<(), AgentError> {
        if !std::mem::replace(&mut heard.whole, true) {
            self.tokenizer.flush(&mut heard.units)?;
        }
        Ok(())
    }

    /// Takes the wake phrase, and what came before it, away from the question. `over`: nothing more will be heard.
    fn look_for_phrase(&mut self, heard: &mut Heard, over: bool) {
        let (Called::NotYet(seen), Some(matcher)) = (heard.called, &mut self.wake) else { return };
        let found = heard.units[seen..].iter().find_map(|unit| matcher.step(*unit));
        heard.called = match found.or_else(|| matcher.found().filter(|_| over)) {
            None => Called::NotYet(heard.units.len()),
            Some(end) => {
                heard.units.drain(..end);
                let manifest = self.bundle.manifest();
                heard.skipped = end.saturating_sub(manifest.tokenizer_delay()) * manifest.samples_per_unit();
                Called::Yes(end)
            }
        };
    }

    /// Takes in the next samples (16 kHz) of the question that [`Agent::begin`] began; without one they are ignored. `at` is when the
    /// last of them was captured, where that is known.
    ///
    /// # Errors
    /// See [`Agent::begin`].
    pub fn push(&mut self, samples: &[f32], at: Option<Instant>) -> Result<(), AgentError> {
        let Some(mut heard) = self.heard.take() else { return Ok(()) };
        heard.last_sample = at.unwrap_or_else(Instant::now);
        heard.samples += samples.len();
        heard.loud = heard.gate.step(samples);
        let done = self.read_on(&mut heard, samples);
        self.heard = Some(heard);
        done
    }

    fn read_on(&mut self, heard: &mut Heard, samples: &[f32]) -> Result<(), AgentError> {
        self.tokenizer.step(samples, &mut heard.units)?;
        if heard.called != Called::NeedNot {
            let unit = self.bundle.manifest().samples_per_unit();
            for (n, sample) in (heard.samples - samples.len()..).zip(samples) {
                heard.energies.resize(n / unit + 1, 0.0);
                heard.energies[n / unit] += sample * sample;
            }
            self.look_for_phrase(heard, false);
        }
        let asleep = matches!(heard.called, Called::NotYet(_));
        if heard.loud && !asleep { self.read_groups(heard, false) } else { Ok(()) }
    }

    /// What the model hears in the question that is open, which goes on as if it had not been asked. None where that cannot be told: nothing
    /// was heard yet, or the model writes no transcripts.
    ///
    /// # Errors
    /// See [`Agent::begin`].
    pub fn complete(&mut self) -> Result<Option<Guess>, AgentError> {
        let Some(heard) = self.heard.as_ref().filter(|heard| heard.loud && heard.read > 0) else { return Ok(None) };
        let before = self.lm.position();
        if !self.bundle.manifest().transcript || before + self.settings.transcript_words >= heard.limit {
            return Ok(None);
        }
        self.lm.step(LmInput::Token(self.special.transcribe))?;
        let ended = self.end_of_words(self.special.agent, self.settings.transcript_words);
        self.lm.truncate(before);
        ended.map(Some)
    }

    /// Throws the question away: the agent is as it was before it.
    ///
    /// # Errors
    /// See [`Agent::begin`].
    pub fn abandon(&mut self) -> Result<(), AgentError> {
        self.heard = None;
        self.tokenizer.reset()?;
        self.voice.reset()?;
        self.rewind()
    }

    /// Takes in a question until the device says that it is over.
    pub(super) fn hear(&mut self, capture: &Capture) -> Result<(), AgentError> {
        let mut lead = Lead::new();
        loop {
            match capture.pieces.recv() {
                Ok(Captured::Samples(samples, at)) => {
                    let samples = lead.step(samples);
                    self.push(&samples, at)?;
                }
                Ok(Captured::End) => {
                    let rest = lead.rest();
                    // Pushing nothing would make the last sample look newer than it is.
                    return if rest.is_empty() { Ok(()) } else { self.push(&rest, None) };
                }
                Ok(Captured::Failed(error)) => return Err(error.into()),
                Err(_) => return Err(AudioError::Stopped.into()),
            }
        }
    }

    /// The question is over: flushes the tokenizer. After a question with sound the model has read `<user> g g g … <transcribe>` or,
    /// without a transcript, `<user> g g g …`.
    pub(super) fn end_hearing(&mut self, heard: &mut Heard) -> Result<(), AgentError> {
        self.flush(heard)?;
        if heard.loud {
            self.read_groups(heard, true)?;
            if self.bundle.manifest().transcript {
                self.lm.step(LmInput::Token(self.special.transcribe))?;
            }
        }
        Ok(())
    }

    /// A question whose units are known, in place of [`Agent::begin`] and [`Agent::push`].
    pub(super) fn hear_units(&mut self, units: &[u32]) -> Result<(), AgentError> {
        self.begin("units")?;
        let samples = units.len() * self.bundle.manifest().samples_per_unit();
        if let Some(heard) = &mut self.heard {
            heard.samples = samples;
            heard.units = units.to_vec();
            heard.loud = !units.is_empty();
            heard.whole = true;
        }
        Ok(())
    }

    /// Reads the groups that are complete and not read yet; the last one is filled with END units.
    fn read_groups(&mut self, heard: &mut Heard, last: bool) -> Result<(), AgentError> {
        let size = self.lm.group();
        let units = &heard.units;
        while heard.read + size <= units.len() || (last && heard.read < units.len()) {
            if heard.read == 0 {
                self.lm.step(LmInput::Token(self.special.user))?;
            }
            let group = &units[heard.read..units.len().min(heard.read + size)];
            // `Lm::step` fills a short group with END units.
            if self.lm.position() < heard.limit {
                self.lm.step(LmInput::Group(group))?;
            }
            heard.read += group.len();
        }
        Ok(())
    }
}
