//! Which engine, and on what: the wish as users write it, and how it is met.
//!
//! An explicit wish that cannot be met is an error. `auto` is tract on one thread of the CPU: it is inside the program
//! (ONNX Runtime is a library of 29 MB that a user has to bring, and the agent must not answer otherwise because one
//! happens to lie about), and the bundle that is shipped runs on it at forty times real time on one core. ONNX Runtime
//! takes 0.6 of tract's CPU time there: where that matters, it is one flag away. Only a graph that tract cannot load goes
//! to ONNX Runtime by itself, and that is said aloud.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use serde::Deserialize;

use super::{Engine, EngineError, Session, Tract};
use crate::bundle::StageEntry;

/// `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum EngineName {
    /// What fits.
    #[default]
    Auto,
    /// Pure Rust, in every program.
    Tract,
    /// ONNX Runtime, in programs with the feature `ort`.
    Ort,
}

impl FromStr for EngineName {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, EngineError> {
        match name {
            "auto" => Ok(Self::Auto),
            "tract" => Ok(Self::Tract),
            "ort" => Ok(Self::Ort),
            _ => Err(EngineError::Unknown { what: "engine", name: name.to_owned(), known: "auto, tract, ort" }),
        }
    }
}

impl TryFrom<String> for EngineName {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self, EngineError> {
        text.parse()
    }
}

/// `--device`: what the graphs run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// One thread of the CPU.
    #[default]
    Auto,
    /// `cpu` (one thread) or `cpu:N`: threads for one graph.
    Cpu { threads: usize },
    /// `cuda` or `cuda:N`: the graphics card of this number, from 0.
    Cuda { index: i32 },
    /// `tensorrt` or `tensorrt:N`: TensorRT on the graphics card of this number. It compiles each graph when it loads it.
    TensorRt { index: i32 },
}

impl Device {
    /// Can an engine serve it that has one thread?
    fn is_one_thread(self) -> bool {
        matches!(self, Self::Auto | Self::Cpu { threads: 1 })
    }
}

impl FromStr for Device {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let known = "auto, cpu, cpu:N (N threads, 1 to 64), cuda, cuda:N (the N-th card, from 0), tensorrt, tensorrt:N";
        let unknown = || EngineError::Unknown { what: "device", name: text.to_owned(), known };
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse::<u8>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (kind, number) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None | Some(1..=64)) => Ok(Self::Cpu { threads: usize::from(number.unwrap_or(1)) }),
            ("cuda", _) => Ok(Self::Cuda { index: i32::from(number.unwrap_or(0)) }),
            ("tensorrt", _) => Ok(Self::TensorRt { index: i32::from(number.unwrap_or(0)) }),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self, EngineError> {
        text.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu { threads: 1 } => f.write_str("cpu"),
            Self::Cpu { threads } => write!(f, "cpu:{threads}"),
            Self::Cuda { index } => write!(f, "cuda:{index}"),
            Self::TensorRt { index } => write!(f, "tensorrt:{index}"),
        }
    }
}

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    pub engine: EngineName,
    pub device: Device,
    /// The library of ONNX Runtime, or its folder. Without it, `ORT_DYLIB_PATH` and the usual places are looked at.
    pub library: Option<PathBuf>,
}

impl Wish {
    /// The engine that meets the wish. `say` is told, once, when a graph goes to another engine than expected.
    ///
    /// # Errors
    /// [`EngineError::NotBuilt`], [`EngineError::Library`] or [`EngineError::Device`]: each says what to do.
    pub fn open(&self, say: impl Fn(&str) + Send + Sync + 'static) -> Result<Box<dyn Engine>, EngineError> {
        match (self.engine, self.device) {
            (EngineName::Auto, device) if device.is_one_thread() => {
                Ok(Box::new(Auto { library: self.library.clone(), say: Box::new(say), second: OnceLock::new() }))
            }
            (EngineName::Tract, device) if device.is_one_thread() => Ok(Box::new(Tract)),
            (EngineName::Tract, device) => {
                let message = match device {
                    Device::Cpu { .. } => "it runs on one thread: use --device cpu, or --engine ort",
                    _ => "it runs on the CPU: use --device cpu, or --engine ort",
                };
                Err(EngineError::Device { engine: Tract.name(), device: device.to_string(), message: message.to_owned() })
            }
            // tract has one thread and no graphics card.
            (EngineName::Auto | EngineName::Ort, device) => second(self.engine, self.library.as_deref(), device),
        }
    }
}

#[cfg(feature = "ort")]
fn second(engine: EngineName, library: Option<&Path>, device: Device) -> Result<Box<dyn Engine>, EngineError> {
    match super::Ort::open(library, device) {
        Ok(ort) => Ok(Box::new(ort)),
        // Who names the device alone need not know whom it takes.
        Err(EngineError::Library { message }) if engine == EngineName::Auto => {
            Err(EngineError::Library { message: format!("--device {device} needs it, but {message}") })
        }
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "ort"))]
fn second(engine: EngineName, _: Option<&Path>, device: Device) -> Result<Box<dyn Engine>, EngineError> {
    let wish = if engine == EngineName::Ort { "--engine ort".to_owned() } else { format!("--device {device}") };
    Err(EngineError::NotBuilt { wish })
}

/// tract, and ONNX Runtime for a graph that tract cannot load.
struct Auto {
    library: Option<PathBuf>,
    say: Box<dyn Fn(&str) + Send + Sync>,
    /// Opened at the first graph that needs it, or why it cannot be.
    second: OnceLock<Result<Box<dyn Engine>, String>>,
}

impl Engine for Auto {
    fn name(&self) -> &'static str {
        match self.second.get() {
            Some(Ok(_)) => "tract and ort",
            _ => Tract.name(),
        }
    }

    fn load(&self, path: &Path, declared: &StageEntry) -> Result<Box<dyn Session>, EngineError> {
        let (engine, path, message) = match Tract.load(path, declared) {
            Err(EngineError::Load { engine, path, message }) => (engine, path, message),
            other => return other,
        };
        let open = || second(EngineName::Ort, self.library.as_deref(), Device::Auto).map_err(|e| e.to_string());
        let loaded = match self.second.get_or_init(open) {
            Ok(other) => other.load(&path, declared).map_err(|e| e.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        let why = format!("{engine} cannot load {}: {message}", path.display());
        match loaded {
            Ok(session) => {
                (self.say)(&format!("{why}; ONNX Runtime runs it instead"));
                Ok(session)
            }
            Err(other) => Err(EngineError::Load { engine, path, message: format!("{message}; nor does ONNX Runtime: {other}") }),
        }
    }
}
