//! A conversation on the simulated device: the shipped agent in a room that echoes, on clocks that drift, in a program that stalls.

use std::path::{Path, PathBuf};

use sa_device::audio::live::{FRAME, Room, SimDevice};
use sa_device::audio::{AudioDevice, Pace, WavDevice, read_wav};
use sa_device::bundle::Bundle;
use sa_device::conversation::{Control, Conversation, Happening, LiveSettings, Mind};
use sa_device::engine::{Engine, Tract};
use sa_device::pipeline::{Agent, Event, Settings, Stopped, Turn};
use sa_device::tools::Tools;
use sa_device::turns::State;
use sa_tests::onset;

/// Questions that need no turn before, with what the user says into the answer of some.
pub const QUESTIONS: [&str; 12] = [
    "01-agenda",
    "05-brightness",
    "06-calendar",
    "09-devices",
    "10-facts",
    "11-lights",
    "12-locks",
    "03-arithmetic",
    "16-repeat",
    "17-smalltalk",
    "18-thermostat",
    "20-timers",
];

pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano")
}

pub fn sample(name: &str) -> PathBuf {
    nano().join("samples").join(format!("{name}.wav"))
}

/// The samples of a sample question.
pub fn voice(name: &str) -> Vec<f32> {
    read_wav(&sample(name), 30.0).expect("a sample")
}

pub fn agent() -> Agent {
    // Each turn for itself, so that file mode can be compared with.
    agent_with(&Tract, Settings { history_turns: 0, ..Settings::default() })
}

pub fn agent_with(engine: &dyn Engine, settings: Settings) -> Agent {
    let bundle = Bundle::open(&nano().join("bundle")).expect("the shipped bundle");
    Agent::open(engine, bundle, Tools::built_in(), settings).expect("loads")
}

/// What file mode understands.
pub fn in_file_mode(agent: &mut Agent, name: &str) -> String {
    of_file(agent, sample(name))
}

/// What is understood of a file.
pub fn of_file(agent: &mut Agent, path: PathBuf) -> String {
    let mut device = WavDevice::new(vec![path], Vec::new(), Pace::Fast, 30.0).expect("a sample");
    let capture = device.capture().expect("readable").expect("one question");
    agent.turn(&capture, &mut device, &mut |_: &Event| {}).expect("a turn").transcript
}

/// A conversation and what it told.
pub struct Bench {
    pub conversation: Conversation<SimDevice>,
    pub turns: Vec<Turn>,
    /// Milliseconds from the end of each question's voice to the end of the question.
    pub endpoints: Vec<f64>,
    pub problems: Vec<String>,
    pub states: Vec<State>,
    /// How often the wake phrase was heard.
    pub woken: usize,
    /// Answers that were thrown away.
    pub abandoned: usize,
    /// The longest stall of the program during the last interruption, in seconds.
    pub stalled: f64,
    /// Who else is told of everything.
    pub also: Box<dyn FnMut(&Happening)>,
}

impl Bench {
    pub fn new(room: Room) -> Self {
        Self::with(room, agent(), |_| ())
    }

    pub fn with(room: Room, agent: Agent, change: impl FnOnce(&mut LiveSettings)) -> Self {
        Self::of(room, agent, Mind::here, change)
    }

    /// The agent works on a thread of its own, by the clock on the wall: wait [patiently](Self::patiently) for it.
    pub fn on_thread(room: Room) -> Self {
        Self::of(room, agent(), Mind::on_thread, |_| ())
    }

    fn of(room: Room, mut agent: Agent, mind: fn(Agent) -> Mind, change: impl FnOnce(&mut LiveSettings)) -> Self {
        let device = SimDevice::new(room).expect("usual rates");
        let mut settings = LiveSettings::default();
        change(&mut settings);
        let volume = agent.tools().volume();
        let conversation = Conversation::new(device, mind(agent), settings, volume);
        let mut bench = Self {
            conversation,
            turns: Vec::new(),
            endpoints: Vec::new(),
            problems: Vec::new(),
            states: Vec::new(),
            woken: 0,
            abandoned: 0,
            stalled: 0.0,
            also: Box::new(|_| ()),
        };
        bench.run(1.0);
        bench
    }

    pub fn frame(&mut self) {
        self.listen_to(|conversation, tell| conversation.frame(tell).expect("the simulation does not fail"));
    }

    /// What the conversation tells while it does this.
    fn listen_to(&mut self, act: impl FnOnce(&mut Conversation<SimDevice>, &mut dyn FnMut(&Happening))) {
        let Self { conversation, turns, endpoints, problems, states, woken, abandoned, also, .. } = self;
        let mut tell = |happening: &Happening| {
            also(happening);
            match happening {
                Happening::Settled { turn, waited_ms, .. } => {
                    turns.push((**turn).clone());
                    endpoints.push(waited_ms.endpoint);
                }
                Happening::Problem { message } => problems.push(message.clone()),
                Happening::State { state, .. } => states.push(*state),
                Happening::Wake { .. } => *woken += 1,
                Happening::Abandoned { .. } => *abandoned += 1,
                _ => {}
            }
        };
        act(conversation, &mut tell);
    }

    pub fn close(&mut self) {
        self.listen_to(|conversation, tell| conversation.close(tell));
    }

    /// Runs until that state is reached, no faster than an agent on a thread of its own can follow.
    pub fn patiently(&mut self, state: State) {
        let started = std::time::Instant::now();
        while self.conversation.state() != state {
            self.frame();
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(started.elapsed().as_secs() < 60, "{state:?} was not reached: {:?}", self.states);
        }
    }

    pub fn run(&mut self, seconds: f64) {
        for _ in 0..(seconds * 100.0) as usize {
            self.frame();
        }
    }

    pub fn until(&mut self, state: State, seconds: f64) -> f64 {
        let started = self.conversation.device().now();
        while self.conversation.state() != state {
            self.frame();
            let waited = self.conversation.device().now() - started;
            assert!(waited < seconds, "{state:?} was not reached in {seconds} s: {:?}", self.states);
        }
        self.conversation.device().now() - started
    }

    /// Runs until the agent listens (true) or `seconds` have passed.
    pub fn listens(&mut self, seconds: f64) -> bool {
        let end = self.conversation.device().now() + seconds;
        while self.conversation.state() != State::Listening && self.conversation.device().now() < end {
            self.frame();
        }
        self.conversation.state() == State::Listening
    }

    /// Runs until the agent answers (true) or has given up.
    pub fn answers(&mut self, seconds: f64) -> bool {
        let started = self.conversation.device().now();
        let mut asked = false;
        loop {
            let state = self.conversation.state();
            asked |= state != State::Idle;
            match state {
                State::Speaking => return true,
                State::Idle if asked => return false,
                _ => self.frame(),
            }
            assert!(self.conversation.device().now() - started < seconds, "no end in {seconds} s: {:?}", self.states);
        }
    }

    pub fn say(&mut self, name: &str) {
        self.hear(&voice(name));
    }

    pub fn hear(&mut self, voice: &[f32]) {
        self.conversation.device().say(voice);
    }

    /// [`Self::cut_in`] with a sample question.
    pub fn interrupt(&mut self, name: &str) -> Option<f64> {
        self.cut_in(&voice(name))
    }

    /// Seconds from the first loud sample of the user to a speaker that is silent; none if it speaks on.
    pub fn cut_in(&mut self, voice: &[f32]) -> Option<f64> {
        let onset = onset(voice).expect("it is not silent");
        self.conversation.device().say(&voice[onset / FRAME * FRAME..]);
        self.conversation.device().take_loudness();
        let started = self.conversation.device().now();
        let (mut silent, mut before) = (0, started);
        self.stalled = 0.0;
        loop {
            self.frame();
            let now = self.conversation.device().now();
            self.stalled = self.stalled.max(now - before - 0.01);
            before = now;
            silent = if self.conversation.device().take_loudness() < 1e-3 { silent + 1 } else { 0 };
            // 150 ms of silence are not a pause between two words.
            if silent >= 15 {
                // Frames of 10 ms, counted in seconds.
                return Some(((now - started - 0.15) * 100.0).round() / 100.0);
            }
            if now - started > 3.0 {
                return None;
            }
        }
    }
}

/// Questions, one after the other; into every third answer the user speaks the next question.
#[test]
fn a_conversation_in_a_room_that_echoes() {
    let mut reference = agent();
    let expected: Vec<String> = QUESTIONS.iter().map(|name| in_file_mode(&mut reference, name)).collect();
    let mut bench = Bench::new(Room { seed: 3, ..Room::default() });
    let started = std::time::Instant::now();
    let (mut caught, mut lost, mut delays) = (Vec::new(), Vec::new(), Vec::new());
    let mut interrupted = false;
    for (i, name) in QUESTIONS.iter().enumerate() {
        if !interrupted {
            bench.say(name);
        }
        if !bench.answers(15.0) {
            // What is said into an answer is heard among what is left of the echo; it may be too little to be understood.
            assert!(interrupted, "{name} was not answered");
            lost.push(*name);
            interrupted = false;
            bench.run(1.5);
            continue;
        }
        interrupted = i % 3 == 2 && i + 1 < QUESTIONS.len();
        if interrupted {
            bench.run(0.6);
            assert_eq!(bench.conversation.state(), State::Speaking, "the answer to {name} is long enough");
            caught.push(bench.interrupt(QUESTIONS[i + 1]).expect("the agent stops"));
            bench.until(State::Listening, 1.0);
        } else {
            bench.until(State::Idle, 20.0);
            bench.run(1.5);
        }
        delays.push(bench.conversation.hearing().echo().loop_delay_ms());
    }
    // The canceller begins anew with another delay: what it takes for one must not come and go.
    assert!(delays[0] > 0 && delays.iter().all(|delay| *delay == delays[0]), "the delay is what it was: {delays:?} ms");
    bench.run(10.0);
    let simulated = bench.conversation.device().now();
    let speed = simulated / started.elapsed().as_secs_f64();
    let heard: Vec<&str> = bench.turns.iter().map(|turn| turn.transcript.as_str()).collect();
    println!("{simulated:.0} s simulated at {speed:.1} times real time; barge-in after {caught:.3?} s; heard {heard:#?}");
    println!(
        "{:?}, loop {} ms",
        sa_device::audio::live::Duplex::counts(bench.conversation.device()),
        bench.conversation.hearing().echo().loop_delay_ms()
    );
    assert_eq!(bench.turns.len(), QUESTIONS.len() - lost.len(), "the agent does not answer itself");
    assert!(lost.len() <= 1, "lost: {lost:?}");
    // The program itself is made to stall now and then, for up to 0.2 s.
    let late = caught.iter().filter(|seconds| **seconds > 0.2).count();
    assert!(late <= 1 && caught.iter().all(|seconds| *seconds <= 0.4), "every interruption within 200 ms: {caught:.3?}");
    assert_eq!(bench.turns.iter().filter(|turn| turn.stopped == Stopped::Interrupted).count(), caught.len());
    assert_eq!(bench.conversation.timeouts(), Default::default(), "no state was left by its timeout");
    let right = expected.iter().filter(|expected| heard.contains(&expected.as_str())).count();
    println!("{right} of {} are understood as in file mode", QUESTIONS.len());
    assert!(right + 2 >= QUESTIONS.len(), "{right} of {} are understood as in file mode: {heard:?} and {expected:?}", QUESTIONS.len());
    assert_eq!(bench.conversation.state(), State::Idle);
}

/// Neither a door (noise, 250 ms) nor a voice that is gone at once ends an answer; the voice, which it cannot tell from a user's first syllable,
/// makes it pause, and it goes on to its end.
#[test]
fn a_door_and_a_short_sound_do_not_end_the_answer() {
    let mut state = 9u32;
    let door: Vec<f32> = (0..4000)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as f32 / 32_768.0 - 1.0) * 0.5 * (-(i as f32) / 800.0).exp()
        })
        .collect();
    let voice = voice("12-locks");
    let onset = onset(&voice).expect("it is not silent");
    for (sound, noticed) in [(&door[..], false), (&voice[onset..onset + 3200], true)] {
        let mut bench = Bench::new(Room { seed: 5, stall_every: f64::INFINITY, ..Room::default() });
        bench.say("16-repeat");
        bench.until(State::Speaking, 15.0);
        bench.run(0.5);
        bench.hear(sound);
        bench.until(State::Idle, 20.0);
        bench.run(3.0);
        assert_eq!(bench.turns.len(), 1, "{:?}", bench.states);
        assert_eq!(bench.turns[0].stopped, Stopped::End, "{:?}", bench.states);
        assert!(!noticed || bench.states.contains(&State::Interrupted), "too short to be noticed: {:?}", bench.states);
    }
}

/// Who presses the key and thinks for a while before he speaks is understood as if he had not waited.
#[test]
fn a_pause_behind_the_talk_key_is_not_heard() {
    let expected = in_file_mode(&mut agent(), "12-locks");
    let mut bench =
        Bench::with(Room { seed: 5, stall_every: f64::INFINITY, ..Room::default() }, agent(), |live| live.turns.push_to_talk = true);
    let key = |bench: &mut Bench, control| bench.conversation.controls().enqueue(control).expect("there is room");
    key(&mut bench, Control::KeyDown);
    bench.run(4.0);
    assert_eq!(bench.conversation.state(), State::Listening);
    bench.say("12-locks");
    bench.run(2.5);
    key(&mut bench, Control::KeyUp);
    bench.until(State::Speaking, 5.0);
    bench.until(State::Idle, 20.0);
    let [turn] = &bench.turns[..] else { panic!("{:?}", bench.turns) };
    assert_eq!(turn.transcript, expected);
    assert!(turn.question_s < 3.5, "{} s were heard", turn.question_s);
    // Nobody says anything.
    key(&mut bench, Control::KeyDown);
    bench.run(2.0);
    key(&mut bench, Control::KeyUp);
    bench.run(1.0);
    assert_eq!((bench.conversation.state(), bench.turns.len()), (State::Idle, 1));
}

/// A conversation that ends in the middle of a turn tells it as far as it came, with the agent here and on its own thread.
#[test]
fn what_is_under_way_at_the_end_is_told() {
    let room = || Room { seed: 5, stall_every: f64::INFINITY, ..Room::default() };
    let mut bench = Bench::new(room());
    bench.close();
    assert!(bench.turns.is_empty() && bench.abandoned == 0, "nothing was");
    for threaded in [false, true] {
        let mut bench = if threaded { Bench::on_thread(room()) } else { Bench::new(room()) };
        bench.say("01-agenda");
        bench.patiently(State::Speaking);
        bench.run(0.6);
        bench.close();
        let [turn] = &bench.turns[..] else { panic!("{:?}", bench.states) };
        assert!(turn.stopped == Stopped::Interrupted && !turn.transcript.is_empty(), "{turn:?}");
    }
    let mut bench = Bench::new(room());
    bench.say("01-agenda");
    bench.until(State::Thinking, 15.0);
    bench.close();
    assert_eq!((bench.turns.len(), bench.abandoned), (0, 1), "an answer was made, and not a word of it heard");
}
