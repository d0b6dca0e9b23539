//! The command line of `sa-agent`. Settings come from `--config FILE`, the environment (`SA_…`) and flags, in that
//! rising order.

mod around;
mod bench;
mod devices;
mod doctor;
mod enrol;
mod listen;
mod output;
mod replay;
mod settings;
mod talk;
mod writer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sa_device::audio::AudioError;
use sa_device::bundle::BundleError;
use sa_device::engine::EngineError;
use sa_device::pipeline::AgentError;
use sa_device::stage::StageError;

/// Speaks with a bundle: live, or from WAV files into WAV files.
#[derive(Parser)]
#[command(
    name = "sa-agent",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 no such device, 4 bundle invalid, 5 beyond budget."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One or more turns from files, through the live pipeline.
    Talk(talk::Args),
    /// A field log through the same pipeline again: where does it decide otherwise?
    Replay(replay::Args),
    /// A conversation over microphone and loudspeaker, until Ctrl-C.
    Listen(Box<listen::Args>),
    /// Learns a wake phrase from hearing it three times (nothing is played).
    Enrol(enrol::Args),
    /// The microphones and loudspeakers of this machine, and which of them `listen` would choose with these flags.
    Devices(devices::Args),
    /// What is wrong: opens microphone and speaker, plays a chirp, times each stage, looks at the machine, and writes a report.
    Doctor(doctor::Args),
    /// How fast each stage of a bundle is on this machine.
    Bench(bench::Args),
}

/// Parses, runs, and turns what happened into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Talk(args) => talk::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Listen(args) => listen::run(*args),
        Command::Enrol(args) => enrol::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Bench(args) => bench::run(args),
    };
    match done {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format_args!("{error:#}"));
            exit_code(&error)
        }
    }
}

/// A wrong combination of arguments; exit code 2, as from clap.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(broken))
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return ExitCode::from(2);
        }
        if matches!(cause.downcast_ref::<AudioError>(), Some(AudioError::Device { .. })) {
            return ExitCode::from(3);
        }
        let stage = match cause.downcast_ref::<AgentError>() {
            Some(AgentError::Stage(stage)) => Some(stage),
            _ => cause.downcast_ref::<StageError>(),
        };
        let engine = match stage {
            Some(StageError::Engine { source, .. }) => Some(source),
            _ => cause.downcast_ref::<EngineError>(),
        };
        match engine {
            Some(EngineError::Unknown { .. } | EngineError::NotBuilt { .. }) => return ExitCode::from(2),
            Some(EngineError::Device { .. }) => return ExitCode::from(3),
            _ => {}
        }
        let unfit = matches!(engine, Some(EngineError::Load { .. } | EngineError::Declared { .. }));
        if unfit || cause.is::<BundleError>() || matches!(stage, Some(StageError::Bundle(_))) {
            return ExitCode::from(4);
        }
    }
    ExitCode::from(1)
}
