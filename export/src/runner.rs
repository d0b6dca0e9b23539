//! Runs a graph step by step on an engine of the runtime, keeping its states and caches as the runtime does.

use std::path::Path;
use std::time::{Duration, Instant};

use sa_device::bundle::{Bundle, BundleError, StageEntry, StageName};
use sa_device::engine::{Engine, EngineError, Session};

use crate::graphs::StageGraph;
use crate::onnx::{Importance, PROBE};

/// Why a graph did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The engine lacks an operator, or the graph is wrong.
    #[error("stage {stage}: {source}")]
    Engine { stage: StageName, source: EngineError },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's stage is of another model than its caller takes it for.
    #[error("stage {stage}: {values} values for the input `{name}`, which has {size}")]
    Size { stage: StageName, name: String, values: usize, size: usize },
    #[error("stage {stage} has no {what} `{name}`")]
    Tensor { stage: StageName, what: &'static str, name: String },
}

/// A graph on the engine with what it keeps between steps.
pub struct Runner {
    stage: StageName,
    session: Box<dyn Session>,
    /// Input, output and initial values of each state.
    states: Vec<(usize, usize, Vec<f32>)>,
    /// Input and output of each cache.
    caches: Vec<(usize, usize)>,
    times: Vec<Duration>,
    /// Outputs that tell the squares of a layer's inputs: the layer, the output, their sums, and how many rows were added.
    probes: Vec<(String, usize, Vec<f64>, usize)>,
}

impl Runner {
    /// Loads a graph that was just drawn.
    pub fn new(engine: &dyn Engine, graph: &StageGraph) -> Result<Self, RunError> {
        let mut values = graph.initial.iter().flatten().copied();
        let states = graph.inputs.iter().filter(|input| input.name.starts_with("state."));
        let initial = states
            .map(|state| {
                let count = state.elements();
                let values = match graph.initial {
                    Some(_) => values.by_ref().take(count).collect(),
                    None => vec![0.0; count],
                };
                (state.name.clone(), values)
            })
            .collect();
        Self::load(engine, graph.stage, graph.onnx.path(), &graph.entry(), initial)
    }

    /// Loads a stage of a bundle.
    pub fn open(engine: &dyn Engine, bundle: &Bundle, stage: StageName) -> Result<Self, RunError> {
        Self::load(engine, stage, &bundle.graph_path(stage)?, bundle.manifest().stage.require(stage)?, bundle.initial_states(stage)?)
    }

    fn load(
        engine: &dyn Engine,
        stage: StageName,
        path: &Path,
        entry: &StageEntry,
        initial: Vec<(String, Vec<f32>)>,
    ) -> Result<Self, RunError> {
        let session = engine.load(path, entry).map_err(|source| RunError::Engine { stage, source })?;
        let mut runner = Self { stage, session, states: Vec::new(), caches: Vec::new(), times: Vec::new(), probes: Vec::new() };
        for (name, values) in initial {
            runner.states.push((runner.input(&name)?, runner.output(&format!("{name}.next"))?, values));
        }
        for cache in entry.inputs.iter().filter(|input| input.name.starts_with("cache.")) {
            runner.caches.push((runner.input(&cache.name)?, runner.output(&format!("{}.new", cache.name))?));
        }
        for output in entry.outputs.iter() {
            if let (Some(layer), Some(inputs)) = (output.name.strip_prefix(PROBE), output.shape.last()) {
                runner.probes.push((layer.to_owned(), runner.output(&output.name)?, vec![0.0; *inputs], 0));
            }
        }
        runner.reset()?;
        Ok(runner)
    }

    fn input(&self, name: &str) -> Result<usize, RunError> {
        self.session.input(name).ok_or_else(|| RunError::Tensor { stage: self.stage, what: "input", name: name.into() })
    }

    fn output(&self, name: &str) -> Result<usize, RunError> {
        self.session.output(name).ok_or_else(|| RunError::Tensor { stage: self.stage, what: "output", name: name.into() })
    }

    /// Back to the state before the first chunk. Caches keep their rows: the position says which are read.
    pub fn reset(&mut self) -> Result<(), RunError> {
        let stage = self.stage;
        for (input, _, initial) in &self.states {
            let values = self.session.f32_input(*input).map_err(|source| RunError::Engine { stage, source })?;
            values.copy_from_slice(initial);
        }
        Ok(())
    }

    /// One step: inputs by name; states move on, and caches grow at the row that the input `position` names.
    pub fn step(&mut self, f32s: &[(&str, &[f32])], i64s: &[(&str, &[i64])]) -> Result<Outputs<'_>, RunError> {
        let stage = self.stage;
        for (name, values) in f32s {
            let input = self.input(name)?;
            let buffer = self.session.f32_input(input).map_err(|source| RunError::Engine { stage, source })?;
            fill(buffer, values).map_err(|size| RunError::Size { stage, name: (*name).into(), values: values.len(), size })?;
        }
        for (name, values) in i64s {
            let input = self.input(name)?;
            let buffer = self.session.i64_input(input).map_err(|source| RunError::Engine { stage, source })?;
            fill(buffer, values).map_err(|size| RunError::Size { stage, name: (*name).into(), values: values.len(), size })?;
        }
        let row = i64s.iter().find(|(name, _)| *name == "position").map_or(0, |(_, position)| position[0] as usize);
        let start = Instant::now();
        self.advance(row).map_err(|source| RunError::Engine { stage, source })?;
        self.times.push(start.elapsed());
        Ok(Outputs { runner: self })
    }

    fn advance(&mut self, row: usize) -> Result<(), EngineError> {
        self.session.run()?;
        for (input, output, _) in &self.states {
            self.session.hand_over(*output, *input)?;
        }
        for (input, output) in &self.caches {
            self.session.write_rows(*output, *input, row)?;
        }
        for (_, output, sums, rows) in &mut self.probes {
            for squares in self.session.f32_output(*output)?.chunks_exact(sums.len()) {
                sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += f64::from(*square));
                *rows += 1;
            }
        }
        Ok(())
    }

    /// What the probes of a graph that was drawn with [`crate::onnx::Form::probe`] have seen in all steps.
    pub fn importance(&self) -> Importance {
        let mean = |sums: &[f64], rows: usize| sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect();
        self.probes.iter().map(|(layer, _, sums, rows)| (layer.clone(), mean(sums, *rows))).collect()
    }

    /// Median milliseconds of a step so far.
    pub fn median_ms(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    }
}

/// Copies values of the same number, or says how many there should be.
fn fill<T: Copy>(buffer: &mut [T], values: &[T]) -> Result<(), usize> {
    if buffer.len() != values.len() {
        return Err(buffer.len());
    }
    buffer.copy_from_slice(values);
    Ok(())
}

/// What the last step gave.
pub struct Outputs<'a> {
    runner: &'a Runner,
}

impl Outputs<'_> {
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, RunError> {
        let output = self.runner.output(name)?;
        let values = self.runner.session.f32_output(output).map_err(|source| RunError::Engine { stage: self.runner.stage, source })?;
        Ok(values.to_vec())
    }

    /// Of a trunk: text logits and hidden state.
    pub fn text(&self) -> Result<(Vec<f32>, Vec<f32>), RunError> {
        Ok((self.f32("logits")?, self.f32("hidden")?))
    }

    pub fn i64(&self, name: &str) -> Result<Vec<i64>, RunError> {
        let output = self.runner.output(name)?;
        let values = self.runner.session.i64_output(output).map_err(|source| RunError::Engine { stage: self.runner.stage, source })?;
        Ok(values.to_vec())
    }
}
