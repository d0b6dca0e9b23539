//! Files and folders as users bring them: converted where that can be, refused with a clear message where not.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sa_tests::{Form, Talk, levels, plain_question, question_in, read_wav, samples, write_wav};

const PLAIN: Form = Form { rate: (1, 1), channels: 1, bits: 16, float: false };
/// Share of units that a conversion leaves as they are (97, 97, 88 and 97 % of 33 on the shipped tokenizer, whose choice
/// between two near centroids a last bit may turn).
const SAME: f32 = 0.8;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// Nothing but what is named may lie in the folder: no answer, no half-written file.
fn holds_only(folder: &Path, names: &[&str]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(names.contains(&&*name), "{name} was left behind");
    }
    Ok(())
}

/// The same question in another form must be heard as the same units: of a reply one could not tell chance from conversion.
#[test]
fn other_forms_of_wav_are_converted() -> Result<()> {
    let question = plain_question()?;
    let folder = tempfile::tempdir()?;
    let units = |wav: &Path| -> Result<Vec<u64>> {
        let outcome = Talk::new().input(wav).output(&folder.path().join("a.wav")).run()?.succeeded()?;
        let turn = outcome.of_kind("turn")?.remove(0);
        Ok(turn["question_units"].as_array().context("no question_units")?.iter().filter_map(serde_json::Value::as_u64).collect())
    };
    let expected = units(&question.wav)?;
    let forms = [
        (Form { rate: (3, 1), channels: 2, bits: 24, float: false }, SAME),
        (Form { rate: (441, 160), channels: 2, bits: 16, float: false }, SAME),
        (Form { rate: (441, 320), channels: 1, bits: 32, float: true }, SAME),
        (Form { rate: (3, 1), channels: 6, bits: 32, float: false }, SAME),
        (Form { rate: (1, 1), channels: 1, bits: 8, float: false }, 0.0), // its noise is heard
        (Form { rate: (1, 2), ..PLAIN }, 0.0),                            // telephone: nothing above 4 kHz
    ];
    for (form, share) in forms {
        let wav = folder.path().join("other.wav");
        question_in(form, &question.wav, &wav)?;
        let got = units(&wav).with_context(|| format!("{form:?}"))?;
        let same = expected.iter().zip(&got).filter(|(a, b)| a == b).count() as f32 / expected.len() as f32;
        println!("{form:?}: {:.0} % of units as at 16 kHz", 100.0 * same);
        ensure!(
            got.len().abs_diff(expected.len()) <= 1 && same >= share,
            "{form:?}: {} of {} units, {same} the same",
            got.len(),
            expected.len()
        );
    }
    Ok(())
}

#[test]
fn files_that_are_no_questions_are_refused() -> Result<()> {
    let good = fs::read(plain_question()?.wav)?;
    let mut claims_more = good.clone();
    claims_more.truncate(good.len() / 2);
    let mut odd_rate = good.clone();
    odd_rate[24..28].copy_from_slice(&0u32.to_le_bytes());
    let mut no_channels = good.clone();
    no_channels[22..24].copy_from_slice(&0u16.to_le_bytes());
    let mut many_bits = good.clone();
    many_bits[34..36].copy_from_slice(&77u16.to_le_bytes());
    let cases: [(&str, &[u8]); 7] = [
        ("empty.wav", b""),
        ("header.wav", &good[..20]),
        ("text.wav", b"turn on the kitchen light\n"),
        ("no-samples.wav", &good[..44]),
        ("no-rate.wav", &odd_rate),
        ("no-channels.wav", &no_channels),
        ("many-bits.wav", &many_bits),
    ];
    for (name, bytes) in cases {
        let folder = tempfile::tempdir()?;
        let wav = folder.path().join(name);
        fs::write(&wav, bytes)?;
        let outcome = Talk::new().input(&wav).output(&folder.path().join("a.wav")).run()?;
        outcome.failed_with(FAILED, name).with_context(|| name.to_owned())?;
        holds_only(folder.path(), &[name])?;
    }
    // a file cut short: either refused, or heard as far as it goes, with a warning; never silently
    let folder = tempfile::tempdir()?;
    let wav = folder.path().join("cut.wav");
    fs::write(&wav, &claims_more)?;
    let outcome = Talk::new().input(&wav).output(&folder.path().join("a.wav")).run()?;
    ensure!(matches!(outcome.code, Some(0 | 1)) && outcome.stderr.contains("cut.wav"), "{:?}: {}", outcome.code, outcome.stderr);
    Ok(())
}

#[test]
fn paths_that_are_not_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let answer = folder.path().join("a.wav");
    let question = plain_question()?.wav;
    Talk::new().input(&folder.path().join("none.wav")).output(&answer).run()?.failed_with(FAILED, "none.wav")?;
    Talk::new().input(folder.path()).output(&answer).run()?.failed_with(FAILED, &folder.path().display().to_string())?;
    Talk::new().input(&question).output(&folder.path().join("none/a.wav")).run()?.failed_with(FAILED, "none")?;
    Talk::new().input(&question).output_dir(&folder.path().join("none")).run()?.failed_with(FAILED, "none")?;
    Talk::new().input(&question).output(&answer).tools(&folder.path().join("none.toml")).run()?.failed_with(FAILED, "none.toml")?;
    holds_only(folder.path(), &[])
}

/// A file size limit stands for a full disk: the write fails part of the way, and needs no privileges to arrange.
#[test]
fn a_full_disk_leaves_nothing_half_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let talk = Talk::new().input(&plain_question()?.wav).output(&folder.path().join("a.wav"));
    talk.after("trap '' XFSZ; ulimit -f 8").run()?.failed_with(FAILED, "a.wav")?;
    holds_only(folder.path(), &[])
}

/// What stood there before is still there when a new answer cannot be written.
#[test]
fn an_older_answer_survives_a_failure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let answer = folder.path().join("a.wav");
    fs::write(&answer, "older")?;
    Talk::new().input(&plain_question()?.wav).output(&answer).after("trap '' XFSZ; ulimit -f 8").run()?.failed_with(FAILED, "a.wav")?;
    ensure!(fs::read(&answer)? == b"older", "the older answer is gone");
    holds_only(folder.path(), &["a.wav"])
}

#[test]
fn silence_is_told_and_noise_gets_an_answer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let chord = |t: usize| [220.0, 277.2, 329.6].iter().map(|f| 0.1 * (t as f32 * f * std::f32::consts::TAU / 16_000.0).sin()).sum();
    let cases = [
        ("silence", vec![0.0; 32_000]),
        ("noise", (0..32_000).map(|_| 0.1 * noise()).collect()),
        ("music", (0..32_000).map(chord).collect()),
        ("a-click", vec![0.5; 10]),
    ];
    for (name, audio) in cases {
        let (wav, answer) = (folder.path().join("q.wav"), folder.path().join("a.wav"));
        write_wav(&wav, &audio, PLAIN)?;
        let outcome = Talk::new().input(&wav).output(&answer).run()?.succeeded().with_context(|| name.to_owned())?;
        let turns = outcome.of_kind("turn")?;
        ensure!(turns.len() == 1, "{name}: {} turns", turns.len());
        let silence = turns[0]["stopped"] == "silence";
        ensure!(silence == ["silence", "a-click"].contains(&name) && answer.exists() != silence, "{name}: {}", turns[0]);
        ensure!(outcome.of_kind("call")?.is_empty(), "{name} called a tool: {}", outcome.brief());
        println!("{name}: {}", turns[0]["reply_text"]);
        if answer.exists() {
            fs::remove_file(&answer)?;
        }
    }
    Ok(())
}

/// Questions that music plays over are understood, nearly all of them (23 of 27 on the shipped bundle); each is answered with words.
#[test]
fn questions_in_music_are_understood() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let answers = folder.path().join("answers");
    fs::create_dir(&answers)?;
    let samples = samples()?;
    // A chord that changes twice a second, each tone with its overtones.
    let tone =
        |f: f32, t: usize| (1..5).map(|k| (t as f32 * f * k as f32 * std::f32::consts::TAU / 16_000.0).sin() / k as f32).sum::<f32>();
    let roots = [220.0, 174.6, 261.6, 196.0];
    let mut talk = Talk::new().flag("--fresh").output_dir(&answers);
    for sample in &samples {
        let (speech, _) = read_wav(&sample.wav)?;
        let music: Vec<f32> = (0..speech.len()).map(|t| [1.0, 1.26, 1.5].iter().map(|f| tone(roots[t / 8_000 % 4] * f, t)).sum()).collect();
        // 10 dB softer.
        let gain = levels(&speech).0 / (levels(&music).0 * 10f32.sqrt());
        let both: Vec<f32> = speech.iter().zip(&music).map(|(speech, music)| (speech + gain * music).clamp(-1.0, 1.0)).collect();
        let wav = folder.path().join(sample.wav.file_name().context("a sample is a file")?);
        write_wav(&wav, &both, PLAIN)?;
        talk = talk.input(&wav);
    }
    let turns = talk.run()?.succeeded()?.of_kind("turn")?;
    ensure!(turns.len() == samples.len(), "{} turns for {} questions", turns.len(), samples.len());
    let mut right = 0;
    for (sample, turn) in samples.iter().zip(&turns) {
        println!("{} | {}", sample.text, turn["transcript"]);
        ensure!(turn["reply_text"].as_str().is_some_and(|reply| !reply.is_empty()), "{}: {turn}", sample.text);
        let answer = turn["output"].as_str().context("an answer is a file")?;
        ensure!(read_wav(Path::new(answer))?.0.len() > 3_200, "{}: no answer to be heard", sample.text);
        right += usize::from(turn["transcript"] == sample.text);
    }
    ensure!(4 * right >= 3 * samples.len(), "{right} of {} are understood", samples.len());
    Ok(())
}

/// A question that lets wait for itself is understood like one that does not.
#[test]
fn a_late_question_is_answered() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let question = plain_question()?;
    let (speech, _) = read_wav(&question.wav)?;
    let late: Vec<f32> = std::iter::repeat_n(0.0, 5 * 16_000).chain(speech).collect();
    let (wav, answer) = (folder.path().join("q.wav"), folder.path().join("a.wav"));
    write_wav(&wav, &late, PLAIN)?;
    let outcome = Talk::new().input(&wav).output(&answer).run()?.succeeded()?;
    let turns = outcome.of_kind("turn")?;
    ensure!(turns.len() == 1 && turns[0]["reply_text"].as_str().is_some_and(|reply| !reply.is_empty()), "{}", outcome.brief());
    ensure!(read_wav(&answer)?.0.len() > 3_200, "no answer to be heard");
    ensure!(turns[0]["transcript"] == question.text, "{}", outcome.brief());
    Ok(())
}

/// Two hours, most of it a hole in the file: neither the memory nor the patience of a whole file.
#[test]
fn a_file_of_two_hours_is_told_early() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let wav = folder.path().join("long.wav");
    let (speech, _) = read_wav(&plain_question()?.wav)?;
    write_wav(&wav, &speech, PLAIN)?;
    let data = 2 * 3600 * 32_000u32;
    let mut bytes = fs::read(&wav)?;
    bytes[4..8].copy_from_slice(&(data + 36).to_le_bytes());
    bytes[40..44].copy_from_slice(&data.to_le_bytes());
    fs::write(&wav, bytes)?;
    File::options().write(true).open(&wav)?.set_len(u64::from(data) + 44)?;
    let outcome = Talk::new().input(&wav).output(&folder.path().join("a.wav")).run()?;
    ensure!(outcome.stderr.contains("long.wav"), "no word about it: {}", outcome.stderr);
    ensure!(matches!(outcome.code, Some(0 | 1)) && !outcome.stderr.contains("panicked"), "{:?}: {}", outcome.code, outcome.stderr);
    ensure!(outcome.peak_mb < 150.0, "peak {} MB", outcome.peak_mb);
    ensure!(outcome.seconds < 30.0, "{} s", outcome.seconds);
    Ok(())
}

#[test]
fn wrong_usage_is_told_with_code_two() -> Result<()> {
    for arguments in [&["talk"][..], &["tolk"], &["talk", "--imput", "q.wav"], &[]] {
        let outcome = Talk::bare(arguments).run()?;
        ensure!(outcome.code == Some(USAGE), "{arguments:?}: {:?} {}", outcome.code, outcome.stderr);
        ensure!(outcome.stderr.contains("Usage"), "{arguments:?}: {}", outcome.stderr);
    }
    let question = plain_question()?.wav;
    let folder = tempfile::tempdir()?;
    let outcome = Talk::new().input(&question).input(&question).output(&folder.path().join("a.wav")).run()?;
    ensure!(outcome.code == Some(USAGE), "one output for two inputs: {:?} {}", outcome.code, outcome.stderr);
    holds_only(folder.path(), &[])
}
