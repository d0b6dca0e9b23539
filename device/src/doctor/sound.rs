//! Microphone and speaker tried out together: silence, three chirps, and a while of nothing but counting.
//!
//! A chirp (a tone that rises through the speech band) stands out of any noise once it is correlated with itself: where the
//! correlation of the microphone with what was played is greatest, there is the loop's delay, and its height tells the echo's level.

use std::f32::consts::TAU;

use serde::Serialize;

use super::{Finding, Level};
use crate::audio::live::{Counts, Duplex, FRAME, FRAMES_PER_SECOND, Frame};
use crate::audio::{AudioError, SAMPLE_RATE};

/// Seconds until the devices run smoothly, and of silence after that.
const SETTLE: f64 = 2.0;
const QUIET: f64 = 2.0;
/// Chirps, seconds of each, and seconds from one to the next: the echo has faded by then.
const CHIRPS: usize = 3;
const CHIRP: f64 = 0.3;
const BETWEEN: f64 = 1.5;
/// From low to high, in Hz; amplitude.
const BAND: (f32, f32) = (300.0, 5000.0);
const HEIGHT: f32 = 0.25;
/// The longest delay that is looked for, in samples: Bluetooth has a quarter of a second.
const LONGEST: usize = SAMPLE_RATE as usize * 8 / 10;
/// A correlation below this share of a perfect one is no echo.
const FOUND: f32 = 0.15;
/// The level of silence, for logarithms.
const SILENCE: f32 = 1e-12;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sound {
    /// Level of the silent room in dB below full scale: the middle of all frames.
    pub noise_dbfs: f32,
    /// Share of samples of the microphone at full scale.
    pub clipped: f64,
    /// From what is played to what is heard of it, in milliseconds, for each chirp that was found.
    pub delays_ms: Vec<f64>,
    /// Level of the echo against what was played, in dB.
    pub echo_db: Option<f32>,
    /// Seconds that it took.
    pub seconds: f64,
    /// What was lost, made up or reported meanwhile, and how far the clocks are apart.
    pub counts: Counts,
}

/// Measures for `seconds` (at least as long as the chirps need); `progress` hears of seconds done and of all.
///
/// # Errors
/// Those of the device.
pub fn measure(device: &mut dyn Duplex, seconds: f64, progress: &mut dyn FnMut(f64, f64)) -> Result<Sound, AudioError> {
    let chirps_end = SETTLE + QUIET + CHIRPS as f64 * BETWEEN;
    let seconds = seconds.max(chirps_end);
    let chirp = chirp();
    let (mut heard, mut played) = (Vec::<f32>::new(), Vec::<f32>::new());
    let mut microphone: Frame = [0.0; FRAME];
    let mut waiting: &[f32] = &[];
    let before = device.counts();
    let frames = (seconds * f64::from(FRAMES_PER_SECOND)) as usize;
    let mut begun = 0;
    for i in 0..frames {
        let at = i as f64 / f64::from(FRAMES_PER_SECOND);
        device.listen(&mut microphone)?;
        if begun < CHIRPS && at >= SETTLE + QUIET + begun as f64 * BETWEEN {
            waiting = &chirp;
            begun += 1;
        }
        let mut speaker: Frame = [0.0; FRAME];
        if device.room() {
            let (now, later) = waiting.split_at(waiting.len().min(FRAME));
            speaker[..now.len()].copy_from_slice(now);
            waiting = later;
            device.play(&speaker);
        }
        heard.extend_from_slice(&microphone);
        played.extend_from_slice(&speaker);
        if i % FRAMES_PER_SECOND as usize == 0 {
            progress(at, seconds);
        }
    }
    let samples = |seconds: f64| (seconds * f64::from(SAMPLE_RATE)) as usize;
    let quiet = &heard[samples(SETTLE)..samples(SETTLE + QUIET)];
    let mut levels: Vec<f32> = quiet.chunks(FRAME).map(power).collect();
    levels.sort_by(f32::total_cmp);
    let noise = levels[levels.len() / 2];
    let mut echoes = Vec::new();
    for i in 0..CHIRPS {
        // It was played from where it was put in, later if there was no room.
        let from = samples(SETTLE + QUIET + i as f64 * BETWEEN);
        let Some(start) = played[from..].iter().position(|x| *x != 0.0).map(|offset| from + offset) else { continue };
        echoes.extend(echo(&chirp, &heard[start..], noise));
    }
    let delays_ms = echoes.iter().map(|(delay, _)| *delay as f64 / f64::from(SAMPLE_RATE) * 1e3).collect();
    let echo_db = (!echoes.is_empty()).then(|| echoes.iter().map(|(_, level)| level).sum::<f32>() / echoes.len() as f32);
    let clipped = heard.iter().filter(|x| x.abs() >= 0.999).count() as f64 / heard.len().max(1) as f64;
    let counts = device.counts().since(&before);
    Ok(Sound { noise_dbfs: decibel(noise), clipped, delays_ms, echo_db, seconds, counts })
}

/// A tone that rises, faded in and out.
fn chirp() -> Vec<f32> {
    let length = (CHIRP * f64::from(SAMPLE_RATE)) as usize;
    let rate = SAMPLE_RATE as f32;
    (0..length)
        .map(|i| {
            let (time, whole) = (i as f32 / rate, length as f32 / rate);
            let phase = TAU * (BAND.0 * time + (BAND.1 - BAND.0) * time * time / (2.0 * whole));
            let edge = (i.min(length - 1 - i) as f32 / (0.01 * rate)).min(1.0);
            HEIGHT * edge * phase.sin()
        })
        .collect()
}

/// Delay in samples and level in dB of the chirp in what was heard since it was played; none if it is not in there.
fn echo(chirp: &[f32], heard: &[f32], noise: f32) -> Option<(usize, f32)> {
    let lags = LONGEST.min(heard.len().checked_sub(chirp.len())?);
    let correlation = |lag: usize| chirp.iter().zip(&heard[lag..]).map(|(a, b)| a * b).sum::<f32>();
    let (lag, height) = (0..=lags).map(|lag| (lag, correlation(lag).abs())).max_by(|a, b| a.1.total_cmp(&b.1))?;
    let own: f32 = chirp.iter().map(|x| x * x).sum();
    let there: f32 = heard[lag..lag + chirp.len()].iter().map(|x| x * x).sum();
    if height < FOUND * (own * there).sqrt() {
        return None;
    }
    // The room's answer to it is part of the echo.
    let end = (lag + chirp.len() + SAMPLE_RATE as usize / 4).min(heard.len());
    let energy = heard[lag..end].iter().map(|x| x * x).sum::<f32>() - noise * (end - lag) as f32;
    Some((lag, 10.0 * (energy.max(SILENCE) / own).log10()))
}

fn power(samples: &[f32]) -> f32 {
    samples.iter().map(|x| x * x).sum::<f32>() / samples.len().max(1) as f32
}

fn decibel(power: f32) -> f32 {
    10.0 * power.max(SILENCE).log10()
}

impl Sound {
    /// What it means.
    pub fn findings(&self) -> Vec<Finding> {
        let mut all = vec![self.noise(), self.losses(), self.drift()];
        if self.clipped > 1e-4 {
            let found = format!("{:.2} % of the microphone's samples are at full scale", self.clipped * 100.0);
            all.push(Finding::bad(Level::Warning, "microphone level", found, "turn the microphone's gain down (`alsamixer`, F4)"));
        }
        all.extend(self.echo());
        all
    }

    fn noise(&self) -> Finding {
        let (what, found) = ("noise of the room", format!("{:.0} dB below full scale", -self.noise_dbfs));
        if self.noise_dbfs < -100.0 {
            let cure = "is the microphone muted, or is it the right one? `sa-agent devices`, `alsamixer` (F4)";
            return Finding::bad(Level::Problem, what, format!("{found}: nothing at all is heard"), cure);
        }
        if self.noise_dbfs > -40.0 {
            let cure = "bring the microphone nearer and away from fans; questions are heard worse than in the figures of the README";
            return Finding::bad(Level::Warning, what, found, cure);
        }
        Finding::fine(what, found)
    }

    fn losses(&self) -> Finding {
        let Counts { dropped, invented, mic_missed, speaker_missed, xruns, errors, absent, mic_high, speaker_high, realtime, .. } =
            self.counts;
        let found = format!(
            "in {:.0} s: {dropped} samples of the microphone lost, {invented} of the speaker made up; {mic_missed} and {speaker_missed} lost by the \
             devices, {xruns} underruns and {errors} errors reported; at most {mic_high} and {speaker_high} waited; {realtime} of 2 audio \
             threads with realtime priority",
            self.seconds
        );
        if absent > 0 {
            let cure = "look at the cable and the power supply; `dmesg` says what the kernel saw";
            return Finding::bad(Level::Problem, "lost sound", format!("{found}; the device went away"), cure);
        }
        if dropped + invented + mic_missed + speaker_missed + xruns + errors > 0 {
            let cure =
                "close other programs; give it realtime priority (see below); on a Pi, use a USB port that is not shared with a disk";
            return Finding::bad(Level::Warning, "lost sound", found, cure);
        }
        Finding::fine("lost sound", found)
    }

    fn drift(&self) -> Finding {
        let found = format!("the speaker's runs {:+.0} ppm against the microphone's", self.counts.drift_ppm);
        if self.counts.drift_ppm.abs() > 1000.0 {
            let cure = "more than the agent steers out for long: use one sound card for both, or a sound server";
            return Finding::bad(Level::Warning, "clocks", found, cure);
        }
        Finding::fine("clocks", found)
    }

    fn echo(&self) -> Vec<Finding> {
        let Some(level) = self.echo_db else {
            let found = "the chirps were not heard";
            let cure = "right with headphones; else turn the speaker up, and see with `sa-agent devices` whether it is the right one";
            return vec![Finding::bad(Level::Warning, "echo", found, cure)];
        };
        let (least, most) = self.delays_ms.iter().fold((f64::MAX, 0.0f64), |(least, most), ms| (least.min(*ms), most.max(*ms)));
        let delay = format!("{least:.0} ms from the program to the microphone");
        let delay = if most - least > 2.0 {
            let cure = "echo cancellation needs a delay that stays: use one sound card for both, wired, not Bluetooth";
            Finding::bad(Level::Warning, "loop delay", format!("{delay}, but {most:.0} ms another time"), cure)
        } else if least > 250.0 {
            Finding::bad(Level::Warning, "loop delay", delay, "too late to be cancelled: use a wired speaker")
        } else {
            Finding::fine("loop delay", delay)
        };
        let found = format!("{level:+.0} dB against what is played");
        let echo = if level > 6.0 {
            let cure = "turn the speaker or the microphone down, or move them apart: interruptions are hard to hear under this";
            Finding::bad(Level::Warning, "echo", found, cure)
        } else {
            Finding::fine("echo", found)
        };
        vec![delay, echo]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::live::{Room, SimDevice};

    fn sound(room: Room) -> Sound {
        let mut device = SimDevice::new(room).expect("usual rates");
        measure(&mut device, 10.0, &mut |_, _| {}).expect("the simulation does not fail")
    }

    fn level_of(findings: &[Finding], what: &str) -> Level {
        findings.iter().find(|finding| finding.what == what).unwrap_or_else(|| panic!("nothing of {what}: {findings:?}")).level
    }

    #[test]
    fn the_room_is_measured_as_it_was_made() {
        let near = sound(Room { stall_every: f64::INFINITY, ..Room::default() });
        let far = sound(Room { stall_every: f64::INFINITY, delay: 0.08, echo_db: -20.0, noise_dbfs: -55.0, seed: 4, ..Room::default() });
        println!("{near:?}\n{far:?}");
        assert_eq!((near.delays_ms.len(), far.delays_ms.len()), (3, 3));
        for (a, b) in near.delays_ms.iter().zip(&far.delays_ms) {
            assert!((b - a - 50.0).abs() < 1.0, "50 ms more: {a} and {b}");
        }
        assert!((near.echo_db.expect("heard") + 8.0).abs() < 1.5 && (far.echo_db.expect("heard") + 20.0).abs() < 1.5);
        assert!((near.noise_dbfs + 65.0).abs() < 3.0 && (far.noise_dbfs + 55.0).abs() < 3.0);
        assert!((near.counts.drift_ppm - 100.0).abs() < 60.0);
        let findings = near.findings();
        assert!(findings.iter().all(|finding| finding.level == Level::Fine), "{findings:?}");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let mute = sound(Room { noise_dbfs: -140.0, echo_db: -140.0, ..Room::default() }).findings();
        assert_eq!((level_of(&mute, "noise of the room"), level_of(&mute, "echo")), (Level::Problem, Level::Warning));
        let mut overrun = sound(Room { stall_every: f64::INFINITY, ..Room::default() });
        overrun.counts.mic_missed = 4800;
        let lost = overrun.findings().into_iter().find(|finding| finding.what == "lost sound").expect("looked at");
        assert!(lost.level == Level::Warning && lost.found.contains("4800 and 0 lost by the devices"), "{lost:?}");
        let slow = sound(Room { stall_every: 1.0, ..Room::default() }).findings();
        assert_eq!(level_of(&slow, "lost sound"), Level::Warning);
        assert!(slow.iter().all(|finding| (finding.level == Level::Fine) == finding.cure.is_none()));
    }
}
