//! Reading a grammar file; the format is described in `models/grammar/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::super::{Error, numbers};
use super::source::{Names, Slot, Table};
use super::template::Template;
use super::{Frame, Grammar, Intent, Outcome, SplitBy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrammarFile {
    version: u32,
    /// Lists whose words get no token of their own: they are spelled.
    #[serde(default)]
    spelled: Vec<String>,
    /// What a tool that failed answers, and what is then said.
    failure: Option<FailureFile>,
    #[serde(default)]
    macros: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    lists: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    tables: BTreeMap<String, TableFile>,
    intent: Vec<IntentFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailureFile {
    share: f64,
    results: Vec<String>,
    reply: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    columns: Vec<String>,
    rows: Vec<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IntentFile {
    name: Spanned<String>,
    category: String,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default)]
    split: SplitBy,
    #[serde(default)]
    fresh: bool,
    #[serde(default)]
    may_fail: bool,
    #[serde(default)]
    follow: Vec<FrameFile>,
    // the intent's own frame
    #[serde(default)]
    slots: Vec<Spanned<String>>,
    ask: Vec<Spanned<String>>,
    call: Option<Spanned<String>>,
    result: Option<Spanned<String>>,
    reply: Option<Spanned<String>>,
    #[serde(default)]
    outcome: Vec<OutcomeFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FrameFile {
    #[serde(default)]
    slots: Vec<Spanned<String>>,
    ask: Vec<Spanned<String>>,
    call: Option<Spanned<String>>,
    result: Option<Spanned<String>>,
    reply: Option<Spanned<String>>,
    #[serde(default)]
    outcome: Vec<OutcomeFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutcomeFile {
    #[serde(default = "one")]
    weight: f64,
    #[serde(default)]
    slots: Vec<Spanned<String>>,
    result: Option<Spanned<String>>,
    reply: Spanned<String>,
}

fn one() -> f64 {
    1.0
}

/// Turns byte positions into lines for error messages.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn wrong<T>(&self, at: &Spanned<T>, message: impl Into<String>) -> Error {
        let line = self.text[..at.span().start.min(self.text.len())].matches('\n').count() + 1;
        Error::Format { path: self.path.to_owned(), line, message: message.into() }
    }
}

struct Compiler<'a> {
    source: Source<'a>,
    macros: BTreeMap<String, String>,
    tables: BTreeMap<String, Table>,
    words: BTreeSet<String>,
}

impl Compiler<'_> {
    fn slots(&mut self, lines: &[Spanned<String>], names: &mut Names) -> Result<Vec<Slot>, Error> {
        let mut slots = Vec::with_capacity(lines.len());
        for line in lines {
            let slot =
                Slot::parse(line.get_ref(), names, &self.tables, &self.macros).map_err(|message| self.source.wrong(line, message))?;
            slot.collect_words(&mut self.words);
            slots.push(slot);
        }
        Ok(slots)
    }

    fn template(&mut self, text: &Spanned<String>, names: &Names, fixed: bool) -> Result<Template, Error> {
        let template =
            Template::parse(text.get_ref(), &self.macros, &|name| names.index(name)).map_err(|message| self.source.wrong(text, message))?;
        if fixed && !template.is_fixed() {
            return Err(self
                .source
                .wrong(text, "calls, results and replies must not have alternatives: the answer has to follow from the question"));
        }
        template.collect_words(&mut self.words);
        Ok(template)
    }

    /// Compiles one frame; what it leaves out it takes from `base` (a follow-up from its intent).
    fn frame(&mut self, file: &FrameFile, names: &mut Names, base: Option<&Frame>, at: &Spanned<String>) -> Result<Frame, Error> {
        let slots = self.slots(&file.slots, names)?;
        let known = names.len();
        let ask = file.ask.iter().map(|text| self.template(text, names, false)).collect::<Result<Vec<_>, _>>()?;
        if ask.is_empty() {
            return Err(self.source.wrong(at, "no questions: ask is empty"));
        }
        let call = file.call.as_ref().map(|text| self.template(text, names, true)).transpose()?;
        // a follow-up with a reply of its own says itself whether it calls
        let inherits = file.reply.is_none() && file.outcome.is_empty();
        let call = call.or_else(|| base.filter(|_| inherits).and_then(|base| base.call.clone()));
        let mut outcomes = Vec::new();
        if let Some(reply) = &file.reply {
            let result = file.result.as_ref().map(|text| self.template(text, names, true)).transpose()?;
            outcomes.push(Outcome { weight: 1.0, slots: Vec::new(), result, reply: self.template(reply, names, true)? });
        } else if let Some(result) = &file.result {
            return Err(self.source.wrong(result, "a result without a reply"));
        }
        for outcome in &file.outcome {
            let slots = self.slots(&outcome.slots, names)?;
            let result = outcome.result.as_ref().map(|text| self.template(text, names, true)).transpose()?;
            outcomes.push(Outcome { weight: outcome.weight, slots, result, reply: self.template(&outcome.reply, names, true)? });
        }
        if outcomes.is_empty() {
            outcomes = base.map(|base| base.outcomes.clone()).unwrap_or_default();
        }
        if outcomes.is_empty() {
            return Err(self.source.wrong(at, "no reply"));
        }
        for outcome in &outcomes {
            if outcome.result.is_some() != call.is_some() {
                return Err(self.source.wrong(at, "a call needs a result in every outcome, and a result needs a call"));
            }
            if outcome.weight.is_nan() || outcome.weight <= 0.0 {
                return Err(self.source.wrong(at, "weights must be positive"));
            }
        }
        Ok(Frame { slots, known, ask, call, outcomes })
    }
}

/// Gives every list the words of the others of its kind (single names of things, or phrases) in place of its own. Short lists (on, off)
/// and spelled ones stay.
fn swap(lists: &mut BTreeMap<String, Vec<String>>, spelled: &[String]) {
    const SHORT: usize = 5;
    let words = |texts: &[String]| texts.iter().map(|text| text.split(' ').count()).sum::<usize>();
    let is_phrases = |texts: &[String]| words(texts) >= 2 * texts.len();
    let own: BTreeMap<String, Vec<String>> = lists
        .iter()
        .filter(|(name, texts)| texts.len() >= SHORT && !spelled.contains(name))
        .map(|(name, texts)| (name.clone(), texts.clone()))
        .collect();
    for (name, texts) in &own {
        let others = own.iter().filter(|(other, list)| *other != name && is_phrases(list) == is_phrases(texts));
        let foreign: BTreeSet<&String> = others.flat_map(|(_, list)| list).filter(|text| !texts.contains(text)).collect();
        if !foreign.is_empty() {
            lists.insert(name.clone(), foreign.into_iter().cloned().collect());
        }
    }
}

impl Grammar {
    /// Reads and checks a grammar.
    ///
    /// # Errors
    /// [`Error::Io`] when unreadable; [`Error::Format`] with file, line and what is wrong.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::parse(path, &text)
    }

    /// As [`Grammar::load`], from a text; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] with file, line and what is wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        Self::parse_as(path, text, false)
    }

    /// The same grammar with the words of its lists swapped: questions that sound like its own and make no sense ("lock the garlic"),
    /// to learn hearing by the sound alone.
    ///
    /// # Errors
    /// As [`Grammar::parse`].
    pub fn parse_swapped(path: &Path, text: &str) -> Result<Self, Error> {
        Self::parse_as(path, text, true)
    }

    fn parse_as(path: &Path, text: &str, swapped: bool) -> Result<Self, Error> {
        let mut file: GrammarFile = toml::from_str(text).map_err(|error| Error::Format {
            path: path.to_owned(),
            line: error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1),
            message: error.message().to_owned(),
        })?;
        if swapped {
            swap(&mut file.lists, &file.spelled);
        }
        let at_top = |message: String| Error::Format { path: path.to_owned(), line: 1, message };
        if file.version != 1 {
            return Err(at_top(format!("grammar version {} is not known; this program reads version 1", file.version)));
        }
        let mut compiler = Compiler {
            source: Source { path, text },
            macros: file.macros.iter().map(|(name, text)| (name.clone(), text.get_ref().clone())).collect(),
            tables: BTreeMap::new(),
            words: numbers::number_words().map(str::to_owned).collect(),
        };
        for (name, text) in &file.macros {
            Template::parse(text.get_ref(), &compiler.macros, &|_| None)
                .map_err(|message| compiler.source.wrong(text, format!("macro {name}: {message}")))?;
        }
        for (name, texts) in file.lists {
            if texts.is_empty() {
                return Err(at_top(format!("the list {name} is empty")));
            }
            let rows = texts.into_iter().map(|text| vec![text]).collect();
            compiler.tables.insert(name, Table { columns: Vec::new(), rows });
        }
        for (name, table) in file.tables {
            if let Some(row) = table.rows.iter().find(|row| row.get_ref().len() != table.columns.len()) {
                let (found, wanted) = (row.get_ref().len(), table.columns.len());
                return Err(compiler.source.wrong(row, format!("table {name}: a row of {found}, but there are {wanted} columns")));
            }
            if table.rows.is_empty() || table.columns.is_empty() {
                return Err(at_top(format!("the table {name} is empty")));
            }
            let rows = table.rows.into_iter().map(Spanned::into_inner).collect();
            compiler.tables.insert(name, Table { columns: table.columns, rows });
        }
        for (name, table) in &compiler.tables {
            let words = table.rows.iter().flatten().flat_map(|text| text.split(' '));
            if let Some(word) = words.clone().find(|word| !word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '\'')) {
                return Err(at_top(format!(
                    "list or table {name}: {word:?} is not a lower-case word (numbers are spelled out, one space between words)"
                )));
            }
            if !file.spelled.contains(name) {
                compiler.words.extend(words.map(str::to_owned));
            }
        }
        if let Some(name) = file.spelled.iter().find(|name| !compiler.tables.contains_key(*name)) {
            return Err(at_top(format!("spelled: there is no list {name:?}")));
        }
        let failure = match &file.failure {
            Some(failure) => {
                compiler.words.extend(failure.results.iter().flat_map(|text| text.split(' ')).map(str::to_owned));
                let reply = compiler.template(&failure.reply, &Names::default(), true)?;
                if failure.results.is_empty() || !(0.0..1.0).contains(&failure.share) {
                    return Err(compiler.source.wrong(&failure.reply, "failure: results must not be empty and share lies in 0..1"));
                }
                Some(super::Failure { share: failure.share, results: failure.results.clone(), reply })
            }
            None => None,
        };
        let mut intents: Vec<Intent> = Vec::with_capacity(file.intent.len());
        for intent in file.intent {
            let name = intent.name;
            if intents.iter().any(|known| known.name == *name.get_ref()) {
                return Err(compiler.source.wrong(&name, format!("there are two intents {:?}", name.get_ref())));
            }
            if intent.weight.is_nan() || intent.weight <= 0.0 {
                return Err(compiler.source.wrong(&name, "weights must be positive"));
            }
            let mut names = Names::default();
            let own = FrameFile {
                slots: intent.slots,
                ask: intent.ask,
                call: intent.call,
                result: intent.result,
                reply: intent.reply,
                outcome: intent.outcome,
            };
            let base = compiler.frame(&own, &mut names, None, &name)?;
            let mut follow = Vec::with_capacity(intent.follow.len());
            for file in &intent.follow {
                follow.push(compiler.frame(file, &mut names, Some(&base), &name)?);
            }
            intents.push(Intent {
                name: name.into_inner(),
                category: intent.category,
                weight: intent.weight,
                split: intent.split,
                fresh: intent.fresh,
                may_fail: intent.may_fail,
                frame: base,
                follow,
            });
        }
        if intents.is_empty() {
            return Err(at_top("no intents".to_owned()));
        }
        compiler.words.remove("");
        Ok(Self::new(intents, failure, compiler.words))
    }
}
