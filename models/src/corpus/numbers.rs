//! Numbers, clock times and durations as English words, both ways, and the arithmetic that grammars ask of them.
//!
//! The corpus writes every number as words, as a speaker says it: `twenty three`, `one hundred five`, `minus four`.

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

/// Every word that [`words`] can produce.
pub fn number_words() -> impl Iterator<Item = &'static str> {
    UNITS.into_iter().chain(TENS.into_iter().skip(2)).chain(["hundred", "thousand", "minus", "point"])
}

/// `n` in words, |n| < 1,000,000: `-4` → `minus four`, `123` → `one hundred twenty three`.
pub fn words(n: i64) -> String {
    if n < 0 {
        return format!("minus {}", words(-n));
    }
    if n >= 1000 {
        let head = format!("{} thousand", words(n / 1000));
        return if n % 1000 == 0 { head } else { format!("{head} {}", words(n % 1000)) };
    }
    if n >= 100 {
        let head = format!("{} hundred", UNITS[(n / 100) as usize]);
        return if n % 100 == 0 { head } else { format!("{head} {}", words(n % 100)) };
    }
    if n < 20 {
        return UNITS[n as usize].to_owned();
    }
    let tens = TENS[(n / 10) as usize];
    if n % 10 == 0 { tens.to_owned() } else { format!("{tens} {}", UNITS[(n % 10) as usize]) }
}

/// The number that `text` spells, or `None` where it is not a number as [`words`] writes it (an `and` between is allowed).
pub fn parse(text: &str) -> Option<i64> {
    let mut tokens: Vec<&str> = text.split(' ').filter(|word| *word != "and").collect();
    let negative = tokens.first() == Some(&"minus");
    if negative {
        tokens.remove(0);
    }
    let (mut total, mut part, mut last) = (0i64, 0i64, i64::MAX);
    if tokens.is_empty() {
        return None;
    }
    for word in tokens {
        if let Some(unit) = UNITS.iter().position(|known| *known == word) {
            let unit = unit as i64;
            // after tens only 1..9 may come, after hundreds anything below 100
            if last <= 20 && !(last == 20 && (1..10).contains(&unit)) {
                return None;
            }
            part += unit;
            last = 1;
        } else if let Some(tens) = TENS.iter().position(|known| !known.is_empty() && *known == word) {
            if last <= 20 {
                return None;
            }
            part += 10 * tens as i64;
            last = 20;
        } else if word == "hundred" && (1..10).contains(&part) {
            part *= 100;
            last = 100;
        } else if word == "thousand" && part > 0 && total == 0 {
            total = part * 1000;
            part = 0;
            last = 1000;
        } else {
            return None;
        }
    }
    let value = total + part;
    Some(if negative { -value } else { value })
}

/// A clock time on the twelve-hour dial, `7, 5` → `seven oh five`, `7, 0` → `seven o'clock`.
pub fn clock(hour: u32, minute: u32) -> String {
    let hour = words(i64::from(hour));
    match minute {
        0 => format!("{hour} o'clock"),
        1..=9 => format!("{hour} oh {}", words(i64::from(minute))),
        _ => format!("{hour} {}", words(i64::from(minute))),
    }
}

/// `eighteen fifty`, `nineteen oh five`, `two thousand twenty six`: a year as it is said.
pub fn year(year: i64) -> String {
    match (year / 100, year % 100) {
        (20, 0..=9) | (_, 0) if year >= 2000 => words(year),
        (century, 0) => format!("{} hundred", words(century)),
        (century, rest @ 1..=9) => format!("{} oh {}", words(century), words(rest)),
        (century, rest) => format!("{} {}", words(century), words(rest)),
    }
}

const ORDINALS: [&str; 32] = [
    "",
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
    "twentieth",
    "twenty first",
    "twenty second",
    "twenty third",
    "twenty fourth",
    "twenty fifth",
    "twenty sixth",
    "twenty seventh",
    "twenty eighth",
    "twenty ninth",
    "thirtieth",
    "thirty first",
];

/// The ordinal of a day of the month, 1 to 31.
pub fn ordinal(day: usize) -> &'static str {
    ORDINALS[day]
}

/// Every word that [`ordinal`] can produce.
pub fn ordinal_words() -> impl Iterator<Item = &'static str> {
    ORDINALS.into_iter().flat_map(|text| text.split(' ')).filter(|word| !word.is_empty())
}

/// What `calc ARGUMENTS` answers: two numbers in words joined by `plus`, `minus`, `times` or `divided by`.
/// A quotient that is not whole is given to one decimal (`two point five`). `None`: not an expression, or division by zero.
pub fn calculate(expression: &str) -> Option<String> {
    const OPERATORS: [&str; 4] = [" plus ", " times ", " divided by ", " minus "];
    for operator in OPERATORS {
        // a leading "minus" belongs to the first number
        let from = if expression.starts_with("minus ") { 6 } else { 0 };
        let Some(at) = expression[from..].find(operator).map(|at| at + from) else { continue };
        let (Some(left), Some(right)) = (parse(&expression[..at]), parse(&expression[at + operator.len()..])) else { continue };
        return match operator.trim() {
            "plus" => Some(words(left + right)),
            "minus" => Some(words(left - right)),
            "times" => Some(words(left * right)),
            _ if right == 0 => None,
            _ => Some(tenths(left as f64 / right as f64)),
        };
    }
    None
}

/// A number to at most one decimal in words: 2.54 → `two point five`, 3.0 → `three`.
pub fn tenths(value: f64) -> String {
    let scaled = (value * 10.0).round() as i64;
    let sign = if scaled < 0 { "minus " } else { "" };
    let scaled = scaled.abs();
    match scaled % 10 {
        0 => format!("{sign}{}", words(scaled / 10)),
        digit => format!("{sign}{} point {}", words(scaled / 10), words(digit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for n in (-120..1300).chain([9_999, 10_000, 45_017, 999_999]) {
            assert_eq!(parse(&words(n)), Some(n), "{}", words(n));
        }
        assert_eq!(parse("one hundred and five"), Some(105));
        for wrong in ["", "five twenty", "twenty thirty", "light", "three four", "hundred", "twenty zero"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn calculates() {
        assert_eq!(calculate("twenty three plus forty five").as_deref(), Some("sixty eight"));
        assert_eq!(calculate("four minus nine").as_deref(), Some("minus five"));
        assert_eq!(calculate("twelve times twelve").as_deref(), Some("one hundred forty four"));
        assert_eq!(calculate("ten divided by four").as_deref(), Some("two point five"));
        assert_eq!(calculate("ten divided by zero"), None);
        assert_eq!(calculate("minus two plus five").as_deref(), Some("three"));
    }

    #[test]
    fn says_times_and_years() {
        assert_eq!(clock(7, 5), "seven oh five");
        assert_eq!(clock(12, 0), "twelve o'clock");
        assert_eq!(year(1969), "nineteen sixty nine");
        assert_eq!(year(1905), "nineteen oh five");
        assert_eq!(year(2006), "two thousand six");
        assert_eq!(year(2026), "twenty twenty six");
        assert_eq!(ordinal(21), "twenty first");
    }
}
