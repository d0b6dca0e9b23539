//! Simulated rooms in which the user speaks over the agent: what its network is trained on, and how good it is.
//!
//! ```text
//! rooms CORPUS --output DIR --rooms 240              # made for `sa-align overlap --corpus DIR --output RUN`
//! rooms CORPUS --split test --rooms 80               # measures the hearing of this program
//! ```
//! A room is a minute and a half: questions, answers, the next question into some answers, noises into others. Rooms differ in echo, reverberation, noise,
//! distance, the loudspeaker's distortion and the clocks; `--usual` makes all like that of the simulated conversations.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sa_device::audio::live::{Duplex, FRAME, Room, SimDevice};
use sa_device::hearing::{ActivitySettings, Bands, FEATURES, Front, Hearing, Overlap};
use sa_models::corpus::{Corpus, Split, augment};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

/// Frames of a room.
const LENGTH: usize = 9000;
/// A frame of a voice is loud from this share of the voice's level on.
const LOUD: f32 = 0.05;
/// A sample that is an onset, at the corpus' own loudness.
const ONSET: f32 = 0.03;
/// Frames after the user or a door in which a held answer is no false alarm.
const AFTER: usize = 120;
/// Frames until an interruption that was not noticed is missed.
const MISSED: usize = 100;
/// Frames from noticing to a speaker that is silent, about: what the device has been given in advance, and the fade.
const SILENCE: usize = 6;

#[derive(Parser)]
struct Cli {
    corpus: PathBuf,
    /// Write the rooms here; without it they are measured only
    #[arg(long)]
    output: Option<PathBuf>,
    #[arg(long, default_value = "train")]
    split: String,
    #[arg(long, default_value_t = 80)]
    rooms: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// All rooms as in the simulated conversations
    #[arg(long)]
    usual: bool,
    /// Measure these weights instead of the program's own: the `model.safetensors` of `sa-align overlap`
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Instead of the default
    #[arg(long)]
    over_score: Option<f32>,
}

/// What was measured.
#[derive(Default)]
struct Tally {
    /// Frames from each onset to where it is noticed.
    delays: Vec<usize>,
    answers: usize,
    held: usize,
}

/// Of each frame: is the user silent (0), between two sounds (1), or loud (2)?
#[derive(Default)]
struct Truth {
    voice: Vec<u8>,
    onsets: Vec<usize>,
    /// Doors and the like.
    noises: Vec<usize>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let corpus = Corpus::open(&cli.corpus)?;
    let split = match cli.split.as_str() {
        "train" => Split::Train,
        "test" => Split::Test,
        other => anyhow::bail!("--split {other}: it is train or test"),
    };
    let mut settings = ActivitySettings::default();
    settings.over_score = cli.over_score.unwrap_or(settings.over_score);
    if let Some(folder) = &cli.output {
        std::fs::create_dir_all(folder)?;
    }
    let weights = cli.weights.as_ref().map(std::fs::read).transpose()?;
    let mut tally = Tally::default();
    for number in 0..cli.rooms {
        let path = cli.output.as_ref().map(|folder| folder.join(format!("room-{:03}-{number:04}.safetensors", cli.seed)));
        if path.as_ref().is_some_and(|path| path.exists()) {
            continue;
        }
        // Each by itself, so that the work can be stopped and goes on.
        let mut rng = ChaCha8Rng::seed_from_u64(cli.seed.wrapping_mul(1 << 20) + number as u64);
        let (room, user_db) = if cli.usual { (Room { seed: rng.random(), ..Room::default() }, 0.0) } else { any_room(&mut rng)? };
        let mut scene = Scene::new(
            room,
            user_db,
            match &weights {
                _ if path.is_some() => None,
                Some(bytes) => Some(Hearing::with(settings.clone(), Overlap::read(bytes).map_err(anyhow::Error::msg)?)),
                None => Some(Hearing::new(settings.clone())),
            },
        )?;
        scene.play(&corpus, split, &mut rng)?;
        match path {
            Some(path) => scene.write(&path)?,
            None => scene.measure(&mut tally),
        }
        eprint!("\r{} of {} rooms", number + 1, cli.rooms);
    }
    eprintln!();
    tally.delays.sort_unstable();
    let late = |frames: usize| {
        100.0 * tally.delays.iter().filter(|delay| **delay + SILENCE > frames).count() as f64 / tally.delays.len().max(1) as f64
    };
    let at = |share: f64| {
        tally.delays.get((share * tally.delays.len().max(1) as f64) as usize).or(tally.delays.last()).map_or(0, |delay| delay * 10)
    };
    if cli.output.is_some() {
        return Ok(());
    }
    println!(
        "{}",
        json!({ "interruptions": tally.delays.len(), "noticed_ms": { "median": at(0.5), "90": at(0.9), "99": at(0.99) },
            "later_than_200_ms_percent": late(20), "missed_percent": late(MISSED), "answers": tally.answers, "held_for_nothing": tally.held })
    );
    Ok(())
}

/// A room that somebody may live in, and by how many dB the user speaks louder than usual.
fn any_room(rng: &mut ChaCha8Rng) -> Result<(Room, f32)> {
    let rate = |rng: &mut ChaCha8Rng, rates: &[u32]| rates.choose(rng).copied().context("there are rates");
    let room = Room {
        seed: rng.random(),
        mic_rate: rate(rng, &[16_000, 44_100, 48_000])?,
        speaker_rate: rate(rng, &[22_050, 44_100, 48_000])?,
        drift_ppm: rng.random_range(-200.0..200.0),
        echo_db: rng.random_range(-20.0..2.0),
        reverberation: rng.random_range(0.08..0.5),
        delay: rng.random_range(0.01..0.12),
        noise_dbfs: rng.random_range(-75.0..-45.0),
        distortion: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.3..3.0) },
        stall_every: if rng.random_bool(0.5) { f64::INFINITY } else { 20.0 },
        ..Room::default()
    };
    Ok((room, rng.random_range(-12.0..4.0)))
}

/// A room while it is played.
struct Scene {
    device: SimDevice,
    /// What is measured; none while rooms are written.
    hearing: Option<Hearing>,
    front: Front,
    bands: Bands,
    user_db: f32,
    usual: bool,
    truth: Truth,
    features: Vec<f32>,
    echo: Vec<u8>,
    /// Did the hearing notice somebody over the agent?
    noticed: Vec<bool>,
}

impl Scene {
    fn new(room: Room, user_db: f32, hearing: Option<Hearing>) -> Result<Self> {
        let usual = user_db == 0.0;
        let (front, bands) = (Front::default(), Bands::default());
        let (truth, features, echo, noticed) = (Truth::default(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { device: SimDevice::new(room)?, hearing, front, bands, user_db, usual, truth, features, echo, noticed })
    }

    /// The period of the microphone that comes next: its frame has that number.
    fn now(&self) -> usize {
        (self.device.now() * 100.0).round() as usize
    }

    /// The user says something from its first loud sound on; returns when that ends.
    fn say(&mut self, mut voice: Vec<f32>, rng: &mut ChaCha8Rng) -> usize {
        let gain = 10f32.powf((self.user_db + if self.usual { 0.0 } else { rng.random_range(-3.0..3.0) }) / 20.0);
        let onset = voice.chunks(FRAME).position(|chunk| chunk.iter().any(|x| x.abs() > ONSET)).unwrap_or(0);
        voice.drain(..onset * FRAME);
        voice.iter_mut().for_each(|sample| *sample *= gain);
        self.device.say(&voice);
        let (from, level) = (self.now(), augment::level(&voice).sqrt());
        let end = from + voice.len().div_ceil(FRAME);
        self.truth.voice.resize(self.truth.voice.len().max(end), 0);
        for (slot, frame) in self.truth.voice[from..].iter_mut().zip(voice.chunks(FRAME)) {
            let rms = (frame.iter().map(|x| x * x).sum::<f32>() / frame.len() as f32).sqrt();
            *slot = if rms > LOUD * level { 2 } else { 1 };
        }
        end
    }

    /// A cough, a door, a click.
    fn bang(&mut self, rng: &mut ChaCha8Rng) {
        let (height, length, fade) = (rng.random_range(0.1..0.6f32), rng.random_range(500..6000), rng.random_range(200.0..1500.0f32));
        // Duller than a hiss, which begins many words and is to be noticed.
        let (dull, mut low) = (rng.random_range(0.05..0.4f32), 0.0);
        let sound: Vec<f32> = (0..length)
            .map(|i| {
                low += dull * (rng.random_range(-1.0..1.0f32) - low);
                height * low * (-(i as f32) / fade).exp()
            })
            .collect();
        self.device.say(&sound);
        self.truth.noises.push(self.now());
    }

    fn play(&mut self, corpus: &Corpus, split: Split, rng: &mut ChaCha8Rng) -> Result<()> {
        let questions: Vec<_> = corpus.questions(split).iter().filter(|question| !question.text.is_empty()).collect();
        let replies = corpus.replies(split);
        let question = |rng: &mut ChaCha8Rng| -> Result<Vec<f32>> { Ok(corpus.audio(questions.choose(rng).context("no questions")?)?) };
        // An agent may have any voice: what tells it from the user must not be how it sounds.
        let own = self.hearing.is_some() || rng.random_bool(0.5);
        let reply = |rng: &mut ChaCha8Rng| -> Result<Vec<f32>> {
            if own { Ok(corpus.reply_audio(replies.choose(rng).context("no replies")?)?) } else { question(rng) }
        };
        let mut answer: VecDeque<f32> = VecDeque::new();
        // Frames in which something happens next.
        let (mut next, mut interrupt, mut bang, mut stop) = (100, usize::MAX, usize::MAX, usize::MAX);
        let mut agent = true;
        for frame in 0..LENGTH {
            if answer.is_empty() && frame >= next && agent {
                answer.extend(reply(rng)?);
                if rng.random_bool(0.5) {
                    answer.extend(reply(rng)?);
                }
                let frames = answer.len() / FRAME;
                let draw = rng.random_range(0.0..1.0);
                (interrupt, bang) = (usize::MAX, usize::MAX);
                if draw < 0.5 && frames > 60 {
                    interrupt = frame + rng.random_range(30..frames - 10);
                } else if draw < 0.65 && frames > 60 {
                    bang = frame + rng.random_range(10..frames - 10);
                }
                agent = rng.random_bool(0.5);
                next = frame + frames + rng.random_range(20..200);
            } else if answer.is_empty() && frame >= next {
                next = self.say(question(rng)?, rng) + rng.random_range(30..100);
                agent = true;
            }
            if frame == interrupt && !answer.is_empty() {
                self.truth.onsets.push(self.now());
                next = next.max(self.say(question(rng)?, rng) + rng.random_range(30..100));
                // The agent stops, as it should, or goes on, as it does where it does not notice.
                stop = if rng.random_bool(0.7) { frame + rng.random_range(10..60) } else { usize::MAX };
            }
            if frame == bang {
                self.bang(rng);
            }
            if frame == stop {
                answer.clear();
            }
            self.frame(&mut answer)?;
        }
        Ok(())
    }

    /// A frame, as a conversation does it.
    fn frame(&mut self, answer: &mut VecDeque<f32>) -> Result<()> {
        let (mut microphone, mut played) = ([0.0; FRAME], [0.0; FRAME]);
        self.device.listen(&mut microphone)?;
        if self.device.room() {
            played.fill_with(|| answer.pop_front().unwrap_or(0.0));
            self.device.play(&played);
        }
        if let Some(hearing) = &mut self.hearing {
            hearing.step(&microphone, &played);
            self.echo.push(u8::from(hearing.echoes()));
            self.noticed.push(hearing.echoes() && hearing.activity().speaking());
        } else {
            let signals = self.front.step(&microphone, &played);
            self.features.extend(self.bands.step(&signals));
            self.echo.push(u8::from(self.front.echoes()));
        }
        Ok(())
    }

    /// For [`sa_models::overlap::Rooms`].
    fn write(&self, path: &Path) -> Result<()> {
        let mut voice = self.truth.voice.clone();
        voice.resize(LENGTH, 0);
        let features: Vec<u8> = self.features.iter().flat_map(|value| value.to_le_bytes()).collect();
        let onsets: Vec<u8> = self.truth.onsets.iter().flat_map(|onset| (*onset as i64).to_le_bytes()).collect();
        let tensors = [
            ("features", TensorView::new(Dtype::F32, vec![LENGTH, FEATURES], &features)?),
            ("voice", TensorView::new(Dtype::U8, vec![LENGTH], &voice)?),
            ("echo", TensorView::new(Dtype::U8, vec![LENGTH], &self.echo)?),
            ("onsets", TensorView::new(Dtype::I64, vec![self.truth.onsets.len()], &onsets)?),
        ];
        let partial = path.with_extension("partial");
        std::fs::write(&partial, serialize(tensors, None)?)?;
        Ok(std::fs::rename(&partial, path)?)
    }

    fn measure(&self, tally: &mut Tally) {
        let voice = |frame: usize| self.truth.voice.get(frame).is_some_and(|voice| *voice > 0);
        for onset in self.truth.onsets.iter().copied().filter(|onset| onset + MISSED <= LENGTH) {
            let delay = self.noticed[onset..onset + MISSED].iter().position(|noticed| *noticed);
            tally.delays.push(delay.unwrap_or(MISSED));
        }
        let (mut quiet, mut held) = (AFTER, 0usize);
        for frame in 1..LENGTH {
            quiet = if voice(frame) || self.truth.noises.contains(&frame) { 0 } else { quiet + 1 };
            tally.answers += usize::from(self.echo[frame] > self.echo[frame - 1]);
            let begins = self.noticed[frame] && !self.noticed[frame - 1];
            if begins && quiet >= AFTER && frame >= held {
                tally.held += 1;
                held = frame + MISSED;
            }
        }
    }
}
