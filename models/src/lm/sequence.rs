//! Training sequences: which items stand where, and which of them the model is asked to write.
//!
//! ```text
//! question    <user> g g g <transcribe> turn on the light <agent> <call> light set on <result> ok <speak> okay s s the s … <end>
//! transcribe  <user> g g g <transcribe> turn on the light <agent>
//! text        <transcribe> turn on the light <agent> <call> light set on <result> ok <text> okay the light is on <end>
//! say         <say> okay the light is on <speak> okay s s the s … <end>
//! ```
//! g is a group of the user's units, s one of the agent's. Earlier turns of a dialogue stand before `<user>` (or before the text
//! question) in the form of `text`. The runtime writes `<user>`, groups, `<transcribe>` and results; everything else is the model's.
//! Before a reply the model is always asked for `<speak>`: where no speech is at hand (earlier turns, text sequences, replies
//! that were never synthesised) `<text>` is fed instead, so the model never learns to choose `<text>` itself.

use crate::corpus::{Turn, Vocabulary};

/// Ids of the special tokens: the first lines of every vocabulary.
pub mod special {
    pub const PAD: u16 = 0;
    pub const USER: u16 = 1;
    pub const TRANSCRIBE: u16 = 2;
    pub const AGENT: u16 = 3;
    pub const CALL: u16 = 4;
    pub const RESULT: u16 = 5;
    pub const SPEAK: u16 = 6;
    pub const TEXT: u16 = 7;
    pub const SAY: u16 = 8;
    pub const END: u16 = 9;
}

/// What a sequence teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    Question,
    Transcribe,
    Text,
    Say,
}

impl Task {
    pub const ALL: [Self; 4] = [Self::Question, Self::Transcribe, Self::Text, Self::Say];

    pub fn name(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Transcribe => "transcribe",
            Self::Text => "text",
            Self::Say => "say",
        }
    }
}

/// One position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// `id` is fed; `target` is what the position before is asked to write (most often the same).
    Token { id: u16, target: Option<u16> },
    /// The group with this number in the sequence; `spoken` if the position before is asked to predict it.
    Group { index: usize, spoken: bool },
}

/// The items of one training example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub task: Task,
    pub items: Vec<Item>,
    /// G units a group, one group after another.
    pub groups: Vec<u16>,
}

/// A reply as it is spoken: each word with its units, a partition of the reply's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub words: Vec<(String, Vec<u16>)>,
}

impl Spoken {
    /// Cuts `units` (25 a second) at the words' ends in seconds, rounded; every word keeps at least one unit.
    /// None if there are fewer units than words.
    pub fn cut(units: &[u16], words: &[(String, f64)]) -> Option<Self> {
        const RATE: f64 = 25.0;
        if words.is_empty() || units.len() < words.len() {
            return None;
        }
        let mut start = 0;
        let words = words.iter().enumerate().map(|(i, (word, end))| {
            let later = words.len() - 1 - i;
            let end = if later == 0 { units.len() } else { ((end * RATE).round() as usize).clamp(start + 1, units.len() - later) };
            let piece = units[start..end].to_vec();
            start = end;
            (word.clone(), piece)
        });
        Some(Self { words: words.collect() })
    }

    /// The reply's text.
    pub fn text(&self) -> String {
        self.words.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// Writes sequences for one vocabulary and group size.
#[derive(Clone, Debug)]
pub struct Composer<'a> {
    pub vocabulary: &'a Vocabulary,
    /// Units in a group.
    pub group: usize,
    /// The unit that ends a word.
    pub end_unit: u16,
    /// Ask for the question's words before the answer.
    pub transcript: bool,
}

impl Composer<'_> {
    /// A spoken question after `history`; without `spoken` the reply follows as text.
    pub fn question(&self, history: &[Turn], units: &[u16], turn: &Turn, spoken: Option<&Spoken>) -> Sequence {
        let mut writer = self.writer(Task::Question);
        history.iter().for_each(|turn| writer.past(turn));
        writer.heard(units);
        if self.transcript {
            writer.feed(special::TRANSCRIBE);
            writer.write_words(&turn.question);
            writer.write(special::AGENT);
        } else {
            writer.feed(special::AGENT);
        }
        writer.answer(turn, spoken);
        writer.sequence
    }

    /// What was said, up to the `<agent>` that ends the transcript.
    pub fn transcribe(&self, units: &[u16], text: &str) -> Sequence {
        let mut writer = self.writer(Task::Transcribe);
        writer.heard(units);
        writer.feed(special::TRANSCRIBE);
        writer.write_words(text);
        writer.write(special::AGENT);
        writer.sequence
    }

    /// A typed question and its answer; the replies of earlier turns are taught as well.
    pub fn text(&self, history: &[Turn], turn: &Turn) -> Sequence {
        let mut writer = self.writer(Task::Text);
        for turn in history.iter().chain([turn]) {
            writer.feed(special::TRANSCRIBE);
            writer.feed_words(&turn.question);
            writer.feed(special::AGENT);
            writer.answer(turn, None);
        }
        writer.sequence
    }

    /// A text to be spoken.
    pub fn say(&self, spoken: &Spoken) -> Sequence {
        let mut writer = self.writer(Task::Say);
        writer.feed(special::SAY);
        writer.feed_words(&spoken.text());
        writer.feed(special::SPEAK);
        writer.spoken(spoken);
        writer.write(special::END);
        writer.sequence
    }

    /// What the runtime feeds before the model writes its first token: earlier turns, the question, and `<transcribe>` (or `<agent>`
    /// without transcript).
    pub fn prompt(&self, history: &[Turn], units: &[u16]) -> Sequence {
        let mut writer = self.writer(Task::Question);
        history.iter().for_each(|turn| writer.past(turn));
        writer.heard(units);
        writer.feed(if self.transcript { special::TRANSCRIBE } else { special::AGENT });
        writer.sequence
    }

    /// What is fed before a typed question is answered.
    pub fn typed_prompt(&self, history: &[Turn], question: &str) -> Sequence {
        let mut writer = self.writer(Task::Text);
        history.iter().for_each(|turn| writer.past(turn));
        writer.feed(special::TRANSCRIBE);
        writer.feed_words(question);
        writer.feed(special::AGENT);
        writer.sequence
    }

    /// What is fed before a text is spoken.
    pub fn say_prompt(&self, text: &str) -> Sequence {
        let mut writer = self.writer(Task::Say);
        writer.feed(special::SAY);
        writer.feed_words(text);
        writer.feed(special::SPEAK);
        writer.sequence
    }

    fn writer(&self, task: Task) -> Writer<'_> {
        Writer { composer: self, sequence: Sequence { task, items: Vec::new(), groups: Vec::new() } }
    }

    /// Groups that hold `units`, the last filled with end units; `closed` adds a group of end units if none is left over.
    pub fn groups(&self, units: &[u16], closed: bool) -> Vec<u16> {
        let length = if closed { units.len() + 1 } else { units.len() }.div_ceil(self.group) * self.group;
        let mut groups = units.to_vec();
        groups.resize(length, self.end_unit);
        groups
    }
}

struct Writer<'a> {
    composer: &'a Composer<'a>,
    sequence: Sequence,
}

impl Writer<'_> {
    fn feed(&mut self, id: u16) {
        self.sequence.items.push(Item::Token { id, target: None });
    }

    fn write(&mut self, id: u16) {
        self.sequence.items.push(Item::Token { id, target: Some(id) });
    }

    fn feed_words(&mut self, text: &str) {
        self.composer.vocabulary.encode(text).into_iter().for_each(|id| self.feed(id));
    }

    fn write_words(&mut self, text: &str) {
        self.composer.vocabulary.encode(text).into_iter().for_each(|id| self.write(id));
    }

    fn groups(&mut self, groups: &[u16], spoken: bool) {
        let group = self.composer.group;
        let before = self.sequence.groups.len() / group;
        self.sequence.groups.extend_from_slice(groups);
        self.sequence.items.extend((0..groups.len() / group).map(|i| Item::Group { index: before + i, spoken }));
    }

    fn heard(&mut self, units: &[u16]) {
        self.feed(special::USER);
        self.groups(&self.composer.groups(units, false), false);
    }

    fn spoken(&mut self, spoken: &Spoken) {
        for (word, units) in &spoken.words {
            self.write_words(word);
            self.groups(&self.composer.groups(units, true), true);
        }
    }

    fn answer(&mut self, turn: &Turn, spoken: Option<&Spoken>) {
        if let Some(call) = &turn.call {
            self.write(special::CALL);
            self.write_words(call);
            self.write(special::RESULT);
            self.feed_words(turn.result.as_deref().unwrap_or_default());
        }
        if let Some(spoken) = spoken {
            self.write(special::SPEAK);
            self.spoken(spoken);
        } else {
            self.sequence.items.push(Item::Token { id: special::TEXT, target: Some(special::SPEAK) });
            self.write_words(&turn.reply);
        }
        self.write(special::END);
    }

    /// A turn that is over: read, not written.
    fn past(&mut self, turn: &Turn) {
        self.feed(special::TRANSCRIBE);
        self.feed_words(&turn.question);
        self.feed(special::AGENT);
        if let Some(call) = &turn.call {
            self.feed(special::CALL);
            self.feed_words(call);
            self.feed(special::RESULT);
            self.feed_words(turn.result.as_deref().unwrap_or_default());
        }
        self.feed(special::TEXT);
        self.feed_words(&turn.reply);
        self.feed(special::END);
    }
}

/// Sequences laid end to end; rows are the positions of all of them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Positions of each sequence.
    pub lengths: Vec<usize>,
    /// Task of each sequence.
    pub tasks: Vec<Task>,
    /// (row, token) of the text positions.
    pub tokens: Vec<(usize, u16)>,
    /// Rows of the group positions, in the order of `groups`.
    pub group_rows: Vec<usize>,
    /// G units a group.
    pub groups: Vec<u16>,
    /// (row, token it is asked to write, number of the sequence).
    pub text_targets: Vec<(usize, u16, usize)>,
    /// (row, group it is asked to predict, number of the sequence).
    pub unit_targets: Vec<(usize, usize, usize)>,
}

impl Batch {
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a Sequence>, group: usize) -> Self {
        let mut batch = Self::default();
        let mut row = 0;
        for (number, sequence) in sequences.into_iter().enumerate() {
            let first_group = batch.groups.len() / group;
            for (i, item) in sequence.items.iter().enumerate() {
                match *item {
                    Item::Token { id, target } => {
                        batch.tokens.push((row + i, id));
                        batch.text_targets.extend(target.map(|target| (row + i - 1, target, number)));
                    }
                    Item::Group { index, spoken } => {
                        batch.group_rows.push(row + i);
                        if spoken {
                            batch.unit_targets.push((row + i - 1, first_group + index, number));
                        }
                    }
                }
            }
            batch.groups.extend_from_slice(&sequence.groups);
            batch.lengths.push(sequence.items.len());
            batch.tasks.push(sequence.task);
            row += sequence.items.len();
        }
        batch
    }

    /// All positions.
    pub fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        let words = "is it kitchen lamp light now okay on set the turn two".split(' ').map(str::to_owned).collect();
        Vocabulary::from_words(&words)
    }

    fn composer(vocabulary: &Vocabulary) -> Composer<'_> {
        Composer { vocabulary, group: 3, end_unit: 9, transcript: true }
    }

    fn turn() -> Turn {
        Turn { question: "turn it on".into(), call: Some("light set on".into()), result: Some("okay".into()), reply: "it is on".into() }
    }

    /// `token` is fed; `token!` is fed and asked for; `<text>=<speak>` is fed and another asked for; [..] a group heard; (..) a group spoken.
    fn show(sequence: &Sequence, vocabulary: &Vocabulary) -> String {
        let name = |id| vocabulary.token(id).expect("in the vocabulary").to_owned();
        let items = sequence.items.iter().map(|item| match *item {
            Item::Token { id, target: None } => name(id),
            Item::Token { id, target: Some(target) } if id == target => name(id) + "!",
            Item::Token { id, target: Some(target) } => format!("{}={}", name(id), name(target)),
            Item::Group { index, spoken } => {
                let units = sequence.groups[3 * index..3 * index + 3].iter().map(u16::to_string).collect::<String>();
                if spoken { format!("({units})") } else { format!("[{units}]") }
            }
        });
        items.collect::<Vec<_>>().join(" ")
    }

    fn spoken() -> Spoken {
        Spoken { words: vec![("it".into(), vec![1, 2]), ("is".into(), vec![3, 4, 5]), ("on".into(), vec![6])] }
    }

    #[test]
    fn a_spoken_question_with_a_call_and_a_spoken_reply() {
        let vocabulary = vocabulary();
        let sequence = composer(&vocabulary).question(&[], &[1, 2, 3, 4], &turn(), Some(&spoken()));
        assert_eq!(
            show(&sequence, &vocabulary),
            "<user> [123] [499] <transcribe> turn! it! on! <agent>! <call>! light! set! on! <result>! okay \
             <speak>! it! (129) is! (345) (999) on! (699) <end>!"
        );
    }

    #[test]
    fn without_transcript_call_or_speech() {
        let vocabulary = vocabulary();
        let composer = Composer { transcript: false, ..composer(&vocabulary) };
        let turn = Turn { call: None, result: None, ..turn() };
        let sequence = composer.question(&[], &[1, 2, 3], &turn, None);
        assert_eq!(show(&sequence, &vocabulary), "<user> [123] <agent> <text>=<speak> it! is! on! <end>!");
    }

    #[test]
    fn earlier_turns_are_read_before_the_user_speaks() {
        let vocabulary = vocabulary();
        let turn = Turn { call: None, result: None, ..turn() };
        let sequence = composer(&vocabulary).question(&[self::turn()], &[1], &turn, None);
        assert_eq!(
            show(&sequence, &vocabulary),
            "<transcribe> turn it on <agent> <call> light set on <result> okay <text> it is on <end> \
             <user> [199] <transcribe> turn! it! on! <agent>! <text>=<speak> it! is! on! <end>!"
        );
    }

    #[test]
    fn text_transcribe_and_say() {
        let vocabulary = vocabulary();
        let composer = composer(&vocabulary);
        let turn = Turn { question: "turn bo on".into(), call: None, result: None, reply: "okay".into() };
        assert_eq!(
            show(&composer.text(std::slice::from_ref(&turn), &turn), &vocabulary),
            "<transcribe> turn #b #o # on <agent> <text>=<speak> okay! <end>! <transcribe> turn #b #o # on <agent> <text>=<speak> okay! <end>!"
        );
        assert_eq!(show(&composer.transcribe(&[7, 7, 7], "the bo"), &vocabulary), "<user> [777] <transcribe> the! #b! #o! #! <agent>!");
        assert_eq!(show(&composer.transcribe(&[7], ""), &vocabulary), "<user> [799] <transcribe> <agent>!");
        let spoken = Spoken { words: vec![("bo".into(), vec![1])] };
        assert_eq!(show(&composer.say(&spoken), &vocabulary), "<say> #b #o # <speak> #b! #o! #! (199) <end>!");
    }

    #[test]
    fn words_part_all_units_and_each_has_one() {
        let words = |ends: &[f64]| ends.iter().map(|end| ("on".to_owned(), *end)).collect::<Vec<_>>();
        let cut = |n: u16, ends: &[f64]| {
            let units = (0..n).collect::<Vec<_>>();
            Spoken::cut(&units, &words(ends)).map(|spoken| spoken.words.iter().map(|(_, units)| units.len()).collect::<Vec<_>>())
        };
        assert_eq!(cut(10, &[0.16, 0.2, 0.4]), Some(vec![4, 1, 5]));
        assert_eq!(cut(10, &[0.16, 0.16, 0.16]), Some(vec![4, 1, 5])); // an empty word still gets a unit
        assert_eq!(cut(3, &[5.0, 6.0, 7.0]), Some(vec![1, 1, 1])); // times beyond the units
        assert_eq!(cut(2, &[0.1, 0.2, 0.3]), None);
    }

    #[test]
    fn a_batch_keeps_rows_and_targets_apart() {
        let vocabulary = vocabulary();
        let composer = composer(&vocabulary);
        let sequences = [composer.transcribe(&[7, 7, 7, 7], "on"), composer.say(&Spoken { words: vec![("on".into(), vec![1])] })];
        let batch = Batch::new(&sequences, 3);
        let on = vocabulary.id("on").expect("listed");
        assert_eq!(batch.lengths, [6, 6]);
        assert_eq!(batch.group_rows, [1, 2, 10]);
        assert_eq!(batch.groups, [7, 7, 7, 7, 9, 9, 1, 9, 9]);
        assert_eq!(batch.text_targets, [(3, on, 0), (4, special::AGENT, 0), (8, on, 1), (10, special::END, 1)]);
        assert_eq!(batch.unit_targets, [(9, 2, 1)]);
        assert_eq!(batch.tokens.len() + batch.group_rows.len(), batch.rows());
    }
}
