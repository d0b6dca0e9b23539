//! The agent behind the conversation: on a thread of its own, so that it may think while the microphone goes on, or in the
//! caller's, where a simulated clock must not run ahead of it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ConversationError;
use crate::audio::{AudioDevice, AudioError, Capture, SAMPLE_RATE};
use crate::field;
use crate::pipeline::{Agent, AgentError, Event, Guess, Stopped, Turn};
use crate::tools::{Due, Now};

/// Samples that are heard at once, 320 ms: between two pieces it is asked whether the question is still wanted.
const PIECE: usize = 5120;

/// What the agent is to do. Orders are carried out one after the other; those of a question that is not wanted any more are passed over,
/// so that an agent slower than its user does not run further and further behind.
#[derive(Debug)]
pub enum Order {
    /// The question of this number begins; asleep, it needs the wake phrase.
    Begin { question: u64, asleep: bool },
    /// More of it.
    Push(u64, Vec<f32>),
    /// Does this question seem complete?
    Complete(u64),
    /// It is over: answer it, as long as its number is wanted. Not addressed, it may be meant for somebody else, or be no voice: without a word
    /// in it nothing is answered, but behind the wake phrase.
    Answer { question: u64, addressed: bool },
    /// Say this, which belongs to no conversation, as if it were the answer to the question of this number: all of it at once, and no
    /// samples if it cannot be said.
    Say(u64, String),
    /// Throw away what there is of question and answer.
    Abandon,
    /// Remember the last answer: so many seconds of it were heard, or all.
    Settle(Option<f64>),
    /// Forget the conversation.
    Forget,
    /// Look whether a timer, an alarm or a reminder fell due.
    Look,
    /// Silence what rings.
    Quiet,
}

/// What the agent tells about the question of this number.
#[derive(Debug)]
pub enum Report {
    /// The wake phrase was said.
    Called(u64),
    /// There is nothing to answer: the wake phrase was not said, or nothing behind it.
    NotAsked(u64),
    /// How probable it is that the question is complete, and what the model hears in it; none if that cannot be told.
    Complete(u64, Option<Guess>),
    /// See [`Event`].
    Event(u64, Event),
    /// More of the answer.
    Samples(u64, Vec<f32>),
    /// The answer is complete.
    Done(u64),
    /// The turn is remembered, as far as it was heard; with the samples of the question (16 kHz, 16 bit).
    Settled(Box<Turn>, Vec<i16>),
    /// An answer was made, and thrown away before it was heard; with the samples of the question.
    Abandoned(Box<Turn>, Vec<i16>),
    /// What fell due; what could not be kept; whether something rings.
    Due(Vec<Due>, Option<String>, bool),
    /// The question is lost; with the turn and the question as they were, where it was being answered.
    Failed(u64, String, Option<(Box<Turn>, Vec<i16>)>),
    /// The agent cannot go on: a defect.
    Dead(String),
}

/// What the one who gives orders and the one who carries them out both see.
#[derive(Debug, Default)]
pub struct Shared {
    /// The question whose answer is wanted; 0: none.
    wanted: AtomicU64,
    /// Samples of questions that were pushed and not heard yet.
    unheard: AtomicI64,
}

impl Shared {
    fn wants(&self, question: u64) -> bool {
        self.wanted.load(Relaxed) == question
    }
}

/// Where the agent works.
pub enum Mind {
    /// In the caller's thread: an order is carried out before [`Mind::order`] returns.
    Here { worker: Box<Worker>, reports: VecDeque<Report>, shared: Shared },
    /// On its own.
    Thread { orders: Option<Sender<Order>>, reports: Receiver<Report>, shared: Arc<Shared>, thread: Option<JoinHandle<()>> },
}

impl Mind {
    /// In the caller's thread.
    pub fn here(agent: Agent) -> Self {
        Self::Here { worker: Box::new(Worker::new(agent)), reports: VecDeque::new(), shared: Shared::default() }
    }

    /// On a thread of its own, which ends when this is dropped.
    pub fn on_thread(agent: Agent) -> Self {
        let shared = Arc::new(Shared::default());
        let (orders, work) = channel();
        let (sender, reports) = channel();
        let seen = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut worker = Worker::new(agent);
            for order in work {
                let mut gone = false;
                worker.carry_out(order, &seen, &mut |report| gone |= sender.send(report).is_err());
                if gone {
                    break;
                }
            }
        });
        Self::Thread { orders: Some(orders), reports, shared, thread: Some(thread) }
    }

    fn shared(&self) -> &Shared {
        match self {
            Self::Here { shared, .. } => shared,
            Self::Thread { shared, .. } => shared,
        }
    }

    /// Only the answer to this question is wanted from now on; another that is being made ends at its next group. 0: none.
    pub fn want(&mut self, question: u64) {
        self.shared().wanted.store(question, Relaxed);
    }

    /// How much of what was pushed the agent has not heard yet.
    pub fn behind(&self) -> Duration {
        let samples = self.shared().unheard.load(Relaxed).max(0);
        Duration::from_secs_f64(samples as f64 / f64::from(SAMPLE_RATE))
    }

    /// Gives an order.
    pub fn order(&mut self, order: Order) {
        if let Order::Push(_, samples) = &order {
            self.shared().unheard.fetch_add(samples.len() as i64, Relaxed);
        }
        match self {
            Self::Here { worker, reports, shared } => worker.carry_out(order, shared, &mut |report| reports.push_back(report)),
            Self::Thread { orders, .. } => {
                if let Some(orders) = orders {
                    // If the thread is gone `report` says so.
                    let _ = orders.send(order);
                }
            }
        }
    }

    /// Takes no more orders, and waits until those given are carried out; no answer is wanted any more.
    pub fn close(&mut self) {
        self.want(0);
        if let Self::Thread { orders, thread, .. } = self {
            *orders = None;
            if let Some(thread) = thread.take() {
                // It has nothing to say that would help here.
                let _ = thread.join();
            }
        }
    }

    /// The next report, without waiting.
    ///
    /// # Errors
    /// When the agent cannot go on, or its thread has died; a defect.
    pub fn report(&mut self) -> Result<Option<Report>, ConversationError> {
        let report = match self {
            Self::Here { reports, .. } => reports.pop_front(),
            Self::Thread { reports, thread, .. } => match reports.try_recv() {
                Ok(report) => Some(report),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    let panic = thread.take().and_then(|thread| thread.join().err());
                    let words = panic.as_ref().and_then(|panic| {
                        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
                    });
                    return Err(ConversationError::Agent(words.unwrap_or("its thread is gone").to_owned()));
                }
            },
        };
        match report {
            Some(Report::Dead(message)) => Err(ConversationError::Agent(message)),
            report => Ok(report),
        }
    }
}

impl Drop for Mind {
    fn drop(&mut self) {
        self.close();
    }
}

/// The agent, and the answer that is not settled yet.
pub struct Worker {
    agent: Agent,
    pending: Option<(Turn, Vec<i16>)>,
    /// The question as it was heard.
    question: Vec<i16>,
    /// Its number, and whether the wake phrase in it was reported.
    number: u64,
    called: bool,
    rang: bool,
}

/// Returns memory that lies free between what is used to the system: a turn's tensors leave holes, and over days these would add up.
fn give_back() {
    // SAFETY: the C library's own allocator, which locks itself; the audio threads never wait for it, they do not allocate.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Worker {
    fn new(agent: Agent) -> Self {
        Self { agent, pending: None, question: Vec::new(), number: 0, called: false, rang: false }
    }

    fn carry_out(&mut self, order: Order, shared: &Shared, report: &mut dyn FnMut(Report)) {
        let question = match order {
            Order::Begin { question, .. } | Order::Push(question, _) | Order::Complete(question) => question,
            Order::Answer { question, .. } | Order::Say(question, _) => question,
            _ => shared.wanted.load(Relaxed),
        };
        if let Err(error) = self.try_to(order, shared, report) {
            let turn = self.agent.take_failed().map(|turn| (Box::new(turn), std::mem::take(&mut self.question)));
            report(Report::Failed(question, error.to_string(), turn));
            if matches!(error, AgentError::VoiceStopped) {
                // It would fail in every turn from now on.
                report(Report::Dead(error.to_string()));
            }
        }
    }

    fn try_to(&mut self, order: Order, shared: &Shared, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        match order {
            Order::Begin { question, asleep } if shared.wants(question) => {
                self.question.clear();
                (self.number, self.called) = (question, false);
                if asleep { self.agent.begin_asleep("microphone") } else { self.agent.begin("microphone") }
            }
            Order::Push(question, samples) => self.push(question, samples, shared, report),
            Order::Complete(question) if !shared.wants(question) => Ok(()),
            Order::Complete(question) => {
                report(Report::Complete(question, self.agent.complete()?));
                Ok(())
            }
            Order::Answer { question, addressed } => self.answer(question, addressed, shared, report),
            Order::Say(question, text) if shared.wants(question) => self.say(question, &text, shared, report),
            Order::Begin { .. } | Order::Say(..) => Ok(()),
            Order::Abandon => {
                if let Some((turn, question)) = self.pending.take() {
                    report(Report::Abandoned(Box::new(turn), question));
                }
                self.agent.abandon()
            }
            Order::Settle(heard) => {
                let Some((mut turn, question)) = self.pending.take() else { return Ok(()) };
                self.agent.settle(&mut turn, heard)?;
                report(Report::Settled(Box::new(turn), question));
                give_back();
                Ok(())
            }
            Order::Forget => self.agent.forget(),
            Order::Look => {
                self.look(report);
                Ok(())
            }
            Order::Quiet => {
                if self.agent.tools().silence() {
                    self.look(report);
                }
                Ok(())
            }
        }
    }

    fn push(&mut self, question: u64, mut samples: Vec<f32>, shared: &Shared, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        let mut heard = Ok(());
        for piece in samples.chunks_mut(PIECE) {
            // Its beginning was passed over, or it is not wanted any more.
            if heard.is_ok() && self.number == question && shared.wants(question) {
                // A replay of the field log hears the very same samples.
                field::round(piece, &mut self.question);
                heard = self.agent.push(piece, None);
                self.tell_if_called(report);
            }
            shared.unheard.fetch_sub(piece.len() as i64, Relaxed);
        }
        heard
    }

    fn tell_if_called(&mut self, report: &mut dyn FnMut(Report)) {
        if self.agent.called() && !std::mem::replace(&mut self.called, true) {
            report(Report::Called(self.number));
        }
    }

    fn look(&mut self, report: &mut dyn FnMut(Report)) {
        let tools = self.agent.tools();
        let (due, problem) = tools.due(Now::read());
        let ringing = tools.ringing();
        if !due.is_empty() || problem.is_some() || ringing != self.rang {
            report(Report::Due(due, problem, ringing));
        }
        self.rang = ringing;
    }

    fn answer(&mut self, question: u64, addressed: bool, shared: &Shared, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        if !shared.wants(question) {
            return self.agent.abandon();
        }
        let asked = self.agent.asked()?;
        self.tell_if_called(report);
        if !asked {
            report(Report::NotAsked(question));
            return self.agent.abandon();
        }
        if !addressed && !self.called {
            self.agent.overhear();
        }
        if self.called {
            // The sound has the phrase in it, which is no part of the question: a replay goes by the units.
            self.question.clear();
        }
        // Events and samples go the same way, in their order.
        let reports = std::cell::RefCell::new(report);
        let mut sink = Sink(|samples: &[f32]| (reports.borrow_mut())(Report::Samples(question, samples.to_vec())));
        let mut listener = |event: &Event| (reports.borrow_mut())(Report::Event(question, event.clone()));
        let turn = self.agent.answer(&mut sink, &mut listener, &|| shared.wants(question))?;
        // Silence is nothing to remember.
        self.pending = (turn.stopped != Stopped::Silence).then(|| (turn, std::mem::take(&mut self.question)));
        (reports.borrow_mut())(Report::Done(question));
        Ok(())
    }

    fn say(&mut self, question: u64, text: &str, shared: &Shared, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        let mut samples = Vec::new();
        let mut sink = Sink(|more: &[f32]| samples.extend_from_slice(more));
        let turn = self.agent.say(text, &mut sink, &|| shared.wants(question))?;
        if turn.stopped != Stopped::End {
            // It is not wanted any more, or lost its place: half a sentence, or the same over and over, is worse than none.
            samples.clear();
        }
        report(Report::Samples(question, samples));
        report(Report::Done(question));
        Ok(())
    }
}

/// Takes what the agent says.
struct Sink<F: FnMut(&[f32])>(F);

impl<F: FnMut(&[f32])> AudioDevice for Sink<F> {
    fn capture(&mut self) -> Result<Option<Capture>, AudioError> {
        Ok(None)
    }

    fn play(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        (self.0)(samples);
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<PathBuf>, AudioError> {
        Ok(None)
    }

    fn discard(&mut self) {}
}
