//! Writing ONNX graphs: a builder that knows the shape and type of every value, the operations that the graphs of
//! the agent use, and the quantised forms of a linear layer.
//!
//! Opset 17, IR 8, fixed shapes, default domain only (but for 4-bit weights): what tract runs fast, and what ONNX Runtime and Netron read.

mod file;
mod graph;
mod linear;
mod ops;
mod proto;

pub use file::OnnxFile;
pub use graph::{DataType, Graph, Layer, Value};
#[cfg(test)]
use linear::widened_blocks;
pub use linear::{BLOCK, Form, Importance, PROBE, Precision, SPLIT_ELEMENTS, matches, quantise_blocks, quantise_per_channel};

#[cfg(test)]
mod tests;
