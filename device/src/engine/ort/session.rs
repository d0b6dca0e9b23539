//! A graph of ONNX Runtime with its buffers.

use ::ort::memory::Allocator;
use ::ort::session::{IoBinding, Session as Graph};
use ::ort::value::Tensor;

use super::{NAME, one_line};
use crate::bundle::{DType, TensorEntry};
use crate::engine::declared::{rows, same_tensor, wrong_type};
use crate::engine::{EngineError, Session};

/// The values of one tensor, in the CPU's memory.
enum Buffer {
    F32(Tensor<f32>),
    I64(Tensor<i64>),
}

impl Buffer {
    /// Zeros.
    fn new(entry: &TensorEntry) -> ::ort::Result<Self> {
        let allocator = Allocator::default();
        let shape = &entry.shape[..];
        Ok(match entry.dtype {
            DType::F32 => {
                let mut tensor = Tensor::<f32>::new(&allocator, shape)?;
                tensor.extract_tensor_mut().1.fill(0.0);
                Self::F32(tensor)
            }
            DType::I64 => {
                let mut tensor = Tensor::<i64>::new(&allocator, shape)?;
                tensor.extract_tensor_mut().1.fill(0);
                Self::I64(tensor)
            }
        })
    }

    /// Both have one type and shape.
    fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::F32(to), Self::F32(from)) => to.extract_tensor_mut().1.copy_from_slice(from.extract_tensor().1),
            (Self::I64(to), Self::I64(from)) => to.extract_tensor_mut().1.copy_from_slice(from.extract_tensor().1),
            _ => {}
        }
    }
}

/// The graph, its buffers, and what is bound to what.
pub(super) struct OrtSession {
    graph: Graph,
    binding: IoBinding,
    inputs: Vec<TensorEntry>,
    outputs: Vec<TensorEntry>,
    values: Vec<Buffer>,
    results: Vec<Buffer>,
    /// The input that holds the values of this output since it was handed over, until the next run.
    handed: Vec<Option<usize>>,
    /// To be bound before the next run.
    stale_inputs: Vec<bool>,
    stale_outputs: Vec<bool>,
    on_cpu: bool,
    has_run: bool,
}

impl OrtSession {
    pub(super) fn new(graph: Graph, inputs: Vec<TensorEntry>, outputs: Vec<TensorEntry>, on_cpu: bool) -> ::ort::Result<Self> {
        Ok(Self {
            binding: graph.create_binding()?,
            graph,
            values: inputs.iter().map(Buffer::new).collect::<::ort::Result<_>>()?,
            results: outputs.iter().map(Buffer::new).collect::<::ort::Result<_>>()?,
            handed: vec![None; outputs.len()],
            stale_inputs: vec![true; inputs.len()],
            stale_outputs: vec![true; outputs.len()],
            inputs,
            outputs,
            on_cpu,
            has_run: false,
        })
    }

    fn bind_and_run(&mut self) -> ::ort::Result<()> {
        for (input, stale) in self.stale_inputs.iter_mut().enumerate().filter(|(_, stale)| **stale) {
            let name = self.inputs[input].name.as_str();
            match &self.values[input] {
                Buffer::F32(tensor) => self.binding.bind_input(name, tensor)?,
                Buffer::I64(tensor) => self.binding.bind_input(name, tensor)?,
            }
            *stale = false;
        }
        for (output, stale) in self.stale_outputs.iter_mut().enumerate().filter(|(_, stale)| **stale) {
            let name = self.outputs[output].name.as_str();
            match &mut self.results[output] {
                Buffer::F32(tensor) => self.binding.bind_output(name, tensor)?,
                Buffer::I64(tensor) => self.binding.bind_output(name, tensor)?,
            }
            *stale = false;
        }
        if !self.on_cpu {
            self.binding.synchronize_inputs()?;
        }
        self.graph.run_binding(&self.binding)?;
        if !self.on_cpu {
            self.binding.synchronize_outputs()?;
        }
        Ok(())
    }

    /// Gives an output that was handed over its own copy of the values again.
    fn take_back(&mut self, output: usize) {
        if let Some(input) = self.handed[output].take() {
            self.results[output].copy_from(&self.values[input]);
        }
    }

    /// Before an input is written: what an output still shows there must not change.
    fn release(&mut self, input: usize) {
        if let Some(output) = self.handed.iter().position(|holder| *holder == Some(input)) {
            self.take_back(output);
        }
        // An accelerator has a copy, made when the input was bound.
        self.stale_inputs[input] |= !self.on_cpu;
    }

    fn result(&self, output: usize) -> Result<&Buffer, EngineError> {
        if !self.has_run {
            return Err(EngineError::NotRun { name: self.outputs[output].name.clone() });
        }
        Ok(match self.handed[output] {
            Some(input) => &self.values[input],
            None => &self.results[output],
        })
    }
}

impl Session for OrtSession {
    fn inputs(&self) -> &[TensorEntry] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorEntry] {
        &self.outputs
    }

    fn f32_input(&mut self, input: usize) -> Result<&mut [f32], EngineError> {
        self.release(input);
        match &mut self.values[input] {
            Buffer::F32(tensor) => Ok(tensor.extract_tensor_mut().1),
            Buffer::I64(_) => Err(wrong_type(&self.inputs[input], DType::F32)),
        }
    }

    fn i64_input(&mut self, input: usize) -> Result<&mut [i64], EngineError> {
        self.release(input);
        match &mut self.values[input] {
            Buffer::I64(tensor) => Ok(tensor.extract_tensor_mut().1),
            Buffer::F32(_) => Err(wrong_type(&self.inputs[input], DType::I64)),
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        // Whatever happens, the outputs of the run before are gone.
        self.has_run = false;
        self.handed.fill(None);
        self.bind_and_run().map_err(|e| EngineError::Run { engine: NAME, message: one_line(&e.to_string()) })?;
        self.has_run = true;
        Ok(())
    }

    fn f32_output(&self, output: usize) -> Result<&[f32], EngineError> {
        match self.result(output)? {
            Buffer::F32(tensor) => Ok(tensor.extract_tensor().1),
            Buffer::I64(_) => Err(wrong_type(&self.outputs[output], DType::F32)),
        }
    }

    fn i64_output(&self, output: usize) -> Result<&[i64], EngineError> {
        match self.result(output)? {
            Buffer::I64(tensor) => Ok(tensor.extract_tensor().1),
            Buffer::F32(_) => Err(wrong_type(&self.outputs[output], DType::I64)),
        }
    }

    fn hand_over(&mut self, output: usize, input: usize) -> Result<(), EngineError> {
        same_tensor(&self.outputs[output], &self.inputs[input])?;
        self.result(output)?;
        if self.handed[output] == Some(input) {
            return Ok(());
        }
        self.release(input);
        // One that goes to two inputs is copied for the second.
        self.take_back(output);
        std::mem::swap(&mut self.values[input], &mut self.results[output]);
        self.handed[output] = Some(input);
        self.stale_inputs[input] = true;
        self.stale_outputs[output] = true;
        Ok(())
    }

    fn write_rows(&mut self, output: usize, input: usize, at: usize) -> Result<(), EngineError> {
        let rows = rows(&self.outputs[output], &self.inputs[input], at)?;
        self.result(output)?;
        self.release(input);
        self.take_back(output);
        if let (Buffer::F32(from), Buffer::F32(to)) = (&self.results[output], &mut self.values[input]) {
            rows.copy(from.extract_tensor().1, to.extract_tensor_mut().1, at);
        }
        Ok(())
    }
}
