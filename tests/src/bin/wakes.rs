//! How good wake phrases are: `wakes BUNDLE PHRASES TALK`, two corpora of `sa-align corpus`.
//!
//! Every voice that says a phrase of PHRASES often enough enrols with its first three recordings. Then its other recordings, clean and in
//! noise at 10 dB, must be found, and nothing in TALK. Prints one JSON object; `tests/figures.py wake` makes the corpora.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sa_device::bundle::Bundle;
use sa_device::engine::Tract;
use sa_device::stage::Tokenizer;
use sa_device::wake::{WakeError, WakePhrase, WakeSettings};
use sa_models::corpus::{Corpus, Crowd, Split, Utterance, augment};
use serde_json::json;

const ENROLLED: usize = 3;
/// Recordings of a voice that are looked for, at most.
const TRIED: usize = 8;
/// Voices of a set, at most, for each phrase.
const VOICES: usize = 4;
const NOISE_DB: f32 = 10.0;
const SETS: [&str; 4] = ["trained", "timbre", "accent", "synthesiser"];

#[derive(Default)]
struct Tally {
    enrolled: usize,
    refused: usize,
    tried: usize,
    missed: usize,
    missed_in_noise: usize,
    false_accepts: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, phrases, talk] = &arguments[..] else { bail!("usage: wakes BUNDLE PHRASES TALK") };
    let bundle = Bundle::open(Path::new(bundle))?;
    let settings = WakeSettings::default();
    let (phrases, talk) = (Corpus::open(Path::new(phrases))?, Corpus::open(Path::new(talk))?);
    let mut tokenizer = Tokenizer::open(&Tract, &bundle)?;
    let others: Vec<&Utterance> = [Split::Dev, Split::Test].into_iter().flat_map(|split| talk.questions(split)).collect();
    let hours = others.iter().map(|utterance| utterance.samples).sum::<u64>() as f64 / 16_000.0 / 3600.0;
    let streams = others.iter().map(|utterance| Ok(tokenizer.forward(&talk.audio(utterance)?)?)).collect::<Result<Vec<_>>>()?;

    let mut said: BTreeMap<(&str, &str, &str), Vec<&Utterance>> = BTreeMap::new();
    for utterance in phrases.questions(Split::Test) {
        said.entry((&utterance.set, &utterance.text, &utterance.voice)).or_default().push(utterance);
    }
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut voices: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for ((set, text, voice), utterances) in &said {
        let used = voices.entry((set, text)).or_default();
        if utterances.len() <= ENROLLED || *used == VOICES {
            continue;
        }
        *used += 1;
        let tally = tallies.entry(set).or_default();
        let audio = |utterance: &&Utterance| phrases.audio(utterance);
        let enrolled = utterances[..ENROLLED].iter().map(audio).collect::<Result<Vec<_>, _>>()?;
        let phrase = match WakePhrase::enrol(&Tract, &bundle, &enrolled, &settings) {
            Err(WakeError::Different { .. } | WakeError::Short { .. }) => {
                tally.refused += 1;
                continue;
            }
            phrase => phrase.with_context(|| format!("{voice} enrols {text:?}"))?,
        };
        tally.enrolled += 1;
        let mut matcher = phrase.matcher(&bundle, settings.threshold)?;
        let mut found = |units: &[u32]| {
            matcher.reset();
            units.iter().any(|unit| matcher.step(*unit).is_some()) || matcher.found().is_some()
        };
        for utterance in utterances[ENROLLED..].iter().take(TRIED) {
            let clean = phrases.audio(utterance)?;
            let mut noisy = clean.clone();
            augment::add_noise(&mut rng, &mut noisy, NOISE_DB, &Crowd::default());
            tally.tried += 1;
            tally.missed += usize::from(!found(&tokenizer.forward(&clean)?));
            tally.missed_in_noise += usize::from(!found(&tokenizer.forward(&noisy)?));
        }
        tally.false_accepts += streams.iter().filter(|units| found(units)).count();
    }
    let sum = |of: fn(&Tally) -> usize| tallies.values().map(of).sum::<usize>();
    let sets: BTreeMap<&str, serde_json::Value> = SETS
        .into_iter()
        .filter_map(|set| {
            let tally = tallies.get(set)?;
            let share = |count: usize| count as f64 / tally.tried.max(1) as f64;
            let told = json!({ "enrolled": tally.enrolled, "refused": tally.refused, "tried": tally.tried,
                "missed": share(tally.missed), "missed_in_noise": share(tally.missed_in_noise) });
            Some((set, told))
        })
        .collect();
    let listened = hours * sum(|tally| tally.enrolled) as f64;
    let told = json!({ "talk_hours": hours, "false_accepts": sum(|tally| tally.false_accepts),
        "false_accepts_per_hour": sum(|tally| tally.false_accepts) as f64 / listened, "sets": sets });
    println!("{told}");
    Ok(())
}
