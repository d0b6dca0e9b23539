//! Simulated rooms in which the user speaks over the agent: what its network is trained on, and how good it is.
//!
//! ```text
//! rooms CORPUS --output DIR --rooms 240              # made for `sa-align overlap --corpus DIR --output RUN`
//! rooms CORPUS --split test --rooms 80               # measures the hearing of this program
//! ```
//! A room is a minute and a half: questions, answers, the next question into some answers, noises into others. Rooms differ in echo, reverberation, noise,
//! distance, the loudspeaker's distortion and the clocks; `--usual` makes all like that of the simulated conversations.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sa_device::audio::live::{Duplex, FRAME, Room, SimDevice};
use sa_device::hearing::{ActivitySettings, Bands, Front, Hearing, Overlap};
use sa_models::corpus::{Corpus, Split, augment};
use sa_models::overlap::{LOUD, PAUSE, SILENT, write_room};
use sa_tests::{any_room, levels, onset};
use serde_json::json;

/// Frames of a room.
const LENGTH: usize = 9000;
/// A frame of a voice is loud from this share of the voice's level on.
const LOUD_SHARE: f32 = 0.05;
/// Frames after the user or a door in which a held answer is no false alarm.
const AFTER: usize = 120;
/// Frames until an interruption that was not noticed is missed.
const MISSED: usize = 100;
/// Frames from noticing to a speaker that is silent, about: what the device has been given in advance and cannot be taken back, and the fade.
const SILENCE: usize = 4;

#[derive(Parser)]
struct Cli {
    corpus: PathBuf,
    /// Write the rooms here; without it they are measured only
    #[arg(long)]
    output: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
    #[arg(long, default_value_t = 80)]
    rooms: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// All rooms as in the simulated conversations
    #[arg(long)]
    usual: bool,
    /// Measure these weights instead of the program's own: the `model.safetensors` of `sa-align overlap`
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    weights: Option<PathBuf>,
    /// Instead of the default
    #[arg(long, conflicts_with = "output")]
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

#[derive(Default)]
struct Truth {
    /// Of each frame: [`SILENT`], [`PAUSE`] or [`LOUD`].
    voice: Vec<u8>,
    onsets: Vec<usize>,
    /// Doors and the like.
    noises: HashSet<usize>,
}

impl Tally {
    /// A room: what happened in it, the frames in which something echoed, and those in which somebody was noticed over the agent.
    fn add(&mut self, truth: &Truth, echo: &[u8], noticed: &[bool]) {
        for onset in truth.onsets.iter().copied().filter(|onset| onset + MISSED <= LENGTH) {
            let delay = noticed[onset..onset + MISSED].iter().position(|noticed| *noticed);
            self.delays.push(delay.unwrap_or(MISSED));
        }
        let (mut quiet, mut held) = (AFTER, 0usize);
        for frame in 1..LENGTH {
            quiet = if truth.voice[frame] != SILENT || truth.noises.contains(&frame) { 0 } else { quiet + 1 };
            self.answers += usize::from(echo[frame] > echo[frame - 1]);
            let begins = noticed[frame] && !noticed[frame - 1];
            if begins && quiet >= AFTER && frame >= held {
                self.held += 1;
                held = frame + MISSED;
            }
        }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let corpus = Corpus::open(&cli.corpus)?;
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
        let (room, user_db) = if cli.usual { (Room { seed: rng.random(), ..Room::default() }, 0.0) } else { any_room(&mut rng) };
        let ear = match (path, &weights) {
            (Some(path), _) => Ear::Written { path, front: Box::default(), bands: Box::default(), features: Vec::new() },
            (None, Some(bytes)) => Ear::measured(Hearing::with(settings.clone(), Overlap::read(bytes).map_err(anyhow::Error::msg)?)),
            (None, None) => Ear::measured(Hearing::new(settings.clone())),
        };
        let mut scene = Scene::new(room, user_db, cli.usual, ear)?;
        scene.play(&corpus, cli.split, &mut rng)?;
        scene.finish(&mut tally)?;
        eprint!("\r{} of {} rooms", number + 1, cli.rooms);
    }
    eprintln!();
    if cli.output.is_some() {
        return Ok(());
    }
    tally.delays.sort_unstable();
    let late = tally.delays.iter().filter(|delay| **delay + SILENCE > 20).count();
    let missed = tally.delays.iter().filter(|delay| **delay == MISSED).count();
    let percent = |of: usize| 100.0 * of as f64 / tally.delays.len().max(1) as f64;
    let at = |share: f64| {
        tally.delays.get((share * tally.delays.len().max(1) as f64) as usize).or(tally.delays.last()).map_or(0, |delay| delay * 10)
    };
    println!(
        "{}",
        json!({ "interruptions": tally.delays.len(), "noticed_ms": { "median": at(0.5), "90": at(0.9), "99": at(0.99) },
            "later_than_200_ms_percent": percent(late), "missed_percent": percent(missed),
            "answers": tally.answers, "held_for_nothing": tally.held })
    );
    Ok(())
}

/// Who hears the room.
enum Ear {
    /// The hearing that is measured; did it notice somebody over the agent in a frame?
    Measured { hearing: Box<Hearing>, noticed: Vec<bool> },
    /// What the network gets to see, for this file.
    Written { path: PathBuf, front: Box<Front>, bands: Box<Bands>, features: Vec<f32> },
}

impl Ear {
    fn measured(hearing: Hearing) -> Self {
        Self::Measured { hearing: Box::new(hearing), noticed: Vec::new() }
    }
}

/// A room while it is played.
struct Scene {
    device: SimDevice,
    ear: Ear,
    user_db: f32,
    /// The user is always as loud.
    usual: bool,
    truth: Truth,
    /// 1 in frames in which something echoes.
    echo: Vec<u8>,
}

impl Scene {
    fn new(room: Room, user_db: f32, usual: bool, ear: Ear) -> Result<Self> {
        Ok(Self { device: SimDevice::new(room)?, ear, user_db, usual, truth: Truth::default(), echo: Vec::new() })
    }

    /// The period of the microphone that comes next: its frame has that number.
    fn now(&self) -> usize {
        (self.device.now() * 100.0).round() as usize
    }

    /// The user says something from its first loud sound on; returns when that ends.
    fn say(&mut self, mut voice: Vec<f32>, rng: &mut ChaCha8Rng) -> usize {
        let gain = 10f32.powf((self.user_db + if self.usual { 0.0 } else { rng.random_range(-3.0..3.0) }) / 20.0);
        voice.drain(..onset(&voice).unwrap_or(0) / FRAME * FRAME);
        voice.iter_mut().for_each(|sample| *sample *= gain);
        self.device.say(&voice);
        let (from, level) = (self.now(), augment::level(&voice).sqrt());
        let end = from + voice.len().div_ceil(FRAME);
        self.truth.voice.resize(self.truth.voice.len().max(end), SILENT);
        for (slot, frame) in self.truth.voice[from..].iter_mut().zip(voice.chunks(FRAME)) {
            let (rms, ..) = levels(frame);
            *slot = if rms > LOUD_SHARE * level { LOUD } else { PAUSE };
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
        self.truth.noises.insert(self.now());
    }

    fn play(&mut self, corpus: &Corpus, split: Split, rng: &mut ChaCha8Rng) -> Result<()> {
        let questions: Vec<_> = corpus.questions(split).iter().filter(|question| !question.text.is_empty()).collect();
        let replies = corpus.replies(split);
        let question = |rng: &mut ChaCha8Rng| -> Result<Vec<f32>> { Ok(corpus.audio(questions.choose(rng).context("no questions")?)?) };
        // An agent may have any voice: what tells it from the user must not be how it sounds.
        let own = matches!(self.ear, Ear::Measured { .. }) || rng.random_bool(0.5);
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
        let echoes = match &mut self.ear {
            Ear::Measured { hearing, noticed } => {
                hearing.step(&microphone, &played);
                noticed.push(hearing.echoes() && hearing.activity().speaking());
                hearing.echoes()
            }
            Ear::Written { front, bands, features, .. } => {
                features.extend(bands.step(&front.step(&microphone, &played)));
                front.echoes()
            }
        };
        self.echo.push(u8::from(echoes));
        Ok(())
    }

    /// Writes the room, or adds what was measured in it.
    fn finish(mut self, tally: &mut Tally) -> Result<()> {
        self.truth.voice.resize(LENGTH, SILENT);
        match &self.ear {
            Ear::Measured { noticed, .. } => tally.add(&self.truth, &self.echo, noticed),
            Ear::Written { path, features, .. } => write_room(path, features, &self.truth.voice, &self.echo, &self.truth.onsets)?,
        }
        Ok(())
    }
}
