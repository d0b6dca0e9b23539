//! `sa-agent talk`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use sa_device::audio::{self, AudioDevice, AudioError, Pace, WavDevice};
use sa_device::pipeline::{Agent, AgentError, Event, Past, Turn};
use sa_device::tools::Tools;

use super::Usage;
use super::around::{Around, Company};
use super::output::{Ready, Screen};
use super::settings::Common;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    around: Around,
    /// A WAV file with a spoken question; several are turns of one conversation.
    #[arg(long, short, value_name = "WAV", required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// Where to write the spoken answer (with one question).
    #[arg(long, short, value_name = "WAV", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Folder for the spoken answers, each under the name of its question.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// One JSON object a line instead of a conversation to read.
    #[arg(long)]
    json: bool,
    /// The agent's tools: a tools.toml.
    #[arg(long, value_name = "FILE", env = "SA_TOOLS")]
    tools: Option<PathBuf>,
    /// An earlier conversation to go on with: what `talk --json` printed.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Forget each turn before the next (not the earlier conversation).
    #[arg(long)]
    fresh: bool,
    /// Play the questions in at the speed of speech, not as fast as they are understood.
    #[arg(long)]
    realtime: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let outputs = outputs(&args)?;
    let mut settings = args.common.resolve()?;
    args.around.resolve(&mut settings);
    let mut tools = match args.tools.as_ref().or(settings.tools.as_ref()) {
        Some(path) => Tools::load(path).context("while reading the tools")?,
        None => Tools::built_in(),
    };
    let history = args.history.as_deref().map(earlier).transpose()?.unwrap_or_default();
    let engine = settings.engine()?;
    let bundle = settings.open_bundle()?;
    let mut screen = Screen::new(args.json);
    let pace = if args.realtime || settings.realtime { Pace::RealTime } else { Pace::Fast };
    let name = bundle.manifest().name.clone();
    let mut company = Company::open(&mut settings, None, &bundle, &mut tools)?;
    let mut agent = Agent::open(&*engine, bundle, tools, settings.conversation).context("while loading the bundle")?;
    let mut device = WavDevice::new(args.input, outputs, pace, agent.longest_question())?;
    let ready = Ready { bundle: &name, engine: engine.name(), ms: started.elapsed().as_secs_f64() * 1e3 };
    screen.ready(&ready)?;
    company.ready(&ready);

    if !history.is_empty() {
        agent.recall(&history)?;
    }
    let (mut failed, mut first) = (false, true);
    company.look(agent.tools(), &mut screen)?;
    while let Some(capture) = device.capture()? {
        if args.fresh && !std::mem::take(&mut first) {
            agent.recall(&history)?;
        }
        let capture = company.begins(capture);
        let mut shown = Ok(());
        let mut listener = |event: &Event| {
            company.event(event);
            if shown.is_ok() {
                shown = screen.event(event);
            }
        };
        let turn = agent.turn(&capture, &mut device, &mut listener);
        shown?;
        if let Err(error) = &turn {
            company.failed(&error.to_string(), agent.take_failed().as_ref());
        }
        match turn {
            Ok(turn) => company.turn(&turn),
            // A question's file is at fault: the next may be better. Anything else would come again.
            Err(AgentError::Audio(error)) if !matches!(error, AudioError::Write { .. }) => {
                screen.failed(&capture.source, &error)?;
                failed = true;
            }
            Err(error) => {
                company.close(&mut screen)?;
                return Err(error).with_context(|| format!("while answering {}", capture.source));
            }
        }
        company.look(agent.tools(), &mut screen)?;
    }
    company.close(&mut screen)?;
    Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The turns of a conversation that was printed as JSON Lines; other events are passed over.
fn earlier(path: &Path) -> anyhow::Result<Vec<Turn>> {
    #[derive(serde::Deserialize)]
    #[serde(tag = "event", rename_all = "lowercase")]
    enum Line {
        Turn(Past),
        #[serde(other)]
        Other,
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("while reading the conversation {}", path.display()))?;
    let turns = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).filter_map(|(number, line)| {
        let place = || format!("{}:{number}: not a line that `sa-agent talk --json` prints", path.display());
        match serde_json::from_str(line).with_context(place) {
            Ok(Line::Turn(past)) => Some(Ok(past.turn())),
            Ok(Line::Other) => None,
            Err(error) => Some(Err(error)),
        }
    });
    turns.collect()
}

/// A file for each answer, or none at all.
fn outputs(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(output) = &args.output {
        if args.input.len() > 1 {
            return Err(Usage(format!("--output is for one question; with {} give --output-dir DIR", args.input.len())).into());
        }
        audio::check_folder(output)?;
        return Ok(vec![output.clone()]);
    }
    let Some(dir) = &args.output_dir else { return Ok(Vec::new()) };
    if !dir.is_dir() {
        return Err(AudioError::NoFolder { dir: dir.clone() }.into());
    }
    let mut taken = BTreeSet::new();
    Ok(args.input.iter().map(|input| dir.join(unique(input, &mut taken))).collect())
}

/// `a/q.wav`, `b/q.wav` → `q.wav`, `q-2.wav`.
fn unique(input: &Path, taken: &mut BTreeSet<String>) -> String {
    let stem = input.file_stem().unwrap_or_default().to_string_lossy();
    let names = std::iter::once(format!("{stem}.wav")).chain((2..).map(|n| format!("{stem}-{n}.wav")));
    for name in names {
        if taken.insert(name.clone()) {
            return name;
        }
    }
    unreachable!("the names never end")
}
