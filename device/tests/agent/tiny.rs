//! A bundle that is as small as the contract allows.
//!
//! The tokenizer and the decoder have random weights. The language model follows a script: after each token it writes
//! the one that the script names, and after a group the one for "after a group"; attention over the cache disturbs it a
//! little and decides the units.

use std::path::Path;

use sa_device::bundle::{Bundle, BundleError, BundleWriter, FileEntry, Layout, Manifest, StageEntry, StageName, Stages, TensorEntry};
use sa_device::vocabulary::{SPECIALS, Vocabulary};

use super::onnx::{Attribute, Graph};

pub const K: usize = 12;
pub const CONTEXT: usize = 160;
const WIDTH: usize = 16;
const HEAD: usize = 8;
const BINS: usize = 321;

const WORDS: [&str; 14] = ["calc", "five", "four", "is", "kitchen", "light", "nine", "okay", "on", "plus", "that", "three", "timer", "two"];

/// What the tiny agent is like.
#[derive(Clone)]
pub struct Tiny {
    pub group: usize,
    pub transcript: bool,
    /// What is written after each token; `group` stands for any group. What is not named is random.
    pub script: &'static [(&'static str, &'static str)],
    pub seed: u64,
    /// Units by which the tokenizer says that it is late.
    pub late: usize,
}

/// Hears "light on", calls `calc two plus three`, answers "okay".
pub const CALCULATES: &[(&str, &str)] = &[
    ("<transcribe>", "light"),
    ("light", "on"),
    ("on", "<agent>"),
    ("<agent>", "<call>"),
    ("<call>", "calc"),
    ("calc", "two"),
    ("two", "plus"),
    ("plus", "three"),
    ("three", "<result>"),
    ("five", "<speak>"),
    ("<speak>", "okay"),
    ("<text>", "okay"),
    ("group", "<end>"),
    ("okay", "<end>"),
];

impl Default for Tiny {
    fn default() -> Self {
        Self { group: 4, transcript: true, script: CALCULATES, seed: 7, late: 0 }
    }
}

impl Tiny {
    /// Writes the bundle.
    pub fn write(&self, dir: &Path) -> Result<Bundle, BundleError> {
        let vocabulary = Vocabulary::from_words(WORDS).expect("in order");
        let writer = BundleWriter::create(dir)?;
        writer.add("vocabulary.txt", vocabulary.to_text().as_bytes())?;
        let tokenizer = self.tokenizer();
        let lm = self.lm(&vocabulary);
        let head = self.head();
        let decoder = self.decoder();
        for (name, (graph, _)) in StageName::ALL.into_iter().zip([&tokenizer, &lm, &head, &decoder]) {
            writer.add(&format!("{name}.onnx"), graph)?;
        }
        writer.add_states("decoder.f32", (0..2 * 6).map(|i| i as f32 / 12.0))?;
        let mut stages = Stages { tokenizer: Some(tokenizer.1), lm: Some(lm.1), head: Some(head.1), decoder: Some(decoder.1) };
        stages.decoder.as_mut().expect("just put there").initial = Some(FileEntry::named("decoder.f32"));
        writer.finish(Manifest {
            format_version: 1,
            name: "tiny".into(),
            created_by: "tests".into(),
            source_checkpoint: "none".into(),
            sample_rate: 16_000,
            unit_rate: 25,
            k: K,
            group: self.group,
            layout: Layout::InterleavedWords,
            transcript: self.transcript,
            minimum_memory_mb: 50,
            licence: "MIT OR Apache-2.0".into(),
            provenance: "random weights".into(),
            vocabulary: Some(FileEntry::named("vocabulary.txt")),
            unit_distances: None,
            special_tokens: SPECIALS.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect(),
            stage: stages,
            measured: toml::Table::new(),
        })
    }

    /// One convolution over a chunk and 240 samples before it, then the best of k.
    fn tokenizer(&self) -> (Vec<u8>, StageEntry) {
        let mut g = Graph::new(self.seed);
        let audio = g.input("audio", &[1, 5120], false);
        let past = g.input("state.audio", &[1, 240], false);
        let all = g.concat(&[&past, &audio], 1);
        let next = g.slice(&all, 1, 5120, 5360);
        g.output("state.audio.next", &next, &[1, 240], false);
        let wave = g.reshape(&all, &[1, 1, 5360]);
        let weight = g.weight(&[WIDTH, 1, 880]);
        let strides = [("strides", Attribute::Ints(vec![640])), ("kernel_shape", Attribute::Ints(vec![880]))];
        let features = g.op("Conv", &[&wave, &weight], &strides);
        let features = g.op("Transpose", &[&features], &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
        let centroids = g.weight(&[WIDTH, K]);
        let scores = g.op("MatMul", &[&features, &centroids], &[]);
        let units = g.op("ArgMax", &[&scores], &[("axis", Attribute::Int(2)), ("keepdims", Attribute::Int(0))]);
        g.output("units", &units, &[1, 8], true);
        let inputs = vec![TensorEntry::f32("audio", &[1, 5120]), TensorEntry::f32("state.audio", &[1, 240])];
        let outputs = vec![TensorEntry::i64("units", &[1, 8]), TensorEntry::f32("state.audio.next", &[1, 240])];
        (g.encode("tokenizer"), entry("tokenizer", 5120, 320.0 + 40.0 * self.late as f64, inputs, outputs))
    }

    fn lm(&self, vocabulary: &Vocabulary) -> (Vec<u8>, StageEntry) {
        let (v, c) = (vocabulary.len(), CONTEXT);
        let mut g = Graph::new(self.seed + 1);
        let token = g.input("token", &[1], true);
        let units = g.input("units", &[1, self.group], true);
        let is_group = g.input("is_group", &[1], false);
        let position = g.input("position", &[1], true);
        let keys = g.input("cache.key.0", &[1, c, HEAD], false);
        let values = g.input("cache.value.0", &[1, c, HEAD], false);

        // x = the token's embedding, or the group's
        let table = g.weight(&[v, WIDTH]);
        let as_token = g.op("Gather", &[&table, &token], &[]);
        let table = g.weight(&[K + 1, 4]);
        let as_group = g.op("Gather", &[&table, &units], &[]);
        let as_group = g.reshape(&as_group, &[1, 4 * self.group as i64]);
        let adaptor = g.weight(&[4 * self.group, WIDTH]);
        let as_group = g.op("MatMul", &[&as_group, &adaptor], &[]);
        let one = g.f32(&[1], &[1.0]);
        let is_token = g.op("Sub", &[&one, &is_group], &[]);
        let as_token = g.op("Mul", &[&as_token, &is_token], &[]);
        let as_group = g.op("Mul", &[&as_group, &is_group], &[]);
        let x = g.op("Add", &[&as_token, &as_group], &[]);

        // one head of attention over the cache and the position itself
        let project = |g: &mut Graph| {
            let weight = g.weight(&[WIDTH, HEAD]);
            let y = g.op("MatMul", &[&x, &weight], &[]);
            g.reshape(&y, &[1, 1, HEAD as i64])
        };
        let (query, key, value) = (project(&mut g), project(&mut g), project(&mut g));
        let across = g.op("Transpose", &[&keys], &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
        let scores = g.op("MatMul", &[&query, &across], &[]);
        let rows = g.i64(&(0..c as i64).collect::<Vec<_>>());
        let known = g.op("Less", &[&rows, &position], &[]);
        let minus = g.f32(&[1], &[-1e9]);
        let scores = g.op("Where", &[&known, &scores, &minus], &[]);
        let own = g.op("Mul", &[&query, &key], &[]);
        let axes = g.i64(&[2]);
        let own = g.op("ReduceSum", &[&own, &axes], &[("keepdims", Attribute::Int(1))]);
        let scores = g.concat(&[&scores, &own], 2);
        let weights = g.op("Softmax", &[&scores], &[("axis", Attribute::Int(2))]);
        let before = g.slice(&weights, 2, 0, c as i64);
        let before = g.op("MatMul", &[&before, &values], &[]);
        let now = g.slice(&weights, 2, c as i64, c as i64 + 1);
        let now = g.op("Mul", &[&now, &value], &[]);
        let attended = g.op("Add", &[&before, &now], &[]);
        let attended = g.reshape(&attended, &[1, HEAD as i64]);
        let out = g.weight(&[HEAD, WIDTH]);
        let attended = g.op("MatMul", &[&attended, &out], &[]);
        let hidden = g.op("Add", &[&x, &attended], &[]);

        // the script, and a little of the hidden state
        let id = |token: &str| vocabulary.id(token).unwrap_or_else(|| panic!("{token} is not in the vocabulary")) as usize;
        let (mut after_token, mut after_group) = (vec![0.0; v * v], vec![0.0; v]);
        for (from, to) in self.script {
            match *from {
                "group" => after_group[id(to)] = 100.0,
                from => after_token[id(from) * v + id(to)] = 100.0,
            }
        }
        let table = g.f32(&[v, v], &after_token);
        let scripted = g.op("Gather", &[&table, &token], &[]);
        let scripted = g.op("Mul", &[&scripted, &is_token], &[]);
        let row = g.f32(&[1, v], &after_group);
        let row = g.op("Mul", &[&row, &is_group], &[]);
        let scripted = g.op("Add", &[&scripted, &row], &[]);
        let weight = g.weight(&[WIDTH, v]);
        let logits = g.op("MatMul", &[&hidden, &weight], &[]);
        let logits = g.op("Add", &[&logits, &scripted], &[]);

        g.output("logits", &logits, &[1, v], false);
        g.output("hidden", &hidden, &[1, WIDTH], false);
        g.output("cache.key.0.new", &key, &[1, 1, HEAD], false);
        g.output("cache.value.0.new", &value, &[1, 1, HEAD], false);
        let inputs = vec![
            TensorEntry::i64("token", &[1]),
            TensorEntry::i64("units", &[1, self.group]),
            TensorEntry::f32("is_group", &[1]),
            TensorEntry::i64("position", &[1]),
            TensorEntry::f32("cache.key.0", &[1, c, HEAD]),
            TensorEntry::f32("cache.value.0", &[1, c, HEAD]),
        ];
        let outputs = vec![
            TensorEntry::f32("logits", &[1, v]),
            TensorEntry::f32("hidden", &[1, WIDTH]),
            TensorEntry::f32("cache.key.0.new", &[1, 1, HEAD]),
            TensorEntry::f32("cache.value.0.new", &[1, 1, HEAD]),
        ];
        (g.encode("lm"), entry("lm", 1, 0.0, inputs, outputs))
    }

    fn head(&self) -> (Vec<u8>, StageEntry) {
        let mut g = Graph::new(self.seed + 2);
        let hidden = g.input("hidden", &[1, WIDTH], false);
        let width = self.group * (K + 1);
        let weight = g.weight(&[WIDTH, width]);
        let logits = g.op("MatMul", &[&hidden, &weight], &[]);
        let logits = g.reshape(&logits, &[1, self.group as i64, K as i64 + 1]);
        g.output("unit_logits", &logits, &[1, self.group, K + 1], false);
        let inputs = vec![TensorEntry::f32("hidden", &[1, WIDTH])];
        let outputs = vec![TensorEntry::f32("unit_logits", &[1, self.group, K + 1])];
        (g.encode("head"), entry("head", 1, 0.0, inputs, outputs))
    }

    /// Embedding, a convolution over three units whose last two are ahead, a linear map to frames.
    fn decoder(&self) -> (Vec<u8>, StageEntry) {
        let mut g = Graph::new(self.seed + 3);
        let units = g.input("units", &[1, 2], true);
        let past = g.input("state.units", &[1, 2, 6], false);
        let table = g.weight(&[K + 1, 6]);
        let now = g.op("Gather", &[&table, &units], &[]);
        let all = g.concat(&[&past, &now], 1);
        let next = g.slice(&all, 1, 2, 4);
        g.output("state.units.next", &next, &[1, 2, 6], false);
        let windows: Vec<String> = (0..3).map(|i| g.slice(&all, 1, i, i + 2)).collect();
        let windows = g.concat(&[&windows[0], &windows[1], &windows[2]], 2);
        let weight = g.weight(&[18, WIDTH]);
        let features = g.op("MatMul", &[&windows, &weight], &[]);
        let features = g.op("Tanh", &[&features], &[]);
        let weight = g.weight(&[WIDTH, 4 * 2 * BINS]);
        let frames = g.op("MatMul", &[&features, &weight], &[]);
        let frames = g.reshape(&frames, &[1, 8, 2 * BINS as i64]);
        let magnitude = g.slice(&frames, 2, 0, BINS as i64);
        let phase = g.slice(&frames, 2, BINS as i64, 2 * BINS as i64);
        g.output("log_magnitude", &magnitude, &[1, 8, BINS], false);
        g.output("phase", &phase, &[1, 8, BINS], false);
        let inputs = vec![TensorEntry::i64("units", &[1, 2]), TensorEntry::f32("state.units", &[1, 2, 6])];
        let outputs = vec![
            TensorEntry::f32("state.units.next", &[1, 2, 6]),
            TensorEntry::f32("log_magnitude", &[1, 8, BINS]),
            TensorEntry::f32("phase", &[1, 8, BINS]),
        ];
        (g.encode("decoder"), entry("decoder", 2, 80.0, inputs, outputs))
    }
}

fn entry(stage: &str, chunk: usize, latency_ms: f64, inputs: Vec<TensorEntry>, outputs: Vec<TensorEntry>) -> StageEntry {
    let graph = FileEntry::named(format!("{stage}.onnx"));
    StageEntry { graph, precision: "fp32".into(), chunk, latency_ms, initial: None, inputs, outputs }
}

/// A bundle in a temporary folder.
pub fn bundle(tiny: &Tiny) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bundle = tiny.write(&dir.path().join("bundle")).expect("fits together");
    (dir, bundle)
}

/// Something to hear: seeded noise.
pub fn noise(count: usize) -> Vec<f32> {
    let mut g = Graph::new(99);
    (0..count).map(|_| 0.1 * g.random()).collect()
}

/// Writes 16 kHz mono.
pub fn wav(path: &Path, samples: &[f32]) {
    let mut sink = sa_device::audio::WavSink::create(path).expect("writable");
    sink.write(samples).expect("writable");
    sink.finish().expect("writable");
}
