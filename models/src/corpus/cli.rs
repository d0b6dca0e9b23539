//! `sa-align corpus`.

use std::path::PathBuf;

use anyhow::Context;

use rand::SeedableRng;

use super::{Grammar, Options, Sampled, Split, Turn, make};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the corpus; a run that was stopped goes on there
    #[arg(long, required_unless_present = "show")]
    output: Option<PathBuf>,
    /// Spoken questions in all, test and dev among them
    #[arg(long, default_value_t = 75_000)]
    questions: usize,
    /// Spoken questions besides, in which words stand for each other ("lock the garlic"), to learn transcription by the sound alone
    /// (an eighth of the questions by default)
    #[arg(long)]
    swapped: Option<usize>,
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
    /// Speak nothing: print this many dialogues of the grammar, and questions that it answers in two ways
    #[arg(long)]
    show: Option<usize>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { output, questions, swapped, replies, seed, grammar, synthesisers, recordings, jobs, show: count } = args;
    if let Some(count) = count {
        return show(grammar, seed, count);
    }
    let output = output.context("no --output")?;
    let swapped = swapped.unwrap_or(questions / 8);
    let options = Options { output, questions, swapped, replies, seed, grammar, synthesisers, recordings, jobs };
    let manifest = make(&options).with_context(|| format!("while making the corpus in {}", options.output.display()))?;
    println!("{} questions, {} replies, {} text tokens, {} phones", manifest.questions, manifest.replies, manifest.words, manifest.phones);
    for (what, hours) in &manifest.hours {
        let count = manifest.sets.get(what).map(|count| format!("{count:6} questions")).unwrap_or_default();
        println!("{what:20} {hours:8.2} h {count}");
    }
    Ok(())
}

fn show(grammar: Option<PathBuf>, seed: u64, count: usize) -> anyhow::Result<()> {
    let grammar = match grammar {
        Some(path) => Grammar::load(&path)?,
        None => Grammar::home(),
    };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let print = |mark: &str, turn: &Turn| {
        let called = turn.call.as_deref().map(|call| format!("[{call} = {}] ", turn.result.as_deref().unwrap_or_default()));
        println!("{mark}{} -> {}{}", turn.question, called.unwrap_or_default(), turn.reply);
    };
    for _ in 0..count {
        let Sampled { turn, history, category } = grammar.sample(&mut rng, Split::Train);
        history.iter().for_each(|turn| print("    before: ", turn));
        print(&format!("{category:12}"), &turn);
    }
    println!("{} words, {} categories", grammar.words().len(), grammar.categories().len());
    for conflict in grammar.conflicts(&mut rng, 200_000) {
        println!("two answers: {conflict}");
    }
    Ok(())
}
