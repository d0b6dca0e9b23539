//! Checkpoints of the `sa` speech agent to ONNX bundles, proven on the engine that will run them.
//!
//! ```text
//! checkpoint ─▶ weights ─▶ graphs (drawn with onnx) ─▶ prove (fp32 graph = network) ─▶ compare (int8 ≈ fp32) ─▶ bundle
//!                                     └── runner: the runtime's engine ──┘                        └▶ report
//! ```
//! - [`onnx`]: the graph builder and the quantised forms of a layer.
//! - [`weights`], [`checkpoint`]: reading, with errors that name what is wrong. [`import`]: public checkpoints.
//! - [`graphs`]: the four graphs of a bundle.
//! - [`target`]: where the bundle goes. [`choice`], [`budget`]: which form a stage gets, and what it may lose.
//! - [`units`]: how unlike the units are.
//! - [`runner`]: a graph on the engine. [`prove`], [`compare`], [`reference`]: what is held against what.
//! - [`export`]: all of it in order. [`tokenizer`], [`decoder`], [`trunk`]: a public HuBERT, HiFi-GAN or Qwen2 alone; [`join`]: such
//!   parts into an agent. [`report`]: the figures. [`inspect`]: looking at a bundle.

pub mod budget;
pub mod checkpoint;
pub mod choice;
pub mod compare;
pub mod decoder;
pub mod export;
pub mod graphs;
pub mod import;
pub mod inspect;
pub mod join;
pub mod onnx;
pub mod prove;
pub mod reference;
pub mod report;
pub mod runner;
pub mod samples;
pub mod target;
pub mod tokenizer;
pub mod trunk;
pub mod units;
pub mod weights;
