//! Networks, corpora and training of the `sa` speech agent (host side).
//!
//! ```text
//! corpus ──▶ tokenizer ──▶ units ──┬──▶ decoder
//!                                  └──▶ lm          (train: the shared loop, checkpoints, curves)
//! rooms ──▶ overlap: who interrupts
//! ```
//! Nothing here runs on the device; checkpoints leave through `sa-export`.

pub mod audio;
pub mod corpus;
pub mod decoder;
pub mod lm;
pub mod lock;
pub mod overlap;
pub mod tokenizer;
pub mod train;
