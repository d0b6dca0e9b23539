//! What several commands need, from file, environment and flags.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use sa_device::audio::live::Wish as AudioWish;
use sa_device::bundle::Bundle;
use sa_device::conversation::LiveSettings;
use sa_device::engine::{Device, Engine, EngineName, Wish};
use sa_device::events::HooksTable;
use sa_device::pipeline::Settings;
use serde::Deserialize;

use super::Usage;
use super::output::complain;

/// Flags of all commands.
#[derive(clap::Args)]
pub struct Common {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", env = "SA_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// What runs the graphs: auto, tract, or ort (ONNX Runtime).
    #[arg(long, value_name = "NAME", env = "SA_ENGINE")]
    pub engine: Option<EngineName>,
    /// What they run on: auto, cpu, cpu:N (N threads a graph), cuda[:N] or tensorrt[:N]; all but the first two need ort.
    #[arg(long, value_name = "DEVICE", env = "SA_DEVICE")]
    pub device: Option<Device>,
    /// The library of ONNX Runtime (libonnxruntime.so, 1.17 or later) or its folder; else ORT_DYLIB_PATH and the usual
    /// places are looked at.
    #[arg(long, value_name = "FILE", env = "SA_ORT_LIBRARY", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub ort_library: Option<PathBuf>,
    /// With 2 or more, the decoder speaks on a thread of its own.
    #[arg(long, value_name = "N", env = "SA_THREADS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: Option<u32>,
    /// Settings file (TOML); the example `device/examples/settings.toml` has every key.
    #[arg(long, value_name = "FILE", env = "SA_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Flags of all commands that use microphone and speaker.
#[derive(clap::Args)]
pub struct Sound {
    /// The microphone: an id of `sa-agent devices`, or part of an id or a name.
    #[arg(long, value_name = "NAME", env = "SA_MICROPHONE")]
    microphone: Option<String>,
    /// The speaker, likewise.
    #[arg(long, value_name = "NAME", env = "SA_SPEAKER")]
    speaker: Option<String>,
    /// alsa, pulseaudio or pipewire (of those that were built in).
    #[arg(long, value_name = "NAME", env = "SA_AUDIO_HOST")]
    host: Option<String>,
}

impl Sound {
    /// Puts the flags over the settings of the file.
    pub fn over(self, wish: &mut AudioWish) {
        wish.microphone = self.microphone.or(wish.microphone.take());
        wish.speaker = self.speaker.or(wish.speaker.take());
        wish.host = self.host.or(wish.host.take());
    }
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    pub bundle: Option<PathBuf>,
    pub engine: Option<EngineName>,
    pub device: Option<Device>,
    pub ort_library: Option<PathBuf>,
    pub threads: Option<u32>,
    pub tools: Option<PathBuf>,
    pub realtime: bool,
    pub state: Option<PathBuf>,
    pub field_log: Option<PathBuf>,
    pub field_log_mb: Option<u32>,
    pub field_log_units_only: bool,
    pub events_socket: Option<PathBuf>,
    pub hook: HooksTable,
    pub conversation: Settings,
    /// Microphone and speaker.
    pub audio: AudioWish,
    /// Turn-taking.
    pub live: LiveSettings,
}

impl Common {
    /// Reads the settings file, if there is one, and puts flags and environment over it. Paths in the file are relative
    /// to the file.
    pub fn resolve(&self) -> anyhow::Result<File> {
        let mut file = match &self.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        file.bundle = self.bundle.clone().or(file.bundle);
        file.engine = self.engine.or(file.engine);
        file.device = self.device.or(file.device);
        file.ort_library = self.ort_library.clone().or(file.ort_library);
        file.threads = self.threads.or(file.threads);
        if let Some(threads) = file.threads {
            file.conversation.threads = threads as usize;
        }
        Ok(file)
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("while reading the settings {}", path.display()))?;
    let mut file: File = toml::from_str(&text).with_context(|| format!("while reading the settings {}", path.display()))?;
    // A bare file name has the empty path as its folder; joined to that, a program would be looked for in PATH.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let paths = [
        &mut file.bundle,
        &mut file.tools,
        &mut file.ort_library,
        &mut file.state,
        &mut file.field_log,
        &mut file.events_socket,
        &mut file.live.wake.phrase,
    ];
    for inside in paths.into_iter().flatten() {
        *inside = folder.join(&*inside);
    }
    for program in file.hook.values_mut().filter_map(|hook| hook.program.first_mut()) {
        if let Some(beside) = program.strip_prefix("./") {
            *program = folder.join(beside).to_string_lossy().into_owned();
        }
    }
    Ok(file)
}

impl File {
    /// The engine that was asked for; that another one has to help is said on standard error.
    pub fn engine(&self) -> anyhow::Result<Box<dyn Engine>> {
        let wish =
            Wish { engine: self.engine.unwrap_or_default(), device: self.device.unwrap_or_default(), library: self.ort_library.clone() };
        Ok(wish.open(|message| complain(&message))?)
    }

    /// Opens the bundle.
    pub fn open_bundle(&self) -> anyhow::Result<Bundle> {
        let missing = || Usage("which bundle? Give --bundle DIR, SA_BUNDLE or `bundle` in the settings file".to_owned());
        let dir = self.bundle.as_ref().ok_or_else(missing)?;
        Bundle::open(dir).with_context(|| format!("while opening the bundle {}", dir.display()))
    }
}
