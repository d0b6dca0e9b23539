//! What Linux tells about the machine and about this user. Everything is read below a root folder, so that tests can make one.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Finding, Level};

/// Hotter boards are slowed down soon (a Pi 4 and 5 at 80 to 85 °C), in thousandths of a degree.
const HOT: i64 = 75_000;
/// Free memory that an agent with a small bundle needs, in MiB.
const MEMORY: u64 = 200;

/// A machine as seen from `/`.
pub struct Machine {
    root: PathBuf,
    /// Does this process belong to a session of its user?
    session: bool,
}

impl Machine {
    /// The machine below `root`; `/` for this one.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), session: std::env::var_os("XDG_RUNTIME_DIR").is_some() }
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
        let told = [self.governor(), self.temperature(), self.memory(), self.realtime(), Some(self.audio_group()), self.service()];
        all.extend(told.into_iter().flatten());
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
    fn audio_group(&self) -> Finding {
        let cards = self.entries("dev/snd", "pcm");
        // Without the flag the kernel lets us wait until whoever has the device gives it back.
        let open =
            |card: &String| fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.root.join("dev/snd").join(card));
        let tried: Vec<(String, io::Result<()>)> = cards
            .into_iter()
            .map(|card| {
                let done = open(&card).map(drop);
                (card, done)
            })
            .collect();
        cards_finding(&tried)
    }

    /// Works by hand and not as a service: a sound server belongs to a session, which a system service does not have.
    fn service(&self) -> Option<Finding> {
        let groups = self.read("proc/self/cgroup")?;
        let service = groups.lines().find_map(|line| line.rsplit('/').next().filter(|unit| unit.ends_with(".service")))?;
        let user = groups.contains("/user.slice/");
        if !user && !self.session {
            let cure = "PulseAudio and PipeWire are not there for it, only ALSA: install it as a service of the user (`systemctl --user`, with \
                        `loginctl enable-linger`), or choose an `alsa` device by `--host alsa`";
            return Some(Finding::bad(Level::Warning, "service", format!("runs as the system's {service}, without a session"), cure));
        }
        Some(Finding::fine("service", format!("runs in {service}")))
    }
}

/// What became of opening each direction of each card.
fn cards_finding(tried: &[(String, io::Result<()>)]) -> Finding {
    let what = "sound cards";
    if tried.is_empty() {
        let cure = "plug one in; `arecord -l` and `aplay -l` list them. A sound server over the network works without";
        return Finding::bad(Level::Warning, what, "the kernel has none", cure);
    }
    let failed = |kind| tried.iter().filter(move |(_, done)| done.as_ref().is_err_and(|error| error.kind() == kind));
    if let Some((card, _)) = failed(ErrorKind::PermissionDenied).next() {
        let cure = "`sudo usermod -aG audio $USER`, and log in again; in a service, `SupplementaryGroups=audio`";
        return Finding::bad(Level::Problem, what, format!("this user may not open /dev/snd/{card}"), cure);
    }
    // No fault: a sound server shares them out. Whether the agent can have one is tried by opening it.
    let busy: Vec<&str> =
        [ErrorKind::ResourceBusy, ErrorKind::WouldBlock].into_iter().flat_map(failed).map(|(card, _)| card.as_str()).collect();
    let busy = if busy.is_empty() { String::new() } else { format!("; in use by another program now: {}", busy.join(", ")) };
    Finding::fine(what, format!("{} directions, all open to this user{busy}", tried.len()))
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
        let findings = Machine { root: root.path().to_owned(), session: false }.findings();
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
            ("service", Level::Warning),
        ] {
            assert_eq!(level_of(&findings, what), level, "{what}");
        }
    }

    /// A service of the user, and one of the system that was given a session, have a sound server.
    #[test]
    fn a_service_needs_a_session() {
        let level = |group: &str, session: bool| {
            let (root, _) = machine(&[("proc/self/cgroup", group)]);
            Machine { root: root.path().to_owned(), session }.service().map(|finding| finding.level)
        };
        let (system, user) =
            ("0::/system.slice/sa-agent.service", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/sa-agent.service");
        assert_eq!((level(system, false), level(system, true)), (Some(Level::Warning), Some(Level::Fine)));
        assert_eq!((level(user, false), level("0::/user.slice/user-1000.slice/session-1.scope", false)), (Some(Level::Fine), None));
    }

    /// A pipe without a writer stands for a device that another program has: an ordinary open of either waits.
    #[test]
    fn a_busy_card_does_not_hold_it_up() {
        let root = tempfile::tempdir().expect("a folder");
        let cards = root.path().join("dev/snd");
        fs::create_dir_all(&cards).expect("makes");
        let made = std::process::Command::new("mkfifo").arg(cards.join("pcmC0D0c")).status().expect("mkfifo is there");
        assert!(made.success());
        let (done, waited) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(Machine { root: root.path().to_owned(), session: true }.audio_group()));
        let finding = waited.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait for the other end");
        assert_eq!(finding.level, Level::Fine);
    }

    #[test]
    fn cards_that_cannot_be_opened_are_told() {
        let card = |name: &str, code: i32| (name.to_owned(), if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) });
        let busy = cards_finding(&[card("pcmC0D0c", libc::EBUSY), card("pcmC0D0p", 0), card("pcmC1D0c", libc::EAGAIN)]);
        assert!(busy.level == Level::Fine && busy.found.ends_with("by another program now: pcmC0D0c, pcmC1D0c"), "{busy:?}");
        for code in [libc::EACCES, libc::EPERM] {
            let denied = cards_finding(&[card("pcmC0D0c", libc::EBUSY), card("pcmC0D0p", code)]);
            assert!(denied.level == Level::Problem && denied.found.contains("pcmC0D0p"), "{denied:?}");
            assert!(denied.cure.expect("what to do").contains("usermod -aG audio"));
        }
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
