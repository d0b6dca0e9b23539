//! Days of conversation in an hour: the scripted conversation of the simulated device, as long as asked for.
//!
//! ```text
//! SA_LONG_MINUTES=60 cargo test --workspace --test agent -- --ignored --nocapture long::
//! ```
//! Questions in random order with random pauses, into some answers the next question, now and then a door. It prints what was
//! measured, and fails where a state got stuck, the agent answered itself, an interruption came late or memory grew.
//!
//! The questions are the shipped samples, or [`DRAWN`] test questions of the corpus in `SA_LONG_CORPUS`. The room is that of the issue (echo at
//! -8 dB, 250 ms of reverberation, 100 ppm), or any room with the seed `SA_LONG_ROOM`.

use std::collections::VecDeque;
use std::path::Path;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sa_device::audio::WavSink;
use sa_device::audio::live::{Duplex, Room};
use sa_device::pipeline::Agent;
use sa_device::turns::State;
use sa_models::corpus::{Corpus, Split};
use sa_tests::any_room;

use super::live::{Bench, agent, of_file, voice};

/// What interruption is late, in seconds.
const LATE: f64 = 0.2;
/// From this many seconds on, an interruption was late because the program stood still: there was nobody to notice it.
const STALL: f64 = 0.05;
/// By how many percentage points live may be worse than file mode.
const WORSE: f64 = 3.0;
/// By how much memory may grow after the first ten minutes, in MB, between turns.
const GROWTH: f64 = 2.0;

/// The units are 40 ms long, and where the first of them begins is chance: a question that is understood by a hair is so from some beginnings
/// only. File mode hears each from so many, as the conversation does.
const BEGINNINGS: usize = 8;
/// Questions from a corpus.
const DRAWN: usize = 200;

/// A question that can be understood by itself.
struct Question {
    name: String,
    voice: Vec<f32>,
    text: String,
    /// From how many of the beginnings it is understood in file mode, 0 to 1.
    in_file_mode: f64,
}

/// How often file mode understands `voice` as `text`.
fn in_file_mode(agent: &mut Agent, folder: &Path, voice: &[f32], text: &str) -> f64 {
    let understood = (0..BEGINNINGS).filter(|beginning| {
        let path = folder.join("question.wav");
        let mut sink = WavSink::create(&path).expect("a file");
        // A unit in so many parts.
        sink.write(&vec![0.0; beginning * 640 / BEGINNINGS]).and_then(|()| sink.write(voice)).expect("written");
        sink.finish().expect("written");
        of_file(agent, path) == text
    });
    understood.count() as f64 / BEGINNINGS as f64
}

/// Neither silence nor a question whose answer, and so the whole course of the conversation, depends on the clock of this computer.
fn is_asked(category: &str) -> bool {
    !["nonspeech", "time", "date"].contains(&category)
}

/// The names, voices and words of the samples.
fn samples() -> Vec<(String, Vec<f32>, String)> {
    let asked = sa_tests::samples().expect("the list of samples").into_iter().filter(|sample| is_asked(&sample.category));
    asked.map(|sample| (sample.name(), voice(&sample.name()), sample.text)).collect()
}

/// The same of test questions of a corpus.
fn from_corpus(folder: &Path) -> Vec<(String, Vec<f32>, String)> {
    let corpus = Corpus::open(folder).expect("a corpus");
    let questions: Vec<_> = corpus.questions(Split::Test).iter().filter(|question| is_asked(&question.category)).collect();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(20);
    let drawn = questions.choose_multiple(&mut rng, DRAWN);
    drawn.map(|question| (question.id.clone(), corpus.audio(question).expect("readable"), question.text.clone())).collect()
}

fn questions() -> Vec<Question> {
    let mut agent = agent();
    let folder = tempfile::tempdir().expect("a folder");
    let said = std::env::var("SA_LONG_CORPUS").map_or_else(|_| samples(), |corpus| from_corpus(corpus.as_ref()));
    said.into_iter()
        .map(|(name, voice, text)| {
            let in_file_mode = in_file_mode(&mut agent, folder.path(), &voice, &text);
            Question { name, voice, text, in_file_mode }
        })
        .collect()
}

/// Memory of this process that is not shared or swapped, in MB.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: f64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * 4096.0 / 1e6
}

#[derive(Default)]
struct Tally {
    asked: usize,
    answered: usize,
    /// Turns that the agent counts.
    turns: usize,
    right: usize,
    right_in_file_mode: f64,
    /// Questions said into an answer, and those of them that were understood.
    into: usize,
    into_right: usize,
    into_right_in_file_mode: f64,
    caught: Vec<f64>,
    /// Late interruptions during which the program was made to stand still.
    stalled: usize,
    /// Questions into an answer that paused it at most.
    missed: Vec<String>,
    doors: usize,
    /// Times that an answer was held although nobody spoke.
    held: usize,
    /// Turns that nobody asked for.
    unasked: usize,
    /// Milliseconds from the end of the voice to the end of the question.
    endpoints: Vec<f64>,
}

impl Tally {
    fn count(&mut self, question: &Question, into: bool, heard: &str) {
        let (right, in_file_mode) = (usize::from(heard == question.text), question.in_file_mode);
        if right == 0 && in_file_mode > 0.5 {
            println!("  {:?} was heard as {heard:?}{}", question.text, if into { ", into an answer" } else { "" });
        }
        if into {
            self.into += 1;
            self.into_right += right;
            self.into_right_in_file_mode += in_file_mode;
        } else {
            self.right += right;
            self.right_in_file_mode += in_file_mode;
        }
    }
}

#[test]
#[ignore = "takes minutes; see the module"]
fn a_long_conversation() {
    let minutes: f64 = std::env::var("SA_LONG_MINUTES").map_or(60.0, |text| text.parse().expect("minutes"));
    let mut questions = questions();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(20);
    let (room, user_db) = match std::env::var("SA_LONG_ROOM") {
        Ok(seed) => any_room(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed.parse().expect("a number"))),
        Err(_) => (Room { seed: 20, ..Room::default() }, 0.0),
    };
    println!("{room:?}, the user at {user_db:.1} dB");
    let gain = 10f32.powf(user_db / 20.0);
    for question in &mut questions {
        question.voice.iter_mut().for_each(|sample| *sample *= gain);
    }
    let mut bench = Bench::new(room);
    let mut tally = Tally::default();
    let (started, mut quiet, mut early, mut reported) = (std::time::Instant::now(), None, None, 0);
    let mut next: Option<&Question> = None;
    // Questions that were answered, until their turns are settled: an interrupted one is when the next begins.
    let mut open: VecDeque<(&Question, bool)> = VecDeque::new();
    while bench.conversation.device().now() < minutes * 60.0 {
        let into = next.is_some();
        let question = next.take().unwrap_or_else(|| {
            let question = questions.choose(&mut rng).expect("there are some");
            bench.hear(&question.voice);
            question
        });
        tally.asked += 1;
        let answered = bench.answers(20.0);
        let mut sound = false;
        if answered {
            tally.answered += 1;
            open.push_back((question, into));
        } else {
            tally.count(question, into, "");
        }
        if answered && rng.random_bool(0.3) {
            let wait = rng.random_range(0.3..0.9);
            bench.run(wait);
            if bench.conversation.state() == State::Speaking {
                sound = true;
                let other = questions.choose(&mut rng).expect("there are some");
                let seconds = bench.cut_in(&other.voice);
                if let (Some(seconds), true) = (seconds, bench.listens(1.0)) {
                    if seconds > LATE {
                        let at = bench.conversation.device().now();
                        println!(
                            "  {seconds:.3} s until {} was noticed, {wait:.2} s into an answer, at {at:.1} s; the program stood still for {:.2} s",
                            other.name, bench.stalled
                        );
                        tally.stalled += usize::from(bench.stalled >= STALL);
                    }
                    tally.caught.push(seconds);
                    next = Some(other);
                } else {
                    println!("  {} was not noticed, {wait:.2} s into an answer, at {:.1} s", other.name, bench.conversation.device().now());
                    tally.missed.push(other.name.clone());
                }
            }
        } else if answered && rng.random_bool(0.1) {
            tally.doors += 1;
            sound = true;
            let loudness = rng.random_range(0.1..0.6f32);
            let door: Vec<f32> = (0..4000).map(|i| loudness * rng.random_range(-1.0..1.0f32) * (-(i as f32) / 800.0).exp()).collect();
            bench.conversation.device().say(&door);
        }
        if next.is_none() {
            bench.until(State::Idle, 30.0);
            let pause = rng.random_range(0.8..5.0);
            bench.run(pause);
        }
        for turn in std::mem::take(&mut bench.turns) {
            tally.turns += 1;
            let Some((question, into)) = open.pop_front() else {
                tally.unasked += 1;
                println!("  nobody said {:?}, {:.1} s; {:?}", turn.transcript, bench.conversation.device().now(), bench.states);
                continue;
            };
            tally.count(question, into, &turn.transcript);
        }
        tally.held += bench.states.iter().filter(|state| **state == State::Interrupted).count().saturating_sub(usize::from(sound));
        bench.states.clear();
        tally.endpoints.append(&mut bench.endpoints);
        let now = bench.conversation.device().now();
        if next.is_none() {
            // A turn gives back what it took when it is over; in one that is under way there is more.
            quiet = Some(memory());
            early = early.or(quiet.filter(|_| now >= 600.0));
        }
        if now as u64 / 600 > reported {
            reported = now as u64 / 600;
            let echo = bench.conversation.hearing().echo();
            let late = tally.caught.iter().filter(|seconds| **seconds > LATE).count();
            println!(
                "{:.0} min simulated in {:.0} s, {} questions, {late} of {} interruptions late, {} answers held, {:.1} MB, echo after {} ms, {:.1} dB of it gone",
                now / 60.0,
                started.elapsed().as_secs_f64(),
                tally.asked,
                tally.caught.len(),
                tally.held,
                quiet.unwrap_or_default(),
                echo.loop_delay_ms(),
                echo.enhancement_db()
            );
        }
    }
    let simulated = bench.conversation.device().now();
    let speed = simulated / started.elapsed().as_secs_f64();
    let share = |part: f64, whole: usize| 100.0 * part / whole.max(1) as f64;
    let percent = |part: usize, whole: usize| share(part as f64, whole);
    tally.caught.sort_by(f64::total_cmp);
    let caught = |share: f64| tally.caught.get((share * (tally.caught.len().max(1) - 1) as f64) as usize).copied().unwrap_or_default();
    let grown = early.zip(quiet).map(|(early, quiet): (f64, f64)| quiet - early);
    println!(
        "{:.0} min at {speed:.1} times real time; {} questions, {} answered, {} turns, {} doors, {} answers held for nothing",
        simulated / 60.0,
        tally.asked,
        tally.answered,
        tally.turns,
        tally.doors,
        tally.held
    );
    let (plain, into) = (tally.asked - tally.into, tally.into);
    println!(
        "understood: {:.1} % of {plain} (file mode {:.1} %), into an answer {:.1} % of {into} (file mode {:.1} %)",
        percent(tally.right, plain),
        share(tally.right_in_file_mode, plain),
        percent(tally.into_right, into),
        share(tally.into_right_in_file_mode, into)
    );
    tally.endpoints.sort_by(f64::total_cmp);
    println!("the end of a question is noticed after {:.0} ms (median)", tally.endpoints[tally.endpoints.len() / 2]);
    let in_time = tally.caught.iter().filter(|seconds| **seconds <= LATE).count();
    println!(
        "barge-in: {} times, median {:.3} s, 90 % {:.3} s, slowest {:.3} s; {in_time} within {LATE} s, {} of the others in a stall; missed {:?}",
        tally.caught.len(),
        caught(0.5),
        caught(0.9),
        caught(1.0),
        tally.stalled,
        tally.missed
    );
    println!("memory since the tenth minute: {grown:?} MB; {:?}", Duplex::counts(bench.conversation.device()));
    println!("{:?}; {} problems told, the last: {:?}", bench.conversation.timeouts(), bench.problems.len(), bench.problems.last());
    assert_eq!(bench.conversation.timeouts(), Default::default(), "no state was left by its timeout");
    assert!(tally.held * 50 <= tally.answered, "{} answers were held although nobody spoke", tally.held);
    assert_eq!(tally.unasked, 0, "turns that nobody asked for");
    let (right, in_file_mode) = (tally.right + tally.into_right, tally.right_in_file_mode + tally.into_right_in_file_mode);
    assert!(percent(right, tally.asked) + WORSE >= share(in_file_mode, tally.asked), "{right} understood, {in_file_mode} in file mode");
    assert!(percent(tally.right, plain) + WORSE >= share(tally.right_in_file_mode, plain));
    assert!(speed > 1.0 && tally.turns as f64 >= 300.0 * (simulated / 3600.0).floor(), "{} turns, {speed} times real time", tally.turns);
    assert!(grown.is_none_or(|grown| grown <= GROWTH), "memory grew by {grown:?} MB");
    assert!(tally.missed.is_empty(), "{} interruptions were missed", tally.missed.len());
    // Every one is the bar; the program itself is made to stall now and then, and a few voices begin too softly.
    assert!(in_time * 100 >= tally.caught.len() * 95, "{in_time} of {} interruptions in time", tally.caught.len());
}
