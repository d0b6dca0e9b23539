//! Which devices there are, and which one is meant.

use cpal::traits::{DeviceTrait, HostTrait};
use cpal::{Device, ErrorKind, Host, HostId, SampleFormat, StreamConfig};
use serde::Serialize;

use crate::audio::AudioError;
use crate::audio::live::Wish;

/// What a device would be opened with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Format {
    /// Samples a second, channels and sample format.
    pub rate: u32,
    pub channels: u16,
    pub format: String,
}

/// One direction of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// None if it cannot be opened now.
    #[serde(flatten)]
    pub format: Option<Format>,
    /// Why not, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why it would be chosen; nothing if it would not.
    pub chosen: Option<&'static str>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    pub id: String,
    pub name: String,
    /// The id has the card's number, which may be another one after a reboot.
    pub numbered: bool,
    pub microphone: Option<Side>,
    pub speaker: Option<Side>,
}

/// All devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    pub devices: Vec<Listed>,
    /// Why no microphone or no speaker would be chosen.
    pub problems: Vec<String>,
}

/// What to do about an error.
fn cure(error: &cpal::Error) -> &'static str {
    match error.kind() {
        ErrorKind::DeviceBusy => "; another program has it: close that, or use a sound server (`sa-agent devices` lists what there is)",
        ErrorKind::PermissionDenied => "; this user may not: add it to the group `audio` and log in again",
        ErrorKind::HostUnavailable => "; is the sound server running, for this user?",
        ErrorKind::DeviceNotAvailable => "; `sa-agent devices` lists what there is",
        _ => "",
    }
}

pub(super) fn failed(what: &str, error: &cpal::Error) -> AudioError {
    AudioError::Device { message: format!("{what}: {error}{}", cure(error)) }
}

/// A device that tells no format.
pub(super) fn unusable(what: &str, id: &str, error: &cpal::Error) -> AudioError {
    match (error.kind(), converting(id)) {
        (ErrorKind::UnsupportedConfig, Some(other)) => {
            AudioError::Device { message: format!("cannot open {what} {id}: {FOREIGN}; choose `{other}`, which converts them") }
        }
        _ => failed(&format!("cannot open {what} {id}"), error),
    }
}

/// Many USB cards.
const FOREIGN: &str = "it has only sample formats that are not known here, such as 24 bits in three bytes";

/// Why a device that is there cannot be opened, for a list; none for one that is configured and not there, or has no such direction.
fn problem(id: &str, error: &cpal::Error) -> Option<String> {
    match (error.kind(), converting(id)) {
        (ErrorKind::DeviceBusy, _) => Some("in use by another program".to_owned()),
        (ErrorKind::PermissionDenied, _) => Some("not open to this user: add it to the group `audio` and log in again".to_owned()),
        (ErrorKind::UnsupportedConfig, Some(other)) => Some(format!("{FOREIGN}: use {other}")),
        _ => None,
    }
}

/// The same card behind ALSA's conversions, for one of ALSA's bare cards.
fn converting(id: &str) -> Option<String> {
    let (host, card) = id.split_once(":hw:")?;
    Some(format!("{host}:plughw:{card}"))
}

/// Has this id of ALSA the card's number? cpal makes these up beside those with the card's name.
fn numbered(id: &str) -> bool {
    let card = id.split_once("CARD=").and_then(|(_, card)| card.split(',').next());
    card.is_some_and(|card| !card.is_empty() && card.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Is this device, of all of these ids and names, another one once more?
fn repeated(all: &[(String, String)], (id, name): &(String, String)) -> bool {
    let kind = |id: &str| id.split_once("CARD=").map(|(kind, _)| kind.to_owned());
    numbered(id) && all.iter().any(|(other, its)| !numbered(other) && its == name && kind(other) == kind(id))
}

/// Which of these ids and names is meant: the id, with or without the host; else a part of an id or a name, of one with the card's number last.
fn meant(all: &[(String, String)], wanted: &str) -> Option<usize> {
    let lower = wanted.to_lowercase();
    let exact = |(id, _): &(String, String)| id == wanted || id.split_once(':').is_some_and(|(_, id)| id == wanted);
    let part = |(id, name): &(String, String)| id.to_lowercase().contains(&lower) || name.to_lowercase().contains(&lower);
    let by_name = |both: &(String, String)| part(both) && !numbered(&both.0);
    all.iter().position(exact).or_else(|| all.iter().position(by_name)).or_else(|| all.iter().position(part))
}

pub(super) fn host(wish: &Wish) -> Result<Host, AudioError> {
    hush();
    let there = cpal::available_hosts();
    let id = match &wish.host {
        None => there.first(),
        Some(name) => there.iter().find(|id| id.name().eq_ignore_ascii_case(name)),
    };
    let id: HostId = *id.ok_or_else(|| {
        let names: Vec<&str> = there.iter().map(|id| id.name()).collect();
        let asked = wish.host.as_deref().unwrap_or("any");
        AudioError::Device { message: format!("no audio host `{asked}`; there are: {}", names.join(", ")) }
    })?;
    cpal::host_from_id(id).map_err(|e| failed("cannot use the audio host", &e))
}

/// Keeps alsa-lib from writing a line to standard error for each device that is configured and not there: what matters comes as an error.
/// Counts for this thread; what was kept until now is dropped.
fn hush() {
    #[cfg(target_os = "linux")]
    let _ = alsa::Output::local_error_handler();
}

/// Ids and names.
type Labels = Vec<(String, String)>;

pub(super) fn label(device: &Device) -> (String, String) {
    let id = device.id().map(|id| id.to_string()).unwrap_or_default();
    let name = device.description().map(|d| d.name().to_owned()).unwrap_or_default();
    (id, name)
}

/// The config of one direction: the device's own.
pub(super) fn native(device: &Device, microphone: bool) -> Result<(StreamConfig, SampleFormat), cpal::Error> {
    let config = if microphone { device.default_input_config()? } else { device.default_output_config()? };
    Ok((config.config(), config.sample_format()))
}

/// What there is, and what would be chosen.
///
/// # Errors
/// When the host of the wish is not there.
pub fn list(wish: &Wish) -> Result<Listing, AudioError> {
    let host = host(wish)?;
    let mut problems = Vec::new();
    let mut chosen = |microphone: bool| match choose(&host, wish, microphone) {
        Ok((device, why)) => Some((label(&device).0, why)),
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let (microphone, speaker) = (chosen(true), chosen(false));
    let devices: Vec<Device> = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?.collect();
    let side = |device: &Device, id: &str, is_mic: bool, chosen: &Option<(String, &'static str)>| {
        let chosen = chosen.as_ref().filter(|(chosen, _)| chosen == id).map(|(_, why)| *why);
        match native(device, is_mic) {
            Ok((config, format)) => {
                let format = Format { rate: config.sample_rate, channels: config.channels, format: format.to_string() };
                Some(Side { format: Some(format), problem: None, chosen })
            }
            Err(error) => Some(Side { format: None, problem: Some(problem(id, &error)?), chosen }),
        }
    };
    let labels: Vec<_> = devices.iter().map(label).collect();
    let mut all = Vec::new();
    for (device, both) in devices.iter().zip(&labels) {
        let (id, name) = both.clone();
        let (microphone, speaker) = (side(device, &id, true, &microphone), side(device, &id, false, &speaker));
        let is_chosen = [&microphone, &speaker].into_iter().flatten().any(|side| side.chosen.is_some());
        if (microphone.is_some() || speaker.is_some()) && (is_chosen || !repeated(&labels, both)) {
            all.push(Listed { numbered: numbered(&id), id, name, microphone, speaker });
        }
    }
    Ok(Listing { devices: all, problems })
}

/// The device of one direction, and why.
pub(super) fn choose(host: &Host, wish: &Wish, microphone: bool) -> Result<(Device, &'static str), AudioError> {
    let (what, flag) = if microphone { ("microphone", "--microphone") } else { ("speaker", "--speaker") };
    let wanted = if microphone { &wish.microphone } else { &wish.speaker };
    let devices = || -> Result<(Vec<Device>, Labels), AudioError> {
        let all = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?;
        let there: Vec<Device> = all.filter(|device| if microphone { device.supports_input() } else { device.supports_output() }).collect();
        let labels = there.iter().map(label).collect();
        Ok((there, labels))
    };
    if let Some(wanted) = wanted {
        let (there, labels) = devices()?;
        return match meant(&labels, wanted) {
            Some(found) => Ok((there[found].clone(), "asked for")),
            None => Err(missing(format!("no {what} `{wanted}`"), flag, labels.into_iter().map(|(id, _)| id))),
        };
    }
    // ALSA's `null` can always be opened, and is always silent.
    let silent = |id: &str| id.ends_with(":null");
    let default = if microphone { host.default_input_device() } else { host.default_output_device() };
    if let Some(device) = default {
        let id = label(&device).0;
        match native(&device, microphone) {
            Ok(_) if !silent(&id) => return Ok((device, "the system's default")),
            // It is there, and will be free again: another one in its place would be a surprise.
            Err(error) if matches!(error.kind(), ErrorKind::DeviceBusy | ErrorKind::PermissionDenied) => {
                let message = format!("{}. {flag} NAME chooses another", unusable(&format!("the system's default {what}"), &id, &error));
                return Err(AudioError::Device { message });
            }
            _ => {}
        }
    }
    let (there, labels) = devices()?;
    let mut refused = Vec::new();
    for by_number in [false, true] {
        for (device, (id, _)) in there.iter().zip(&labels).filter(|(_, (id, _))| numbered(id) == by_number && !silent(id)) {
            match native(device, microphone) {
                Ok(_) => return Ok((device.clone(), "the first that can be opened")),
                Err(error) => refused.push(problem(id, &error).map_or(id.clone(), |problem| format!("{id} ({problem})"))),
            }
        }
    }
    Err(missing(format!("no {what} that can be opened"), flag, refused.into_iter()))
}

fn missing(problem: String, flag: &str, there: impl Iterator<Item = String>) -> AudioError {
    let names: Vec<String> = there.collect();
    let message = if names.is_empty() {
        format!("{problem}; there is none at all: is one plugged in (`arecord -l`, `aplay -l`), and is this user in the group `audio`?")
    } else {
        format!("{problem}; there are: {} (choose one by {flag} NAME)", names.join(", "))
    };
    AudioError::Device { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect()
    }

    #[test]
    fn names_of_cards_come_before_their_numbers() {
        let all = labels(&[
            ("alsa:hw:CARD=1,DEV=0", "USB Mic, USB Audio"),
            ("alsa:plughw:CARD=Mic,DEV=0", "USB Mic, USB Audio"),
            ("alsa:hw:CARD=Mic,DEV=0", "USB Mic, USB Audio"),
            ("alsa:hw:CARD=2,DEV=0", "Another, USB Audio"),
            ("alsa:default", "Default Audio Device"),
        ]);
        assert_eq!(all.iter().map(|both| numbered(&both.0)).collect::<Vec<_>>(), [true, false, false, true, false]);
        assert_eq!(all.iter().map(|both| repeated(&all, both)).collect::<Vec<_>>(), [true, false, false, false, false]);
        assert_eq!(meant(&all, "usb mic"), Some(1), "not the number of the same card");
        assert_eq!((meant(&all, "hw:CARD=Mic,DEV=0"), meant(&all, "alsa:hw:CARD=1,DEV=0")), (Some(2), Some(0)), "just that one");
        assert_eq!((meant(&all, "another"), meant(&all, "bluetooth")), (Some(3), None), "the number is better than nothing");
    }

    #[test]
    fn a_device_that_is_there_and_cannot_be_opened_is_told() {
        let error = |kind: ErrorKind| cpal::Error::new(kind);
        let hw = "alsa:hw:CARD=Mic,DEV=0";
        assert_eq!(problem(hw, &error(ErrorKind::DeviceBusy)).as_deref(), Some("in use by another program"));
        assert!(problem(hw, &error(ErrorKind::PermissionDenied)).is_some_and(|problem| problem.contains("group `audio`")));
        assert!(problem(hw, &error(ErrorKind::UnsupportedConfig)).is_some_and(|problem| problem.contains("alsa:plughw:CARD=Mic,DEV=0")));
        for (id, kind) in
            [("alsa:default", ErrorKind::UnsupportedConfig), (hw, ErrorKind::DeviceNotAvailable), (hw, ErrorKind::UnsupportedOperation)]
        {
            assert_eq!(problem(id, &error(kind)), None, "{id}, {kind}");
        }
        let busy = unusable("the microphone", hw, &error(ErrorKind::DeviceBusy)).to_string();
        assert!(busy.contains(hw) && busy.contains("another program has it"), "{busy}");
        let foreign = unusable("the microphone", hw, &error(ErrorKind::UnsupportedConfig)).to_string();
        assert!(foreign.contains("24 bits in three bytes") && foreign.contains("`alsa:plughw:CARD=Mic,DEV=0`"), "{foreign}");
    }
}
