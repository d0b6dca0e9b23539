//! `sa-agent devices`.

use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// alsa, pulseaudio or pipewire (of those that were built in).
    #[arg(long, value_name = "NAME", env = "SA_AUDIO_HOST")]
    pub host: Option<String>,
    /// Show what this choice would lead to: see `listen`.
    #[arg(long, value_name = "NAME", env = "SA_MICROPHONE")]
    pub microphone: Option<String>,
    /// Likewise.
    #[arg(long, value_name = "NAME", env = "SA_SPEAKER")]
    pub speaker: Option<String>,
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

    let all = list(&Wish { microphone: args.microphone, speaker: args.speaker, host: args.host })?;
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
