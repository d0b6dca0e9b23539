//! What is wrong with this machine, for the agent: measured or read, never guessed, with the cure.
//!
//! - [`sound`]: plays a chirp and listens: the loop delay, the echo's level, the noise, what is lost, how far the clocks are apart.
//! - [`speed`]: whether the stages of a bundle keep up with speech, alone and together.
//! - [`machine`]: what Linux tells: governor, temperature, memory, permissions.

pub mod machine;
pub mod sound;
pub mod speed;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work, or will stop working.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at.
    pub what: &'static str,
    /// What was found, with figures and units.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(what: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Fine, what, found: found.into(), cure: None }
    }

    /// Not as it should be.
    pub fn bad(level: Level, what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level, what, found: found.into(), cure: Some(cure.into()) }
    }
}
