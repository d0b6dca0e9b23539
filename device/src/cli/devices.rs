//! `sa-agent devices`.

use std::process::ExitCode;

use super::settings::Sound;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub sound: Sound,
    /// One JSON array instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(not(feature = "mic"))]
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { .. } = args;
    anyhow::bail!("this program was built without microphone and speaker (the feature `mic`)")
}

#[cfg(feature = "mic")]
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    use std::io::Write;

    use sa_device::audio::AudioError;
    use sa_device::audio::live::Wish;
    use sa_device::audio::live::hardware::{Format, Listing, list};

    let mut wish = Wish::default();
    args.sound.over(&mut wish);
    let Listing { devices, problems } = list(&wish)?;
    if devices.is_empty() {
        let message = "there is no audio device: is one plugged in (`arecord -l`, `aplay -l`), and is this user in the group `audio`?";
        return Err(AudioError::Device { message: message.to_owned() }.into());
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&devices)?)?;
    }
    let shown = if args.json { &[][..] } else { &devices };
    for device in shown {
        let numbered = if device.numbered { ", by the card's number, which a reboot may change" } else { "" };
        writeln!(out, "{}  ({}{numbered})", device.id, device.name)?;
        for (what, side) in [("microphone", &device.microphone), ("speaker", &device.speaker)] {
            let Some(side) = side else { continue };
            let format = match &side.format {
                Some(Format { rate, channels, format }) => format!("{rate} Hz, {channels} channels, {format}"),
                None => side.problem.clone().unwrap_or_default(),
            };
            let chosen = side.chosen.map(|why| format!("  <- would be used: {why}")).unwrap_or_default();
            writeln!(out, "  {what:<10} {format}{chosen}")?;
        }
    }
    for problem in problems {
        super::output::complain(&problem);
    }
    Ok(ExitCode::SUCCESS)
}
