//! `volume`: how loud the agent speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Outcome;
use crate::words;

/// Louder and quieter by this many percent.
const STEP: u8 = 10;

/// The volume in percent. Clones share it: the tool sets it, and the audio callback, which may not lock, reads it.
#[derive(Debug, Clone)]
pub struct Volume(Arc<AtomicU8>);

impl Default for Volume {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(100)))
    }
}

impl Volume {
    /// 0 to 100.
    pub fn percent(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it; more than 100 is 100.
    pub fn set(&self, percent: u8) {
        self.0.store(percent.min(100), Ordering::Relaxed);
    }

    /// The factor for samples, 0 to 1. The square of the volume: half sounds about half as loud.
    pub fn gain(&self) -> f32 {
        (f32::from(self.percent()) / 100.0).powi(2)
    }

    /// `set forty` → `ok`; `louder`, `quieter` → `ok`; `status` → `forty`.
    pub(super) fn call(&self, arguments: &[&str]) -> Outcome {
        match arguments {
            ["set", rest @ ..] => {
                let level = words::read_number(rest).filter(|(level, _)| (0.0..=100.0).contains(level));
                match level.map(|(level, taken)| (level, &rest[taken..])) {
                    Some((level, [] | ["percent"])) => self.set(level.round() as u8),
                    _ => {
                        return Outcome::problem(
                            "failed",
                            format!("the volume goes from zero to one hundred, not to `{}`", rest.join(" ")),
                        );
                    }
                }
                Outcome::ok("ok")
            }
            ["louder"] => {
                self.set(self.percent().saturating_add(STEP));
                Outcome::ok("ok")
            }
            ["quieter"] => {
                self.set(self.percent().saturating_sub(STEP));
                Outcome::ok("ok")
            }
            ["status"] | [] => Outcome::ok(words::number(i64::from(self.percent()))),
            _ => Outcome::problem("failed", format!("volume does not know `{}`: set, louder, quieter or status", arguments.join(" "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_up_and_down_between_its_ends() {
        let volume = Volume::default();
        let shared = volume.clone();
        let say = |words: &str| volume.call(&words.split(' ').collect::<Vec<_>>()).words;
        assert_eq!((say("louder"), shared.percent()), ("ok".into(), 100));
        assert_eq!((say("set fifty percent"), shared.gain()), ("ok".into(), 0.25));
        assert_eq!((say("quieter"), say("status")), ("ok".into(), "forty".into()));
        assert_eq!((say("set five"), say("quieter"), shared.percent()), ("ok".into(), "ok".into(), 0));
        for wrong in ["set", "set two hundred", "set minus one", "set ten kitchens", "up"] {
            assert_eq!(say(wrong), "failed", "{wrong}");
        }
    }
}
