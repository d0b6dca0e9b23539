//! `sa-align`: makes the corpus and trains the networks.

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // keeps large blocks: a fifth off each training step

#[derive(Parser)]
#[command(name = "sa-align", version, about = "Make speech corpora and train the networks of the sa speech agent")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Speak the dialogues of a grammar into a corpus folder
    Corpus(sa_models::corpus::cli::Args),
    /// Train the speech tokenizer (audio to units)
    Tokenizer(sa_models::tokenizer::cli::Args),
    /// Train the unit decoder (units to the agent's voice)
    Decoder(sa_models::decoder::cli::Args),
    /// Train the group language model
    Lm(sa_models::lm::cli::Args),
    /// Train the detector of a user who speaks over the agent (rooms to device/src/hearing/overlap.safetensors)
    Overlap(sa_models::overlap::cli::Args),
}

fn main() -> std::process::ExitCode {
    sa_models::memory::keep();
    let result = match Cli::parse().command {
        Command::Corpus(args) => sa_models::corpus::cli::run(args),
        Command::Tokenizer(args) => sa_models::tokenizer::cli::run(args),
        Command::Decoder(args) => sa_models::decoder::cli::run(args),
        Command::Lm(args) => sa_models::lm::cli::run(args),
        Command::Overlap(args) => sa_models::overlap::cli::run(args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sa-align: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
