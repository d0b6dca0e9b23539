//! Is the question complete? What turn-taking asks the agent in a pause, on the shipped bundle.

use sa_device::pipeline::Agent;

use super::live::{agent, voice};

/// What the agent thinks after these samples and 300 ms of a quiet room; the question is thrown away.
fn ask(agent: &mut Agent, samples: &[f32]) -> f32 {
    let mut state = 5u32;
    let quiet = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) as f32 / 32_768.0 - 1.0) * 0.0007
    });
    let all: Vec<f32> = samples.iter().copied().chain(quiet.take(4800)).collect();
    agent.begin("a test").expect("begins");
    all.chunks(320).for_each(|piece| agent.push(piece, None).expect("hears"));
    let complete = agent.complete().expect("runs").expect("the bundle has transcripts").complete;
    agent.abandon().expect("forgets");
    complete
}

/// The sample questions, whole and cut in the softest moment near their middle: nearly all pairs are told apart, and a whole question
/// seems complete.
#[test]
fn a_question_that_breaks_off_does_not_seem_complete() {
    let mut agent = agent();
    agent.begin("silence").expect("begins");
    assert_eq!(agent.complete().expect("runs"), None, "nothing was heard");
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    for sample in sa_tests::samples().expect("the list of samples").iter().filter(|sample| sample.category != "nonspeech") {
        let voice = voice(&sample.name());
        let level = |at: usize| voice[at..at + 320].iter().map(|x| x * x).sum::<f32>();
        let middle = voice.len() / 2;
        let softest = (middle - 2400..middle + 2400).step_by(160).min_by(|a, b| level(*a).total_cmp(&level(*b))).expect("some");
        whole.push(ask(&mut agent, &voice));
        cut.push(ask(&mut agent, &voice[..softest]));
    }
    let mean = |all: &[f32]| all.iter().sum::<f32>() / all.len() as f32;
    let apart = whole.iter().flat_map(|whole| cut.iter().map(move |cut| whole > cut)).filter(|apart| *apart).count();
    let share = apart as f32 / (whole.len() * cut.len()) as f32;
    println!("whole {:.2}, cut {:.2}, told apart {:.1} %", mean(&whole), mean(&cut), share * 100.0);
    assert!(share > 0.9 && mean(&whole) > 0.8 && mean(&cut) < 0.6, "whole {whole:?}, cut {cut:?}");
}
