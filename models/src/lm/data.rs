//! What the group LM is trained on: the tasks' mixture, drawn afresh for each step from the seed and the step's number.
//!
//! - `question`: a spoken question of the corpus, its call and its reply; spoken where that reply was synthesised.
//! - `transcribe`: the same questions, in another order, up to the end of the transcript.
//! - `text`: dialogues drawn from the grammar, never the same twice: all combinations of numbers, rooms and results.
//! - `say`: the synthesised replies.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Grammar, Split, Turn};
use crate::tokenizer::UnitStore;
use crate::train::step_rng;

use super::config::Config;
use super::sequence::{Composer, Sequence, Spoken, Task};

/// Shares of the tasks and how units are disturbed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixConfig {
    pub question: f64,
    pub transcribe: f64,
    pub text: f64,
    pub say: f64,
    /// Least and largest share of the user's units that are dropped, doubled or replaced.
    pub corruption: [f64; 2],
    /// How often a question's reply is given as speech where it was synthesised; as text else. Spoken replies are most of a step's
    /// work, and the words are learnt from text as well.
    pub spoken: f64,
    /// Drop up to G - 1 leading units, so that words fall differently into groups.
    pub shift: bool,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self { question: 0.52, transcribe: 0.22, text: 0.14, say: 0.12, corruption: [0.02, 0.1], spoken: 0.5, shift: true }
    }
}

/// A spoken question with its units.
#[derive(Clone, Debug)]
pub struct Question {
    pub id: String,
    pub category: String,
    /// Where the voice comes from: trained, timbre, accent, synthesiser.
    pub set: String,
    pub voice: String,
    pub text: String,
    /// None where only the transcript is known.
    pub turn: Option<Turn>,
    pub history: Vec<Turn>,
    /// Units of the clean recording.
    pub units: Vec<u16>,
    /// Units of the same recording in noise, in a room, through a telephone.
    pub copies: Vec<Vec<u16>>,
}

/// The corpus as units.
#[derive(Clone, Debug, Default)]
pub struct Material {
    pub questions: Vec<Question>,
    pub replies: Vec<Spoken>,
}

impl Material {
    /// The questions and replies of `split`; what has no units is left out.
    pub fn load(corpus: &Corpus, units: &UnitStore, split: Split) -> Self {
        let questions = corpus.questions(split).iter().filter_map(|utterance| {
            Some(Question {
                units: units.question(&utterance.id)?.to_vec(),
                copies: (1..=units.copies()).filter_map(|copy| Some(units.question_copy(&utterance.id, copy)?.to_vec())).collect(),
                id: utterance.id.clone(),
                category: utterance.category.clone(),
                set: utterance.set.clone(),
                voice: utterance.voice.clone(),
                text: utterance.text.clone(),
                turn: utterance.dialogue.clone(),
                history: utterance.history.clone(),
            })
        });
        let replies = corpus.replies(split).iter().filter_map(|record| {
            let words: Vec<(String, f64)> = record.words.iter().map(|word| (word.word.clone(), word.end)).collect();
            Spoken::cut(units.reply(&record.id)?, &words)
        });
        Self { questions: questions.collect(), replies: replies.collect() }
    }
}

/// Draws batches.
pub struct Sampler<'a> {
    config: &'a Config,
    mix: &'a MixConfig,
    composer: Composer<'a>,
    material: &'a Material,
    grammar: &'a Grammar,
    /// Replies by their text.
    spoken: HashMap<String, usize>,
    /// Questions that have an answer.
    answered: Vec<usize>,
    seed: u64,
    batch: usize,
    /// The order of each task's material in its current epoch.
    orders: HashMap<Task, (u64, Vec<usize>)>,
}

/// Drops, doubles or replaces a random share of the units within `limits`.
pub fn corrupt(units: &[u16], kinds: usize, limits: [f64; 2], rng: &mut impl Rng) -> Vec<u16> {
    let share = rng.random_range(limits[0]..=limits[1]);
    let mut changed = Vec::with_capacity(units.len() + 8);
    for &unit in units {
        if !rng.random_bool(share) {
            changed.push(unit);
            continue;
        }
        match rng.random_range(0..3) {
            0 => {}
            1 => changed.extend([unit, unit]),
            _ => changed.push(rng.random_range(0..kinds as u16)),
        }
    }
    changed
}

impl<'a> Sampler<'a> {
    /// A sampler of `batch` sequences a step.
    ///
    /// # Errors
    /// The material lacks what the mixture asks for.
    pub fn new(
        config: &'a Config,
        mix: &'a MixConfig,
        composer: Composer<'a>,
        material: &'a Material,
        grammar: &'a Grammar,
        seed: u64,
        batch: usize,
    ) -> anyhow::Result<Self> {
        let answered: Vec<usize> = (0..material.questions.len()).filter(|i| material.questions[*i].turn.is_some()).collect();
        let missing = [
            ("question", mix.question, answered.len()),
            ("transcribe", mix.transcribe, material.questions.len()),
            ("say", mix.say, material.replies.len()),
        ];
        for (task, share, examples) in missing {
            anyhow::ensure!(
                share == 0.0 || examples > 0,
                "the mixture asks for `{task}`, but the corpus has no units for it: run `sa-align tokenizer` on this corpus first"
            );
        }
        let spoken = material.replies.iter().enumerate().map(|(i, reply)| (reply.text(), i)).collect();
        Ok(Self { config, mix, composer, material, grammar, spoken, answered, seed, batch, orders: HashMap::new() })
    }

    /// How many answered questions have a spoken reply.
    pub fn spoken_questions(&self) -> usize {
        let turns = self.material.questions.iter().filter_map(|question| question.turn.as_ref());
        turns.filter(|turn| self.spoken.contains_key(&turn.reply)).count()
    }

    /// Sequences of each task in a batch: the shares, rounded so that they add up.
    pub fn counts(&self) -> [usize; 4] {
        let shares = [self.mix.question, self.mix.transcribe, self.mix.text, self.mix.say];
        let total: f64 = shares.iter().sum();
        let mut reached = 0.0;
        shares.map(|share| {
            let before = (reached / total * self.batch as f64).round() as usize;
            reached += share;
            (reached / total * self.batch as f64).round() as usize - before
        })
    }

    /// The batch of `step` (from 0): the same for the same seed and step, whatever was drawn before.
    pub fn batch(&mut self, step: u64) -> Vec<Sequence> {
        let mut rng = step_rng(self.seed, step, 1);
        let mut sequences = Vec::with_capacity(self.batch);
        for (task, count) in Task::ALL.into_iter().zip(self.counts()) {
            for i in 0..count {
                let number = step * count as u64 + i as u64;
                let sequence = self.draw(task, number, &mut rng);
                if sequence.items.len() <= self.config.max_position_embeddings {
                    sequences.push(sequence);
                }
            }
        }
        sequences.shuffle(&mut rng);
        sequences
    }

    /// Example `number` of a task: every example once an epoch, each epoch in its own order.
    fn index(&mut self, task: Task, number: u64, examples: usize) -> usize {
        let epoch = number / examples as u64;
        let seed = self.seed;
        let order = self.orders.entry(task).or_insert((u64::MAX, Vec::new()));
        if order.0 != epoch {
            let mut indices = (0..examples).collect::<Vec<_>>();
            indices.shuffle(&mut step_rng(seed, epoch, 2 + task as u64));
            *order = (epoch, indices);
        }
        order.1[(number % examples as u64) as usize]
    }

    /// One of the question's recordings, disturbed.
    fn heard(&self, question: &Question, rng: &mut impl Rng) -> Vec<u16> {
        let units = match rng.random_range(0..=question.copies.len()) {
            0 => &question.units,
            copy => &question.copies[copy - 1],
        };
        let mut units = corrupt(units, self.config.units, self.mix.corruption, rng);
        if self.mix.shift {
            let shift = rng.random_range(0..self.config.group).min(units.len());
            units.drain(..shift);
        }
        units
    }

    fn draw(&mut self, task: Task, number: u64, rng: &mut impl Rng) -> Sequence {
        let material = self.material;
        match task {
            Task::Question => {
                let index = self.index(task, number, self.answered.len());
                let question = &material.questions[self.answered[index]];
                let turn = question.turn.as_ref().expect("answered questions have a turn");
                let spoken = self.spoken.get(&turn.reply).map(|reply| &material.replies[*reply]);
                let spoken = spoken.filter(|_| rng.random_bool(self.mix.spoken));
                self.composer.question(&question.history, &self.heard(question, rng), turn, spoken)
            }
            Task::Transcribe => {
                let index = self.index(task, number, material.questions.len());
                let question = &material.questions[index];
                self.composer.transcribe(&self.heard(question, rng), &question.text)
            }
            Task::Text => {
                let sampled = self.grammar.sample(rng, Split::Train);
                self.composer.text(&sampled.history, &sampled.turn)
            }
            Task::Say => {
                let index = self.index(task, number, material.replies.len());
                self.composer.say(&material.replies[index])
            }
        }
    }
}
