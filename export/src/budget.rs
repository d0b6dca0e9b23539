//! What a quantised stage may lose against fp32, and the choice of its form by that.
//!
//! A form that computes in fewer bits must also be no slower than fp32: it would cost accuracy and give nothing for it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use sa_device::bundle::StageName;
use sa_device::engine::{Engine, EngineName, Wish};
use sa_models::memory;

use crate::choice::{Choice, first_within};
use crate::graphs::StageGraph;
use crate::onnx::Precision;
use crate::report::{Ran, Second, StageReport};
use crate::runner::{RunError, Runner};
use crate::target::Target;

/// Least share of equal units of a quantised tokenizer: the bar is 98 %, and the samples are few.
pub const TOKENIZER_BUDGET: f64 = 0.985;
/// Least share of equal text tokens of a quantised language model: a reply of 20 tokens is wrong by one of them.
pub const LM_BUDGET: f64 = 0.995;
/// Least share of equal units of a quantised head: a different unit of a sound is a nuance, not an error.
pub const HEAD_BUDGET: f64 = 0.95;
/// Greatest mean difference of a quantised decoder's mel spectrum in dB.
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
    /// Mean difference of the mel spectrum.
    pub decibels: Option<f64>,
    /// Nats that a text token costs.
    pub cross_entropy: Option<f64>,
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

/// How the form of a stage is chosen: what is tried, what it may lose, and where it runs.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    pub choice: &'a Choice,
    pub budgets: &'a Budgets,
    /// Take a named form even where it misses its budget.
    pub force: bool,
    pub engine: &'a dyn Engine,
    /// The library of ONNX Runtime, if not in the usual places.
    pub ort_library: Option<&'a Path>,
}

impl<'a> Rules<'a> {
    pub fn new(choice: &'a Choice, budgets: &'a Budgets, force: bool, engine: &'a dyn Engine, target: &'a Target) -> Self {
        Self { choice, budgets, force, engine, ort_library: target.ort_library.as_deref() }
    }
}

/// A stage in single precision.
pub struct Baseline {
    pub stage: StageName,
    /// The graph, or why there is none: what is too large for one file was measured in pieces.
    pub fp32: Result<StageGraph, String>,
    /// Its size.
    pub bytes: usize,
    /// Relative L2 against the network, where there is one to run.
    pub parity: Option<f64>,
    pub cross_entropy: Option<f64>,
    /// Median of a step.
    pub ms: f64,
}

impl Baseline {
    pub fn new(fp32: StageGraph, parity: Option<f64>, ms: f64) -> Self {
        Self { stage: fp32.stage, bytes: fp32.onnx.bytes(), fp32: Ok(fp32), parity, cross_entropy: None, ms }
    }
}

/// The first form of a stage within its budget, with its figures. `draw` makes a form and measures it; it is asked for fp32 only where the
/// baseline has no graph of it.
///
/// # Errors
/// See [`first_within`].
pub fn choose(
    rules: &Rules,
    baseline: Baseline,
    mut draw: impl FnMut(Precision) -> Result<(StageGraph, Measured)>,
) -> Result<(StageGraph, StageReport)> {
    let Baseline { stage, fp32, bytes, parity, cross_entropy, ms: fp32_ms } = baseline;
    let (mut fp32, without) = match fp32 {
        Ok(graph) => (Some(graph), String::new()),
        Err(reason) => (None, reason),
    };
    let chosen = first_within(stage, rules.choice, rules.force, |precision| {
        if let Some(graph) = fp32.take_if(|_| precision == Precision::Fp32) {
            return Ok(((graph, None), None));
        }
        let (graph, measured) = draw(precision)?;
        let missed = rules.budgets.missed(stage, precision, &measured, fp32_ms);
        Ok(((graph, Some(measured)), missed))
    })?;
    let (graph, measured) = chosen.made;
    let second = second_engine(rules, &graph, fp32.as_ref(), &without);
    let mut entry = StageReport::new(stage, parity, bytes, fp32_ms, second);
    entry.precision = chosen.precision;
    entry.reason = chosen.reason;
    entry.worst_layers = graph.worst_layers();
    entry.cross_entropy = cross_entropy.map(|fp32| (measured.and_then(|form| form.cross_entropy).unwrap_or(fp32), fp32));
    if let Some(measured) = measured {
        entry.bytes = graph.onnx.bytes();
        entry.error = measured.error;
        entry.agreement = measured.agreement;
        entry.decibels = measured.decibels;
        entry.ms = measured.ms;
    }
    Ok((graph, entry))
}

/// Steps that are timed on another engine; fewer, but three, of a graph that takes longer in all.
const TIMED_STEPS: usize = 20;
const TIMED: Duration = Duration::from_secs(2);

/// Medians of a step of a form and of fp32 on the engine that was not chosen, or why it does not run them. Inputs are zeros: times do not
/// depend on them.
fn second_engine(rules: &Rules, graph: &StageGraph, fp32: Option<&StageGraph>, without: &str) -> Second {
    let (name, other) = match rules.engine.name() {
        "ort" => ("tract", EngineName::Tract),
        _ => ("ort", EngineName::Ort),
    };
    let wish = Wish { engine: other, library: rules.ort_library.map(Path::to_owned), ..Wish::default() };
    let engine = match wish.open(|_| ()) {
        Ok(engine) => engine,
        Err(reason) => {
            let reason = Ran::LeftOut(reason.to_string());
            return Second { engine: name, ms: reason.clone(), fp32_ms: reason };
        }
    };
    memory::release(); // the other engine has its own
    let time = |graph: &StageGraph| {
        let run = || -> Result<f64, RunError> {
            let mut runner = Runner::new(&*engine, graph)?;
            let start = Instant::now();
            for step in 0..TIMED_STEPS {
                if step >= 3 && start.elapsed() > TIMED {
                    break;
                }
                runner.step(&[], &[])?;
            }
            Ok(runner.median_ms())
        };
        run().map_or_else(|error| Ran::Failed(error.to_string()), Ran::Ms)
    };
    let ms = time(graph);
    let fp32_ms = match fp32 {
        Some(fp32) => time(fp32),
        // The form is fp32 itself.
        None if graph.precision == Precision::Fp32 => ms.clone(),
        None => Ran::LeftOut(without.to_owned()),
    };
    Second { engine: name, ms, fp32_ms }
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
