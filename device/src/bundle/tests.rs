use super::*;

/// A manifest that fits together, with tiny sizes; `graph` files hold only their names.
fn tiny() -> Manifest {
    let stage = |file: &str, chunk, inputs: Vec<TensorEntry>, outputs: Vec<TensorEntry>| StageEntry {
        graph: FileEntry::named(file),
        precision: "fp32".into(),
        chunk,
        latency_ms: 0.0,
        initial: None,
        inputs,
        outputs,
    };
    let (f, i) = (TensorEntry::f32 as fn(&'static str, &[usize]) -> _, TensorEntry::i64 as fn(&'static str, &[usize]) -> _);
    let words = Vocabulary::from_words(["on"]).expect("in order").len();
    Manifest {
        format_version: 1,
        name: "tiny".into(),
        created_by: "test".into(),
        source_checkpoint: "00".into(),
        sample_rate: 16_000,
        unit_rate: 25,
        k: 10,
        group: 4,
        layout: Layout::InterleavedWords,
        transcript: true,
        minimum_memory_mb: 100,
        licence: "MIT".into(),
        provenance: "random".into(),
        vocabulary: Some(FileEntry::named("vocabulary.txt")),
        unit_distances: None,
        special_tokens: crate::vocabulary::SPECIALS.iter().zip(0..).map(|(s, i)| ((*s).to_owned(), i)).collect(),
        stage: Stages {
            tokenizer: Some(stage(
                "tokenizer.onnx",
                5120,
                vec![f("audio", &[1, 5120]), f("state.audio", &[1, 240])],
                vec![i("units", &[1, 8]), f("state.audio.next", &[1, 240])],
            )),
            lm: Some(stage(
                "lm.onnx",
                1,
                vec![i("token", &[1]), i("units", &[1, 4]), f("is_group", &[1]), i("position", &[1]), f("cache.key.0", &[1, 64, 4])],
                vec![f("logits", &[1, words]), f("hidden", &[1, 16]), f("cache.key.0.new", &[1, 1, 4])],
            )),
            head: Some(stage("head.onnx", 1, vec![f("hidden", &[1, 16])], vec![f("unit_logits", &[1, 4, 11])])),
            decoder: Some(stage(
                "decoder.onnx",
                2,
                vec![i("units", &[1, 2]), f("state.conv.0", &[1, 3, 2])],
                vec![f("log_magnitude", &[1, 8, 321]), f("phase", &[1, 8, 321]), f("state.conv.0.next", &[1, 3, 2])],
            )),
        },
        measured: toml::toml! { unit_agreement = 0.99 },
    }
}

/// The entry of a stage that is there.
fn of(stage: &mut Option<StageEntry>) -> &mut StageEntry {
    stage.as_mut().expect("tiny has all stages")
}

fn write(dir: &Path, manifest: Manifest) -> Result<Bundle, BundleError> {
    let writer = BundleWriter::create(dir)?;
    writer.add("vocabulary.txt", Vocabulary::from_words(["on"]).expect("in order").to_text().as_bytes())?;
    for (name, stage) in manifest.stage.present() {
        writer.add(&stage.graph.file, name.as_str().as_bytes())?;
    }
    if let Some(initial) = manifest.stage.decoder.as_ref().and_then(|decoder| decoder.initial.as_ref()) {
        writer.add_states(&initial.file, (0..6).map(|i| i as f32))?;
    }
    writer.finish(manifest)
}

#[test]
fn written_bundle_opens_again_and_replaces_the_old_one() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let dir = tmp.path().join("nano");
    let mut manifest = tiny();
    of(&mut manifest.stage.decoder).initial = Some(FileEntry::named("decoder.f32"));
    let bundle = write(&dir, manifest).expect("fits together");
    assert_eq!(bundle.manifest().stage.require(StageName::Lm).expect("it has one").graph.bytes, 2);
    assert_eq!(bundle.manifest().measured["unit_agreement"].as_float(), Some(0.99));
    let states = bundle.initial_states(StageName::Decoder).expect("readable");
    assert_eq!(states, vec![("state.conv.0".to_owned(), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])]);
    write(&dir, tiny()).expect("replaces");
    let left: Vec<_> = std::fs::read_dir(tmp.path()).expect("readable").collect();
    assert_eq!(left.len(), 1, "nothing is left beside the bundle");
    assert!(Bundle::open(&dir).expect("opens").initial_states(StageName::Decoder).expect("zeros")[0].1.iter().all(|x| *x == 0.0));
}

#[test]
fn every_mismatch_is_named() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let dir = tmp.path().join("nano");
    let refuse = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = tiny();
        change(&mut manifest);
        let message = write(&dir, manifest).expect_err("must be refused").to_string();
        assert!(!dir.exists() && !tmp.path().join("nano.partial").exists(), "nothing half-written");
        message
    };
    assert!(refuse(&|m| m.group = 5).contains("stage lm: `units` is i64 [1, 4], and needs i64 [1, 5]"));
    assert!(refuse(&|m| m.k = 11).contains("stage head: `unit_logits`"));
    assert!(refuse(&|m| of(&mut m.stage.lm).outputs[0].shape[1] += 1).contains("the vocabulary has"));
    assert!(refuse(&|m| of(&mut m.stage.head).inputs[0].shape[1] = 8).contains("stage head: `hidden`"));
    assert!(refuse(&|m| of(&mut m.stage.tokenizer).chunk = 640).contains("stage.tokenizer.chunk = 640"));
    assert!(refuse(&|m| of(&mut m.stage.tokenizer).outputs.truncate(1)).contains("no output `state.audio.next`"));
    assert!(refuse(&|m| of(&mut m.stage.tokenizer).inputs.truncate(1)).contains("no input `state.audio`"));
    assert!(refuse(&|m| of(&mut m.stage.lm).inputs.truncate(4)).contains("no input `cache.*`"));
    assert!(refuse(&|m| m.special_tokens.extend([("<end>".to_owned(), 8)])).contains("special token <end>"));
    assert!(refuse(&|m| of(&mut m.stage.decoder).latency_ms = 50.0).contains("stage.decoder.latency_ms = 50"));
    // Products beyond any number, and numbers beyond any memory.
    for shape in [vec![1 << 32, 1 << 32], vec![1, usize::MAX, 2], vec![1, 1 << 40]] {
        let state = refuse(&|m| {
            of(&mut m.stage.decoder).inputs[1].shape.clone_from(&shape);
            of(&mut m.stage.decoder).outputs[2].shape.clone_from(&shape);
        });
        assert!(state.contains("stage decoder: `state.conv.0`") && state.contains("elements"), "{state}");
        assert!(refuse(&|m| of(&mut m.stage.tokenizer).outputs[0].shape.clone_from(&shape)).contains("stage tokenizer: `units`"));
    }
    assert!(refuse(&|m| m.unit_rate = 7).contains("unit_rate"));
    assert!(refuse(&|m| m.vocabulary = Some(FileEntry::named("../x"))).contains("missing"));
}

#[test]
fn a_part_of_an_agent_is_a_bundle_but_half_a_language_model_is_none() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let dir = tmp.path().join("part");
    let part = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = tiny();
        change(&mut manifest);
        write(&dir, manifest).map(|bundle| bundle.manifest().clone())
    };
    let alone = |m: &mut Manifest| {
        m.stage = Stages { tokenizer: m.stage.tokenizer.take(), ..Stages::default() };
        m.vocabulary = None;
        m.special_tokens.clear();
    };
    let read = part(&alone).expect("a tokenizer alone");
    assert_eq!(read.stage.present().map(|(name, _)| name).collect::<Vec<_>>(), [StageName::Tokenizer]);
    let missing = read.stage.require(StageName::Decoder).expect_err("there is none").to_string();
    assert_eq!(missing, "the bundle has no decoder: it is a part, not a whole agent");
    assert!(part(&|m| m.stage.head = None).expect_err("half").to_string().contains("lm and head belong together"));
    assert!(part(&|m| m.vocabulary = None).expect_err("mute").to_string().contains("needs its vocabulary"));
    assert!(part(&|m| m.stage = Stages::default()).expect_err("empty").to_string().contains("there is none"));
}

#[test]
fn a_trunk_of_text_brings_its_own_tokenizer() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let dir = tmp.path().join("trunk");
    let trunk = |tokenizer: &str, change: &dyn Fn(&mut StageEntry)| {
        let mut manifest = tiny();
        let mut lm = manifest.stage.lm.take().expect("tiny has one");
        lm.inputs.retain(|input| !["units", "is_group"].contains(&input.name.as_str()));
        change(&mut lm);
        manifest.stage = Stages { lm: Some(lm), ..Stages::default() };
        manifest.vocabulary = Some(FileEntry::named("tokenizer.json"));
        manifest.special_tokens.clear();
        let writer = BundleWriter::create(&dir)?;
        writer.add("tokenizer.json", tokenizer.as_bytes())?;
        writer.add("lm.onnx", b"lm")?;
        writer.finish(manifest)
    };
    let small = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]}"#;
    let bundle = trunk(small, &|_| ()).expect("a trunk alone");
    assert_eq!(bundle.text_tokenizer(), Some(dir.join("tokenizer.json")));
    assert!(bundle.vocabulary().is_empty());
    let refused = |tokenizer: &str, change: &dyn Fn(&mut StageEntry)| trunk(tokenizer, change).expect_err("must be refused").to_string();
    let words = Vocabulary::from_words(["on"]).expect("in order").len();
    let large = small.replace("\"id\": 2", &format!("\"id\": {words}"));
    assert!(refused(&large, &|_| ()).contains(&format!("has {} tokens", words + 1)));
    assert!(refused("{}", &|_| ()).starts_with("tokenizer.json: "));
    let speaks = |lm: &mut StageEntry| lm.inputs.push(TensorEntry::i64("units", &[1, 4]));
    assert!(refused(small, &speaks).contains("lm and head belong together"));
}

#[test]
fn a_tokenizer_may_be_late_by_whole_units() {
    let mut manifest = tiny();
    assert_eq!(manifest.tokenizer_delay(), 0);
    of(&mut manifest.stage.tokenizer).latency_ms = 8.0 * 40.0 + 5.0 * 40.0;
    manifest.check().expect("five units late");
    assert_eq!(manifest.tokenizer_delay(), 5);
    of(&mut manifest.stage.tokenizer).latency_ms = 8.0 * 40.0 + 50.0;
    assert!(manifest.check().expect_err("one and a quarter").to_string().contains("stage.tokenizer.latency_ms"));
}

#[test]
fn a_look_ahead_has_an_end() {
    for (late, within) in [(DECODER_MAX_DELAY, true), (DECODER_MAX_DELAY + 1, false)] {
        let mut manifest = tiny();
        of(&mut manifest.stage.decoder).latency_ms = late as f64 * 40.0;
        assert_eq!(manifest.check().is_ok(), within, "a decoder {late} units late");
    }
    for (late, within) in [(TOKENIZER_MAX_DELAY, true), (TOKENIZER_MAX_DELAY + 1, false)] {
        let mut manifest = tiny();
        of(&mut manifest.stage.tokenizer).latency_ms = (8 + late) as f64 * 40.0;
        assert_eq!(manifest.check().is_ok(), within, "a tokenizer {late} units late");
    }
}

#[test]
fn damage_on_disk_is_named() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let dir = tmp.path().join("nano");
    write(&dir, tiny()).expect("fits together");
    std::fs::write(dir.join("lm.onnx"), b"lM").expect("writable");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::Hash { file, .. }) if file == "lm.onnx"));
    std::fs::write(dir.join("lm.onnx"), b"l").expect("writable");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::FileSize { found: 1, expected: 2, .. })));
    std::fs::remove_file(dir.join("lm.onnx")).expect("there");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::MissingFile { file, .. }) if file == "lm.onnx"));
    let text = std::fs::read_to_string(dir.join(MANIFEST)).expect("there");
    std::fs::write(dir.join(MANIFEST), text.replace("format_version = 1", "format_version = 2")).expect("writable");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::Version { found: 2 })));
    std::fs::write(dir.join(MANIFEST), "rubbish").expect("writable");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::Parse { .. })));
    std::fs::remove_file(dir.join(MANIFEST)).expect("there");
    assert!(matches!(Bundle::open(&dir), Err(BundleError::NoManifest { .. })));
    assert!(matches!(Bundle::open(&tmp.path().join("none")), Err(BundleError::NoFolder { .. })));
    std::fs::write(tmp.path().join("file"), b"").expect("writable");
    assert!(BundleWriter::create(tmp.path()).is_err(), "a folder of other things is not replaced");
}
