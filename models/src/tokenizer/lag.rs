//! How late the tokenizer's phones come.
//!
//! CTC does not say where a phone stands: a network that looks left gains by waiting for what follows, and the longer it is trained
//! the later it speaks (Sak et al. 2015). A question may come late; the agent's own units may not, because the decoder cannot sound
//! what it has not yet been told. So the lag is measured on the agent's speech, whose times are known, and its units are moved.

use anyhow::Result;
use burn::tensor::Device;

use super::config::{TokenizerConfig, units_of_samples};
use super::data::Batch;
use super::losses::mel_tensor;
use super::network::Tokenizer;
use crate::audio::{LogMel, SAMPLE_RATE, UNIT_SAMPLES};
use crate::corpus::{Corpus, Split, Word};

/// Replies that are looked at.
const REPLIES: usize = 120;

/// A phone and when it is, in units of 40 ms.
type Timed = (u16, f64);

/// Units by which phones come later than their sound, the median over the agent's training speech; never less than 0.
///
/// # Errors
/// Audio that cannot be read.
pub fn measure(model: &Tokenizer, config: &TokenizerConfig, corpus: &Corpus, device: &Device) -> Result<usize> {
    let (front_end, classes) = (LogMel::default(), config.phones);
    let mut lags: Vec<f64> = Vec::new();
    for reply in corpus.replies(Split::Train).iter().take(REPLIES) {
        let audio = corpus.reply_audio(reply)?;
        let frames = units_of_samples(audio.len());
        let batch = Batch::new(&front_end, &[audio], None, Vec::new(), config.chunk);
        let logits = model.phone_logits(model.forward(mel_tensor(&batch, &batch.mel, device)));
        let logits: Vec<f32> = logits.into_data().try_to_vec()?;
        let heard = spoken(&logits[..frames * classes], classes);
        lags.extend(matched(&heard, &expected(&reply.words, |word| corpus.phones_of(word))).map(|(heard, said)| heard - said));
    }
    lags.sort_by(f64::total_cmp);
    Ok(lags.get(lags.len() / 2).map_or(0, |lag| lag.max(0.0).round() as usize))
}

/// What the CTC head reads, with the frame in which each phone begins.
fn spoken(logits: &[f32], classes: usize) -> Vec<Timed> {
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class as u16);
    let (mut phones, mut before) = (Vec::new(), 0);
    for (frame, row) in logits.chunks_exact(classes).enumerate() {
        let phone = best(row);
        if phone != 0 && phone != before {
            phones.push((phone, frame as f64 + 0.5));
        }
        before = phone;
    }
    phones
}

/// The phones of words whose times are known, spread evenly over each word.
fn expected(words: &[Word], phones_of: impl Fn(&str) -> Vec<u16>) -> Vec<Timed> {
    let per_second = SAMPLE_RATE as f64 / UNIT_SAMPLES as f64;
    let phones = words.iter().flat_map(|word| {
        let phones = phones_of(&word.word);
        let each = (word.end - word.start) / phones.len().max(1) as f64;
        phones.into_iter().enumerate().map(move |(i, phone)| (phone, (word.start + each * (i as f64 + 0.5)) * per_second))
    });
    phones.collect()
}

/// Times of the phones that both sequences have, in a best alignment by edits.
fn matched<'a>(heard: &'a [Timed], said: &'a [Timed]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let width = said.len() + 1;
    let mut cost: Vec<usize> = vec![0; (heard.len() + 1) * width];
    for i in 0..=heard.len() {
        for j in 0..width {
            cost[i * width + j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let substituted = cost[(i - 1) * width + j - 1] + usize::from(heard[i - 1].0 != said[j - 1].0);
                    substituted.min(cost[(i - 1) * width + j] + 1).min(cost[i * width + j - 1] + 1)
                }
            };
        }
    }
    let (mut i, mut j) = (heard.len(), said.len());
    std::iter::from_fn(move || {
        while i > 0 && j > 0 {
            let (same, here) = (heard[i - 1].0 == said[j - 1].0, cost[i * width + j]);
            if here == cost[(i - 1) * width + j - 1] + usize::from(!same) {
                (i, j) = (i - 1, j - 1);
                if same {
                    return Some((heard[i].1, said[j].1));
                }
            } else if here == cost[(i - 1) * width + j] + 1 {
                i -= 1;
            } else {
                j -= 1;
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_phones_are_matched_with_their_sounds() {
        let word = |word: &str, start, end| Word { word: word.to_owned(), start, end };
        // phones 1 2 3 | 4 1, each 0.1 s = 2.5 units long
        let words = [word("one", 0.0, 0.3), word("two", 0.3, 0.5)];
        let said = expected(&words, |word| if word == "one" { vec![1, 2, 3] } else { vec![4, 1] });
        assert_eq!(said.iter().map(|(phone, _)| *phone).collect::<Vec<_>>(), [1, 2, 3, 4, 1]);
        assert!((said[1].1 - 3.75).abs() < 1e-9);
        // all 4 units late; the third is misheard, one phone is invented
        let mut heard: Vec<Timed> = said.iter().map(|(phone, time)| (*phone, time + 4.0)).collect();
        heard[2].0 = 9;
        heard.insert(3, (7, 11.0));
        let lags: Vec<f64> = matched(&heard, &said).map(|(heard, said)| heard - said).collect();
        assert_eq!(lags.len(), 4);
        assert!(lags.iter().all(|lag| (lag - 4.0).abs() < 1e-9), "{lags:?}");
    }

    #[test]
    fn a_phone_begins_where_the_head_changes_to_it() {
        let row = |class: usize| (0..3).map(move |i| if i == class { 1.0 } else { 0.0 });
        let logits: Vec<f32> = [0, 1, 1, 2, 0, 2].into_iter().flat_map(row).collect();
        assert_eq!(spoken(&logits, 3), [(1, 1.5), (2, 3.5), (2, 5.5)]);
    }
}
