//! Phones of words, from espeak-ng's own transcription: the targets of the tokenizer's CTC.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Error;
use super::process::execute_on;

/// Phones of each word, and the inventory. The id of a phone is its line + 1: 0 is the CTC blank.
#[derive(Debug, Clone)]
pub struct Lexicon {
    words: BTreeMap<String, Vec<String>>,
    ids: HashMap<String, u16>,
    inventory: Vec<String>,
}

/// One phone without stress, length-of-allophone and variant marks, so that rare variants share a class.
fn plain(phone: &str) -> Option<String> {
    let kept: String = phone
        .trim_matches(['\'', ',', '%', '=', '_', '!', '|', '-', ';', '^', '~', '?'])
        .trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '#')
        .to_owned();
    match kept.as_str() {
        "" => None,
        "a" if phone.contains('#') => Some("@".to_owned()),
        _ => Some(kept),
    }
}

/// Asks espeak-ng for the phones of many words in one process.
///
/// # Errors
/// [`Error::Synthesiser`] when espeak-ng is missing, fails, comes to no end, or answers with another number of lines.
pub fn phonemise(words: &BTreeSet<String>) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let text = words.iter().fold(String::new(), |text, word| text + word + "\n");
    let printed = execute_on(text.into_bytes(), "espeak-ng", "espeak-ng", &["-q", "-x", "--sep=_", "-v", "en-us"].map(str::to_owned))?;
    let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() != words.len() {
        return Err(Error::Synthesiser(format!("espeak-ng answered {} words with {} lines of phones", words.len(), lines.len())));
    }
    let mut phones: BTreeMap<String, Vec<String>> =
        words.iter().zip(lines).map(|(word, line)| (word.clone(), line.split(['_', ' ']).filter_map(plain).collect())).collect();
    // In isolation the article would be the letter's name.
    if let Some(article) = phones.get_mut("a") {
        *article = vec!["@".to_owned()];
    }
    Ok(phones)
}

impl Lexicon {
    /// From words and their phones; the inventory is sorted.
    pub fn new(words: BTreeMap<String, Vec<String>>) -> Self {
        let inventory: Vec<String> = words.values().flatten().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let ids = inventory.iter().enumerate().map(|(line, phone)| (phone.clone(), line as u16 + 1)).collect();
        Self { words, ids, inventory }
    }

    /// The phones in the order of their ids (the first has id 1).
    pub fn inventory(&self) -> &[String] {
        &self.inventory
    }

    /// Words and phones.
    pub fn words(&self) -> &BTreeMap<String, Vec<String>> {
        &self.words
    }

    /// The ids of the phones of a text; unknown words are left out.
    pub fn phones_of(&self, text: &str) -> Vec<u16> {
        text.split_whitespace().filter_map(|word| self.words.get(word)).flatten().map(|phone| self.ids[phone]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phones_have_ids_from_one() {
        let words: BTreeSet<String> = ["kitchen", "a", "thirty", "don't"].iter().map(|word| (*word).to_owned()).collect();
        let lexicon = Lexicon::new(phonemise(&words).unwrap());
        assert_eq!(lexicon.words()["kitchen"], ["k", "I", "tS", "@", "n"]);
        assert_eq!(lexicon.phones_of("a kitchen").len(), 6);
        assert!(lexicon.phones_of("a kitchen thirty don't").iter().all(|id| *id >= 1 && usize::from(*id) <= lexicon.inventory().len()));
        assert!(lexicon.phones_of("elephant").is_empty());
    }
}
