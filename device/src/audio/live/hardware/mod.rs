//! Microphone and loudspeaker by cpal: ALSA, and with the features `pulseaudio` and `pipewire` those hosts.
//!
//! Devices are opened at their own rate, format and channel count and with a small fixed buffer (a default one means two
//! seconds on PulseAudio). A device that vanishes is opened again, at growing intervals; meanwhile the microphone hears silence.
//!
//! - [`devices`]: which there are, and which one is meant. [`open`]: opening both. [`streams`]: every sample format.
//! - [`watch`]: when they are given up and opened again. [`priority`]: realtime priority for their threads.

mod devices;
mod open;
mod priority;
mod streams;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

pub use devices::{Format, Listed, Listing, Side, list};

use super::callback::Alarm;
use super::counters::{Counters, Counts};
use super::{Duplex, FRAME, Frame, Wish};
use crate::audio::{AudioError, SAMPLE_RATE};
use open::{Streams, start};
use watch::Watch;

/// How long the program waits for the devices to close when it ends.
const CLOSING: Duration = Duration::from_secs(2);
/// A sound server that has not answered after so long does not answer: at the start that is an error, later it is told.
const ANSWER: Duration = Duration::from_secs(15);
/// Streams that hang while they are closed, each with its thread; with more of them nothing is opened any more.
const HANGING: usize = 8;

/// An attempt to open the devices again.
struct Opening {
    opened: Receiver<Result<Streams, AudioError>>,
    since: Duration,
    told: bool,
}

/// The microphone and the speaker of this machine.
pub struct LiveDevice {
    wish: Wish,
    streams: Option<Streams>,
    opening: Option<Opening>,
    counters: Arc<Counters>,
    epoch: Instant,
    watch: Watch,
    closing: Arc<AtomicUsize>,
    stuck: bool,
    notices: VecDeque<String>,
}

impl LiveDevice {
    /// Opens both.
    ///
    /// # Errors
    /// With what there is and the flag to use.
    pub fn open(wish: Wish) -> Result<Self, AudioError> {
        let counters = Arc::new(Counters::default());
        let problem = |message: String| AudioError::Device { message };
        let opened = start(&wish, &counters).map_err(|e| problem(format!("cannot start a thread for the audio device: {e}")))?;
        let streams = opened.recv_timeout(ANSWER).map_err(|error| match error {
            RecvTimeoutError::Timeout => problem(format!(
                "the sound server has not answered for {} s: restart it, or take a card by `--host alsa`",
                ANSWER.as_secs()
            )),
            RecvTimeoutError::Disconnected => AudioError::Stopped,
        })??;
        Ok(Self {
            wish,
            streams: Some(streams),
            opening: None,
            counters,
            epoch: Instant::now(),
            watch: Watch::new(Duration::ZERO),
            closing: Arc::default(),
            stuck: false,
            notices: VecDeque::new(),
        })
    }

    /// Asked and obtained formats, in a line.
    pub fn opened(&self) -> &str {
        self.streams.as_ref().map_or("(nothing)", |streams| &streams.opened)
    }

    fn lost(&mut self, now: Duration, why: &str) {
        match self.watch.lost(now) {
            None => {}
            Some(1) => self.notices.push_back(format!("the audio device {why}; it is opened again as soon as it is there")),
            Some(times) => self.notices.push_back(format!(
                "the audio device {why}, {times} times in a row; it is opened again, less and less often: look at its cable and power supply, and \
                 into `dmesg`"
            )),
        }
        self.release();
    }

    /// Closes the streams on a thread of its own: the driver of a device that is gone may wait for it for ever.
    fn release(&mut self) -> Option<Receiver<()>> {
        struct Hanging(Arc<AtomicUsize>);
        impl Drop for Hanging {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let streams = self.streams.take()?;
        self.closing.fetch_add(1, Relaxed);
        let hanging = Hanging(self.closing.clone());
        let (done, closed) = channel();
        let close = move || {
            drop(streams);
            drop(hanging);
            // Perhaps nobody waits.
            let _ = done.send(());
        };
        // Without a thread the closure is dropped here, and the streams with it.
        std::thread::Builder::new().name("closing".to_owned()).spawn(close).ok().map(|_| closed)
    }

    /// Opens the devices again when it is time to, a step at a time: this never waits.
    fn reopen(&mut self) {
        let now = self.epoch.elapsed();
        let Some(opening) = &mut self.opening else {
            if !self.watch.due(now) {
                return;
            }
            if self.closing.load(Relaxed) >= HANGING {
                if !std::mem::replace(&mut self.stuck, true) {
                    let message = "the audio device cannot be closed, so it is not opened any more: unplug it, or start the machine again";
                    self.notices.push_back(message.to_owned());
                }
                return;
            }
            match start(&self.wish, &self.counters) {
                Ok(opened) => self.opening = Some(Opening { opened, since: now, told: false }),
                Err(_) => self.watch.failed(now),
            }
            return;
        };
        match opening.opened.try_recv() {
            Ok(Ok(streams)) => {
                self.counters.reopened.fetch_add(1, Relaxed);
                self.watch.opened(now);
                self.streams = Some(streams);
                (self.opening, self.stuck) = (None, false);
            }
            Err(TryRecvError::Empty) => {
                if now - opening.since > ANSWER && !std::mem::replace(&mut opening.told, true) {
                    let message = "the sound server does not answer: restart it; the audio device is opened as soon as it does";
                    self.notices.push_back(message.to_owned());
                }
            }
            Ok(Err(_)) | Err(TryRecvError::Disconnected) => {
                self.watch.failed(now);
                self.opening = None;
            }
        }
    }
}

impl Drop for LiveDevice {
    fn drop(&mut self) {
        if let Some(closed) = self.release() {
            let _ = closed.recv_timeout(CLOSING);
        }
    }
}

impl Duplex for LiveDevice {
    fn listen(&mut self, microphone: &mut Frame) -> Result<(), AudioError> {
        while let Some(streams) = &mut self.streams {
            let now = self.epoch.elapsed();
            self.watch.called(now, streams.speaker.calls());
            let alarm = streams.alarms.take();
            let heard = alarm.is_none() && streams.mic.frame(microphone);
            if heard && self.watch.heard(now) {
                self.notices.push_back(format!("the audio device is back: {}", streams.opened));
            }
            let why = match alarm {
                Some(Alarm::Gone) => Some("is gone"),
                Some(Alarm::Changed) => Some("was changed"),
                None => self.watch.dead(now),
            };
            if let Some(why) = why {
                self.lost(now, why);
            }
            if heard {
                return Ok(());
            }
            // A third of a frame; the callback must not be made to wake us.
            std::thread::sleep(Duration::from_millis(3));
        }
        self.reopen();
        std::thread::sleep(Duration::from_millis(10));
        self.counters.absent.fetch_add(1, Relaxed);
        microphone.fill(0.0);
        Ok(())
    }

    fn room(&mut self) -> bool {
        self.streams.as_mut().is_some_and(|streams| streams.speaker.room(streams.mic.heard_until()))
    }

    fn play(&mut self, speaker: &Frame) {
        if let Some(streams) = &mut self.streams {
            streams.speaker.play(speaker, streams.mic.heard_until());
        }
    }

    fn take_back(&mut self, most: usize) -> usize {
        self.streams.as_mut().map_or(0, |streams| streams.speaker.take_back(most))
    }

    fn latency(&self) -> f64 {
        self.streams.as_ref().map_or(0.0, |s| s.speaker.waiting() * f64::from(SAMPLE_RATE) / FRAME as f64 + s.buffer)
    }

    fn counts(&self) -> Counts {
        self.counters.read()
    }

    fn notice(&mut self) -> Option<String> {
        self.notices.pop_front()
    }
}
