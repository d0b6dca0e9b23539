//! Greedy answers with a cache, under the rules by which the runtime drives the exported graphs.
//!
//! The rules: the runtime feeds the prompt and the tools' results; the model writes everything else. After a transcript comes
//! `<agent>`; then `<call> … <result>` (again and again) or `<speak>`; then a word, its groups up to the one that holds an end unit,
//! the next word, until `<end>`. A token that the rules do not allow at a place is never chosen there.
//!
//! A planned reply is written as text first (`<text> … <end>`), which the cache then forgets; what is spoken are its words. The model
//! has read far more replies than it has heard, and speech between the words makes it lose its place.

use crate::corpus::{Turn, Vocabulary};

use super::config::Config;
use super::fused::{Matrix, Parameters, attend_row, dot, gate, multiply, project, rms_norm, rotate};
use super::network::rope_tables;
use super::sequence::{Composer, Item, Sequence, special};

/// Where a reply that does not end by itself is cut.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of a transcript or a call.
    pub tokens: usize,
    pub calls: usize,
    /// Words of a reply.
    pub words: usize,
    /// Groups of a word.
    pub groups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tokens: 48, calls: 3, words: 48, groups: 16 }
    }
}

/// What the model answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub transcript: String,
    /// Calls and the results they got.
    pub calls: Vec<(String, String)>,
    pub reply: String,
    /// The reply's words as spoken.
    pub words: Vec<(String, Vec<u16>)>,
    /// Positions that were read or written.
    pub positions: usize,
}

impl Answer {
    /// The units of the whole reply.
    pub fn units(&self) -> Vec<u16> {
        self.words.iter().flat_map(|(_, units)| units).copied().collect()
    }
}

/// A network ready to generate. Safe to share between threads.
pub struct Generator<'a> {
    config: &'a Config,
    parameters: &'a Parameters,
    composer: Composer<'a>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Tokens that are words or spelling.
    lexical: Vec<bool>,
    spelling: Vec<bool>,
    spell_end: u16,
    pub limits: Limits,
    /// Settle the reply's words before the first is spoken.
    pub plan: bool,
}

/// What has been read: keys and values by layer, and the last position's hidden state.
struct State {
    layers: Vec<(Vec<f32>, Vec<f32>)>, // [t, KV dh] each
    positions: usize,
    hidden: Vec<f32>,
}

impl<'a> Generator<'a> {
    pub fn new(config: &'a Config, parameters: &'a Parameters, vocabulary: &'a Vocabulary) -> Self {
        let (cos, sin) = rope_tables(config.head_dim, config.rope_theta, 0, config.max_position_embeddings);
        let tokens = (0..config.vocab_size as u16).map(|id| vocabulary.token(id).unwrap_or_default());
        let composer = Composer { vocabulary, group: config.group, end_unit: config.end_unit(), transcript: config.transcript };
        Self {
            config,
            parameters,
            composer,
            cos,
            sin,
            lexical: tokens.clone().map(|token| !token.starts_with('<')).collect(),
            spelling: tokens.map(|token| token.starts_with('#')).collect(),
            spell_end: vocabulary.id("#").unwrap_or_default(),
            limits: Limits::default(),
            plan: true,
        }
    }

    /// Answers a spoken question; `tool` gives the result of a call.
    pub fn answer(&self, history: &[Turn], units: &[u16], tool: impl Fn(&str) -> String) -> Answer {
        let mut state = self.start(&self.composer.prompt(history, units));
        let mut answer = Answer::default();
        if self.config.transcript {
            answer.transcript = self.write_until(&mut state, special::AGENT);
        }
        self.call(&mut state, &mut answer, tool);
        let plan = self.plan.then(|| self.plan(&mut state));
        self.feed(&mut state, special::SPEAK);
        self.speak(&mut state, plan, &mut answer);
        answer
    }

    /// Speaks a text.
    pub fn say(&self, text: &str) -> Answer {
        let mut state = self.start(&self.composer.say_prompt(text));
        let mut answer = Answer::default();
        let plan = self.plan.then(|| self.composer.vocabulary.encode(text));
        self.speak(&mut state, plan, &mut answer);
        answer
    }

    /// The tokens of the reply's words; nothing of them stays in the cache.
    fn plan(&self, state: &mut State) -> Vec<u16> {
        let before = state.positions;
        self.feed(state, special::TEXT);
        let plan = self.write_words(state, special::END);
        let width = self.config.num_key_value_heads * self.config.head_dim;
        for (keys, values) in &mut state.layers {
            keys.truncate(before * width);
            values.truncate(before * width);
        }
        state.positions = before;
        plan
    }

    /// The call and the reply's text to a typed question (`<text>` mode: nothing is spoken).
    pub fn type_answer(&self, history: &[Turn], question: &str, tool: impl Fn(&str) -> String) -> Answer {
        let mut state = self.start(&self.composer.typed_prompt(history, question));
        let mut answer = Answer::default();
        self.call(&mut state, &mut answer, tool);
        self.feed(&mut state, special::TEXT);
        answer.reply = self.write_until(&mut state, special::END);
        answer.positions = state.positions;
        answer
    }

    /// Calls, as many as the model asks for.
    fn call(&self, state: &mut State, answer: &mut Answer, tool: impl Fn(&str) -> String) {
        while answer.calls.len() < self.limits.calls && self.choose(state, &[special::CALL, special::SPEAK]) == special::CALL {
            self.feed(state, special::CALL);
            let call = self.write_until(state, special::RESULT);
            let result = tool(&call);
            self.feed_words(state, &result);
            answer.calls.push((call, result));
        }
    }

    fn start(&self, prompt: &Sequence) -> State {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let room = || Vec::with_capacity(128 * width);
        let layers = (0..self.config.num_hidden_layers).map(|_| (room(), room())).collect();
        let mut state = State { layers, positions: 0, hidden: Vec::new() };
        let group = self.config.group;
        let rows = prompt.items.iter().flat_map(|item| match *item {
            Item::Token { id, .. } => self.token_row(id).to_vec(),
            Item::Group { index, .. } => self.group_row(&prompt.groups[index * group..][..group]),
        });
        let rows: Vec<f32> = rows.collect();
        self.read(&mut state, rows);
        state
    }

    fn full(&self, state: &State) -> bool {
        state.positions + self.config.group + 1 >= self.config.max_position_embeddings
    }

    fn token_row(&self, id: u16) -> &[f32] {
        &self.parameters.embedding[usize::from(id) * self.config.hidden_size..][..self.config.hidden_size]
    }

    fn group_row(&self, units: &[u16]) -> Vec<f32> {
        let e = self.config.unit_embedding_size;
        let embedded: Vec<f32> =
            units.iter().flat_map(|unit| &self.parameters.unit_embedding[usize::from(*unit) * e..][..e]).copied().collect();
        project(&embedded, &self.parameters.adaptor, 1, embedded.len(), self.config.hidden_size)
    }

    fn feed(&self, state: &mut State, id: u16) {
        self.read(state, self.token_row(id).to_vec());
    }

    fn feed_words(&self, state: &mut State, words: &str) {
        let rows: Vec<f32> = self.composer.vocabulary.encode(words).iter().flat_map(|id| self.token_row(*id)).copied().collect();
        if !rows.is_empty() && state.positions + rows.len() / self.config.hidden_size < self.config.max_position_embeddings {
            self.read(state, rows);
        }
    }

    /// Reads rows [n, d] behind what has been read.
    fn read(&self, state: &mut State, mut x: Vec<f32>) {
        let shape = self.config.trunk_shape();
        let (d, dh) = (shape.width, shape.head_dim);
        let (qw, kw) = (shape.heads * dh, shape.kv_heads * dh);
        let n = x.len() / d;
        let start = state.positions;
        let mut weights = Vec::new();
        for (w, (keys, values)) in self.parameters.layers.iter().zip(&mut state.layers) {
            let (normed, _) = rms_norm(&x, &w.input_norm, shape.eps);
            let mut query = project(&normed, &w.query, n, d, qw);
            let mut key = project(&normed, &w.key, n, d, kw);
            for i in 0..n {
                let at = (start + i) * dh..(start + i + 1) * dh;
                rotate(&mut query[i * qw..(i + 1) * qw], &self.cos[at.clone()], &self.sin[at.clone()], 1.0);
                rotate(&mut key[i * kw..(i + 1) * kw], &self.cos[at.clone()], &self.sin[at], 1.0);
            }
            keys.extend_from_slice(&key);
            values.extend_from_slice(&project(&normed, &w.value, n, d, kw));
            let mut attended = vec![0.0; n * qw];
            for (i, out) in attended.chunks_exact_mut(qw).enumerate() {
                for (head, out) in out.chunks_exact_mut(dh).enumerate() {
                    let at = head * shape.kv_heads / shape.heads * dh;
                    attend_row(&query[i * qw + head * dh..][..dh], &keys[at..], &values[at..], start + i + 1, kw, &mut weights, out);
                }
            }
            multiply(n, qw, d, 1.0, Matrix::rows(&attended, qw), Matrix::rows(&w.output, d), &mut x, d, true);
            let (normed, _) = rms_norm(&x, &w.mlp_norm, shape.eps);
            let gated = gate(&project(&normed, &w.gate, n, d, shape.hidden), &project(&normed, &w.up, n, d, shape.hidden));
            multiply(n, shape.hidden, d, 1.0, Matrix::rows(&gated, shape.hidden), Matrix::rows(&w.down, d), &mut x, d, true);
        }
        state.positions += n;
        state.hidden = rms_norm(&x[(n - 1) * d..], &self.parameters.norm, shape.eps).0;
    }

    fn logit(&self, state: &State, id: u16) -> f32 {
        dot(self.token_row(id), &state.hidden)
    }

    /// The likeliest of `allowed`.
    fn choose(&self, state: &State, allowed: &[u16]) -> u16 {
        let scored = allowed.iter().map(|id| (self.logit(state, *id), *id));
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(special::PAD, |(_, id)| id)
    }

    /// The likeliest word or spelling token, or `end`.
    fn next_word(&self, state: &State, end: u16) -> u16 {
        let allowed = (0..self.config.vocab_size as u16).filter(|id| *id == end || self.lexical[usize::from(*id)]);
        let scored = allowed.map(|id| (self.logit(state, id), id));
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(end, |(_, id)| id)
    }

    /// Writes words until the model writes `end`, which is fed too.
    fn write_until(&self, state: &mut State, end: u16) -> String {
        let tokens = self.write_words(state, end);
        self.feed(state, end);
        self.composer.vocabulary.decode(&tokens)
    }

    /// Writes words until the model would write `end`.
    fn write_words(&self, state: &mut State, end: u16) -> Vec<u16> {
        let mut tokens = Vec::new();
        while tokens.len() < self.limits.tokens && !self.full(state) {
            let token = self.next_word(state, end);
            if token == end {
                break;
            }
            tokens.push(token);
            self.feed(state, token);
        }
        tokens
    }

    /// Words with their groups: those of the `plan`, or the model's until `<end>`.
    fn speak(&self, state: &mut State, plan: Option<Vec<u16>>, answer: &mut Answer) {
        let mut plan = plan.map(Vec::into_iter);
        let mut tokens = Vec::new();
        while answer.words.len() < self.limits.words && tokens.len() < self.limits.tokens && !self.full(state) {
            let token = match &mut plan {
                Some(plan) => plan.next().unwrap_or(special::END),
                None => self.next_word(state, special::END),
            };
            if token == special::END {
                break;
            }
            tokens.push(token);
            self.feed(state, token);
            if self.spelling[usize::from(token)] && token != self.spell_end {
                continue;
            }
            let units = self.speak_word(state);
            answer.words.push((self.composer.vocabulary.decode(&std::mem::take(&mut tokens)), units));
        }
        let words: Vec<&str> = answer.words.iter().map(|(word, _)| word.as_str()).collect();
        answer.reply = words.join(" ");
        answer.positions = state.positions;
    }

    fn speak_word(&self, state: &mut State) -> Vec<u16> {
        let mut spoken = Vec::new();
        for _ in 0..self.limits.groups {
            if self.full(state) {
                break;
            }
            let mut units = self.group(&state.hidden);
            let end = self.config.end_unit();
            let length = units.iter().position(|unit| *unit == end).unwrap_or(units.len());
            units[length..].fill(end); // what follows an end unit has never been anything else
            self.read(state, self.group_row(&units));
            spoken.extend_from_slice(&units[..length]);
            if length < units.len() {
                break;
            }
        }
        spoken
    }

    /// The likeliest unit at each place of the group after `hidden`.
    fn group(&self, hidden: &[f32]) -> Vec<u16> {
        let w = self.parameters;
        let (d, kinds) = (self.config.hidden_size, self.config.units + 1);
        let mut x = project(hidden, &w.head_input, 1, d, d);
        x.extend_from_slice(&w.queries);
        for layer in &w.head_layers {
            (x, _) = self.config.head_shape().forward(layer, x, &[1 + self.config.group], None);
        }
        let (normed, _) = rms_norm(&x[d..], &w.head_norm, self.config.rms_norm_eps as f32);
        let logits = project(&normed, &w.head_output, self.config.group, d, kinds);
        let best = |logits: &[f32]| logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as u16);
        logits.chunks_exact(kinds).map(best).collect()
    }
}

#[cfg(test)]
impl Generator<'_> {
    /// Hidden state after a question's prompt, and the group that the head gives there.
    pub(super) fn probe(&self, units: &[u16]) -> (Vec<f32>, Vec<u16>) {
        let state = self.start(&self.composer.prompt(&[], units));
        let group = self.group(&state.hidden);
        (state.hidden, group)
    }

    /// Hidden state after a question's prompt and `<speak>`, with a plan in between that is forgotten, or without.
    pub(super) fn probe_speak(&self, units: &[u16], planned: bool) -> Vec<f32> {
        let mut state = self.start(&self.composer.prompt(&[], units));
        if planned {
            self.plan(&mut state);
        }
        self.feed(&mut state, special::SPEAK);
        state.hidden
    }
}
