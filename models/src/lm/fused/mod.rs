//! The network once more, in plain loops and matrix products on packed rows: gradients and generation on the CPU.
//!
//! Burn's CPU backend runs every element-wise operation by itself and pads a batch to its longest sequence; here the rows of all
//! sequences lie end to end, and normalisation, rotation, attention, gating and losses are one pass each. [`super::network`] stays
//! the definition: tests hold losses, gradients and generated text of the two together.

mod block;
mod gradient;
mod matrix;
mod parameters;

pub use block::Shape;
pub(super) use block::{attend_row, gate, rms_norm, rotate};
pub use gradient::{Gradient, Score, gradients};
pub(super) use matrix::{Matrix, dot, multiply, project};
pub use parameters::{BlockParameters, Parameters};

#[cfg(test)]
mod tests;
