//! Word times from a synthesiser's phone times: the words' own phone sequences are aligned to what was said by edit distance.

use serde::{Deserialize, Serialize};

/// A word and where it lies, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub word: String,
    pub start: f64,
    pub end: f64,
}

const PAUSE: &str = "pau";

fn is_vowel(phone: &str) -> bool {
    phone.starts_with(['a', 'e', 'i', 'o', 'u'])
}

/// Cost of hearing `said` where the word alone has `expected`: speech in context reduces vowels, so these are cheap to swap.
fn swap_cost(expected: &str, said: &str) -> f64 {
    if expected == said {
        0.0
    } else if is_vowel(expected) == is_vowel(said) {
        0.7
    } else {
        1.6
    }
}

/// Cuts `[0, duration]` into words. `words` are with the phones that each has alone; `phones` what was said, with end times.
/// Leading silence goes to the first word, trailing to the last, a pause between to the word before it.
pub fn words(words: &[(&str, &[String])], phones: &[(String, f64)], duration: f64) -> Vec<Word> {
    let said: Vec<&(String, f64)> = phones.iter().filter(|(phone, _)| phone != PAUSE).collect();
    let expected: Vec<(usize, &str)> =
        words.iter().enumerate().flat_map(|(word, (_, phones))| phones.iter().map(move |phone| (word, phone.as_str()))).collect();
    let (rows, columns) = (expected.len() + 1, said.len() + 1);
    // cost[row][column]: the first `row` expected phones against the first `column` said ones
    let mut cost = vec![f64::INFINITY; rows * columns];
    let mut step = vec![0u8; rows * columns];
    cost[0] = 0.0;
    for row in 0..rows {
        for column in 0..columns {
            let here = row * columns + column;
            let mut try_step = |from: usize, extra: f64, kind: u8| {
                if cost[from] + extra < cost[here] {
                    cost[here] = cost[from] + extra;
                    step[here] = kind;
                }
            };
            if row > 0 && column > 0 {
                try_step(here - columns - 1, swap_cost(expected[row - 1].1, &said[column - 1].0), 1);
            }
            if row > 0 {
                try_step(here - columns, 1.0, 2);
            }
            if column > 0 {
                try_step(here - 1, 1.0, 3);
            }
        }
    }
    // the word of each said phone; an extra phone belongs to the word being said
    let mut word_of = vec![0usize; said.len()];
    let (mut row, mut column) = (rows - 1, columns - 1);
    while row > 0 || column > 0 {
        match step[row * columns + column] {
            1 => {
                word_of[column - 1] = expected[row - 1].0;
                row -= 1;
                column -= 1;
            }
            2 => row -= 1,
            _ => {
                word_of[column - 1] = expected[row.saturating_sub(1)].0;
                column -= 1;
            }
        }
    }
    // a word ends where its last phone ends, unless a pause follows: then where the next word's first phone starts
    let mut ends = vec![f64::NAN; words.len()];
    let mut spoken = 0;
    let mut last = None;
    for (phone, end) in phones {
        if phone == PAUSE {
            if let Some(word) = last {
                ends[word] = *end;
            }
        } else {
            let word: usize = word_of[spoken];
            ends[word] = *end;
            last = Some(word);
            spoken += 1;
        }
    }
    let mut times = Vec::with_capacity(words.len());
    let mut start = 0.0;
    for (index, (word, _)) in words.iter().enumerate() {
        let mut end = if index + 1 == words.len() { duration } else { ends[index] };
        if end.is_nan() || end < start {
            end = start; // swallowed whole by its neighbours
        }
        let end = end.min(duration);
        times.push(Word { word: (*word).to_owned(), start, end });
        start = end;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phones(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn words_partition_the_file() {
        let alone =
            [("okay", phones("ow k ey")), ("the", phones("dh ah")), ("kitchen", phones("k ih ch ah n")), ("light", phones("l ay t"))];
        let expected: Vec<(&str, &[String])> = alone.iter().map(|(word, phones)| (*word, phones.as_slice())).collect();
        let said: Vec<(String, f64)> = "pau ow k ey pau dh ax k ih ch n l ay t pau"
            .split(' ')
            .enumerate()
            .map(|(index, phone)| (phone.to_owned(), (index + 1) as f64 * 0.1))
            .collect();
        let times = words(&expected, &said, 1.55);
        assert_eq!(times[0].start, 0.0);
        assert_eq!(times[3].end, 1.55);
        assert!(times.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].start <= pair[0].end));
        let ends: Vec<i64> = times.iter().map(|word| (word.end * 100.0).round() as i64).collect();
        assert_eq!(ends, [50, 70, 110, 155], "the pause belongs to the word before it");
    }
}
