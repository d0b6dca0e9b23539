//! The runtime of the `sa` speech agent: it listens, thinks and speaks with a bundle that `sa-export` wrote.
//!
//! ```text
//! bundle ── engine ── stage ── pipeline ── sa-agent
//!    └ vocabulary        tools ──┘  │
//!                        audio ─────┘  field, events
//! ```
//! | module | purpose |
//! |---|---|
//! | [`bundle`] | the folder that passes from the exporter to here: types, reader with all checks, writer |
//! | [`vocabulary`] | text tokens |
//! | [`engine`] | what runs a graph: a trait, and behind it tract or ONNX Runtime |
//! | [`stage`] | tokenizer, language model, decoder: one graph and its state each, chunk by chunk |
//! | [`tools`], [`words`] | calls of the model carried out; numbers and any text as words |
//! | [`audio`] | devices and WAV files |
//! | [`pipeline`] | one question and its answer |
//! | [`conversation`] | microphone, turns, agent and speaker together |
//! | [`hearing`] | echo cancellation, voice activity |
//! | [`turns`] | who speaks when |
//! | [`field`] | the log of what happened, and its replay |
//! | [`files`] | files written beside their place, and locks |
//! | [`doctor`] | what is wrong with a machine, and what to do about it |
//! | [`events`] | the conversation told to other programs: hooks, a socket |
//!
//! Nothing here depends on training code.

pub mod audio;
pub mod bundle;
pub mod conversation;
pub mod doctor;
pub mod engine;
pub mod events;
pub mod field;
pub mod files;
pub mod hearing;
#[cfg(target_os = "linux")]
pub mod key;
pub mod pipeline;
pub mod stage;
pub mod text;
pub mod tools;
pub mod turns;
pub mod vocabulary;
pub mod wake;
pub mod words;
