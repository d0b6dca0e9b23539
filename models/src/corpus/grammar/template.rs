//! Templates: words, `{slots}`, `(this|that)` alternatives, `[optional]` parts and `@macros`.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;

/// One piece of a template.
#[derive(Debug, Clone)]
enum Node {
    Word(String),
    Slot(usize),
    Alternatives(Vec<Vec<Node>>),
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<Node>,
}

struct Parser<'a> {
    rest: &'a str,
    macros: &'a BTreeMap<String, String>,
    slots: &'a dyn Fn(&str) -> Option<usize>,
    depth: usize,
}

impl Parser<'_> {
    fn name(&mut self, allowed: fn(char) -> bool) -> &str {
        let end = self.rest.find(|letter| !allowed(letter)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name
    }

    /// Reads alternatives up to `close` (or the end of the text when `None`).
    fn alternatives(&mut self, close: Option<char>) -> Result<Vec<Vec<Node>>, String> {
        let mut branches = vec![Vec::new()];
        loop {
            self.rest = self.rest.trim_start();
            let branch = branches.last_mut().expect("never empty");
            let Some(letter) = self.rest.chars().next() else {
                return if let Some(close) = close { Err(format!("a {close:?} is missing")) } else { Ok(branches) };
            };
            let after = &self.rest[letter.len_utf8()..];
            match letter {
                _ if Some(letter) == close => {
                    self.rest = after;
                    return Ok(branches);
                }
                '|' if close.is_some() => {
                    self.rest = after;
                    branches.push(Vec::new());
                }
                '(' | '[' => {
                    self.rest = after;
                    let mut inner = self.alternatives(Some(if letter == '(' { ')' } else { ']' }))?;
                    if letter == '[' {
                        inner.push(Vec::new());
                    }
                    branch.push(Node::Alternatives(inner));
                }
                '{' => {
                    self.rest = after;
                    let name = self.name(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '.').to_owned();
                    self.rest = self.rest.strip_prefix('}').ok_or_else(|| format!("a '}}' is missing after {{{name}"))?;
                    let slot = (self.slots)(&name).ok_or_else(|| format!("there is no slot {{{name}}}"))?;
                    branch.push(Node::Slot(slot));
                }
                '@' => {
                    self.rest = after;
                    let name = self.name(|letter| letter.is_ascii_alphanumeric() || letter == '_').to_owned();
                    let text = self.macros.get(&name).ok_or_else(|| format!("there is no macro @{name}"))?;
                    if self.depth > 8 {
                        return Err(format!("the macro @{name} contains itself"));
                    }
                    let mut parser = Parser { rest: text, macros: self.macros, slots: self.slots, depth: self.depth + 1 };
                    let inner = parser.alternatives(None).map_err(|message| format!("in the macro @{name}: {message}"))?;
                    branch.push(Node::Alternatives(inner));
                }
                'a'..='z' | '\'' => {
                    let word = self.name(|letter| letter.is_ascii_lowercase() || letter == '\'').to_owned();
                    branch.push(Node::Word(word));
                }
                _ => return Err(format!("unexpected {letter:?}: texts are lower-case words, numbers spelled out")),
            }
        }
    }
}

impl Template {
    /// Compiles `text`; `slots` gives the index of a slot by its name.
    ///
    /// # Errors
    /// A message naming the wrong character, slot or macro.
    pub fn parse(text: &str, macros: &BTreeMap<String, String>, slots: &dyn Fn(&str) -> Option<usize>) -> Result<Self, String> {
        let mut parser = Parser { rest: text, macros, slots, depth: 0 };
        let mut branches = parser.alternatives(None)?;
        Ok(Self { nodes: branches.remove(0) })
    }

    /// Whether it renders to one text only.
    pub fn is_fixed(&self) -> bool {
        !self.nodes.iter().any(|node| matches!(node, Node::Alternatives(_)))
    }

    /// Whether it has no slots (and is fixed): the same text always.
    pub fn is_constant(&self) -> bool {
        self.nodes.iter().all(|node| matches!(node, Node::Word(_)))
    }

    /// Adds the words that are written in it.
    pub fn collect_words(&self, words: &mut BTreeSet<String>) {
        fn walk(nodes: &[Node], words: &mut BTreeSet<String>) {
            for node in nodes {
                match node {
                    Node::Word(word) => {
                        words.insert(word.clone());
                    }
                    Node::Slot(_) => {}
                    Node::Alternatives(branches) => branches.iter().for_each(|branch| walk(branch, words)),
                }
            }
        }
        walk(&self.nodes, words);
    }

    /// Writes one text: alternatives by chance, slots from `values`.
    pub fn render(&self, rng: &mut impl Rng, values: &[String]) -> String {
        fn push(text: &mut String, word: &str) {
            if !word.is_empty() {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(word);
            }
        }
        fn walk(nodes: &[Node], rng: &mut impl Rng, values: &[String], text: &mut String) {
            for node in nodes {
                match node {
                    Node::Word(word) => push(text, word),
                    Node::Slot(slot) => push(text, &values[*slot]),
                    Node::Alternatives(branches) => walk(&branches[rng.random_range(0..branches.len())], rng, values, text),
                }
            }
        }
        let mut text = String::with_capacity(64);
        walk(&self.nodes, rng, values, &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn renders_all_parts() {
        let macros = BTreeMap::from([("please".to_owned(), "[please]".to_owned())]);
        let slots = |name: &str| (name == "room").then_some(0);
        let template = Template::parse("@please (turn|switch) on the {room} light[s]", &macros, &slots).unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let texts: BTreeSet<String> = (0..200).map(|_| template.render(&mut rng, &["kitchen".to_owned()])).collect();
        assert_eq!(texts.len(), 8, "{texts:?}");
        assert!(texts.contains("please switch on the kitchen light"));
        assert!(!template.is_fixed());
    }

    #[test]
    fn complains() {
        let macros = BTreeMap::new();
        let slots = |_: &str| None;
        for (text, part) in
            [("(a|b", "missing"), ("{room}", "no slot {room}"), ("@x", "no macro"), ("Turn", "unexpected 'T'"), ("at 5", "'5'")]
        {
            assert!(Template::parse(text, &macros, &slots).unwrap_err().contains(part), "{text}");
        }
    }
}
