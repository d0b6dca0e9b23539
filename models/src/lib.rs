//! Networks, corpora and training of the `sa` speech agent (host side).
//!
//! ```text
//! corpus ──▶ tokenizer ──▶ units ──┬──▶ decoder
//!                                  └──▶ lm          (train: the shared loop, checkpoints, curves)
//! rooms ──▶ overlap: who interrupts
//! ```
//! Nothing here runs on the device; checkpoints leave through `sa-export`, but for the weights of `overlap`, which `models/overlap.sh`
//! puts into the device's source.

pub mod audio;
pub mod corpus;
pub mod decoder;
pub mod folder;
pub mod lm;
pub mod lock;
pub mod memory;
pub mod overlap;
pub mod tokenizer;
pub mod train;
