//! `calc`: arithmetic in words.

use super::Outcome;
use crate::words;

/// `calc twenty three plus forty five` → `sixty eight`. `plus`, `minus`, `times` (`multiplied by`), `divided by`
/// (`over`), `to the power of`, `percent of`; products before sums. One decimal, as in training.
pub fn call(arguments: &[&str]) -> Outcome {
    match evaluate(arguments) {
        Ok(value) if value.abs() < 1e12 => Outcome::ok(words::decimal(value, 1)),
        Ok(_) => failed(arguments, "the result is too large"),
        Err(why) => failed(arguments, why),
    }
}

fn failed(arguments: &[&str], why: &str) -> Outcome {
    Outcome::problem("failed", format!("calc cannot do `{}`: {why}", arguments.join(" ")))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Plus,
    Minus,
    Times,
    Divide,
    Power,
    Percent,
}

/// The operator at the front of `words`, with the number of words it took.
fn operator(words: &[&str]) -> Option<(Operator, usize)> {
    Some(match words {
        ["plus", ..] | ["add", ..] => (Operator::Plus, 1),
        ["minus", ..] => (Operator::Minus, 1),
        ["multiplied", "by", ..] => (Operator::Times, 2),
        ["times", ..] => (Operator::Times, 1),
        ["divided", "by", ..] => (Operator::Divide, 2),
        ["over", ..] => (Operator::Divide, 1),
        ["to", "the", "power", "of", ..] => (Operator::Power, 4),
        ["percent", "of", ..] => (Operator::Percent, 2),
        _ => return None,
    })
}

fn evaluate(words: &[&str]) -> Result<f64, &'static str> {
    let mut at = 0;
    let number = |at: &mut usize| {
        let (value, taken) = words::read_number(&words[*at..]).ok_or("a number is missing")?;
        *at += taken;
        Ok::<f64, &'static str>(value)
    };
    // `sum + product`, where `product` may still grow by operators that bind more strongly.
    let mut sum = 0.0;
    let mut product = number(&mut at)?;
    while at < words.len() {
        let (operator, taken) = operator(&words[at..]).ok_or("an operator is missing")?;
        at += taken;
        let right = number(&mut at)?;
        match operator {
            Operator::Plus => (sum, product) = (sum + product, right),
            Operator::Minus => (sum, product) = (sum + product, -right),
            Operator::Times => product *= right,
            Operator::Divide if right == 0.0 => return Err("division by zero"),
            Operator::Divide => product /= right,
            Operator::Power => product = product.powf(right),
            Operator::Percent => product *= right / 100.0,
        }
    }
    let value: f64 = sum + product;
    if value.is_finite() { Ok(value) } else { Err("it has no finite value") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calculates_in_words() {
        let calc = |text: &str| call(&text.split(' ').collect::<Vec<_>>());
        for (question, answer) in [
            ("twenty three plus forty five", "sixty eight"),
            ("four minus nine", "minus five"),
            ("twelve times twelve", "one hundred forty four"),
            ("ten divided by four", "two point five"),
            ("minus two plus five", "three"),
            ("two plus three times four", "fourteen"),
            ("ten minus two minus three", "five"),
            ("one hundred and five minus five", "one hundred"),
            ("ten percent of two hundred", "twenty"),
            ("two to the power of ten", "one thousand twenty four"),
            ("one over three", "zero point three"),
            ("five minus minus two", "seven"),
            ("two point five times two", "five"),
        ] {
            assert_eq!(calc(question), Outcome::ok(answer), "{question}");
        }
        for wrong in ["", "plus", "two plus", "two three", "ten divided by zero", "two light three", "nine to the power of ninety nine"] {
            let outcome = calc(wrong);
            assert_eq!(outcome.words, "failed", "{wrong}");
            assert!(outcome.problem.is_some());
        }
    }
}
