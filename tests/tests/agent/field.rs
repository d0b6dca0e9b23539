//! The field log of the shipped agent: what it decided is decided again, from audio and from units alone.

use anyhow::{Context, Result, ensure};
use sa_tests::{Talk, bundle, conversations, tools_for};

#[test]
fn a_conversation_is_replayed_to_the_same_decisions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // One whose later question is understood only after the one before.
    let conversation = conversations()?.into_iter().find(|turns| turns.len() > 1).context("no sample follows another")?;
    let tools = tools_for(&conversation, folder.path())?;
    for (name, units_only) in [("audio", false), ("units", true)] {
        let log = folder.path().join(name);
        let log = log.to_str().context("a temporary folder's path is text")?;
        let mut talk = Talk::new().tools(&tools).flag("--field-log").flag(log);
        for sample in &conversation {
            talk = talk.input(&sample.wav);
        }
        let talk = if units_only { talk.flag("--field-log-units-only") } else { talk };
        let turns = talk.run()?.succeeded()?.of_kind("turn")?.len();
        let bundle = bundle();
        let replay = ["replay", log, "--json", "--bundle", bundle.to_str().context("the bundle's path is text")?];
        let outcome = Talk::bare(&replay).run()?.succeeded().context("while replaying")?;
        let total = &outcome.of_kind("replayed")?[0];
        ensure!(total["same"] == turns && total["turns"] == turns && turns > 1, "{name}: {}", outcome.stdout);
    }
    Ok(())
}
