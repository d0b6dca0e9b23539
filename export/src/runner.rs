//! Runs a drawn graph step by step on tract, keeping its states and caches as the runtime does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tract_onnx::prelude::*;

use crate::graphs::StageGraph;

/// Why a graph did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The engine lacks an operator, or the graph is wrong.
    #[error("tract cannot load {stage}.onnx: {message}")]
    Load { stage: String, message: String },
    #[error("{stage}.onnx failed while running: {message}")]
    Run { stage: String, message: String },
    #[error("{stage}.onnx was run without its input `{name}`")]
    Input { stage: String, name: String },
    #[error("{stage}.onnx has no output `{name}`")]
    Output { stage: String, name: String },
}


/// A graph on tract with what it keeps between steps.
pub struct Runner {
    stage: String,
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<(String, Vec<usize>)>,
    outputs: Vec<String>,
    initial: BTreeMap<String, Tensor>,
    kept: BTreeMap<String, Tensor>,
    /// Time spent inside the engine by each step.
    pub times: Vec<Duration>,
}

impl Runner {
    /// Loads and optimises the graph.
    pub fn new(graph: &StageGraph) -> Result<Self, RunError> {
        let stage = graph.stage.to_string();
        let load = |error: TractError| RunError::Load { stage: stage.clone(), message: format!("{error:#}") };
        let plan = onnx()
            .model_for_read(&mut &graph.onnx[..])
            .and_then(|model| model.into_optimized())
            .and_then(|model| model.into_runnable())
            .map_err(load)?;
        let mut initial = BTreeMap::new();
        let mut values = graph.initial.iter().flatten();
        for input in &graph.inputs {
            let state = input.name.starts_with("state.");
            if state || input.name.starts_with("cache.") {
                let data: Vec<f32> = match (&graph.initial, state) {
                    (Some(_), true) => values.by_ref().take(input.elements()).copied().collect(),
                    _ => vec![0.0; input.elements()],
                };
                initial.insert(input.name.clone(), Tensor::from_shape(&input.shape, &data).map_err(load)?);
            }
        }
        Ok(Self {
            stage: stage.clone(),
            plan,
            inputs: graph.inputs.iter().map(|t| (t.name.clone(), t.shape.clone())).collect(),
            outputs: graph.outputs.iter().map(|t| t.name.clone()).collect(),
            kept: initial.clone(),
            initial,
            times: Vec::new(),
        })
    }

    /// Back to the state before the first chunk.
    pub fn reset(&mut self) {
        self.kept = self.initial.clone();
    }

    /// A state or cache as it stands.
    pub fn kept(&self, name: &str) -> Result<Vec<f32>, RunError> {
        let tensor = self.kept.get(name).ok_or_else(|| self.no_output(name))?;
        Ok(floats(tensor))
    }

    fn no_output(&self, name: &str) -> RunError {
        RunError::Output { stage: self.stage.clone(), name: name.into() }
    }

    /// One step: f32 and i64 inputs by name in, outputs by name out; states and caches move on.
    pub fn step(&mut self, f32s: &[(&str, &[f32])], i64s: &[(&str, &[i64])]) -> Result<Outputs, RunError> {
        let stage = self.stage.clone();
        let failed = |error: TractError| RunError::Run { stage: stage.clone(), message: format!("{error:#}") };
        let mut values: TVec<TValue> = tvec![];
        for (name, shape) in &self.inputs {
            let tensor = if let Some((_, data)) = f32s.iter().find(|(n, _)| n == name) {
                Tensor::from_shape(shape, data).map_err(failed)?
            } else if let Some((_, data)) = i64s.iter().find(|(n, _)| n == name) {
                Tensor::from_shape(shape, data).map_err(failed)?
            } else if let Some(tensor) = self.kept.get(name) {
                tensor.clone()
            } else {
                return Err(RunError::Input { stage: stage.clone(), name: name.clone() });
            };
            values.push(tensor.into());
        }
        let start = Instant::now();
        let results = self.plan.run(values).map_err(failed)?;
        self.times.push(start.elapsed());
        let mut outputs = BTreeMap::new();
        for (name, value) in self.outputs.iter().zip(results) {
            let tensor = value.into_tensor();
            if let Some(state) = name.strip_suffix(".next") {
                self.kept.insert(state.into(), tensor);
            } else if let Some(cache) = name.strip_suffix(".new") {
                let row = i64s.iter().find(|(n, _)| *n == "position").map_or(0, |(_, p)| p[0] as usize);
                let cache = self.kept.get_mut(cache).ok_or_else(|| RunError::Output { stage: stage.clone(), name: name.clone() })?;
                write_row(cache, row, &floats(&tensor)).map_err(failed)?;
            } else {
                outputs.insert(name.clone(), tensor);
            }
        }
        Ok(Outputs { stage, values: outputs })
    }

    /// Median milliseconds of a step so far.
    pub fn median_ms(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times.get(times.len() / 2).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
    }
}

/// The new row `[KV, 1, dh]` into a cache `[KV, C, dh]`.
fn write_row(cache: &mut Tensor, row: usize, new: &[f32]) -> TractResult<()> {
    let (rows, width) = (cache.shape()[1], cache.shape()[2]);
    let mut view = cache.to_plain_array_view_mut::<f32>()?;
    let flat = view.as_slice_mut().context("a cache lies in order")?;
    for (head, values) in new.chunks_exact(width).enumerate() {
        let at = (head * rows + row) * width;
        flat[at..at + width].copy_from_slice(values);
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_plain_array_view::<f32>().map(|view| view.iter().copied().collect()).unwrap_or_default()
}

/// What a step gave, without states and cache rows.
pub struct Outputs {
    stage: String,
    values: BTreeMap<String, Tensor>,
}

impl Outputs {
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, RunError> {
        self.values.get(name).map(floats).ok_or_else(|| RunError::Output { stage: self.stage.clone(), name: name.into() })
    }

    pub fn i64(&self, name: &str) -> Result<Vec<i64>, RunError> {
        let missing = || RunError::Output { stage: self.stage.clone(), name: name.into() };
        let view = self.values.get(name).ok_or_else(missing)?.to_plain_array_view::<i64>().map_err(|_| missing())?;
        Ok(view.iter().copied().collect())
    }
}
