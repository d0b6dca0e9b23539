//! Audio constants and helpers shared by the networks and the corpus.
