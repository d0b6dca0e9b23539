//! Public checkpoints: the files they come in, and what they mean.
//!
//! - [`pickle`]: the data in a pickle; nothing of it is run. [`torch`]: tensors in PyTorch's files. [`arrays`]: NumPy's, and k-means.
//! - [`hubert`]: HuBERT of Hugging Face and of fairseq. [`hifigan`]: unit HiFi-GANs of speech-resynthesis and textlesslib.

pub mod arrays;
pub mod hifigan;
pub mod hubert;
pub mod pickle;
pub mod torch;
