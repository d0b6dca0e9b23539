//! What is remembered of an answer: the words that were heard, and nothing of silence.

use std::sync::mpsc::sync_channel;

use sa_device::audio::{Capture, Captured, Pace, WavDevice};
use sa_device::engine::Tract;
use sa_device::pipeline::{Agent, Event, Settings, Stopped, Turn};

use super::live::{agent_with, voice};

fn answer(agent: &mut Agent, name: &str) -> Turn {
    agent.begin("test").expect("begins");
    agent.push(&voice(name), None).expect("hears");
    let mut device = WavDevice::new(Vec::new(), Vec::new(), Pace::Fast, 30.0).expect("nothing to read");
    agent.answer(&mut device, &mut |_: &Event| {}, &|| true).expect("answers")
}

/// Its answer to a question, as units: they depend on all that is remembered.
fn next(agent: &mut Agent, question: &[u32]) -> Vec<u32> {
    let mut device = WavDevice::new(Vec::new(), Vec::new(), Pace::Fast, 30.0).expect("nothing to read");
    agent.turn_of_units(question, &mut device, &mut |_: &Event| {}).expect("a turn").units
}

/// A question whose answer shows what is remembered of the turn before: which one does is a matter of the weights.
fn telling(agent: &mut Agent) -> Vec<u32> {
    agent.forget().expect("forgets");
    let mut cut = answer(agent, "11-lights");
    let whole = cut.clone();
    agent.settle(&mut cut, Some(0.0)).expect("settles");
    let names = [
        "16-repeat",
        "12-locks",
        "14-refusals",
        "17-smalltalk",
        "23-thermostat",
        "25-devices",
        "27-thermostat",
        "05-brightness",
        "24-devices",
        "03-arithmetic",
    ];
    let telling = names.into_iter().find_map(|name| {
        let question = answer(agent, name).question_units;
        let mut after = |turn: &Turn| {
            agent.recall(std::slice::from_ref(turn)).expect("remembers");
            next(agent, &question)
        };
        (after(&cut) != after(&whole)).then_some(question)
    });
    telling.expect("no answer depends on the turn before: no test")
}

/// An answer that was cut is remembered to the last word of which half was heard: in the turn and in the language model.
#[test]
fn only_what_was_heard_is_remembered() {
    let mut agent = agent_with(&Tract, Settings::default());
    let follow_up = telling(&mut agent);
    for (word, heard_half) in [(0, false), (0, true), (2, false), (2, true)] {
        agent.forget().expect("forgets");
        let mut turn = answer(&mut agent, "11-lights");
        let whole = turn.clone();
        let words: Vec<&str> = whole.reply_text.split(' ').collect();
        assert!(words.len() > 4 && words.len() == turn.word_units.len(), "{}", whole.reply_text);
        let begin = if word == 0 { 0 } else { turn.word_units[word - 1] };
        let half = begin.midpoint(turn.word_units[word]) + usize::from(heard_half);
        agent.settle(&mut turn, Some((half as f64 + 0.5) / 25.0)).expect("settles");
        let expected = words[..word + usize::from(heard_half)].join(" ");
        assert_eq!((turn.reply_text.as_str(), turn.stopped, turn.units.len()), (expected.as_str(), Stopped::Interrupted, half));
        let memory = next(&mut agent, &follow_up);
        let mut other = agent_with(&Tract, Settings::default());
        if word + usize::from(heard_half) > 0 || !turn.calls.is_empty() {
            other.recall(&[turn]).expect("remembers");
        }
        assert_eq!(memory, next(&mut other, &follow_up), "what it remembers is the turn's text: {expected:?}");
    }
    // Heard to its end.
    agent.forget().expect("forgets");
    let mut turn = answer(&mut agent, "11-lights");
    let whole = turn.clone();
    agent.settle(&mut turn, Some(60.0)).expect("settles");
    assert_eq!((turn.reply_text, turn.stopped), (whole.reply_text, whole.stopped));
}

/// Silence between an answer and "say that again" changes nothing.
#[test]
fn silence_is_not_repeated() {
    let mut agent = agent_with(&Tract, Settings::default());
    let mut turn = answer(&mut agent, "11-lights");
    agent.settle(&mut turn, None).expect("settles");
    assert_eq!(agent.tools().last_reply(), turn.reply_text);
    let (sender, pieces) = sync_channel(2);
    sender.send(Captured::Samples(vec![0.0; 16_000], None)).expect("there is room");
    sender.send(Captured::End).expect("there is room");
    let mut device = WavDevice::new(Vec::new(), Vec::new(), Pace::Fast, 30.0).expect("nothing to read");
    let silent = agent.turn(&Capture { source: "test".into(), pieces }, &mut device, &mut |_: &Event| {}).expect("a turn");
    assert_eq!(silent.stopped, Stopped::Silence);
    assert_eq!(agent.tools().call("repeat").words, turn.reply_text);
}
