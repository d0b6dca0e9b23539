//! A conversation over a microphone and a loudspeaker, hardware or simulated.
//!
//! ```text
//! Duplex ─10 ms─▶ Hearing: echo, voice ─▶ Turns: who speaks ─▶ Mind: the agent ─▶ Playback ─10 ms─▶ Duplex
//! ```
//! [`Conversation::frame`] is one round of 10 ms; call it for ever. Time is counted in frames of the microphone, so that the same
//! conversation takes place on a simulated clock as on a real one. [`Happening`] is what it tells.

mod guess;
mod happening;
mod mind;
mod notice;
mod pace;
mod playback;
mod ring;
mod settings;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use happening::{Happening, Waited};
use heapless::mpmc;
pub use mind::{Mind, Order, Report};
pub use pace::Pace;
pub use playback::{Gaps, Playback, Played};
pub use ring::Ringer;
pub(crate) use ring::chime;
pub use settings::LiveSettings;

use crate::audio::AudioError;
use crate::audio::live::{Counts, Duplex, FRAME, Frame};
use crate::hearing::{Change, Echo, Hearing};
use crate::pipeline::Event;
use crate::tools::Volume;
use crate::turns::{Action, Input, State, Time, Timeouts, Turns};

/// An agent that is so far behind the user is asked nothing besides.
const BEHIND: Duration = Duration::from_millis(500);

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConversationError {
    /// See [`AudioError`].
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The agent broke down: start the program again.
    #[error(
        "the agent broke down and the program has to be started again: {0}; this is a defect: please report it with all that was printed"
    )]
    Agent(String),
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
    /// What is to be said unasked, and whether the first of it is being said.
    notices: VecDeque<String>,
    notice: bool,
    /// Number of the question; reports on others are out of date.
    question: u64,
    /// Until when questions need no wake phrase.
    awake_until: Option<Time>,
    /// When the question that is being heard began, whether it needs the phrase, and whether it has it or needs it no more.
    began: Option<Time>,
    needs_phrase: bool,
    woken: bool,
    /// What is being heard was heard before: the user went on.
    again: bool,
    /// The talk key was pressed for it.
    keyed: bool,
    /// With a wake phrase: when the last exchange was, until it is forgotten. Talk that is not meant for the agent keeps nothing alive.
    exchanged: Option<Time>,
    /// The state before this frame's inputs, and the one that was told last.
    before: State,
    told: State,
    /// The question is open: sound up to here was given to the agent. Of one that a key opened nothing is, until somebody speaks: what
    /// begins with seconds of silence is not understood.
    pushed: Option<Time>,
    unspoken: bool,
    /// The answer is out; it is heard to its end in so many frames.
    ending: Option<u32>,
    waited: Waited,
    /// When the voice ended, and when the question did: in the sound, and on the wall.
    voice_ended: Time,
    guesses: guess::Guesses,
    asked: Instant,
    complained: Counts,
    /// Does the agent keep up, and did it when that was told last?
    pace: Pace,
    paced: Pace,
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
            notices: VecDeque::new(),
            notice: false,
            question: 0,
            awake_until: None,
            began: None,
            needs_phrase: false,
            woken: false,
            again: false,
            keyed: false,
            exchanged: None,
            before: State::Idle,
            told: State::Idle,
            pushed: None,
            unspoken: false,
            ending: None,
            waited: Waited::default(),
            voice_ended: Duration::ZERO,
            guesses: guess::Guesses::default(),
            asked: Instant::now(),
            complained: Counts::default(),
            pace: Pace::default(),
            paced: Pace::default(),
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
    /// When the device will not come back, or the agent cannot go on.
    pub fn frame(&mut self, tell: &mut dyn FnMut(&Happening)) -> Result<(), ConversationError> {
        self.before = self.turns.state();
        let mut microphone = [0.0; FRAME];
        self.device.listen(&mut microphone)?;
        let mut speaker: Frame = [0.0; FRAME];
        let mut played = Played::Nothing;
        if self.device.room() {
            played = self.playback.frame(&mut speaker);
            let mut gain = self.volume.gain();
            let rings = played == Played::Nothing && self.ringer.frame(self.ringing, self.before, &mut speaker);
            if rings || self.notice {
                gain = gain.max(ring::LEAST_GAIN);
            }
            if rings {
                self.hearing.tones();
            }
            speaker.iter_mut().for_each(|sample| *sample *= gain);
            self.device.play(&speaker);
        }
        let change = self.hearing.step(&microphone, &speaker);
        self.follow_playback(played);
        if let Some(Change::Suspected(since) | Change::Began(since)) = change
            && std::mem::take(&mut self.unspoken)
        {
            let before = self.settings.turns.idle.before;
            self.pushed = self.pushed.map(|pushed| pushed.max(since.saturating_sub(before)));
        }
        match change {
            Some(Change::Suspected(since)) => self.input(Input::SpeechSuspected { since }),
            Some(Change::Began(since)) => self.input(Input::SpeechStarted { since }),
            Some(Change::Ended(at)) => {
                self.voice_ended = at;
                self.guesses.pause();
                self.input(Input::SpeechEnded { at });
            }
            None => {}
        }
        while let Some(control) = self.controls.dequeue() {
            match control {
                Control::KeyDown => {
                    self.stay_awake();
                    if self.asleep() && self.turns.state() == State::Listening {
                        // What is overheard ends here, so that the key begins a question.
                        self.input(Input::Failed);
                    }
                    self.input(Input::KeyDown);
                    self.keyed = true;
                }
                Control::KeyUp => self.input(Input::KeyUp),
                Control::Stop => self.quiet(),
            }
        }
        while let Some(report) = self.mind.report()? {
            self.take(report, tell);
        }
        self.input(Input::Tick);
        self.give_notice();
        // In pieces of 20 ms, as the tokenizer was built for.
        if !self.unspoken && self.pushed.is_some_and(|pushed| self.hearing.now() >= pushed + Duration::from_millis(20)) {
            self.push();
        }
        self.ask_whether_complete();
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

    /// Ends it: a turn that is under way is told as far as it came. Waits for the agent, which stops at its next group.
    pub fn close(&mut self, tell: &mut dyn FnMut(&Happening)) {
        self.input(Input::Failed);
        self.mind.close();
        // What went wrong now keeps nobody from anything.
        while let Ok(Some(report)) = self.mind.report() {
            self.take(report, tell);
        }
    }

    /// In a pause, and where a voice goes on that may be somebody else's.
    fn ask_whether_complete(&mut self) {
        let voice = self.hearing.activity().speaking();
        let by_voice = !self.unspoken && !self.settings.turns.push_to_talk && self.mind.behind() < BEHIND;
        let listens = self.turns.state() == State::Listening && (by_voice || !voice);
        if listens && self.guesses.due(self.hearing.now(), voice, self.voice_ended) {
            self.mind.order(Order::Complete(self.question));
        }
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
                self.notice = false;
                self.mind.want(self.question);
                self.begin_question(since);
                self.guesses.begin(self.hearing.now());
                self.mind.order(Order::Begin { question: self.question, asleep: self.needs_phrase });
                self.pushed = Some(since);
                self.unspoken = !self.hearing.activity().speaking();
                if !self.unspoken {
                    self.push();
                }
            }
            Action::Answer => {
                if !self.again {
                    self.pace.late = self.pace.late.max(self.mind.behind());
                }
                self.push();
                self.pushed = None;
                self.playback.clear();
                self.asked = Instant::now();
                let now = self.hearing.now();
                // Where somebody speaks on, the user's voice ended with the last word that is known of.
                let ended = if self.hearing.activity().speaking() { self.guesses.last_word().unwrap_or(now) } else { self.voice_ended };
                let endpoint = now.saturating_sub(ended);
                self.waited = Waited { endpoint: ms(endpoint), ..Waited::default() };
                self.mind.order(Order::Answer { question: self.question, addressed: self.keyed });
            }
            Action::Abandon => {
                self.drop_question();
                self.mind.order(Order::Abandon);
            }
            Action::Pause => {
                let taken_back = self.take_back();
                self.playback.hold(taken_back);
                if !self.playback.over() {
                    self.ending = None;
                }
            }
            Action::Resume => self.playback.resume(),
            Action::Cut => {
                let heard = self.playback.heard(self.device.latency());
                self.take_back();
                // One of which nothing but the chime was heard is said again.
                if self.notice && heard > ring::chime_seconds() {
                    self.notices.pop_front();
                }
                self.drop_question();
                self.mind.order(Order::Settle(Some(heard)));
            }
            Action::Silence => self.playback.clear(),
            Action::Forget => self.mind.order(Order::Forget),
        }
    }

    /// Silences what was played last and is not heard yet; how many samples of it.
    fn take_back(&mut self) -> usize {
        let taken_back = self.device.take_back(Echo::can_take_back());
        self.hearing.take_back(taken_back);
        taken_back
    }

    /// Does a question that begins now need the wake phrase? Not behind an answer or into one, while something rings, or by the key.
    fn begin_question(&mut self, since: Time) {
        // A question that goes on is heard again from its beginning, the phrase included.
        self.again = self.began.replace(since) == Some(since);
        if !self.again {
            // What follows overheard talk is as good as what follows silence.
            let from_rest = self.before == State::Idle || self.asleep();
            self.needs_phrase = from_rest && !self.ringing && self.sleeps(since);
            self.woken = false;
            self.keyed = false;
        }
    }

    /// Does who speaks at this time without having been heard need the phrase?
    fn sleeps(&self, at: Time) -> bool {
        self.settings.wake.phrase.is_some() && self.awake_until.is_none_or(|until| at > until)
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
        self.notice = false;
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
            self.mind.order(Order::Push(self.question, samples));
        }
    }

    /// Says what is to be said unasked, when nobody has the word. It is made as an answer is, and may be interrupted like one.
    fn give_notice(&mut self) {
        if self.turns.state() != State::Idle {
            return;
        }
        let Some(text) = self.notices.front().cloned() else { return };
        self.question += 1;
        self.mind.want(self.question);
        self.playback.clear();
        // Until it is heard, it is no conversation.
        (self.notice, self.needs_phrase, self.woken) = (true, self.sleeps(self.hearing.now()), false);
        self.input(Input::Say);
        self.mind.order(Order::Say(self.question, text));
    }

    fn follow_playback(&mut self, played: Played) {
        match played {
            Played::First => {
                self.woken = true;
                self.ringer.stop();
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
                if std::mem::take(&mut self.notice) {
                    self.notices.pop_front();
                }
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
            Report::Complete(question, guess) if question == self.question => {
                let lasted = self.guesses.hears(guess.as_ref().map(|guess| guess.transcript.as_str()));
                match (guess, lasted) {
                    (Some(guess), _) if !self.hearing.activity().speaking() => self.input(Input::Complete(guess.complete)),
                    (Some(guess), Some(lasted)) => self.input(Input::NoNewWord { lasted, complete: guess.complete }),
                    _ => {}
                }
            }
            Report::Samples(question, samples) if question == self.question => {
                if self.waited.first_audio == 0.0 {
                    self.waited.first_audio = (ms(self.asked.elapsed()) - self.waited.first_text).max(0.0);
                }
                if self.notice {
                    self.playback.push(&chime(if samples.is_empty() { ring::WORDLESS } else { 1 }));
                }
                self.playback.push(&samples);
            }
            Report::Done(question) if question == self.question => self.playback.complete(),
            Report::Failed(question, message, turn) => {
                tell(&Happening::Problem { message });
                if let Some((turn, question)) = turn {
                    tell(&Happening::Failed { turn, question });
                }
                if question == self.question && self.notice {
                    self.playback.push(&chime(ring::WORDLESS));
                    self.playback.complete();
                } else if question == self.question {
                    self.input(Input::Failed);
                }
            }
            Report::Due(due, problem, ringing) => {
                self.ringing = ringing;
                for due in due {
                    self.notices.extend(notice::words(&due));
                    tell(&Happening::Due(due));
                }
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
            Report::Abandoned(turn, question) => tell(&Happening::Abandoned { turn, question }),
            // Of a question that nobody asks any more.
            Report::Samples(..) | Report::Done(_) | Report::Complete(..) => {}
            // `Mind::report` makes an error of it.
            Report::Dead(_) => {}
        }
    }

    fn take_event(&mut self, event: &Event) {
        match event {
            Event::Heard { silence: true, .. } => self.input(Input::Read { understood: false }),
            Event::Heard { transcript, .. } if self.settings.stop_words.contains(transcript) => {
                self.quiet();
            }
            Event::Heard { .. } => self.input(Input::Read { understood: true }),
            Event::Text { .. } if self.waited.first_text == 0.0 => self.waited.first_text = ms(self.asked.elapsed()),
            _ => {}
        }
    }

    /// The user wants silence: from what rings and from what is still to be said, too.
    fn quiet(&mut self) {
        self.mind.order(Order::Quiet);
        self.notices.clear();
        self.input(Input::StopWord);
    }

    /// Once in ten seconds, says what was lost, and whether the agent keeps up.
    fn complain(&mut self, tell: &mut dyn FnMut(&Happening)) {
        if !self.hearing.now().as_millis().is_multiple_of(10_000) {
            return;
        }
        let counts = self.device.counts();
        if let Some(message) = counts.complaint(&self.complained) {
            tell(&Happening::Problem { message });
        }
        self.complained = counts;
        let timeouts = self.turns.timeouts();
        (self.pace.gaps, self.pace.given_up) = (self.playback.gaps(), timeouts.thinking + timeouts.speaking);
        if let Some(message) = self.pace.complaint(&self.paced) {
            tell(&Happening::Problem { message });
        }
        self.pace.late = Duration::ZERO;
        self.paced = self.pace;
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
