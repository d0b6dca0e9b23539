//! Writing ONNX graphs: a builder that knows the shape and type of every value, the operations that the graphs of
//! the agent use, and the quantised forms of a linear layer.
//!
//! Opset 17, IR 8, fixed shapes, default domain only: what tract runs fast, and what ONNX Runtime and Netron read.

mod graph;
mod linear;
mod ops;

pub use graph::{DataType, Graph, Value};
pub use linear::{Precision, SPLIT_ELEMENTS, quantise_per_channel};

#[cfg(test)]
mod tests;
