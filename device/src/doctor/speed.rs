//! Does a bundle keep up with speech on this machine? Computing time over time of speech, of each stage and of what works at once.

use super::{Finding, Level};

/// What hears a question while it is spoken, and what makes the answer while it is heard.
const TOGETHER: [(&str, &[&str]); 2] =
    [("a question (tokenizer and lm)", &["tokenizer", "lm"]), ("an answer (lm, head and decoder)", &["lm", "head", "decoder"])];
/// From here on it has little in reserve, and from there on it does not keep up.
const TIGHT: f64 = 0.5;
const BEHIND: f64 = 1.0;

/// What the times of the stages mean.
pub fn findings(stages: &[(&str, f64)]) -> Vec<Finding> {
    let mut all: Vec<Finding> = stages.iter().map(|(stage, factor)| judged(stage, *factor)).collect();
    all.extend(
        TOGETHER.iter().map(|(what, together)| {
            judged(what, stages.iter().filter(|(stage, _)| together.contains(stage)).map(|(_, factor)| factor).sum())
        }),
    );
    all
}

fn judged(what: &str, factor: f64) -> Finding {
    let found = format!("{what}: {factor:.3} s for a second of speech");
    if factor < TIGHT {
        return Finding::fine("speed", found);
    }
    let level = if factor < BEHIND { Level::Warning } else { Level::Problem };
    Finding::bad(level, "speed", found, "a smaller bundle, `--int8` in the export, `--engine ort`, or `--threads 2`")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels of the tokenizer, the language model, its head, the decoder, of a question, and of an answer.
    fn levels(tokenizer: f64, lm: f64, head: f64, decoder: f64) -> Vec<Level> {
        let all = findings(&[("tokenizer", tokenizer), ("lm", lm), ("head", head), ("decoder", decoder)]);
        assert!(all.iter().all(|finding| (finding.level == Level::Fine) == finding.cure.is_none()), "{all:?}");
        all.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn stages_are_judged_alone_and_together() {
        use Level::{Fine, Problem, Warning};
        assert_eq!(levels(0.1, 0.1, 0.1, 0.2), [Fine; 6]);
        assert_eq!(levels(0.49, 0.1, 0.1, 0.2), [Fine, Fine, Fine, Fine, Warning, Fine], "each is fast enough, a question just so");
        assert_eq!(levels(0.5, 0.1, 0.1, 0.2), [Warning, Fine, Fine, Fine, Warning, Fine]);
        assert_eq!(levels(0.1, 0.2, 0.1, 0.25), [Fine, Fine, Fine, Fine, Fine, Warning], "each is fast enough, the answer just so");
        assert_eq!(levels(0.1, 0.4, 0.2, 0.45), [Fine, Fine, Fine, Fine, Warning, Problem], "each is fast enough, the answer stutters");
        assert_eq!(levels(0.1, 1.0, 0.1, 0.1), [Fine, Problem, Fine, Fine, Problem, Problem]);
    }
}
