//! Which devices there are, and which one is meant.

use cpal::traits::{DeviceTrait, HostTrait};
use cpal::{Device, ErrorKind, Host, HostId, SampleFormat, StreamConfig};
use serde::Serialize;

use crate::audio::AudioError;
use crate::audio::live::Wish;

/// One direction of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Samples a second, channels and format that it would be opened with.
    pub rate: u32,
    pub channels: u16,
    pub format: String,
    /// Why it would be chosen; nothing if it would not.
    pub chosen: Option<&'static str>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub microphone: Option<Side>,
    pub speaker: Option<Side>,
}

pub(super) fn failed(what: &str, error: &cpal::Error) -> AudioError {
    let cure = match error.kind() {
        ErrorKind::DeviceBusy => "; another program has it: close that, or use a sound server (`sa-agent devices` lists what there is)",
        ErrorKind::PermissionDenied => "; this user may not: add it to the group `audio` and log in again",
        ErrorKind::HostUnavailable => "; is the sound server running, for this user?",
        ErrorKind::DeviceNotAvailable => "; `sa-agent devices` lists what there is",
        _ => "",
    };
    AudioError::Device { message: format!("{what}: {error}{cure}") }
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

pub(super) fn label(device: &Device) -> (String, String) {
    let id = device.id().map(|id| id.to_string()).unwrap_or_default();
    let name = device.description().map(|d| d.name().to_owned()).unwrap_or_default();
    (id, name)
}

/// The config of one direction: the device's own.
pub(super) fn native(device: &Device, microphone: bool) -> Option<(StreamConfig, SampleFormat)> {
    let default = if microphone { device.default_input_config() } else { device.default_output_config() };
    let config = default.ok()?;
    Some((config.config(), config.sample_format()))
}

/// What there is, and what would be chosen.
///
/// # Errors
/// When the host of the wish is not there.
pub fn list(wish: &Wish) -> Result<Vec<Listed>, AudioError> {
    let host = host(wish)?;
    let chosen = |microphone: bool| choose(&host, wish, microphone).ok().map(|(device, why)| (label(&device).0, why));
    let (microphone, speaker) = (chosen(true), chosen(false));
    let devices = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?;
    let side = |device: &Device, id: &str, is_mic: bool, chosen: &Option<(String, &'static str)>| {
        let (config, format) = native(device, is_mic)?;
        let why = chosen.as_ref().filter(|(chosen, _)| chosen == id).map(|(_, why)| *why);
        Some(Side { rate: config.sample_rate, channels: config.channels, format: format.to_string(), chosen: why })
    };
    let mut all = Vec::new();
    for device in devices {
        let (id, name) = label(&device);
        let entry = Listed { microphone: side(&device, &id, true, &microphone), speaker: side(&device, &id, false, &speaker), id, name };
        if entry.microphone.is_some() || entry.speaker.is_some() {
            all.push(entry);
        }
    }
    Ok(all)
}

/// The device of one direction, and why.
pub(super) fn choose(host: &Host, wish: &Wish, microphone: bool) -> Result<(Device, &'static str), AudioError> {
    let (what, flag) = if microphone { ("microphone", "--microphone") } else { ("speaker", "--speaker") };
    let wanted = if microphone { &wish.microphone } else { &wish.speaker };
    let devices = || -> Result<Vec<Device>, AudioError> {
        let all = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?;
        Ok(all.filter(|device| if microphone { device.supports_input() } else { device.supports_output() }).collect())
    };
    let missing = |problem: String, there: &[Device]| {
        let names: Vec<String> = there.iter().map(|device| label(device).0).collect();
        let there = if names.is_empty() { "there is none at all".to_owned() } else { format!("there are: {}", names.join(", ")) };
        AudioError::Device { message: format!("{problem}; {there} (choose one by {flag} NAME)") }
    };
    if let Some(wanted) = wanted {
        let there = devices()?;
        let lower = wanted.to_lowercase();
        let exact = there.iter().find(|device| label(device).0 == *wanted);
        let part = || {
            there.iter().find(|device| {
                let (id, name) = label(device);
                id.to_lowercase().contains(&lower) || name.to_lowercase().contains(&lower)
            })
        };
        return match exact.or_else(part) {
            Some(device) => Ok((device.clone(), "asked for")),
            None => Err(missing(format!("no {what} `{wanted}`"), &there)),
        };
    }
    // ALSA's `null` can always be opened, and is always silent.
    let usable = |device: &Device| native(device, microphone).is_some() && !label(device).0.ends_with(":null");
    let default = if microphone { host.default_input_device() } else { host.default_output_device() };
    if let Some(device) = default.filter(usable) {
        return Ok((device, "the system's default"));
    }
    let there = devices()?;
    match there.iter().find(|device| usable(device)) {
        Some(device) => Ok((device.clone(), "the first that can be opened")),
        None => Err(missing(format!("no {what} that can be opened"), &there)),
    }
}
