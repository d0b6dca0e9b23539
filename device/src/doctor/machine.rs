//! What Linux tells about the machine and about this user. Everything is read below a root folder, so that tests can make one.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Level};

/// Hotter boards are slowed down soon (a Pi 4 and 5 at 80 to 85 °C), in thousandths of a degree.
const HOT: i64 = 75_000;
/// Free memory that an agent with a small bundle needs, in MiB.
const MEMORY: u64 = 200;

/// A machine as seen from `/`.
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine below `root`; `/` for this one.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.root.join(path)).ok()?.trim_matches(['\0', '\n', ' ']).to_owned())
    }

    /// Entries of a folder whose name begins so, in order.
    fn entries(&self, folder: &str, prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names
    }

    /// Everything. What the machine does not tell is left out.
    pub fn findings(&self) -> Vec<Finding> {
        let mut all = vec![self.board()];
        all.extend(
            [self.governor(), self.temperature(), self.memory(), self.realtime(), self.audio_group(), self.service()].into_iter().flatten(),
        );
        all
    }

    fn board(&self) -> Finding {
        let model = self.read("proc/device-tree/model").or_else(|| self.read("sys/devices/virtual/dmi/id/product_name"));
        let cpus = self.entries("sys/devices/system/cpu", "cpu").iter().filter(|name| name[3..].parse::<u32>().is_ok()).count();
        let kernel = self.read("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
        let arch = std::env::consts::ARCH;
        Finding::fine("machine", format!("{}, {cpus} cores, {arch}, Linux {kernel}", model.as_deref().unwrap_or("of no name")))
    }

    fn governor(&self) -> Option<Finding> {
        let governors: Vec<String> = self
            .entries("sys/devices/system/cpu", "cpu")
            .iter()
            .filter_map(|cpu| self.read(&format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor")))
            .collect();
        let first = governors.first()?;
        if governors.iter().any(|governor| governor == "powersave" || governor == "conservative") {
            let cure = "answers come later: `echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor`";
            return Some(Finding::bad(Level::Warning, "CPU governor", first.clone(), cure));
        }
        Some(Finding::fine("CPU governor", first.clone()))
    }

    fn temperature(&self) -> Option<Finding> {
        let zones = self.entries("sys/class/thermal", "thermal_zone");
        let hottest = zones.iter().filter_map(|zone| self.read(&format!("sys/class/thermal/{zone}/temp"))?.parse::<i64>().ok()).max()?;
        let found = format!("{:.0} °C", hottest as f64 / 1000.0);
        if hottest >= HOT {
            return Some(Finding::bad(Level::Warning, "temperature", found, "the board will be slowed down: give it a heat sink or a fan"));
        }
        Some(Finding::fine("temperature", found))
    }

    fn memory(&self) -> Option<Finding> {
        let text = self.read("proc/meminfo")?;
        let mib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
        };
        let (free, all) = (mib("MemAvailable:")?, mib("MemTotal:")?);
        let found = format!("{free} of {all} MiB free");
        if free < MEMORY {
            let cure = format!("close other programs: the agent needs about {MEMORY} MiB, or it is swapped out in mid-sentence");
            return Some(Finding::bad(Level::Problem, "memory", found, cure));
        }
        Some(Finding::fine("memory", found))
    }

    fn realtime(&self) -> Option<Finding> {
        let limits = self.read("proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime priority"))?;
        let soft = line.split_whitespace().next()?;
        if soft == "0" {
            let cure = "sound may stutter under load: put `@audio - rtprio 95` into /etc/security/limits.d/audio.conf and log in again, or \
                        `LimitRTPRIO=95` into the service";
            return Some(Finding::bad(Level::Warning, "realtime priority", "not allowed to this user", cure));
        }
        Some(Finding::fine("realtime priority", format!("allowed up to {soft}")))
    }

    /// May this user open the sound cards?
    fn audio_group(&self) -> Option<Finding> {
        let cards = self.entries("dev/snd", "pcm");
        if cards.is_empty() {
            let cure = "plug one in; `arecord -l` and `aplay -l` list them. A sound server over the network works without";
            return Some(Finding::bad(Level::Warning, "sound cards", "the kernel has none", cure));
        }
        let denied = cards.iter().find(|card| {
            let opened = fs::File::open(self.root.join("dev/snd").join(card));
            opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        });
        if let Some(card) = denied {
            let found = format!("this user may not open /dev/snd/{card}");
            let cure = "`sudo usermod -aG audio $USER`, and log in again; in a service, `SupplementaryGroups=audio`";
            return Some(Finding::bad(Level::Problem, "sound cards", found, cure));
        }
        Some(Finding::fine("sound cards", format!("{} directions, all open to this user", cards.len())))
    }

    /// Works by hand and not as a service: a sound server belongs to a session, which a system service does not have.
    fn service(&self) -> Option<Finding> {
        let groups = self.read("proc/self/cgroup")?;
        let service = groups.lines().find_map(|line| line.rsplit('/').next().filter(|unit| unit.ends_with(".service")))?;
        let user = groups.contains("/user.slice/");
        let session = std::env::var_os("XDG_RUNTIME_DIR").is_some();
        if !user && !session {
            let cure = "PulseAudio and PipeWire are not there for it, only ALSA: install it as a service of the user (`systemctl --user`, with \
                        `loginctl enable-linger`), or choose an `alsa` device by `--host alsa`";
            return Some(Finding::bad(Level::Warning, "service", format!("runs as the system's {service}, without a session"), cure));
        }
        Some(Finding::fine("service", format!("runs in {service}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Finding>) {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("inside")).expect("makes");
            fs::write(path, text).expect("writes");
        }
        let findings = Machine::new(root.path()).findings();
        (root, findings)
    }

    fn level_of(findings: &[Finding], what: &str) -> Level {
        findings.iter().find(|finding| finding.what == what).unwrap_or_else(|| panic!("nothing of {what}: {findings:?}")).level
    }

    #[test]
    fn a_board_in_trouble() {
        let (_root, findings) = machine(&[
            ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpufreq/policy0", ""),
            ("sys/class/thermal/thermal_zone0/temp", "81250\n"),
            ("proc/meminfo", "MemTotal:        926000 kB\nMemAvailable:    102400 kB\n"),
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units     \nMax realtime priority     0                    0                    \n",
            ),
            ("proc/self/cgroup", "0::/system.slice/sa-agent.service\n"),
        ]);
        assert!(findings[0].found.starts_with("Raspberry Pi 4 Model B Rev 1.4, 1 cores"), "{findings:?}");
        for (what, level) in [
            ("CPU governor", Level::Warning),
            ("temperature", Level::Warning),
            ("memory", Level::Problem),
            ("realtime priority", Level::Warning),
            ("sound cards", Level::Warning),
        ] {
            assert_eq!(level_of(&findings, what), level);
        }
        assert!(findings.iter().any(|finding| finding.what == "service"));
    }

    #[test]
    fn a_board_as_it_should_be() {
        let (_root, findings) = machine(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48000\n"),
            ("proc/meminfo", "MemTotal:       3884000 kB\nMemAvailable:   3102400 kB\n"),
            ("proc/self/limits", "Max realtime priority     95                   95                   \n"),
            ("dev/snd/pcmC0D0p", ""),
            ("proc/self/cgroup", "0::/user.slice/user-1000.slice/session-1.scope\n"),
        ]);
        assert!(findings.iter().all(|finding| finding.level == Level::Fine), "{findings:?}");
        // The real one has at least a name and cores.
        assert!(!Machine::new(Path::new("/")).findings().is_empty());
    }
}
