//! `fuzz --seconds N FILE…`: damages good files at random and reads them, each by the readers that its name and its neighbours ask for.
//! A reader may refuse a file; it must not panic, hang, or take memory that the file does not have (run it under `ulimit -v`: an
//! allocation that fails ends the program, and the damaged file is left). Seeded: a failure prints what repeats it.
//!
//! What lies beside a file is copied with it, so that a damaged `config.json` has its weights and a damaged `bundle.toml` its graphs; and
//! each file must be read without an error before it is damaged, else nothing behind the first check would ever be reached.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Parser;
use sa_device::bundle::{Bundle, MANIFEST, Manifest, Stages, sha256_file};
use sa_device::engine::{Engine, Tract};
use sa_device::text::Text;
use sa_device::vocabulary::Vocabulary;
use sa_export::graphs;
use sa_export::import::arrays;
use sa_export::import::hifigan::HifiGan;
use sa_export::import::hubert::Hubert;
use sa_export::import::qwen::Qwen;
use sa_export::import::speech::Speech;
use sa_export::inspect;
use sa_export::onnx::Precision;
use sa_export::weights::Weights;
use sa_tests::copy_files;

#[derive(Parser)]
struct Args {
    /// Seconds in all
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Good files: k-means (kmeans.*), checkpoints, config.json, tokenizer.json, vocabulary.txt, bundle.toml, .onnx of a bundle
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

/// Numbers that readers of text stumble over.
const NUMBERS: [&str; 8] = ["0", "1", "-1", "65", "4294967296", "9223372036854775807", "18446744073709551615", "1e308"];

/// One to four kinds of damage; near the start half of the time, for that is where descriptions are.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let reach = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        if bytes.is_empty() {
            return;
        }
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => {
                let part: Vec<u8> = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            4 => drop(bytes.drain(at..(at + random.below(32)).min(bytes.len()))),
            5 => {
                let value = [0u64, 1, 0xffff_ffff, u64::MAX, 1 << 62][random.below(5)].to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            // A number written in digits: what changes a text and leaves it readable.
            _ => {
                let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else { continue };
                let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(start..start + digits, NUMBERS[random.below(NUMBERS.len())].bytes());
            }
        }
    }
}

/// Reads all that a file of this name can be.
fn read(path: &Path) -> Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    let folder = path.parent().unwrap_or(Path::new("."));
    match name.as_str() {
        MANIFEST => read_bundle(folder)?,
        _ if name.ends_with(".onnx") => read_graph(folder, path)?,
        _ if folder.join(MANIFEST).exists() => {
            hash_again(folder)?;
            read_bundle(folder)?;
        }
        "vocabulary.txt" => drop(Vocabulary::parse(&std::fs::read_to_string(path)?)?),
        _ if name.starts_with("kmeans.") => drop(arrays::kmeans(path)?),
        _ if name.ends_with(".json") || name.starts_with("model.") || name.starts_with("pytorch_model.") => read_checkpoint(folder)?,
        _ if name.starts_with("g_") => read_hifigan(path)?,
        _ => read_hubert(path)?,
    }
    Ok(())
}

/// A folder with `config.json`, by what lies beside it and what it says.
fn read_checkpoint(folder: &Path) -> Result<()> {
    if std::fs::read_dir(folder)?.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("g_")) {
        return read_hifigan(folder);
    }
    if folder.join("tokenizer.json").exists() {
        let qwen = Qwen::open(folder, 128)?;
        qwen.special_tokens()?;
        graphs::lm::draw_parts(&qwen.config, &qwen.weights, None, Precision::Int8)?;
        return all_tensors(&qwen.weights);
    }
    match std::fs::read_to_string(folder.join("config.json")).is_ok_and(|text| text.contains("unit_embedding_size")) {
        true => all_tensors(&Speech::open(folder)?.weights),
        false => read_hubert(folder),
    }
}

/// Half a second of audio: longer than any window.
fn read_hubert(path: &Path) -> Result<()> {
    let hubert = Hubert::open(path)?;
    ensure!(hubert.config.receptive_field() <= 8_000, "it hears more at once than is given here");
    graphs::hubert::draw_offline(&hubert, hubert.config.layers, None, 8_000, Precision::Fp16)?;
    Ok(())
}

fn read_hifigan(path: &Path) -> Result<()> {
    graphs::hifigan::draw_offline(&HifiGan::open(path)?, 8, Precision::Fp16)?;
    Ok(())
}

fn all_tensors(weights: &Weights) -> Result<()> {
    weights.shapes().into_iter().try_for_each(|(name, shape)| weights.tensor(&name, &shape).map(drop)).map_err(Error::new)
}

/// Opens a bundle and looks at all of it, its text too.
fn read_bundle(folder: &Path) -> Result<()> {
    inspect::inspect(folder)?;
    let bundle = Bundle::open(folder)?;
    for (stage, _) in bundle.manifest().stage.present() {
        bundle.initial_states(stage)?;
    }
    // A trunk of text alone need not have the tokens of a conversation.
    let _ = Text::open(&bundle);
    Ok(())
}

/// Writes the hashes of the files of a bundle anew: else nothing behind them would be reached.
fn hash_again(folder: &Path) -> Result<()> {
    let mut manifest = Manifest::parse(&std::fs::read_to_string(folder.join(MANIFEST))?)?;
    let Stages { tokenizer, lm, head, decoder } = &mut manifest.stage;
    let stages = [tokenizer, lm, head, decoder].into_iter().flatten();
    let files = stages.flat_map(|stage| std::iter::once(&mut stage.graph).chain(&mut stage.initial));
    for entry in files.chain(&mut manifest.vocabulary).chain(&mut manifest.unit_distances) {
        let path = folder.join(&entry.file);
        (entry.bytes, entry.sha256) = (std::fs::metadata(&path)?.len(), sha256_file(&path)?);
    }
    Ok(std::fs::write(folder.join(MANIFEST), toml::to_string(&manifest)?)?)
}

/// Loads the graph as the bundle beside it declares it, whatever its hash.
fn read_graph(folder: &Path, path: &Path) -> Result<()> {
    let manifest = Manifest::parse(&std::fs::read_to_string(folder.join(MANIFEST))?)?;
    let mut stages = manifest.stage.present();
    let (_, entry) = stages.find(|(_, entry)| path.ends_with(&entry.graph.file)).context("the bundle has no such graph")?;
    let mut session = Tract.load(path, entry)?;
    Ok(session.run()?)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir().context("making a folder")?;
    eprintln!("the damaged file is in {}", folder.path().display());
    let started = Instant::now();
    let share = Duration::from_secs(args.seconds) / args.files.len() as u32;
    for (index, file) in args.files.iter().enumerate() {
        let good = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let place = folder.path().join(index.to_string());
        let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        copy_files(beside, &place)?;
        let path = place.join(file.file_name().context("a file has a name")?);
        read(&path).with_context(|| format!("{} is not good before it is damaged", file.display()))?;
        let (mut seed, mut refused) = (args.seed, 0);
        let mut slowest = Duration::ZERO;
        while started.elapsed() < share * (index as u32 + 1) {
            let mut bytes = good.clone();
            damage(&mut bytes, &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
            std::fs::write(&path, &bytes).context("writing")?;
            let began = Instant::now();
            match catch_unwind(|| read(&path)) {
                Ok(read) => refused += u64::from(read.is_err()),
                Err(_) => bail!("{} with damage of seed {seed}: a reader panicked", file.display()),
            }
            slowest = slowest.max(began.elapsed());
            ensure!(slowest < Duration::from_secs(20), "{} with damage of seed {seed}: a reader hangs", file.display());
            seed += 1;
        }
        let tried = seed - args.seed;
        println!("{}: {tried} damaged files, {refused} refused, the slowest in {slowest:.0?}", file.display());
    }
    Ok(())
}
