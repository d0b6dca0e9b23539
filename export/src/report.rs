//! What an export measured: printed as a table, stored in `[measured]` of `bundle.toml`.

use std::fmt;

use sa_device::bundle::StageName;
use sa_device::engine::Engine;
use toml::{Table, Value};

use crate::graphs::Window;
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
    /// Mean difference of the mel spectrum from fp32's, in dB.
    pub decibels: Option<f64>,
    /// What a text token costs, in nats: the form's mean of -ln p, and fp32's.
    pub cross_entropy: Option<(f64, f64)>,
    pub bytes: usize,
    pub fp32_bytes: usize,
    /// Median of a step on the engine.
    pub ms: f64,
    pub fp32_ms: f64,
    /// Layers whose weights lost most.
    pub worst_layers: Vec<Layer>,
    /// The engine that it was not chosen on.
    pub second: Second,
    /// What it costs not to wait for all that follows, of a network that looks ahead.
    pub streaming: Option<Streaming>,
}

/// The engine that a stage was not measured and chosen on.
#[derive(Clone, Debug)]
pub struct Second {
    pub engine: &'static str,
    /// Median milliseconds of a step in the chosen form and in fp32.
    pub ms: Ran,
    pub fp32_ms: Ran,
}

/// What became of a graph on an engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Ran {
    /// Median milliseconds of a step.
    Ms(f64),
    /// It lacks an operator, or there is too little memory.
    Failed(String),
    /// The engine is not on this machine, or the graph is none of one file.
    LeftOut(String),
}

impl Ran {
    /// For the table.
    fn word(&self) -> &'static str {
        match self {
            Self::Ms(_) => "runs",
            Self::Failed(_) => "fails",
            Self::LeftOut(_) => "left out",
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Ms(ms) => write!(f, "{ms:.3} ms"),
            Self::Failed(reason) => write!(f, "does not run ({reason})"),
            Self::LeftOut(reason) => write!(f, "left out ({reason})"),
        }
    }
}

/// A stage that sees a window of what a network was made to see whole.
#[derive(Clone, Debug)]
pub struct Streaming {
    pub window: Window,
    pub unit_ms: f64,
    pub scale: Scale,
    /// By look-ahead in units: what the fp32 graph of a window with that look-ahead gives.
    pub curve: Vec<(usize, f64)>,
    /// What the chosen graph gives, in its form.
    pub chosen: f64,
    /// What the look-ahead is chosen by.
    pub wanted: f64,
}

/// What a window is held against the offline pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Share of equal units: more is better.
    Agreement,
    /// dB of the mel spectrum: less is better.
    Decibels,
}

impl Scale {
    /// Is a value as good as is wanted?
    pub fn reaches(self, value: f64, wanted: f64) -> bool {
        match self {
            Self::Agreement => value >= wanted,
            Self::Decibels => value <= wanted,
        }
    }
}

impl Streaming {
    fn ms(&self, units: usize) -> f64 {
        units as f64 * self.unit_ms
    }

    fn value(&self, value: f64) -> String {
        match self.scale {
            Scale::Agreement => format!("{:.1} %", 100.0 * value),
            Scale::Decibels => format!("{value:.2} dB"),
        }
    }

    /// The points of the curve by milliseconds.
    pub fn points(&self) -> Vec<(f64, f64)> {
        self.curve.iter().map(|(ahead, value)| (self.ms(*ahead), *value)).collect()
    }

    pub fn title(&self) -> &'static str {
        match self.scale {
            Scale::Agreement => "share of units as in the offline pass, by look-ahead",
            Scale::Decibels => "dB from the whole utterance, by look-ahead",
        }
    }

    fn write_toml(&self, entry: &mut Table) {
        let (curve, chosen) = match self.scale {
            Scale::Agreement => ("agreement_by_look_ahead_ms", "agreement_with_offline"),
            Scale::Decibels => ("distance_db_by_look_ahead_ms", "distance_db_from_offline"),
        };
        entry.insert("look_back_ms".into(), rounded(self.ms(self.window.look_back)));
        entry.insert("look_ahead_ms".into(), rounded(self.ms(self.window.look_ahead)));
        let points = self.points().into_iter().map(|(ms, value)| Value::Array(vec![rounded(ms), rounded(value)]));
        entry.insert(curve.into(), Value::Array(points.collect()));
        entry.insert(chosen.into(), rounded(self.chosen));
    }
}

impl fmt::Display for Streaming {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}:", self.title())?;
        let step = self.curve.len().div_ceil(16).max(1);
        for (ahead, value) in self.curve.iter().step_by(step) {
            let bar = match self.scale {
                Scale::Agreement => value * 40.0,
                Scale::Decibels => (value * 10.0).min(60.0),
            };
            writeln!(f, "{:>7.0} ms {:>8} {}", self.ms(*ahead), self.value(*value), "█".repeat(bar.round() as usize))?;
        }
        let Window { look_back, chunk, look_ahead } = self.window;
        let (back, chunk, ahead) = (self.ms(look_back), self.ms(chunk), self.ms(look_ahead));
        let reached = if self.scale.reaches(self.chosen, self.wanted) { "within" } else { "beyond" };
        writeln!(
            f,
            "window: {back:.0} ms back, {chunk:.0} ms chunk, {ahead:.0} ms ahead; the chosen graph: {}, {reached} what was wanted ({})",
            self.value(self.chosen),
            self.value(self.wanted)
        )
    }
}

impl StageReport {
    /// The figures of the fp32 graph, to be replaced by those of another form.
    pub fn new(stage: StageName, parity: Option<f64>, fp32_bytes: usize, fp32_ms: f64, second: Second) -> Self {
        Self {
            stage,
            precision: Precision::Fp32,
            reason: String::new(),
            parity,
            error: 0.0,
            agreement: None,
            decibels: None,
            cross_entropy: None,
            bytes: fp32_bytes,
            fp32_bytes,
            ms: fp32_ms,
            fp32_ms,
            worst_layers: Vec::new(),
            second,
            streaming: None,
        }
    }

    /// The entry of `[measured]`.
    fn to_toml(&self, engine: &'static str) -> Table {
        let mut entry = Table::new();
        // Here and not only above: a stage may be joined with those of other bundles.
        entry.insert("engine".into(), engine.into());
        entry.insert("reason".into(), self.reason.clone().into());
        let mut figure = |key: &str, value: Option<f64>| {
            if let Some(value) = value {
                entry.insert(key.into(), rounded(value));
            }
        };
        figure("parity_error", self.parity);
        figure("error", Some(self.error));
        figure("agreement", self.agreement);
        figure("mel_distance_db", self.decibels);
        figure("cross_entropy", self.cross_entropy.map(|(form, _)| form));
        figure("fp32_cross_entropy", self.cross_entropy.map(|(_, fp32)| fp32));
        figure("step_ms", Some(self.ms));
        figure("fp32_step_ms", Some(self.fp32_ms));
        entry.insert("fp32_bytes".into(), Value::Integer(self.fp32_bytes as i64));
        let Second { engine: second, ms, fp32_ms } = &self.second;
        for (key, ran) in [(format!("{second}_step_ms"), ms), (format!("{second}_fp32_step_ms"), fp32_ms)] {
            match ran {
                Ran::Ms(ms) => entry.insert(key, rounded(*ms)),
                Ran::Failed(reason) => entry.insert(key, reason.clone().into()),
                // Of the machine and not of the graph.
                Ran::LeftOut(_) => None,
            };
        }
        if let Some(streaming) = &self.streaming {
            streaming.write_toml(&mut entry);
        }
        if !self.worst_layers.is_empty() {
            let layers = self.worst_layers.iter().map(|layer| (layer.name.clone(), rounded(layer.error)));
            entry.insert("worst_layers".into(), Value::Table(layers.collect()));
        }
        entry
    }
}

/// What the program itself needs, beside its graphs.
pub(crate) const PROGRAM_MB: u32 = 40;

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
        ((resident + largest) / 1_000_000) as u32 + PROGRAM_MB
    }

    /// For `[measured]`.
    pub fn to_toml(&self) -> Table {
        let mut table = Table::new();
        table.insert("engine".into(), self.engine.into());
        table.insert("machine".into(), machine().into());
        table.insert("samples".into(), self.samples.clone().into());
        for stage in &self.stages {
            table.insert(stage.stage.as_str().into(), Value::Table(stage.to_toml(self.engine)));
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
        for streaming in self.stages.iter().filter_map(|stage| stage.streaming.as_ref()) {
            write!(f, "{streaming}")?;
        }
        writeln!(f, "compared on {}, by {}", self.samples, self.engine)?;
        let second = self.stages.first().map_or("-", |stage| stage.second.engine);
        writeln!(
            f,
            "{:<10} {:<13} {:>7} {:>7} {:>9} {:>9} {:>9} {:>11} {:>9} {:>8} {:>8} {:>8}",
            "stage", "precision", "MB", "fp32", "parity", "error", "agree", "nats (fp32)", "ms/step", "fp32", self.engine, second
        )?;
        for s in &self.stages {
            let agreement = match (s.agreement, s.decibels) {
                (Some(share), _) => format!("{:.2} %", 100.0 * share),
                (None, Some(decibels)) => format!("{decibels:.2} dB"),
                (None, None) => "-".into(),
            };
            let (mb, fp32_mb) = (s.bytes as f64 / 1e6, s.fp32_bytes as f64 / 1e6);
            let parity = s.parity.map_or_else(|| "-".into(), |parity| format!("{parity:.1e}"));
            let nats = s.cross_entropy.map_or_else(|| "-".into(), |(form, fp32)| format!("{form:.2} ({fp32:.2})"));
            writeln!(
                f,
                "{:<10} {:<13} {mb:>7.2} {fp32_mb:>7.2} {parity:>9} {:>9.1e} {agreement:>9} {nats:>11} {:>9.3} {:>8.3} {:>8} {:>8}",
                s.stage.as_str(),
                s.precision.name(),
                s.error,
                s.ms,
                s.fp32_ms,
                "runs",
                s.second.ms.word()
            )?;
        }
        writeln!(f, "{:<10} {:<13} {:>7.2}", "all", "", self.bytes() as f64 / 1e6)?;
        for s in &self.stages {
            writeln!(f, "{}: {} ({})", s.stage, s.precision, s.reason)?;
            match &s.second {
                Second { ms: Ran::LeftOut(_), .. } => {}
                Second { engine, ms, fp32_ms } if ms == fp32_ms => writeln!(f, "  a step on {engine}: {ms}")?,
                Second { engine, ms, fp32_ms } => writeln!(f, "  a step on {engine}: {ms}; fp32 {fp32_ms}")?,
            }
            for layer in &s.worst_layers {
                writeln!(f, "  weights of {}: error {:.1e}", layer.name, layer.error)?;
            }
        }
        // Once: it is the same for all stages.
        let absent = self.stages.iter().find(|stage| matches!(stage.second.ms, Ran::LeftOut(_)));
        absent.map_or(Ok(()), |StageReport { second, .. }| writeln!(f, "on {}: {}", second.engine, second.ms))
    }
}
