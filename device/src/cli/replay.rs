//! `sa-agent replay`: a field log through the pipeline again.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use sa_device::engine::Engine;
use sa_device::field::replay::{Difference, replay};
use sa_device::field::{self, BundleId, Logged};
use sa_device::pipeline::{Agent, Settings};
use sa_device::tools::Tools;
use serde::Serialize;

use super::settings::{Common, File};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// The folder of the log.
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// One JSON object a turn, and one at the end, instead of lines to read.
    #[arg(long)]
    json: bool,
}

/// A turn that was replayed.
#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    name: String,
    transcript: &'a str,
    reply_text: &'a str,
    /// The log is of another bundle.
    other_bundle: bool,
    differences: Vec<Difference>,
    /// The turn could not be replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// All of them.
#[derive(Serialize)]
struct Total {
    event: &'static str,
    turns: usize,
    same: usize,
    different: usize,
    failed: usize,
    other_bundle: usize,
}

/// Exit code 0 when every decision is the same, 1 otherwise.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.common.resolve()?;
    let turns = field::read(&args.log)?;
    let engine = settings.engine()?;
    let mut total = Total { event: "replayed", turns: turns.len(), same: 0, different: 0, failed: 0, other_bundle: 0 };
    let mut agent: Option<(Settings, Agent)> = None;
    for logged in &turns {
        let wanted = Settings { threads: args.common.threads.map_or(logged.settings.threads, |n| n as usize), ..logged.settings.clone() };
        // Turns of one session have the same settings: the bundle is loaded once.
        if agent.as_ref().is_none_or(|(settings, _)| *settings != wanted) {
            agent = Some((wanted.clone(), open(&settings, &*engine, wanted)?));
        }
        let Some((_, agent)) = &mut agent else { continue };
        let other_bundle = BundleId::of(agent.bundle()) != logged.bundle;
        let (differences, problem) = match replay(agent, logged) {
            Ok((_, differences)) => (differences, None),
            Err(error) => (Vec::new(), Some(format!("{:#}", anyhow::Error::from(error)))),
        };
        total.other_bundle += usize::from(other_bundle);
        match (&problem, differences.is_empty()) {
            (Some(_), _) => total.failed += 1,
            (None, true) => total.same += 1,
            (None, false) => total.different += 1,
        }
        let (transcript, reply_text) = (&*logged.turn.transcript, &*logged.turn.reply_text);
        let event = "replay";
        show(&Report { event, name: logged.name(), transcript, reply_text, other_bundle, differences, problem }, logged, args.json)?;
    }
    close(&total, args.json)?;
    Ok(if total.same == total.turns { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn open(settings: &File, engine: &dyn Engine, limits: Settings) -> anyhow::Result<Agent> {
    Agent::open(engine, settings.open_bundle()?, Tools::built_in(), limits).context("while loading the bundle")
}

fn show(report: &Report, logged: &Logged, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    let outcome = match (&report.problem, report.differences.len()) {
        (Some(_), _) => "not replayed",
        (None, 0) => "same",
        (None, _) => "different",
    };
    let units = if logged.audio.is_none() { ", from units" } else { "" };
    writeln!(out, "{}  {outcome}{units}: {} → {}", report.name, report.transcript, report.reply_text)?;
    if let Some(problem) = &report.problem {
        writeln!(out, "       {problem}")?;
    }
    for Difference { decision, logged, now } in &report.differences {
        writeln!(out, "       {decision}: {logged}\n       {:>width$}  {now}", "now", width = decision.len())?;
    }
    Ok(())
}

fn close(total: &Total, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(total)?)?;
        return Ok(());
    }
    let Total { turns, same, different, failed, other_bundle, .. } = total;
    writeln!(out, "{turns} turns: {same} the same, {different} different, {failed} not replayed")?;
    if *other_bundle > 0 {
        writeln!(out, "{other_bundle} of them were answered by another bundle than this one")?;
    }
    Ok(())
}
