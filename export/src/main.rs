//! `sa-export`: a checkpoint in, a proven bundle out.

mod args;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result, bail};
use clap::{CommandFactory, Parser};
use sa_device::bundle::{Bundle, BundleError, StageName};
use sa_export::choice::{BeyondBudget, Choice};
use sa_export::export::{Options, export};
use sa_export::{decoder, inspect, join, tokenizer, trunk};
use sa_models::memory;

use crate::args::Cli;

// The C library either keeps hundreds of megabytes for later or asks the system for every tensor anew, which made networks run at half
// their speed while their forms were timed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From now on memory goes back to the system as soon as it is free: the tensors of a language model come one after the other. For networks
/// with small tensors that costs a quarter of the time, and spares nothing.
fn give_memory_back() {
    memory::give_back();
    // ONNX Runtime has the C library's allocator.
    // SAFETY: it sets a number, and no other thread is there yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Prints; a reader that has gone away (`| head`) has seen enough.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

fn run(cli: &Cli) -> Result<()> {
    let library = cli.ort_library.as_deref();
    if let Some(dir) = &cli.inspect {
        say(&inspect::inspect(dir)?)
    } else if let Some(dir) = &cli.verify {
        say(&format!("{}\n", inspect::verify(dir, library)?.join("\n")))
    } else if let [first, second] = &cli.compare[..] {
        say(&inspect::compare(first, second, library)?)
    } else {
        let output = cli.output.as_deref().context("--output is missing")?; // which all other modes require
        let (bundle, report) = write(cli, output)?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))
    }
}

/// Writes the bundle that is asked for; gives it, and what there is to say of it.
fn write(cli: &Cli, output: &Path) -> Result<(Bundle, String)> {
    if !cli.join.is_empty() {
        let (bundle, lines) = join::join(&cli.join, &cli.target(output, &[]))?;
        return Ok((bundle, format!("{}\n", lines.join("\n"))));
    }
    let (bundle, report) = if let Some(checkpoint) = &cli.checkpoint {
        export(&Options {
            checkpoint: checkpoint.clone(),
            target: cli.target(output, &[]),
            samples: cli.samples.clone(),
            calibrate: cli.calibrate.clone(),
            choices: cli.choices(),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?
    } else if let (Some(hubert), Some(kmeans)) = (&cli.hubert, &cli.kmeans) {
        tokenizer::export(&tokenizer::Options {
            hubert: hubert.clone(),
            kmeans: kmeans.clone(),
            layer: cli.layer,
            look_back_ms: cli.look_back.unwrap_or(2000.0),
            chunk_ms: cli.chunk.unwrap_or(320.0),
            look_ahead_ms: cli.look_ahead,
            longest_look_ahead_ms: 1000.0,
            target: cli.target(output, &[hubert, kmeans]),
            samples: cli.samples.clone(),
            choice: cli.choice(StageName::Tokenizer, Choice::int8()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?
    } else if let Some(hifigan) = &cli.hifigan {
        decoder::export(&decoder::Options {
            hifigan: hifigan.clone(),
            chunk_ms: cli.chunk.unwrap_or(160.0),
            look_ahead_ms: cli.look_ahead,
            target: cli.target(output, &[hifigan]),
            choice: cli.choice(StageName::Decoder, Choice::convolutions()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?
    } else if let Some(qwen) = &cli.qwen {
        give_memory_back();
        let imported: Vec<&Path> = std::iter::once(qwen).chain(&cli.speech).map(PathBuf::as_path).collect();
        trunk::export(&trunk::Options {
            qwen: qwen.clone(),
            speech: cli.speech.clone(),
            calibrate: cli.calibrate.clone(),
            samples: cli.samples.clone(),
            context: cli.context,
            target: cli.target(output, &imported),
            lm: cli.choice(StageName::Lm, Choice::int8()),
            head: cli.choice(StageName::Head, Choice::int8()),
            budgets: cli.budgets()?,
            exclude: cli.exclude.clone(),
            force: cli.force,
        })?
    } else {
        bail!("nothing to do"); // the argument group asks for one of the eight modes
    };
    Ok((bundle, report.to_string()))
}

/// Is it the fault of a bundle that was there already? That one cannot be written is no fault of it.
fn is_invalid(cli: &Cli, error: &Error) -> bool {
    let of_disk = |cause: &BundleError| matches!(cause, BundleError::Write { .. });
    let reads = cli.inspect.is_some() || cli.verify.is_some() || !cli.compare.is_empty() || !cli.join.is_empty();
    reads && inspect::is_invalid(error) && !error.chain().any(|cause| cause.downcast_ref().is_some_and(of_disk))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(message) = cli.check() {
        Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message).exit();
    }
    memory::keep();
    let Err(error) = run(&cli) else { return ExitCode::SUCCESS };
    eprintln!("sa-export: {error:#}");
    ExitCode::from(match error.is::<BeyondBudget>() {
        true => 5,
        false if is_invalid(&cli, &error) => 4,
        false => 1,
    })
}
