//! What outlives a restart: the schedule and the volume, in one file of a folder.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::schedule::Entry;
use crate::files::{Lock, PRIVATE, write_beside};

/// The version of the file.
const VERSION: u32 = 1;
const FILE: &str = "state.json";
const LOCK: &str = "state.lock";

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Check the path and the permissions.
    #[error("cannot keep the state in {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Give each program a folder of its own, or stop the other one.
    #[error("another program keeps its state in {}", dir.display())]
    Busy { dir: PathBuf },
}

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    version: u32,
    #[serde(default)]
    pub volume: Option<u8>,
    #[serde(default)]
    pub entries: Vec<Entry>,
}

/// The folder.
#[derive(Debug)]
pub(super) struct State {
    dir: PathBuf,
    _lock: Lock,
}

impl State {
    /// Opens or makes the folder, and reads what is kept. A file that cannot be understood is put aside, which the text tells.
    pub fn open(dir: &Path) -> Result<(Self, Kept, Option<String>), StateError> {
        let failed = |path: &Path, source| StateError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed(dir, e))?;
        let lock = Lock::take(&dir.join(LOCK)).map_err(|e| failed(dir, e))?;
        let lock = lock.ok_or_else(|| StateError::Busy { dir: dir.to_owned() })?;
        let state = Self { dir: dir.to_owned(), _lock: lock };
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((state, Kept::default(), None)),
            Err(e) => return Err(failed(&path, e)),
        };
        let why = match serde_json::from_slice::<Kept>(&text) {
            Ok(kept) if kept.version == VERSION => return Ok((state, kept, None)),
            Ok(kept) => format!("it has version {}, this program knows {VERSION}", kept.version),
            Err(error) => error.to_string(),
        };
        let aside = path.with_extension("json.bad");
        fs::rename(&path, &aside).map_err(|e| failed(&path, e))?;
        let told = format!("{} cannot be understood ({why}) and is now {}: timers and alarms are lost", path.display(), aside.display());
        Ok((state, Kept::default(), Some(told)))
    }

    /// Writes the file beside its place, brings it to the disk and renames it.
    pub fn save(&self, volume: u8, entries: &[Entry]) -> Result<(), StateError> {
        #[derive(Serialize)]
        struct Keep<'a> {
            version: u32,
            volume: u8,
            entries: &'a [Entry],
        }
        let path = self.dir.join(FILE);
        let text = serde_json::to_vec(&Keep { version: VERSION, volume, entries }).map_err(io::Error::other);
        text.and_then(|text| write_beside(&path, PRIVATE, |mut file| file.write_all(&text)))
            .map_err(|source| StateError::Io { path: path.clone(), source })
    }
}

/// The folder for the state of a program that runs for long: systemd's `StateDirectory=`, else `sa` in the user's XDG state folder; `None`
/// where neither is known.
pub fn default_state_dir() -> Option<PathBuf> {
    choose(|name| std::env::var_os(name).map(PathBuf::from))
}

fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // Both are absolute by their definition; systemd gives a list where several are configured.
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    if let Some(dirs) = absolute("STATE_DIRECTORY") {
        return dirs.to_str().and_then(|dirs| dirs.split(':').next()).map(PathBuf::from).or(Some(dirs));
    }
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("sa"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_where_systems_have_it() {
        let with = |set: &[(&str, &str)]| choose(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)));
        let (systemd, xdg, home) = (("STATE_DIRECTORY", "/var/lib/sa:/var/lib/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/home/me"));
        assert_eq!(with(&[systemd, xdg, home]), Some("/var/lib/sa".into()));
        assert_eq!(with(&[xdg, home]), Some("/x/sa".into()));
        assert_eq!(with(&[("XDG_STATE_HOME", "relative"), home]), Some("/home/me/.local/state/sa".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn a_file_that_is_no_state_is_put_aside() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for text in ["{", "{\"version\":9}", "{\"version\":1,\"entries\":[{\"kind\":\"egg\"}]}"] {
            fs::write(dir.path().join(FILE), text).expect("writable");
            let (state, kept, told) = State::open(dir.path()).expect("goes on");
            assert!(kept.entries.is_empty() && told.is_some_and(|told| told.contains("state.json.bad")), "{text}");
            assert_eq!(fs::read_to_string(dir.path().join("state.json.bad")).expect("there"), text);
            state.save(70, &[]).expect("writable");
            assert!(matches!(State::open(dir.path()), Err(StateError::Busy { .. })));
            drop(state);
            assert_eq!(State::open(dir.path()).expect("ours").1.volume, Some(70));
        }
    }
}
