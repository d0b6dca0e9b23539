//! Puts logged turns through the pipeline again, and tells where it decides otherwise.
//!
//! Each turn is replayed for itself: the agent is made to remember what it remembered then, and its tools give the results that they
//! gave then. With the same bundle, engine and settings the decisions are the same; another bundle shows what it would have done.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use serde::Serialize;

use super::{Logged, LoggedTurn};
use crate::audio::{AudioDevice, AudioError, Capture, Pace, WavDevice};
use crate::pipeline::{Agent, AgentError, Past, Stopped, Turn};
use crate::tools::Tools;

/// A decision that came out otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which: `question_units`, `transcript`, `calls`, `reply_text`, `stopped` or `units`.
    pub decision: &'static str,
    /// What the log says.
    pub logged: String,
    /// What was decided now.
    pub now: String,
}

/// Replays one turn with an agent that has the logged settings.
///
/// # Errors
/// When the audio cannot be read, or a stage fails; the agent is ready for the next turn.
pub fn replay(agent: &mut Agent, logged: &Logged) -> Result<(Turn, Vec<Difference>), AgentError> {
    agent.recall(&logged.context.iter().map(Past::turn).collect::<Vec<_>>())?;
    *agent.tools() = Tools::recorded(logged.turn.calls.clone());
    let turn = match logged.audio_path() {
        Some(path) => {
            let mut device = WavDevice::new(vec![path], Vec::new(), Pace::Fast, f64::INFINITY)?;
            let capture = device.capture()?.ok_or(AudioError::Stopped)?;
            agent.turn(&capture, &mut device, &mut |_| {})?
        }
        // No unit was heard, or nothing loud enough: there is nothing to give to the model.
        None if logged.turn.stopped == Stopped::Silence => silence(agent)?,
        None => agent.turn_of_units(&logged.turn.question_units, &mut Nothing, &mut |_| {})?,
    };
    let differences = compare(&logged.turn, &turn);
    Ok((turn, differences))
}

/// A question without a sound.
fn silence(agent: &mut Agent) -> Result<Turn, AgentError> {
    let (sender, pieces) = sync_channel(1);
    // There is room for one.
    let _ = sender.send(crate::audio::Captured::End);
    agent.turn(&Capture { source: "silence".to_owned(), pieces }, &mut Nothing, &mut |_| {})
}

/// A loudspeaker that is not there.
struct Nothing;

impl AudioDevice for Nothing {
    fn capture(&mut self) -> Result<Option<Capture>, AudioError> {
        Ok(None)
    }

    fn play(&mut self, _: &[f32]) -> Result<(), AudioError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<PathBuf>, AudioError> {
        Ok(None)
    }

    fn discard(&mut self) {}
}

/// The decisions of both, where they differ, in the order in which they are made. Nobody interrupts a replay: of an answer that was
/// interrupted, what was heard is compared; of one that failed, only whether it fails again.
pub fn compare(logged: &LoggedTurn, now: &Turn) -> Vec<Difference> {
    let calls = |calls: &[crate::pipeline::CallReport]| {
        calls.iter().map(|call| format!("[{}] → {}", call.call, call.result)).collect::<Vec<_>>().join(", ")
    };
    let stopped = |stopped| format!("{stopped:?}").to_lowercase();
    let mut now = now.clone();
    if logged.stopped == Stopped::Interrupted {
        let heard = logged.reply_text.split_whitespace().count();
        now.reply_text = now.reply_text.split_whitespace().take(heard).collect::<Vec<_>>().join(" ");
        now.units.truncate(logged.units.len());
        if heard == 0 {
            // It may have been over before all tools were asked.
            now.calls.truncate(logged.calls.len());
        }
        now.stopped = Stopped::Interrupted;
    }
    if logged.stopped == Stopped::Failed {
        let (logged, now) = (stopped(logged.stopped), stopped(now.stopped));
        return vec![Difference { decision: "stopped", logged, now }];
    }
    let mut found = Vec::new();
    // The units of silence are heard and decide nothing; a log without audio does not replay them.
    if logged.stopped != Stopped::Silence {
        found.extend(units("question_units", &logged.question_units, &now.question_units));
    }
    for (decision, logged, now) in [
        ("transcript", logged.transcript.clone(), now.transcript.clone()),
        ("calls", calls(&logged.calls), calls(&now.calls)),
        ("reply_text", logged.reply_text.clone(), now.reply_text.clone()),
        ("stopped", stopped(logged.stopped), stopped(now.stopped)),
    ] {
        if logged != now {
            found.push(Difference { decision, logged, now });
        }
    }
    found.extend(units("units", &logged.units, &now.units));
    found
}

/// How many units differ, and where the first one is.
fn units(decision: &'static str, logged: &[u32], now: &[u32]) -> Option<Difference> {
    let first = logged.iter().zip(now).position(|(a, b)| a != b).or((logged.len() != now.len()).then_some(logged.len().min(now.len())))?;
    let differing = logged.iter().zip(now).filter(|(a, b)| a != b).count();
    let describe = |units: &[u32]| match units.get(first) {
        Some(unit) => format!("{} units; number {first} is {unit}", units.len()),
        None => format!("{} units; they end at number {first}", units.len()),
    };
    Some(Difference { decision, logged: describe(logged), now: format!("{}; {differing} differ", describe(now)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::CallReport;

    #[test]
    fn every_decision_is_compared() {
        let call = |result: &str| CallReport { call: "light on".into(), result: result.into(), problem: None };
        let logged = LoggedTurn {
            transcript: "light on".into(),
            reply_text: "okay".into(),
            calls: vec![call("ok")],
            question_units: vec![1, 2, 3],
            units: vec![4, 5],
            ..LoggedTurn::default()
        };
        let turn = Turn {
            transcript: "light on".into(),
            reply_text: "okay".into(),
            calls: vec![call("ok")],
            question_units: vec![1, 2, 3],
            units: vec![4, 5],
            ..Turn::default()
        };
        assert_eq!(compare(&logged, &turn), []);
        let changed = [
            ("question_units", Turn { question_units: vec![1, 9, 3], ..turn.clone() }),
            ("transcript", Turn { transcript: "light off".into(), ..turn.clone() }),
            ("calls", Turn { calls: vec![call("failed")], ..turn.clone() }),
            ("reply_text", Turn { reply_text: "no".into(), ..turn.clone() }),
            ("stopped", Turn { stopped: Stopped::Limit, ..turn.clone() }),
            ("units", Turn { units: vec![4, 5, 6], ..turn.clone() }),
        ];
        let said = turn;
        for (decision, turn) in changed {
            let found = compare(&logged, &turn);
            assert_eq!(found.iter().map(|d| d.decision).collect::<Vec<_>>(), [decision]);
        }
        let logged = LoggedTurn { stopped: Stopped::Interrupted, reply_text: "okay the".into(), ..logged };
        let whole = Turn { reply_text: "okay the light is on".into(), units: vec![4, 5, 6, 7], ..said };
        assert_eq!(compare(&logged, &whole), [], "as far as it was heard");
        let early = LoggedTurn { reply_text: String::new(), calls: Vec::new(), units: Vec::new(), ..logged.clone() };
        assert_eq!(compare(&early, &whole), [], "it was over before the tool was asked");
        let spoken = LoggedTurn { calls: Vec::new(), ..logged };
        assert_eq!(compare(&spoken, &whole)[0].decision, "calls", "what was spoken had its calls before it");
        let difference = units("units", &[4, 5], &[4, 5, 6]).expect("longer");
        assert_eq!(
            (difference.logged.as_str(), difference.now.as_str()),
            ("2 units; they end at number 2", "3 units; number 2 is 6; 0 differ")
        );
    }
}
