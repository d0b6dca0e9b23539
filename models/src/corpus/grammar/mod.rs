//! Dialogues by chance from a grammar file: intents, question templates, calls, tool results, replies.
//!
//! Given the question, the turns before and the tool's result, call and reply follow: nothing in them is left to chance, so that
//! an exact match is a fair measure. Sampling is cheap (see the test), for endless text-only data.

mod file;
mod source;
mod template;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use source::Slot;
use template::Template;

/// Which part of the data something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Dev,
    Test,
}

/// One exchange: what was asked, the tool call and its result if any, what was answered. Lower-case words, single spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Turn {
    /// Empty where nothing was understood (silence, noise, music).
    pub question: String,
    pub call: Option<String>,
    pub result: Option<String>,
    pub reply: String,
}

/// A drawn dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    pub turn: Turn,
    /// The turns before, oldest first.
    pub history: Vec<Turn>,
    pub category: String,
}

/// What makes two questions the same combination, so that `test` holds combinations never trained.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SplitBy {
    /// The call with its arguments (rooms, numbers, names); without a call, the slots of the question.
    #[default]
    Question,
    /// The call and the tool's result: what has to be copied was never copied in training.
    Answer,
    /// A closed list (facts, small talk): the same in all splits.
    None,
}

#[derive(Debug, Clone)]
struct Outcome {
    weight: f64,
    slots: Vec<Slot>,
    result: Option<Template>,
    reply: Template,
}

#[derive(Debug, Clone)]
struct Frame {
    slots: Vec<Slot>,
    /// Number of values once the slots are drawn: outcomes' own come after.
    known: usize,
    ask: Vec<Template>,
    call: Option<Template>,
    outcomes: Vec<Outcome>,
}

#[derive(Debug, Clone)]
struct Intent {
    name: String,
    category: String,
    weight: f64,
    split: SplitBy,
    fresh: bool,
    may_fail: bool,
    frame: Frame,
    follow: Vec<Frame>,
}

#[derive(Debug, Clone)]
struct Failure {
    share: f64,
    results: Vec<String>,
    reply: Template,
}

/// A loaded grammar.
#[derive(Debug, Clone)]
pub struct Grammar {
    intents: Vec<Intent>,
    choose: WeightedIndex<f64>,
    failure: Option<Failure>,
    words: BTreeSet<String>,
    /// Words that no combination left for training would hold.
    untaught: BTreeSet<String>,
}

/// 64-bit FNV-1a: the same on every machine and in every version, as splits must be.
pub(in crate::corpus) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The words of a combination's key.
fn words_of(key: &str) -> impl Iterator<Item = &str> {
    key.split([' ', '/']).filter(|word| !word.is_empty())
}

/// An eighth of the combinations is for `test`, a sixteenth for `dev`.
fn split_of(key: &str) -> Split {
    // the low bits of FNV-1a are weak for short keys: fold the high half in
    let hash = stable_hash(key);
    match (hash ^ (hash >> 32)) % 16 {
        0 | 1 => Split::Test,
        2 => Split::Dev,
        _ => Split::Train,
    }
}

impl Grammar {
    fn new(intents: Vec<Intent>, failure: Option<Failure>, words: BTreeSet<String>) -> Self {
        let choose = WeightedIndex::new(intents.iter().map(|intent| intent.weight)).expect("weights were checked while reading");
        let mut grammar = Self { intents, choose, failure, words, untaught: BTreeSet::new() };
        grammar.untaught = grammar.find_untaught();
        grammar
    }

    /// Looks for words that the hash would hold out altogether, as it may where a list stands alone in its combination or has one partner
    /// of two values: it is combinations that are to be new in a test, for nobody can understand a word never heard.
    fn find_untaught(&self) -> BTreeSet<String> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut held_out = BTreeSet::new();
        let mut taught = BTreeSet::new();
        let mut note = |key: Option<String>| {
            if let Some(key) = key {
                if split_of(&key) == Split::Train { &mut taught } else { &mut held_out }.extend(words_of(&key).map(str::to_owned));
            }
        };
        for intent in &self.intents {
            for draw in 0..1_000 {
                let mut values = Vec::with_capacity(8);
                note(self.turn(&mut rng, intent, &intent.frame, &mut values, false).1);
                if let Some(follow) = intent.follow.get(draw % intent.follow.len().max(1)) {
                    note(self.turn(&mut rng, intent, follow, &mut values, false).1);
                }
            }
        }
        held_out.difference(&taught).cloned().collect()
    }

    /// The split of a combination: by its hash, but one with a word that training would not hold otherwise is trained.
    fn split_of(&self, key: &str) -> Split {
        match split_of(key) {
            Split::Train => Split::Train,
            _ if words_of(key).any(|word| self.untaught.contains(word)) => Split::Train,
            held_out => held_out,
        }
    }

    /// The words that have tokens of their own.
    pub fn words(&self) -> &BTreeSet<String> {
        &self.words
    }

    /// The categories, each once, sorted.
    pub fn categories(&self) -> BTreeSet<&str> {
        self.intents.iter().map(|intent| intent.category.as_str()).collect()
    }

    /// Draws a dialogue whose last turn belongs to `split` (closed lists belong to all of them).
    ///
    /// A grammar so small that nothing of it falls into a split gives draws of another one there: there is nothing to hold out.
    pub fn sample(&self, rng: &mut impl Rng, split: Split) -> Sampled {
        let mut tries = 0;
        loop {
            let intent = &self.intents[self.choose.sample(rng)];
            tries += 1;
            if let Some(sampled) = self.sample_intent(rng, intent, split, tries > 200) {
                return sampled;
            }
        }
    }

    /// Looks for questions that have two answers, in `draws` dialogues: the same words after the same last turn with different calls, or
    /// with different replies to the same result. A grammar should have none. One line for each question.
    pub fn conflicts(&self, rng: &mut impl Rng, draws: usize) -> Vec<String> {
        let mut calls: HashMap<(String, Option<Turn>), Option<String>> = HashMap::new();
        let mut replies: HashMap<(String, Option<Turn>, Option<String>), String> = HashMap::new();
        let mut found = BTreeMap::new();
        for _ in 0..draws {
            let Sampled { turn, mut history, .. } = self.sample(rng, Split::Train);
            let context = history.pop();
            let call = calls.entry((turn.question.clone(), context.clone())).or_insert_with(|| turn.call.clone());
            let known = replies.entry((turn.question.clone(), context, turn.result.clone())).or_insert_with(|| turn.reply.clone());
            if *call != turn.call {
                found.insert(turn.question.clone(), format!("{:?} calls {:?} and {:?}", turn.question, call, turn.call));
            } else if *known != turn.reply {
                found.insert(turn.question.clone(), format!("{:?} is answered {known:?} and {:?}", turn.question, turn.reply));
            }
        }
        found.into_values().collect()
    }

    fn sample_intent(&self, rng: &mut impl Rng, intent: &Intent, split: Split, any: bool) -> Option<Sampled> {
        let mut values = Vec::with_capacity(8);
        let mut history = Vec::new();
        let follow = (!intent.follow.is_empty() && rng.random_bool(0.4)).then(|| &intent.follow[rng.random_range(0..intent.follow.len())]);
        let turns_before = if intent.fresh { 0 } else { [0, 0, 0, 0, 0, 0, 1, 1, 1, 2][rng.random_range(0..10)] };
        for _ in 0..turns_before.min(if follow.is_some() { 1 } else { 2 }) {
            let other = &self.intents[self.choose.sample(rng)];
            history.extend(self.turn_in(rng, other, &other.frame, split, false, &mut Vec::new()));
        }
        if follow.is_some() {
            // what came before may be of any split: the combination asked now is what counts
            history.push(self.turn(rng, intent, &intent.frame, &mut values, false).0);
        }
        let turn = self.turn_in(rng, intent, follow.unwrap_or(&intent.frame), split, any, &mut values)?;
        Some(Sampled { turn, history, category: intent.category.clone() })
    }

    /// Draws until the combination is of the split; `None` when the intent seems to have none there (unless `any` will do).
    fn turn_in(
        &self,
        rng: &mut impl Rng,
        intent: &Intent,
        frame: &Frame,
        split: Split,
        any: bool,
        values: &mut Vec<String>,
    ) -> Option<Turn> {
        let before = values.clone();
        for _ in 0..100 {
            values.clone_from(&before);
            let (turn, key) = self.turn(rng, intent, frame, values, true);
            if any || key.is_none_or(|key| self.split_of(&key) == split) {
                return Some(turn);
            }
        }
        None
    }

    fn turn(&self, rng: &mut impl Rng, intent: &Intent, frame: &Frame, values: &mut Vec<String>, fail: bool) -> (Turn, Option<String>) {
        for slot in &frame.slots {
            slot.draw(rng, values);
        }
        values.resize(values.len().max(frame.known), String::new());
        let question = frame.ask[rng.random_range(0..frame.ask.len())].render(rng, values);
        let call = frame.call.as_ref().map(|call| call.render(rng, values));
        let total: f64 = frame.outcomes.iter().map(|outcome| outcome.weight).sum();
        let mut left = rng.random_range(0.0..total);
        let outcome = frame.outcomes.iter().find(|outcome| {
            left -= outcome.weight;
            left < 0.0
        });
        let outcome = outcome.unwrap_or(&frame.outcomes[frame.outcomes.len() - 1]);
        let mut all = values.clone();
        for slot in &outcome.slots {
            slot.draw(rng, &mut all);
        }
        let mut result = outcome.result.as_ref().map(|result| result.render(rng, &all));
        let mut reply = outcome.reply.render(rng, &all);
        let key = match intent.split {
            SplitBy::None => None,
            // a call without slots (cancel it) has nothing to hold out
            SplitBy::Question if frame.call.as_ref().is_some_and(Template::is_constant) => None,
            // the call says what was meant, whichever intent or follow-up led to it
            SplitBy::Question => Some(call.clone().unwrap_or_else(|| format!("{}/{}", intent.name, values.join("/")))),
            // nor has a fixed answer to a fixed call (you have no messages): it can only be learnt by seeing it
            SplitBy::Answer
                if frame.call.as_ref().is_none_or(Template::is_constant)
                    && outcome.result.as_ref().is_none_or(Template::is_constant)
                    && outcome.reply.is_constant() =>
            {
                None
            }
            SplitBy::Answer => Some(format!("{}/{}", call.as_deref().unwrap_or(&intent.name), result.as_deref().unwrap_or(&reply))),
        };
        if let (true, true, Some(failure)) = (fail, intent.may_fail, &self.failure)
            && rng.random_bool(failure.share)
        {
            result = Some(failure.results[rng.random_range(0..failure.results.len())].clone());
            reply = failure.reply.render(rng, &[]);
        }
        (Turn { question, call, result, reply }, key)
    }
}

#[cfg(test)]
mod tests;
