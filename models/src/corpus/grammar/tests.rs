use super::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;

fn home() -> Grammar {
    Grammar::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/grammar/home.toml"))).unwrap()
}

#[test]
fn the_answer_follows_from_the_question() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut calls: HashMap<(String, Option<Turn>), Option<String>> = HashMap::new();
    let mut replies: HashMap<(String, Option<Turn>, Option<String>), String> = HashMap::new();
    for _ in 0..100_000 {
        let Sampled { turn, history, .. } = grammar.sample(&mut rng, Split::Train);
        // a question that needs no context must be answered in the same way in any
        for context in [None, Some(history.last().cloned())] {
            let Some(context) = context else { continue };
            let known = calls.entry((turn.question.clone(), context.clone())).or_insert_with(|| turn.call.clone());
            assert_eq!(*known, turn.call, "{:?} after {context:?}", turn.question);
            let known = replies.entry((turn.question.clone(), context.clone(), turn.result.clone())).or_insert_with(|| turn.reply.clone());
            assert_eq!(*known, turn.reply, "{:?} after {context:?}", turn.question);
        }
    }
}

#[test]
fn splits_share_no_combination() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut draw = |split| -> BTreeSet<(String, String)> {
        let turns = std::iter::repeat_with(|| grammar.sample(&mut rng, split)).take(30_000);
        turns.filter(|sampled| sampled.category == "lights").filter_map(|sampled| Some((sampled.turn.call?, sampled.turn.question))).collect()
    };
    let calls = |turns: BTreeSet<(String, String)>| -> BTreeSet<String> { turns.into_iter().map(|(call, _)| call).collect() };
    let (train, dev, test) = (calls(draw(Split::Train)), calls(draw(Split::Dev)), calls(draw(Split::Test)));
    assert!(!test.is_empty() && train.is_disjoint(&test) && train.is_disjoint(&dev) && dev.is_disjoint(&test), "{test:?}");
}

#[test]
fn sampling_is_cheap_and_seeded() {
    let grammar = home();
    let draw = || {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..20_000).map(|_| grammar.sample(&mut rng, Split::Train)).collect::<Vec<_>>()
    };
    let start = std::time::Instant::now();
    let first = draw();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(first, draw());
    assert!(seconds < 4.0, "20,000 dialogues took {seconds} s"); // generous: test machines are shared
}

#[test]
fn a_broken_grammar_is_told_with_its_line() {
    let good = "version = 1\n[lists]\nroom = [\"kitchen\"]\n[[intent]]\nname = \"a\"\ncategory = \"c\"\nslots = [\"room = list room\"]\nask = [\"light in the {room}\"]\nreply = \"okay\"\n";
    assert!(Grammar::parse(Path::new("g.toml"), good).is_ok());
    for (from, to, expected) in [
        ("{room}\"", "{rom}\"", "g.toml:8: there is no slot {rom}"),
        ("list room", "list rooms", "g.toml:7: there is no list or table \"rooms\""),
        ("\"okay\"", "\"(okay|fine)\"", "g.toml:9: calls, results and replies must not have alternatives"),
        ("reply =", "replay =", "g.toml:9: unknown field `replay`"),
        ("\"kitchen\"", "\"Kitchen\"", "not a lower-case word"),
        ("version = 1", "version = 2", "version 2 is not known"),
        ("category = \"c\"", "category = ", "g.toml:6"),
        ("reply = \"okay\"", "call = \"x\"\nreply = \"okay\"", "g.toml:5: a call needs a result"),
    ] {
        let error = Grammar::parse(Path::new("g.toml"), &good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
