//! The folder of a log: whole turns in it, the oldest removed.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavSpec, WavWriter};
use serde::Deserialize;

use super::{FORMAT_VERSION, FieldError, Logged};
use crate::audio::SAMPLE_RATE;
use crate::files::{Lock, PARTIAL, PRIVATE, write_beside};

/// Marks the folder.
const MARK: &str = ".sa-field-log";

/// A log's folder while it is written.
pub(super) struct Store {
    dir: PathBuf,
    limit: u64,
    /// Complete turns, oldest first, with their size in bytes.
    turns: VecDeque<(String, u64)>,
    session: u32,
    _lock: Lock,
}

impl Store {
    /// Opens or makes the folder, takes its lock, and clears away what a program that was killed left behind.
    pub fn open(dir: &Path, limit: u64) -> Result<Self, FieldError> {
        let failed = |source| FieldError::Io { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let mark = dir.join(MARK);
        if !mark.exists() && fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(FieldError::Foreign { dir: dir.to_owned() });
        }
        let lock = Lock::take(&mark).map_err(failed)?.ok_or_else(|| FieldError::Busy { dir: dir.to_owned() })?;
        // It may have been made by hand, for all to read.
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
        let names = names(dir).map_err(failed)?;
        for name in fs::read_dir(dir).map_err(failed)? {
            let name = name.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let orphan = name.strip_suffix(".wav").is_some_and(|turn| parse(turn).is_some() && !names.iter().any(|n| n == turn));
            if name.ends_with(PARTIAL) || orphan {
                fs::remove_file(dir.join(name)).map_err(failed)?;
            }
        }
        let session = names.last().and_then(|name| parse(name)).map_or(1, |(session, _)| session.saturating_add(1));
        let turns = names.into_iter().map(|name| (size(dir, &name), name)).map(|(bytes, name)| (name, bytes)).collect();
        let mut store = Self { dir: dir.to_owned(), limit, turns, session, _lock: lock };
        // The limit may be smaller than last time.
        store.shrink();
        Ok(store)
    }

    /// The number of this session.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Adds a turn: first its audio, then the line that makes it complete. Then the oldest turns give way to it.
    pub fn add(&mut self, name: &str, line: &[u8], audio: Option<&[i16]>) -> Result<(), FieldError> {
        let (text, wav) = (self.dir.join(format!("{name}.jsonl")), self.dir.join(format!("{name}.wav")));
        let failed = |path: &Path, source| FieldError::Io { path: path.to_owned(), source };
        if let Some(samples) = audio {
            write_beside(&wav, PRIVATE, |file| write_wav(file, samples)).map_err(|e| failed(&wav, e))?;
        }
        if let Err(error) = write_beside(&text, PRIVATE, |mut file| file.write_all(line)) {
            // Without its line the audio belongs to nothing; if it stays, the next start removes it.
            let _ = fs::remove_file(&wav);
            return Err(failed(&text, error));
        }
        self.turns.push_back((name.to_owned(), size(&self.dir, name)));
        self.shrink();
        Ok(())
    }

    /// Removes the oldest turns until the rest is within the limit; the newest one stays.
    fn shrink(&mut self) {
        let mut total: u64 = self.turns.iter().map(|(_, bytes)| bytes).sum();
        while total > self.limit && self.turns.len() > 1 {
            let Some((name, bytes)) = self.turns.pop_front() else { break };
            // The line first: what is left after a kill between the two is an audio file that the next start removes. A file that is
            // not there any more is as good as removed.
            let _ = fs::remove_file(self.dir.join(format!("{name}.jsonl")));
            let _ = fs::remove_file(self.dir.join(format!("{name}.wav")));
            total -= bytes;
        }
    }
}

fn write_wav(file: &File, samples: &[i16]) -> io::Result<()> {
    let spec = WavSpec { channels: 1, sample_rate: SAMPLE_RATE, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let plain = |e: hound::Error| match e {
        hound::Error::IoError(e) => e,
        e => io::Error::other(e),
    };
    let mut writer = WavWriter::new(BufWriter::new(file), spec).map_err(plain)?;
    for sample in samples {
        writer.write_sample(*sample).map_err(plain)?;
    }
    writer.finalize().map_err(plain)
}

/// Session and number of a turn's name.
fn parse(name: &str) -> Option<(u32, u64)> {
    let (session, turn) = name.split_once('-')?;
    Some((session.parse().ok()?, turn.parse().ok()?))
}

/// The names of the complete turns, oldest first.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".jsonl").filter(|name| parse(name).is_some()).map(str::to_owned));
    }
    names.sort_by_key(|name| parse(name));
    Ok(names)
}

fn size(dir: &Path, name: &str) -> u64 {
    let bytes = |kind: &str| fs::metadata(dir.join(format!("{name}.{kind}"))).map_or(0, |meta| meta.len());
    bytes("jsonl") + bytes("wav")
}

/// Reads all turns of a log, oldest first; it may be being written.
///
/// # Errors
/// When the folder is no log, or a line of it cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Logged>, FieldError> {
    let failed = |path: &Path, source| FieldError::Io { path: path.to_owned(), source };
    if !dir.join(MARK).is_file() {
        return Err(FieldError::NoLog { dir: dir.to_owned() });
    }
    let mut turns = Vec::new();
    for name in names(dir).map_err(|e| failed(dir, e))? {
        let path = dir.join(format!("{name}.jsonl"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Removed in between: the log is being written.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(&path, e)),
        };
        turns.push(read_record(&text, path)?);
    }
    Ok(turns)
}

fn read_record(text: &str, path: PathBuf) -> Result<Logged, FieldError> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    // Further lines are for what is said about the turn later.
    let line = text.lines().next().unwrap_or_default();
    let refuse = |e: serde_json::Error| FieldError::Record { path: path.clone(), message: e.to_string() };
    let Version { version } = serde_json::from_str(line).map_err(refuse)?;
    if version > u64::from(FORMAT_VERSION) {
        return Err(FieldError::Version { path, found: version });
    }
    let logged: Logged = serde_json::from_str(line).map_err(refuse)?;
    // A log that came from elsewhere names a file of its own folder, no other.
    if let Some(audio) = logged.audio.as_ref().filter(|audio| Path::new(audio).file_name() != Some(audio.as_ref())) {
        return Err(FieldError::Record { path, message: format!("`{audio}` is no name of a file beside it") });
    }
    Ok(Logged { path, ..logged })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
