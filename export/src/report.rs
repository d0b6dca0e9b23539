//! What an export measured: printed as a table, stored in `[measured]` of `bundle.toml`.

use std::fmt;

use sa_device::bundle::StageName;
use sa_device::engine::Engine;
use toml::{Table, Value};

use crate::onnx::{Layer, Precision};
use crate::samples::Samples;

/// Figures of one stage.
#[derive(Clone, Debug)]
pub struct StageReport {
    pub stage: StageName,
    pub precision: Precision,
    /// Why this form.
    pub reason: String,
    /// Relative L2 of the fp32 graph against the network, where there is one to run beside it.
    pub parity: Option<f64>,
    /// Error of the chosen form against fp32: relative L2 of logits or spectra; of units, the share that differ.
    pub error: f64,
    /// Share of units or text tokens that are as in fp32.
    pub agreement: Option<f64>,
    /// Mean difference of log-magnitudes.
    pub decibels: Option<f64>,
    pub bytes: usize,
    pub fp32_bytes: usize,
    /// Median of a step on the engine.
    pub ms: f64,
    pub fp32_ms: f64,
    /// Layers whose weights lost most.
    pub worst_layers: Vec<Layer>,
    /// Other engines on this machine.
    pub engine_ms: Vec<EngineTime>,
}

/// Median milliseconds of a step on an engine, or why it does not run the graph.
#[derive(Clone, Debug)]
pub struct EngineTime {
    pub engine: &'static str,
    pub ms: Result<f64, String>,
    pub fp32_ms: Result<f64, String>,
}

impl StageReport {
    /// The figures of the fp32 graph, to be replaced by those of another form.
    pub fn new(stage: StageName, precision: Precision, parity: Option<f64>, fp32_bytes: usize, fp32_ms: f64) -> Self {
        Self {
            stage,
            precision,
            reason: String::new(),
            parity,
            error: 0.0,
            agreement: None,
            decibels: None,
            bytes: fp32_bytes,
            fp32_bytes,
            ms: fp32_ms,
            fp32_ms,
            worst_layers: Vec::new(),
            engine_ms: Vec::new(),
        }
    }
}

/// Figures of an export.
#[derive(Clone, Debug)]
pub struct Report {
    /// The engine that it was measured on.
    pub engine: &'static str,
    pub stages: Vec<StageReport>,
    /// What forms were compared on, in words.
    samples: String,
}

impl Report {
    /// An empty report of a comparison on these samples.
    pub fn new(engine: &dyn Engine, samples: &Samples) -> Self {
        Self::on(engine, format!("{:.0} s of audio: {}", samples.seconds(), samples.source))
    }

    /// An empty report of a comparison on what is named.
    pub fn on(engine: &dyn Engine, samples: String) -> Self {
        Self { engine: engine.name(), stages: Vec::new(), samples }
    }

    /// Size of all graphs.
    pub fn bytes(&self) -> usize {
        self.stages.iter().map(|stage| stage.bytes).sum()
    }

    /// Memory that the runtime needs, an upper estimate: while a graph is loaded its file, its parsed form and the
    /// engine's packed weights (single precision, but for 8-bit and 4-bit products) are there at once.
    pub fn minimum_memory_mb(&self) -> u32 {
        let resident: usize = self.stages.iter().map(|s| if s.precision.computes_in_fewer_bits() { s.bytes } else { s.fp32_bytes }).sum();
        let largest = self.stages.iter().map(|s| s.fp32_bytes + s.bytes).max().unwrap_or(0);
        ((resident + largest) / 1_000_000) as u32 + 40
    }

    /// For `[measured]`.
    pub fn to_toml(&self) -> Table {
        let mut table = Table::new();
        table.insert("engine".into(), self.engine.into());
        table.insert("machine".into(), machine().into());
        table.insert("samples".into(), self.samples.clone().into());
        for stage in &self.stages {
            let mut entry = Table::new();
            // Here and not only above: a stage may be joined with those of other bundles.
            entry.insert("engine".into(), self.engine.into());
            entry.insert("reason".into(), stage.reason.clone().into());
            if let Some(parity) = stage.parity {
                entry.insert("parity_error".into(), rounded(parity));
            }
            entry.insert("error".into(), rounded(stage.error));
            if let Some(agreement) = stage.agreement {
                entry.insert("agreement".into(), rounded(agreement));
            }
            if let Some(decibels) = stage.decibels {
                entry.insert("spectral_distance_db".into(), rounded(decibels));
            }
            entry.insert("fp32_bytes".into(), Value::Integer(stage.fp32_bytes as i64));
            entry.insert("step_ms".into(), rounded(stage.ms));
            entry.insert("fp32_step_ms".into(), rounded(stage.fp32_ms));
            for EngineTime { engine, ms, fp32_ms } in &stage.engine_ms {
                for (key, ms) in [(format!("{engine}_step_ms"), ms), (format!("{engine}_fp32_step_ms"), fp32_ms)] {
                    let value = ms.as_ref().map_or_else(|reason| Value::String(reason.clone()), |ms| rounded(*ms));
                    entry.insert(key, value);
                }
            }
            if !stage.worst_layers.is_empty() {
                let layers = stage.worst_layers.iter().map(|layer| (layer.name.clone(), rounded(layer.error)));
                entry.insert("worst_layers".into(), Value::Table(layers.collect()));
            }
            table.insert(stage.stage.as_str().into(), Value::Table(entry));
        }
        table
    }
}

/// Four significant digits.
fn rounded(value: f64) -> Value {
    Value::Float(format!("{value:.3e}").parse().unwrap_or(value))
}

/// The processor's name.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|l| l.starts_with("model name") || l.starts_with("Model"));
    let name = name.and_then(|line| line.split(':').nth(1)).map_or("unknown", str::trim);
    format!("{name} ({})", std::env::consts::ARCH)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "compared on {}, by {}", self.samples, self.engine)?;
        writeln!(
            f,
            "{:<10} {:<13} {:>7} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8}",
            "stage", "precision", "MB", "fp32", "parity", "error", "agree", "ms/step", "fp32"
        )?;
        for s in &self.stages {
            let agreement = match (s.agreement, s.decibels) {
                (Some(share), _) => format!("{:.2} %", 100.0 * share),
                (None, Some(decibels)) => format!("{decibels:.2} dB"),
                (None, None) => "-".into(),
            };
            let (mb, fp32_mb) = (s.bytes as f64 / 1e6, s.fp32_bytes as f64 / 1e6);
            let parity = s.parity.map_or_else(|| "-".into(), |parity| format!("{parity:.1e}"));
            writeln!(
                f,
                "{:<10} {:<13} {mb:>7.2} {fp32_mb:>7.2} {parity:>9} {:>9.1e} {agreement:>8} {:>9.3} {:>8.3}",
                s.stage.as_str(),
                s.precision.name(),
                s.error,
                s.ms,
                s.fp32_ms
            )?;
        }
        writeln!(f, "{:<10} {:<13} {:>7.2}", "all", "", self.bytes() as f64 / 1e6)?;
        for s in &self.stages {
            writeln!(f, "{}: {} ({})", s.stage, s.precision, s.reason)?;
            let said =
                |ms: &Result<f64, String>| ms.as_ref().map_or_else(|reason| format!("does not run ({reason})"), |ms| format!("{ms:.3} ms"));
            for EngineTime { engine, ms, fp32_ms } in &s.engine_ms {
                writeln!(f, "  a step on {engine}: {}, fp32 {}", said(ms), said(fp32_ms))?;
            }
            for layer in &s.worst_layers {
                writeln!(f, "  weights of {}: error {:.1e}", layer.name, layer.error)?;
            }
        }
        Ok(())
    }
}
