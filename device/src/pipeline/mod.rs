//! The conversation: a spoken question in, a spoken answer out, while both go on.
//!
//! ```text
//! device ─20 ms─▶ hear: tokenizer → groups → language model   (while the question is being asked)
//!                 think: transcript → [call → tool → result]  (when it is over)
//!                 plan: the words of the reply, as text       (settled before the first sound; can be switched off)
//!                 speak: word → its groups → decoder → device (a word is heard before the next is made)
//!                 remember: the turn as compact text, re-read into the cache (when the answer is over)
//! ```
//! - [`Agent`]: the conversation. [`Settings`]: its limits. [`Event`], [`Turn`]: what it reports.
//! - [`Agent::turn`]: one question from a device. Live, the same in parts: [`Agent::begin`], [`Agent::push`] while the user speaks, then
//!   [`Agent::answer`] or [`Agent::abandon`], and [`Agent::settle`] when it is known how much of the answer was heard.
//! - `hear`, `think`, `speak`: the three parts of a turn. `history`: what is kept of the turns before.
//! - `voice`: the decoder, here or on a thread of its own.
//!
//! The language model writes under a grammar: where only a word or `<agent>` may come, nothing else is considered, and
//! everything it may repeat has a limit. So a turn always ends, with any weights.

mod event;
mod gate;
mod hear;
mod history;
mod lead;
mod settings;
mod speak;
mod think;
mod voice;

use std::time::{Duration, Instant};

pub use event::{CallReport, Event, Past, Stopped, Timing, Turn};
pub use hear::Guess;
pub use settings::Settings;

use crate::audio::{AudioDevice, AudioError, Capture};
use crate::bundle::{Bundle, StageName};
use crate::engine::Engine;
use crate::stage::{Decoder, Lm, LmInput, StageError, Tokenizer};
use crate::text::{Specials, Text};
use crate::tools::Tools;
use crate::wake::Matcher;
use hear::Heard;
use history::History;
use voice::Voice;

/// Why a turn failed. The agent is ready for the next turn after any of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// See [`StageError`].
    #[error(transparent)]
    Stage(#[from] StageError),
    /// See [`AudioError`].
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The decoder's thread is gone, a defect: open the agent anew.
    #[error("the thread that makes the voice died")]
    VoiceStopped,
}

/// Where events go.
pub type Listener<'a> = dyn FnMut(&Event) + 'a;

/// What a turn answers.
enum Question<'a> {
    Heard(&'a Capture),
    Units(&'a [u32]),
}

/// A conversation with a bundle.
pub struct Agent {
    bundle: Bundle,
    tokenizer: Tokenizer,
    lm: Lm,
    text: Text,
    special: Specials,
    voice: Voice,
    tools: Tools,
    history: History,
    settings: Settings,
    turn_id: u64,
    /// The question that is being heard.
    heard: Option<Heard>,
    wake: Option<Matcher>,
    /// The turn that the last error ended.
    failed: Option<Turn>,
}

impl Agent {
    /// Loads all stages. Afterwards the agent is ready: nothing more is prepared in the first turn.
    pub fn open(engine: &dyn Engine, bundle: Bundle, tools: Tools, settings: Settings) -> Result<Self, AgentError> {
        let tokenizer = Tokenizer::open(engine, &bundle)?;
        let text = Text::open(&bundle).map_err(StageError::from)?;
        let special = text.specials();
        let lm = Lm::open(engine, &bundle)?;
        let decoder = Decoder::open(engine, &bundle)?;
        let voice = if settings.threads > 1 { Voice::on_thread(decoder) } else { Voice::here(decoder) };
        let history = History::new(lm.context() / 4, settings.history_turns);
        Ok(Self {
            bundle,
            tokenizer,
            lm,
            text,
            special,
            voice,
            tools,
            history,
            settings,
            turn_id: 0,
            heard: None,
            wake: None,
            failed: None,
        })
    }

    /// The turn that the last error ended, as far as it had come, for the field log. Once.
    pub fn take_failed(&mut self) -> Option<Turn> {
        self.failed.take()
    }

    /// The bundle that is running.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What [`Agent::begin_asleep`] waits for.
    pub fn wake_by(&mut self, matcher: Option<Matcher>) {
        self.wake = matcher;
    }

    /// The longest question in seconds: the setting, or less where the model's context is short.
    pub fn longest_question(&self) -> f64 {
        let manifest = self.bundle.manifest();
        let groups = self.lm.context() * 3 / 8;
        self.settings.question_seconds.min((groups * manifest.group) as f64 / f64::from(manifest.unit_rate))
    }

    /// The tools, with what they remember: what fell due, the volume.
    pub fn tools(&mut self) -> &mut Tools {
        &mut self.tools
    }

    /// Remembers these turns in place of what was: their transcripts, calls and replies.
    pub fn recall(&mut self, turns: &[Turn]) -> Result<(), AgentError> {
        self.history.clear();
        for turn in turns {
            self.history.push(turn, &self.text);
        }
        self.reread()
    }

    /// Forgets all turns.
    pub fn forget(&mut self) -> Result<(), AgentError> {
        self.history.clear();
        Ok(self.lm.reset()?)
    }

    /// Hears one question from `capture`, answers it through `device`, and remembers the turn.
    ///
    /// A question without sound is reported and not given to the model. Every other outcome is a [`Turn`] too: how the
    /// answer ended is in [`Turn::stopped`]. An error leaves the agent as it was before the turn.
    pub fn turn(&mut self, capture: &Capture, device: &mut dyn AudioDevice, listener: &mut Listener) -> Result<Turn, AgentError> {
        self.question(Question::Heard(capture), device, listener)
    }

    /// The same for a question of which only the units were kept.
    pub fn turn_of_units(&mut self, units: &[u32], device: &mut dyn AudioDevice, listener: &mut Listener) -> Result<Turn, AgentError> {
        self.question(Question::Units(units), device, listener)
    }

    fn question(&mut self, question: Question, device: &mut dyn AudioDevice, listener: &mut Listener) -> Result<Turn, AgentError> {
        let result = self.try_turn(question, device, listener);
        if result.is_err() {
            device.discard();
            self.recover()?;
        }
        result
    }

    fn try_turn(&mut self, question: Question, device: &mut dyn AudioDevice, listener: &mut Listener) -> Result<Turn, AgentError> {
        match question {
            Question::Heard(capture) => {
                self.begin(&capture.source)?;
                self.hear(capture)?;
            }
            Question::Units(units) => self.hear_units(units)?,
        }
        let mut turn = self.try_answer(device, listener, &|| true)?;
        self.settle(&mut turn, None)?;
        Ok(turn)
    }

    /// The question that [`Agent::begin`] began is over: answers it through `device`, as fast as it can be made. Between two groups `go_on`
    /// is asked; where it says no the answer ends there, with what was made until then in the [`Turn`].
    ///
    /// The turn is not remembered until [`Agent::settle`] says how much of it was heard.
    ///
    /// # Errors
    /// An error leaves the agent as it was before the question.
    pub fn answer(&mut self, device: &mut dyn AudioDevice, listener: &mut Listener, go_on: &dyn Fn() -> bool) -> Result<Turn, AgentError> {
        let result = self.try_answer(device, listener, go_on);
        if result.is_err() {
            device.discard();
            self.recover()?;
        }
        result
    }

    fn try_answer(&mut self, device: &mut dyn AudioDevice, listener: &mut Listener, go_on: &dyn Fn() -> bool) -> Result<Turn, AgentError> {
        if self.heard.is_none() {
            self.begin("nothing")?;
        }
        let Some(mut heard) = self.heard.take() else { return Err(AudioError::Stopped.into()) };
        self.end_hearing(&mut heard)?;
        let manifest = self.bundle.manifest();
        let overheard = heard.overheard;
        let question_s = heard.asked_samples() as f64 / f64::from(manifest.sample_rate);
        let mut turn = Turn { turn_id: self.turn_id, source: heard.source, context: self.history.past(), question_s, ..Turn::default() };
        turn.question_units = heard.units;
        let mut clock = Clock { end_of_question: heard.last_sample, tools: Duration::ZERO };
        turn.timing_ms.endpoint = clock.ms();
        if !heard.loud {
            turn.stopped = Stopped::Silence;
            device.discard();
            listener(&Event::Heard { turn_id: turn.turn_id, transcript: String::new(), silence: true, question_s: turn.question_s });
            turn.timing_ms.total = clock.ms();
            self.report(&mut turn, listener);
            return Ok(turn);
        }
        match self.respond(overheard, &mut turn, &mut clock, device, listener, go_on) {
            Ok(()) => Ok(turn),
            Err(error) => {
                (turn.stopped, turn.problem) = (Stopped::Failed, Some(error.to_string()));
                self.failed = Some(turn);
                Err(error)
            }
        }
    }

    /// Everything after the question was heard.
    fn respond(
        &mut self,
        overheard: bool,
        turn: &mut Turn,
        clock: &mut Clock,
        device: &mut dyn AudioDevice,
        listener: &mut Listener,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), AgentError> {
        let asked = self.lm.position();
        let transcript_first = self.bundle.manifest().transcript;
        if transcript_first {
            self.transcribe(overheard, turn, clock, listener)?;
        } else {
            self.lm.step(LmInput::Token(self.special.agent))?;
        }
        if turn.stopped == Stopped::Silence {
            device.discard();
            turn.timing_ms.total = clock.ms();
            self.report(turn, listener);
            return self.rewind();
        }
        self.tools.heard(&turn.transcript);
        if go_on() {
            self.think(turn, clock, listener)?;
            let plan = if self.settings.plan { Some(self.plan(turn, clock)?) } else { None };
            self.lm.step(LmInput::Token(self.special.speak))?;
            self.speak(plan, turn, clock, device, listener, go_on)?;
        } else {
            turn.stopped = Stopped::Interrupted;
        }
        self.finish(turn, clock, device)?;
        self.report(turn, listener);
        if !transcript_first {
            // The history is text: write down what was asked now that nobody waits.
            self.lm.truncate(asked);
            turn.transcript = self.write_transcript()?;
        }
        Ok(())
    }

    /// Remembers the turn that [`Agent::answer`] made, as far as it was heard: `heard_s` seconds of the answer, or all of it. What was
    /// not heard leaves the cache and the turn's text: the user does not know of it.
    ///
    /// # Errors
    /// When a graph fails; the turn is then forgotten.
    pub fn settle(&mut self, turn: &mut Turn, heard_s: Option<f64>) -> Result<(), AgentError> {
        if let Some(heard_s) = heard_s {
            let heard = (heard_s * f64::from(self.bundle.manifest().unit_rate)) as usize;
            // A word of which half was heard was heard.
            let begins = std::iter::once(0).chain(turn.word_units.iter().copied());
            let words = begins.zip(&turn.word_units).take_while(|(begin, end)| begin.midpoint(**end) < heard).count();
            if words < turn.word_units.len() {
                turn.stopped = Stopped::Interrupted;
                let text: Vec<&str> = turn.reply_text.split(' ').take(words).collect();
                turn.reply_text = text.join(" ");
                turn.units.truncate(heard);
            }
            if words == 0 && turn.calls.is_empty() {
                return self.rewind();
            }
        }
        self.remember(turn)
    }

    /// Answers a typed question in text, and remembers the turn. Nothing is spoken.
    pub fn ask(&mut self, question: &str, listener: &mut Listener) -> Result<Turn, AgentError> {
        let result = self.try_ask(question, listener);
        if result.is_err() {
            self.recover()?;
        }
        result
    }

    fn try_ask(&mut self, question: &str, listener: &mut Listener) -> Result<Turn, AgentError> {
        self.count_turn();
        let words = crate::words::spoken(question, self.settings.transcript_words);
        let mut turn = Turn { turn_id: self.turn_id, source: "text".to_owned(), transcript: words, ..Turn::default() };
        let mut clock = Clock { end_of_question: Instant::now(), tools: Duration::ZERO };
        self.lm.step(LmInput::Token(self.special.transcribe))?;
        self.read_words(&turn.transcript)?;
        self.lm.step(LmInput::Token(self.special.agent))?;
        self.tools.heard(&turn.transcript);
        self.think(&mut turn, &mut clock, listener)?;
        self.write_reply(&mut turn, &clock, listener)?;
        turn.timing_ms.total = clock.ms();
        turn.timing_ms.tools = ms(clock.tools);
        self.report(&mut turn, listener);
        self.remember(&turn)?;
        Ok(turn)
    }

    /// Speaks a text, word by word, for as long as `go_on` says so; nothing is remembered.
    pub fn say(&mut self, text: &str, device: &mut dyn AudioDevice, go_on: &dyn Fn() -> bool) -> Result<Turn, AgentError> {
        let result = self.try_say(text, device, go_on);
        if result.is_err() {
            device.discard();
            self.recover()?;
        }
        result
    }

    fn try_say(&mut self, text: &str, device: &mut dyn AudioDevice, go_on: &dyn Fn() -> bool) -> Result<Turn, AgentError> {
        // It is no turn of the conversation: nobody is told of its words.
        let listener: &mut Listener = &mut |_: &Event| {};
        self.count_turn();
        let text = crate::words::spoken(text, self.settings.reply_words);
        let clock = Clock { end_of_question: Instant::now(), tools: Duration::ZERO };
        let mut turn = Turn { turn_id: self.turn_id, source: "say".to_owned(), ..Turn::default() };
        // A saying does not belong to the conversation: it has the cache for itself.
        self.lm.reset()?;
        self.lm.step(LmInput::Token(self.special.say))?;
        self.read_words(&text)?;
        self.lm.step(LmInput::Token(self.special.speak))?;
        let plan = self.text.words(&text);
        self.speak(Some(plan), &mut turn, &clock, device, listener, go_on)?;
        self.finish(&mut turn, &clock, device)?;
        self.report(&mut turn, listener);
        self.reread()?;
        Ok(turn)
    }

    fn count_turn(&mut self) {
        self.turn_id += 1;
        // What was spent between turns belongs to none.
        self.tokenizer.take_busy();
        self.lm.take_busy();
        self.lm.take_head_busy();
    }

    /// After an error: everything as it was before the turn.
    fn recover(&mut self) -> Result<(), AgentError> {
        self.heard = None;
        self.tokenizer.reset()?;
        self.voice.reset()?;
        self.reread()
    }

    /// Reads words into the cache.
    fn read_words(&mut self, words: &str) -> Result<(), AgentError> {
        for token in self.text.encode(words) {
            self.lm.step(LmInput::Token(token))?;
        }
        Ok(())
    }

    /// Puts the turn into the history and the history into the cache, as compact text in place of what was heard.
    fn remember(&mut self, turn: &Turn) -> Result<(), AgentError> {
        if !turn.reply_text.is_empty() {
            self.tools.said(&turn.reply_text);
        }
        let base = self.history.positions();
        if !self.history.push(turn, &self.text) {
            return self.reread();
        }
        self.lm.truncate(base);
        for token in self.history.last() {
            self.lm.step(LmInput::Token(*token))?;
        }
        Ok(())
    }

    /// Takes what came after the history out of the cache.
    fn rewind(&mut self) -> Result<(), AgentError> {
        if self.lm.position() < self.history.positions() {
            return self.reread();
        }
        self.lm.truncate(self.history.positions());
        Ok(())
    }

    /// Reads the whole history anew.
    fn reread(&mut self) -> Result<(), AgentError> {
        self.lm.reset()?;
        for token in self.history.tokens() {
            self.lm.step(LmInput::Token(token))?;
        }
        Ok(())
    }

    /// The answer is complete.
    fn finish(&mut self, turn: &mut Turn, clock: &Clock, device: &mut dyn AudioDevice) -> Result<(), AgentError> {
        turn.timing_ms.total = clock.ms();
        turn.timing_ms.tools = ms(clock.tools);
        turn.output = device.finish()?.map(|path| path.display().to_string());
        Ok(())
    }

    /// Fills in what each stage took, and tells the listener that the turn is over.
    fn report(&mut self, turn: &mut Turn, listener: &mut Listener) {
        let mut busy = Duration::ZERO;
        let stages = [
            (StageName::Tokenizer, self.tokenizer.take_busy().0),
            (StageName::Lm, self.lm.take_busy().0),
            (StageName::Head, self.lm.take_head_busy().0),
            (StageName::Decoder, self.voice.take_busy()),
        ];
        for (name, time) in stages {
            busy += time;
            turn.stages_ms.insert(name.as_str(), ms(time));
        }
        let audio = turn.question_s + turn.answer_s;
        turn.real_time_factor = if audio > 0.0 { busy.as_secs_f64() / audio } else { 0.0 };
        listener(&Event::Turn(Box::new(turn.clone())));
    }
}

/// Measures from the end of the question, without the time that tools took: compute only.
struct Clock {
    end_of_question: Instant,
    tools: Duration,
}

impl Clock {
    fn ms(&self) -> f64 {
        ms(self.end_of_question.elapsed().saturating_sub(self.tools))
    }
}

/// Milliseconds, to a hundredth.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}
