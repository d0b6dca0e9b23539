//! Streaming equals offline, on the shipped graphs: how audio and units are cut into pieces changes nothing.

use anyhow::{Result, ensure};
use sa_device::bundle::Bundle;
use sa_device::engine::Tract;
use sa_device::stage::{Decoder, Tokenizer};
use sa_tests::{read_wav, samples};

/// Samples at a time: single ones, primes, a unit, a chunk and one off it, more than there is.
const PIECES: [usize; 9] = [1, 2, 3, 97, 640, 5119, 5120, 5121, usize::MAX];

#[test]
fn the_units_do_not_depend_on_the_chunking_of_the_audio() -> Result<()> {
    let bundle = Bundle::open(&sa_tests::bundle())?;
    let mut tokenizer = Tokenizer::open(&Tract, &bundle)?;
    let late = bundle.manifest().tokenizer_delay();
    for sample in samples()?.iter().take(3) {
        let (audio, _) = read_wav(&sample.wav)?;
        let offline = tokenizer.forward(&audio)?;
        ensure!(offline.len() == audio.len().div_ceil(640), "{} units for {} samples", offline.len(), audio.len());
        for piece in PIECES {
            let mut units = Vec::new();
            for part in audio.chunks(piece.min(audio.len())) {
                tokenizer.step(part, &mut units)?;
            }
            tokenizer.flush(&mut units)?;
            ensure!(units.len() == offline.len() + late, "{} units in pieces of {piece} samples", units.len());
            ensure!(units[late..] == offline, "{}: other units in pieces of {piece} samples", sample.wav.display());
        }
    }
    Ok(())
}

#[test]
fn the_speech_does_not_depend_on_the_chunking_of_the_units() -> Result<()> {
    let bundle = Bundle::open(&sa_tests::bundle())?;
    let k = bundle.manifest().k as u32;
    let mut decoder = Decoder::open(&Tract, &bundle)?;
    let units: Vec<u32> = (0..61).map(|i| (i * 37 + i * i) % k).collect();
    let offline = decoder.forward(&units)?;
    ensure!(offline.len() == units.len() * 640, "{} samples for {} units", offline.len(), units.len());
    for piece in [1, 2, 3, 7, units.len()] {
        let mut samples = Vec::new();
        for part in units.chunks(piece) {
            decoder.step(part, &mut samples)?;
        }
        decoder.flush(&mut samples)?;
        ensure!(samples == offline, "another sound in pieces of {piece} units");
    }
    Ok(())
}

/// After a reset in mid-sentence nothing of what was heard is left.
#[test]
fn a_reset_forgets_everything() -> Result<()> {
    let bundle = Bundle::open(&sa_tests::bundle())?;
    let mut tokenizer = Tokenizer::open(&Tract, &bundle)?;
    let (audio, _) = read_wav(&samples()?[0].wav)?;
    let fresh = tokenizer.forward(&audio)?;
    let mut units = Vec::new();
    tokenizer.step(&audio[audio.len() / 3..], &mut units)?;
    tokenizer.reset()?;
    units.clear();
    tokenizer.step(&audio, &mut units)?;
    tokenizer.flush(&mut units)?;
    ensure!(units[bundle.manifest().tokenizer_delay()..] == fresh, "the units after a reset differ from those of a fresh tokenizer");
    Ok(())
}
