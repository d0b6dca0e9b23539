//! Batches for training: utterances of similar length, augmented and turned into log-mel frames by a thread of their own.

use std::ops::Range;
use std::sync::mpsc;

use anyhow::{Context, Result};
use rand::{Rng, seq::SliceRandom};

use super::config::{UNIT_FRAMES, UNIT_SAMPLES, units_of_samples};
use super::disturb;
use crate::audio::{LogMel, MELS, SAMPLE_RATE};
use crate::corpus::{Augment, Corpus, Split};
use crate::train::step_rng;

/// Purposes of random draws; see [`step_rng`].
const ORDER: u64 = 0x7061_7373;
const AUGMENT: u64 = 0x6175_676d;
/// Utterances sorted by length together; larger pools pad less, smaller ones mix better.
const POOL: usize = 2_048;
/// Share of utterances that are augmented.
pub const AUGMENTED: f64 = 0.7;

/// Spoken utterances with their phones.
pub trait Speech: Sync {
    /// Number of utterances.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Samples of an utterance.
    fn samples(&self, index: usize) -> usize;
    /// Its CTC targets, phone ids from 1.
    fn phones(&self, index: usize) -> &[u16];
    /// Its audio, 16 kHz.
    fn audio(&self, index: usize) -> Result<Vec<f32>>;
}

/// Questions of a split and, where wanted, the agent's replies.
pub struct CorpusSpeech<'a> {
    corpus: &'a Corpus,
    split: Split,
    questions: usize,
    phones: Vec<Vec<u16>>,
    samples: Vec<usize>,
}

impl<'a> CorpusSpeech<'a> {
    /// All questions of `split`; `replies` adds the agent's replies of that split.
    pub fn new(corpus: &'a Corpus, split: Split, replies: bool) -> Self {
        let questions = corpus.questions(split);
        let replies = if replies { corpus.replies(split) } else { &[] };
        let texts = questions.iter().map(|q| (&q.text, q.samples)).chain(replies.iter().map(|r| (&r.text, r.samples)));
        let (phones, samples) = texts.map(|(text, samples)| (corpus.phones_of(text), samples as usize)).unzip();
        Self { corpus, split, questions: questions.len(), phones, samples }
    }
}

impl Speech for CorpusSpeech<'_> {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn samples(&self, index: usize) -> usize {
        self.samples[index]
    }

    fn phones(&self, index: usize) -> &[u16] {
        &self.phones[index]
    }

    fn audio(&self, index: usize) -> Result<Vec<f32>> {
        match index.checked_sub(self.questions) {
            None => {
                let utterance = &self.corpus.questions(self.split)[index];
                self.corpus.audio(utterance).with_context(|| format!("while reading the audio of {}", utterance.id))
            }
            Some(reply) => {
                let reply = &self.corpus.replies(self.split)[reply];
                self.corpus.reply_audio(reply).with_context(|| format!("while reading the audio of {}", reply.id))
            }
        }
    }
}

/// Which utterances a step trains on: a function of the seed and the step alone.
pub struct Plan<'a> {
    speech: &'a dyn Speech,
    seed: u64,
    /// Padded samples of a batch, at most.
    samples: usize,
    epoch: u64,
    /// Step of the epoch's first batch.
    first: u64,
    batches: Vec<Vec<usize>>,
}

impl<'a> Plan<'a> {
    /// Batches of about `seconds` of padded audio.
    pub fn new(speech: &'a dyn Speech, seconds: f64, seed: u64) -> Self {
        let mut plan = Self { speech, seed, samples: (seconds * SAMPLE_RATE as f64) as usize, epoch: 0, first: 0, batches: Vec::new() };
        plan.batches = plan.draw(0);
        plan
    }

    /// Epoch and utterances of `step`; steps must not decrease.
    pub fn batch(&mut self, step: u64) -> (u64, &[usize]) {
        while step >= self.first + self.batches.len() as u64 {
            self.first += self.batches.len() as u64;
            self.epoch += 1;
            self.batches = self.draw(self.epoch);
        }
        (self.epoch, &self.batches[(step - self.first) as usize])
    }

    fn draw(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = step_rng(self.seed, epoch, ORDER);
        let mut order: Vec<usize> = (0..self.speech.len()).collect();
        order.shuffle(&mut rng);
        let mut batches = Vec::new();
        for pool in order.chunks_mut(POOL) {
            pool.sort_by_key(|i| self.speech.samples(*i));
            let mut batch: Vec<usize> = Vec::new();
            for index in pool.iter().copied() {
                // Sorted upwards: the newest is the longest.
                if !batch.is_empty() && (batch.len() + 1) * self.speech.samples(index) > self.samples {
                    batches.push(std::mem::take(&mut batch));
                }
                batch.push(index);
            }
            if !batch.is_empty() {
                batches.push(batch);
            }
        }
        batches.shuffle(&mut rng);
        batches
    }
}

/// Log-mel frames of several utterances, zero padded audio behind each.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Utterances, B.
    pub size: usize,
    /// Frames at 25 Hz, T: a whole number of chunks.
    pub frames: usize,
    /// `[B, 4T, 64]`
    pub mel: Vec<f32>,
    /// The same without augmentation, where asked for.
    pub clean: Option<Vec<f32>>,
    /// Units of each utterance.
    pub lengths: Vec<usize>,
    /// Phones of each utterance.
    pub targets: Vec<Vec<u16>>,
    /// Seconds of real audio.
    pub seconds: f64,
}

impl Batch {
    /// Log-mel frames of `audio`, padded to the longest rounded up to whole chunks of `chunk` frames.
    pub fn new(front_end: &LogMel, audio: &[Vec<f32>], clean: Option<&[Vec<f32>]>, targets: Vec<Vec<u16>>, chunk: usize) -> Self {
        let lengths: Vec<usize> = audio.iter().map(|samples| units_of_samples(samples.len())).collect();
        let frames = lengths.iter().copied().max().unwrap_or(0).max(1).next_multiple_of(chunk);
        let frames_of = |audio: &[Vec<f32>]| {
            let mut mel = Vec::with_capacity(audio.len() * frames * UNIT_FRAMES * MELS);
            for samples in audio {
                let mut padded = samples.clone();
                padded.resize(frames * UNIT_SAMPLES, 0.0);
                mel.extend(front_end.frames(&padded));
            }
            mel
        };
        let seconds = audio.iter().map(Vec::len).sum::<usize>() as f64 / SAMPLE_RATE as f64;
        Self { size: audio.len(), frames, mel: frames_of(audio), clean: clean.map(frames_of), lengths, targets, seconds }
    }
}

impl Batch {
    /// The batch in two, by utterances; a single utterance stays whole.
    pub fn halves(&self) -> Vec<Batch> {
        let middle = self.size.div_ceil(2);
        let part = |range: Range<usize>| {
            let frames = self.frames * UNIT_FRAMES * MELS;
            let rows = |mel: &Vec<f32>| mel[range.start * frames..range.end * frames].to_vec();
            Batch {
                size: range.len(),
                frames: self.frames,
                mel: rows(&self.mel),
                clean: self.clean.as_ref().map(rows),
                lengths: self.lengths[range.clone()].to_vec(),
                targets: self.targets[range.clone()].to_vec(),
                seconds: self.seconds * range.len() as f64 / self.size as f64,
            }
        };
        [0..middle, middle..self.size].into_iter().filter(|range| !range.is_empty()).map(part).collect()
    }
}

/// How batches are made.
#[derive(Debug, Clone)]
pub struct Making {
    pub seconds: f64,
    pub seed: u64,
    /// Frames of a chunk.
    pub chunk: usize,
    /// Share of utterances that are augmented, and how.
    pub augmented: f64,
    pub augment: Augment,
    /// Whether the batch also holds the frames before augmentation.
    pub clean: bool,
}

impl Making {
    /// The batch of `step`.
    pub fn batch(&self, plan: &mut Plan, step: u64, front_end: &LogMel) -> Result<Batch> {
        let speech = plan.speech;
        let (epoch, indices) = plan.batch(step);
        let silence = self.augment.silence;
        let augment = Augment { silence: 0.0, ..self.augment.clone() };
        let (mut audio, mut clean, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut coloured = Vec::new();
        for index in indices.iter().copied() {
            let mut samples = speech.audio(index)?;
            let mut rng = step_rng(self.seed ^ AUGMENT, epoch, index as u64);
            let disturbed = rng.random_bool(self.augmented);
            if disturbed {
                disturb::speed(&mut rng, &mut samples);
                // The silence comes first, so that the clean frames stay aligned with the augmented ones.
                let mut quiet = || vec![0.0; (rng.random_range(0.0..=silence) * SAMPLE_RATE as f32) as usize];
                samples.splice(0..0, quiet());
                samples.extend(quiet());
                let before = samples.clone();
                augment.apply(&mut rng, &mut samples);
                samples.resize(before.len(), 0.0);
                clean.push(before);
            } else {
                clean.push(samples.clone());
            }
            coloured.push(disturbed.then_some(rng));
            audio.push(samples);
            targets.push(speech.phones(index).to_vec());
        }
        let mut batch = Batch::new(front_end, &audio, self.clean.then_some(&clean), targets, self.chunk);
        for (mel, rng) in batch.mel.chunks_exact_mut(batch.frames * UNIT_FRAMES * MELS).zip(&mut coloured) {
            if let Some(rng) = rng {
                disturb::colour(rng, mel);
            }
        }
        Ok(batch)
    }

    /// Makes the batches of `steps` on a thread of their own and hands them to `consume`, which says whether to go on.
    pub fn for_each(&self, speech: &dyn Speech, steps: Range<u64>, mut consume: impl FnMut(u64, Batch) -> Result<bool>) -> Result<()> {
        anyhow::ensure!(!speech.is_empty(), "there is no speech to train on: is the corpus complete?");
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(3);
            let range = steps.clone();
            scope.spawn(move || {
                let front_end = LogMel::default();
                let mut plan = Plan::new(speech, self.seconds, self.seed);
                for step in range {
                    // A closed channel means that training stopped early.
                    if sender.send(self.batch(&mut plan, step, &front_end)).is_err() {
                        return;
                    }
                }
            });
            for step in steps {
                let batch = receiver.recv().context("the batch thread ended")??;
                if !consume(step, batch)? {
                    break;
                }
            }
            drop(receiver);
            Ok(())
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::f32::consts::TAU;

    /// Tones that stand for phones: enough to learn from in seconds.
    pub struct Tones(pub Vec<Vec<u16>>);

    impl Tones {
        pub fn new(count: usize) -> Self {
            let mut rng = step_rng(5, 0, 0);
            Self((0..count).map(|_| (0..rng.random_range(3..7)).map(|_| rng.random_range(1..5)).collect()).collect())
        }
    }

    impl Speech for Tones {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn samples(&self, index: usize) -> usize {
            self.0[index].len() * 2400
        }
        fn phones(&self, index: usize) -> &[u16] {
            &self.0[index]
        }
        fn audio(&self, index: usize) -> Result<Vec<f32>> {
            let tone = |phone: &u16| {
                let pitch = 250.0 * f32::from(*phone) * 2.0;
                (0..2400).map(move |i| if i < 2000 { 0.3 * (TAU * pitch * i as f32 / 16000.0).sin() } else { 0.0 })
            };
            Ok(self.0[index].iter().flat_map(tone).collect())
        }
    }

    #[test]
    fn every_utterance_comes_once_an_epoch_and_the_step_decides() {
        let tones = Tones::new(50);
        let mut plan = Plan::new(&tones, 4.0, 1);
        let mut seen: Vec<usize> = Vec::new();
        let mut step = 0;
        while plan.batch(step).0 == 0 {
            seen.extend(plan.batch(step).1);
            step += 1;
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        let later = plan.batch(step + 3).1.to_vec();
        assert_eq!(later, Plan::new(&tones, 4.0, 1).batch(step + 3).1);
    }
}
