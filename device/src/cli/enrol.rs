//! `sa-agent enrol`: learns a wake phrase from hearing it three times.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use sa_device::audio::read_wav;
use sa_device::wake::WakePhrase;

use super::settings::{Common, Sound};

/// Seconds of a recording; the phrase is a second or so of it.
const LONGEST: f64 = 10.0;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// The phrase as WAV files, one recording each; the microphone is asked for three otherwise.
    #[arg(long, short, value_name = "WAV", num_args = 1..)]
    input: Vec<PathBuf>,
    /// Where the phrase is kept, for `listen --wake FILE`.
    #[arg(long, short, value_name = "FILE", default_value = "wake.json")]
    output: PathBuf,
    #[command(flatten)]
    sound: Sound,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = args.common.resolve()?;
    args.sound.over(&mut settings.audio);
    let engine = settings.engine()?;
    let bundle = settings.open_bundle()?;
    let recordings = if args.input.is_empty() {
        listen(settings.audio, settings.live.activity)?
    } else {
        let read = |path: &PathBuf| read_wav(path, LONGEST).with_context(|| format!("while reading {}", path.display()));
        args.input.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?
    };
    let phrase = WakePhrase::enrol(&*engine, &bundle, &recordings, &settings.live.wake)?;
    phrase.save(&args.output)?;
    writeln!(std::io::stdout(), "the phrase is in {0}; use it by `sa-agent listen --wake {0}`", args.output.display())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "mic"))]
fn listen(_: sa_device::audio::live::Wish, _: sa_device::hearing::ActivitySettings) -> anyhow::Result<Vec<Vec<f32>>> {
    anyhow::bail!("this program was built without microphone and speaker (the feature `mic`): give recordings by --input")
}

/// Three utterances from the microphone.
#[cfg(feature = "mic")]
fn listen(audio: sa_device::audio::live::Wish, activity: sa_device::hearing::ActivitySettings) -> anyhow::Result<Vec<Vec<f32>>> {
    use std::time::Duration;

    use sa_device::audio::live::hardware::LiveDevice;
    use sa_device::audio::live::{Duplex, FRAME};
    use sa_device::hearing::{Change, Hearing};

    const TIMES: usize = 3;
    /// Sound before the voice was noticed that belongs to it.
    const BEFORE: Duration = Duration::from_millis(300);
    /// A voice that stops for so long has said the phrase.
    const AFTER: Duration = Duration::from_millis(600);
    const SILENT: Duration = Duration::from_secs(20);

    let mut device = LiveDevice::open(audio).context("while opening microphone and speaker")?;
    // As everywhere, a reader that is gone is no panic.
    let mut out = std::io::stdout();
    writeln!(out, "{}", device.opened())?;
    let mut hearing = Hearing::new(activity);
    let mut recordings = Vec::with_capacity(TIMES);
    while recordings.len() < TIMES {
        writeln!(out, "say the phrase ({} of {TIMES})", recordings.len() + 1)?;
        let asked = hearing.now();
        let (mut began, mut ended) = (None, None);
        let (since, until) = loop {
            let (mut microphone, silence) = ([0.0; FRAME], [0.0; FRAME]);
            device.listen(&mut microphone)?;
            if device.room() {
                device.play(&silence);
            }
            match hearing.step(&microphone, &silence) {
                Some(Change::Began(since)) => (began, ended) = (began.or(Some(since)), None),
                Some(Change::Ended(at)) => ended = Some(at),
                Some(Change::Suspected(_)) | None => {}
            }
            let now = hearing.now();
            if let (Some(since), Some(at)) = (began, ended)
                && now >= at + AFTER
            {
                break (since, now);
            }
            anyhow::ensure!(
                began.is_some() || now < asked + SILENT,
                "nothing was said for {} s: is it the right microphone? `sa-agent doctor` tells how loud it is",
                SILENT.as_secs()
            );
            anyhow::ensure!(
                began.is_none_or(|since| (now - since).as_secs_f64() < LONGEST),
                "somebody speaks without a pause: enrol the phrase where it is quiet"
            );
        };
        let samples = hearing.since(since.saturating_sub(BEFORE));
        writeln!(out, "  heard {:.1} s", (until - since).as_secs_f64() - AFTER.as_secs_f64())?;
        recordings.push(samples);
    }
    Ok(recordings)
}
