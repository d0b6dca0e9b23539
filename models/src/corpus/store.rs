//! Shards on disk: `NNNN.jsonl` (one record a line) beside `NNNN.s16` (raw 16-bit samples, 16 kHz, one record after the other).
//!
//! A shard is written beside and renamed, sound first: where the `.jsonl` is, the shard is whole. A killed run goes on at the first shard without one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// Records per shard.
pub const SHARD: usize = 1000;

/// A record that knows where its samples are.
pub trait Record: Serialize + DeserializeOwned + Send {
    /// Sets offset and count of samples within the shard.
    fn place(&mut self, offset: u64, samples: u64);
    /// Offset and count of samples.
    fn location(&self) -> (u64, u64);
    /// Told, after reading, which shard it came from.
    fn set_shard(&mut self, shard: u32);
}

fn path(folder: &Path, shard: usize, extension: &str) -> PathBuf {
    folder.join(format!("{shard:04}.{extension}"))
}

/// Whether the shard has been written.
pub fn exists(folder: &Path, shard: usize) -> bool {
    path(folder, shard, "jsonl").exists()
}

/// Writes a whole shard.
///
/// # Errors
/// [`Error::Io`] (a full disk, for one); nothing of the shard counts then.
pub fn write<R: Record>(folder: &Path, shard: usize, records: Vec<(R, Vec<i16>)>) -> Result<(), Error> {
    let (sound, sound_partial) = (path(folder, shard, "s16"), path(folder, shard, "s16.partial"));
    let (lines, lines_partial) = (path(folder, shard, "jsonl"), path(folder, shard, "jsonl.partial"));
    let in_sound = |source| Error::io(&sound_partial, source);
    let in_lines = |source| Error::io(&lines_partial, source);
    let mut sound_file = BufWriter::new(File::create(&sound_partial).map_err(in_sound)?);
    let mut lines_file = BufWriter::new(File::create(&lines_partial).map_err(in_lines)?);
    let mut offset = 0;
    for (mut record, samples) in records {
        record.place(offset, samples.len() as u64);
        offset += samples.len() as u64;
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        sound_file.write_all(&bytes).map_err(in_sound)?;
        serde_json::to_writer(&mut lines_file, &record).map_err(|error| in_lines(error.into()))?;
        lines_file.write_all(b"\n").map_err(in_lines)?;
    }
    sound_file.into_inner().map_err(|error| in_sound(error.into_error()))?.sync_all().map_err(in_sound)?;
    lines_file.into_inner().map_err(|error| in_lines(error.into_error()))?.sync_all().map_err(in_lines)?;
    std::fs::rename(&sound_partial, &sound).map_err(in_sound)?;
    std::fs::rename(&lines_partial, &lines).map_err(in_lines)
}

/// The shards of a folder, opened for reading.
#[derive(Debug)]
pub struct Shards {
    files: Vec<(PathBuf, File)>,
}

impl Shards {
    /// Reads all records; shards are numbered from 0 without gaps.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a line that is no record or whose samples are not in the file.
    pub fn open<R: Record>(folder: &Path) -> Result<(Self, Vec<R>), Error> {
        let (mut files, mut records) = (Vec::new(), Vec::new());
        while exists(folder, files.len()) {
            let shard = files.len();
            let (lines, sound) = (path(folder, shard, "jsonl"), path(folder, shard, "s16"));
            let text = std::fs::read_to_string(&lines).map_err(|source| Error::io(&lines, source))?;
            let file = File::open(&sound).map_err(|source| Error::io(&sound, source))?;
            let samples = file.metadata().map_err(|source| Error::io(&sound, source))?.len() / 2;
            for (number, line) in text.lines().enumerate() {
                let wrong = |message: String| Error::Format { path: lines.clone(), line: number + 1, message };
                let mut record: R = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
                let (offset, count) = record.location();
                if offset.checked_add(count).is_none_or(|end| end > samples) {
                    return Err(wrong(format!("{count} samples from {offset} are not in {} ({samples} samples)", sound.display())));
                }
                record.set_shard(shard as u32);
                records.push(record);
            }
            files.push((sound, file));
        }
        Ok((Self { files }, records))
    }

    /// Reads samples of a shard, scaled to ±1.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn samples(&self, shard: u32, offset: u64, count: u64) -> Result<Vec<f32>, Error> {
        let (path, file) = &self.files[shard as usize];
        let mut bytes = vec![0u8; count as usize * 2];
        file.read_exact_at(&mut bytes, offset * 2).map_err(|source| Error::io(path, source))?;
        Ok(bytes.chunks_exact(2).map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0).collect())
    }
}
