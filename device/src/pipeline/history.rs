//! What is kept of the turns before: their text, as the model was trained to read it.
//!
//! `<transcribe> words <agent> [<call> … <result> …] <text> reply words <end>` for each turn. A turn of speech takes a
//! hundred positions of the context, its text twenty.

use std::collections::VecDeque;

use super::{Past, Stopped, Turn};
use crate::text::Text;

/// A turn, and its tokens.
#[derive(Debug)]
struct Kept {
    past: Past,
    tokens: Vec<u32>,
}

/// The remembered turns, oldest first.
#[derive(Debug)]
pub struct History {
    turns: VecDeque<Kept>,
    /// Positions that all turns together may take.
    budget: usize,
    most: usize,
}

impl History {
    /// At most `most` turns and `budget` positions.
    pub fn new(budget: usize, most: usize) -> Self {
        Self { turns: VecDeque::new(), budget, most }
    }

    /// Appends a turn and forgets the oldest ones where there is no room. True if the turn was added and nothing
    /// forgotten: the cache then needs only [`History::last`] behind what it held before the turn.
    pub fn push(&mut self, turn: &Turn, text: &Text) -> bool {
        if turn.transcript.is_empty() || turn.stopped == Stopped::Silence {
            return false;
        }
        let special = text.specials();
        let mut tokens = vec![special.transcribe];
        tokens.extend(text.encode(&turn.transcript));
        tokens.push(special.agent);
        for call in &turn.calls {
            tokens.push(special.call);
            tokens.extend(text.encode(&call.call));
            tokens.push(special.result);
            tokens.extend(text.encode(&call.result));
        }
        tokens.push(special.text);
        tokens.extend(text.encode(&turn.reply_text));
        tokens.push(special.end);
        self.turns.push_back(Kept { past: Past::of(turn), tokens });
        let before = self.turns.len();
        while self.turns.len() > self.most || self.positions() > self.budget {
            self.turns.pop_front();
        }
        self.turns.len() == before
    }

    /// The newest turn.
    pub fn last(&self) -> &[u32] {
        self.turns.back().map_or(&[], |kept| &kept.tokens)
    }

    /// All turns.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        self.turns.iter().flat_map(|kept| &kept.tokens).copied()
    }

    /// What all turns are remembered as.
    pub fn past(&self) -> Vec<Past> {
        self.turns.iter().map(|kept| kept.past.clone()).collect()
    }

    /// Positions that all turns take.
    pub fn positions(&self) -> usize {
        self.turns.iter().map(|kept| kept.tokens.len()).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.turns.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::CallReport;
    use super::*;
    use crate::vocabulary::Vocabulary;

    #[test]
    fn turns_are_kept_as_text_and_the_oldest_forgotten() {
        let text = Text::Listed(Vocabulary::from_words(["hello", "light", "ok", "on"]).expect("in order"));
        let turn = Turn {
            transcript: "light on".into(),
            reply_text: "ok".into(),
            calls: vec![CallReport { call: "light on".into(), result: "ok".into(), problem: None }],
            ..Turn::default()
        };
        let mut history = History::new(30, 9);
        assert!(history.push(&turn, &text));
        assert_eq!(text.decode(history.last()), "<transcribe> light on <agent> <call> light on <result> ok <text> ok <end>");
        assert_eq!(history.positions(), 12);
        assert!(history.push(&turn, &text));
        assert!(!history.push(&turn, &text), "36 positions do not fit into 30");
        assert_eq!((history.positions(), history.past()), (24, vec![Past::of(&turn); 2]));
        assert!(!history.push(&Turn::default(), &text), "nothing understood, nothing kept");
        assert_eq!(history.positions(), 24);
        let mut none = History::new(30, 0);
        assert!(!none.push(&turn, &text));
        assert_eq!(none.positions(), 0);
    }
}
