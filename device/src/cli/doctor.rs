//! `sa-agent doctor`: everything that a bug report needs, and what to do before writing one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use sa_device::doctor::machine::Machine;
use sa_device::doctor::{Finding, Level, speed};
use sa_device::files::{PUBLIC, write_beside};
use serde::Serialize;

use super::bench;
use super::settings::{Common, File, Sound};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    sound: Sound,
    /// Seconds of sound that are listened to, three chirps in them.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(9..=3600))]
    seconds: u32,
    /// Leaves microphone and speaker alone.
    #[arg(long)]
    no_sound: bool,
    /// Where the report is written, to be attached to a bug report. It holds no sound.
    #[arg(long, value_name = "FILE", default_value = "sa-doctor.json")]
    report: PathBuf,
}

/// The file.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    findings: Vec<Finding>,
    /// Asked and obtained formats.
    opened: Option<String>,
    sound: Option<serde_json::Value>,
    stages: Option<bench::Report>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = args.common.resolve()?;
    args.sound.over(&mut settings.audio);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        findings: Machine::new(Path::new("/")).findings(),
        opened: None,
        sound: None,
        stages: None,
    };
    stages(&settings, &mut report);
    if !args.no_sound {
        sound(&settings, args.seconds, &mut report);
    }
    // What was found is of use without the file: it is printed first.
    let written = write(&report, &args.report);
    let mut text = String::new();
    for Finding { level, what, found, cure } in &report.findings {
        let mark = match level {
            Level::Fine => "  ok      ",
            Level::Warning => "  warning ",
            Level::Problem => "  PROBLEM ",
        };
        let _ = writeln!(text, "{mark} {what:<20} {found}");
        if let Some(cure) = cure {
            let _ = writeln!(text, "{:>31} -> {cure}", "");
        }
    }
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    let place = if written.is_ok() { format!("the report is in {}", args.report.display()) } else { "there is no report".to_owned() };
    let _ = writeln!(text, "{problems} problems, {warnings} warnings; {place}");
    std::io::stdout().lock().write_all(text.as_bytes())?;
    written?;
    Ok(if problems > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(report).context("while writing the report")?;
    write_beside(path, PUBLIC, |mut file| file.write_all(&json))
        .with_context(|| format!("while writing the report {}; `--report FILE` puts it elsewhere", path.display()))
}

/// Each stage against real time.
fn stages(settings: &File, report: &mut Report) {
    if settings.bundle.is_none() {
        let found = "none was given, so nothing was timed";
        return report.findings.push(Finding::bad(Level::Warning, "bundle", found, "`--bundle DIR`, as for `listen`"));
    }
    let measured = match bench::measure(settings, 10) {
        Ok(measured) => measured,
        Err(error) => {
            let cure = "`sa-export --verify` checks a bundle; copy it again if it is damaged";
            return report.findings.push(Finding::bad(Level::Problem, "bundle", format!("{error:#}"), cure));
        }
    };
    let times: Vec<(&str, f64)> = measured.stages.iter().map(|row| (row.stage, row.real_time_factor)).collect();
    report.findings.extend(speed::findings(&times));
    report.stages = Some(measured);
}

#[cfg(not(feature = "mic"))]
fn sound(_: &File, seconds: u32, report: &mut Report) {
    let found =
        format!("this program was built without microphone and speaker (the feature `mic`): nothing was listened to for {seconds} s");
    report.findings.push(Finding::bad(Level::Warning, "sound", found, "install the package with sound"));
}

#[cfg(feature = "mic")]
fn sound(settings: &File, seconds: u32, report: &mut Report) {
    use sa_device::audio::live::hardware::LiveDevice;
    use sa_device::doctor::sound::measure;

    let measured = LiveDevice::open(settings.audio.clone()).and_then(|mut device| {
        report.opened = Some(device.opened().to_owned());
        measure(&mut device, f64::from(seconds), &mut |done, all| {
            // Over itself, where somebody looks.
            if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
                eprint!("\rlistening, then three chirps: {done:.0} of {all:.0} s ");
            }
        })
    });
    if let Some(opened) = &report.opened {
        report.findings.push(Finding::fine("sound devices", opened.clone()));
    }
    match measured {
        Ok(sound) => {
            report.findings.extend(sound.findings());
            report.sound = serde_json::to_value(&sound).ok();
        }
        Err(error) => {
            let cure = "`sa-agent devices` lists what there is; `--no-sound` leaves this out";
            report.findings.push(Finding::bad(Level::Problem, "sound devices", error.to_string(), cure));
        }
    }
}
