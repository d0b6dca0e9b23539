//! The text tokens: specials, spelling tokens and whole words, one a line in `vocabulary.txt` (line number = id).
//!
//! A word that is not listed is spelled: `#b #o #b #`, where `#` ends the word. The same file travels in the bundle.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::Error;

/// The first lines of every vocabulary, in this order.
pub const SPECIALS: [&str; 10] =
    ["<pad>", "<user>", "<transcribe>", "<agent>", "<call>", "<result>", "<speak>", "<text>", "<say>", "<end>"];
/// Ends a spelled word.
pub const SPELL_END: &str = "#";

/// Token ids and their texts.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u16>,
    letters: HashMap<char, u16>,
    spell_end: u16,
}

fn spelling_tokens() -> impl Iterator<Item = String> {
    ('a'..='z').chain(['\'']).map(|letter| format!("#{letter}")).chain([SPELL_END.to_owned()])
}

impl Vocabulary {
    /// Specials, spelling tokens, then `words` sorted.
    pub fn from_words(words: &BTreeSet<String>) -> Self {
        let tokens = SPECIALS.iter().map(|token| (*token).to_owned()).chain(spelling_tokens()).chain(words.iter().cloned()).collect();
        Self::index(tokens)
    }

    /// Reads `vocabulary.txt`.
    ///
    /// # Errors
    /// [`Error::Io`] when unreadable, [`Error::Format`] when the specials or spelling tokens are not where they belong or a line repeats.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let tokens: Vec<String> = text.lines().map(str::to_owned).collect();
        let wrong = |line: usize, message: String| Error::Format { path: path.to_owned(), line, message };
        for (line, expected) in SPECIALS.iter().map(|token| (*token).to_owned()).chain(spelling_tokens()).enumerate() {
            if tokens.get(line) != Some(&expected) {
                return Err(wrong(
                    line + 1,
                    format!("expected {expected:?}, found {:?}", tokens.get(line).map_or("end of file", String::as_str)),
                ));
            }
        }
        let count = tokens.len();
        let vocabulary = Self::index(tokens);
        if vocabulary.ids.len() != count {
            let repeated = vocabulary.tokens.iter().enumerate().find(|(id, token)| usize::from(vocabulary.ids[*token]) != *id);
            let (line, token) = repeated.map_or((0, ""), |(line, token)| (line + 1, token));
            return Err(wrong(line, format!("the token {token:?} is listed twice")));
        }
        Ok(vocabulary)
    }

    fn index(tokens: Vec<String>) -> Self {
        let ids: HashMap<String, u16> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u16)).collect();
        let letters = ('a'..='z').chain(['\'']).map(|letter| (letter, ids[&format!("#{letter}")])).collect();
        let spell_end = ids[SPELL_END];
        Self { tokens, ids, letters, spell_end }
    }

    /// The file's content.
    pub fn to_text(&self) -> String {
        self.tokens.iter().fold(String::new(), |text, token| text + token + "\n")
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never true: the specials are always there.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of a token as written in the file (a word, `<agent>`, `#b`).
    pub fn id(&self, token: &str) -> Option<u16> {
        self.ids.get(token).copied()
    }

    /// The id of a special such as `<agent>`.
    ///
    /// # Panics
    /// When `token` is not one of [`SPECIALS`]: they are constants of the program.
    pub fn special(&self, token: &str) -> u16 {
        assert!(SPECIALS.contains(&token), "{token} is not a special token");
        self.ids[token]
    }

    /// The token's text as written in the file.
    pub fn token(&self, id: u16) -> Option<&str> {
        self.tokens.get(usize::from(id)).map(String::as_str)
    }

    /// The tokens of one word: its own, or its spelling. Characters without a spelling token are left out.
    pub fn encode_word(&self, word: &str) -> Vec<u16> {
        match self.ids.get(word) {
            Some(id) => vec![*id],
            None => word.chars().filter_map(|letter| self.letters.get(&letter).copied()).chain([self.spell_end]).collect(),
        }
    }

    /// The tokens of words separated by spaces.
    pub fn encode(&self, text: &str) -> Vec<u16> {
        text.split_whitespace().flat_map(|word| self.encode_word(word)).collect()
    }

    /// Words again; specials are written as they are, an unfinished spelling as far as it goes.
    pub fn decode(&self, ids: &[u16]) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut spelling: Option<String> = None;
        for id in ids {
            let token = self.token(*id).unwrap_or("<unknown>");
            if *id == self.spell_end {
                words.extend(spelling.take());
            } else if let Some(letter) = token.strip_prefix('#') {
                spelling.get_or_insert_default().push_str(letter);
            } else {
                words.extend(spelling.take());
                words.push(token.to_owned());
            }
        }
        words.extend(spelling);
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vocabulary {
        Vocabulary::from_words(&["light", "on", "the"].iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn spelling_round_trip() {
        let vocabulary = small();
        let text = "the zoltan's light on bob";
        let ids = vocabulary.encode(text);
        assert_eq!(vocabulary.decode(&ids), text);
        assert_eq!(vocabulary.encode("bob").len(), 4);
        assert_eq!(vocabulary.special("<pad>"), 0);
        assert_eq!(vocabulary.special("<end>"), 9);
    }

    #[test]
    fn file_round_trip_and_complaints() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocabulary.txt");
        std::fs::write(&path, small().to_text()).unwrap();
        assert_eq!(Vocabulary::load(&path).unwrap().len(), small().len());
        std::fs::write(&path, small().to_text() + "light\n").unwrap();
        assert!(Vocabulary::load(&path).unwrap_err().to_string().contains("twice"));
        std::fs::write(&path, "<pad>\nlight\n").unwrap();
        assert!(Vocabulary::load(&path).unwrap_err().to_string().contains(":2"));
    }
}
