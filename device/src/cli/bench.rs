//! `sa-agent bench`: what each stage costs on this machine.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use sa_device::bundle::Bundle;
use sa_device::stage::{Decoder, Lm, LmInput, Tokenizer};
use serde::Serialize;

use super::settings::{Common, File};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Seconds of audio that are worked on.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub struct Row {
    pub stage: &'static str,
    runs: u64,
    /// Mean time of one run.
    ms_per_run: f64,
    /// Computing time over time of speech.
    pub real_time_factor: f64,
}

#[derive(Serialize)]
pub struct Report {
    bundle: String,
    engine: &'static str,
    load_ms: f64,
    seconds: u32,
    pub stages: Vec<Row>,
    /// `VmHWM` of this process; absent where the system does not tell.
    peak_memory_mb: Option<f64>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    print(&measure(&args.common.resolve()?, args.seconds)?, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Each stage at work on `speech` seconds of noise.
pub fn measure(settings: &File, speech: u32) -> anyhow::Result<Report> {
    let engine = settings.engine()?;
    let bundle = settings.open_bundle()?;
    let started = Instant::now();
    let mut tokenizer = Tokenizer::open(&*engine, &bundle).context("while loading the bundle")?;
    let mut lm = Lm::open(&*engine, &bundle).context("while loading the bundle")?;
    let mut decoder = Decoder::open(&*engine, &bundle).context("while loading the bundle")?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;

    let seconds = f64::from(speech);
    let units = listen(&bundle, &mut tokenizer, speech)?;
    let mut stages = vec![row("tokenizer", tokenizer.take_busy(), seconds)];
    think(&mut lm, &units)?;
    stages.push(row("lm", lm.take_busy(), seconds));
    stages.push(row("head", lm.take_head_busy(), seconds));
    decoder.forward(&units)?;
    stages.push(row("decoder", decoder.take_busy(), seconds));
    let name = bundle.manifest().name.clone();
    Ok(Report { bundle: name, engine: engine.name(), load_ms, seconds: speech, stages, peak_memory_mb: peak_memory() })
}

/// Noise of a fixed seed, tokenised.
fn listen(bundle: &Bundle, tokenizer: &mut Tokenizer, seconds: u32) -> anyhow::Result<Vec<u32>> {
    let mut state = 1u32;
    let count = seconds * bundle.manifest().sample_rate;
    let noise: Vec<f32> = (0..count)
        .map(|_| {
            // A linear congruential generator: any noise will do.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 65_536.0 * 0.2 - 0.1
        })
        .collect();
    Ok(tokenizer.forward(&noise)?)
}

/// Reads all groups and predicts one after each; the cache starts anew when it is full.
fn think(lm: &mut Lm, units: &[u32]) -> anyhow::Result<()> {
    let mut group = Vec::new();
    for units in units.chunks(lm.group()) {
        if lm.position() == lm.context() {
            lm.truncate(0);
        }
        lm.step(LmInput::Group(units))?;
        lm.next_group(&mut group)?;
    }
    Ok(())
}

fn row(stage: &'static str, (busy, runs): (std::time::Duration, u64), seconds: f64) -> Row {
    let busy = busy.as_secs_f64();
    Row { stage, runs, ms_per_run: busy * 1e3 / runs.max(1) as f64, real_time_factor: busy / seconds }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    writeln!(out, "{} on {}: loaded in {:.0} ms", report.bundle, report.engine, report.load_ms)?;
    writeln!(out, "{:<10} {:>6} {:>10} {:>18}", "stage", "runs", "ms a run", "real-time factor")?;
    for row in &report.stages {
        writeln!(out, "{:<10} {:>6} {:>10.2} {:>18.4}", row.stage, row.runs, row.ms_per_run, row.real_time_factor)?;
    }
    let total: f64 = report.stages.iter().map(|row| row.real_time_factor).sum();
    writeln!(out, "{:<10} {:>6} {:>10} {total:>18.4}", "together", "", "")?;
    if let Some(memory) = report.peak_memory_mb {
        writeln!(out, "peak memory {memory:.0} MB")?;
    }
    Ok(())
}

/// The high-water mark of resident memory, from Linux's `/proc`.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
