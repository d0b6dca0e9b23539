//! Speech from any synthesiser: espeak-ng and flite by process, any other by a command line, and which voice says what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::Rng;
use serde::Deserialize;

use super::process::execute;
use super::{Error, wave};

/// The file `synthesisers.toml`: the agent's own voice and the users' voices.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthesisers {
    pub version: u32,
    pub agent: Agent,
    pub user: Vec<User>,
}

/// The agent's one voice (flite, whose phone times give the word times).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    pub voice: String,
    #[serde(default = "unit")]
    pub stretch: f64,
}

fn unit() -> f64 {
    1.0
}

/// A family of users' voices. Ranges are drawn uniformly for every utterance.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum User {
    /// Accents × variants of espeak-ng.
    EspeakNg {
        weight: f64,
        accents: Vec<String>,
        /// Never in training: the test set `accent`.
        held_out_accents: Vec<String>,
        variants: Vec<String>,
        /// Never in training, in known accents: the test set `timbre`.
        held_out_variants: Vec<String>,
        /// Words per minute.
        rate: [f64; 2],
        /// 0 to 99.
        pitch: [f64; 2],
        /// Of the intonation, percent.
        range: [f64; 2],
        /// Playing speed: the size of the speaker.
        warp: [f64; 2],
        /// Share of training questions in an accent of `made_accents`; no test hears them.
        #[serde(default)]
        made_share: f64,
        /// Accents by other phonemes than the dictionary's, so that training hears more kinds of English than espeak-ng has.
        #[serde(default)]
        made_accents: BTreeMap<String, MadeAccent>,
    },
    /// Voices of flite.
    Flite {
        weight: f64,
        voices: Vec<String>,
        /// Never in training: the test set `synthesiser`.
        held_out_voices: Vec<String>,
        stretch: [f64; 2],
        /// Factor on the voice's own pitch.
        pitch: [f64; 2],
        warp: [f64; 2],
    },
    /// Any program that writes a WAV: `{text}` and `{wav}` are replaced in its arguments (no shell).
    Command {
        weight: f64,
        name: String,
        command: Vec<String>,
        /// Never in training: the test set `synthesiser`.
        #[serde(default)]
        held_out: bool,
        warp: [f64; 2],
    },
}

/// An accent made from another by changing phonemes, in espeak-ng's own notation (`espeak-ng -x --sep=_`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeAccent {
    /// The accent that it starts from.
    pub of: String,
    /// Phoneme to what is said instead; "" leaves it out.
    pub replace: BTreeMap<String, String>,
}

/// Chance that a speaker makes a change of their accent: accents are more or less broad.
const BROADNESS: f64 = 0.8;

impl MadeAccent {
    /// A speaker of this accent, who makes most of its changes.
    fn speaker(&self, rng: &mut impl Rng) -> Self {
        let replace = self.replace.iter().filter(|_| rng.random_bool(BROADNESS)).map(|(from, to)| (from.clone(), to.clone()));
        Self { of: self.of.clone(), replace: replace.collect() }
    }

    /// `text` in phonemes for espeak-ng to say.
    fn phonemes(&self, text: &str) -> Result<String, Error> {
        let printed = execute("espeak-ng", "espeak-ng", &["-v", &self.of, "-q", "-x", "--sep=_", text].map(str::to_owned))?;
        let phoneme = |marked: &str| {
            let plain = marked.trim_start_matches(['\'', ',', '=', '%']);
            // variants of a phoneme are numbered: "@2" is an "@"
            let changed = self.replace.get(plain).or_else(|| self.replace.get(plain.trim_end_matches(['2', '#'])));
            format!("{}{}", &marked[..marked.len() - plain.len()], changed.map_or(plain, String::as_str))
        };
        // "_:" is a pause
        let words = printed.split_whitespace().map(|word| word.replace("__:", "").split('_').map(phoneme).collect::<String>());
        Ok(words.collect::<Vec<_>>().join(" "))
    }
}

impl User {
    fn check(&self) -> Result<(), String> {
        let (weight, ranges) = match self {
            Self::EspeakNg { weight, rate, pitch, range, warp, made_share, .. } => {
                if !(0.0..=1.0).contains(made_share) {
                    return Err(format!("made_share = {made_share} is no share: it lies between 0 and 1"));
                }
                (weight, vec![("rate", rate), ("pitch", pitch), ("range", range), ("warp", warp)])
            }
            Self::Flite { weight, stretch, pitch, warp, .. } => (weight, vec![("stretch", stretch), ("pitch", pitch), ("warp", warp)]),
            Self::Command { weight, command, warp, .. } => {
                for part in ["{text}", "{wav}"] {
                    if !command.iter().any(|argument| argument.contains(part)) {
                        return Err(format!("the command {command:?} has no {part}"));
                    }
                }
                (weight, vec![("warp", warp)])
            }
        };
        if weight.is_nan() || *weight < 0.0 {
            return Err(format!("a weight of {weight}"));
        }
        match ranges.iter().find(|(_, range)| !(0.0 <= range[0] && range[0] <= range[1] && range[1] < 1000.0)) {
            Some((name, range)) => Err(format!("{name} = {range:?} is no range: the lower end comes first")),
            None if self.warps_too_far() => Err("warp lies between 0.5 and 2".to_owned()),
            None => Ok(()),
        }
    }

    fn warps_too_far(&self) -> bool {
        let (Self::EspeakNg { warp, .. } | Self::Flite { warp, .. } | Self::Command { warp, .. }) = self;
        warp[0] < 0.5 || warp[1] > 2.0
    }
}

/// The four test sets: what is new about the voice.
pub const SETS: [&str; 4] = ["trained", "timbre", "accent", "synthesiser"];

/// A voice with its settings for one utterance.
#[derive(Debug, Clone, PartialEq)]
pub enum Voice {
    EspeakNg { voice: String, rate: i64, pitch: i64, range: i64, warp: f64, accent: Option<(String, MadeAccent)> },
    Flite { voice: String, stretch: f64, pitch: f64, warp: f64 },
    Command { name: String, command: Vec<String>, warp: f64 },
}

impl Synthesisers {
    /// Reads `synthesisers.toml` and checks that every test set and training have voices.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::parse(path, &text)
    }

    /// As [`Synthesisers::load`], from a text; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |line: usize, message: String| Error::Format { path: path.to_owned(), line, message };
        let all: Self = toml::from_str(text).map_err(|error| {
            wrong(error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1), error.message().to_owned())
        })?;
        if all.version != 1 {
            return Err(wrong(1, format!("version {} is not known; this program reads version 1", all.version)));
        }
        for user in &all.user {
            user.check().map_err(|message| wrong(0, message))?;
        }
        if all.weights("trained").iter().sum::<f64>() <= 0.0 {
            return Err(wrong(1, "no voices to train on".to_owned()));
        }
        Ok(all)
    }

    /// The test sets that have voices.
    pub fn sets(&self) -> impl Iterator<Item = &'static str> {
        SETS.into_iter().filter(|set| self.weights(set).iter().sum::<f64>() > 0.0)
    }

    fn weights(&self, set: &str) -> Vec<f64> {
        let some = |voices: &[String], weight: f64| if voices.is_empty() { 0.0 } else { weight };
        let weight = |user: &User| match (user, set) {
            (User::EspeakNg { weight, accents, variants, .. }, "trained") if !variants.is_empty() => some(accents, *weight),
            (User::EspeakNg { weight, accents, held_out_variants, .. }, "timbre") if !accents.is_empty() => {
                some(held_out_variants, *weight)
            }
            (User::EspeakNg { weight, variants, held_out_accents, .. }, "accent") if !variants.is_empty() => {
                some(held_out_accents, *weight)
            }
            (User::Flite { weight, voices, .. }, "trained") => some(voices, *weight),
            (User::Flite { weight, held_out_voices, .. }, "synthesiser") => some(held_out_voices, *weight),
            (User::Command { weight, held_out, .. }, "trained" | "synthesiser") if *held_out == (set == "synthesiser") => *weight,
            _ => 0.0,
        };
        self.user.iter().map(weight).collect()
    }

    /// Draws a voice of a set (`trained` is also that of training).
    ///
    /// # Panics
    /// When the set has no voices: ask [`Synthesisers::sets`].
    pub fn draw(&self, rng: &mut impl Rng, set: &str) -> Voice {
        let weights = self.weights(set);
        let mut left = rng.random_range(0.0..weights.iter().sum());
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0 && *weight > 0.0
        });
        let chosen = chosen.or_else(|| weights.iter().rposition(|weight| *weight > 0.0)).expect("the set has voices");
        fn within(rng: &mut impl Rng, range: &[f64; 2]) -> f64 {
            rng.random_range(range[0]..=range[1])
        }
        fn pick<'a>(rng: &mut impl Rng, texts: &'a [String]) -> &'a str {
            &texts[rng.random_range(0..texts.len())]
        }
        match &self.user[chosen] {
            User::EspeakNg { accents, held_out_accents, variants, held_out_variants, rate, pitch, range, warp, .. } => {
                let accent = pick(rng, if set == "accent" { held_out_accents } else { accents });
                let variant = pick(rng, if set == "timbre" { held_out_variants } else { variants });
                Voice::EspeakNg {
                    voice: if variant == "-" { accent.to_owned() } else { format!("{accent}+{variant}") },
                    rate: within(rng, rate).round() as i64,
                    pitch: within(rng, pitch).round() as i64,
                    range: within(rng, range).round() as i64,
                    warp: within(rng, warp),
                    accent: None,
                }
            }
            User::Flite { voices, held_out_voices, stretch, pitch, warp, .. } => {
                let voice = pick(rng, if set == "synthesiser" { held_out_voices } else { voices }).to_owned();
                Voice::Flite { voice, stretch: within(rng, stretch), pitch: within(rng, pitch), warp: within(rng, warp) }
            }
            User::Command { name, command, warp, .. } => {
                Voice::Command { name: name.clone(), command: command.clone(), warp: within(rng, warp) }
            }
        }
    }
}

impl Synthesisers {
    /// Draws a voice to train on: one of the set `trained`, or one of those in an accent that was made.
    pub fn draw_for_training(&self, rng: &mut impl Rng) -> Voice {
        let mut voice = self.draw(rng, "trained");
        if let Voice::EspeakNg { voice, accent, .. } = &mut voice {
            let family = |user: &&User| match user {
                User::EspeakNg { accents, .. } => accents.iter().any(|name| voice.split('+').next() == Some(name)),
                _ => false,
            };
            if let Some(User::EspeakNg { made_share, made_accents, .. }) = self.user.iter().find(family)
                && !made_accents.is_empty()
                && rng.random_bool(*made_share)
            {
                let (name, made) = made_accents.iter().nth(rng.random_range(0..made_accents.len())).expect("within the length");
                *accent = Some((name.clone(), made.speaker(rng)));
                // the sounds are those of the accent that it is made from
                *voice = voice.split_once('+').map_or_else(|| made.of.clone(), |(_, variant)| format!("{}+{variant}", made.of));
            }
        }
        voice
    }
}

impl Voice {
    /// The name written into the corpus.
    pub fn name(&self) -> String {
        match self {
            Self::EspeakNg { voice, accent: None, .. } => format!("espeak-ng:{voice}"),
            Self::EspeakNg { voice, accent: Some((name, _)), .. } => format!("espeak-ng:{name}:{voice}"),
            Self::Flite { voice, .. } => format!("flite:{voice}"),
            Self::Command { name, .. } => name.clone(),
        }
    }

    /// Says `text`; `scratch` is a WAV file that may be overwritten.
    ///
    /// # Errors
    /// [`Error::Synthesiser`] when the program is missing or fails, [`Error::Wav`] when what it wrote is no sound.
    pub fn speak(&self, text: &str, scratch: &Path) -> Result<Vec<f32>, Error> {
        let wav = scratch.display().to_string();
        let warp = match self {
            Self::EspeakNg { voice, rate, pitch, range, warp, accent } => {
                let said = match accent {
                    // without the space espeak-ng would say the tag behind it
                    Some((_, accent)) => format!("[[{}]] ", accent.phonemes(text)?),
                    None => text.to_owned(),
                };
                let marked = format!("<speak><prosody range=\"{range}%\">{said}</prosody></speak>");
                // at full amplitude the louder variants clip
                let settings = ["-a", "65", "-v", voice, "-s", &rate.to_string(), "-p", &pitch.to_string(), "-m", "-w", &wav, &marked]
                    .map(str::to_owned);
                execute("espeak-ng", "espeak-ng", &settings)?;
                warp
            }
            Self::Flite { voice, stretch, pitch, warp } => {
                flite(voice, *stretch, *pitch, text, &wav)?;
                warp
            }
            Self::Command { name, command, warp } => {
                let filled: Vec<String> = command.iter().map(|part| part.replace("{text}", text).replace("{wav}", &wav)).collect();
                let (program, arguments) =
                    filled.split_first().ok_or_else(|| Error::Synthesiser(format!("{name}: the command is empty")))?;
                execute(program, name, arguments)?;
                warp
            }
        };
        wave::read(scratch, *warp)
    }
}

/// The voices' own mean pitch in Hz, as their sources have it, which `int_f0_target_mean` replaces.
fn own_pitch(voice: &str) -> f64 {
    if voice == "slt" { 170.0 } else { 105.0 }
}

fn flite(voice: &str, stretch: f64, pitch: f64, text: &str, wav: &str) -> Result<String, Error> {
    let mut arguments = ["-voice", voice, "-psdur", "-t", text, "-o", wav].map(str::to_owned).to_vec();
    if (stretch - 1.0).abs() > 1e-6 {
        arguments.splice(0..0, ["--setf".to_owned(), format!("duration_stretch={stretch:.3}")]);
    }
    if (pitch - 1.0).abs() > 1e-6 {
        // clustergen voices know the factor, diphone voices the target
        arguments.splice(0..0, ["--setf".to_owned(), format!("f0_shift={pitch:.3}")]);
        if voice.starts_with("kal") {
            arguments.splice(0..0, ["--setf".to_owned(), format!("int_f0_target_mean={:.1}", own_pitch(voice) * pitch)]);
        }
    }
    execute("flite", "flite", &arguments)
}

/// What flite said: samples, and its phones with their end times in seconds.
pub struct Spoken {
    pub samples: Vec<f32>,
    pub phones: Vec<(String, f64)>,
}

impl Agent {
    /// Says `text` in the agent's voice.
    ///
    /// # Errors
    /// As [`Voice::speak`].
    pub fn speak(&self, text: &str, scratch: &Path) -> Result<Spoken, Error> {
        let printed = flite(&self.voice, self.stretch, 1.0, text, &scratch.display().to_string())?;
        let phones = printed
            .split_whitespace()
            .filter_map(|pair| pair.rsplit_once(':'))
            .filter_map(|(phone, end)| Some((phone.to_owned(), end.parse().ok()?)));
        Ok(Spoken { phones: phones.collect(), samples: wave::read(scratch, 1.0)? })
    }

    /// The phones of one word said alone, without pauses.
    ///
    /// # Errors
    /// As [`Voice::speak`].
    pub fn phones(&self, word: &str) -> Result<Vec<String>, Error> {
        // a text without a space would be taken for a file name: -t prevents that
        let printed = execute("flite", "flite", &["-voice", &self.voice, "-ps", "-t", word, "none"].map(str::to_owned))?;
        Ok(printed.split_whitespace().filter(|phone| *phone != "pau").map(str::to_owned).collect())
    }
}

/// A scratch file per worker thread.
pub fn scratch(folder: &Path) -> PathBuf {
    folder.join(format!("worker{}.wav", rayon::current_thread_index().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    fn built_in() -> Synthesisers {
        Synthesisers::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/grammar/synthesisers.toml"))).unwrap()
    }

    #[test]
    fn test_voices_are_never_trained() {
        let all = built_in();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut draw = |set| (0..4_000).map(|_| all.draw(&mut rng, set).name()).collect::<BTreeSet<_>>();
        let [trained, timbre, accent, synthesiser] = SETS.map(&mut draw);
        assert!(trained.is_disjoint(&timbre) && trained.is_disjoint(&accent) && trained.is_disjoint(&synthesiser));
        assert!(accent.iter().all(|name| name.contains("scotland")) && trained.iter().all(|name| !name.contains("scotland")));
        assert_eq!(synthesiser.into_iter().collect::<Vec<_>>(), ["flite:awb"]);
        let variant = |name: &String| name.split_once('+').map(|(_, variant)| variant.to_owned());
        let known: BTreeSet<_> = trained.iter().filter_map(variant).collect();
        assert!(timbre.iter().filter_map(variant).all(|variant| !known.contains(&variant)));
    }

    #[test]
    fn a_made_accent_changes_phonemes_and_is_for_training_only() {
        let all = built_in();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let made = |voice: &Voice| matches!(voice, Voice::EspeakNg { accent: Some(_), .. });
        let count = (0..1_000).filter(|_| made(&all.draw_for_training(&mut rng))).count();
        assert!((150..450).contains(&count), "{count}");
        assert!(SETS.iter().all(|set| (0..200).all(|_| !made(&all.draw(&mut rng, set)))));

        let replace = [("T", "s"), ("@", "a"), ("I", "i:")].map(|(from, to)| (from.to_owned(), to.to_owned())).into();
        let accent = MadeAccent { of: "en-us".to_owned(), replace };
        assert_eq!(accent.phonemes("set the thermostat").unwrap(), "s'Et Da s'3:mast,at");
        let speak = |voice: &str, accent| {
            let folder = tempfile::tempdir().unwrap();
            let voice = Voice::EspeakNg { voice: voice.to_owned(), rate: 160, pitch: 50, range: 100, warp: 1.0, accent };
            voice.speak("set the timer to half past four and close the blinds", &folder.path().join("a.wav")).unwrap().len() as f64
        };
        // about as long as without: no tag is read aloud, and no phoneme is unknown (espeak-ng leaves out what follows it)
        let User::EspeakNg { made_accents, .. } = &all.user[0] else { panic!("espeak-ng comes first") };
        for (name, accent) in made_accents {
            let ratio = speak(&accent.of, Some((name.clone(), accent.clone()))) / speak(&accent.of, None);
            assert!((0.85..1.2).contains(&ratio), "{name}: {ratio}");
        }
    }

    #[test]
    fn any_command_can_speak() {
        let folder = tempfile::tempdir().unwrap();
        let command = ["flite", "-t", "{text}", "-o", "{wav}"].map(str::to_owned).to_vec();
        let voice = Voice::Command { name: "mine".to_owned(), command, warp: 1.0 };
        assert!(voice.speak("hello there", &folder.path().join("a.wav")).unwrap().len() > 8_000);
        let missing = Voice::Command { name: "some-package".to_owned(), command: vec!["no-such-synthesiser".to_owned()], warp: 1.0 };
        let error = missing.speak("hello", &folder.path().join("a.wav")).unwrap_err().to_string();
        assert!(error.contains("no-such-synthesiser is not installed") && error.contains("apt-get install"), "{error}");
    }

    const MINE: &str = r#"
        version = 1
        [agent]
        voice = "slt"
        [[user]]
        kind = "command"
        weight = 2.0
        name = "mine"
        command = ["flite", "-t", "{text}", "-o", "{wav}"]
        warp = [1.0, 1.0]
        [[user]]
        kind = "command"
        weight = 1.0
        name = "theirs"
        command = ["flite", "-voice", "awb", "-t", "{text}", "-o", "{wav}"]
        held_out = true
        warp = [0.9, 1.1]
    "#;

    #[test]
    fn commands_in_the_file_are_drawn_and_held_out() {
        let all = Synthesisers::parse(Path::new("s.toml"), MINE).unwrap();
        assert_eq!(all.sets().collect::<Vec<_>>(), ["trained", "synthesiser"]);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..100 {
            assert_eq!(all.draw_for_training(&mut rng).name(), "mine");
            assert_eq!(all.draw(&mut rng, "synthesiser").name(), "theirs");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(all.draw(&mut rng, "synthesiser").speak("hello there", &folder.path().join("a.wav")).unwrap().len() > 8_000);
        for part in ["{text}", "{wav}"] {
            let error = Synthesisers::parse(Path::new("s.toml"), &MINE.replacen(part, "x", 1)).unwrap_err().to_string();
            assert!(error.contains(&format!("has no {part}")), "{error}");
        }
        let none = MINE.replacen("weight = 2.0", "weight = 2.0\nheld_out = true", 1);
        let error = Synthesisers::parse(Path::new("s.toml"), &none).unwrap_err().to_string();
        assert!(error.contains("no voices to train on"), "{error}");
    }

    #[test]
    fn complains() {
        let text = include_str!("../../grammar/synthesisers.toml");
        for (from, to, part) in [
            ("rate = [120, 215]", "rate = [215, 120]", "rate"),
            ("warp = [0.9, 1.12]", "warp = [0.0, 1.0]", "warp"),
            ("kind = \"flite\"", "kind = \"flight\"", "flight"),
            ("version = 1", "version = 3", "version 3"),
        ] {
            let error = Synthesisers::parse(Path::new("s.toml"), &text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.starts_with("s.toml:") && error.contains(part), "{error}");
        }
    }
}
