//! What can be asked of `sa-export`, and what of it fits together.

use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Parser};
use sa_device::bundle::StageName;
use sa_device::engine::EngineName;
use sa_export::budget::Budgets;
use sa_export::choice::Choice;
use sa_export::inspect;
use sa_export::onnx::Precision;
use sa_export::target::Target;

/// Modes that write nothing, those that export nothing, and those whose networks see no window.
const READING: [&str; 3] = ["inspect", "verify", "compare"];
const NOT_EXPORTING: [&str; 4] = ["join", "inspect", "verify", "compare"];
const WITHOUT_WINDOW: [&str; 6] = ["checkpoint", "qwen", "join", "inspect", "verify", "compare"];

/// Turns a checkpoint into a bundle of streaming ONNX graphs, and proves each graph against its network.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 4 bundle invalid, 5 beyond budget (a graph differs too much).
#[derive(Parser)]
#[command(name = "sa-export", version, max_term_width = 100)]
#[command(group(ArgGroup::new("mode").required(true).args(["checkpoint", "hubert", "hifigan", "qwen", "join", "inspect", "verify", "compare"])))]
pub struct Cli {
    /// Checkpoint folder: tokenizer/, decoder/, lm/, vocabulary.txt
    #[arg(long, value_name = "DIR", requires = "output")]
    pub checkpoint: Option<PathBuf>,
    /// Bundle folder to write; a bundle that is there is replaced
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = READING)]
    pub output: Option<PathBuf>,
    /// A public HuBERT to export as a streaming tokenizer: a folder of Hugging Face, or a .pt of fairseq
    #[arg(long, value_name = "PATH", requires_all = ["output", "kmeans"])]
    pub hubert: Option<PathBuf>,
    /// With --hubert: its centroids (.npy, .safetensors, or a scikit-learn KMeans pickled or saved by joblib)
    #[arg(long, value_name = "FILE", requires = "hubert")]
    pub kmeans: Option<PathBuf>,
    /// With --hubert: the layer whose features the k-means knows, from 1 (the last by default; 11 for mHuBERT-25Hz)
    #[arg(long, value_name = "N", requires = "hubert")]
    pub layer: Option<usize>,
    /// A public unit HiFi-GAN to export as a streaming decoder: a folder with config.json and a generator, or the generator's file
    #[arg(long, value_name = "PATH", requires = "output")]
    pub hifigan: Option<PathBuf>,
    /// A public Qwen2 or Qwen2.5 to export as the trunk of a language model: a folder of Hugging Face
    #[arg(long, value_name = "DIR", requires = "output")]
    pub qwen: Option<PathBuf>,
    /// With --qwen: what makes it speak (config.json, model.safetensors: unit embedding, adaptor, head); text alone without it
    #[arg(long, value_name = "DIR", requires = "qwen")]
    pub speech: Option<PathBuf>,
    /// With --qwen: positions that it can remember
    #[arg(long, value_name = "N", requires = "qwen", default_value_t = 1024)]
    pub context: usize,
    /// With --hubert: audio before the chunk that the network hears again at every step (2000)
    #[arg(long, value_name = "MS", value_parser = milliseconds, requires = "hubert")]
    pub look_back: Option<f64>,
    /// With --hubert and --hifigan: audio of a step (320 and 160 by default)
    #[arg(long, value_name = "MS", value_parser = milliseconds, conflicts_with_all = WITHOUT_WINDOW)]
    pub chunk: Option<f64>,
    /// With --hubert and --hifigan: audio after the chunk that a step waits for (by default the shortest that gives 95 % of the offline
    /// units, or spectra within half a decibel)
    #[arg(long, value_name = "MS", value_parser = milliseconds, conflicts_with_all = WITHOUT_WINDOW)]
    pub look_ahead: Option<f64>,
    /// Single precision (the default), in all stages or in the named ones
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    pub fp32: Option<Vec<StageName>>,
    /// Half precision on disk, computed in single precision; in all stages or in the named ones
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    pub fp16: Option<Vec<StageName>>,
    /// 8 bits: each stage in the form that pays, chosen by measurement; or 8-bit products in the named stages only
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    pub int8: Option<Vec<StageName>>,
    /// 4 bits for the language model and its head where they keep their budget, and 8 bits elsewhere; or 4 bits in the named stages only
    #[arg(long, value_name = "STAGES", num_args = 0.., value_delimiter = ',', value_parser = stage)]
    pub int4: Option<Vec<StageName>>,
    /// What a form may lose: the least share of decisions as in fp32 (tokenizer 0.985, lm 0.995, head 0.95), for the decoder dB (1)
    #[arg(long, value_name = "STAGE=VALUE", value_delimiter = ',', value_parser = stage_budget)]
    pub budget: Vec<(StageName, f64)>,
    /// Layers to keep in single precision, by the names that the table of worst layers has, such as model.layers.0.* (* any text, ? a character)
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// The form of one stage, such as lm=int8-weights (fp32, fp16, int8-weights, int8, int4); overrides the four flags above
    #[arg(long, value_name = "STAGE=FORM", value_delimiter = ',', value_parser = stage_form)]
    pub precision: Vec<(StageName, Precision)>,
    /// With --checkpoint and --hubert: folder of WAV files, or a corpus, to compare the quantised graphs on (built-in sounds otherwise);
    /// with --qwen: folder of texts (*.txt; what it writes itself otherwise)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["hifigan", "join", "inspect", "verify", "compare"])]
    pub samples: Option<PathBuf>,
    /// With --checkpoint or --qwen: measure on this folder how much each input of a layer matters, and store 4-bit weights by that: WAV
    /// files or a corpus, texts (*.txt) for a Qwen2. Best other data than --samples
    #[arg(long, value_name = "DIR", conflicts_with_all = ["hubert", "hifigan", "join", "inspect", "verify", "compare"])]
    pub calibrate: Option<PathBuf>,
    /// The bundle's name (the output folder's otherwise)
    #[arg(long, conflicts_with_all = READING)]
    pub name: Option<String>,
    /// Licence of the weights, an SPDX expression (MIT OR Apache-2.0 with --checkpoint, else unknown)
    #[arg(long, conflicts_with_all = NOT_EXPORTING)]
    pub licence: Option<String>,
    /// Where the weights come from, in words (trained by sa-align with --checkpoint, else imported from the folder)
    #[arg(long, conflicts_with_all = NOT_EXPORTING)]
    pub provenance: Option<String>,
    /// The engine that will run the bundle: forms are proven, timed and chosen on it
    #[arg(long, value_name = "tract|ort", default_value = "tract", value_parser = engine, conflicts_with_all = NOT_EXPORTING)]
    pub engine: EngineName,
    /// The library of ONNX Runtime or its folder; else ORT_DYLIB_PATH and the usual places are looked at
    #[arg(long, value_name = "FILE", env = "SA_ORT_LIBRARY", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub ort_library: Option<PathBuf>,
    /// Write the bundle even where a named form misses its budget
    #[arg(long)]
    pub force: bool,
    /// Print what a bundle holds
    #[arg(long, value_name = "BUNDLE")]
    pub inspect: Option<PathBuf>,
    /// Check a bundle's hashes and shapes and run its graphs
    #[arg(long, value_name = "BUNDLE")]
    pub verify: Option<PathBuf>,
    /// Bundles that are parts into one: each stage comes from the first that holds it
    #[arg(long, num_args = 1.., value_name = "BUNDLE", requires = "output")]
    pub join: Vec<PathBuf>,
    /// Two bundles side by side: forms, sizes, times, and their outputs on the same inputs
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Vec<PathBuf>,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "milliseconds are expected")?;
    if (0.0..=30_000.0).contains(&value) { Ok(value) } else { Err("0 to 30000 are possible".into()) }
}

/// `auto` is for who runs a bundle: what is measured is measured on one engine.
fn engine(text: &str) -> Result<EngineName, String> {
    match text.parse() {
        Ok(engine @ (EngineName::Tract | EngineName::Ort)) => Ok(engine),
        _ => Err("the engines are tract and ort".into()),
    }
}

fn stage(text: &str) -> Result<StageName, String> {
    let known = StageName::ALL.map(StageName::as_str).join(", ");
    StageName::ALL.into_iter().find(|stage| stage.as_str() == text).ok_or(format!("the stages are {known}"))
}

fn stage_form(text: &str) -> Result<(StageName, Precision), String> {
    let (name, form) = text.split_once('=').ok_or("write STAGE=FORM")?;
    let precision = inspect::precision(form).ok_or("the forms are fp32, fp16, int8-weights, int8, int4")?;
    Ok((stage(name)?, precision))
}

fn stage_budget(text: &str) -> Result<(StageName, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write STAGE=VALUE")?;
    let (stage, value) = (stage(name)?, value.parse().map_err(|_| "a number is expected")?);
    Budgets::default().set(stage, value).map(|()| (stage, value))
}

impl Cli {
    /// The stages that are to be exported, where anything is.
    fn stages(&self) -> &'static [StageName] {
        const SPEAKING: &[StageName] = &[StageName::Lm, StageName::Head];
        match self {
            Self { checkpoint: Some(_), .. } => &StageName::ALL,
            Self { hubert: Some(_), .. } => &[StageName::Tokenizer],
            Self { hifigan: Some(_), .. } => &[StageName::Decoder],
            Self { qwen: Some(_), speech: Some(_), .. } => SPEAKING,
            Self { qwen: Some(_), .. } => &[StageName::Lm],
            _ => &[],
        }
    }

    /// The flags that ask for one form, with their stages.
    fn forms(&self) -> [(&'static str, Precision, Option<&[StageName]>); 4] {
        [
            ("--fp32", Precision::Fp32, self.fp32.as_deref()),
            ("--fp16", Precision::Fp16, self.fp16.as_deref()),
            ("--int8", Precision::Int8, self.int8.as_deref()),
            ("--int4", Precision::Int4, self.int4.as_deref()),
        ]
    }

    /// Refuses flags that contradict each other, and those that would have no effect.
    pub fn check(&self) -> Result<(), String> {
        let stages = self.stages();
        let listed =
            self.forms().into_iter().flat_map(|(flag, _, named)| named.unwrap_or_default().iter().map(move |stage| (flag, *stage)));
        let precisions = self.precision.iter().map(|(stage, _)| ("--precision", *stage));
        let budgets = self.budget.iter().map(|(stage, _)| ("--budget", *stage));
        if let Some((flag, stage)) = listed.clone().chain(precisions.clone()).chain(budgets).find(|(_, stage)| !stages.contains(stage)) {
            let known = stages.iter().map(|stage| stage.as_str()).collect::<Vec<_>>().join(" and ");
            let known = if known.is_empty() { "nothing".into() } else { known };
            return Err(format!("{flag} names the stage {stage}, and what is exported here is {known}"));
        }
        for stage in stages {
            for flags in [listed.clone().collect::<Vec<_>>(), precisions.clone().collect()] {
                let mut of_stage = flags.iter().filter(|(_, named)| named == stage).map(|(flag, _)| *flag);
                if let (Some(first), Some(second)) = (of_stage.next(), of_stage.next()) {
                    return Err(format!("{first} and {second} both name the stage {stage}: leave one"));
                }
            }
        }
        let alone: Vec<&str> =
            self.forms().into_iter().filter(|(_, _, named)| named.is_some_and(<[_]>::is_empty)).map(|(flag, ..)| flag).collect();
        match alone.as_slice() {
            // 4 bits where they pay and 8 elsewhere is what --int4 means anyway.
            [] | [_] | ["--int8", "--int4"] => {}
            [first, second, ..] => return Err(format!("{first} and {second} contradict each other: name stages behind one of them")),
        }
        let given = [("--exclude", !self.exclude.is_empty()), ("--force", self.force)];
        let given = alone.into_iter().chain(given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag)).next();
        if let Some(flag) = given.filter(|_| stages.is_empty()) {
            return Err(format!("{flag} is for an export"));
        }
        let forms = || stages.iter().flat_map(|stage| self.choice(*stage, Choice::int8()).candidates);
        if !self.exclude.is_empty() && forms().all(|form| form == Precision::Fp32) {
            return Err("--exclude keeps layers in single precision, and all of them are: add --fp16, --int8 or --int4".into());
        }
        if self.calibrate.is_some() && !forms().any(|form| form == Precision::Int4) {
            return Err("--calibrate changes 4-bit weights only: add --int4".into());
        }
        Ok(())
    }

    pub fn budgets(&self) -> Result<Budgets> {
        let mut budgets = Budgets::default();
        self.budget.iter().try_for_each(|(stage, value)| budgets.set(*stage, *value)).map_err(Error::msg)?;
        Ok(budgets)
    }

    /// The forms of a stage; `int8` is what `--int8` alone means for it.
    pub fn choice(&self, stage: StageName, int8: Choice) -> Choice {
        let listed = || self.forms().into_iter().find(|(_, _, named)| named.is_some_and(|named| named.contains(&stage)));
        let alone = |stages: &Option<Vec<StageName>>| stages.as_ref().is_some_and(Vec::is_empty);
        let precision = self.precision.iter().find(|(name, _)| *name == stage).map(|(_, precision)| *precision);
        match precision.or_else(|| listed().map(|(_, precision, _)| precision)) {
            Some(precision) => Choice::named(precision),
            None if alone(&self.fp32) => Choice::named(Precision::Fp32),
            None if alone(&self.fp16) => Choice::named(Precision::Fp16),
            None if alone(&self.int4) && matches!(stage, StageName::Lm | StageName::Head) => Choice::int4(stage),
            None if alone(&self.int4) || alone(&self.int8) => int8,
            None => Choice::fp32(),
        }
    }

    pub fn choices(&self) -> [Choice; 4] {
        StageName::ALL.map(|stage| self.choice(stage, Choice::int8()))
    }

    /// The bundle to write. Of weights that were `imported` nothing is known but where they lie.
    pub fn target(&self, output: &Path, imported: &[&Path]) -> Target {
        let folder = || output.file_name().map_or_else(|| "bundle".into(), |name| name.to_string_lossy().into_owned());
        let (licence, provenance) = match imported {
            [] => ("MIT OR Apache-2.0".to_owned(), "trained by sa-align".to_owned()),
            paths => {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                ("unknown".to_owned(), format!("unknown; imported from {}", paths.join(" and ")))
            }
        };
        Target {
            output: output.into(),
            name: self.name.clone().unwrap_or_else(folder),
            licence: self.licence.clone().unwrap_or(licence),
            provenance: self.provenance.clone().unwrap_or(provenance),
            engine: self.engine,
            ort_library: self.ort_library.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Cli {
        let words = ["sa-export", "--output", "bundle"].into_iter().chain(flags.split_whitespace());
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{flags}: {error}"))
    }

    /// The first form of each stage, and whether it was named.
    fn forms(flags: &str) -> [(Precision, bool); 4] {
        let cli = parse(&format!("--checkpoint dir {flags}"));
        cli.check().unwrap_or_else(|error| panic!("{flags}: {error}"));
        cli.choices().map(|choice| (choice.candidates[0], choice.named))
    }

    #[test]
    fn each_stage_gets_the_form_that_was_asked_for() {
        use Precision::{Fp16, Fp32, Int4, Int8, Int8Weights};
        let free = |form| (form, false);
        let named = |form| (form, true);
        assert_eq!(forms(""), [free(Fp32); 4]);
        assert_eq!(forms("--fp32"), [named(Fp32); 4]);
        assert_eq!(forms("--fp16"), [named(Fp16); 4]);
        assert_eq!(forms("--int8"), [free(Int8); 4]);
        assert_eq!(forms("--int4"), [free(Int8), free(Int4), free(Int4), free(Int8)]);
        assert_eq!(forms("--int8 --int4"), forms("--int4"));
        assert_eq!(forms("--int8 lm,head"), [free(Fp32), named(Int8), named(Int8), free(Fp32)]);
        assert_eq!(forms("--fp16 decoder --int8"), [free(Int8), free(Int8), free(Int8), named(Fp16)]);
        assert_eq!(forms("--int8 lm --fp16"), [named(Fp16), named(Int8), named(Fp16), named(Fp16)]);
        assert_eq!(forms("--int4 --fp32 head"), [free(Int8), free(Int4), named(Fp32), free(Int8)]);
        assert_eq!(forms("--int8 --precision lm=int8-weights")[1], named(Int8Weights));
        assert_eq!(forms("--int8 lm --precision lm=int4")[1], named(Int4));
        let reason = |flags: &str| parse(flags).choice(StageName::Lm, Choice::int8()).reason;
        assert_ne!(reason("--checkpoint dir"), reason("--checkpoint dir --fp32"), "nobody asked");
    }

    #[test]
    fn what_contradicts_or_has_no_effect_is_refused() {
        for (flags, says) in [
            ("--checkpoint dir --fp16 --int8", "contradict"),
            ("--checkpoint dir --fp32 --int4", "contradict"),
            ("--checkpoint dir --fp16 lm --int8 lm", "--fp16 and --int8 both name the stage lm"),
            ("--checkpoint dir --precision lm=int8,lm=fp16", "both name the stage lm"),
            ("--qwen dir --int8 tokenizer", "--int8 names the stage tokenizer, and what is exported here is lm"),
            ("--qwen dir --fp32 head", "names the stage head"),
            ("--qwen dir --speech dir --budget decoder=1", "lm and head"),
            ("--hubert dir --kmeans file --precision lm=int8", "is tokenizer"),
            ("--hifigan dir --budget tokenizer=0.9", "is decoder"),
            ("--join dir --int8 lm", "is nothing"),
            ("--join dir --force", "--force is for an export"),
            ("--join dir --exclude *", "--exclude is for an export"),
            ("--join dir --int8", "--int8 is for an export"),
            ("--join dir --int8 --int4", "--int8 is for an export"),
            ("--checkpoint dir --exclude *", "--exclude"),
            ("--checkpoint dir --calibrate dir --int8", "add --int4"),
            ("--qwen dir --calibrate dir", "add --int4"),
        ] {
            let message = parse(flags).check().expect_err(flags);
            assert!(message.contains(says), "{flags}: {message}");
        }
        for flags in [
            "--qwen dir --calibrate dir --int4 lm",
            "--qwen dir --speech dir --fp32 head",
            "--checkpoint dir --exclude * --fp16 lm",
            "--hubert dir --kmeans file --look-back 1 --chunk 1 --look-ahead 1",
            "--hifigan dir --chunk 1 --look-ahead 1",
            "--join dir --name agent",
        ] {
            assert_eq!(parse(flags).check(), Ok(()), "{flags}");
        }
        let is_refused = |flags: &str| {
            let refused = Cli::try_parse_from(["sa-export"].into_iter().chain(flags.split_whitespace())).map(|cli| cli.check());
            assert!(!matches!(refused, Ok(Ok(()))), "{flags}");
        };
        let no_hubert = ["--checkpoint dir", "--qwen dir", "--join dir", "--hifigan dir"];
        for (flags, modes) in [
            ("--samples dir", &["--hifigan dir", "--join dir"][..]),
            ("--licence MIT", &["--join dir"]),
            ("--look-back 1", &no_hubert[..]),
            ("--chunk 1", &no_hubert[..3]),
            ("--look-ahead 1", &no_hubert[..3]),
        ] {
            modes.iter().for_each(|mode| is_refused(&format!("--output bundle {mode} {flags}")));
        }
        for mode in ["--inspect dir", "--verify dir", "--compare dir dir"] {
            for flags in [
                "--output bundle",
                "--name nano",
                "--licence MIT",
                "--provenance us",
                "--samples dir",
                "--calibrate dir",
                "--look-back 1",
                "--chunk 1",
                "--look-ahead 1",
                "--fp32",
                "--fp16",
                "--int8",
                "--int4",
                "--exclude *",
                "--force",
            ] {
                is_refused(&format!("{mode} {flags}"));
            }
            let words = ["sa-export"].into_iter().chain(mode.split_whitespace());
            assert_eq!(Cli::try_parse_from(words).expect(mode).check(), Ok(()), "{mode}");
        }
    }

    #[test]
    fn nobody_vouches_for_the_weights_of_others() {
        let of = |flags: &str, imported: &[&Path]| {
            let Target { licence, provenance, .. } = parse(flags).target(Path::new("bundle"), imported);
            (licence, provenance)
        };
        let ours = ("MIT OR Apache-2.0".to_owned(), "trained by sa-align".to_owned());
        assert_eq!(of("--checkpoint dir", &[]), ours);
        let theirs = of("--qwen Qwen2.5", &[Path::new("Qwen2.5"), Path::new("speech")]);
        assert_eq!(theirs, ("unknown".to_owned(), "unknown; imported from Qwen2.5 and speech".to_owned()));
        let known = of("--qwen Qwen2.5 --licence Apache-2.0 --provenance Alibaba", &[Path::new("Qwen2.5")]);
        assert_eq!(known, ("Apache-2.0".to_owned(), "Alibaba".to_owned()));
    }
}
