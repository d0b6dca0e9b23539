//! `fuzz --seconds N FILE…`: damages good files at random and reads them, each by the reader that its name asks for. A reader may
//! refuse a file; it must not panic, hang, or take memory that the file does not have. Seeded: a failure prints what repeats it.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use sa_export::import::arrays;
use sa_export::import::hubert::Hubert;
use sa_export::import::pickle::Pickle;
use sa_export::import::qwen::Qwen;
use sa_export::import::speech::Speech;
use sa_export::weights::Weights;

#[derive(Parser)]
struct Args {
    /// Seconds in all
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Good files: .npy, .pkl, .pt, .bin, .safetensors, config.json
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// xorshift64*: enough to choose bytes by.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// One to four kinds of damage; near the start half of the time, for that is where descriptions are.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let reach = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        if bytes.is_empty() {
            return;
        }
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => {
                let part: Vec<u8> = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            4 => drop(bytes.drain(at..(at + random.below(32)).min(bytes.len()))),
            _ => {
                let value = [0u64, 1, 0xffff_ffff, u64::MAX, 1 << 62][random.below(5)].to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
        }
    }
}

/// Reads all that a file of this name can be. Errors are fine.
fn read(path: &Path) {
    if path.file_name().is_some_and(|name| name == "config.json") {
        let folder = path.parent().unwrap_or(Path::new("."));
        let _ = Hubert::open(folder);
        let _ = Qwen::open(folder, 128);
        let _ = Speech::open(folder);
        return;
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy" | "pkl") => {
            let _ = arrays::kmeans(path);
            let _ = std::fs::read(path).map(|bytes| Pickle::read(&bytes).map(|pickle| pickle.length()));
        }
        Some("pt") => drop(Hubert::open(path)),
        _ => {}
    }
    if let Ok(weights) = Weights::open(path) {
        for (name, shape) in weights.shapes() {
            let _ = weights.tensor(&name, &shape);
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir().context("making a folder")?;
    let started = Instant::now();
    let share = Duration::from_secs(args.seconds) / args.files.len() as u32;
    for (index, file) in args.files.iter().enumerate() {
        let good = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let place = folder.path().join(index.to_string());
        std::fs::create_dir(&place).context("making a folder")?;
        let path = place.join(file.file_name().context("a file has a name")?);
        std::fs::write(&path, &good).context("writing")?;
        read(&path);
        let mut seed = args.seed;
        let mut slowest = Duration::ZERO;
        while started.elapsed() < share * (index as u32 + 1) {
            let mut bytes = good.clone();
            damage(&mut bytes, &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
            std::fs::write(&path, &bytes).context("writing")?;
            let began = Instant::now();
            if catch_unwind(|| read(&path)).is_err() {
                bail!("{} with damage of seed {seed}: a reader panicked", file.display());
            }
            slowest = slowest.max(began.elapsed());
            ensure!(slowest < Duration::from_secs(20), "{} with damage of seed {seed}: a reader hangs", file.display());
            seed += 1;
        }
        println!("{}: {} damaged files read or refused, the slowest in {slowest:.0?}", file.display(), seed - args.seed);
    }
    Ok(())
}
