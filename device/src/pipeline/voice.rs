//! The decoder in the pipeline: in the same thread, or in one of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::AgentError;
use crate::stage::{Decoder, StageError};

/// Takes in units, gives out samples.
pub enum Voice {
    /// Decodes when it is asked for samples.
    Here { decoder: Box<Decoder>, made: Option<Vec<f32>> },
    /// Decodes on a thread of its own, which ends when this is dropped. Orders of earlier utterances than `utterance` are passed over.
    Thread { orders: Sender<(u64, Order)>, answers: Receiver<Answer>, utterance: Arc<AtomicU64>, busy: Duration, complete: bool },
}

/// What the thread is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Speak(Vec<u32>),
    Flush,
    Reset,
}

/// What it gives back for each order: samples and the time they took.
pub struct Answer {
    order: Order,
    samples: Result<Vec<f32>, StageError>,
    busy: Duration,
}

impl Voice {
    /// In the caller's thread.
    pub fn here(decoder: Decoder) -> Self {
        Self::Here { decoder: Box::new(decoder), made: None }
    }

    /// On a thread of its own.
    pub fn on_thread(mut decoder: Decoder) -> Self {
        let (orders, work) = channel();
        let (results, answers) = channel();
        let utterance = Arc::new(AtomicU64::new(0));
        let wanted = utterance.clone();
        std::thread::spawn(move || {
            for (of, order) in work {
                // Not the reset itself, which somebody waits for: it was given last.
                if of < wanted.load(Relaxed) {
                    continue;
                }
                let mut samples = Vec::new();
                let done = match &order {
                    Order::Speak(units) => decoder.step(units, &mut samples),
                    Order::Flush => decoder.flush(&mut samples),
                    Order::Reset => decoder.reset(),
                };
                let answer = Answer { order, samples: done.map(|()| samples), busy: decoder.take_busy().0 };
                if results.send(answer).is_err() {
                    break;
                }
            }
        });
        Self::Thread { orders, answers, utterance, busy: Duration::ZERO, complete: false }
    }

    fn order(orders: &Sender<(u64, Order)>, utterance: &AtomicU64, order: Order) -> Result<(), AgentError> {
        orders.send((utterance.load(Relaxed), order)).map_err(|_| AgentError::VoiceStopped)
    }

    /// Speaks units: their samples come by [`Voice::ready`] or [`Voice::wait`].
    pub fn speak(&mut self, units: &[u32]) -> Result<(), AgentError> {
        match self {
            Self::Here { decoder, made } => Ok(decoder.step(units, made.get_or_insert_default())?),
            Self::Thread { orders, utterance, .. } => Self::order(orders, utterance, Order::Speak(units.to_vec())),
        }
    }

    /// Ends the utterance.
    pub fn flush(&mut self) -> Result<(), AgentError> {
        match self {
            Self::Here { decoder, made } => Ok(decoder.flush(made.get_or_insert_default())?),
            Self::Thread { orders, utterance, .. } => Self::order(orders, utterance, Order::Flush),
        }
    }

    /// Samples that are there already, without waiting.
    pub fn ready(&mut self) -> Result<Option<Vec<f32>>, AgentError> {
        match self {
            Self::Here { made, .. } => Ok(made.take()),
            Self::Thread { answers, busy, .. } => match answers.try_recv() {
                Ok(answer) => {
                    *busy += answer.busy;
                    Ok(Some(answer.samples?))
                }
                Err(_) => Ok(None),
            },
        }
    }

    /// After [`Voice::flush`]: waits for the next samples; `None` when the utterance is complete.
    pub fn wait(&mut self) -> Result<Option<Vec<f32>>, AgentError> {
        match self {
            Self::Here { made, .. } => Ok(made.take()),
            Self::Thread { complete, .. } if *complete => {
                *complete = false;
                Ok(None)
            }
            Self::Thread { answers, busy, complete, .. } => {
                let answer = answers.recv().map_err(|_| AgentError::VoiceStopped)?;
                *busy += answer.busy;
                *complete = answer.order == Order::Flush;
                Ok(Some(answer.samples?))
            }
        }
    }

    /// Forgets the utterance and what is left of it, without decoding that.
    pub fn reset(&mut self) -> Result<(), AgentError> {
        match self {
            Self::Here { decoder, made } => {
                *made = None;
                Ok(decoder.reset()?)
            }
            Self::Thread { orders, answers, utterance, complete, .. } => {
                *complete = false;
                utterance.fetch_add(1, Relaxed);
                Self::order(orders, utterance, Order::Reset)?;
                loop {
                    let answer = answers.recv().map_err(|_| AgentError::VoiceStopped)?;
                    if answer.order == Order::Reset {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Time spent decoding since the last call.
    pub fn take_busy(&mut self) -> Duration {
        match self {
            Self::Here { decoder, .. } => decoder.take_busy().0,
            Self::Thread { busy, .. } => std::mem::take(busy),
        }
    }
}
