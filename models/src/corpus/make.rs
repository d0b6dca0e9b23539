//! Making a corpus: all texts are drawn first (cheap), then spoken shard by shard, so that a killed run goes on where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::align;
use super::augment::{NOISES, noise};
use super::grammar::{Sampled, Split, stable_hash};
use super::lexicon::{Lexicon, phonemise};
use super::recordings::{self, Recording};
use super::store::{self, SHARD};
use super::synthesis::{self, Synthesisers};
use super::wave::{self, SAMPLE_RATE};
use super::{Corpus, Error, Grammar, Reply, Utterance, Vocabulary};
use crate::folder::sha256;

const GRAMMAR: &str = include_str!("../../grammar/home.toml");

impl Grammar {
    /// The home assistant of this repository.
    ///
    /// # Panics
    /// Never: a test reads it.
    pub fn home() -> Self {
        Self::parse(Path::new("(built in)"), GRAMMAR).expect("the built-in grammar is tested")
    }
}

const SYNTHESISERS: &str = include_str!("../../grammar/synthesisers.toml");

/// What to make.
#[derive(Debug, Clone)]
pub struct Options {
    pub output: PathBuf,
    pub questions: usize,
    /// Questions besides, whose words are swapped ("lock the garlic"): for transcription alone. In a context where training has heard some
    /// words only, a model writes one of those rather than the word it hears.
    pub swapped: usize,
    pub replies: usize,
    pub seed: u64,
    /// The home assistant of this repository when `None`.
    pub grammar: Option<PathBuf>,
    /// espeak-ng and flite as in this repository when `None`.
    pub synthesisers: Option<PathBuf>,
    /// A folder in the LJSpeech form.
    pub recordings: Option<PathBuf>,
    /// Synthesisers at work at the same time.
    pub jobs: usize,
}

/// What was made; `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub complete: bool,
    pub seed: u64,
    pub questions: usize,
    #[serde(default)]
    pub swapped: usize,
    pub replies: usize,
    pub recordings: usize,
    /// Of the recordings' ids and texts; empty without any, and in corpora of older versions.
    #[serde(default)]
    pub recordings_sha256: String,
    pub grammar_sha256: String,
    pub synthesisers_sha256: String,
    pub words: usize,
    pub phones: usize,
    /// Hours of speech by what it is (questions of each set, replies).
    pub hours: BTreeMap<String, f64>,
    /// Questions by `split/set`.
    pub sets: BTreeMap<String, usize>,
    /// Questions by category, for each split.
    pub categories: BTreeMap<String, BTreeMap<String, usize>>,
    /// Questions by voice, for each split.
    pub voices: BTreeMap<String, BTreeMap<String, usize>>,
}

/// Which recordings there are and what is said in them.
fn listed(recordings: &[Recording]) -> String {
    let lines: String = recordings.iter().map(|recording| format!("{}|{}\n", recording.id, recording.text)).collect();
    if lines.is_empty() { lines } else { sha256(lines.as_bytes()) }
}

fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).map_err(|source| Error::io(&partial, source))?;
    std::fs::rename(&partial, path).map_err(|source| Error::io(path, source))
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("maps with text keys can be written") + "\n"
}

/// A generator for one item: any item can be made without those before it.
fn generator(seed: u64, kind: &str, index: usize) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(stable_hash(&format!("{seed}/{kind}/{index}")))
}

struct Question {
    split: Split,
    set: &'static str,
    sampled: Sampled,
}

/// The sizes of test sets and dev for a corpus of `questions`: at most 400 per set and 600, a twentieth each for small ones.
fn plan_questions(grammar: &Grammar, synthesisers: &Synthesisers, options: &Options) -> Vec<Question> {
    let sets: Vec<&'static str> = synthesisers.sets().collect();
    let per_set = (options.questions / 20).min(400);
    let dev = (options.questions / 20).min(600);
    let place = |index: usize| match index {
        index if index < per_set * sets.len() => (Split::Test, sets[index / per_set]),
        index if index < per_set * sets.len() + dev => (Split::Dev, "trained"),
        _ => (Split::Train, "trained"),
    };
    let question = |index: usize| {
        let (split, set) = place(index);
        Question { split, set, sampled: grammar.sample(&mut generator(options.seed, "question", index), split) }
    };
    (0..options.questions).map(question).collect()
}

/// Texts of a grammar with swapped lists, none of them a question of the corpus. Fewer than asked for where it has no more.
fn plan_swapped(grammar: &Grammar, questions: &[Question], options: &Options) -> Vec<String> {
    let known: BTreeSet<&str> = questions.iter().map(|question| question.sampled.turn.question.as_str()).collect();
    let draw = |index: usize| {
        let mut rng = generator(options.seed, "swapped", index);
        let mut texts = (0..50).map(|_| grammar.sample(&mut rng, Split::Train).turn.question);
        texts.find(|text| !text.is_empty() && !known.contains(text.as_str()))
    };
    (0..options.swapped).filter_map(draw).collect()
}

/// Distinct texts for the agent's voice: replies of the grammar, then sentences of words that these leave rare.
fn plan_replies(grammar: &Grammar, options: &Options) -> Vec<(Split, String)> {
    let mut rng = generator(options.seed, "replies", 0);
    let mut seen: HashMap<String, ()> = HashMap::new();
    let mut texts = Vec::with_capacity(options.replies);
    let held_out = (options.replies / 20).min(200);
    // the held-out ones last: a reply of theirs must not have been trained under another question
    let salad = options.replies / 10;
    for (split, count) in
        [(Split::Train, options.replies.saturating_sub(2 * held_out + salad)), (Split::Dev, held_out), (Split::Test, held_out)]
    {
        let start = texts.len();
        let mut tries = 0;
        while texts.len() - start < count && tries < 200 * count {
            tries += 1;
            let sampled = grammar.sample(&mut rng, split);
            if seen.insert(sampled.turn.reply.clone(), ()).is_none() {
                texts.push((split, sampled.turn.reply));
            }
        }
    }
    let mut counts: BTreeMap<&str, usize> = grammar.words().iter().map(|word| (word.as_str(), 0)).collect();
    let trained: Vec<String> = texts.iter().filter(|(split, _)| *split == Split::Train).map(|(_, text)| text.clone()).collect();
    trained.iter().flat_map(|text| text.split(' ')).for_each(|word| {
        if let Some(count) = counts.get_mut(word) {
            *count += 1;
        }
    });
    let mut rare: Vec<&str> = counts.iter().filter(|(_, count)| **count < 12).map(|(word, _)| *word).collect();
    if rare.is_empty() {
        rare = counts.keys().copied().collect();
    }
    while texts.len() < options.replies && !rare.is_empty() {
        rare.shuffle(&mut rng);
        for group in rare.chunks(6) {
            if texts.len() < options.replies {
                texts.push((Split::Train, group.join(" ")));
            }
        }
    }
    texts
}

/// Silence, noise or music instead of a question.
fn no_speech(rng: &mut impl Rng) -> (String, Vec<f32>) {
    let length = (rng.random_range(0.6..3.0) * f64::from(SAMPLE_RATE)) as usize;
    if rng.random_bool(0.25) {
        let floor = 10f32.powf(rng.random_range(-90.0..-50.0) / 20.0);
        return ("sound:silence".to_owned(), (0..length).map(|_| floor * rng.random_range(-1.0..1.0f32)).collect());
    }
    let kind = NOISES[rng.random_range(0..NOISES.len())];
    let gain = 10f32.powf(rng.random_range(-50.0..-18.0) / 20.0);
    let samples = noise(rng, kind, length).into_iter().map(|sample| (gain * sample).clamp(-1.0, 1.0)).collect();
    (format!("sound:{}", format!("{kind:?}").to_lowercase()), samples)
}

fn progress(total: usize, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {per_sec} {elapsed} of about {duration}").expect("a fixed template");
    ProgressBar::new(total as u64).with_style(style).with_prefix(what.to_owned())
}

/// Makes the shards of `total` records that are not there yet; `build` makes record `index`.
fn shards<R: store::Record>(
    folder: &Path,
    first: usize,
    total: usize,
    what: &str,
    build: impl Fn(usize) -> Result<(R, Vec<i16>), Error> + Sync,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let bar = progress(total, what);
    for (shard, start) in (0..total).step_by(SHARD).enumerate() {
        let range = start..(start + SHARD).min(total);
        if store::exists(folder, first + shard) {
            bar.inc(range.len() as u64);
            bar.reset_eta();
            continue;
        }
        let records: Vec<(R, Vec<i16>)> =
            range.into_par_iter().map(|index| build(index).inspect(|_| bar.inc(1))).collect::<Result<_, _>>()?;
        store::write(folder, first + shard, records)?;
    }
    bar.finish();
    Ok(())
}

/// The files that define the corpus; an earlier run's must agree with them.
fn begin(options: &Options, manifest: &Manifest, grammar: &str, synthesisers: &str) -> Result<(), Error> {
    let folder = &options.output;
    let path = folder.join("manifest.json");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let before: Manifest = serde_json::from_str(&text).map_err(|error| Error::Format {
            path: path.clone(),
            line: error.line(),
            message: error.to_string(),
        })?;
        let fields = [
            ("seed", before.seed == manifest.seed),
            ("questions", before.questions == manifest.questions),
            ("number of swapped questions", before.swapped == manifest.swapped),
            ("replies", before.replies == manifest.replies),
            ("number of recordings", before.recordings == manifest.recordings),
            (
                "list of recordings (metadata.csv)",
                before.recordings_sha256.is_empty() || before.recordings_sha256 == manifest.recordings_sha256,
            ),
            ("grammar", before.grammar_sha256 == manifest.grammar_sha256),
            ("synthesisers", before.synthesisers_sha256 == manifest.synthesisers_sha256),
        ];
        if let Some((field, _)) = fields.iter().find(|(_, same)| !same) {
            return Err(Error::corpus(
                folder,
                format!("holds a corpus made with another {field}: give the same settings to go on with it, or another --output"),
            ));
        }
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    write_file(&folder.join("grammar.toml"), grammar)?;
    write_file(&folder.join("synthesisers.toml"), synthesisers)
}

fn read_or(path: Option<&PathBuf>, default: &'static str) -> Result<(PathBuf, String), Error> {
    match path {
        Some(path) => Ok((path.clone(), std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?)),
        None => Ok((PathBuf::from("(built in)"), default.to_owned())),
    }
}

/// Makes a corpus, or goes on with one.
///
/// # Errors
/// Any [`Error`]; what was written before stays and is used by the next run.
pub fn make(options: &Options) -> Result<Manifest, Error> {
    let (grammar_path, grammar_text) = read_or(options.grammar.as_ref(), GRAMMAR)?;
    let (synthesisers_path, synthesisers_text) = read_or(options.synthesisers.as_ref(), SYNTHESISERS)?;
    let grammar = Grammar::parse(&grammar_path, &grammar_text)?;
    let synthesisers = Synthesisers::parse(&synthesisers_path, &synthesisers_text)?;
    let recordings: Vec<Recording> = options.recordings.as_deref().map(recordings::list).transpose()?.unwrap_or_default();

    let questions = plan_questions(&grammar, &synthesisers, options);
    let swapped = match options.swapped {
        0 => Vec::new(),
        _ => plan_swapped(&Grammar::parse_swapped(&grammar_path, &grammar_text)?, &questions, options),
    };
    let replies = plan_replies(&grammar, options);
    let mut words: BTreeSet<String> = grammar.words().clone();
    let texts = questions.iter().flat_map(|question| [&question.sampled.turn.question, &question.sampled.turn.reply]);
    let texts = texts.chain(&swapped).chain(replies.iter().map(|(_, text)| text)).chain(recordings.iter().map(|recording| &recording.text));
    words.extend(texts.flat_map(|text| text.split_whitespace()).map(str::to_owned));
    let lexicon = Lexicon::new(phonemise(&words)?);
    let vocabulary = Vocabulary::from_words(grammar.words());
    let mut manifest = Manifest {
        version: 1,
        complete: false,
        seed: options.seed,
        questions: questions.len(),
        swapped: swapped.len(),
        replies: replies.len(),
        recordings: recordings.len(),
        recordings_sha256: listed(&recordings),
        grammar_sha256: sha256(grammar_text.as_bytes()),
        synthesisers_sha256: sha256(synthesisers_text.as_bytes()),
        words: vocabulary.len(),
        phones: lexicon.inventory().len(),
        hours: BTreeMap::new(),
        sets: BTreeMap::new(),
        categories: BTreeMap::new(),
        voices: BTreeMap::new(),
    };
    let folder = &options.output;
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let _held = crate::lock::hold(folder).map_err(|source| Error::io(folder, source))?;
    begin(options, &manifest, &grammar_text, &synthesisers_text)?;
    write_file(&folder.join("vocabulary.txt"), &vocabulary.to_text())?;
    write_file(&folder.join("lexicon.json"), &json(lexicon.words()))?;
    write_file(&folder.join("phones.txt"), &(lexicon.inventory().join("\n") + "\n"))?;
    write_file(&folder.join("manifest.json"), &json(&manifest))?;

    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).map_err(|source| Error::io(&scratch, source))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.jobs.max(1))
        .build()
        .map_err(|error| Error::Synthesiser(format!("worker threads: {error}")))?;
    pool.install(|| {
        // the replies first: they are few, and the decoder can be trained while the questions are made
        let mut spoken_words: BTreeSet<&str> = replies.iter().flat_map(|(_, text)| text.split(' ')).collect();
        spoken_words.remove("");
        let alone: HashMap<&str, Vec<String>> =
            spoken_words.into_par_iter().map(|word| Ok((word, synthesisers.agent.phones(word)?))).collect::<Result<_, Error>>()?;
        shards(&folder.join("replies"), 0, replies.len(), "replies  ", |index| {
            let (split, text) = &replies[index];
            let spoken = synthesisers.agent.speak(text, &synthesis::scratch(&scratch))?;
            let words: Vec<(&str, &[String])> = text.split(' ').map(|word| (word, alone[word].as_slice())).collect();
            let times = align::words(&words, &spoken.phones, spoken.samples.len() as f64 / f64::from(SAMPLE_RATE));
            Ok((Reply::new(format!("r{index:06}"), *split, text.clone(), times), wave::to_i16(&spoken.samples)))
        })?;
        shards(&folder.join("questions"), 0, questions.len(), "questions", |index| {
            let Question { split, set, sampled } = &questions[index];
            let mut rng = generator(options.seed, "voice", index);
            let text = sampled.turn.question.clone();
            let (voice, samples) = if text.is_empty() {
                no_speech(&mut rng)
            } else {
                let voice = match split {
                    Split::Train => synthesisers.draw_for_training(&mut rng),
                    _ => synthesisers.draw(&mut rng, set),
                };
                (voice.name(), voice.speak(&text, &synthesis::scratch(&scratch))?)
            };
            let mut record =
                Utterance::new(format!("q{index:06}"), *split, set, sampled.category.clone(), voice, Some(sampled.turn.clone()), text);
            record.history.clone_from(&sampled.history);
            Ok((record, wave::to_i16(&samples)))
        })?;
        let after = questions.len().div_ceil(SHARD);
        shards(&folder.join("questions"), after, swapped.len(), "swapped  ", |index| {
            let voice = synthesisers.draw_for_training(&mut generator(options.seed, "swapped voice", index));
            let samples = voice.speak(&swapped[index], &synthesis::scratch(&scratch))?;
            let id = format!("s{index:06}");
            let text = swapped[index].clone();
            let record = Utterance::new(id, Split::Train, "trained", "transcribe".to_owned(), voice.name(), None, text);
            Ok((record, wave::to_i16(&samples)))
        })?;
        shards(&folder.join("questions"), after + swapped.len().div_ceil(SHARD), recordings.len(), "recorded ", |index| {
            let recording = &recordings[index];
            let samples = wave::read(&recording.wav, 1.0)?;
            let record = Utterance::new(
                recording.id.clone(),
                recording.split,
                "recordings",
                "transcribe".to_owned(),
                "recordings".to_owned(),
                None,
                recording.text.clone(),
            );
            Ok((record, wave::to_i16(&samples)))
        })
    })?;
    std::fs::remove_dir_all(&scratch).map_err(|source| Error::io(&scratch, source))?;
    count(&mut manifest, &Corpus::open(folder)?);
    write_file(&folder.join("manifest.json"), &json(&manifest))?;
    Ok(manifest)
}

/// Fills in what there is.
fn count(manifest: &mut Manifest, corpus: &Corpus) {
    let hours = |samples: u64| samples as f64 / f64::from(SAMPLE_RATE) / 3600.0;
    for split in [Split::Train, Split::Dev, Split::Test] {
        let name = format!("{split:?}").to_lowercase();
        for question in corpus.questions(split) {
            let set = format!("{name}/{}", question.set);
            *manifest.hours.entry(set.clone()).or_default() += hours(question.samples);
            *manifest.sets.entry(set).or_default() += 1;
            *manifest.categories.entry(name.clone()).or_default().entry(question.category.clone()).or_default() += 1;
            *manifest.voices.entry(name.clone()).or_default().entry(question.voice.clone()).or_default() += 1;
        }
        let replies = corpus.replies(split).iter().map(|reply| hours(reply.samples)).sum::<f64>();
        *manifest.hours.entry(format!("{name}/replies")).or_default() += replies;
    }
    manifest.complete = true;
}

#[cfg(test)]
mod tests;
