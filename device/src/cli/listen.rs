//! `sa-agent listen`.

use std::process::ExitCode;

use sa_device::turns::TurnSettings;

use super::around::Around;
use super::settings::{Common, Sound};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub around: Around,
    #[command(flatten)]
    pub sound: Sound,
    /// The microphone counts only while the talk key is down: --key, or SIGUSR1 (down) and SIGUSR2 (up). Without it they work too, beside the voice.
    #[arg(long)]
    pub push_to_talk: bool,
    /// The talk key: a device of /dev/input, with `:CODE` for one key of it. A press opens the microphone, its end closes it.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "DEVICE[:CODE]", env = "SA_KEY")]
    pub key: Option<sa_device::key::Key>,
    /// The voice does not interrupt an answer.
    #[arg(long)]
    pub no_barge_in: bool,
    /// Answers only what follows the wake phrase in this file, which `sa-agent enrol` writes.
    #[arg(long, value_name = "FILE", env = "SA_WAKE")]
    pub wake: Option<std::path::PathBuf>,
    /// One JSON object a line instead of a conversation to read.
    #[arg(long)]
    pub json: bool,
    /// The agent's tools: a tools.toml.
    #[arg(long, value_name = "FILE", env = "SA_TOOLS")]
    pub tools: Option<std::path::PathBuf>,
}

impl Args {
    /// Flags over the settings of the file.
    fn turns(&self, settings: &mut TurnSettings) {
        settings.push_to_talk |= self.push_to_talk;
        settings.speaking.barge_in &= !self.no_barge_in;
    }
}

#[cfg(not(feature = "mic"))]
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.turns(&mut TurnSettings::default());
    anyhow::bail!("this program was built without microphone and speaker (the feature `mic`); `sa-agent talk` works with files")
}

#[cfg(feature = "mic")]
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Instant;

    use anyhow::Context;
    use sa_device::audio::live::Duplex;
    use sa_device::audio::live::hardware::LiveDevice;
    use sa_device::conversation::{Control, Conversation, Happening, Mind};
    use sa_device::pipeline::Agent;
    use sa_device::tools::{Tools, default_state_dir};
    use sa_device::wake::WakePhrase;
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

    use super::around::Company;
    use super::output::{Ready, Screen};

    let started = Instant::now();
    let mut settings = args.common.resolve()?;
    args.around.resolve(&mut settings);
    args.turns(&mut settings.live.turns);
    args.sound.over(&mut settings.audio);
    let mut tools = match args.tools.as_ref().or(settings.tools.as_ref()) {
        Some(path) => Tools::load(path).context("while reading the tools")?,
        None => Tools::built_in(),
    };
    let engine = settings.engine()?;
    let bundle = settings.open_bundle()?;
    let name = bundle.manifest().name.clone();
    let mut screen = Screen::live(args.json)?;
    // Timers and alarms of somebody who talks to it are to survive the night.
    let mut company = Company::open(&mut settings, default_state_dir(), &bundle, &mut tools)?;
    let volume = tools.volume();
    let mut limits = settings.conversation;
    // The graphs share the machine with the audio: the decoder beside the language model keeps the answer ahead of its playback.
    limits.threads = limits.threads.max(2);
    let wake = &mut settings.live.wake;
    wake.phrase = args.wake.or(wake.phrase.take());
    let matcher = match &wake.phrase {
        Some(path) => Some(WakePhrase::load(path, &bundle).and_then(|phrase| phrase.matcher(&bundle, wake.threshold))?),
        None => None,
    };
    let mut agent = Agent::open(&*engine, bundle, tools, limits).context("while loading the bundle")?;
    agent.wake_by(matcher);
    let device = LiveDevice::open(settings.audio).context("while opening microphone and speaker")?;
    let ready = Ready { bundle: &name, engine: engine.name(), ms: started.elapsed().as_secs_f64() * 1e3 };
    screen.ready(&ready)?;
    company.ready(&ready);
    screen.note(device.opened())?;

    let stop = Arc::new(AtomicBool::new(false));
    let (down, up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone()).context("while waiting for signals")?;
        signal_hook::flag::register(signal, stop.clone()).context("while waiting for signals")?;
    }
    signal_hook::flag::register(SIGUSR1, down.clone()).context("while waiting for signals")?;
    signal_hook::flag::register(SIGUSR2, up.clone()).context("while waiting for signals")?;

    #[cfg(target_os = "linux")]
    let key = args.key.or(settings.live.key.take());
    let mut conversation = Conversation::new(device, Mind::on_thread(agent), settings.live, volume);
    let controls = conversation.controls();
    #[cfg(target_os = "linux")]
    let key = key.map(|key| key.watch(controls.clone()));
    let mut converse = |conversation: &mut Conversation<LiveDevice>| -> anyhow::Result<()> {
        while !stop.load(Relaxed) {
            for (flag, control) in [(&down, Control::KeyDown), (&up, Control::KeyUp)] {
                if flag.swap(false, Relaxed) {
                    // The queue is read every 10 ms.
                    let _ = controls.enqueue(control);
                }
            }
            let mut shown = Ok(());
            let mut tell = |happening: &Happening| {
                company.happening(happening);
                if shown.is_ok() {
                    shown = screen.happening(happening);
                }
            };
            conversation.frame(&mut tell)?;
            shown?;
            #[cfg(target_os = "linux")]
            let of_key = key.as_ref().and_then(|key| key.problem());
            #[cfg(not(target_os = "linux"))]
            let of_key = None;
            for problem in [of_key, screen.lost()].into_iter().flatten() {
                company.trouble(&problem);
                screen.problem(&problem)?;
            }
            while let Some(problem) = company.problem() {
                screen.problem(&problem)?;
            }
        }
        Ok(())
    };
    // However it ends, the log is written, with the turn that was under way, and the lights go off.
    let ended = converse(&mut conversation);
    let mut shown = Ok(());
    conversation.close(&mut |happening| {
        company.happening(happening);
        if shown.is_ok() {
            shown = screen.happening(happening);
        }
    });
    let closed = company.close(&mut screen);
    ended?;
    shown?;
    closed?;
    let counts = conversation.device().counts();
    screen.note(&format!(
        "heard {:.0} s; {} samples of the microphone lost, {} of the speaker made up, {} underruns reported; clocks {:.0} ppm apart",
        conversation.hearing().now().as_secs_f64(),
        counts.dropped,
        counts.invented,
        counts.xruns,
        counts.drift_ppm
    ))?;
    Ok(ExitCode::SUCCESS)
}
