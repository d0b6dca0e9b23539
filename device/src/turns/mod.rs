//! Who speaks when: a pure state machine on a clock that the caller owns.
//!
//! ```text
//!            voice, key      silence, no word, key up       first sound
//!     idle ─────────────▶ listening ─────────────▶ thinking ────────────▶ speaking
//!      ▲                   ▲  ▲  ◀── user goes on ──┘ │                   │   ▲
//!      │                   │  └───────────────────────┼── voice lasts ─ interrupted (paused)
//!      └───────────────────┴── nothing heard, error, stop word, the end, any timeout
//! ```
//! Nothing here waits, allocates or reads a clock: [`Turns::step`] takes the time and what happened, and says what to do.
//! Times are durations since any fixed moment; what the microphone calls "now" is the time of its newest sample, so that a
//! slow computer does not shorten the user's pauses. `step` with [`Input::Tick`] every 10 to 20 ms keeps the timeouts.

mod settings;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;

pub(crate) use settings::milliseconds;
pub use settings::{Idle, Interrupted, Listening, Speaking, Thinking, TurnSettings};

/// Time since a moment that the caller chose.
pub type Time = Duration;

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for the user to begin.
    Idle,
    /// Hears a question.
    Listening,
    /// The question is over; the answer is being made.
    Thinking,
    /// The answer is being played.
    Speaking,
    /// The answer is paused because somebody speaks.
    Interrupted,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input {
    /// Nothing; time went on.
    Tick,
    /// A voice is heard since `since` which may be the agent's own: reason to hold the answer, not to begin a question. [`Input::SpeechStarted`]
    /// follows if it is the user's, else [`Input::SpeechEnded`].
    SpeechSuspected {
        /// When it began, as far as can be told.
        since: Time,
    },
    /// A voice is heard since `since`.
    SpeechStarted {
        /// When it began, as far as can be told.
        since: Time,
    },
    /// The voice ended.
    SpeechEnded {
        /// When.
        at: Time,
    },
    /// How probable it is that the question is complete, 0 to 1, by what was heard until now.
    Complete(f32),
    /// A voice is heard in which the model has heard no new word.
    NoNewWord {
        /// For how long.
        lasted: Duration,
        /// See [`Input::Complete`].
        complete: f32,
    },
    /// The question was read to its end and understood (or not: then there will be no answer). From here on tools may be at work.
    Read {
        /// Is there something to answer?
        understood: bool,
    },
    /// The agent has something to say that nobody asked for, and it is being made. Not while anybody has the word: then nothing happens.
    Say,
    /// The first sample of the answer is played.
    PlaybackStarted,
    /// The last sample of the answer was played.
    PlaybackFinished,
    /// The answer cannot be made, or not to its end.
    Failed,
    /// The talk key was pressed.
    KeyDown,
    /// The talk key was released.
    KeyUp,
    /// The user wants silence.
    StopWord,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// A question begins: give the model the sound from `since` on. What it was doing is over.
    Begin {
        /// When the question began; this may lie a question's length back.
        since: Time,
    },
    /// The question is over: answer it.
    Answer,
    /// Throw away the question or the answer that is being made.
    Abandon,
    /// Hold the playback where it is.
    Pause,
    /// Go on with the playback where it was held.
    Resume,
    /// End the playback; the model remembers only what was played.
    Cut,
    /// What is being played belongs to no question any more: end it. A question that is open stays open.
    Silence,
    /// The conversation is over: forget it.
    Forget,
}

/// What to do after one input: at most four things.
pub type Actions = heapless::Vec<Action, 4>;

/// How a state came to its end by its timeout; counted, because each is a sign of trouble.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    pub listening: u32,
    pub thinking: u32,
    pub speaking: u32,
    pub interrupted: u32,
}

/// How complete a question must be that ends though a voice goes on. With `talk_on_ms` 900 none of 299 test questions would end before its last
/// word, and 1 of 108 sentences of other domains, of which the model understands little (3 and 9 with 300); of 72 questions among music and
/// crowds 29 would end by it, 24 of them understood (33 and 26), most of the others by a pause of what goes on.
const UNDERSTOOD: f32 = 0.3;

/// The state machine.
#[derive(Debug, Clone)]
pub struct Turns {
    settings: TurnSettings,
    state: State,
    now: Time,
    /// When the state began.
    entered: Time,
    /// Since when a voice is heard, and until when the last one was.
    voice: Option<Time>,
    /// It may be the agent's own.
    suspected: bool,
    /// It held the answer for as long as it may without becoming sure: until it ends, or is sure, it does not count.
    dismissed: bool,
    /// The question ended though a voice went on: somebody else talks all the time, and none of that interrupts the answer.
    among_others: bool,
    silent_since: Time,
    /// The voice that is heard has been dealt with: it begins no question, but may still interrupt.
    spent: bool,
    /// The question: its beginning, and how much voice was in the parts of it that are over.
    question: Time,
    voiced: Duration,
    complete: Option<f32>,
    key: bool,
    /// In `Thinking`: has the question been read to its end?
    read: bool,
    /// When the answer began to be heard.
    audible: Time,
    forgotten: bool,
    timeouts: Timeouts,
}

impl Turns {
    /// Begins idle at `now`.
    pub fn new(settings: TurnSettings, now: Time) -> Self {
        Self {
            settings,
            state: State::Idle,
            now,
            entered: now,
            voice: None,
            suspected: false,
            dismissed: false,
            among_others: false,
            silent_since: now,
            spent: false,
            question: now,
            voiced: Duration::ZERO,
            complete: None,
            key: false,
            read: false,
            audible: now,
            forgotten: true,
            timeouts: Timeouts::default(),
        }
    }

    /// What the agent is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// States that ended by their timeout.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Takes in what happened at `now`. Time never goes back: an earlier `now` counts as the latest one.
    pub fn step(&mut self, now: Time, input: Input) -> Actions {
        self.now = self.now.max(now);
        let mut actions = Actions::new();
        match input {
            Input::SpeechSuspected { since } => {
                if self.voice.is_none() {
                    (self.voice, self.suspected) = (Some(since.min(self.now)), true);
                }
            }
            Input::SpeechStarted { since } => {
                (self.suspected, self.dismissed) = (false, false);
                // It was not complete, or is not any more.
                self.complete = None;
                if self.voice.is_none() {
                    self.voice = Some(since.min(self.now));
                }
            }
            Input::SpeechEnded { at } => {
                if let Some(since) = self.voice.take() {
                    self.silent_since = at.clamp(since, self.now);
                    (self.spent, self.dismissed) = (false, false);
                    self.voiced += self.silent_since - since;
                }
            }
            Input::Complete(p) => self.complete = Some(probability(p)),
            Input::NoNewWord { lasted, complete } => self.no_new_word(lasted, probability(complete), &mut actions),
            Input::KeyDown => self.key_down(&mut actions),
            Input::KeyUp => self.key_up(&mut actions),
            Input::StopWord => self.give_up(&mut actions),
            Input::Failed => {
                if self.state != State::Idle {
                    self.give_up(&mut actions);
                }
            }
            Input::Read { understood } => match (self.state, understood) {
                (State::Thinking, true) => self.read = true,
                (State::Thinking, false) => self.enter(State::Idle),
                _ => {}
            },
            Input::Say => {
                if self.state == State::Idle {
                    self.enter(State::Thinking);
                    // There is no question that a voice could go on with.
                    self.read = true;
                }
            }
            Input::PlaybackStarted => match self.state {
                State::Thinking => {
                    self.audible = self.now;
                    self.enter(State::Speaking);
                }
                State::Speaking | State::Interrupted => {}
                // Too late: nobody waits for it any more.
                State::Idle | State::Listening => add(&mut actions, Action::Silence),
            },
            Input::PlaybackFinished => match self.state {
                // An answer without a sound: it never began.
                State::Thinking | State::Speaking => self.enter(State::Idle),
                // It ended as it was paused. Whoever speaks has the word.
                State::Interrupted => match self.users_voice() {
                    Some(since) => self.listen(since, &mut actions),
                    None => self.enter(State::Idle),
                },
                State::Idle | State::Listening => {}
            },
            Input::Tick => {}
        }
        self.pass(&mut actions);
        actions
    }

    /// Since when the user's voice is heard; the agent's own does not count.
    fn users_voice(&self) -> Option<Time> {
        self.voice.filter(|_| !self.suspected)
    }

    /// What the time that has passed, and the voice that is or is not heard, lead to.
    fn pass(&mut self, actions: &mut Actions) {
        let age = self.now.saturating_sub(self.entered);
        let by_voice = !self.settings.push_to_talk;
        // How long the voice has lasted that is heard now.
        let voice = self.voice.map(|since| self.now - since);
        let lasts = |limit: Duration| by_voice && voice.is_some_and(|voice| voice >= limit);
        match self.state {
            State::Idle => {
                if let (Some(since), true) = (self.users_voice(), by_voice && !self.spent) {
                    self.listen(since, actions);
                } else if age >= self.settings.idle.timeout && !self.forgotten {
                    self.forgotten = true;
                    add(actions, Action::Forget);
                }
            }
            State::Listening => self.pass_listening(age, actions),
            State::Thinking => {
                if lasts(self.settings.thinking.go_on) && !self.spent && !self.suspected {
                    let since = if self.read { self.now - voice.unwrap_or_default() } else { self.question };
                    let more = self.now.saturating_sub(since) < self.settings.listening.timeout;
                    // A question that is at its longest is answered as it is.
                    if self.read || more {
                        let voiced = if self.read { Duration::ZERO } else { self.voiced };
                        add(actions, Action::Abandon);
                        if self.read {
                            self.listen(since, actions);
                        } else {
                            self.begin(since, actions);
                        }
                        self.voiced = voiced;
                        return;
                    }
                }
                if age >= self.settings.thinking.timeout {
                    self.timeouts.thinking += 1;
                    self.give_up(actions);
                }
            }
            State::Speaking => {
                // Pauses included, and first: an answer that is paused over and over comes to an end too.
                if self.now.saturating_sub(self.audible) >= self.settings.speaking.timeout {
                    self.timeouts.speaking += 1;
                    self.give_up(actions);
                } else if self.settings.speaking.barge_in
                    && !self.dismissed
                    && !self.among_others
                    && lasts(self.settings.speaking.pause_after)
                {
                    add(actions, Action::Pause);
                    self.enter(State::Interrupted);
                }
            }
            State::Interrupted => {
                let silence = self.now.saturating_sub(self.silent_since);
                let late = age >= self.settings.interrupted.timeout;
                self.timeouts.interrupted += u32::from(late);
                if let (Some(since), true) = (self.users_voice(), late || lasts(self.settings.interrupted.question_after)) {
                    add(actions, Action::Cut);
                    self.listen(since, actions);
                } else if late || (self.voice.is_none() && silence >= self.settings.interrupted.resume_after) {
                    self.dismissed = self.voice.is_some();
                    add(actions, Action::Resume);
                    self.enter(State::Speaking);
                }
            }
        }
    }

    fn pass_listening(&mut self, age: Duration, actions: &mut Actions) {
        let settings = &self.settings.listening;
        let length = self.now.saturating_sub(self.question).max(age);
        if length >= settings.timeout {
            self.timeouts.listening += 1;
            // A key that was forgotten does not keep it from answering.
            return self.answer(actions);
        }
        if self.key || self.voice.is_some() {
            return;
        }
        let silence = self.now.saturating_sub(self.silent_since);
        if self.voiced == Duration::ZERO && self.silent_since <= self.entered {
            // Opened by a key, and nobody has spoken yet.
            if age >= settings.silence {
                self.give_up(actions);
            }
        } else if silence >= self.end_delay(self.complete) {
            if self.voiced < settings.speech_min {
                self.give_up(actions);
            } else {
                self.answer(actions);
            }
        }
    }

    fn no_new_word(&mut self, lasted: Duration, complete: f32, actions: &mut Actions) {
        let by_voice = !self.key && !self.settings.push_to_talk && self.users_voice().is_some();
        let over = complete >= UNDERSTOOD && lasted >= self.end_delay(Some(complete)) + self.settings.listening.talk_on;
        if self.state == State::Listening && by_voice && over {
            self.answer(actions);
            self.among_others = true;
        }
    }

    /// Silence that ends the question, by how complete it seems; without an estimate, half way.
    fn end_delay(&self, complete: Option<f32>) -> Duration {
        let Listening { end_min, end_max, .. } = self.settings.listening;
        let doubt = 1.0 - complete.unwrap_or(0.5);
        let room = end_max.saturating_sub(end_min).as_millis() as f32;
        end_min + Duration::from_millis((room * doubt).round() as u64)
    }

    fn key_down(&mut self, actions: &mut Actions) {
        if std::mem::replace(&mut self.key, true) {
            return;
        }
        match self.state {
            State::Listening => return,
            State::Idle => {}
            State::Thinking => add(actions, Action::Abandon),
            State::Speaking | State::Interrupted => add(actions, Action::Cut),
        }
        self.voiced = Duration::ZERO;
        self.begin(self.now, actions);
    }

    fn key_up(&mut self, actions: &mut Actions) {
        if std::mem::replace(&mut self.key, false) && self.state == State::Listening {
            self.answer(actions);
        }
    }

    /// A question that began with a voice at `since`.
    fn listen(&mut self, since: Time, actions: &mut Actions) {
        self.voiced = Duration::ZERO;
        let before = if self.state == State::Interrupted { self.settings.interrupted.before } else { self.settings.idle.before };
        self.begin(since.saturating_sub(before), actions);
    }

    fn begin(&mut self, since: Time, actions: &mut Actions) {
        self.question = since;
        self.complete = None;
        self.forgotten = false;
        add(actions, Action::Begin { since });
        self.enter(State::Listening);
    }

    fn answer(&mut self, actions: &mut Actions) {
        add(actions, Action::Answer);
        // Who still speaks as the key is released, or at the limit, does not go on with the question.
        self.spent = self.voice.is_some();
        self.enter(State::Thinking);
    }

    /// Back to idle, whatever is going on.
    fn give_up(&mut self, actions: &mut Actions) {
        match self.state {
            State::Idle => {}
            State::Listening | State::Thinking => add(actions, Action::Abandon),
            State::Speaking | State::Interrupted => add(actions, Action::Cut),
        }
        // A voice that goes on is not a new question: it has to end first.
        self.spent = self.voice.is_some();
        self.enter(State::Idle);
    }

    fn enter(&mut self, state: State) {
        self.among_others &= !matches!(state, State::Idle | State::Listening);
        self.state = state;
        self.entered = self.now;
        self.read = false;
    }
}

fn probability(p: f32) -> f32 {
    if p.is_finite() { p.clamp(0.0, 1.0) } else { 0.0 }
}

fn add(actions: &mut Actions, action: Action) {
    // No input leads to more than three.
    let full = actions.push(action).is_err();
    debug_assert!(!full, "more actions than there is room for");
}
