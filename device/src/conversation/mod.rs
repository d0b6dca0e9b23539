//! A conversation over a microphone and a loudspeaker, hardware or simulated.
//!
//! ```text
//! Duplex ─10 ms─▶ Hearing: echo, voice ─▶ Turns: who speaks ─▶ Mind: the agent ─▶ Playback ─10 ms─▶ Duplex
//! ```
//! [`Conversation::frame`] is one round of 10 ms; call it for ever. Time is counted in frames of the microphone, so that the same
//! conversation takes place on a simulated clock as on a real one. [`Happening`] is what it tells.

mod mind;
mod playback;
mod ring;

use std::sync::Arc;
use std::time::{Duration, Instant};

use heapless::mpmc;
use serde::{Deserialize, Serialize};

pub use mind::{Mind, Order, Report};
pub use playback::{Playback, Played};
pub use ring::Ringer;

use crate::audio::AudioError;
use crate::audio::live::{Counts, Duplex, FRAME, Frame};
use crate::hearing::{ActivitySettings, Change, Hearing};
use crate::pipeline::{Event, Turn};
use crate::tools::{Due, Volume};
use crate::turns::{Action, Input, State, Time, Timeouts, TurnSettings, Turns};
use crate::wake::WakeSettings;

/// Silence after which the agent is asked whether the question is complete: the tokenizer is 200 ms late.
const GUESS_AFTER: Duration = Duration::from_millis(260);

/// Settings of a live conversation: the table `live` of the settings file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LiveSettings {
    /// See [`TurnSettings`].
    pub turns: TurnSettings,
    /// See [`ActivitySettings`].
    pub activity: ActivitySettings,
    /// See [`WakeSettings`].
    pub wake: WakeSettings,
    /// The talk key, see [`crate::key::Key`].
    #[cfg(target_os = "linux")]
    pub key: Option<crate::key::Key>,
    /// A question that consists of exactly one of these ends the answer and is not answered.
    pub stop_words: Vec<String>,
}

impl Default for LiveSettings {
    fn default() -> Self {
        let stop_words = ["stop", "stop it", "stop please", "be quiet", "quiet"].map(str::to_owned).to_vec();
        Self {
            turns: TurnSettings::default(),
            activity: ActivitySettings::default(),
            wake: WakeSettings::default(),
            #[cfg(target_os = "linux")]
            key: None,
            stop_words,
        }
    }
}

/// Keys and signals from other threads and signal handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The talk key is pressed.
    KeyDown,
    /// The talk key is released.
    KeyUp,
    /// Be quiet.
    Stop,
}

/// Never waits; a full queue refuses.
pub type Controls = Arc<mpmc::Queue<Control, 16>>;

/// How long the user waited, in the five parts of the way (milliseconds).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waited {
    /// End of the user's voice → the question is taken for over.
    pub endpoint: f64,
    /// → first word of the answer.
    pub first_text: f64,
    /// → first samples of it.
    pub first_audio: f64,
    /// → they are given to the device.
    pub playback: f64,
    /// → they are heard, by what waits before them.
    pub audible: f64,
    /// All of it: from voice to voice.
    pub voice_to_voice: f64,
}

/// What a conversation tells. As JSON: one object, its kind in `event`; events of the agent as they are.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Happening {
    /// The agent does something else now.
    State {
        /// Seconds since the beginning.
        at_s: f64,
        state: State,
    },
    /// The wake phrase was said.
    Wake {
        /// Seconds since the beginning.
        at_s: f64,
    },
    /// The turn is over; `turn` tells what was heard of it.
    Settled {
        turn: Box<Turn>,
        waited_ms: Waited,
        /// The question as it was heard, 16 kHz; for the field log.
        #[serde(skip)]
        question: Vec<i16>,
    },
    /// The turn broke off, see [`Turn::problem`]; told as a problem before.
    Failed {
        turn: Box<Turn>,
        /// The question as it was heard, 16 kHz; for the field log.
        #[serde(skip)]
        question: Vec<i16>,
    },
    /// A timer, an alarm or a reminder.
    Due(Due),
    /// Something failed; the conversation goes on.
    Problem { message: String },
    /// See [`Event`]; the event `turn` tells what was made, not what was heard.
    #[serde(untagged)]
    Agent(Event),
}

/// See the module.
pub struct Conversation<D: Duplex> {
    device: D,
    hearing: Hearing,
    turns: Turns,
    mind: Mind,
    playback: Playback,
    controls: Controls,
    settings: LiveSettings,
    volume: Volume,
    ringer: Ringer,
    ringing: bool,
    /// Number of the question; reports on others are out of date.
    question: u64,
    /// Until when questions need no wake phrase.
    awake_until: Option<Time>,
    /// When the question that is being heard began, whether it needs the phrase, and whether it has it or needs it no more.
    began: Option<Time>,
    needs_phrase: bool,
    woken: bool,
    /// With a wake phrase: when the last exchange was, until it is forgotten. Talk that is not meant for the agent keeps nothing alive.
    exchanged: Option<Time>,
    /// The state before this frame's inputs, and the one that was told last.
    before: State,
    told: State,
    /// The question is open: sound up to here was given to the agent.
    pushed: Option<Time>,
    /// The answer is out; it is heard to its end in so many frames.
    ending: Option<u32>,
    waited: Waited,
    /// When the voice ended, and when the question did: in the sound, and on the wall.
    voice_ended: Time,
    /// The agent has not been asked yet whether the question is complete.
    guess: bool,
    asked: Instant,
    complained: Counts,
}

impl<D: Duplex> Conversation<D> {
    /// Begins. The agent speaks at `volume`, which follows the tool of that name (`Tools::volume`).
    pub fn new(device: D, mind: Mind, settings: LiveSettings, volume: Volume) -> Self {
        Self {
            device,
            hearing: Hearing::new(settings.activity.clone()),
            turns: Turns::new(settings.turns.clone(), Duration::ZERO),
            mind,
            playback: Playback::default(),
            controls: Controls::default(),
            settings,
            volume,
            ringer: Ringer::default(),
            ringing: false,
            question: 0,
            awake_until: None,
            began: None,
            needs_phrase: false,
            woken: false,
            exchanged: None,
            before: State::Idle,
            told: State::Idle,
            pushed: None,
            ending: None,
            waited: Waited::default(),
            voice_ended: Duration::ZERO,
            guess: false,
            asked: Instant::now(),
            complained: Counts::default(),
        }
    }

    /// Where keys and signals go in.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// The hearing, for reports.
    pub fn hearing(&self) -> &Hearing {
        &self.hearing
    }

    /// What the agent is doing.
    pub fn state(&self) -> State {
        self.turns.state()
    }

    /// States that ended by their timeout.
    pub fn timeouts(&self) -> Timeouts {
        self.turns.timeouts()
    }

    /// One round: waits for the next 10 ms of the microphone.
    ///
    /// # Errors
    /// When the device will not come back, or the agent's thread has died.
    pub fn frame(&mut self, tell: &mut dyn FnMut(&Happening)) -> Result<(), AudioError> {
        self.before = self.turns.state();
        let mut microphone = [0.0; FRAME];
        self.device.listen(&mut microphone)?;
        let mut speaker: Frame = [0.0; FRAME];
        let mut played = Played::Nothing;
        if self.device.room() {
            played = self.playback.frame(&mut speaker);
            if played == Played::Nothing {
                // Whoever speaks, user or agent, is not drowned out.
                self.ringer.frame(self.ringing && self.before == State::Idle, &mut speaker);
            }
            let gain = self.volume.gain();
            speaker.iter_mut().for_each(|sample| *sample *= gain);
            self.device.play(&speaker);
        }
        let change = self.hearing.step(&microphone, &speaker);
        self.follow_playback(played);
        match change {
            Some(Change::Suspected(since)) => self.input(Input::SpeechSuspected { since }),
            Some(Change::Began(since)) => self.input(Input::SpeechStarted { since }),
            Some(Change::Ended(at)) => {
                self.voice_ended = at;
                self.guess = true;
                self.input(Input::SpeechEnded { at });
            }
            None => {}
        }
        while let Some(control) = self.controls.dequeue() {
            let input = match control {
                Control::KeyDown => {
                    self.stay_awake();
                    if self.asleep() && self.turns.state() == State::Listening {
                        // What is overheard ends here, so that the key begins a question.
                        self.input(Input::Failed);
                    }
                    Input::KeyDown
                }
                Control::KeyUp => Input::KeyUp,
                Control::Stop => {
                    self.mind.order(Order::Quiet);
                    Input::StopWord
                }
            };
            self.input(input);
        }
        while let Some(report) = self.mind.report()? {
            self.take(report, tell);
        }
        self.input(Input::Tick);
        // In pieces of 20 ms, as the tokenizer was built for.
        if self.pushed.is_some_and(|pushed| self.hearing.now() >= pushed + Duration::from_millis(20)) {
            self.push();
        }
        let silent = self.hearing.now().saturating_sub(self.voice_ended) >= GUESS_AFTER;
        if self.guess && silent && !self.hearing.activity().speaking() && self.turns.state() == State::Listening {
            self.guess = false;
            self.mind.order(Order::Complete(self.question));
        }
        // Talk that is not meant for the agent is nobody's business.
        let state = if self.asleep() { State::Idle } else { self.turns.state() };
        if state != self.told {
            self.told = state;
            tell(&Happening::State { at_s: self.hearing.now().as_secs_f64(), state });
        }
        if self.hearing.now().as_millis().is_multiple_of(1000) {
            let old = |at: &mut Time| self.hearing.now() >= *at + self.settings.turns.idle.timeout;
            let quiet = self.asleep() || self.before == State::Idle;
            if self.settings.wake.phrase.is_some() && quiet && self.exchanged.take_if(old).is_some() {
                self.mind.order(Order::Forget);
            }
            self.mind.order(Order::Look);
        }
        if let Some(message) = self.device.notice() {
            tell(&Happening::Problem { message });
        }
        self.complain(tell);
        Ok(())
    }

    fn input(&mut self, input: Input) {
        for action in self.turns.step(self.hearing.now(), input) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Begin { since } => {
                self.question += 1;
                self.mind.want(self.question);
                self.begin_question(since);
                self.mind.order(Order::Begin { question: self.question, asleep: self.needs_phrase });
                self.pushed = Some(since);
                self.push();
            }
            Action::Answer => {
                self.push();
                self.pushed = None;
                self.playback.clear();
                self.asked = Instant::now();
                let endpoint = self.hearing.now().saturating_sub(self.voice_ended);
                self.waited = Waited { endpoint: ms(endpoint), ..Waited::default() };
                self.mind.order(Order::Answer(self.question));
            }
            Action::Abandon => {
                self.drop_question();
                self.mind.order(Order::Abandon);
            }
            Action::Pause => self.playback.hold(),
            Action::Resume => self.playback.resume(),
            Action::Cut => {
                let heard = self.playback.heard(self.device.latency());
                self.drop_question();
                self.mind.order(Order::Settle(Some(heard)));
            }
            Action::Silence => self.playback.clear(),
            Action::Forget => self.mind.order(Order::Forget),
        }
    }

    /// Does a question that begins now need the wake phrase? Not behind an answer or into one, while something rings, or by the key.
    fn begin_question(&mut self, since: Time) {
        // A question that goes on is heard again from its beginning, the phrase included.
        if self.began.replace(since) != Some(since) {
            let wanted = self.settings.wake.phrase.is_some();
            // What follows overheard talk is as good as what follows silence.
            let from_rest = self.before == State::Idle || self.asleep();
            self.needs_phrase = wanted && from_rest && !self.ringing && self.awake_until.is_none_or(|until| since > until);
            self.woken = false;
        }
    }

    /// Does what is being heard still wait for the phrase?
    fn asleep(&self) -> bool {
        self.needs_phrase && !self.woken
    }

    /// Questions need no phrase for a while from now on.
    fn stay_awake(&mut self) {
        self.awake_until = Some(self.hearing.now() + self.settings.wake.awake);
    }

    /// Nothing that the agent still says about this question is wanted.
    fn drop_question(&mut self) {
        self.question += 1;
        self.mind.want(0);
        self.pushed = None;
        self.ending = None;
        self.playback.clear();
    }

    /// Gives the agent what was heard since the last time.
    fn push(&mut self) {
        let Some(pushed) = self.pushed else { return };
        let samples = self.hearing.since(pushed);
        self.pushed = Some(self.hearing.now());
        if !samples.is_empty() {
            self.mind.order(Order::Push(samples));
        }
    }

    fn follow_playback(&mut self, played: Played) {
        match played {
            Played::First => {
                self.woken = true;
                self.waited.playback = ms(self.asked.elapsed()) - self.waited.first_audio - self.waited.first_text;
                self.waited.audible = self.device.latency() * 10.0;
                self.input(Input::PlaybackStarted);
            }
            Played::Last => self.ending = Some(self.device.latency().ceil() as u32),
            Played::More | Played::Nothing => {}
        }
        match self.ending {
            Some(0) => {
                self.ending = None;
                self.playback.clear();
                self.mind.order(Order::Settle(None));
                self.input(Input::PlaybackFinished);
            }
            Some(frames) => self.ending = Some(frames - 1),
            None => {}
        }
    }

    fn take(&mut self, report: Report, tell: &mut dyn FnMut(&Happening)) {
        match report {
            Report::Event(question, event) => {
                if question == self.question {
                    self.take_event(&event);
                }
                tell(&Happening::Agent(event));
            }
            Report::Called(question) => {
                if question == self.question && !std::mem::replace(&mut self.woken, true) {
                    self.stay_awake();
                    tell(&Happening::Wake { at_s: self.hearing.now().as_secs_f64() });
                }
            }
            Report::NotAsked(question) => {
                if question == self.question {
                    self.input(Input::Read { understood: false });
                }
            }
            Report::Complete(question, p) => {
                if question == self.question && !self.hearing.activity().speaking() {
                    self.input(Input::Complete(p));
                }
            }
            Report::Samples(question, samples) if question == self.question => {
                if self.waited.first_audio == 0.0 {
                    self.waited.first_audio = (ms(self.asked.elapsed()) - self.waited.first_text).max(0.0);
                }
                self.playback.push(&samples);
            }
            Report::Done(question) if question == self.question => self.playback.complete(),
            Report::Failed(question, message, turn) => {
                tell(&Happening::Problem { message });
                if let Some((turn, question)) = turn {
                    tell(&Happening::Failed { turn, question });
                }
                if question == self.question {
                    self.input(Input::Failed);
                }
            }
            Report::Due(due, problem, ringing) => {
                self.ringing = ringing;
                due.into_iter().for_each(|due| tell(&Happening::Due(due)));
                if let Some(message) = problem {
                    tell(&Happening::Problem { message });
                }
            }
            Report::Settled(turn, question) => {
                self.stay_awake();
                self.exchanged = Some(self.hearing.now());
                let w = &mut self.waited;
                w.voice_to_voice = w.endpoint + w.first_text + w.first_audio + w.playback + w.audible;
                tell(&Happening::Settled { turn, waited_ms: *w, question });
            }
            // Of a question that nobody asks any more.
            Report::Samples(..) | Report::Done(_) => {}
        }
    }

    fn take_event(&mut self, event: &Event) {
        match event {
            Event::Heard { silence: true, .. } => self.input(Input::Read { understood: false }),
            Event::Heard { transcript, .. } if self.settings.stop_words.contains(transcript) => {
                self.mind.order(Order::Quiet);
                self.input(Input::StopWord);
            }
            Event::Heard { .. } => self.input(Input::Read { understood: true }),
            Event::Text { .. } if self.waited.first_text == 0.0 => self.waited.first_text = ms(self.asked.elapsed()),
            _ => {}
        }
    }

    /// Once in ten seconds, says what was lost.
    fn complain(&mut self, tell: &mut dyn FnMut(&Happening)) {
        if !self.hearing.now().as_millis().is_multiple_of(10_000) {
            return;
        }
        let counts = self.device.counts();
        if let Some(message) = counts.complaint(&self.complained) {
            tell(&Happening::Problem { message });
        }
        self.complained = counts;
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
