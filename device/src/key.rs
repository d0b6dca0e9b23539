//! The talk key: a key of a keyboard, a button, or a pin, as Linux tells of them all in `/dev/input` (evdev). A pin of a Pi becomes such a
//! device by the line `dtoverlay=gpio-key,gpio=17,keycode=28` in its `config.txt`.
//!
//! A thread waits for the device; it is opened again when it was unplugged. Pressing and releasing go into the [`Controls`] of a
//! conversation, which reads them every 10 ms.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde::Deserialize;

use crate::conversation::{Control, Controls};

/// `EV_KEY` of `linux/input-event-codes.h`; its values are released, pressed, and held (which repeats).
const EV_KEY: u16 = 1;
const RELEASED: i32 = 0;
const PRESSED: i32 = 1;
/// Bytes of a `struct input_event`, of which the last eight are type, code and value.
const EVENT: usize = size_of::<libc::input_event>();
/// Between two attempts to tell a conversation that has not looked yet.
const FULL: Duration = Duration::from_millis(20);
const TRIES: u32 = 500;
/// Between two attempts to open it.
const AGAIN: Duration = Duration::from_secs(2);

/// Which key: `/dev/input/by-id/usb-…-event-kbd` for any key of a device, with `:28` behind it for the one of this code.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Key {
    pub device: PathBuf,
    pub code: Option<u16>,
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, code) = match text.rsplit_once(':') {
            // Ids of devices have colons too: pci-0000:00:14.0-usb-0:1:1.0-event-kbd.
            Some((device, code)) if code.chars().all(|digit| digit.is_ascii_digit()) => {
                (device, Some(code.parse().map_err(|_| format!("{code} is no code of a key; `evtest` shows them"))?))
            }
            _ => (text, None),
        };
        if device.is_empty() {
            return Err("write DEVICE or DEVICE:CODE, such as /dev/input/event0:28".to_owned());
        }
        Ok(Self { device: device.into(), code })
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What the thread has to say.
#[derive(Debug)]
pub struct Watched {
    problems: Receiver<String>,
}

impl Watched {
    /// What went wrong since the last call: each trouble once.
    pub fn problem(&self) -> Option<String> {
        self.problems.try_recv().ok()
    }
}

impl Key {
    /// Begins to watch it, on a thread that lives as long as the program.
    pub fn watch(self, controls: Controls) -> Watched {
        let (sender, problems) = channel();
        std::thread::spawn(move || {
            let mut told = None;
            // Whoever asked for it is gone when nobody takes the problems any more.
            while self.follow(&controls, &sender, &mut told) {
                std::thread::sleep(AGAIN);
            }
        });
        Watched { problems }
    }

    /// Follows the device until it goes away; false when nobody is interested any more.
    fn follow(&self, controls: &Controls, problems: &Sender<String>, told: &mut Option<String>) -> bool {
        let trouble = match File::open(&self.device).map_err(|error| cannot_open(&self.device, &error)) {
            Ok(mut file) => {
                let mut down = false;
                let error = self.read(&mut file, controls, &mut down);
                if down {
                    // It cannot be released any more.
                    put(controls, Control::KeyUp);
                }
                format!("the talk key {} went away ({error}); it is looked for again", self.device.display())
            }
            Err(message) => message,
        };
        if told.as_ref() == Some(&trouble) {
            return true;
        }
        *told = Some(trouble.clone());
        problems.send(trouble).is_ok()
    }

    /// Reads events until that fails.
    fn read(&self, file: &mut impl Read, controls: &Controls, down: &mut bool) -> std::io::Error {
        let mut event = [0u8; EVENT];
        loop {
            if let Err(error) = file.read_exact(&mut event) {
                return error;
            }
            let [.., k0, k1, c0, c1, v0, v1, v2, v3] = event;
            let (kind, code) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([c0, c1]));
            let value = i32::from_ne_bytes([v0, v1, v2, v3]);
            if kind != EV_KEY || self.code.is_some_and(|wanted| wanted != code) {
                continue;
            }
            let control = match value {
                PRESSED => Control::KeyDown,
                RELEASED => Control::KeyUp,
                _ => continue,
            };
            *down = control == Control::KeyDown;
            put(controls, control);
        }
    }
}

/// A full queue has 16 of them waiting. That the key is up must arrive, or it stays down for ever; a queue that nobody has read for
/// seconds belongs to a conversation that is over.
fn put(controls: &Controls, control: Control) {
    for _ in 0..TRIES {
        if controls.enqueue(control).is_ok() || control != Control::KeyUp {
            return;
        }
        std::thread::sleep(FULL);
    }
}

fn cannot_open(device: &Path, error: &std::io::Error) -> String {
    let cure = match error.kind() {
        ErrorKind::PermissionDenied => "the user must be in the group `input`: sudo usermod -aG input $USER, and log in again",
        ErrorKind::NotFound => "`ls /dev/input/by-id` shows what there is",
        _ => "it is tried again",
    };
    format!("cannot open the talk key {}: {error}; {cure}", device.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![7; EVENT - 8];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn keys_are_named_by_device_and_code() {
        let key = |text: &str| text.parse::<Key>();
        assert_eq!(key("/dev/input/event0:28"), Ok(Key { device: "/dev/input/event0".into(), code: Some(28) }));
        let id = "/dev/input/by-path/pci-0000:00:14.0-usb-0:1:1.0-event-kbd";
        assert_eq!(key(id), Ok(Key { device: id.into(), code: None }));
        assert!(key("/dev/input/event0:70000").is_err() && key("").is_err() && key(":28").is_err());
    }

    /// A pipe in place of the device: what is pressed arrives, what repeats or is another key does not, and a key that is unplugged
    /// while it is down counts as released.
    #[test]
    fn presses_go_into_the_conversation() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("event0");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("a plain name");
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let controls = Controls::default();
        let watched = Key { device: path.clone(), code: Some(28) }.watch(controls.clone());
        let mut device = File::options().write(true).open(&path).expect("somebody reads");
        let events = [event(0, 0, 0), event(1, 28, 1), event(1, 28, 2), event(1, 30, 1), event(1, 28, 0), event(1, 28, 1)];
        device.write_all(&events.concat()).expect("somebody reads");
        drop(device);
        let mut found = Vec::new();
        for _ in 0..500 {
            found.extend(std::iter::from_fn(|| controls.dequeue()));
            if found.len() >= 4 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(found, [Control::KeyDown, Control::KeyUp, Control::KeyDown, Control::KeyUp]);
        assert!(watched.problem().is_some_and(|problem| problem.contains("went away")));
    }

    #[test]
    fn a_key_that_is_not_there_is_told_once() {
        let watched = Key { device: "/dev/input/none".into(), code: None }.watch(Controls::default());
        let problem = watched.problems.recv_timeout(Duration::from_secs(5)).expect("a problem");
        assert!(problem.contains("/dev/input/none") && problem.contains("by-id"), "{problem}");
        assert!(watched.problem().is_none());
    }
}
