//! The shipped agent on the second engine.
//!
//! Ignored, and counted as such, until `tests/run.sh` has a library of ONNX Runtime and names it in `SA_ORT_LIBRARY`.

mod on_ort {
    use std::path::PathBuf;

    use anyhow::{Context, Result, ensure};
    use sa_tests::{Outcome, Sample, Talk, samples};
    use serde_json::Value;

    /// So many answers may differ: where two words are about equally likely, the last bit of an 8-bit product decides.
    const DIFFERENT: usize = 1;

    /// Every third sample, without those whose answer depends on the clock.
    fn questions() -> Result<Vec<Sample>> {
        let timeless = samples()?.into_iter().filter(|sample| sample.category != "time" && sample.category != "date");
        Ok(timeless.step_by(3).collect())
    }

    fn library() -> Result<PathBuf> {
        std::env::var_os("SA_ORT_LIBRARY").map(PathBuf::from).context("SA_ORT_LIBRARY names no library")
    }

    /// All questions, each by itself.
    fn ask(flags: &[&str], device: &str) -> Result<Outcome> {
        let [folder, home] = [tempfile::tempdir()?, tempfile::tempdir()?];
        let mut talk =
            Talk::new().output_dir(folder.path()).environment("SA_ORT_LIBRARY", &library()?).environment("SA_DEVICE", device.as_ref());
        for name in ["HOME", "TMPDIR", "XDG_CACHE_HOME"] {
            talk = talk.environment(name, home.path());
        }
        for flag in flags {
            talk = talk.flag(flag);
        }
        for sample in questions()? {
            talk = talk.input(&sample.wav);
        }
        let outcome = talk.flag("--fresh").run()?.succeeded()?;
        let left = std::fs::read_dir(home.path())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        ensure!(left.is_empty(), "the library keeps an account of its use: {left:?}");
        Ok(outcome)
    }

    #[test]
    #[ignore = "needs ONNX Runtime in SA_ORT_LIBRARY"]
    fn both_engines_give_the_same_answers() -> Result<()> {
        let (tract, ort) = (ask(&["--engine", "tract"], "cpu")?, ask(&["--engine", "ort"], "cpu")?);
        ensure!(tract.of_kind("ready")?[0]["engine"] == "tract" && ort.of_kind("ready")?[0]["engine"] == "ort", "{}", ort.brief());
        let words = |turn: &Value| (turn["transcript"].clone(), turn["reply_text"].clone(), turn["calls"].clone());
        let (tract, ort) = (tract.of_kind("turn")?, ort.of_kind("turn")?);
        ensure!(tract.len() == ort.len() && !tract.is_empty(), "{} and {} turns", tract.len(), ort.len());
        let alike = tract.iter().zip(&ort).filter(|(tract, ort)| words(tract) == words(ort)).count();
        for (tract, ort) in tract.iter().zip(&ort).filter(|(tract, ort)| words(tract) != words(ort)) {
            println!("tract: {} → {}; ort: {} → {}", tract["transcript"], tract["reply_text"], ort["transcript"], ort["reply_text"]);
        }
        println!("{alike} of {} alike", tract.len());
        ensure!(alike + DIFFERENT >= tract.len(), "{alike} of {} questions are answered alike", tract.len());
        Ok(())
    }

    /// `cpu:2` asks for threads that tract does not have, and gets ONNX Runtime.
    #[test]
    #[ignore = "needs ONNX Runtime in SA_ORT_LIBRARY"]
    fn two_threads_are_onnx_runtimes() -> Result<()> {
        let outcome = ask(&[], "cpu:2")?;
        ensure!(outcome.of_kind("ready")?[0]["engine"] == "ort", "tract has one thread");
        ensure!(outcome.of_kind("turn")?.len() == questions()?.len(), "{}", outcome.brief());
        Ok(())
    }
}
