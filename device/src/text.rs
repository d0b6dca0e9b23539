//! The text of a language model, whichever vocabulary it has: the listed words of our own models ([`Vocabulary`]), or the pieces of
//! words of an imported trunk's `tokenizer.json` (feature `tokenizer-json`).
//!
//! The pipeline thinks in words: a word is written, then spoken. A listed word knows where it ends. Of pieces only the next one tells,
//! by the space that it begins with; so a word of pieces is over where the model would rather begin another, or end.

use crate::bundle::{Bundle, BundleError};
use crate::vocabulary::{Vocabulary, special};

#[cfg(feature = "tokenizer-json")]
mod pieces;

/// Most tokens of one word: letters of a spelled one, or pieces.
pub const LONGEST_WORD: usize = 24;

/// The ids of the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Specials {
    pub user: u32,
    pub transcribe: u32,
    pub agent: u32,
    pub call: u32,
    pub result: u32,
    pub speak: u32,
    pub text: u32,
    pub say: u32,
    pub end: u32,
}

impl Specials {
    /// Those of a `vocabulary.txt`.
    pub const LISTED: Self = Self {
        user: special::USER,
        transcribe: special::TRANSCRIBE,
        agent: special::AGENT,
        call: special::CALL,
        result: special::RESULT,
        speak: special::SPEAK,
        text: special::TEXT,
        say: special::SAY,
        end: special::END,
    };

    /// Asks for each by its name; the name of the first that is missing otherwise.
    pub fn find(id: impl Fn(&'static str) -> Option<u32>) -> Result<Self, &'static str> {
        let id = |name| id(name).ok_or(name);
        Ok(Self {
            user: id("<user>")?,
            transcribe: id("<transcribe>")?,
            agent: id("<agent>")?,
            call: id("<call>")?,
            result: id("<result>")?,
            speak: id("<speak>")?,
            text: id("<text>")?,
            say: id("<say>")?,
            end: id("<end>")?,
        })
    }
}

/// Words to tokens and back.
#[derive(Debug)]
pub enum Text {
    /// `vocabulary.txt`.
    Listed(Vocabulary),
    /// `tokenizer.json`.
    #[cfg(feature = "tokenizer-json")]
    Pieces(Box<pieces::Pieces>),
}

impl Text {
    /// The text of a bundle's language model.
    ///
    /// # Errors
    /// [`BundleError::TextTokenizer`] for a `tokenizer.json` that cannot be read, that lacks one of the special tokens, or that this program
    /// was built without.
    pub fn open(bundle: &Bundle) -> Result<Self, BundleError> {
        let Some(path) = bundle.text_tokenizer() else { return Ok(Self::Listed(bundle.vocabulary().clone())) };
        #[cfg(feature = "tokenizer-json")]
        {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let wrong = |message| BundleError::TextTokenizer { file, message };
            let pieces = pieces::Pieces::open(&path, &bundle.manifest().special_tokens).map_err(wrong)?;
            Ok(Self::Pieces(Box::new(pieces)))
        }
        #[cfg(not(feature = "tokenizer-json"))]
        {
            let message = "this program was built without the feature `tokenizer-json`, which reads it".to_owned();
            Err(BundleError::TextTokenizer { file: path.display().to_string(), message })
        }
    }

    /// The ids of the special tokens.
    pub fn specials(&self) -> Specials {
        match self {
            Self::Listed(_) => Specials::LISTED,
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => pieces.specials(),
        }
    }

    /// Number of tokens. The logits may be more: public vocabularies are padded.
    pub fn len(&self) -> usize {
        match self {
            Self::Listed(vocabulary) => vocabulary.len(),
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => pieces.len(),
        }
    }

    /// Never true of what was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of lower-case words separated by spaces. No text becomes a special token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self {
            Self::Listed(vocabulary) => vocabulary.encode(text),
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => pieces.encode(text),
        }
    }

    /// The tokens of each word.
    pub fn words(&self, text: &str) -> Vec<Vec<u32>> {
        text.split_whitespace().map(|word| self.encode(word)).filter(|word| !word.is_empty()).collect()
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match self {
            Self::Listed(vocabulary) => vocabulary.decode(tokens),
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => pieces.decode(tokens),
        }
    }

    /// May the model write `token` after these tokens of a word? `end` is the special token that may come in place of a word.
    pub fn may_follow(&self, word: &[u32], token: u32, end: u32) -> bool {
        match self {
            Self::Listed(vocabulary) if word.is_empty() => token == end || !(vocabulary.is_special(token) || vocabulary.is_word_end(token)),
            Self::Listed(vocabulary) => vocabulary.is_word_end(token) || (word.len() < LONGEST_WORD && vocabulary.is_letter(token)),
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => token == end || pieces.is_text(token),
        }
    }

    /// Is the word over, whatever comes?
    pub fn is_whole(&self, word: &[u32]) -> bool {
        match (self, word.last()) {
            (_, None) => false,
            (Self::Listed(vocabulary), Some(last)) => !vocabulary.is_letter(*last),
            #[cfg(feature = "tokenizer-json")]
            (Self::Pieces(_), Some(_)) => word.len() >= LONGEST_WORD,
        }
    }

    /// Does the token begin another word, so that the one before it is over?
    pub fn begins_word(&self, token: u32) -> bool {
        match self {
            Self::Listed(vocabulary) => !(vocabulary.is_letter(token) || vocabulary.is_word_end(token)),
            #[cfg(feature = "tokenizer-json")]
            Self::Pieces(pieces) => pieces.begins_word(token),
        }
    }
}
