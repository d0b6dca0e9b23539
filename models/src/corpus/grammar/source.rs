//! Where slots get their values: lists, tables and the built-in generators (numbers, clock times, arithmetic).

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;

use super::super::numbers;
use super::template::Template;

/// A named list of rows; a list is a table of one column.
#[derive(Debug, Clone)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// The generator of one slot (or, for rows, of one slot per column).
#[derive(Debug, Clone)]
pub enum Source {
    /// `row TABLE`: a random row of a table; `list NAME` is the same for one column. Fills one slot per column.
    Row(Vec<Vec<String>>),
    /// `one of A | B`: one of the texts.
    OneOf(Vec<Template>),
    /// `number FROM TO [STEP]`: a whole number in words.
    Number { from: i64, to: i64, step: i64 },
    /// `ordinal FROM TO`: first to thirty first.
    Ordinal { from: usize, to: usize },
    /// `year FROM TO`.
    Year { from: i64, to: i64 },
    /// `clock [STEP]`: a time on the twelve-hour dial, minutes in multiples of STEP.
    Clock { step: u32 },
    /// `calc EXPRESSION`: the answer of the `calc` tool.
    Calc(Template),
    /// `text TEMPLATE`: a text made of earlier slots.
    Text(Template),
    /// `plural {n} | ONE | MANY`: the word that goes with the number.
    Plural { number: Template, one: Template, many: Template },
}

/// One line `NAME = SOURCE` of a grammar.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Index of its (first) value.
    pub first: usize,
    pub source: Source,
}

/// Slot names in the order of their values.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<String>);

impl Names {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }

    fn bind(&mut self, name: &str) -> usize {
        self.index(name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

impl Slot {
    /// Compiles `NAME = SOURCE` and adds its names. A name that is there already is given a new value (follow-ups do so).
    ///
    /// # Errors
    /// A message naming what is wrong.
    pub fn parse(
        line: &str,
        names: &mut Names,
        tables: &BTreeMap<String, Table>,
        macros: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let (name, source) = line.split_once('=').map(|(name, source)| (name.trim(), source.trim())).ok_or("expected NAME = SOURCE")?;
        if name.is_empty() || !name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') {
            return Err(format!("{name:?} is not a slot name (lower-case letters and _)"));
        }
        let (kind, rest) = source.split_once(' ').map_or((source, ""), |(kind, rest)| (kind, rest.trim()));
        let integers = |least: usize, most: usize| -> Result<Vec<i64>, String> {
            let values: Vec<i64> = rest
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|_| format!("{rest:?}: expected whole numbers"))?;
            if (least..=most).contains(&values.len()) {
                Ok(values)
            } else {
                Err(format!("{kind:?} takes {least} to {most} numbers, found {}", values.len()))
            }
        };
        let range = |values: &[i64], low: i64, high: i64| -> Result<(i64, i64), String> {
            let (from, to) = (values[0], values[1]);
            if low <= from && from <= to && to <= high {
                Ok((from, to))
            } else {
                Err(format!("{kind:?} wants {low} ≤ FROM ≤ TO ≤ {high}, found {from} {to}"))
            }
        };
        if let "row" | "list" = kind {
            let table = tables.get(rest).ok_or_else(|| format!("there is no list or table {rest:?}"))?;
            if table.columns.is_empty() {
                return Ok(Self { first: names.bind(name), source: Source::Row(table.rows.clone()) });
            }
            let slots: Vec<usize> = table.columns.iter().map(|column| names.bind(&format!("{name}.{column}"))).collect();
            return Ok(Self { first: slots[0], source: Source::Row(table.rows.clone()) });
        }
        let template = |text: &str| Template::parse(text, macros, &|name| names.index(name));
        let source = match kind {
            "one" => {
                let texts = rest.strip_prefix("of ").ok_or("expected: one of A | B")?;
                Source::OneOf(texts.split('|').map(template).collect::<Result<_, _>>()?)
            }
            "number" => {
                let values = integers(2, 3)?;
                let (from, to) = range(&values, -999_999, 999_999)?;
                let step = values.get(2).copied().unwrap_or(1);
                if step < 1 {
                    return Err(format!("a step of {step}"));
                }
                Source::Number { from, to, step }
            }
            "ordinal" => {
                let (from, to) = range(&integers(2, 2)?, 1, 31)?;
                Source::Ordinal { from: from as usize, to: to as usize }
            }
            "year" => {
                let (from, to) = range(&integers(2, 2)?, 1000, 2099)?;
                Source::Year { from, to }
            }
            "clock" => {
                let step = integers(0, 1)?.first().copied().unwrap_or(1);
                if !(1..=60).contains(&step) {
                    return Err(format!("a clock step of {step} minutes"));
                }
                Source::Clock { step: step as u32 }
            }
            "calc" => Source::Calc(template(rest)?),
            "text" => Source::Text(template(rest)?),
            "plural" => {
                let parts: Vec<&str> = rest.split('|').map(str::trim).collect();
                let [number, one, many] = parts[..] else { return Err("expected: plural {n} | ONE | MANY".to_owned()) };
                Source::Plural { number: template(number)?, one: template(one)?, many: template(many)? }
            }
            _ => {
                return Err(format!(
                    "{kind:?} is no source; there are list, row, one of, number, ordinal, year, clock, calc, text, plural"
                ));
            }
        };
        Ok(Self { first: names.bind(name), source })
    }

    /// Draws the value into its place(s); `values` grows as needed.
    pub fn draw(&self, rng: &mut impl Rng, values: &mut Vec<String>) {
        let value = match &self.source {
            Source::Row(rows) => {
                let row = &rows[rng.random_range(0..rows.len())];
                if values.len() < self.first + row.len() {
                    values.resize(self.first + row.len(), String::new());
                }
                values[self.first..self.first + row.len()].clone_from_slice(row);
                return;
            }
            Source::OneOf(texts) => texts[rng.random_range(0..texts.len())].render(rng, values),
            Source::Number { from, to, step } => numbers::words(from + step * rng.random_range(0..=(to - from) / step)),
            Source::Ordinal { from, to } => numbers::ordinal(rng.random_range(*from..=*to)).to_owned(),
            Source::Year { from, to } => numbers::year(rng.random_range(*from..=*to)),
            Source::Clock { step } => numbers::clock(rng.random_range(1..=12), step * rng.random_range(0..60u32.div_ceil(*step))),
            Source::Calc(expression) => {
                let expression = expression.render(rng, values);
                numbers::calculate(&expression).unwrap_or_else(|| "failed".to_owned())
            }
            Source::Text(text) => text.render(rng, values),
            Source::Plural { number, one, many } => {
                let chosen = if number.render(rng, values) == "one" { one } else { many };
                chosen.render(rng, values)
            }
        };
        if values.len() <= self.first {
            values.resize(self.first + 1, String::new());
        }
        values[self.first] = value;
    }

    /// Adds the words it can produce (but for rows: the caller decides which lists are spelled).
    pub fn collect_words(&self, words: &mut BTreeSet<String>) {
        match &self.source {
            Source::Row(_) => {}
            Source::OneOf(texts) => texts.iter().for_each(|text| text.collect_words(words)),
            Source::Calc(text) | Source::Text(text) => {
                text.collect_words(words);
                words.extend(numbers::number_words().map(str::to_owned));
            }
            Source::Plural { one, many, .. } => [one, many].into_iter().for_each(|text| text.collect_words(words)),
            Source::Ordinal { .. } => words.extend(numbers::ordinal_words().map(str::to_owned)),
            Source::Clock { .. } => words.extend(["o'clock", "oh"].map(str::to_owned)),
            Source::Number { .. } | Source::Year { .. } => {}
        }
    }
}
