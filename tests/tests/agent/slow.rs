//! An agent that is too slow, or breaks down: it is told, and nobody waits for what is not wanted any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sa_device::audio::live::{Counts, Duplex, Frame, Room, SimDevice};
use sa_device::audio::{AudioDevice, AudioError, Capture};
use sa_device::bundle::{StageEntry, TensorEntry};
use sa_device::conversation::{Conversation, ConversationError, Happening, LiveSettings, Mind, Order, Report};
use sa_device::engine::{Engine, EngineError, Session, Tract};
use sa_device::pipeline::{Event, Settings, Stopped};
use sa_device::turns::State;

use super::live::{agent_with, voice};

type Hindrance = Arc<dyn Fn(&str) + Send + Sync>;

/// An engine on whose graphs something happens before each run; it is told the graph's name.
struct Hindered(Hindrance);

struct HinderedSession {
    session: Box<dyn Session>,
    name: String,
    hindrance: Hindrance,
}

impl Engine for Hindered {
    fn name(&self) -> &'static str {
        Tract.name()
    }

    fn load(&self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError> {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        Ok(Box::new(HinderedSession { session: Tract.load(path, declared)?, name, hindrance: self.0.clone() }))
    }
}

impl Session for HinderedSession {
    fn inputs(&self) -> &[TensorEntry] {
        self.session.inputs()
    }
    fn outputs(&self) -> &[TensorEntry] {
        self.session.outputs()
    }
    fn f32_input(&mut self, input: usize) -> Result<&mut [f32], EngineError> {
        self.session.f32_input(input)
    }
    fn i64_input(&mut self, input: usize) -> Result<&mut [i64], EngineError> {
        self.session.i64_input(input)
    }
    fn run(&mut self) -> Result<(), EngineError> {
        (self.hindrance)(&self.name);
        self.session.run()
    }
    fn f32_output(&self, output: usize) -> Result<&[f32], EngineError> {
        self.session.f32_output(output)
    }
    fn i64_output(&self, output: usize) -> Result<&[i64], EngineError> {
        self.session.i64_output(output)
    }
    fn hand_over(&mut self, output: usize, input: usize) -> Result<(), EngineError> {
        self.session.hand_over(output, input)
    }
    fn write_rows(&mut self, output: usize, input: usize, at: usize) -> Result<(), EngineError> {
        self.session.write_rows(output, input, at)
    }
}

/// Each run of this graph takes so much longer.
fn slow(graph: &'static str, by: Duration) -> Hindered {
    Hindered(Arc::new(move |name| {
        if name == graph {
            std::thread::sleep(by);
        }
    }))
}

/// As in `listen`: the decoder has a thread of its own.
fn settings() -> Settings {
    Settings { threads: 2, ..Settings::default() }
}

/// The simulated device, four times as fast as the clock on the wall and no faster.
struct Paced {
    device: SimDevice,
    started: Instant,
}

impl Duplex for Paced {
    fn listen(&mut self, microphone: &mut Frame) -> Result<(), AudioError> {
        self.device.listen(microphone)?;
        let due = self.started + Duration::from_secs_f64(self.device.now() / 4.0);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        Ok(())
    }
    fn room(&mut self) -> bool {
        self.device.room()
    }
    fn play(&mut self, speaker: &Frame) {
        self.device.play(speaker);
    }
    fn take_back(&mut self, most: usize) -> usize {
        self.device.take_back(most)
    }
    fn latency(&self) -> f64 {
        self.device.latency()
    }
    fn counts(&self) -> Counts {
        self.device.counts()
    }
}

#[test]
fn an_agent_slower_than_its_voice_says_so() {
    // A step of the language model makes at most 160 ms of speech, which are played in 40.
    let agent = agent_with(&slow("lm", Duration::from_millis(50)), settings());
    let device = SimDevice::new(Room { seed: 3, stall_every: f64::INFINITY, ..Room::default() }).expect("usual rates");
    let device = Paced { device, started: Instant::now() };
    let mut conversation = Conversation::new(device, Mind::on_thread(agent), LiveSettings::default(), Default::default());
    conversation.device().device.say(&voice("10-facts"));
    let (mut told, mut spoken) = (Vec::new(), false);
    while told.is_empty() {
        let mut tell = |happening: &Happening| match happening {
            Happening::Problem { message } => told.push(message.clone()),
            Happening::State { state, .. } => spoken |= *state == State::Speaking,
            _ => {}
        };
        conversation.frame(&mut tell).expect("goes on");
        assert!(conversation.device().device.now() < 90.0, "nothing is told");
    }
    println!("{told:?}");
    assert!(told[0].contains("slower than the conversation") && told[0].contains("sa-agent bench"), "{told:?}");
    while !told.iter().any(|message| message.contains("gaps in its answers")) {
        let mut tell = |happening: &Happening| {
            if let Happening::Problem { message } = happening {
                told.push(message.clone());
            }
        };
        conversation.frame(&mut tell).expect("goes on");
        assert!(conversation.device().device.now() < 90.0, "no gaps: {told:?}");
    }
}

/// Waits for a report.
fn wait_for<T>(mind: &mut Mind, find: impl Fn(Report) -> Option<T>) -> Result<T, ConversationError> {
    let started = Instant::now();
    loop {
        match mind.report()?.map(&find) {
            Some(Some(found)) => return Ok(found),
            Some(None) => {}
            None => std::thread::sleep(Duration::from_millis(5)),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "nothing comes");
    }
}

fn ask(mind: &mut Mind, question: u64, samples: &[f32]) {
    mind.want(question);
    mind.order(Order::Begin { question, asleep: false });
    for piece in samples.chunks(320) {
        mind.order(Order::Push(question, piece.to_vec()));
    }
}

/// Twenty seconds of a question take ten seconds and more to be heard; nobody waits for them when another is asked, or at the end.
#[test]
fn what_nobody_wants_any_more_is_passed_over() {
    let agent = agent_with(&slow("tokenizer", Duration::from_millis(200)), settings());
    let mut mind = Mind::on_thread(agent);
    let long = voice("10-facts").into_iter().cycle().take(20 * 16_000).collect::<Vec<f32>>();
    ask(&mut mind, 1, &long);
    // So that it has begun to hear them.
    let begun = Duration::from_millis(500);
    std::thread::sleep(begun);
    assert!(mind.behind() > Duration::from_secs(15), "{:?}", mind.behind());
    let started = Instant::now();
    mind.order(Order::Complete(1));
    mind.order(Order::Abandon);
    ask(&mut mind, 3, &voice("10-facts"));
    mind.order(Order::Answer { question: 3, addressed: true });
    let heard = wait_for(&mut mind, |report| match report {
        Report::Event(3, Event::Heard { transcript, .. }) => Some(transcript),
        _ => None,
    });
    let waited = started.elapsed();
    assert!(heard.expect("it lives").contains(' '), "the second question was understood");
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    assert_eq!(mind.behind(), Duration::ZERO);
    // One piece, as the beginning of a question that goes on.
    mind.want(5);
    mind.order(Order::Begin { question: 5, asleep: false });
    mind.order(Order::Push(5, long.clone()));
    ask(&mut mind, 5, &long);
    std::thread::sleep(begun);
    let started = Instant::now();
    drop(mind);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// Takes what the agent says, and remembers when it began.
#[derive(Default)]
struct Sink(Arc<AtomicBool>, Option<Instant>);

impl AudioDevice for Sink {
    fn capture(&mut self) -> Result<Option<Capture>, AudioError> {
        Ok(None)
    }
    fn play(&mut self, _: &[f32]) -> Result<(), AudioError> {
        self.0.store(true, Relaxed);
        self.1.get_or_insert_with(Instant::now);
        Ok(())
    }
    fn finish(&mut self) -> Result<Option<PathBuf>, AudioError> {
        Ok(None)
    }
    fn discard(&mut self) {}
}

#[test]
fn an_interruption_does_not_wait_for_a_slow_decoder() {
    for threads in [1, 2] {
        let mut agent = agent_with(&slow("decoder", Duration::from_millis(400)), Settings { threads, ..Settings::default() });
        agent.begin("test").expect("begins");
        agent.push(&voice("10-facts"), None).expect("hears");
        let mut sink = Sink::default();
        let begun = sink.0.clone();
        let turn = agent.answer(&mut sink, &mut |_: &Event| {}, &|| !begun.load(Relaxed)).expect("answers");
        let waited = sink.1.expect("it was heard").elapsed();
        assert_eq!(turn.stopped, Stopped::Interrupted, "{threads} threads");
        assert!(waited < Duration::from_millis(1500), "{threads} threads: {waited:?}");
    }
}

/// A defect is not taken for one of the audio device, and not for one of a single turn.
#[test]
fn an_agent_that_breaks_down_ends_the_conversation() {
    for (graph, words) in [("decoder", "voice"), ("lm", "the lm is broken")] {
        let broken = Arc::new(AtomicBool::new(false));
        let breaks = broken.clone();
        let engine = Hindered(Arc::new(move |name| assert!(name != graph || !breaks.load(Relaxed), "the {name} is broken")));
        let mut mind = Mind::on_thread(agent_with(&engine, settings()));
        broken.store(true, Relaxed);
        ask(&mut mind, 1, &voice("10-facts"));
        mind.order(Order::Answer { question: 1, addressed: true });
        let error = wait_for(&mut mind, |_| None::<()>).expect_err("it broke down").to_string();
        assert!(error.contains(words) && error.contains("started again") && !error.contains("audio device"), "{error}");
    }
}
