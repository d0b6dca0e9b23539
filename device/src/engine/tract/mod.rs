//! The default engine: tract, pure Rust, on the CPU. Linear layers in 8 bits are computed by an operator of ours.

mod fuse;
mod linear;
mod products;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tract_onnx::pb::GraphProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::runtime::DefaultRuntime;

pub use self::fuse::fuse;
use super::declared::{mismatch, order, rows, same_tensor, wrong_type};
use super::{Engine, EngineError, Session};
use crate::bundle::{DType, StageEntry, TensorEntry};

const NAME: &str = "tract";

/// tract 0.23 on one thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError> {
        // tract panics on some graphs that nobody writes but a damaged disk or a stranger (a constant of text with raw bytes, a tensor
        // without a type): its reader takes them for granted. Nothing of what it made by then is used afterwards.
        catch_unwind(AssertUnwindSafe(|| self.read(path, declared))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let message = format!("it is no graph that tract expects ({})", said.unwrap_or("no reason was given"));
            Err(EngineError::Load { engine: NAME, path: path.to_owned(), message })
        })
    }
}

impl Tract {
    fn read(self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError> {
        let failed = |e: TractError| EngineError::Load { engine: NAME, path: path.to_owned(), message: chain(&e) };
        let mut file = std::fs::File::open(path).map_err(|e| failed(e.into()))?;
        // By the reader and the runtime, which are not generic: their code is then compiled in tract, not here again.
        let mut onnx = onnx();
        onnx.op_register.insert(linear::NAME, linear::build);
        let mut proto = onnx.proto_model_for_read(&mut file).map_err(failed)?;
        if let Some(graph) = &mut proto.graph {
            // tract takes this for granted.
            if let Some(name) = unwritten(graph) {
                let message = format!("no node writes the output {name}");
                return Err(EngineError::Load { engine: NAME, path: path.to_owned(), message });
            }
            fuse(graph);
        }
        let model = onnx.model_for_proto_model(&proto).map_err(failed)?;
        drop(proto);
        // Names are read here: optimisation renames nodes.
        let inputs = order(path, "input", &declared.inputs, &names(&model, &model.inputs))?;
        let outputs = order(path, "output", &declared.outputs, &names(&model, &model.outputs))?;
        let plan = DefaultRuntime.prepare(model.into_typed().map_err(failed)?).map_err(failed)?;
        for (i, entry) in inputs.iter().enumerate() {
            same(path, "input", entry, plan.input_fact(i).map_err(failed)?)?;
        }
        for (i, entry) in outputs.iter().enumerate() {
            same(path, "output", entry, plan.output_fact(i).map_err(failed)?)?;
        }
        let state = plan.spawn().map_err(failed)?;
        let mut values = Vec::with_capacity(inputs.len());
        for entry in &inputs {
            let zeros = Tensor::zero_aligned_dt(datum(entry.dtype), &entry.shape, 64).map_err(failed)?;
            values.push(Arc::new(zeros));
        }
        Ok(Box::new(TractSession { state, inputs, outputs, values, results: Vec::new() }))
    }
}

/// Inputs are `Arc`s that only the session holds between runs, so they are written in place; during a run tract
/// holds a second reference and therefore never overwrites them.
struct TractSession {
    state: Box<dyn State>,
    inputs: Vec<TensorEntry>,
    outputs: Vec<TensorEntry>,
    values: Vec<Arc<Tensor>>,
    results: Vec<Arc<Tensor>>,
}

impl Session for TractSession {
    fn inputs(&self) -> &[TensorEntry] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorEntry] {
        &self.outputs
    }

    fn f32_input(&mut self, input: usize) -> Result<&mut [f32], EngineError> {
        let entry = &self.inputs[input];
        slice_mut(entry, DType::F32, &mut self.values[input])
    }

    fn i64_input(&mut self, input: usize) -> Result<&mut [i64], EngineError> {
        let entry = &self.inputs[input];
        slice_mut(entry, DType::I64, &mut self.values[input])
    }

    fn run(&mut self) -> Result<(), EngineError> {
        let inputs: TVec<TValue> = self.values.iter().map(|t| t.clone().into_tvalue()).collect();
        let outputs = self.state.run(inputs).map_err(|e| EngineError::Run { engine: NAME, message: chain(&e) })?;
        self.results.clear();
        self.results.extend(outputs.into_iter().map(IntoArcTensor::into_arc_tensor));
        Ok(())
    }

    fn f32_output(&self, output: usize) -> Result<&[f32], EngineError> {
        slice(&self.outputs[output], DType::F32, self.results.get(output))
    }

    fn i64_output(&self, output: usize) -> Result<&[i64], EngineError> {
        slice(&self.outputs[output], DType::I64, self.results.get(output))
    }

    fn hand_over(&mut self, output: usize, input: usize) -> Result<(), EngineError> {
        same_tensor(&self.outputs[output], &self.inputs[input])?;
        let value = self.results.get(output).ok_or_else(|| EngineError::NotRun { name: self.outputs[output].name.clone() })?;
        self.values[input] = value.clone();
        Ok(())
    }

    fn write_rows(&mut self, output: usize, input: usize, at: usize) -> Result<(), EngineError> {
        let rows = rows(&self.outputs[output], &self.inputs[input], at)?;
        let from = slice::<f32>(&self.outputs[output], DType::F32, self.results.get(output))?;
        let to = slice_mut::<f32>(&self.inputs[input], DType::F32, &mut self.values[input])?;
        rows.copy(from, to, at);
        Ok(())
    }
}

/// An output of the graph that is nothing in it.
fn unwritten(graph: &GraphProto) -> Option<&str> {
    let inputs = graph.input.iter().map(|input| &input.name).chain(graph.initializer.iter().map(|constant| &constant.name));
    let written: HashSet<&String> = graph.node.iter().flat_map(|node| &node.output).chain(inputs).collect();
    graph.output.iter().map(|output| &output.name).find(|name| !written.contains(name)).map(String::as_str)
}

fn names(model: &InferenceModel, outlets: &[OutletId]) -> Vec<String> {
    outlets.iter().map(|o| model.outlet_label(*o).map_or_else(|| model.node(o.node).name.clone(), str::to_owned)).collect()
}

fn same(path: &Path, what: &'static str, declared: &TensorEntry, fact: &TypedFact) -> Result<(), EngineError> {
    let concrete = fact.shape.as_concrete();
    if fact.datum_type == datum(declared.dtype) && concrete == Some(&declared.shape[..]) {
        return Ok(());
    }
    Err(mismatch(path, what, declared, format!("{:?} {:?}", fact.datum_type, fact.shape)))
}

fn datum(dtype: DType) -> DatumType {
    match dtype {
        DType::F32 => DatumType::F32,
        DType::I64 => DatumType::I64,
    }
}

fn slice_mut<'a, T: Datum>(entry: &TensorEntry, dtype: DType, value: &'a mut Arc<Tensor>) -> Result<&'a mut [T], EngineError> {
    // Shared only where a graph passes an input through unchanged; then, and only then, this copies.
    let view = Arc::make_mut(value).to_plain_array_view_mut::<T>().map_err(|_| wrong_type(entry, dtype))?;
    view.into_slice().ok_or_else(|| wrong_type(entry, dtype))
}

fn slice<'a, T: Datum>(entry: &TensorEntry, dtype: DType, value: Option<&'a Arc<Tensor>>) -> Result<&'a [T], EngineError> {
    let value = value.ok_or_else(|| EngineError::NotRun { name: entry.name.clone() })?;
    let plain = value.try_as_plain_ram().map_err(|_| wrong_type(entry, dtype))?;
    plain.as_slice::<T>().map_err(|_| wrong_type(entry, dtype))
}

/// An error with its causes on one line.
fn chain(error: &TractError) -> String {
    format!("{error:#}").replace('\n', " ")
}
