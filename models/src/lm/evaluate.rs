//! How many questions are answered exactly: the call, the words of the reply, and both.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::corpus::Turn;

use super::data::Question;
use super::generate::Generator;

/// Counts over some questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    pub questions: usize,
    pub call: usize,
    pub reply: usize,
    /// Call and reply both exactly right.
    pub both: usize,
    pub transcript: usize,
    /// Words inserted, left out or replaced in the transcripts, and words said.
    pub word_errors: usize,
    pub words: usize,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.questions += 1;
        self.call += usize::from(outcome.call);
        self.reply += usize::from(outcome.reply);
        self.both += usize::from(outcome.call && outcome.reply);
        self.transcript += usize::from(outcome.word_errors == 0);
        self.word_errors += outcome.word_errors;
        self.words += outcome.words;
    }

    /// `both` as a share of the questions.
    pub fn exact(&self) -> f64 {
        self.both as f64 / self.questions.max(1) as f64
    }

    /// Word error rate of the transcripts.
    pub fn wer(&self) -> f64 {
        self.word_errors as f64 / self.words.max(1) as f64
    }
}

/// A question that was answered wrongly.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    pub id: String,
    pub category: String,
    pub voice: String,
    pub question: String,
    pub transcript: String,
    pub call: Option<String>,
    pub made_calls: Vec<String>,
    pub reply: String,
    pub made_reply: String,
}

/// The whole evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub all: Tally,
    pub by_set: BTreeMap<String, Tally>,
    pub by_category: BTreeMap<String, Tally>,
    pub by_voice: BTreeMap<String, Tally>,
    pub mistakes: Vec<Mistake>,
    /// Positions read and written in a mean turn.
    pub positions: f64,
}

struct Outcome {
    call: bool,
    reply: bool,
    word_errors: usize,
    words: usize,
    positions: usize,
    mistake: Option<Mistake>,
}

/// Words inserted, left out or replaced between two texts.
pub fn word_errors(reference: &str, hypothesis: &str) -> usize {
    let hypothesis: Vec<&str> = hypothesis.split_whitespace().collect();
    let mut row: Vec<usize> = (0..=hypothesis.len()).collect();
    for (i, word) in reference.split_whitespace().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in hypothesis.iter().enumerate() {
            let replaced = diagonal + usize::from(word != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[hypothesis.len()]
}

/// Answers every question that has a known answer; a call that is exactly the expected one gets its result, any other `failed`.
/// With `typed` the question is given as text and answered in text: what is lost then is not lost in hearing.
pub fn evaluate<'q>(generator: &Generator<'_>, questions: impl IntoIterator<Item = &'q Question>, typed: bool) -> Report {
    let questions: Vec<(&Question, &Turn)> =
        questions.into_iter().filter_map(|question| Some((question, question.turn.as_ref()?))).collect();
    let outcomes: Vec<Outcome> = questions.par_iter().map(|(question, turn)| answer(generator, question, turn, typed)).collect();
    let mut report = Report::default();
    let mut positions = 0;
    for ((question, _), outcome) in questions.iter().zip(outcomes) {
        report.all.add(&outcome);
        report.by_set.entry(question.set.clone()).or_default().add(&outcome);
        report.by_category.entry(question.category.clone()).or_default().add(&outcome);
        report.by_voice.entry(question.voice.clone()).or_default().add(&outcome);
        positions += outcome.positions;
        report.mistakes.extend(outcome.mistake);
    }
    report.positions = positions as f64 / report.all.questions.max(1) as f64;
    report
}

fn answer(generator: &Generator<'_>, question: &Question, turn: &Turn, typed: bool) -> Outcome {
    let tool = |call: &str| match (&turn.call, &turn.result) {
        (Some(expected), Some(result)) if call == expected => result.clone(),
        _ => "failed".to_owned(),
    };
    let made = if typed {
        generator.type_answer(&question.history, &turn.question, tool)
    } else {
        generator.answer(&question.history, &question.units, tool)
    };
    let calls: Vec<&str> = made.calls.iter().map(|(call, _)| call.as_str()).collect();
    let call = calls == turn.call.as_deref().into_iter().collect::<Vec<_>>();
    let reply = made.reply == turn.reply;
    let mistake = (!(call && reply)).then(|| Mistake {
        id: question.id.clone(),
        category: question.category.clone(),
        voice: question.voice.clone(),
        question: turn.question.clone(),
        transcript: made.transcript.clone(),
        call: turn.call.clone(),
        made_calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        reply: turn.reply.clone(),
        made_reply: made.reply.clone(),
    });
    let heard = if typed { 0 } else { word_errors(&turn.question, &made.transcript) };
    Outcome { call, reply, word_errors: heard, words: turn.question.split_whitespace().count(), positions: made.positions, mistake }
}

impl Report {
    /// The report as a table, with at most `mistakes` mistakes.
    pub fn to_text(&self, mistakes: usize) -> String {
        let line = |name: &str, tally: &Tally| {
            let percent = |count: usize| 100.0 * count as f64 / tally.questions.max(1) as f64;
            let (call, reply, both) = (percent(tally.call), percent(tally.reply), percent(tally.both));
            format!("{name:<28} {:>6} {call:>7.1} {reply:>7.1} {both:>7.1} {:>7.1}\n", tally.questions, 100.0 * tally.wer())
        };
        let head = format!("{:<28} {:>6} {:>7} {:>7} {:>7} {:>7}\n", "", "number", "call %", "reply %", "both %", "WER %");
        let mut text = head + &line("all", &self.all);
        for (title, tallies) in [("set", &self.by_set), ("category", &self.by_category), ("voice", &self.by_voice)] {
            text += &format!("by {title}\n");
            text.extend(tallies.iter().map(|(name, tally)| line(&format!("  {name}"), tally)));
        }
        text += &format!("positions in a mean turn: {:.1}\n", self.positions);
        for mistake in self.mistakes.iter().take(mistakes) {
            let call = mistake.call.as_deref().unwrap_or("no call");
            text += &format!(
                "{} {} {}\n  asked   {}\n  heard   {}\n  call    {call}\n  made    {}\n  reply   {}\n  made    {}\n",
                mistake.id,
                mistake.category,
                mistake.voice,
                mistake.question,
                mistake.transcript,
                mistake.made_calls.join(" | "),
                mistake.reply,
                mistake.made_reply
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_errors_are_the_shortest_edit() {
        assert_eq!(word_errors("turn on the light", "turn on the light"), 0);
        assert_eq!(word_errors("turn on the light", "turn the lamp"), 2);
        assert_eq!(word_errors("", "a b"), 2);
        assert_eq!(word_errors("a b c", ""), 3);
        assert_eq!(word_errors("a b c d", "b c d e"), 2);
    }
}
