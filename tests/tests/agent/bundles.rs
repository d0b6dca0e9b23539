//! A damaged bundle does not load, and the message names what does not fit. Exit code 4.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sa_tests::{Talk, copy_bundle, samples};

const INVALID: i32 = 4;

/// Damages a copy of the bundle, and expects the refusal to name `culprit`.
fn refused(culprit: &str, damage: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("bundle");
    copy_bundle(&bundle)?;
    damage(&bundle)?;
    let answer = folder.path().join("a.wav");
    let outcome = Talk::on(&bundle).input(&samples()?[0].wav).output(&answer).run()?;
    outcome.failed_with(INVALID, culprit).with_context(|| format!("with damage to {culprit}"))?;
    ensure!(!answer.exists(), "an answer was written");
    Ok(())
}

fn flip(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(path, bytes)?)
}

/// The files that `bundle.toml` vouches for.
fn parts() -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let mut names = copy_bundle(folder.path())?;
    names.retain(|name| name != "bundle.toml" && !name.ends_with(".md"));
    ensure!(names.len() >= 5, "the bundle has only {names:?}");
    Ok(names)
}

#[test]
fn a_flipped_bit_is_found_in_every_file() -> Result<()> {
    parts()?.iter().try_for_each(|name| refused(name, |bundle| flip(&bundle.join(name))))
}

#[test]
fn a_missing_file_is_named() -> Result<()> {
    let names = parts()?.into_iter().chain(["bundle.toml".to_owned()]);
    names.into_iter().try_for_each(|name| refused(&name, |bundle| Ok(fs::remove_file(bundle.join(&name))?)))
}

#[test]
fn a_truncated_file_is_named() -> Result<()> {
    parts()?.iter().try_for_each(|name| {
        refused(name, |bundle| {
            let bytes = fs::read(bundle.join(name))?;
            Ok(fs::write(bundle.join(name), &bytes[..bytes.len() / 2])?)
        })
    })
}

/// Changes one value of bundle.toml.
fn edit(bundle: &Path, change: impl FnOnce(&mut toml::Table)) -> Result<()> {
    let file = bundle.join("bundle.toml");
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&file)?)?;
    change(&mut table);
    Ok(fs::write(&file, toml::to_string(&table)?)?)
}

#[test]
fn values_that_do_not_fit_together_are_named() -> Result<()> {
    let integer = |key: &'static str, value: i64| {
        move |bundle: &Path| {
            edit(bundle, |table| {
                table.insert(key.to_owned(), toml::Value::Integer(value));
            })
        }
    };
    refused("format_version", integer("format_version", 99))?;
    refused("sample_rate", integer("sample_rate", 8_000))?;
    refused("unit_logits", integer("k", 123))?;
    refused("`units`", integer("group", 3))?;
    refused("bundle.toml", |bundle| Ok(fs::write(bundle.join("bundle.toml"), "this is = not [toml")?))?;
    refused("bundle.toml", |bundle| Ok(fs::write(bundle.join("bundle.toml"), "")?))
}

#[test]
fn a_bundle_that_is_not_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let none = folder.path().join("no-bundle");
    let outcome = Talk::on(&none).input(&samples()?[0].wav).output(&folder.path().join("a.wav")).run()?;
    outcome.failed_with(INVALID, "no-bundle")
}
