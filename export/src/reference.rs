//! What a public trunk computes in single precision, in the memory of a few of its layers: it is drawn and run in pieces, one after another,
//! over tokens that are known beforehand.

use anyhow::Result;
use sa_device::engine::Engine;
use sa_models::lm::Config;

use crate::graphs::StageGraph;
use crate::graphs::lm::{Piece, draw_piece, pieces, shares_table};
use crate::onnx::{Form, Importance, Precision};
use crate::prove::{Item, feed};
use crate::runner::Runner;
use crate::weights::Weights;

/// Most weights of the blocks of a piece: 64 MB, of which an engine makes two or three copies.
const PIECE_WEIGHTS: usize = 16 << 20;

/// A trunk to be read, and the unit embedding and the adaptor of one that reads speech.
pub struct Reference<'a> {
    pub trunk: &'a Weights,
    pub speech: Option<&'a Weights>,
    pub config: &'a Config,
    pub engine: &'a dyn Engine,
    pub pieces: Vec<Piece>,
}

/// What reading took and showed.
#[derive(Debug, Default)]
pub struct Read {
    /// Median of a step, of all pieces together.
    pub ms: f64,
    /// Size of all pieces.
    pub bytes: usize,
    /// How much the inputs of the layers matter, if that was asked for.
    pub importance: Importance,
}

impl<'a> Reference<'a> {
    pub fn new(trunk: &'a Weights, speech: Option<&'a Weights>, config: &'a Config, engine: &'a dyn Engine) -> Self {
        Self { trunk, speech, config, engine, pieces: pieces(config, PIECE_WEIGHTS) }
    }

    fn draw(&self, piece: &Piece, form: Form) -> Result<StageGraph> {
        Ok(draw_piece(self.config, self.trunk, self.speech, piece, form)?)
    }

    /// Names of all layers that have a precision.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = self.pieces.iter().map(|piece| Ok(self.draw(piece, Precision::Fp32.into())?.names)).collect::<Result<Vec<_>>>()?;
        Ok(names.concat())
    }

    /// Reads tokens, from the first position again where the memory is full. `each` is given a token's number, the logits and the hidden
    /// state behind it.
    pub fn read(&self, tokens: &[i64], probe: bool, mut each: impl FnMut(usize, Vec<f32>, Vec<f32>)) -> Result<Read> {
        let context = self.config.max_position_embeddings - 1;
        let mut rows = vec![Vec::new(); tokens.len()];
        let mut read = Read::default();
        for piece in &self.pieces {
            let graph = self.draw(piece, Form { probe, ..Form::from(Precision::Fp32) })?;
            let mut runner = Runner::new(self.engine, &graph)?;
            for (number, row) in rows.iter_mut().enumerate() {
                let position = number % context;
                let outputs = match piece.is_first() {
                    true => feed(&mut runner, self.speech.map(|_| self.config.group), &Item::Token(tokens[number]), position)?,
                    false => runner.step(&[("x", row)], &[("position", &[position as i64])])?,
                };
                if piece.is_last() {
                    let (logits, hidden) = outputs.text()?;
                    each(number, logits, hidden);
                } else {
                    *row = outputs.f32("y")?;
                }
            }
            read.ms += runner.median_ms();
            read.bytes += graph.onnx.bytes();
            read.importance.extend(runner.importance());
        }
        if self.pieces.len() > 1 && shares_table(self.config, Precision::Fp32) {
            // The first and the last piece have it each, one file of all has it once.
            read.bytes -= self.config.vocab_size * self.config.hidden_size * size_of::<f32>();
        }
        Ok(read)
    }
}
