use super::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

fn home() -> Grammar {
    Grammar::home()
}

#[test]
fn the_answer_follows_from_the_question() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    assert_eq!(grammar.conflicts(&mut rng, 150_000), Vec::<String>::new());
}

#[test]
fn splits_share_no_combination() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut draw = |split| -> BTreeSet<String> {
        let turns = std::iter::repeat_with(|| grammar.sample(&mut rng, split)).take(30_000);
        let open = turns
            .filter(|sampled| ["brightness", "devices", "arithmetic", "conversion", "thermostat"].contains(&sampled.category.as_str()));
        // a query is known; what the tool found is not
        open.filter_map(|Sampled { turn, .. }| {
            let call = turn.call?;
            let is_query = ["temperature", "thermostat warmer", "thermostat cooler"].iter().any(|query| call.starts_with(query));
            match turn.result {
                Some(result) if is_query => (!turn.reply.starts_with("sorry")).then(|| format!("{call} {result}")),
                _ => Some(call),
            }
        })
        .collect()
    };
    let (train, dev, test) = (draw(Split::Train), draw(Split::Dev), draw(Split::Test));
    assert!(test.len() > 500 && dev.len() > 300, "{} {}", test.len(), dev.len());
    for (a, b) in [(&train, &test), (&train, &dev), (&dev, &test)] {
        assert_eq!(a.intersection(b).next(), None);
    }
}

/// What nothing else leads to is in the training split.
#[test]
fn answers_that_are_no_combination_are_not_held_out() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let replies: BTreeSet<String> = (0..60_000).map(|_| grammar.sample(&mut rng, Split::Train).turn.reply).collect();
    for reply in ["you have no messages", "you have no reminders", "your calendar is empty"] {
        assert!(replies.contains(reply), "{reply}");
    }
}

/// Held out are combinations, not words: every word of a test question has been heard in training.
#[test]
fn no_word_is_held_out() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut draw = |split, number| -> BTreeSet<String> {
        let drawn = std::iter::repeat_with(|| grammar.sample(&mut rng, split).turn).take(number);
        drawn.flat_map(|turn| turn.question.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let (train, test) = (draw(Split::Train, 100_000), draw(Split::Test, 20_000));
    assert_eq!(test.difference(&train).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// With swapped lists a question has another list's words, and never its own.
#[test]
fn swapped_words_are_those_of_other_lists() {
    let grammar = Grammar::parse_swapped(Path::new("home.toml"), include_str!("../../../grammar/home.toml")).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let calls: Vec<String> = (0..20_000).filter_map(|_| grammar.sample(&mut rng, Split::Train).turn.call).collect();
    let removed: BTreeSet<&str> = calls.iter().filter_map(|call| call.strip_prefix("list remove ")).collect();
    assert!(removed.len() > 50, "{removed:?}");
    for (word, own) in [("bread", true), ("grapes", true), ("kitchen", false), ("paris", false)] {
        assert_eq!(removed.contains(word), !own, "{word}");
    }
    assert!(calls.iter().any(|call| call.ends_with(" on")) && grammar.words() == home().words());
}

#[test]
fn every_category_is_in_every_split() {
    let grammar = home();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for split in [Split::Train, Split::Dev, Split::Test] {
        let seen: BTreeSet<String> = (0..4_000).map(|_| grammar.sample(&mut rng, split).category).collect();
        assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), grammar.categories());
    }
    assert!(grammar.words().len() < 950, "{} words", grammar.words().len());
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
