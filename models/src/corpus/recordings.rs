//! A person's own recordings in the LJSpeech form: `metadata.csv` with `ID|TRANSCRIPT[|NORMALISED]` a line, sounds in `wavs/ID.wav` (or beside).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::grammar::stable_hash;
use super::{Error, Split, numbers};

/// One recording to read.
pub struct Recording {
    pub id: String,
    pub text: String,
    pub wav: PathBuf,
    pub split: Split,
}

/// Lower-case words; whole numbers as words; everything else is a separator.
pub fn normalise(text: &str) -> String {
    let lower = text.to_lowercase().replace(['’', '‘'], "'");
    let mut words: Vec<String> = Vec::new();
    for word in lower.split(|letter: char| !(letter.is_alphanumeric() || letter == '\'')) {
        let word = word.trim_matches('\'');
        if let Ok(number) = word.parse::<i64>()
            && number < 1_000_000
        {
            words.push(numbers::words(number));
        } else if !word.is_empty() {
            words.push(word.chars().filter(|letter| letter.is_ascii_lowercase() || *letter == '\'').collect());
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// Whether questions that are made have such ids (`q000123`, `s000123`): units are kept by the id alone.
fn is_made(id: &str) -> bool {
    id.strip_prefix(['q', 's']).is_some_and(|number| number.len() >= 6 && number.bytes().all(|letter| letter.is_ascii_digit()))
}

/// Reads `metadata.csv`; a twentieth each goes to `dev` and `test`, chosen by the id.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] with the line for a missing transcript, a missing sound, or an id that is not its own.
pub fn list(folder: &Path) -> Result<Vec<Recording>, Error> {
    let path = folder.join("metadata.csv");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
    let (mut recordings, mut ids) = (Vec::new(), BTreeSet::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |message: String| Error::Format { path: path.clone(), line: number + 1, message };
        let mut fields = line.split('|').map(str::trim);
        let id = fields.next().filter(|id| !id.is_empty()).ok_or_else(|| wrong("no id before the first |".to_owned()))?.to_owned();
        if is_made(&id) {
            return Err(wrong(format!("{id} could be a question that is made: give the recording another id")));
        }
        if !ids.insert(id.clone()) {
            return Err(wrong(format!("{id} a second time: each recording has an id of its own")));
        }
        let spoken =
            fields.next_back().map(normalise).filter(|text| !text.is_empty()).ok_or_else(|| wrong(format!("no transcript for {id}")))?;
        let candidates = [folder.join("wavs").join(format!("{id}.wav")), folder.join(format!("{id}.wav"))];
        let wav = candidates.iter().find(|wav| wav.exists()).ok_or_else(|| wrong(format!("no {}", candidates[0].display())))?.clone();
        let split = match stable_hash(&id) % 20 {
            0 => Split::Test,
            1 => Split::Dev,
            _ => Split::Train,
        };
        recordings.push(Recording { id, text: spoken, wav, split });
    }
    Ok(recordings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_metadata() {
        assert_eq!(normalise("It’s 23 degrees, isn't it?"), "it's twenty three degrees isn't it");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metadata.csv"), "a|Hello There.\nb|x|Good night\n").unwrap();
        assert!(list(folder.path()).err().unwrap().to_string().contains("metadata.csv:1"));
        for id in ["a", "b"] {
            std::fs::write(folder.path().join(format!("{id}.wav")), "").unwrap();
        }
        let recordings = list(folder.path()).unwrap();
        assert_eq!(recordings[1].text, "good night");
        for (id, part) in [("a", "metadata.csv:3: a a second time"), ("q000123", "another id"), ("s1000000", "another id")] {
            std::fs::write(folder.path().join("metadata.csv"), format!("a|Hello There.\nb|Good night\n{id}|Hello\n")).unwrap();
            let error = list(folder.path()).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(!is_made("s1") && !is_made("qabcdef") && !is_made("LJ001-0001"));
    }
}
