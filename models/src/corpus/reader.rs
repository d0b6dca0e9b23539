//! Reading a corpus folder: records in memory, sound by `pread` when asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::align::Word;
use super::grammar::{Split, Turn};
use super::lexicon::Lexicon;
use super::store::{Record, Shards};
use super::vocabulary::Vocabulary;
use super::{Error, Grammar};

/// A spoken question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Utterance {
    pub id: String,
    pub split: Split,
    /// What is new about the voice: `trained`, `timbre`, `accent` or `synthesiser` (`recordings` for a person's own).
    pub set: String,
    pub category: String,
    pub voice: String,
    /// What is said; empty for silence, noise and music.
    pub text: String,
    /// The exchange; `None` for recordings, which have a transcript and no answer.
    pub dialogue: Option<Turn>,
    /// The turns before, oldest first.
    #[serde(default)]
    pub history: Vec<Turn>,
    pub offset: u64,
    pub samples: u64,
    #[serde(skip)]
    shard: u32,
}

/// A reply in the agent's voice, with the times of its words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub id: String,
    pub split: Split,
    pub text: String,
    /// A partition of the whole sound.
    pub words: Vec<Word>,
    pub offset: u64,
    pub samples: u64,
    #[serde(skip)]
    shard: u32,
}

impl Utterance {
    /// A record not yet stored.
    pub(super) fn new(id: String, split: Split, set: &str, category: String, voice: String, dialogue: Option<Turn>, text: String) -> Self {
        Self { id, split, set: set.to_owned(), category, voice, text, dialogue, history: Vec::new(), offset: 0, samples: 0, shard: 0 }
    }
}

impl Reply {
    /// A record not yet stored.
    pub(super) fn new(id: String, split: Split, text: String, words: Vec<Word>) -> Self {
        Self { id, split, text, words, offset: 0, samples: 0, shard: 0 }
    }
}

macro_rules! record {
    ($type:ty) => {
        impl Record for $type {
            fn place(&mut self, offset: u64, samples: u64) {
                (self.offset, self.samples) = (offset, samples);
            }
            fn location(&self) -> (u64, u64) {
                (self.offset, self.samples)
            }
            fn set_shard(&mut self, shard: u32) {
                self.shard = shard;
            }
        }
    };
}
record!(Utterance);
record!(Reply);

/// A corpus folder, open for reading. Safe to share between threads.
#[derive(Debug)]
pub struct Corpus {
    folder: PathBuf,
    questions: Vec<Utterance>,
    question_shards: Shards,
    replies: Vec<Reply>,
    reply_shards: Shards,
    vocabulary: Vocabulary,
    lexicon: Lexicon,
}

fn of_split<T>(records: &[T], split: Split, of: impl Fn(&T) -> Split) -> &[T] {
    let start = records.partition_point(|record| of(record) < split);
    let end = records.partition_point(|record| of(record) <= split);
    &records[start..end]
}

impl Corpus {
    /// Opens a corpus; shards still to be written (by a run going on) are not seen.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Corpus`] with the path of what is missing or wrong.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        if !folder.join("manifest.json").exists() {
            return Err(Error::corpus(folder, "no manifest.json here: not a corpus folder; make one with `sa-align corpus --output DIR`"));
        }
        let vocabulary = Vocabulary::load(&folder.join("vocabulary.txt"))?;
        let path = folder.join("lexicon.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let words: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).map_err(|error| Error::Format {
            path: path.clone(),
            line: error.line(),
            message: error.to_string(),
        })?;
        let (question_shards, mut questions) = Shards::open::<Utterance>(&folder.join("questions"))?;
        let (reply_shards, mut replies) = Shards::open::<Reply>(&folder.join("replies"))?;
        questions.sort_by_key(|record| record.split); // stable: within a split in the order of ids
        replies.sort_by_key(|record| record.split);
        Ok(Self { folder: folder.to_owned(), questions, question_shards, replies, reply_shards, vocabulary, lexicon: Lexicon::new(words) })
    }

    /// The spoken questions of a split.
    pub fn questions(&self, split: Split) -> &[Utterance] {
        of_split(&self.questions, split, |record| record.split)
    }

    /// The sound of a question: 16 kHz mono, ±1, clean.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn audio(&self, utterance: &Utterance) -> Result<Vec<f32>, Error> {
        self.question_shards.samples(utterance.shard, utterance.offset, utterance.samples)
    }

    /// The agent's spoken replies of a split.
    pub fn replies(&self, split: Split) -> &[Reply] {
        of_split(&self.replies, split, |record| record.split)
    }

    /// The sound of a reply: 16 kHz mono, ±1.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reply_audio(&self, reply: &Reply) -> Result<Vec<f32>, Error> {
        self.reply_shards.samples(reply.shard, reply.offset, reply.samples)
    }

    /// The text tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The phones of all words.
    pub fn lexicon(&self) -> &Lexicon {
        &self.lexicon
    }

    /// CTC targets of a text: phone ids from 1 (0 is the blank).
    pub fn phones_of(&self, text: &str) -> Vec<u16> {
        self.lexicon.phones_of(text)
    }

    /// The grammar that the corpus was made from.
    ///
    /// # Errors
    /// As [`Grammar::load`].
    pub fn grammar(&self) -> Result<Grammar, Error> {
        Grammar::load(&self.folder.join("grammar.toml"))
    }
}
