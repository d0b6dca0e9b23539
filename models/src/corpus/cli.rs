//! `sa-align corpus`.

use std::path::PathBuf;

use anyhow::Context;

use super::{Options, make};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the corpus; a run that was stopped goes on there
    #[arg(long)]
    output: PathBuf,
    /// Spoken questions in all, test and dev among them
    #[arg(long, default_value_t = 60_000)]
    questions: usize,
    /// Spoken replies in the agent's voice
    #[arg(long, default_value_t = 6_000)]
    replies: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Grammar file (default: the home assistant built in)
    #[arg(long)]
    grammar: Option<PathBuf>,
    /// Voices file (default: espeak-ng and flite, built in)
    #[arg(long)]
    synthesisers: Option<PathBuf>,
    /// Folder of your own recordings: metadata.csv (ID|TRANSCRIPT) and wavs/ID.wav
    #[arg(long)]
    recordings: Option<PathBuf>,
    /// Synthesisers at work at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { output, questions, replies, seed, grammar, synthesisers, recordings, jobs } = args;
    let options = Options { output, questions, replies, seed, grammar, synthesisers, recordings, jobs };
    let manifest = make(&options).with_context(|| format!("while making the corpus in {}", options.output.display()))?;
    println!("{} questions, {} replies, {} text tokens, {} phones", manifest.questions, manifest.replies, manifest.words, manifest.phones);
    for (what, hours) in &manifest.hours {
        let count = manifest.sets.get(what).map(|count| format!("{count:6} questions")).unwrap_or_default();
        println!("{what:20} {hours:8.2} h {count}");
    }
    Ok(())
}
