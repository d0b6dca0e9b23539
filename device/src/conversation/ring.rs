//! The sound of a timer or an alarm: two short tones a second, until somebody stops it.

use std::f32::consts::TAU;

use crate::audio::SAMPLE_RATE;
use crate::audio::live::Frame;

/// Hertz of the two tones, a major third apart.
const TONES: [f32; 2] = [880.0, 1108.7];
/// Samples of a tone, of the fade at its ends, and from one pair to the next.
const TONE: usize = SAMPLE_RATE as usize * 15 / 100;
const FADE: usize = SAMPLE_RATE as usize / 100;
const PERIOD: usize = SAMPLE_RATE as usize;
/// Peak, of full scale.
const LEVEL: f32 = 0.25;

/// Makes the sound, 10 ms at a time.
#[derive(Debug, Default)]
pub struct Ringer {
    /// Sample of the period; a tone that has begun is not cut off with a click.
    at: usize,
}

impl Ringer {
    /// Fills `out` with the next samples if it is to ring, or rings out; false where there is nothing to hear.
    pub fn frame(&mut self, on: bool, out: &mut Frame) -> bool {
        if !on && self.at == 0 {
            return false;
        }
        for sample in out {
            let within = self.at % TONE;
            *sample = match TONES.get(self.at / TONE) {
                Some(tone) => {
                    let fade = within.min(TONE - 1 - within).min(FADE) as f32 / FADE as f32;
                    LEVEL * fade * (TAU * tone * within as f32 / SAMPLE_RATE as f32).sin()
                }
                None => 0.0,
            };
            self.at += 1;
            if self.at == PERIOD || (!on && self.at >= TONE && within == TONE - 1) {
                self.at = 0;
                if !on {
                    return true;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::live::FRAME;

    #[test]
    fn it_rings_once_a_second_and_ends_without_a_click() {
        let mut ringer = Ringer::default();
        let mut frame: Frame = [0.0; FRAME];
        assert!(!ringer.frame(false, &mut frame));
        let mut sound = Vec::new();
        for i in 0..300 {
            frame.fill(0.0);
            let on = i < 205; // in the middle of a tone
            if ringer.frame(on, &mut frame) {
                assert!(i < 235, "it does not end");
            }
            sound.extend(frame);
        }
        let loud = |from: usize, to: usize| sound[from..to].iter().any(|x| x.abs() > 0.2);
        assert!(loud(0, 4800) && !loud(4800, 16_000) && loud(16_000, 20_800) && loud(32_000, 34_000));
        let step = sound.windows(2).fold(0.0f32, |most, pair| most.max((pair[1] - pair[0]).abs()));
        assert!(step < 0.12, "a click of {step}");
        assert!(sound[40_000..].iter().all(|x| *x == 0.0));
    }
}
