//! Streaming equals offline, reset equals fresh, caches are a matter of length: on each engine.

use sa_device::engine::Engine;
use sa_device::stage::{Decoder, Lm, LmInput, StageError, Tokenizer};

use super::tiny::{CONTEXT, K, Tiny, bundle, noise};

on_each_engine!(
    units_do_not_depend_on_how_audio_is_cut,
    late_units_are_waited_for,
    speech_does_not_depend_on_how_units_are_cut,
    the_decoder_looks_two_units_ahead,
    the_cache_is_a_matter_of_length,
    groups_of_any_size,
);

fn units_do_not_depend_on_how_audio_is_cut(engine: &dyn Engine) {
    let (_dir, bundle) = bundle(&Tiny::default());
    let mut tokenizer = Tokenizer::open(engine, &bundle).expect("loads");
    let audio = noise(17_000);
    let whole = tokenizer.forward(&audio).expect("runs");
    assert_eq!(whole.len(), 17_000usize.div_ceil(640));
    assert!(whole.iter().any(|unit| *unit != whole[0]), "the units say something");
    for size in [1, 2, 3, 97, 320, 640, 5119, 5120, 5121, 100_000] {
        let mut units = Vec::new();
        for piece in audio.chunks(size) {
            tokenizer.step(piece, &mut units).expect("runs");
        }
        tokenizer.flush(&mut units).expect("runs");
        assert_eq!(units, whole, "pieces of {size}");
    }
    let mut units = Vec::new();
    tokenizer.step(&audio[..7000], &mut units).expect("runs");
    assert_eq!(tokenizer.forward(&audio).expect("runs"), whole, "nothing of the audio before is left");
    assert!(tokenizer.forward(&[]).expect("runs").is_empty());
}

/// A tokenizer that is three units late gives three more, of the silence behind the end; moved back they are those of the audio.
fn late_units_are_waited_for(engine: &dyn Engine) {
    let (_dir, prompt) = bundle(&Tiny::default());
    let (_other, late) = bundle(&Tiny { late: 3, ..Tiny::default() });
    let mut prompt = Tokenizer::open(engine, &prompt).expect("loads");
    let mut late = Tokenizer::open(engine, &late).expect("loads");
    for samples in [1, 640, 5120 - 3 * 640, 5120, 17_000] {
        let mut audio = noise(samples);
        let mut units = Vec::new();
        late.step(&audio, &mut units).expect("runs");
        late.flush(&mut units).expect("runs");
        let moved = late.forward(&audio).expect("runs");
        assert_eq!((units.len(), &units[3..]), (samples.div_ceil(640) + 3, &moved[..]), "{samples} samples");
        // The same graph on the same audio, with the silence behind it.
        audio.resize(samples.next_multiple_of(640) + 3 * 640, 0.0);
        assert_eq!(units, prompt.forward(&audio).expect("runs"), "{samples} samples");
    }
    assert!(late.forward(&[]).expect("runs").is_empty());
}

fn speech_does_not_depend_on_how_units_are_cut(engine: &dyn Engine) {
    let (_dir, bundle) = bundle(&Tiny::default());
    let mut decoder = Decoder::open(engine, &bundle).expect("loads");
    for count in [0usize, 1, 2, 3, 8, 31] {
        let units: Vec<u32> = (0..count as u32).map(|i| (i * 5 + i * i) % K as u32).collect();
        let whole = decoder.forward(&units).expect("runs");
        assert_eq!(whole.len(), count * 640);
        for size in [1, 2, 3, 7] {
            let mut samples = Vec::new();
            for piece in units.chunks(size) {
                decoder.step(piece, &mut samples).expect("runs");
            }
            decoder.flush(&mut samples).expect("runs");
            assert_eq!(samples, whole, "{count} units in pieces of {size}");
        }
        let mut fresh = Decoder::open(engine, &bundle).expect("loads");
        assert_eq!(fresh.forward(&units).expect("runs"), whole, "used equals fresh");
    }
    let error = decoder.step(&[K as u32 + 1], &mut Vec::new()).expect_err("no such unit");
    assert!(matches!(error, StageError::Range { what: "unit", .. }));
}

/// The look-ahead is two units: a change there changes the sound two units before, and none earlier.
fn the_decoder_looks_two_units_ahead(engine: &dyn Engine) {
    let (_dir, bundle) = bundle(&Tiny::default());
    let mut decoder = Decoder::open(engine, &bundle).expect("loads");
    let mut units = vec![3u32; 12];
    let before = decoder.forward(&units).expect("runs");
    units[9] = 5;
    let after = decoder.forward(&units).expect("runs");
    let first = before.iter().zip(&after).position(|(a, b)| a != b).expect("it matters");
    // The window of a frame begins 240 samples before the frame.
    assert!((7 * 640 - 240..7 * 640 + 160).contains(&first), "the first difference is at sample {first}");
}

fn the_cache_is_a_matter_of_length(engine: &dyn Engine) {
    let (_dir, bundle) = bundle(&Tiny { script: &[], ..Tiny::default() });
    let mut lm = Lm::open(engine, &bundle).expect("loads");
    let sequence = |lm: &mut Lm, tail: u32| {
        lm.step(LmInput::Token(1)).expect("runs");
        lm.step(LmInput::Group(&[1, 2, 3, 4])).expect("runs");
        lm.step(LmInput::Group(&[5])).expect("runs");
        lm.step(LmInput::Token(tail)).expect("runs");
        lm.logits().expect("was run").to_vec()
    };
    let first = sequence(&mut lm, 20);
    // Something else, forgotten again, leaves no trace.
    for token in [7, 8, 9] {
        lm.step(LmInput::Token(token)).expect("runs");
    }
    lm.truncate(3);
    assert_eq!(lm.position(), 3);
    lm.step(LmInput::Token(20)).expect("runs");
    assert_eq!(lm.logits().expect("was run"), first);
    lm.reset().expect("runs");
    assert_eq!(sequence(&mut lm, 20), first, "reset equals fresh");
    lm.reset().expect("runs");
    assert_ne!(sequence(&mut lm, 21), first);
    lm.truncate(0);
    lm.step(LmInput::Token(20)).expect("runs");
    assert_ne!(lm.logits().expect("was run"), first, "what was read before matters");
    lm.truncate(0);
    for _ in 0..CONTEXT {
        lm.step(LmInput::Token(3)).expect("runs");
    }
    assert!(matches!(lm.step(LmInput::Token(3)), Err(StageError::ContextFull { context: CONTEXT })));
    assert!(matches!(lm.step(LmInput::Token(9999)), Err(StageError::Range { what: "token", .. })));
    assert!(lm.step(LmInput::Group(&[0, 0, 0, 0, 0])).is_err(), "more units than a group has");
}

fn groups_of_any_size(engine: &dyn Engine) {
    for group in [1, 3, 5] {
        let (_dir, bundle) = bundle(&Tiny { group, ..Tiny::default() });
        let mut lm = Lm::open(engine, &bundle).expect("loads");
        lm.step(LmInput::Token(1)).expect("runs");
        let mut units = Vec::new();
        lm.next_group(&mut units).expect("runs");
        assert_eq!(units.len(), group);
        assert!(units.iter().all(|unit| *unit <= K as u32));
    }
}
