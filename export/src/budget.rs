//! What a quantised stage may lose against fp32, and the choice of its form by that.
//!
//! A form that computes in fewer bits must also be no slower than fp32: it would cost accuracy and give nothing for it.

use std::path::Path;

use anyhow::Result;
use sa_device::bundle::StageName;
use sa_device::engine::{Engine, EngineName, Wish};

use crate::choice::{Choice, first_within};
use crate::graphs::StageGraph;
use crate::onnx::Precision;
use crate::report::{EngineTime, StageReport};
use crate::runner::Runner;

/// Least share of equal units of a quantised tokenizer: the bar is 98 %, and the samples are few.
pub const TOKENIZER_BUDGET: f64 = 0.985;
/// Least share of equal text tokens of a quantised language model: a reply of 20 tokens is wrong by one of them.
pub const LM_BUDGET: f64 = 0.995;
/// Least share of equal units of a quantised head: a different unit of a sound is a nuance, not an error.
pub const HEAD_BUDGET: f64 = 0.95;
/// Greatest mean difference of a quantised decoder's log-magnitudes in dB.
pub const DECODER_BUDGET_DB: f64 = 1.0;

/// Medians of the same graph differ by so much from run to run.
const TIMING_NOISE: f64 = 1.1;

/// The budget of each stage: the least share of equal decisions, for the decoder the greatest difference in dB.
#[derive(Clone, Debug, PartialEq)]
pub struct Budgets {
    tokenizer: f64,
    lm: f64,
    head: f64,
    decoder_db: f64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { tokenizer: TOKENIZER_BUDGET, lm: LM_BUDGET, head: HEAD_BUDGET, decoder_db: DECODER_BUDGET_DB }
    }
}

/// How a candidate did against fp32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Relative L2, or the share of units that differ.
    pub error: f64,
    /// Share of equal decisions.
    pub agreement: Option<f64>,
    /// Mean difference of log-magnitudes.
    pub decibels: Option<f64>,
    /// Median of a step.
    pub ms: f64,
}

impl Budgets {
    /// Sets one of them: a share, for the decoder decibels.
    ///
    /// # Errors
    /// What is wrong with the value, in words.
    pub fn set(&mut self, stage: StageName, value: f64) -> Result<(), String> {
        let (slot, most) = match stage {
            StageName::Tokenizer => (&mut self.tokenizer, 1.0),
            StageName::Lm => (&mut self.lm, 1.0),
            StageName::Head => (&mut self.head, 1.0),
            StageName::Decoder => (&mut self.decoder_db, 100.0),
        };
        if !(0.0..=most).contains(&value) {
            return Err(format!("the budget of the {stage} is a number from 0 to {most}"));
        }
        *slot = value;
        Ok(())
    }

    /// What a form misses, if anything.
    pub fn missed(&self, stage: StageName, precision: Precision, measured: &Measured, fp32_ms: f64) -> Option<String> {
        let agreement = measured.agreement.unwrap_or(1.0);
        let least = |budget: f64, what: &str| {
            // Written so that NaN misses.
            let within = agreement >= budget;
            (!within).then(|| format!("{:.1} % of {what} agree with fp32, {:.1} % are asked for", 100.0 * agreement, 100.0 * budget))
        };
        let lost = match stage {
            StageName::Tokenizer => least(self.tokenizer, "units"),
            StageName::Lm => least(self.lm, "text tokens"),
            StageName::Head => least(self.head, "units"),
            StageName::Decoder => {
                let decibels = measured.decibels.unwrap_or(f64::NAN);
                let within = decibels <= self.decoder_db;
                (!within).then(|| format!("spectra differ by {decibels:.2} dB, {:.1} dB are allowed", self.decoder_db))
            }
        };
        let slower = precision.computes_in_fewer_bits() && measured.ms > TIMING_NOISE * fp32_ms;
        lost.or_else(|| slower.then(|| format!("slower than fp32: {:.2} ms a step, fp32 takes {fp32_ms:.2} ms", measured.ms)))
    }
}

/// A stage in single precision.
pub struct Baseline {
    pub fp32: StageGraph,
    /// Relative L2 against the network, where there is one to run.
    pub parity: Option<f64>,
    /// Median of a step.
    pub ms: f64,
}

/// The first form of a stage within its budget, with its figures. `library` is that of ONNX Runtime, if it is not in the usual places. `draw` makes a form that is not fp32 and measures it.
///
/// # Errors
/// See [`first_within`].
pub fn choose(
    choice: &Choice,
    budgets: &Budgets,
    force: bool,
    engine: &dyn Engine,
    library: Option<&Path>,
    baseline: Baseline,
    mut draw: impl FnMut(Precision) -> Result<(StageGraph, Measured)>,
) -> Result<(StageGraph, StageReport)> {
    let Baseline { fp32, parity, ms: fp32_ms } = baseline;
    let stage = fp32.stage;
    let mut entry = StageReport::new(stage, Precision::Fp32, parity, fp32.onnx.len(), fp32_ms);
    let mut fp32 = Some(fp32);
    let chosen = first_within(stage, choice, force, |precision| {
        if let Some(graph) = fp32.take_if(|_| precision == Precision::Fp32) {
            return Ok(((graph, None), None));
        }
        let (graph, measured) = draw(precision)?;
        let missed = budgets.missed(stage, precision, &measured, fp32_ms);
        Ok(((graph, Some(measured)), missed))
    })?;
    let (graph, measured) = chosen.made;
    entry.engine_ms = second_engine(engine, library, &graph, fp32.as_ref());
    entry.precision = chosen.precision;
    entry.reason = chosen.reason;
    entry.worst_layers = graph.worst_layers();
    if let Some(measured) = measured {
        entry.bytes = graph.onnx.len();
        entry.error = measured.error;
        entry.agreement = measured.agreement;
        entry.decibels = measured.decibels;
        entry.ms = measured.ms;
    }
    Ok((graph, entry))
}

/// Steps that are timed on another engine.
const TIMED_STEPS: usize = 20;

/// Medians of a step of a form and of fp32 on the engine that was not chosen, where there is one. Inputs are zeros: times do not depend on
/// them.
fn second_engine(chosen: &dyn Engine, library: Option<&Path>, graph: &StageGraph, fp32: Option<&StageGraph>) -> Vec<EngineTime> {
    let other = if chosen.name() == "ort" { EngineName::Tract } else { EngineName::Ort };
    let Ok(engine) = (Wish { engine: other, library: library.map(Path::to_owned), ..Wish::default() }).open(|_| ()) else {
        return Vec::new();
    };
    let time = |graph: &StageGraph| -> Result<f64, String> {
        let mut runner = Runner::new(&*engine, graph).map_err(|error| error.to_string())?;
        for _ in 0..TIMED_STEPS {
            runner.step(&[], &[]).map_err(|error| error.to_string())?;
        }
        Ok(runner.median_ms())
    };
    let ms = time(graph);
    // Without an fp32 graph left over, the form is fp32 itself.
    let fp32_ms = fp32.map_or_else(|| ms.clone(), time);
    vec![EngineTime { engine: engine.name(), ms, fp32_ms }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_misses_by_what_it_loses_or_by_its_time() {
        let mut budgets = Budgets::default();
        let of = |agreement, ms| Measured { agreement: Some(agreement), ms, ..Measured::default() };
        let missed = |budgets: &Budgets, precision, agreement, ms| budgets.missed(StageName::Lm, precision, &of(agreement, ms), 10.0);
        assert_eq!(missed(&budgets, Precision::Int8, 0.996, 10.5), None);
        assert!(missed(&budgets, Precision::Int8, 0.99, 5.0).expect("too little").contains("99.5 % are asked for"));
        assert!(missed(&budgets, Precision::Int8, f64::NAN, 5.0).is_some());
        assert!(missed(&budgets, Precision::Int4, 1.0, 12.0).expect("too slow").contains("slower than fp32"));
        assert_eq!(missed(&budgets, Precision::Int8Weights, 1.0, 12.0), None, "it computes in fp32: the difference is noise");
        budgets.set(StageName::Lm, 0.9).expect("a share");
        assert_eq!(missed(&budgets, Precision::Int8, 0.99, 5.0), None);
        assert!(budgets.set(StageName::Lm, 2.0).expect_err("no share").contains("0 to 1"));
        budgets.set(StageName::Decoder, 2.0).expect("decibels");
        let far = Measured { decibels: Some(2.5), ..Measured::default() };
        assert!(budgets.missed(StageName::Decoder, Precision::Fp16, &far, 10.0).expect("too far").contains("2.50 dB"));
    }
}
