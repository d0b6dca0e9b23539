//! What several commands need, from file, environment and flags.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sa_device::bundle::Bundle;
use sa_device::engine::{self, Engine};
use sa_device::pipeline::Settings;
use serde::Deserialize;

use super::Usage;

/// Flags of all commands.
#[derive(clap::Args)]
pub struct Common {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", env = "SA_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// What runs the graphs: auto or tract.
    #[arg(long, value_name = "NAME", env = "SA_ENGINE")]
    pub engine: Option<String>,
    /// With 2 or more, the decoder speaks on a thread of its own.
    #[arg(long, value_name = "N", env = "SA_THREADS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: Option<u32>,
    /// Settings file (TOML): bundle, engine, threads, tools, realtime, and a table `conversation` of limits.
    #[arg(long, value_name = "FILE", env = "SA_CONFIG")]
    pub config: Option<PathBuf>,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    pub bundle: Option<PathBuf>,
    pub engine: Option<String>,
    pub threads: Option<u32>,
    pub tools: Option<PathBuf>,
    pub realtime: bool,
    pub conversation: Settings,
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
        file.engine = self.engine.clone().or(file.engine);
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
    let folder = path.parent().unwrap_or(Path::new("."));
    for inside in [&mut file.bundle, &mut file.tools].into_iter().flatten() {
        *inside = folder.join(&*inside);
    }
    Ok(file)
}

impl File {
    /// The engine that was asked for.
    pub fn engine(&self) -> anyhow::Result<Box<dyn Engine>> {
        Ok(engine::by_name(self.engine.as_deref().unwrap_or("auto"))?)
    }

    /// Opens the bundle.
    pub fn open_bundle(&self) -> anyhow::Result<Bundle> {
        let missing = || Usage("which bundle? Give --bundle DIR, SA_BUNDLE or `bundle` in the settings file".to_owned());
        let dir = self.bundle.as_ref().ok_or_else(missing)?;
        Bundle::open(dir).with_context(|| format!("while opening the bundle {}", dir.display()))
    }
}
