//! Its own voice in a room is not the user's; the user's over it is.

use std::path::Path;

use super::*;
use crate::audio::live::{Duplex, Room, SimDevice};
use crate::audio::read_wav;

fn voice(name: &str) -> Vec<f32> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/nano/samples");
    read_wav(&folder.join(format!("{name}.wav")), 30.0).expect("a sample question")
}

/// Plays `speech`; the user says `user` at frame `at`. Returns the changes with the frame that they came in.
fn play(seed: u64, speech: &[f32], user: Option<(usize, &[f32])>) -> (Hearing, Vec<(usize, Change)>) {
    let mut device = SimDevice::new(Room { seed, stall_every: f64::INFINITY, ..Room::default() }).expect("usual rates");
    let mut hearing = Hearing::new(ActivitySettings::default());
    let mut changes = Vec::new();
    let mut frames = speech.chunks_exact(FRAME);
    for i in 0..speech.len() / FRAME + 100 {
        if let Some((_, samples)) = user.filter(|(at, _)| *at == i) {
            device.say(samples);
        }
        let mut microphone = [0.0; FRAME];
        device.listen(&mut microphone).expect("never fails");
        let mut speaker = [0.0; FRAME];
        if device.room() {
            if let Some(frame) = frames.next() {
                speaker.copy_from_slice(frame);
            }
            device.play(&speaker);
        }
        changes.extend(hearing.step(&microphone, &speaker).map(|change| (i, change)));
    }
    (hearing, changes)
}

/// Seven voices with pauses between them.
fn voices() -> Vec<f32> {
    let names = ["10-facts", "16-repeat", "03-arithmetic", "19-time", "22-thermostat", "27-thermostat", "20-timers"];
    names.into_iter().flat_map(|name| voice(name).into_iter().chain([0.0; 8000])).collect()
}

#[test]
fn it_does_not_hear_itself_and_hears_who_speaks_over_it() {
    let mut speech = vec![0.0; 16_000];
    speech.extend(voices());
    let user = voice("12-locks");
    let onset = user.chunks(FRAME).position(|frame| frame.iter().any(|x| x.abs() > 0.03)).expect("not silent") * FRAME;
    let (mut alone, mut suspected, mut late) = (0, 0, 0);
    for seed in [1, 2] {
        let (hearing, changes) = play(seed, &speech, None);
        println!("seed {seed}: alone {changes:?}, loop {} ms, {:.0} dB", hearing.echo().loop_delay_ms(), hearing.echo().enhancement_db());
        alone += changes.iter().filter(|(_, change)| matches!(change, Change::Began(_))).count();
        suspected += changes.iter().filter(|(_, change)| matches!(change, Change::Suspected(_))).count();
        // In its first seconds of speech ever the canceller still learns the room.
        for (at, most) in [(250, 500), (660, 150), (1250, 150)] {
            let (_, changes) = play(seed, &speech, Some((at, &user[onset..])));
            let began = changes.iter().find(|(frame, change)| *frame >= at && !matches!(change, Change::Ended(_)));
            let wait = began.map(|(frame, _)| (frame - at) * 10);
            println!("seed {seed}: a voice over it, after {} s, noticed after {wait:?} ms", at / 100 - 1);
            late += usize::from(wait.is_none_or(|ms| ms > most));
        }
    }
    assert_eq!(alone, 0, "it hears itself");
    // Seven different voices for its own, in the first half minute that the canceller hears of the room: the hardest there is.
    assert!(suspected <= 14, "it holds its own answers {suspected} times");
    assert_eq!(late, 0, "voices noticed too late, or never");
}

/// A timer that has rung for half a minute: the echo of the next answer is as weak as before, not as strong as in a room never heard.
#[test]
fn tones_do_not_make_it_forget_the_room() {
    let (speech, answer, rings) = (voices(), voice("12-locks"), crate::conversation::chime(30));
    for seed in [1, 2] {
        let mut device = SimDevice::new(Room { seed, stall_every: f64::INFINITY, ..Room::default() }).expect("usual rates");
        let mut front = Front::default();
        // By how many dB the echo is made weaker.
        let gone = [(&speech, false), (&answer, false), (&rings, true), (&answer, false)].map(|(sound, tones)| {
            let (mut heard, mut left) = (0.0f32, 0.0f32);
            for played in sound.chunks_exact(FRAME).map(Some).chain([None; 50]) {
                let mut microphone = [0.0; FRAME];
                device.listen(&mut microphone).expect("never fails");
                let mut speaker = [0.0; FRAME];
                assert!(device.room(), "it does not stand still");
                if let Some(played) = played {
                    speaker.copy_from_slice(played);
                    if tones {
                        front.tones();
                    }
                }
                device.play(&speaker);
                let signals = front.step(&microphone, &speaker);
                heard += signals.microphone.iter().map(|x| x * x).sum::<f32>();
                left += signals.open.iter().map(|x| x * x).sum::<f32>();
            }
            10.0 * (heard / left).log10()
        });
        println!("seed {seed}: {gone:.1?} dB");
        assert!(gone[3] > 8.0 && gone[3] > gone[1] - 4.0, "seed {seed}: {gone:.1?} dB");
    }
}

#[test]
fn what_was_heard_can_be_heard_again() {
    let mut hearing = Hearing::new(ActivitySettings::default());
    for i in 0..5000u32 {
        hearing.step(&[(i % 100) as f32 / 1000.0; FRAME], &[0.0; FRAME]);
    }
    assert_eq!(hearing.now(), Duration::from_secs(50));
    let last = hearing.since(hearing.now() - Duration::from_millis(30));
    assert_eq!(last.len(), 480);
    // Half a block late: the newest samples are those of the frame before.
    assert_eq!((last[0], last[Echo::delay()], last[479]), (0.096, 0.097, 0.099));
    assert_eq!(hearing.since(Duration::ZERO).len(), MEMORY * 16_000, "it does not grow");
    assert!(!hearing.echoes());
    hearing.step(&[0.0; FRAME], &[0.5; FRAME]);
    assert!(hearing.echoes());
}
