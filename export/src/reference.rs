//! What a public trunk computes in single precision, in the memory of a few of its layers: it is drawn and run in pieces, one after another,
//! over tokens that are known beforehand.

use anyhow::Result;
use sa_device::engine::Engine;
use sa_models::lm::Config;

use crate::graphs::StageGraph;
use crate::graphs::lm::{Piece, draw_piece, pieces};
use crate::import::qwen::Qwen;
use crate::import::speech::Speech;
use crate::onnx::{Form, Importance, Precision};
use crate::runner::Runner;

/// Most weights of the blocks of a piece: 64 MB, of which an engine makes two or three copies.
const PIECE_WEIGHTS: usize = 16 << 20;

/// A trunk to be read.
pub struct Reference<'a> {
    pub qwen: &'a Qwen,
    pub speech: Option<&'a Speech>,
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
    pub fn new(qwen: &'a Qwen, speech: Option<&'a Speech>, config: &'a Config, engine: &'a dyn Engine) -> Self {
        Self { qwen, speech, config, engine, pieces: pieces(config, PIECE_WEIGHTS) }
    }

    fn draw(&self, piece: &Piece, form: Form) -> Result<StageGraph> {
        let speech = self.speech.map(|speech| &speech.weights);
        Ok(draw_piece(self.config, &self.qwen.weights, speech, piece, form)?)
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
                let at = ("position", &[position as i64][..]);
                let outputs = match (piece.is_first(), self.speech) {
                    (false, _) => runner.step(&[("x", row)], &[at])?,
                    (true, None) => runner.step(&[], &[("token", &[tokens[number]]), at])?,
                    (true, Some(_)) => {
                        let units = vec![0; self.config.group];
                        runner.step(&[("is_group", &[0.0])], &[("token", &[tokens[number]]), ("units", &units), at])?
                    }
                };
                if piece.is_last() {
                    each(number, outputs.f32("logits")?, outputs.f32("hidden")?);
                } else {
                    *row = outputs.f32("y")?;
                }
            }
            read.ms += runner.median_ms();
            read.bytes += graph.onnx.bytes();
            read.importance.extend(runner.importance());
        }
        Ok(read)
    }
}
