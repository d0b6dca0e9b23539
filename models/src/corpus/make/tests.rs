use super::*;

fn options(folder: &Path) -> Options {
    Options {
        output: folder.to_owned(),
        questions: 60,
        swapped: 8,
        replies: 20,
        seed: 7,
        grammar: None,
        synthesisers: None,
        recordings: None,
        jobs: 2,
    }
}

#[test]
fn makes_reads_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder.path().join("corpus"));
    let manifest = make(&options).unwrap();
    assert!(manifest.complete);
    let corpus = Corpus::open(&options.output).unwrap();
    assert_eq!([Split::Train, Split::Dev, Split::Test].map(|split| corpus.questions(split).len()).iter().sum::<usize>(), 68);
    let swapped: Vec<&Utterance> = corpus.questions(Split::Train).iter().filter(|question| question.dialogue.is_none()).collect();
    assert!(swapped.len() == 8 && swapped.iter().all(|question| question.id.starts_with('s') && question.category == "transcribe"));
    for question in corpus.questions(Split::Train).iter().filter(|question| !question.text.is_empty()) {
        let samples = corpus.audio(question).unwrap();
        assert!(samples.len() > 6000, "{} samples of {:?}", samples.len(), question.text);
        assert!(samples.iter().any(|sample| sample.abs() > 0.02), "{} is silent", question.voice);
        assert!(!corpus.phones_of(&question.text).is_empty());
    }
    for reply in corpus.replies(Split::Train) {
        let duration = corpus.reply_audio(reply).unwrap().len() as f64 / 16_000.0;
        assert_eq!(reply.words.iter().map(|word| word.word.as_str()).collect::<Vec<_>>().join(" "), reply.text);
        assert_eq!(reply.words[0].start, 0.0);
        assert!((reply.words.last().unwrap().end - duration).abs() < 1e-9);
        assert!(reply.words.windows(2).all(|pair| pair[0].end == pair[1].start));
    }
    // a killed run: one shard is missing, a partial one lies about
    let before = std::fs::read(options.output.join("questions/0000.s16")).unwrap();
    std::fs::remove_file(options.output.join("questions/0000.jsonl")).unwrap();
    std::fs::write(options.output.join("questions/0000.s16"), "half").unwrap();
    assert_eq!(make(&options).unwrap(), manifest);
    assert_eq!(std::fs::read(options.output.join("questions/0000.s16")).unwrap(), before, "the same seed gives the same sound");
    // other settings in the same folder
    let error = make(&Options { seed: 8, ..options.clone() }).unwrap_err().to_string();
    assert!(error.contains("another seed"), "{error}");
}

#[test]
fn recordings_join_with_a_transcript_only() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("mine");
    std::fs::create_dir_all(mine.join("wavs")).unwrap();
    let spec = hound::WavSpec { channels: 1, sample_rate: 44_100, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut lines = String::new();
    for index in 0..3 {
        let mut writer = hound::WavWriter::create(mine.join(format!("wavs/r{index}.wav")), spec).unwrap();
        (0..44_100).for_each(|sample: i32| writer.write_sample((sample % 100 * 50) as i16).unwrap());
        writer.finalize().unwrap();
        lines += &format!("r{index}|Turn on light {index}, please.\n");
    }
    std::fs::write(mine.join("metadata.csv"), lines).unwrap();
    let options = Options { questions: 20, swapped: 0, recordings: Some(mine), ..options(&folder.path().join("corpus")) };
    assert_eq!(make(&options).unwrap().recordings, 3);
    let metadata = options.recordings.as_ref().unwrap().join("metadata.csv");
    let listed = std::fs::read_to_string(&metadata).unwrap();
    std::fs::write(&metadata, listed.replace("r1|Turn on", "r1|Turn off")).unwrap();
    let error = make(&options).unwrap_err().to_string();
    assert!(error.contains("metadata.csv"), "{error}");
    std::fs::write(&metadata, listed).unwrap();
    make(&options).unwrap();
    let corpus = Corpus::open(&options.output).unwrap();
    let all = [Split::Train, Split::Dev, Split::Test].into_iter().flat_map(|split| corpus.questions(split));
    let recorded: Vec<&Utterance> = all.filter(|utterance| utterance.set == "recordings").collect();
    assert_eq!(recorded.len(), 3);
    assert!(recorded.iter().all(|utterance| utterance.dialogue.is_none() && utterance.text.starts_with("turn on light")));
    assert!((corpus.audio(recorded[0]).unwrap().len() as i64 - 16_000).abs() < 3);
}
