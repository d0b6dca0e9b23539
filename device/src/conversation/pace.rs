//! Does the agent keep up with the conversation? A bundle too slow for its board is told, with what helps.

use std::time::Duration;

use super::Gaps;
use crate::audio::live::counters::CURE;

/// Frames of gaps in ten seconds that are worth a word, and so much sound that waits at the end of a question: less is a moment in which
/// the board was busy.
const GAPS: u64 = 10;
const LATE: Duration = Duration::from_secs(1);

/// What a slow agent leaves behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// In answers.
    pub gaps: Gaps,
    /// Answers that did not begin or not end in time.
    pub given_up: u32,
    /// How much of a question the agent had not heard when it was over, at worst, since this was looked at last.
    pub late: Duration,
}

impl Pace {
    /// What is wrong since `before`, in words, with the cure; `None` if the agent keeps up.
    pub fn complaint(&self, before: &Self) -> Option<String> {
        let (count, frames) = (self.gaps.count - before.gaps.count, self.gaps.frames - before.gaps.frames);
        let given_up = self.given_up - before.given_up;
        let mut signs = Vec::new();
        if frames >= GAPS {
            signs.push(format!("{count} gaps in its answers, {:.1} s in all", frames as f64 * 0.01));
        }
        if given_up > 0 {
            signs.push(format!("{given_up} answers given up, because they did not begin or end in time"));
        }
        if self.late >= LATE {
            signs.push(format!("{:.1} s of a question still to be heard when it was over", self.late.as_secs_f64()));
        }
        let signs = (!signs.is_empty()).then(|| signs.join("; "))?;
        let tools = if given_up > 0 { "; a tool that takes long may be the reason too" } else { "" };
        Some(format!("the agent is slower than the conversation ({signs}): {CURE}{tools}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_agent_is_told_with_the_cure() {
        let before = Pace { gaps: Gaps { count: 3, frames: 50 }, given_up: 1, late: Duration::ZERO };
        assert_eq!(before.complaint(&before), None);
        let little = Pace { gaps: Gaps { count: 4, frames: 55 }, late: Duration::from_millis(300), ..before };
        assert_eq!(little.complaint(&before), None);
        let gaps = Pace { gaps: Gaps { count: 5, frames: 170 }, ..before }.complaint(&before).expect("gaps");
        assert!(gaps.contains("2 gaps") && gaps.contains("1.2 s") && gaps.contains("sa-agent bench") && !gaps.contains("tool"), "{gaps}");
        let given_up = Pace { given_up: 2, ..before }.complaint(&before).expect("a timeout");
        assert!(given_up.contains("1 answers given up") && given_up.contains("tool"), "{given_up}");
        let late = Pace { late: Duration::from_millis(4100), ..before }.complaint(&before).expect("late");
        assert!(late.contains("4.1 s of a question"), "{late}");
    }
}
