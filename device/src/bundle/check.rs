//! Do the declared shapes fit k, G, the rates, the vocabulary and each other?

use std::collections::HashMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::{
    BundleError, DECODER_MAX_DELAY, DType, FORMAT_VERSION, Manifest, StageEntry, StageName, Stages, TOKENIZER_MAX_DELAY, TensorEntry,
};
use crate::vocabulary::{SPECIALS, Vocabulary};

/// Most elements of a tensor that crosses a graph's border: a cache of a million positions has half as many.
const MOST_ELEMENTS: usize = 1 << 31;

impl Manifest {
    /// Checks everything that needs no file.
    pub fn check(&self) -> Result<(), BundleError> {
        if self.format_version != FORMAT_VERSION {
            return Err(BundleError::Version { found: self.format_version });
        }
        if self.sample_rate != 16_000 {
            return Err(value("sample_rate", self.sample_rate, "16000"));
        }
        if self.unit_rate == 0 || !self.sample_rate.is_multiple_of(self.unit_rate) {
            return Err(value("unit_rate", self.unit_rate, "a divisor of sample_rate"));
        }
        if self.k == 0 {
            return Err(value("k", self.k, "at least 1"));
        }
        if self.group == 0 || self.group > 16 {
            return Err(value("group", self.group, "1 to 16"));
        }
        for entry in self.files() {
            let mut parts = Path::new(&entry.file).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(BundleError::FileName { file: entry.file.clone() });
            }
        }
        for (name, stage) in self.stage.present() {
            // First: all that follows counts elements.
            check_elements(name, stage)?;
            check_states(name, stage)?;
        }
        let Stages { tokenizer, lm, head, decoder } = &self.stage;
        let incomplete = |message: &str| Err(BundleError::Stages { message: message.to_owned() });
        match (lm, head) {
            (Some(lm), head) => {
                if self.vocabulary.is_none() {
                    return incomplete("a language model needs its vocabulary");
                }
                match head {
                    Some(head) => self.check_head(head, self.check_lm(lm, true)?)?,
                    None if lm.input("units").is_some() => return incomplete("lm and head belong together, and one of them is missing"),
                    None => {
                        self.check_lm(lm, false)?;
                    }
                }
            }
            (None, None) if tokenizer.is_none() && decoder.is_none() => return incomplete("there is none"),
            (None, None) => {}
            (None, Some(_)) => return incomplete("lm and head belong together, and one of them is missing"),
        }
        if let Some(tokenizer) = tokenizer {
            self.check_tokenizer(tokenizer)?;
        }
        if let Some(distances) = &self.unit_distances
            && (self.k as u64).checked_mul(self.k as u64) != Some(distances.bytes)
        {
            return Err(value("unit_distances.bytes", distances.bytes, "k · k"));
        }
        decoder.as_ref().map_or(Ok(()), |decoder| self.check_decoder(decoder))
    }

    fn check_tokenizer(&self, entry: &StageEntry) -> Result<(), BundleError> {
        let stage = Side::of(StageName::Tokenizer, entry);
        let units = stage.output("units")?;
        let n = units.elements();
        stage.expect(units, DType::I64, &[1, n.max(1)])?;
        let chunk = self.samples_per_unit() * n;
        stage.expect(stage.input("audio")?, DType::F32, &[1, chunk])?;
        stage.chunk(chunk)?;
        whole_units("stage.tokenizer.latency_ms", entry.latency_ms, self.late_units(), TOKENIZER_MAX_DELAY)
    }

    /// Returns the width of the hidden state. A trunk that reads text alone has no units to take in.
    fn check_lm(&self, entry: &StageEntry, reads_speech: bool) -> Result<usize, BundleError> {
        let stage = Side::of(StageName::Lm, entry);
        stage.expect(stage.input("token")?, DType::I64, &[1])?;
        if reads_speech {
            stage.expect(stage.input("units")?, DType::I64, &[1, self.group])?;
            stage.expect(stage.input("is_group")?, DType::F32, &[1])?;
        }
        stage.expect(stage.input("position")?, DType::I64, &[1])?;
        let logits = stage.output("logits")?;
        stage.expect(logits, DType::F32, &[1, logits.elements().max(1)])?;
        let hidden = stage.output("hidden")?;
        let width = hidden.elements().max(1);
        stage.expect(hidden, DType::F32, &[1, width])?;
        let mut context = None;
        for cache in entry.inputs.iter().filter(|t| t.name.starts_with("cache.")) {
            let [heads, rows, row] = cache.shape[..] else {
                return Err(stage.wrong(cache, "f32 [KV, C, dh]".to_owned()));
            };
            // All caches of one model have one length: it is the context.
            let rows = *context.get_or_insert(rows);
            stage.expect(cache, DType::F32, &[heads, rows, row])?;
            let new = stage.output(&format!("{}.new", cache.name))?;
            stage.expect(new, DType::F32, &[heads, 1, row])?;
        }
        match context {
            None => Err(BundleError::MissingTensor { stage: stage.name.to_string(), what: "input", name: "cache.*".to_owned() }),
            Some(rows) if rows < 64 => Err(value("the context (rows of cache.*)", rows, "at least 64")),
            Some(_) => stage.chunk(1).map(|()| width),
        }
    }

    fn check_head(&self, entry: &StageEntry, width: usize) -> Result<(), BundleError> {
        let stage = Side::of(StageName::Head, entry);
        stage.expect(stage.input("hidden")?, DType::F32, &[1, width])?;
        stage.expect(stage.output("unit_logits")?, DType::F32, &[1, self.group, self.k + 1])?;
        stage.chunk(1)
    }

    fn check_decoder(&self, entry: &StageEntry) -> Result<(), BundleError> {
        let stage = Side::of(StageName::Decoder, entry);
        let units = stage.input("units")?;
        let n = units.elements().max(1);
        stage.expect(units, DType::I64, &[1, n])?;
        stage.chunk(n)?;
        let late = whole_units("stage.decoder.latency_ms", entry.latency_ms, self.units_of_ms(entry.latency_ms), DECODER_MAX_DELAY);
        if let Some(audio) = entry.output("audio") {
            stage.expect(audio, DType::F32, &[1, self.samples_per_unit() * n])?;
            return late;
        }
        let magnitude = stage.output("log_magnitude")?;
        let [_, frames, bins] = magnitude.shape[..] else {
            return Err(stage.wrong(magnitude, "f32 [1, frames, bins]".to_owned()));
        };
        stage.expect(magnitude, DType::F32, &[1, frames, bins])?;
        stage.expect(stage.output("phase")?, DType::F32, &[1, frames, bins])?;
        let samples = self.samples_per_unit() * n;
        if frames == 0 || !samples.is_multiple_of(frames) || bins < 2 || (bins - 1) * 2 < samples / frames {
            return Err(stage.wrong(magnitude, format!("frames that divide {samples} samples, with a window no shorter than the hop")));
        }
        late
    }

    /// Checks the special tokens and the width of the text logits against the vocabulary.
    pub fn check_vocabulary(&self, vocabulary: &Vocabulary) -> Result<(), BundleError> {
        for (id, token) in SPECIALS.iter().enumerate() {
            let found = self.special_tokens.get(*token).copied();
            if found != Some(id as u32) {
                return Err(BundleError::SpecialToken { token: (*token).to_owned(), expected: id as u32, found });
            }
        }
        let logits = self.text_logits();
        if logits != vocabulary.len() {
            return Err(BundleError::VocabularySize { words: vocabulary.len(), logits });
        }
        Ok(())
    }
}

impl Manifest {
    /// Checks that every token of a `tokenizer.json` has its logit, and that the special tokens have their numbers. There may be more
    /// logits than tokens: vocabularies are padded.
    pub fn check_tokenizer_json(&self, file: &str, text: &str) -> Result<(), BundleError> {
        let wrong = |message: String| BundleError::TextTokenizer { file: file.to_owned(), message };
        let json: TokenizerJson = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        for (token, id) in &self.special_tokens {
            let found = json.added_tokens.iter().find(|added| added.content == *token).map(|added| added.id);
            if found != Some(*id) {
                return Err(wrong(format!("the special token {token} is {id} in bundle.toml and {found:?} among its added tokens")));
            }
        }
        let added = json.added_tokens.iter().map(|token| token.id);
        let tokens = json.model.vocab.values().copied().chain(added).max().map_or(0, |id| id as usize + 1);
        let logits = self.text_logits();
        if tokens == 0 || tokens > logits {
            return Err(BundleError::VocabularySize { words: tokens, logits });
        }
        Ok(())
    }

    /// Text tokens that the language model can write, those that fill up an imported vocabulary included.
    pub fn text_logits(&self) -> usize {
        self.stage.lm.as_ref().and_then(|lm| lm.output("logits")).map_or(0, TensorEntry::elements)
    }
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerJson {
    model: TokenizerModel,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct TokenizerModel {
    vocab: HashMap<String, u32>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    #[serde(default)]
    content: String,
}

/// No tensor has so many elements that its size is no number, or no memory's.
fn check_elements(name: StageName, entry: &StageEntry) -> Result<(), BundleError> {
    let side = Side::of(name, entry);
    for tensor in entry.inputs.iter().chain(&entry.outputs) {
        let elements = tensor.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            return Err(side.wrong(tensor, format!("at most {MOST_ELEMENTS} elements")));
        }
    }
    Ok(())
}

/// Each `state.X` in has its `state.X.next` out, of the same shape, and the file of initial values its size.
fn check_states(name: StageName, entry: &StageEntry) -> Result<(), BundleError> {
    let stage = Side::of(name, entry);
    let mut elements = 0;
    for state in entry.inputs.iter().filter(|t| t.name.starts_with("state.")) {
        stage.expect(stage.output(&format!("{}.next", state.name))?, DType::F32, &state.shape)?;
        stage.expect(state, DType::F32, &state.shape)?;
        elements += state.elements() as u64;
    }
    for next in entry.outputs.iter().filter_map(|t| t.name.strip_prefix("state.")?.strip_suffix(".next")) {
        stage.input(&format!("state.{next}"))?;
    }
    match &entry.initial {
        Some(initial) if initial.bytes != elements * 4 => {
            Err(BundleError::FileSize { file: initial.file.clone(), expected: elements * 4, found: initial.bytes })
        }
        _ => Ok(()),
    }
}

/// A stage under examination.
struct Side<'a> {
    name: StageName,
    entry: &'a StageEntry,
}

impl<'a> Side<'a> {
    fn of(name: StageName, entry: &'a StageEntry) -> Self {
        Self { name, entry }
    }

    fn input(&self, name: &str) -> Result<&'a TensorEntry, BundleError> {
        self.entry.input(name).ok_or_else(|| self.missing("input", name))
    }

    fn output(&self, name: &str) -> Result<&'a TensorEntry, BundleError> {
        self.entry.output(name).ok_or_else(|| self.missing("output", name))
    }

    fn missing(&self, what: &'static str, name: &str) -> BundleError {
        BundleError::MissingTensor { stage: self.name.to_string(), what, name: name.to_owned() }
    }

    fn expect(&self, tensor: &TensorEntry, dtype: DType, shape: &[usize]) -> Result<(), BundleError> {
        if tensor.dtype == dtype && tensor.shape == shape {
            return Ok(());
        }
        Err(self.wrong(tensor, format!("{dtype} {shape:?}")))
    }

    fn wrong(&self, tensor: &TensorEntry, expected: String) -> BundleError {
        let found = format!("{} {:?}", tensor.dtype, tensor.shape);
        BundleError::Tensor { stage: self.name.to_string(), name: tensor.name.clone(), expected, found }
    }

    fn chunk(&self, expected: usize) -> Result<(), BundleError> {
        if self.entry.chunk == expected {
            return Ok(());
        }
        Err(value(&format!("stage.{}.chunk", self.name), self.entry.chunk, &expected.to_string()))
    }
}

/// Is so much lateness a whole number of units that a runtime can make up for?
fn whole_units(field: &str, ms: f64, units: f64, most: usize) -> Result<(), BundleError> {
    if (0.0..=most as f64).contains(&units) && (units - units.round()).abs() < 1e-6 {
        return Ok(());
    }
    Err(value(field, ms, &format!("a whole number of units, at most {most}")))
}

fn value(field: &str, found: impl ToString, expected: &str) -> BundleError {
    BundleError::Value { field: field.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}
