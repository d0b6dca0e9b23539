//! The runtime on its real engines, with bundles of random weights in tiny sizes that obey the contract.
//!
//! What shipped weights say is tested in `tests/`; here it is that the machinery works whatever they say.

#[macro_use]
mod each;

mod around;
mod command;
mod conversation;
mod engines;
mod field;
mod hardware;
mod numbers;
mod onnx;
mod stages;
mod tiny;
mod wishes;
