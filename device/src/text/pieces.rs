//! Pieces of words by Hugging Face's `tokenizers`, as byte-level BPE has them (Qwen2): a piece that begins with a space begins a word.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::Tokenizer;

use super::Specials;

/// How byte-level vocabularies write a space.
const SPACE: char = 'Ġ';

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A special token of any purpose, or a number without a token.
    NoText,
    Begins,
    GoesOn,
}

/// A `tokenizer.json`.
#[derive(Debug)]
pub struct Pieces {
    tokenizer: Tokenizer,
    kinds: Vec<Kind>,
    specials: Specials,
}

impl Pieces {
    /// Reads the file; `special_tokens` are the ids of `bundle.toml`.
    pub fn open(path: &Path, special_tokens: &BTreeMap<String, u32>) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_file(path).map_err(|error| error.to_string())?;
        // Neither cuts nor fills: every word is encoded for itself.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        let specials = Specials::find(|name| special_tokens.get(name).copied()).map_err(|name| {
            format!("a conversation needs the token {name}: add it (`added_tokens`), train its row of the embedding, and export again")
        })?;
        let vocabulary = tokenizer.get_vocab(true);
        let count = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let mut kinds = vec![Kind::NoText; count];
        for (token, id) in &vocabulary {
            kinds[*id as usize] = if token.starts_with(SPACE) { Kind::Begins } else { Kind::GoesOn };
        }
        let added = tokenizer.get_added_tokens_decoder();
        let ours = |token: &str| special_tokens.contains_key(token);
        for id in added.iter().filter(|(_, token)| token.special || ours(&token.content)).map(|(id, _)| *id) {
            kinds[id as usize] = Kind::NoText;
        }
        if !kinds.contains(&Kind::Begins) {
            return Err(format!("no token begins with a space ({SPACE}): it is not the byte-level BPE of Qwen2"));
        }
        Ok(Self { tokenizer, kinds, specials })
    }

    pub fn specials(&self) -> Specials {
        self.specials
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Every word with a space before it, the first too, so that a word has the same tokens everywhere.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let word =
            |word: &str| self.tokenizer.encode_fast(format!(" {word}"), false).map_or_else(|_| Vec::new(), |it| it.get_ids().to_vec());
        text.split_whitespace().flat_map(word).filter(|id| self.is_text(*id)).collect()
    }

    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap_or_default().trim().to_owned()
    }

    pub fn is_text(&self, token: u32) -> bool {
        self.kind(token) != Kind::NoText
    }

    pub fn begins_word(&self, token: u32) -> bool {
        self.kind(token) == Kind::Begins
    }

    fn kind(&self, token: u32) -> Kind {
        self.kinds.get(token as usize).copied().unwrap_or(Kind::NoText)
    }
}
