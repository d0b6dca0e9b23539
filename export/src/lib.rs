//! Checkpoints of the `sa` speech agent to ONNX bundles, proven on the engine that will run them.
