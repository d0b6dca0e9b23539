//! The form of a call: which words a tool takes, and what each of them becomes.
//!
//! `set {room} {state}` with `room = ["kitchen", "living room"]` and `state = { on = "ON", off = "OFF" }` fits `set living room on` and
//! nothing that is not listed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::words;

/// What the placeholders of a call stood for.
pub type Values = BTreeMap<String, String>;

/// The words that are allowed in a place.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a list of words, a table `{ spoken = \"written\" }`, or `{ from = 0, to = 100 }`")]
pub enum Allowed {
    /// A whole number, which is passed on in digits.
    Number(Span),
    /// These, as they are.
    Words(Vec<String>),
    /// These, passed on as something else.
    Written(BTreeMap<String, String>),
}

/// Both ends belong to it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    from: i64,
    to: i64,
}

impl Allowed {
    /// All ways in which the beginning of `words` is allowed: what is passed on, and how many words it took.
    fn matches(&self, words: &[&str]) -> Vec<(String, usize)> {
        let taken = |spoken: &str| {
            let spoken: Vec<&str> = spoken.split_whitespace().collect();
            (!spoken.is_empty() && words.starts_with(&spoken)).then_some(spoken.len())
        };
        match self {
            Self::Words(list) => list.iter().filter_map(|word| Some((word.clone(), taken(word)?))).collect(),
            Self::Written(table) => table.iter().filter_map(|(word, text)| Some((text.clone(), taken(word)?))).collect(),
            Self::Number(Span { from, to }) => match words::read_number(words) {
                Some((n, taken)) if n.fract() == 0.0 && (*from as f64..=*to as f64).contains(&n) => vec![(format!("{}", n as i64), taken)],
                _ => Vec::new(),
            },
        }
    }

    /// What is wrong with it.
    fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Words(list) if list.is_empty() => Some("allows nothing"),
            Self::Written(table) if table.is_empty() => Some("allows nothing"),
            Self::Number(Span { from, to }) if from > to => Some("goes from more to less"),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Word(String),
    Place(String, Allowed),
}

/// The words that a tool takes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Form {
    /// `None`: anything.
    parts: Option<Vec<Part>>,
}

impl Form {
    /// A form from its text and the values of its placeholders; every placeholder has values, and all values are used.
    pub fn parse(call: Option<&str>, values: &BTreeMap<String, Allowed>) -> Result<Self, String> {
        let Some(call) = call else {
            return if values.is_empty() {
                Ok(Self::default())
            } else {
                Err("`values` need a `call` that they are the values of".to_owned())
            };
        };
        let part = |word: &str| match placeholder(word) {
            Some(name) => {
                let allowed = values.get(name).ok_or(format!("`call` names {{{name}}}, which has no `values.{name}`"))?;
                match allowed.problem() {
                    Some(problem) => Err(format!("`values.{name}` {problem}")),
                    None => Ok(Part::Place(name.to_owned(), allowed.clone())),
                }
            }
            None => Ok(Part::Word(word.to_owned())),
        };
        let parts = call.split_whitespace().map(part).collect::<Result<Vec<_>, String>>()?;
        let form = Self { parts: Some(parts) };
        match values.keys().find(|name| !form.names().any(|known| known == *name)) {
            Some(name) => Err(format!("`values.{name}` is not used in `call`")),
            None => Ok(form),
        }
    }

    /// Its placeholders.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.parts.iter().flatten().filter_map(|part| match part {
            Part::Place(name, _) => Some(name),
            Part::Word(_) => None,
        })
    }

    /// Every placeholder of `text` must be one of the form's.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            rest = &rest[start + 1..];
            let name = rest.split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            if let Some(name) = name.filter(|name| !self.names().any(|known| known == name)) {
                return Err(format!("`{text}` names {{{name}}}, which is not in `call`"));
            }
        }
        Ok(())
    }

    /// What the placeholders stand for in a call that fits.
    pub fn matches(&self, arguments: &[&str]) -> Option<Values> {
        match &self.parts {
            Some(parts) => fit(parts, arguments),
            None => Some(Values::new()),
        }
    }
}

/// Tries every way: `living` and `living room` may both be rooms.
fn fit(parts: &[Part], words: &[&str]) -> Option<Values> {
    match parts.split_first() {
        None => words.is_empty().then(Values::new),
        Some((Part::Word(word), rest)) => fit(rest, words.strip_prefix(&[word.as_str()])?),
        Some((Part::Place(name, allowed), rest)) => allowed.matches(words).into_iter().find_map(|(value, taken)| {
            let mut values = fit(rest, &words[taken..])?;
            values.insert(name.clone(), value);
            Some(values)
        }),
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(parts) = &self.parts else { return f.write_str("…") };
        let words = parts.iter().map(|part| match part {
            Part::Word(word) => word.clone(),
            Part::Place(name, _) => format!("{{{name}}}"),
        });
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

/// `{room}` → `room`.
fn placeholder(word: &str) -> Option<&str> {
    word.strip_prefix('{')?.strip_suffix('}').filter(|name| is_name(name))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// A template with its placeholders filled in, each once: what a value brings is not looked at again.
pub fn fill(text: &str, values: &Values) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        out.push_str(before);
        match behind.split_once('}').and_then(|(name, after)| Some((values.get(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('{');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

/// A program's argument list. The words are passed as they are, never to a shell: `{1}` `{2}` … one word, `{all}` all in one argument,
/// `{words}` alone one argument a word, `{name}` a value of the call's form.
pub fn command(program: &[String], arguments: &[&str], values: &Values) -> Vec<String> {
    let mut values = values.clone();
    values.insert("all".to_owned(), arguments.join(" "));
    for n in 1..=9 {
        values.insert(n.to_string(), arguments.get(n - 1).copied().unwrap_or_default().to_owned());
    }
    let mut out = Vec::new();
    for (i, part) in program.iter().enumerate() {
        match part.as_str() {
            // The program itself is fixed: the model does not choose what runs.
            _ if i == 0 => out.push(part.clone()),
            "{words}" => out.extend(arguments.iter().map(|word| (*word).to_owned())),
            _ => out.push(fill(part, &values)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(call: &str, values: &str) -> Result<Form, String> {
        Form::parse(Some(call), &toml::from_str(values).map_err(|e| e.to_string())?)
    }

    fn matched(form: &Form, call: &str) -> Option<Vec<String>> {
        form.matches(&call.split(' ').collect::<Vec<_>>()).map(|values| values.into_values().collect())
    }

    #[test]
    fn only_what_is_listed_fits() {
        let form =
            form("{a_room} {b_level} percent", "a_room = [\"living\", \"living room\"]\nb_level = { from = 0, to = 100 }").expect("sound");
        assert_eq!(matched(&form, "living room twenty five percent"), Some(vec!["living room".into(), "25".into()]));
        assert_eq!(matched(&form, "living zero percent"), Some(vec!["living".into(), "0".into()]));
        for wrong in
            ["living room percent", "kitchen five percent", "living five", "living one hundred one percent", "living five percent off"]
        {
            assert_eq!(matched(&form, wrong), None, "{wrong}");
        }
        assert_eq!(form.to_string(), "{a_room} {b_level} percent");
        assert_eq!(matched(&Form::default(), "anything at all"), Some(vec![]));
    }

    #[test]
    fn mistakes_are_named() {
        for (call, values, part) in [
            ("{room}", "", "no `values.room`"),
            ("on", "room = [\"a\"]", "not used"),
            ("{room}", "room = []", "allows nothing"),
            ("{room}", "room = {}", "allows nothing"),
            ("{room}", "room = 3", "a list of words"),
            ("{room}", "room = { from = 9, to = 1 }", "goes from more to less"),
        ] {
            let message = form(call, values).expect_err(call);
            assert!(message.contains(part), "{message}");
        }
        let form = form("{room}", "room = [\"a\"]").expect("sound");
        assert!(form.check("home/{room}/light").is_ok() && form.check("{\"state\": \"{room}\"}").is_ok());
        assert!(form.check("home/{door}").expect_err("not named").contains("{door}"));
    }

    #[test]
    fn templates_are_filled_once() {
        let values = Values::from([("a".to_owned(), "{b}".to_owned()), ("b".to_owned(), "x".to_owned())]);
        assert_eq!(fill("{\"s\": \"{a}\"}{b}{c}", &values), "{\"s\": \"{b}\"}x{c}");
        let program = ["{1}", "{words}", "<{2}>", "{all}", "{3}"].map(str::to_owned);
        assert_eq!(command(&program, &["on", "{1}"], &values), ["{1}", "on", "{1}", "<{1}>", "on {1}", ""]);
    }
}
