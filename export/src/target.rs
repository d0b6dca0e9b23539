//! Where a bundle goes and what it says of itself: the part of an export that is the same for every network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sa_device::bundle::{BundleWriter, FORMAT_VERSION, Layout, Manifest, Stages, hexadecimal, sha256_file};
use sa_device::engine::{Engine, EngineName, Wish};
use sha2::{Digest, Sha256};

use crate::graphs::StageGraph;
use crate::report::Report;

/// All audio, in samples a second.
pub(crate) const RATE: usize = 16_000;

/// The bundle to write.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its folder; a bundle that is there is replaced.
    pub output: PathBuf,
    pub name: String,
    /// Licence of the weights, an SPDX expression; `unknown` where nobody has named it.
    pub licence: String,
    /// Where the weights come from, in words.
    pub provenance: String,
    /// The engine that will run it: forms are proven, timed and chosen on it.
    pub engine: EngineName,
    /// Where the library of ONNX Runtime is, if not in the usual places.
    pub ort_library: Option<PathBuf>,
}

impl Target {
    /// Loads the engine.
    ///
    /// # Errors
    /// When there is no library of it on this machine.
    pub fn open_engine(&self) -> Result<Box<dyn Engine>> {
        let wish = Wish { engine: self.engine, library: self.ort_library.clone(), ..Wish::default() };
        Ok(wish.open(|message| eprintln!("sa-export: {message}"))?)
    }

    /// Begins the bundle; folders above it are made. Dropping the writer leaves nothing behind.
    pub fn writer(&self) -> Result<BundleWriter> {
        if let Some(parent) = self.output.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).with_context(|| format!("making the folder {}", parent.display()))?;
        }
        Ok(BundleWriter::create(&self.output)?)
    }

    /// A manifest without stages, made from the checkpoint of this SHA-256.
    pub fn manifest(&self, source_checkpoint: String) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            name: self.name.clone(),
            created_by: concat!("sa-export ", env!("CARGO_PKG_VERSION")).into(),
            source_checkpoint,
            sample_rate: RATE as u32,
            unit_rate: 25,
            k: 1,
            group: 1,
            layout: Layout::InterleavedWords,
            transcript: false,
            minimum_memory_mb: 0,
            licence: self.licence.clone(),
            provenance: self.provenance.clone(),
            vocabulary: None,
            unit_distances: None,
            special_tokens: Default::default(),
            stage: Stages::default(),
            measured: Default::default(),
        }
    }

    /// The manifest of a bundle with one stage over `k` units of `hop` samples, made from all files of these sources: what each is, and
    /// its files. Memory and figures are those of the report.
    pub fn part(&self, sources: &[(&str, Vec<PathBuf>)], graph: &StageGraph, k: usize, hop: usize, report: &Report) -> Result<Manifest> {
        let mut stage = Stages::default();
        *stage.slot(graph.stage) = Some(graph.entry());
        let sources = sources.iter().flat_map(|(what, files)| files.iter().map(move |file| (what, file)));
        let named =
            sources.map(|(what, file)| (format!("{what}/{}", file.file_name().unwrap_or_default().to_string_lossy()), file.clone()));
        let sha256 = fingerprint(named).map_err(|(path, error)| Error::new(error).context(format!("reading {}", path.display())))?;
        Ok(Manifest {
            unit_rate: (RATE / hop) as u32,
            k,
            minimum_memory_mb: report.minimum_memory_mb(),
            stage,
            measured: report.to_toml(),
            ..self.manifest(sha256)
        })
    }

    /// Refuses an output that is or holds an input.
    pub fn refuse_overwriting(&self, inputs: &[&Path]) -> Result<()> {
        let Ok(output) = self.output.canonicalize() else { return Ok(()) };
        for input in inputs {
            let input = input.canonicalize().with_context(|| format!("opening {}", input.display()))?;
            ensure!(
                !input.starts_with(&output),
                "{} lies in the output, which would be replaced: choose another --output",
                input.display()
            );
        }
        Ok(())
    }
}

/// SHA-256 over the names and hashes of files: what a bundle says it was made from.
///
/// # Errors
/// Which of them cannot be read, and why.
pub(crate) fn fingerprint(files: impl IntoIterator<Item = (String, PathBuf)>) -> Result<String, (PathBuf, std::io::Error)> {
    let mut hasher = Sha256::new();
    for (name, path) in files {
        let hash = sha256_file(&path).map_err(|error| (path, error))?;
        hasher.update(format!("{name} {hash}\n"));
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// The file of [`draw_curves`].
pub(crate) const PICTURE: &str = "look_ahead.svg";

/// Draws the curve over the look-ahead into the bundle's folder, for people to look at.
pub(crate) fn draw_curves(writer: &BundleWriter, report: &Report) -> Result<()> {
    for streaming in report.stages.iter().filter_map(|stage| stage.streaming.as_ref()) {
        writer.add(PICTURE, svg(streaming.title(), &streaming.points()).as_bytes())?;
    }
    Ok(())
}

/// A line through points, with the ranges of both axes written at their ends.
fn svg(title: &str, points: &[(f64, f64)]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 240.0;
    const MARGIN: f64 = 48.0;
    let last = points.last().map_or(1.0, |point| point.0).max(1e-9);
    let highest = points.iter().map(|point| point.1).fold(1e-9, f64::max);
    let (right, bottom) = (WIDTH - MARGIN, HEIGHT - MARGIN);
    let place = |(x, y): &(f64, f64)| {
        let (x, y) = (MARGIN + x / last * (right - MARGIN), bottom - y / highest * (bottom - MARGIN));
        format!("{x:.1},{y:.1}")
    };
    let line = points.iter().map(place).collect::<Vec<_>>().join(" ");
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{MARGIN}" y="24" font-weight="bold">{title}</text>
<path d="M{MARGIN} {MARGIN} V{bottom} H{right}" fill="none" stroke="#999"/>
<text x="4" y="{MARGIN}">{highest:.3}</text><text x="4" y="{bottom}">0</text>
<text x="{MARGIN}" y="{below}">0 ms</text><text x="{right}" y="{below}" text-anchor="end">{last:.0} ms</text>
<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>
</svg>
"##,
        below = bottom + 20.0
    )
}

/// A bar of so many steps.
pub(crate) fn progress(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} ({elapsed})");
    ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The next step of a bar, and what it is.
pub(crate) fn step(bar: &ProgressBar, message: &str) {
    bar.set_message(message.to_owned());
    bar.inc(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DataType, Graph, Precision};
    use crate::report::{PROGRAM_MB, Ran, Second, StageReport};
    use sa_device::bundle::StageName;
    use sa_device::engine::Tract;

    #[test]
    fn every_input_leaves_its_trace() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (index, shard) = (dir.path().join("model.safetensors.index.json"), dir.path().join("model-00001-of-00002.safetensors"));
        let of = |shard_bytes: &str| {
            std::fs::write(&index, "{}").expect("written");
            std::fs::write(&shard, shard_bytes).expect("written");
            fingerprint([("qwen/index".to_owned(), index.clone()), ("qwen/shard".to_owned(), shard.clone())]).expect("readable")
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        let (path, _) = fingerprint([("gone".to_owned(), dir.path().join("gone"))]).expect_err("it is not there");
        assert!(path.ends_with("gone"));
    }

    /// In half precision the file is widened while it is loaded: three times its size is less than that takes.
    #[test]
    fn a_part_needs_the_memory_of_its_widened_weights() {
        let mut graph = Graph::new("decoder", "");
        let x = graph.input("x", DataType::F32, &[1]);
        graph.output("y", &x);
        let graph = StageGraph {
            stage: StageName::Decoder,
            precision: Precision::Fp16,
            chunk: 1,
            latency_ms: 0.0,
            inputs: Vec::new(),
            outputs: Vec::new(),
            initial: None,
            layers: Vec::new(),
            names: Vec::new(),
            onnx: graph.encode().expect("written"),
        };
        let word = || "test".to_owned();
        let output = PathBuf::from("part");
        let target = Target { output, name: word(), licence: word(), provenance: word(), engine: EngineName::Tract, ort_library: None };
        let mut report = Report::on(&Tract, word());
        let second = Second { engine: "ort", ms: Ran::LeftOut(word()), fp32_ms: Ran::LeftOut(word()) };
        let figures = StageReport::new(StageName::Decoder, None, 200_000_000, 1.0, second);
        report.stages.push(StageReport { precision: Precision::Fp16, bytes: 100_000_000, ..figures });
        let part = target.part(&[], &graph, 10, 640, &report).expect("nothing is read");
        assert_eq!(part.minimum_memory_mb, 200 + 200 + 100 + PROGRAM_MB);
        assert!(part.measured.contains_key("decoder"), "{}", part.measured);
    }

    #[test]
    fn a_curve_runs_from_corner_to_corner() {
        let picture = svg("dB", &[(0.0, 2.0), (40.0, 1.0), (80.0, 0.0)]);
        assert!(picture.contains(r#"points="48.0,48.0 320.0,120.0 592.0,192.0""#), "{picture}");
        assert!(picture.contains(">80 ms<") && picture.contains(">2.000<") && picture.ends_with("</svg>\n"));
        assert!(svg("nothing", &[]).contains("polyline"));
    }
}
