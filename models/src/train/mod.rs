//! What the trainers share: run folders that resume, the optimiser, logs and curves.
