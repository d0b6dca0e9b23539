//! Checkpoints of the `sa` speech agent to ONNX bundles, proven on the engine that will run them.

pub mod graphs;
pub mod onnx;
pub mod prove;
pub mod runner;
pub mod weights;
