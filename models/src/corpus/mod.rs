//! Spoken dialogues from a grammar: text, speech, splits.
//!
//! ```text
//! grammar.toml ─▶ Grammar ─▶ turns ─┬─▶ synthesis (espeak-ng, flite, any command) ─▶ store ─▶ Corpus (reader)
//!                                   └─▶ replies in the agent's voice ─▶ align (word times) ─┘      └─▶ augment
//! ```
//! `test` and `dev` hold combinations (rooms, numbers, names) that are never trained; the test sets differ in how new the voice is:
//! `trained`, `timbre` (unseen variants of known accents), `accent` (an accent never trained), `synthesiser` (a recorded voice never trained).

pub mod align;
pub mod augment;
pub mod cli;
mod error;
mod grammar;
pub mod lexicon;
mod make;
pub mod numbers;
mod process;
mod reader;
mod recordings;
pub mod store;
pub mod synthesis;
mod vocabulary;
pub mod wave;

pub use align::Word;
pub use augment::{Augment, Crowd};
pub use error::Error;
pub use grammar::{Grammar, Sampled, Split, Turn};
pub use lexicon::Lexicon;
pub use make::{Manifest, Options, make};
pub use reader::{Corpus, Reply, Utterance};
pub use vocabulary::{SPECIALS, Vocabulary};
