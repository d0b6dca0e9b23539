//! A run folder: what is needed to stop at any moment and go on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burn::module::Module;
use burn::optim::OptimizerRecord;
use burn::store::ModuleRecord;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{CommonArgs, Optimizer, checkpoint::write_atomically, curve};

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    /// The last step is done, or the minutes of this call are over; the state is saved.
    Stop,
}

/// One training stage in its folder.
pub struct Run {
    dir: PathBuf,
    /// Nobody else trains here.
    _held: crate::lock::Held,
    log: File,
    bar: ProgressBar,
    total: u64,
    save_every: u64,
    deadline: Option<Instant>,
}

impl Run {
    /// Opens or makes the run folder `dir` for `total` steps.
    ///
    /// # Errors
    /// The folder belongs to a run with another configuration: the first differing field is named; give
    /// another `--output` or remove the folder.
    pub fn open<C: Serialize>(dir: &Path, config: &C, total: u64, args: &CommonArgs) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("while making the run folder {}", dir.display()))?;
        let held = crate::lock::hold(dir).with_context(|| format!("while opening the run folder {}", dir.display()))?;
        let path = dir.join("config.json");
        // Through text and back, as the one on disk went: a float may come back as its neighbour.
        let text = serde_json::to_vec_pretty(&serde_json::to_value(config).context("while writing down the configuration")?)?;
        let config: serde_json::Value = serde_json::from_slice(&text).context("while reading the configuration again")?;
        if path.exists() {
            let bytes = std::fs::read(&path).with_context(|| format!("while reading {}", path.display()))?;
            let mut before: serde_json::Value =
                serde_json::from_slice(&bytes).with_context(|| format!("while reading {}", path.display()))?;
            // The decoder once noted its steps here, which may change.
            if let serde_json::Value::Object(fields) = &mut before {
                fields.remove("steps");
            }
            if let Some(field) = difference(&before, &config, "") {
                bail!("{} holds a run with another configuration ({field}): give another --output or remove that folder", dir.display());
            }
        } else {
            write_atomically(&path, &text)?;
        }
        let path = dir.join("log.jsonl");
        let log = OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("while opening {}", path.display()))?;
        let style = ProgressStyle::with_template("{prefix} {pos}/{len} [{elapsed_precise}, {eta_precise} to go] {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self {
            dir: dir.to_owned(),
            _held: held,
            log,
            bar: ProgressBar::new(total).with_style(style).with_prefix(name),
            total,
            save_every: args.save_every.max(1),
            deadline: args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Steps of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Brings back the saved state; returns the module, the optimiser and the number of steps done (0 at a fresh start).
    pub fn resume<M: Module>(&mut self, model: M, mut optimizer: Optimizer) -> Result<(M, Optimizer, u64)> {
        let state = self.dir.join("state");
        // A kill between the two renames of `save` leaves the old state aside: take it back.
        let aside = self.dir.join("state.old");
        if !state.exists() && aside.exists() {
            std::fs::rename(&aside, &state).with_context(|| format!("while taking back {}", aside.display()))?;
        }
        if !state.exists() {
            self.truncate_log(0)?; // of a run that was killed before its first save
            return Ok((model, optimizer, 0));
        }
        let load = || format!("while resuming from {} (remove it to start again)", state.display());
        let record = ModuleRecord::load(state.join("model.bpk")).with_context(load)?;
        let model = model.try_load_record(record).with_context(load)?;
        let record = OptimizerRecord::load(state.join("optimizer.bpk")).with_context(load)?;
        optimizer.inner = optimizer.inner.load_record(record);
        let step = std::fs::read_to_string(state.join("step")).with_context(load)?;
        let step = step.trim().parse().with_context(load)?;
        self.truncate_log(step)?;
        self.bar.set_position(step);
        self.bar.reset_eta();
        Ok((model, optimizer, step))
    }

    /// Steps after the last save are done again: their log lines go, and with them one that a kill tore.
    fn truncate_log(&mut self, step: u64) -> Result<()> {
        let path = self.dir.join("log.jsonl");
        let text = std::fs::read_to_string(&path).with_context(|| format!("while reading {}", path.display()))?;
        let mut kept = String::new();
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            if value["step"].as_u64().is_some_and(|s| s <= step) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        write_atomically(&path, kept.as_bytes())?;
        self.log = OpenOptions::new().append(true).open(&path).with_context(|| format!("while opening {}", path.display()))?;
        Ok(())
    }

    /// Replaces the saved state: written beside, then renamed.
    pub fn save<M: Module>(&mut self, step: u64, model: &M, optimizer: &Optimizer) -> Result<()> {
        let (partial, state, aside) = (self.dir.join("state.partial"), self.dir.join("state"), self.dir.join("state.old"));
        let save = || format!("while saving the state of step {step} to {} (is the disk full?)", self.dir.display());
        for dir in [&partial, &aside] {
            if dir.exists() {
                std::fs::remove_dir_all(dir).with_context(save)?;
            }
        }
        std::fs::create_dir(&partial).with_context(save)?;
        model.clone().into_record().save(partial.join("model.bpk")).with_context(save)?;
        optimizer.inner.to_record().save(partial.join("optimizer.bpk")).with_context(save)?;
        std::fs::write(partial.join("step"), step.to_string()).with_context(save)?;
        if state.exists() {
            std::fs::rename(&state, &aside).with_context(save)?;
        }
        std::fs::rename(&partial, &state).with_context(save)?;
        if aside.exists() {
            std::fs::remove_dir_all(&aside).with_context(save)?;
        }
        curve::draw(&self.dir.join("log.jsonl"), &self.dir.join("curve.svg"))
    }

    /// Notes `values` of the step that has just been done (`step` counts from 1), saves where it is time, and says
    /// whether to go on.
    pub fn finish_step<M: Module>(&mut self, step: u64, values: &[(&str, f64)], model: &M, optimizer: &Optimizer) -> Result<Next> {
        self.log(step, values)?;
        self.bar.set_position(step);
        self.bar.set_message(values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(" "));
        // A terminal has the bar; a log file gets a line now and then.
        if self.bar.is_hidden() && (step.is_multiple_of(25) || step == 1) {
            eprintln!("{} {step}/{} {} ({:.0?} to go)", self.bar.prefix(), self.total, self.bar.message(), self.bar.eta());
        }
        let stop = step >= self.total || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if stop || step.is_multiple_of(self.save_every) {
            self.save(step, model, optimizer)?;
        }
        if stop {
            self.bar.abandon();
        }
        Ok(if stop { Next::Stop } else { Next::Continue })
    }

    /// Appends one line to `log.jsonl`.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut line = serde_json::Map::new();
        line.insert("step".into(), step.into());
        for (name, value) in values {
            line.insert((*name).into(), (*value).into());
        }
        writeln!(self.log, "{}", serde_json::Value::Object(line)).with_context(|| format!("while writing {}/log.jsonl", self.dir.display()))
    }
}

/// The first field in which two configurations differ.
fn difference(before: &serde_json::Value, now: &serde_json::Value, path: &str) -> Option<String> {
    use serde_json::Value::Object;
    if before == now {
        return None;
    }
    if let (Object(a), Object(b)) = (before, now) {
        return a.keys().chain(b.keys()).find_map(|key| {
            let null = serde_json::Value::Null;
            difference(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), &format!("{path}.{key}"))
        });
    }
    Some(format!("{}: {before} there, {now} now", path.trim_start_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceChoice, OptimizerConfig};
    use super::*;
    use burn::nn::{Initializer, Linear, LinearConfig};
    use burn::tensor::{Device, Tensor};

    fn args(dir: &Path) -> CommonArgs {
        CommonArgs { corpus: dir.into(), output: dir.into(), minutes: None, seed: 1, device: DeviceChoice::Cpu, save_every: 2 }
    }

    /// Trains to `until`, returning the losses; resumes what is in `dir`.
    fn train(dir: &Path, until: u64) -> Vec<f32> {
        let device = Device::flex().autodiff();
        // Not random: other tests draw from the same generator at the same time.
        let model: Linear = LinearConfig::new(2, 1).with_initializer(Initializer::Constant { value: 0.4 }).init(&device);
        let mut run = Run::open(dir, &"linear", 9, &args(dir)).expect("opened");
        let (mut model, mut optimizer, start) = run.resume(model, Optimizer::new(OptimizerConfig::default())).expect("resumed");
        let mut losses = Vec::new();
        for step in start..until {
            let x = step as f32;
            let input = Tensor::<2>::from_floats([[x.sin(), x.cos()]], &device);
            let loss = (model.forward(input) - 1.0).square().sum();
            losses.push(loss.clone().into_scalar::<f32>());
            (model, _) = optimizer.step(model, loss.backward(), step, 9);
            run.finish_step(step + 1, &[("loss", losses[losses.len() - 1].into())], &model, &optimizer).expect("noted");
        }
        losses
    }

    #[test]
    fn a_killed_run_goes_on_as_if_nothing_had_happened() {
        let (whole, killed) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let expected = train(whole.path(), 9);
        train(killed.path(), 5); // the last save was at step 4
        assert_eq!(train(killed.path(), 9), expected[4..]);
        let lines = std::fs::read_to_string(killed.path().join("log.jsonl")).expect("a log");
        assert_eq!(lines.lines().count(), 9);
        assert!(killed.path().join("curve.svg").exists());
    }

    #[test]
    fn a_run_killed_before_its_first_save_leaves_no_lines() {
        let (whole, killed) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let expected = train(whole.path(), 9);
        train(killed.path(), 1);
        let log = killed.path().join("log.jsonl");
        let mut torn = std::fs::read_to_string(&log).expect("a log");
        torn.push_str("{\"step\":2,\"lo");
        std::fs::write(&log, torn).expect("written");
        assert_eq!(train(killed.path(), 9), expected);
        assert_eq!(std::fs::read_to_string(log).expect("a log"), std::fs::read_to_string(whole.path().join("log.jsonl")).expect("a log"));
    }

    #[test]
    fn a_state_that_a_kill_left_aside_is_taken_back() {
        let (whole, killed) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let expected = train(whole.path(), 9);
        train(killed.path(), 4);
        std::fs::rename(killed.path().join("state"), killed.path().join("state.old")).expect("renamed");
        assert_eq!(train(killed.path(), 9), expected[4..]);
    }

    #[test]
    fn another_configuration_is_refused_by_field() {
        let dir = tempfile::tempdir().expect("a folder");
        Run::open(dir.path(), &serde_json::json!({"model": {"d": 1, "beta": 0.98f32}}), 1, &args(dir.path())).expect("opened");
        Run::open(dir.path(), &serde_json::json!({"model": {"d": 1, "beta": 0.98f32}}), 1, &args(dir.path())).expect("the same");
        let path = dir.path().join("config.json");
        let older = std::fs::read_to_string(&path).expect("written").replacen('{', "{\"steps\": 3500,", 1);
        std::fs::write(path, older).expect("written");
        Run::open(dir.path(), &serde_json::json!({"model": {"d": 1, "beta": 0.98f32}}), 1, &args(dir.path()))
            .expect("the same but for the steps");
        let error =
            Run::open(dir.path(), &serde_json::json!({"model": {"d": 2, "beta": 0.98f32}}), 1, &args(dir.path())).err().expect("refused");
        assert!(error.to_string().contains("model.d: 1 there, 2 now"), "{error}");
    }
}
