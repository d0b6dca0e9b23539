//! `sa-export`: a checkpoint in, a proven bundle out.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Parser};
use sa_device::bundle::{BundleError, StageName};
use sa_export::export::{BeyondBudget, Choice, Options, export};
use sa_export::inspect;
use sa_export::onnx::Precision;

/// Turns a checkpoint into a bundle of streaming ONNX graphs, and proves each graph against its network.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 4 bundle invalid, 5 beyond budget (a graph differs too much).
#[derive(Parser)]
#[command(name = "sa-export", version, max_term_width = 100)]
#[command(group(ArgGroup::new("mode").required(true).args(["checkpoint", "inspect", "verify"])))]
struct Cli {
    /// Checkpoint folder: tokenizer/, decoder/, lm/, vocabulary.txt
    #[arg(long, value_name = "DIR", requires = "output")]
    checkpoint: Option<PathBuf>,
    /// Bundle folder to write; a bundle that is there is replaced
    #[arg(long, value_name = "BUNDLE", requires = "checkpoint")]
    output: Option<PathBuf>,
    /// Everything in single precision (the default)
    #[arg(long, conflicts_with_all = ["int8", "precision"])]
    fp32: bool,
    /// 8 bits: each stage in the form that pays, chosen by measurement; or 8-bit products in the named stages only
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    int8: Option<Vec<StageName>>,
    /// The form of one stage, such as lm=int8-weights (fp32, fp16, int8-weights, int8); overrides --int8
    #[arg(long, value_name = "STAGE=FORM", value_delimiter = ',', value_parser = stage_form)]
    precision: Vec<(StageName, Precision)>,
    /// Folder of WAV files, or a corpus, to compare the quantised graphs on (built-in sounds otherwise)
    #[arg(long, value_name = "DIR")]
    samples: Option<PathBuf>,
    /// The bundle's name (the output folder's otherwise)
    #[arg(long)]
    name: Option<String>,
    /// Licence of the weights, an SPDX expression
    #[arg(long, default_value = "MIT OR Apache-2.0")]
    licence: String,
    /// Where the weights come from, in words
    #[arg(long, default_value = "trained by sa-align")]
    provenance: String,
    /// Write the bundle even where a named form misses its budget
    #[arg(long)]
    force: bool,
    /// Print what a bundle holds
    #[arg(long, value_name = "BUNDLE")]
    inspect: Option<PathBuf>,
    /// Check a bundle's hashes and shapes and run its graphs
    #[arg(long, value_name = "BUNDLE")]
    verify: Option<PathBuf>,
}

fn stage(text: &str) -> Result<StageName, String> {
    let known = StageName::ALL.map(StageName::as_str).join(", ");
    StageName::ALL.into_iter().find(|stage| stage.as_str() == text).ok_or(format!("the stages are {known}"))
}

fn stage_form(text: &str) -> Result<(StageName, Precision), String> {
    let (name, form) = text.split_once('=').ok_or("write STAGE=FORM")?;
    let precision = inspect::precision(form).ok_or("the forms are fp32, fp16, int8-weights, int8")?;
    Ok((stage(name)?, precision))
}

impl Cli {
    fn choices(&self) -> [Choice; 4] {
        StageName::ALL.map(|stage| {
            if let Some((_, precision)) = self.precision.iter().find(|(name, _)| *name == stage) {
                return Choice::named(*precision);
            }
            match &self.int8 {
                Some(stages) if stages.is_empty() => Choice::int8(stage),
                Some(stages) if stages.contains(&stage) => Choice::named(Precision::Int8),
                _ => Choice::fp32(),
            }
        })
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
    if let Some(dir) = &cli.inspect {
        say(&inspect::inspect(dir)?)?;
    } else if let Some(dir) = &cli.verify {
        say(&format!("{}\n", inspect::verify(dir)?.join("\n")))?;
    } else if let (Some(checkpoint), Some(output)) = (&cli.checkpoint, &cli.output) {
        let folder = output.file_name().map_or_else(|| "bundle".into(), |name| name.to_string_lossy().into_owned());
        let options = Options {
            checkpoint: checkpoint.clone(),
            output: output.clone(),
            samples: cli.samples.clone(),
            choices: cli.choices(),
            name: cli.name.clone().unwrap_or(folder),
            licence: cli.licence.clone(),
            provenance: cli.provenance.clone(),
            force: cli.force,
        };
        let (bundle, report) = export(&options)?;
        say(&format!("{report}written: {}\n", bundle.dir().display()))?;
    } else {
        bail!("nothing to do"); // the argument group asks for one of the three
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Err(error) = run(&cli) else { return ExitCode::SUCCESS };
    eprintln!("sa-export: {error:#}");
    let invalid = cli.checkpoint.is_none() && error.chain().any(|cause| cause.is::<BundleError>());
    ExitCode::from(match error.is::<BeyondBudget>() {
        true => 5,
        false if invalid => 4,
        false => 1,
    })
}
