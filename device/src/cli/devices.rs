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
    use sa_device::audio::live::hardware::{Side, list};

    let mut wish = Wish::default();
    args.sound.over(&mut wish);
    let all = list(&wish)?;
    if all.is_empty() {
        let message = "there is no audio device: is one plugged in (`arecord -l`, `aplay -l`), and is this user in the group `audio`?";
        return Err(AudioError::Device { message: message.to_owned() }.into());
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&all)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for device in &all {
        writeln!(out, "{}  ({})", device.id, device.name)?;
        for (what, side) in [("microphone", &device.microphone), ("speaker", &device.speaker)] {
            let Some(Side { rate, channels, format, chosen }) = side else { continue };
            let chosen = chosen.map(|why| format!("  <- would be used: {why}")).unwrap_or_default();
            writeln!(out, "  {what:<10} {rate} Hz, {channels} channels, {format}{chosen}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
