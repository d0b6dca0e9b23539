//! Units of a whole corpus, computed once, for the decoder and the language model.
//!
//! ```text
//! UNITS/units.json             version, k, sha256 of the checkpoint's weights
//! UNITS/questions/0000.u16     units, u16 little endian, one utterance after the other
//! UNITS/questions/0000.jsonl   {"id": "q000123", "offset": UNITS, "count": UNITS}; written last, so a shard is there or not
//! UNITS/questions-1/…          training questions augmented anew, copy 1; questions-2/… and so on
//! UNITS/replies/…
//! ```
//! An utterance of N samples has ceil(N / 640) units. A run that is stopped, or a corpus that grows, goes on with what is missing.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::config::{TokenizerConfig, UNIT_SAMPLES};
use super::data::Batch;
use super::losses::mel_tensor;
use super::network::Tokenizer;
use crate::audio::{LogMel, SAMPLE_RATE};
use crate::corpus::{self, Augment, Corpus, Crowd, Split};
use crate::train::checkpoint::{CheckpointError, write_atomically};
use crate::train::step_rng;

/// Version of the folder of units. 2: silence follows all audio until its last units are out.
const MANIFEST_VERSION: u32 = 2;
/// Utterances of one shard.
const SHARD: usize = 1_000;
/// Padded seconds of one batch.
const BATCH_SECONDS: f64 = 100.0;

/// Why units could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnitsError {
    /// A file is missing or the disk is full.
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// A file is damaged: remove the folder and encode again.
    #[error("{path} is damaged: {message}")]
    Format { path: PathBuf, message: String },
    /// Encode into another folder, or remove this one.
    #[error("{path} holds the units of another tokenizer")]
    OtherTokenizer { path: PathBuf },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Corpus(#[from] corpus::Error),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    units: usize,
    checkpoint_sha256: String,
    /// Units by which replies are moved.
    #[serde(default)]
    lag: usize,
    /// Augmented copies that the last call asked for; there may be folders of more. None before the first call is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copies: Option<usize>,
}

impl Manifest {
    fn write(&self, folder: &Path) -> Result<(), UnitsError> {
        Ok(write_atomically(&folder.join("units.json"), &serde_json::to_vec_pretty(self).expect("a plain struct is JSON"))?)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    id: String,
    offset: usize,
    count: usize,
}

/// Units of a batch of utterances, each `ceil(samples / 640)` long.
pub fn encode_batch(model: &Tokenizer, config: &TokenizerConfig, front_end: &LogMel, audio: &[Vec<f32>], device: &Device) -> Vec<Vec<u16>> {
    let batch = Batch::new(front_end, audio, None, Vec::new(), config.chunk);
    let features = model.features(mel_tensor(&batch, &batch.mel, device)).reshape([batch.size * batch.frames, config.width]);
    let units: Vec<u16> = model.quantise(features).into_data().iter::<i64>().map(|unit| unit as u16).collect();
    units.chunks(batch.frames).zip(&batch.lengths).map(|(units, length)| units[..*length].to_vec()).collect()
}

/// What to encode besides the clean corpus, and how.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Further encodings of each training question, augmented.
    pub copies: usize,
    pub seed: u64,
    pub threads: usize,
}

/// Encodes what the folder `output` does not hold yet; `progress` hears of utterances done and in all.
pub fn encode_corpus(
    checkpoint: &Path,
    corpus: &Corpus,
    output: &Path,
    options: Options,
    device: &Device,
    progress: impl Fn(usize, usize) + Sync,
) -> Result<(), UnitsError> {
    let config: TokenizerConfig = crate::train::checkpoint::load_config(checkpoint)?;
    let model = crate::train::checkpoint::load_weights(checkpoint, config.init(device))?;
    let path = checkpoint.join("model.safetensors");
    let weights = fs::read(&path).map_err(|source| UnitsError::Io { what: "read", path, source })?;
    let hash = crate::folder::sha256(&weights);
    let manifest = Manifest { version: MANIFEST_VERSION, units: config.units, checkpoint_sha256: hash, lag: config.lag, copies: None };
    let at = |source, what| UnitsError::Io { what, path: output.to_owned(), source };
    fs::create_dir_all(output).map_err(|source| at(source, "make"))?;
    let _held = crate::lock::hold(output).map_err(|source| at(source, "use"))?;
    let path = output.join("units.json");
    if path.exists() {
        if (Manifest { copies: None, ..read_json(&path)? }) != manifest {
            return Err(UnitsError::OtherTokenizer { path: output.to_owned() });
        }
    } else {
        manifest.write(output)?;
    }

    let encoder = Encoder { model, config, device: device.clone(), threads: options.threads.max(1), progress: &progress };
    // The encoding hears `lag` units of silence behind the end, so that nothing loses its last phones. What is heard keeps its late
    // beginning, as it comes on the device; what is spoken must not wait for what is heard late, so that each unit of the agent is
    // moved to where its sound is.
    let lag = encoder.config.lag;
    let late = move |mut audio: Vec<f32>| {
        audio.extend(std::iter::repeat_n(0.0, lag * UNIT_SAMPLES));
        audio
    };
    let questions: Vec<Item> = [Split::Train, Split::Dev, Split::Test]
        .into_iter()
        .flat_map(|split| corpus.questions(split))
        .map(|q| Item { id: &q.id, samples: q.samples as usize, skip: 0, read: Box::new(move || corpus.audio(q).map(late)) })
        .collect();
    let replies: Vec<Item> = [Split::Train, Split::Dev, Split::Test]
        .into_iter()
        .flat_map(|split| corpus.replies(split))
        .map(|r| Item { id: &r.id, samples: r.samples as usize, skip: lag, read: Box::new(move || corpus.reply_audio(r).map(late)) })
        .collect();
    encoder.encode(replies, &output.join("replies"))?;
    encoder.encode(questions, &output.join("questions"))?;
    let train = corpus.questions(Split::Train);
    let crowd = if options.copies > 0 {
        Crowd::spread(train.len()).map(|i| corpus.audio(&train[i])).collect::<Result<Vec<_>, _>>()?
    } else {
        Vec::new()
    };
    let crowd = Crowd::new(crowd);
    for copy in 1..=options.copies {
        // The clean encoding stands beside them: every second one, the first included, is noisier than most, and in every third one the
        // noise was there before and goes on. Who never heard that writes words down for it.
        let augment = if copy % 2 == 1 { Augment::harsh() } else { Augment::default() };
        let augment = &Augment { lingers: copy % 3 == 0, ..augment }.among(crowd.clone());
        let augmented = train.iter().map(|q| {
            let read = move || {
                let mut audio = corpus.audio(q)?;
                augment.apply(&mut step_rng(options.seed, id_hash(&q.id), copy as u64), &mut audio);
                Ok(late(audio))
            };
            Item { id: &q.id, samples: q.samples as usize, skip: 0, read: Box::new(read) }
        });
        encoder.encode(augmented.collect(), &output.join(format!("questions-{copy}")))?;
    }
    Manifest { copies: Some(options.copies), ..manifest }.write(output)
}

/// FNV-1a: the same on every machine and in every build.
fn id_hash(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Item<'a> {
    id: &'a str,
    samples: usize,
    /// Units at the start that are left out.
    skip: usize,
    read: Box<dyn Fn() -> Result<Vec<f32>, corpus::Error> + Sync + Send + 'a>,
}

struct Encoder<'a> {
    model: Tokenizer,
    config: TokenizerConfig,
    device: Device,
    threads: usize,
    progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl Encoder<'_> {
    /// Writes the items that the shards of `folder` do not hold yet into new shards.
    fn encode(&self, mut items: Vec<Item>, folder: &Path) -> Result<(), UnitsError> {
        fs::create_dir_all(folder).map_err(|source| UnitsError::Io { what: "make", path: folder.to_owned(), source })?;
        let (known, next) = Store::open(folder)?;
        let total = items.len();
        items.retain(|item| !known.entries.contains_key(item.id));
        let mut done = total - items.len();
        for (number, shard) in items.chunks(SHARD).enumerate() {
            let units = self.shard(shard)?;
            let (mut bytes, mut index, mut offset) = (Vec::new(), Vec::new(), 0);
            for (item, units) in shard.iter().zip(units) {
                let units = &units[item.skip..];
                bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
                let entry = Entry { id: item.id.to_owned(), offset, count: units.len() };
                serde_json::to_writer(&mut index, &entry).expect("a plain struct is JSON");
                index.push(b'\n');
                offset += units.len();
            }
            write_atomically(&folder.join(format!("{:04}.u16", next + number)), &bytes)?;
            write_atomically(&folder.join(format!("{:04}.jsonl", next + number)), &index)?;
            done += shard.len();
            (self.progress)(done, total);
        }
        Ok(())
    }

    /// Units of the items of a shard: batches of similar length, shared among threads.
    fn shard(&self, items: &[Item]) -> Result<Vec<Vec<u16>>, UnitsError> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|i| items[*i].samples);
        let limit = (BATCH_SECONDS * SAMPLE_RATE as f64) as usize;
        let mut batches: Vec<Vec<usize>> = vec![Vec::new()];
        for i in order {
            let batch = batches.last_mut().expect("never empty");
            if !batch.is_empty() && (batch.len() + 1) * items[i].samples > limit {
                batches.push(vec![i]);
            } else {
                batch.push(i);
            }
        }
        let units = Mutex::new(vec![Vec::new(); items.len()]);
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                let model = self.model.clone();
                let (units, next, failure, batches) = (&units, &next, &failure, &batches);
                scope.spawn(move || {
                    let front_end = LogMel::default();
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match batch.iter().map(|i| (items[*i].read)()).collect::<Result<Vec<_>, _>>() {
                            Ok(audio) => {
                                let encoded = encode_batch(&model, &self.config, &front_end, &audio, &self.device);
                                let mut units = units.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                                batch.iter().zip(encoded).for_each(|(i, encoded)| units[*i] = encoded);
                            }
                            Err(error) => {
                                *failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
                                return;
                            }
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(error) => Err(error.into()),
            None => Ok(units.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())),
        }
    }
}

/// The utterances of one folder of shards.
#[derive(Debug, Default)]
struct Store {
    units: Vec<u16>,
    /// Start and count in `units`.
    entries: HashMap<String, (usize, usize)>,
}

impl Store {
    /// Reads all shards; also says which number the next shard gets.
    fn open(folder: &Path) -> Result<(Self, usize), UnitsError> {
        let mut store = Self::default();
        for shard in 0.. {
            let (index, data) = (folder.join(format!("{shard:04}.jsonl")), folder.join(format!("{shard:04}.u16")));
            if !index.exists() {
                return Ok((store, shard));
            }
            let read = |path: &Path| fs::read(path).map_err(|source| UnitsError::Io { what: "read", path: path.to_owned(), source });
            let (bytes, text) = (read(&data)?, read(&index)?);
            let base = store.units.len();
            store.units.extend(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let entry: Entry =
                    serde_json::from_slice(line).map_err(|error| UnitsError::Format { path: index.clone(), message: error.to_string() })?;
                if base + entry.offset + entry.count > store.units.len() {
                    return Err(UnitsError::Format { path: data, message: format!("it ends before the units of {}", entry.id) });
                }
                store.entries.insert(entry.id, (base + entry.offset, entry.count));
            }
        }
        unreachable!("the loop has no end but its return")
    }

    fn get(&self, id: &str) -> Option<&[u16]> {
        self.entries.get(id).map(|(start, count)| &self.units[*start..start + count])
    }
}

/// The units of a corpus, in memory.
#[derive(Debug)]
pub struct UnitStore {
    units: usize,
    /// Clean first, then the augmented copies.
    questions: Vec<Store>,
    replies: Store,
}

impl UnitStore {
    /// Reads a folder that [`encode_corpus`] wrote.
    pub fn open(folder: &Path) -> Result<Self, UnitsError> {
        let manifest: Manifest = read_json(&folder.join("units.json"))?;
        let mut questions = vec![Store::open(&folder.join("questions"))?.0];
        let wanted = manifest.copies.unwrap_or(usize::MAX);
        while questions.len() <= wanted && folder.join(format!("questions-{}", questions.len())).exists() {
            questions.push(Store::open(&folder.join(format!("questions-{}", questions.len())))?.0);
        }
        Ok(Self { units: manifest.units, questions, replies: Store::open(&folder.join("replies"))?.0 })
    }

    /// Number of units, k.
    pub fn k(&self) -> usize {
        self.units
    }

    /// Augmented copies of the training questions.
    pub fn copies(&self) -> usize {
        self.questions.len() - 1
    }

    /// Units of a question as it was recorded.
    pub fn question(&self, id: &str) -> Option<&[u16]> {
        self.question_copy(id, 0)
    }

    /// Units of a question: copy 0 is clean, `1..=copies()` are augmented (training questions only).
    pub fn question_copy(&self, id: &str, copy: usize) -> Option<&[u16]> {
        self.questions.get(copy)?.get(id)
    }

    /// Units of one of the agent's replies.
    pub fn reply(&self, id: &str) -> Option<&[u16]> {
        self.replies.get(id)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, UnitsError> {
    let bytes = fs::read(path).map_err(|source| UnitsError::Io { what: "read", path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| UnitsError::Format { path: path.to_owned(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_goes_on_where_it_stopped_and_reads_back() {
        let device = Device::flex();
        let config = TokenizerConfig {
            width: 32,
            layers: 1,
            layer: 1,
            heads: 2,
            feed_forward: 64,
            phones: 6,
            units: 12,
            ..TokenizerConfig::default()
        };
        let (done, folder) = (AtomicUsize::new(0), tempfile::tempdir().expect("a folder"));
        let progress = |_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        };
        let encoder = Encoder { model: config.init(&device), config, device, threads: 2, progress: &progress };
        let items = |count: usize| -> Vec<Item<'static>> {
            let ids = ["a", "b", "c", "d"];
            (0..count)
                .map(|i| Item {
                    id: ids[i],
                    samples: 1000 * (i + 1),
                    skip: 0,
                    read: Box::new(move || Ok(vec![0.1 * i as f32; 1000 * (i + 1)])),
                })
                .collect()
        };
        encoder.encode(items(2), folder.path()).expect("encodes");
        encoder.encode(items(4), folder.path()).expect("encodes");
        encoder.encode(items(4), folder.path()).expect("encodes");
        assert_eq!(done.load(Ordering::Relaxed), 2);
        let (store, next) = Store::open(folder.path()).expect("reads");
        assert_eq!((next, store.entries.len()), (2, 4));
        assert_eq!(store.get("d").map(<[u16]>::len), Some(7));
        fs::write(folder.path().join("0001.u16"), [0; 4]).expect("writes");
        assert!(matches!(Store::open(folder.path()), Err(UnitsError::Format { .. })));
    }

    #[test]
    fn copies_that_are_no_longer_asked_for_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["questions", "questions-1", "questions-2", "replies"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        let open = |copies| {
            let manifest = Manifest { version: MANIFEST_VERSION, units: 12, checkpoint_sha256: String::new(), lag: 0, copies };
            manifest.write(folder.path()).expect("written");
            UnitStore::open(folder.path()).expect("opens").copies()
        };
        assert_eq!([None, Some(0), Some(1), Some(2)].map(open), [2, 0, 1, 2]);
    }
}
