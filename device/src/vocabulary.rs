//! The text vocabulary of a bundle: special tokens, spelling tokens, whole words.
//!
//! `vocabulary.txt` holds one token a line; the line number, from 0, is the id. First the ten
//! specials of [`SPECIALS`] in that order, then the spelling tokens `#a` … `#z`, `#'` and `#`
//! (which ends a spelled word), then whole words. A word that is not listed is spelled:
//! `bob` → `#b #o #b #`.

use std::collections::HashMap;

/// The special tokens, in the order of their ids.
pub const SPECIALS: [&str; 10] =
    ["<pad>", "<user>", "<transcribe>", "<agent>", "<call>", "<result>", "<speak>", "<text>", "<say>", "<end>"];

/// The ids of the special tokens (their places in [`SPECIALS`]).
#[allow(missing_docs)]
pub mod special {
    pub const PAD: u32 = 0;
    pub const USER: u32 = 1;
    pub const TRANSCRIBE: u32 = 2;
    pub const AGENT: u32 = 3;
    pub const CALL: u32 = 4;
    pub const RESULT: u32 = 5;
    pub const SPEAK: u32 = 6;
    pub const TEXT: u32 = 7;
    pub const SAY: u32 = 8;
    pub const END: u32 = 9;
}

/// Why a vocabulary was refused. Cure: export the bundle again; the file is not to be edited by hand.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VocabularyError {
    #[error("line {line} is `{found}`, and must be `{expected}`")]
    Order { line: usize, found: String, expected: String },
    #[error("line {line} is empty")]
    EmptyLine { line: usize },
    #[error("`{token}` is listed twice, in lines {first} and {second}")]
    Twice { token: String, first: usize, second: usize },
    #[error("the spelling token `{token}` is missing")]
    NoSpelling { token: String },
}

/// Tokens and ids, both ways.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    word_end: u32,
}

impl Vocabulary {
    /// Reads the text of a `vocabulary.txt`.
    pub fn parse(text: &str) -> Result<Self, VocabularyError> {
        let tokens: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        for (i, expected) in SPECIALS.iter().enumerate() {
            let found = tokens.get(i).map_or("", String::as_str);
            if found != *expected {
                return Err(VocabularyError::Order { line: i + 1, found: found.to_owned(), expected: (*expected).to_owned() });
            }
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            if token.is_empty() {
                return Err(VocabularyError::EmptyLine { line: i + 1 });
            }
            if let Some(first) = ids.insert(token.clone(), i as u32) {
                return Err(VocabularyError::Twice { token: token.clone(), first: first as usize + 1, second: i + 1 });
            }
        }
        let spelling = ('a'..='z').chain(['\'']).map(|c| format!("#{c}")).chain(["#".to_owned()]);
        for token in spelling {
            if !ids.contains_key(&token) {
                return Err(VocabularyError::NoSpelling { token });
            }
        }
        let word_end = ids["#"];
        Ok(Self { tokens, ids, word_end })
    }

    /// A vocabulary of the specials, the spelling tokens and `words`, as the exporter and tests make it.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, VocabularyError> {
        let mut text: String = SPECIALS.iter().map(|s| format!("{s}\n")).collect();
        for c in ('a'..='z').chain(['\'']) {
            text.push_str(&format!("#{c}\n"));
        }
        text.push_str("#\n");
        for word in words {
            text.push_str(word);
            text.push('\n');
        }
        Self::parse(&text)
    }

    /// The content of `vocabulary.txt`.
    pub fn to_text(&self) -> String {
        self.tokens.iter().map(|t| format!("{t}\n")).collect()
    }

    /// The number of tokens: the width of the language model's text logits.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never true of a vocabulary that was read: the specials are always there.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of a token, if it is listed.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The token of an id (`<?>` for an id that is out of range).
    pub fn token(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("<?>", String::as_str)
    }

    /// Is this one of the ten specials?
    pub fn is_special(&self, id: u32) -> bool {
        (id as usize) < SPECIALS.len()
    }

    /// Is this a letter of a spelled word? The word goes on until [`Vocabulary::is_word_end`].
    pub fn is_letter(&self, id: u32) -> bool {
        id != self.word_end && self.token(id).starts_with('#')
    }

    /// Is this the token that ends a spelled word?
    pub fn is_word_end(&self, id: u32) -> bool {
        id == self.word_end
    }

    /// Token ids of lower-case words separated by spaces; words that are not listed are spelled.
    /// Characters that cannot be spelled are left out, and so is a word made of them alone.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in text.split_whitespace() {
            // `#` and `<` never begin a word of speech: they would forge control tokens.
            let listed = if word.starts_with(['#', '<']) { None } else { self.id(word) };
            if let Some(id) = listed {
                ids.push(id);
                continue;
            }
            let letters: Vec<u32> = word.chars().filter_map(|c| self.id(&format!("#{}", c.to_ascii_lowercase()))).collect();
            if !letters.is_empty() {
                ids.extend(letters);
                ids.push(self.word_end);
            }
        }
        ids
    }

    /// Token ids of each word: one, or a spelled word's.
    pub fn words(&self, ids: &[u32]) -> Vec<Vec<u32>> {
        ids.split_inclusive(|&id| !self.is_letter(id)).map(<[u32]>::to_vec).collect()
    }

    /// The words of token ids; spelled words are joined again. Specials are written as they are listed.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut spelled = String::new();
        for &id in ids {
            if self.is_letter(id) {
                spelled.push_str(&self.token(id)[1..]);
                continue;
            }
            if !spelled.is_empty() {
                words.push(std::mem::take(&mut spelled));
            }
            if !self.is_word_end(id) {
                words.push(self.token(id).to_owned());
            }
        }
        if !spelled.is_empty() {
            words.push(spelled);
        }
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vocabulary {
        Vocabulary::from_words(["kitchen", "light", "o'clock", "on"]).expect("the list is in order")
    }

    #[test]
    fn words_and_spelling_go_both_ways() {
        let v = small();
        let ids = v.encode("kitchen bob's on");
        assert_eq!(v.decode(&ids), "kitchen bob's on");
        assert_eq!(ids.len(), 1 + 6 + 1);
        assert_eq!(v.words(&ids).iter().map(Vec::len).collect::<Vec<_>>(), [1, 6, 1]);
        assert_eq!(v.decode(&v.encode("bob ann")), "bob ann");
        assert!(v.is_word_end(ids[6]) && v.is_letter(ids[5]));
        assert_eq!(Vocabulary::parse(&v.to_text()).expect("own text").len(), v.len());
    }

    #[test]
    fn control_tokens_cannot_be_forged_by_text() {
        let v = small();
        assert!(v.encode("<end> <speak>").iter().all(|&id| !v.is_special(id)));
        assert_eq!(v.decode(&v.encode("#a <end>")), "a end");
        assert!(v.encode("№ 42").is_empty());
    }

    #[test]
    fn bad_lists_are_named() {
        assert!(matches!(Vocabulary::parse("<pad>\n<agent>\n"), Err(VocabularyError::Order { line: 2, .. })));
        assert!(matches!(Vocabulary::from_words(["on", "on"]), Err(VocabularyError::Twice { .. })));
        let text = small().to_text().replace("#q\n", "");
        assert_eq!(Vocabulary::parse(&text).unwrap_err(), VocabularyError::NoSpelling { token: "#q".into() });
    }
}
