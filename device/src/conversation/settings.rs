//! The settings of a live conversation.

use serde::Deserialize;

use crate::hearing::ActivitySettings;
use crate::turns::TurnSettings;
use crate::wake::WakeSettings;

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
