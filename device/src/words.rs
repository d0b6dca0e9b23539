//! Numbers, clock times and durations as English words, both ways, and any text as words that can be spoken.
//!
//! Everything between the language model and the tools is lower-case words: no digits, no signs. The forms are those
//! of the training corpus (`models/src/corpus/numbers.rs`): `one hundred five`, `minus four`, `two point five`.

const UNITS: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const ORDINALS: [&str; 20] = [
    "zeroth",
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
];
const TENTHS: [&str; 10] = ["", "", "twentieth", "thirtieth", "fortieth", "fiftieth", "sixtieth", "seventieth", "eightieth", "ninetieth"];

/// A whole number in words: `-4` → `minus four`, `123` → `one hundred twenty three`.
pub fn number(n: i64) -> String {
    if n < 0 {
        return format!("minus {}", cardinal(n.unsigned_abs()));
    }
    cardinal(n.unsigned_abs())
}

fn cardinal(n: u64) -> String {
    for (size, name) in
        [(1_000_000_000_000, "trillion"), (1_000_000_000, "billion"), (1_000_000, "million"), (1000, "thousand"), (100, "hundred")]
    {
        if n >= size {
            let head = format!("{} {name}", cardinal(n / size));
            return if n.is_multiple_of(size) { head } else { format!("{head} {}", cardinal(n % size)) };
        }
    }
    let (tens, units) = ((n / 10) as usize, (n % 10) as usize);
    match n {
        0..20 => UNITS[n as usize].to_owned(),
        _ if units == 0 => TENS[tens].to_owned(),
        _ => format!("{} {}", TENS[tens], UNITS[units]),
    }
}

/// A number in words with at most `digits` decimals: `21.5` → `twenty one point five`; trailing zeros are not said.
pub fn decimal(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (sign, text) = match text.strip_prefix('-') {
        Some("0") => ("", "0"),
        Some(rest) => ("minus ", rest),
        None => ("", text),
    };
    format!("{sign}{}", written(text))
}

/// `21.50` → `twenty one point five zero`; a whole part too long for words is said digit by digit.
fn written(text: &str) -> String {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let spell = |digits: &str| digits.bytes().map(|d| UNITS[usize::from(d - b'0')]).collect::<Vec<_>>().join(" ");
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    let mut words = match whole.parse::<u64>() {
        Ok(n) if whole.len() <= 12 && !leading_zero => cardinal(n),
        _ => spell(whole),
    };
    if !fraction.is_empty() {
        words.push_str(" point ");
        words.push_str(&spell(fraction));
    }
    words
}

/// The ordinal of 1 to 99: `21` → `twenty first`.
pub fn ordinal(n: usize) -> String {
    match (n / 10, n % 10) {
        _ if n < 20 => ORDINALS[n].to_owned(),
        (tens, 0) => TENTHS.get(tens).copied().unwrap_or_default().to_owned(),
        (tens, units) => format!("{} {}", TENS.get(tens).copied().unwrap_or_default(), ORDINALS[units]),
    }
}

/// A time on the twelve-hour dial: `7, 5` → `seven oh five`; `19, 0` → `seven o'clock`.
pub fn clock(hour: u32, minute: u32) -> String {
    let hour = cardinal(u64::from((hour + 11) % 12 + 1));
    match minute {
        0 => format!("{hour} o'clock"),
        1..=9 => format!("{hour} oh {}", cardinal(u64::from(minute))),
        _ => format!("{hour} {}", cardinal(u64::from(minute))),
    }
}

/// `5, "minute"` → `five minutes`.
pub fn count(n: u64, unit: &str) -> String {
    format!("{} {unit}{}", cardinal(n), if n == 1 { "" } else { "s" })
}

/// Seconds in words, at most two parts: `330` → `five minutes thirty seconds`.
pub fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(hours, "hour"), (minutes, "minute"), (seconds, "second")];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(2);
    let said = parts[first..].iter().take(2).filter(|(n, _)| *n > 0).map(|(n, unit)| count(*n, unit));
    let said: Vec<String> = said.collect();
    if said.is_empty() { count(0, "second") } else { said.join(" ") }
}

/// Reads a number from the front of `words` and returns it with the number of words it took; an `and` between, decimals
/// (`two point five`), a leading `minus` and digits (`21.5`) are understood.
pub fn read_number(words: &[&str]) -> Option<(f64, usize)> {
    let (negative, mut at) = if words.first() == Some(&"minus") { (true, 1) } else { (false, 0) };
    let sign = if negative { -1.0 } else { 1.0 };
    let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.parse::<f64>().ok()).flatten();
    if let Some(value) = words.get(at).and_then(|text| digits(text)) {
        return Some((sign * value, at + 1));
    }
    let start = at;
    let (mut total, mut part) = (0u64, 0u64);
    // What may follow: a unit only where the last two digits are free, and so on; `three four` is two numbers.
    let mut free = u64::MAX;
    let mut scale = u64::MAX;
    while let Some(word) = words.get(at) {
        let unit = UNITS.iter().position(|w| w == word).map(|n| n as u64);
        let tens = TENS.iter().position(|w| !w.is_empty() && w == word).map(|n| 10 * n as u64);
        if let Some(n) = unit.or(tens) {
            if n >= free || (n == 0 && at > start) {
                break;
            }
            part += n;
            free = if n >= 20 { 10 } else { 0 };
        } else if *word == "hundred" && (1..100).contains(&part) {
            part *= 100;
            free = 100;
        } else if let Some(size) = scale_of(word).filter(|size| part > 0 && *size < scale) {
            total += part * size;
            (part, scale, free) = (0, size, 1000);
        } else if *word == "and" && at > start && free >= 100 && words.get(at + 1).is_some_and(|next| is_number_word(next)) {
            // `one hundred and five`
        } else {
            break;
        }
        at += 1;
    }
    let mut value = (total + part) as f64;
    if at == start {
        return None;
    }
    if words.get(at) == Some(&"point") {
        let mut place = 0.1;
        let mut digit_at = at + 1;
        while let Some(digit) = words.get(digit_at).and_then(|word| UNITS[..10].iter().position(|w| w == word)) {
            value += digit as f64 * place;
            place /= 10.0;
            digit_at += 1;
        }
        if digit_at > at + 1 {
            at = digit_at;
        }
    }
    Some((sign * value, at))
}

fn scale_of(word: &str) -> Option<u64> {
    match word {
        "thousand" => Some(1000),
        "million" => Some(1_000_000),
        "billion" => Some(1_000_000_000),
        _ => None,
    }
}

fn is_number_word(word: &str) -> bool {
    UNITS.contains(&word) || TENS.iter().any(|w| !w.is_empty() && *w == word)
}

/// Any text as at most `limit` lower-case words that can be spoken: numbers in words, a few signs by name, the rest
/// of the punctuation and all other scripts left out.
pub fn spoken(text: &str, limit: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let digit_next = chars.get(at + 1).is_some_and(char::is_ascii_digit);
        if c.is_ascii_digit() {
            let number: String = number_at(&chars, &mut at);
            let words = written(&number);
            out.push(' ');
            out.push_str(&words);
            out.push(' ');
            continue;
        }
        let before_word = at > 0 && chars[at - 1].is_alphanumeric();
        match c {
            'a'..='z' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            '\'' | '’' if before_word && chars.get(at + 1).is_some_and(char::is_ascii_alphabetic) => out.push('\''),
            '-' | '−' if digit_next && !before_word => out.push_str(" minus "),
            '%' => out.push_str(" percent "),
            '°' => out.push_str(" degrees "),
            '+' => out.push_str(" plus "),
            '&' => out.push_str(" and "),
            'à' | 'á' | 'â' | 'ä' | 'ã' | 'å' => out.push('a'),
            'é' | 'è' | 'ê' | 'ë' => out.push('e'),
            'í' | 'ì' | 'î' | 'ï' => out.push('i'),
            'ó' | 'ò' | 'ô' | 'ö' | 'õ' => out.push('o'),
            'ú' | 'ù' | 'û' | 'ü' => out.push('u'),
            'ç' => out.push('c'),
            'ñ' => out.push('n'),
            'ß' => out.push_str("ss"),
            _ => out.push(' '),
        }
        at += 1;
    }
    out.split_whitespace().take(limit).collect::<Vec<_>>().join(" ")
}

/// The number that starts at `at`: digits, commas between thousands left out, one decimal point with digits behind it.
fn number_at(chars: &[char], at: &mut usize) -> String {
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let mut number = String::new();
    let mut point = false;
    while let Some(&c) = chars.get(*at) {
        if c.is_ascii_digit() {
            number.push(c);
        } else if c == '.' && !point && digit(*at + 1) {
            point = true;
            number.push('.');
        } else if c != ',' || point || !(1..=3).all(|i| digit(*at + i)) || digit(*at + 4) {
            break;
        }
        *at += 1;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(f64, usize)> {
        read_number(&text.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn numbers_go_both_ways() {
        for n in (-120..1300).chain([9_999, 10_000, 45_017, 999_999, 1_000_000, 2_000_345]) {
            let words = number(n);
            assert_eq!(read(&words), Some((n as f64, words.split(' ').count())), "{words}");
        }
        assert_eq!(number(123), "one hundred twenty three");
        assert_eq!(read("one hundred and five"), Some((105.0, 4)));
        assert_eq!(read("two point five times"), Some((2.5, 3)));
        assert_eq!(read("minus four"), Some((-4.0, 2)));
        assert_eq!(read("three four"), Some((3.0, 1)), "two numbers, not one");
        assert_eq!(read("twenty and go"), Some((20.0, 1)));
        assert_eq!(read("21.5 degrees"), Some((21.5, 1)));
        for wrong in ["", "light", "hundred", "minus", "point five", "and"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn decimals_are_rounded_and_short() {
        assert_eq!(decimal(2.54, 1), "two point five");
        assert_eq!(decimal(3.0, 1), "three");
        assert_eq!(decimal(-0.04, 1), "zero");
        assert_eq!(decimal(-20.0, 1), "minus twenty");
        assert_eq!(decimal(10.0 / 3.0, 2), "three point three three");
    }

    #[test]
    fn text_becomes_words() {
        assert_eq!(spoken("21.5", 9), "twenty one point five");
        assert_eq!(spoken("Sunny, 23°C; -4 % at 7:05!\n", 20), "sunny twenty three degrees c minus four percent at seven zero five");
        assert_eq!(spoken("it's 1,250 <end> #b (café)", 20), "it's one thousand two hundred fifty end b cafe");
        assert_eq!(spoken("a b c d", 2), "a b");
        assert_eq!(spoken("\u{0}\u{fffd}日本 ...", 9), "");
        assert_eq!(spoken("'quoted' 12-14 007", 9), "quoted twelve fourteen zero zero seven");
    }

    #[test]
    fn times_are_said() {
        assert_eq!(clock(7, 5), "seven oh five");
        assert_eq!(clock(0, 0), "twelve o'clock");
        assert_eq!(clock(15, 40), "three forty");
        assert_eq!(duration(330), "five minutes thirty seconds");
        assert_eq!(duration(3600), "one hour");
        assert_eq!(duration(0), "zero seconds");
        assert_eq!(duration(7384), "two hours three minutes");
        assert_eq!(ordinal(21), "twenty first");
        assert_eq!(ordinal(30), "thirtieth");
    }
}
