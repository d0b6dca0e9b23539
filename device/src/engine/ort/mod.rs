//! The second engine: ONNX Runtime, a shared library that is loaded when it is asked for.
//!
//! Buffers of inputs and outputs are made once, at loading, and bound to the graph; a state that is handed over
//! changes places with the input's buffer and is bound anew. On the CPU the graph reads and writes them in place; for
//! an accelerator ONNX Runtime copies an input when it is bound, so there every input that was written is bound again.

mod library;
mod session;

use std::path::{Path, PathBuf};

use ::ort::environment::Environment;
use ::ort::ep::{CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT};
use ::ort::session::Session as Graph;
use ::ort::session::builder::SessionBuilder;
use ::ort::value::{TensorElementType, ValueType};

use super::declared::{mismatch, order};
use super::{Device, Engine, EngineError, Session};
use crate::bundle::{DType, StageEntry, TensorEntry};
use session::OrtSession;

const NAME: &str = "ort";

/// ONNX Runtime on one device.
#[derive(Debug, Clone)]
pub struct Ort {
    environment: Environment,
    library: PathBuf,
    device: Device,
}

impl Ort {
    /// Loads the library (see `--ort-library`; without a path `ORT_DYLIB_PATH` and the usual places are looked at) and
    /// asks it for the device. [`Device::Auto`] is one thread of the CPU: a graphics card is used when it is asked for.
    ///
    /// # Errors
    /// [`EngineError::Library`] when there is no library that can be used, [`EngineError::Device`] when it cannot use
    /// the device.
    pub fn open(library: Option<&Path>, device: Device) -> Result<Self, EngineError> {
        let (library, environment) = library::load(library)?;
        let ort = Self { environment, library, device };
        // The device is asked for once here, so that a wish that cannot be met is told before any graph is read.
        ort.builder()?;
        Ok(ort)
    }

    /// The file that was loaded, links followed.
    pub fn library(&self) -> &Path {
        &self.library
    }

    fn builder(&self) -> Result<SessionBuilder, EngineError> {
        let unmet = |message: String| EngineError::Device { engine: NAME, device: self.device.to_string(), message };
        let threads = if let Device::Cpu { threads } = self.device { threads } else { 1 };
        let configured = || {
            // Four graphs of an agent take turns: waiting threads must sleep, not spin on the cores of the others.
            Graph::builder(&self.environment)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)
                .map_err(Into::into)
        };
        let builder = configured().map_err(|e: ::ort::Error| unmet(e.to_string()))?;
        let (provider, present): (Vec<ExecutionProviderDispatch>, _) = match self.device {
            Device::Cuda { index } => (vec![cuda(index)], CUDA::is_available()),
            // What TensorRT does not know runs on CUDA.
            Device::TensorRt { index } => {
                (vec![TensorRT::default().with_device_id(index).build().error_on_failure(), cuda(index)], TensorRT::is_available())
            }
            Device::Auto | Device::Cpu { .. } => return Ok(builder),
        };
        if !present.map_err(|e| unmet(e.to_string()))? {
            let library = self.library.display();
            return Err(unmet(format!("{library} has no support for it: get the GPU build of ONNX Runtime, or use --device cpu")));
        }
        builder.with_execution_providers(provider).map_err(|e| unmet(one_line(&e.to_string())))
    }
}

fn cuda(index: i32) -> ExecutionProviderDispatch {
    CUDA::default().with_device_id(index).build().error_on_failure()
}

impl Engine for Ort {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError> {
        let failed = |e: ::ort::Error| EngineError::Load { engine: NAME, path: path.to_owned(), message: one_line(&e.to_string()) };
        let graph = self.builder()?.commit_from_file(path).map_err(failed)?;
        let names = |outlets: &[::ort::value::Outlet]| outlets.iter().map(|outlet| outlet.name().to_owned()).collect::<Vec<_>>();
        let inputs = order(path, "input", &declared.inputs, &names(graph.inputs()))?;
        let outputs = order(path, "output", &declared.outputs, &names(graph.outputs()))?;
        for (entry, outlet) in inputs.iter().zip(graph.inputs()) {
            same(path, "input", entry, outlet.dtype())?;
        }
        for (entry, outlet) in outputs.iter().zip(graph.outputs()) {
            same(path, "output", entry, outlet.dtype())?;
        }
        let on_cpu = matches!(self.device, Device::Auto | Device::Cpu { .. });
        Ok(Box::new(OrtSession::new(graph, inputs, outputs, on_cpu).map_err(failed)?))
    }
}

fn same(path: &Path, what: &'static str, declared: &TensorEntry, found: &ValueType) -> Result<(), EngineError> {
    let expected = match declared.dtype {
        DType::F32 => TensorElementType::Float32,
        DType::I64 => TensorElementType::Int64,
    };
    if let ValueType::Tensor { ty, shape, .. } = found {
        // A dimension that is not fixed is -1, which no declaration has.
        let fixed: Option<Vec<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        if *ty == expected && fixed.as_ref() == Some(&declared.shape) {
            return Ok(());
        }
        return Err(mismatch(path, what, declared, format!("{ty:?} {:?}", &shape[..])));
    }
    Err(mismatch(path, what, declared, format!("{found:?}")))
}

fn one_line(message: &str) -> String {
    message.trim().replace('\n', " ")
}
