//! The agent behind the conversation: on a thread of its own, so that it may think while the microphone goes on, or in the
//! caller's, where a simulated clock must not run ahead of it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::audio::{AudioDevice, AudioError, Capture};
use crate::field;
use crate::pipeline::{Agent, AgentError, Event, Stopped, Turn};
use crate::tools::{Due, Now};

/// What the agent is to do. Orders are carried out one after the other.
#[derive(Debug)]
pub enum Order {
    /// The question of this number begins; asleep, it needs the wake phrase.
    Begin { question: u64, asleep: bool },
    /// More of it.
    Push(Vec<f32>),
    /// Does this question seem complete?
    Complete(u64),
    /// It is over: answer it, as long as its number is wanted.
    Answer(u64),
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
    /// How probable it is that the question is complete.
    Complete(u64, f32),
    /// See [`Event`].
    Event(u64, Event),
    /// More of the answer.
    Samples(u64, Vec<f32>),
    /// The answer is complete.
    Done(u64),
    /// The turn is remembered, as far as it was heard; with the samples of the question (16 kHz, 16 bit).
    Settled(Box<Turn>, Vec<i16>),
    /// What fell due; what could not be kept; whether something rings.
    Due(Vec<Due>, Option<String>, bool),
    /// The question is lost; with the turn and the question as they were, where it was being answered.
    Failed(u64, String, Option<(Box<Turn>, Vec<i16>)>),
}

/// Where the agent works.
pub enum Mind {
    /// In the caller's thread: an order is carried out before [`Mind::order`] returns.
    Here { worker: Box<Worker>, reports: VecDeque<Report>, wanted: Arc<AtomicU64> },
    /// On its own.
    Thread { orders: Option<Sender<Order>>, reports: Receiver<Report>, wanted: Arc<AtomicU64>, thread: Option<JoinHandle<()>> },
}

impl Mind {
    /// In the caller's thread.
    pub fn here(agent: Agent) -> Self {
        let wanted = Arc::new(AtomicU64::new(0));
        Self::Here { worker: Box::new(Worker::new(agent)), reports: VecDeque::new(), wanted }
    }

    /// On a thread of its own, which ends when this is dropped.
    pub fn on_thread(agent: Agent) -> Self {
        let wanted = Arc::new(AtomicU64::new(0));
        let (orders, work) = channel();
        let (sender, reports) = channel();
        let shared = wanted.clone();
        let thread = std::thread::spawn(move || {
            let mut worker = Worker::new(agent);
            for order in work {
                let mut gone = false;
                worker.carry_out(order, &shared, &mut |report| gone |= sender.send(report).is_err());
                if gone {
                    break;
                }
            }
        });
        Self::Thread { orders: Some(orders), reports, wanted, thread: Some(thread) }
    }

    /// Only the answer to this question is wanted from now on; another that is being made ends at its next group. 0: none.
    pub fn want(&mut self, question: u64) {
        match self {
            Self::Here { wanted, .. } | Self::Thread { wanted, .. } => wanted.store(question, Relaxed),
        }
    }

    /// Gives an order.
    pub fn order(&mut self, order: Order) {
        match self {
            Self::Here { worker, reports, wanted } => worker.carry_out(order, wanted, &mut |report| reports.push_back(report)),
            Self::Thread { orders, .. } => {
                if let Some(orders) = orders {
                    // If the thread is gone `report` says so.
                    let _ = orders.send(order);
                }
            }
        }
    }

    /// The next report, without waiting.
    ///
    /// # Errors
    /// When the agent's thread has died; a defect.
    pub fn report(&mut self) -> Result<Option<Report>, AudioError> {
        match self {
            Self::Here { reports, .. } => Ok(reports.pop_front()),
            Self::Thread { reports, .. } => match reports.try_recv() {
                Ok(report) => Ok(Some(report)),
                Err(std::sync::mpsc::TryRecvError::Empty) => Ok(None),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => Err(AudioError::Stopped),
            },
        }
    }
}

impl Drop for Mind {
    fn drop(&mut self) {
        self.want(0);
        if let Self::Thread { orders, thread, .. } = self {
            *orders = None;
            if let Some(thread) = thread.take() {
                // It has nothing to say that would help here.
                let _ = thread.join();
            }
        }
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

impl Worker {
    fn new(agent: Agent) -> Self {
        Self { agent, pending: None, question: Vec::new(), number: 0, called: false, rang: false }
    }

    fn carry_out(&mut self, order: Order, wanted: &AtomicU64, report: &mut dyn FnMut(Report)) {
        let question = match order {
            Order::Answer(question) | Order::Complete(question) => question,
            _ => wanted.load(Relaxed),
        };
        if let Err(error) = self.try_to(order, wanted, report) {
            let turn = self.agent.take_failed().map(|turn| (Box::new(turn), std::mem::take(&mut self.question)));
            report(Report::Failed(question, error.to_string(), turn));
        }
    }

    fn try_to(&mut self, order: Order, wanted: &AtomicU64, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        match order {
            Order::Begin { question, asleep } => {
                self.question.clear();
                (self.number, self.called) = (question, false);
                if asleep { self.agent.begin_asleep("microphone") } else { self.agent.begin("microphone") }
            }
            Order::Push(mut samples) => {
                // A replay of the field log hears the very same samples.
                field::round(&mut samples, &mut self.question);
                self.agent.push(&samples, None)?;
                self.tell_if_called(report);
                Ok(())
            }
            Order::Complete(question) => {
                if let Some(p) = self.agent.complete()? {
                    report(Report::Complete(question, p));
                }
                Ok(())
            }
            Order::Answer(question) => self.answer(question, wanted, report),
            Order::Abandon => {
                self.pending = None;
                self.agent.abandon()
            }
            Order::Settle(heard) => {
                let Some((mut turn, question)) = self.pending.take() else { return Ok(()) };
                self.agent.settle(&mut turn, heard)?;
                report(Report::Settled(Box::new(turn), question));
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

    fn answer(&mut self, question: u64, wanted: &AtomicU64, report: &mut dyn FnMut(Report)) -> Result<(), AgentError> {
        if wanted.load(Relaxed) != question {
            return self.agent.abandon();
        }
        let asked = self.agent.asked()?;
        self.tell_if_called(report);
        if !asked {
            report(Report::NotAsked(question));
            return self.agent.abandon();
        }
        if self.called {
            // The sound has the phrase in it, which is no part of the question: a replay goes by the units.
            self.question.clear();
        }
        // Events and samples go the same way, in their order.
        let reports = std::cell::RefCell::new(report);
        let mut sink = Sink(|samples: &[f32]| (reports.borrow_mut())(Report::Samples(question, samples.to_vec())));
        let mut listener = |event: &Event| (reports.borrow_mut())(Report::Event(question, event.clone()));
        let turn = self.agent.answer(&mut sink, &mut listener, &|| wanted.load(Relaxed) == question)?;
        // Silence is nothing to remember.
        self.pending = (turn.stopped != Stopped::Silence).then(|| (turn, std::mem::take(&mut self.question)));
        (reports.borrow_mut())(Report::Done(question));
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
