//! The runtime on the real engine, with bundles of random weights in tiny sizes that obey the contract.
//!
//! What shipped weights say is tested in `tests/`; here it is that the machinery works whatever they say.

mod command;
mod conversation;
mod onnx;
mod stages;
mod tiny;
