//! Speech → units → speech with a bundle's own graphs: what the decoder makes of golden units, for the judge.
//!
//! `resynthesise BUNDLE LIST.jsonl OUTPUT_FOLDER`, where the list holds `{"wav", "text"}` a line, paths relative to it.
//! Writes the same list with the new files.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sa_device::bundle::Bundle;
use sa_device::engine::Tract;
use sa_device::stage::{Decoder, Tokenizer};
use sa_tests::{Form, read_wav, write_wav};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, list, output] = &arguments[..] else { bail!("usage: resynthesise BUNDLE LIST.jsonl OUTPUT_FOLDER") };
    let (list, output) = (Path::new(list), Path::new(output));
    let bundle = Bundle::open(Path::new(bundle))?;
    let mut tokenizer = Tokenizer::open(&Tract, &bundle)?;
    let mut decoder = Decoder::open(&Tract, &bundle)?;
    let folder = list.parent().context("the list lies in a folder")?;
    std::fs::create_dir_all(output).with_context(|| format!("while making {}", output.display()))?;
    let mut written = String::new();
    for line in std::fs::read_to_string(list).with_context(|| format!("while reading {}", list.display()))?.lines() {
        let row: serde_json::Value = serde_json::from_str(line).with_context(|| format!("in {}: {line}", list.display()))?;
        let name = row["wav"].as_str().with_context(|| format!("no wav in {line}"))?;
        let (audio, _) = read_wav(&folder.join(name))?;
        let speech = decoder.forward(&tokenizer.forward(&audio)?)?;
        write_wav(&output.join(name), &speech, Form { rate: (1, 1), channels: 1, bits: 16, float: false })?;
        writeln!(written, "{line}")?;
    }
    Ok(std::fs::write(output.join("list.jsonl"), written)?)
}
