//! Does a bundle keep up with speech on this machine? Computing time over time of speech, alone and together.

use super::{Finding, Level};

/// What makes the answer; only the tokenizer listens.
const SPEAKING: [&str; 3] = ["lm", "head", "decoder"];
/// From here on it has little in reserve, and from there on it does not keep up.
const TIGHT: f64 = 0.5;
const BEHIND: f64 = 1.0;

/// What the times of the stages mean.
pub fn findings(stages: &[(&str, f64)]) -> Vec<Finding> {
    let mut all: Vec<Finding> = stages.iter().map(|(stage, factor)| judged(stage, *factor)).collect();
    let sum = |stages: &mut dyn Iterator<Item = &(&str, f64)>| stages.map(|(_, factor)| factor).sum::<f64>();
    all.push(judged("an answer (lm, head and decoder)", sum(&mut stages.iter().filter(|(stage, _)| SPEAKING.contains(stage)))));
    // It listens while it speaks, to be interrupted; cores share that out, so what is tight for one may do for two.
    let everything = sum(&mut stages.iter());
    all.push(match judged("all together", everything) {
        tight if everything < BEHIND => Finding { level: Level::Fine, cure: None, ..tight },
        behind => Finding { level: Level::Warning, ..behind },
    });
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

    /// Levels of the tokenizer, the language model, its head, the decoder, of an answer, and of all.
    fn levels(tokenizer: f64, lm: f64, head: f64, decoder: f64) -> Vec<Level> {
        let all = findings(&[("tokenizer", tokenizer), ("lm", lm), ("head", head), ("decoder", decoder)]);
        assert!(all.iter().all(|finding| (finding.level == Level::Fine) == finding.cure.is_none()), "{all:?}");
        all.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn stages_are_judged_alone_and_together() {
        use Level::{Fine, Problem, Warning};
        assert_eq!(levels(0.1, 0.1, 0.1, 0.2), [Fine; 6]);
        assert_eq!(levels(0.49, 0.1, 0.1, 0.2), [Fine; 6], "0.89 in all");
        assert_eq!(levels(0.5, 0.1, 0.1, 0.2), [Warning, Fine, Fine, Fine, Fine, Fine]);
        assert_eq!(levels(0.1, 0.2, 0.1, 0.25), [Fine, Fine, Fine, Fine, Warning, Fine], "each is fast enough, the answer just so");
        assert_eq!(levels(0.1, 0.4, 0.2, 0.45), [Fine, Fine, Fine, Fine, Problem, Warning], "each is fast enough, the answer stutters");
        assert_eq!(levels(0.7, 0.1, 0.1, 0.2), [Warning, Fine, Fine, Fine, Fine, Warning]);
        assert_eq!(levels(0.1, 1.0, 0.1, 0.1), [Fine, Problem, Fine, Fine, Problem, Warning]);
    }
}
