//! Finds the shared library of ONNX Runtime and loads it, once in a process.
//!
//! The `ort` crate panics when it has to load a library by itself and cannot; therefore nothing of it is used before
//! [`load`] has succeeded. The dynamic loader says "No such file" of a library for another processor; therefore the
//! file's header is read first.

use std::env::consts::ARCH;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ::ort::LoadDynamicError;
use ::ort::environment::Environment;

use crate::engine::EngineError;

const NAME: &str = "libonnxruntime.so";
const ADVICE: &str = "get libonnxruntime.so, version 1.17 or later, for this processor (from \
    https://github.com/microsoft/onnxruntime/releases, or out of the wheel that `pip download onnxruntime` fetches, in \
    onnxruntime/capi) and name it with --ort-library FILE, SA_ORT_LIBRARY or ORT_DYLIB_PATH";

/// What the process has loaded. It stays: the library cannot be unloaded safely.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Loads the library: the one that is wished for, else the one that `ORT_DYLIB_PATH` names, else the first that fits in
/// the usual places. A folder stands for the library in it. Returns its path.
///
/// # Errors
/// [`EngineError::Library`], with what was tried and what to do.
pub fn load(wished: Option<&Path>) -> Result<(PathBuf, Environment), EngineError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    // An empty variable of the environment is none.
    let wished = wished.filter(|wished| !wished.as_os_str().is_empty());
    let named = wished.map(Path::to_owned).or_else(|| std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()).map(PathBuf::from));
    if let Some((path, environment)) = &*loaded {
        // One a process: a second wish is met only if it is for the same.
        return match named.as_deref().map(resolve).transpose()? {
            Some(other) if other != *path => {
                Err(error(format!("{} cannot be loaded: this process already uses {}", other.display(), path.display())))
            }
            _ => Ok((path.clone(), environment.clone())),
        };
    }
    let (path, environment) = match named {
        Some(named) => open(&named)?,
        None => search(&places())?,
    };
    *loaded = Some((path.clone(), environment.clone()));
    Ok((path, environment))
}

/// The first library in these folders that can be loaded.
fn search(places: &[PathBuf]) -> Result<(PathBuf, Environment), EngineError> {
    let mut unfit = Vec::new();
    for candidate in places.iter().flat_map(|place| libraries(place)) {
        match open(&candidate) {
            Ok(opened) => return Ok(opened),
            Err(error) => unfit.push(error.to_string()),
        }
    }
    if unfit.is_empty() {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        return Err(error(format!("there is none in {}: {ADVICE}", places.join(", "))));
    }
    Err(error(format!("none that was found can be used: {}", unfit.join("; "))))
}

fn open(named: &Path) -> Result<(PathBuf, Environment), EngineError> {
    let path = resolve(named)?;
    check_header(&path)?;
    // From 1.31 on the library keeps an account of its use in the user's cache and a file in TMPDIR, which `with_telemetry` does not prevent.
    // SAFETY: engines are opened before there are threads of C code that read the environment, and Rust's own readers wait.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    let builder = ::ort::init_from(&path).map_err(|e| match e {
        LoadDynamicError::BadVersion { version_str, .. } => {
            error(format!("{} is version {version_str}, which is too old: {ADVICE}", path.display()))
        }
        LoadDynamicError::MissingApi { .. } => {
            error(format!("{} is a library, but not ONNX Runtime (it has no OrtGetApiBase): {ADVICE}", path.display()))
        }
        LoadDynamicError::Dlopen { error: e, .. } => {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            error(format!("{} cannot be loaded: {cause} (all that it depends on must be installed as well)", path.display()))
        }
        other => error(format!("{}: {other}", path.display())),
    })?;
    // No telemetry: nothing here reports to anyone.
    let environment = builder.with_name("sa").with_telemetry(false).build();
    let environment = environment.map_err(|e| error(format!("{} does not start: {e}", path.display())))?;
    Ok((path, environment))
}

/// The file that a path means: itself, or the newest library in the folder that it is. Links are followed, so that one
/// file has one name.
fn resolve(named: &Path) -> Result<PathBuf, EngineError> {
    let file = if named.is_dir() {
        let newest = libraries(named).into_iter().next();
        newest.ok_or_else(|| error(format!("there is no {NAME} in the folder {}: {ADVICE}", named.display())))?
    } else {
        named.to_owned()
    };
    file.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => error(format!("there is no file {}: {ADVICE}", file.display())),
        _ => error(format!("cannot read {}: {e}", file.display())),
    })
}

/// `libonnxruntime.so` and `libonnxruntime.so.1.x` of a folder, highest version first.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let rest = path.file_name()?.to_str()?.strip_prefix(NAME)?;
            let version = rest.split('.').skip(1).map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
            (rest.is_empty() || rest.starts_with('.')).then_some((version, path))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Folders of the program, of the dynamic loader, and where people unpack it.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    let program = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    if let Some(beside) = program {
        let folders = [beside.clone(), beside.join("lib"), beside.join("../lib")];
        places.extend(folders);
    }
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        places.extend(std::env::split_paths(&paths).filter(|path| path.is_absolute()));
    }
    places.push("/usr/local/lib".into());
    places.push(format!("/usr/lib/{ARCH}-linux-gnu").into());
    places.extend(["/usr/lib64", "/usr/lib", "/opt/onnxruntime/lib"].map(PathBuf::from));
    places
}

/// Is the file a whole shared library for this processor?
fn check_header(path: &Path) -> Result<(), EngineError> {
    let unfit = |what: String| error(format!("{} {what}: {ADVICE}", path.display()));
    let read = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => unfit("is no shared library, or was cut off".to_owned()),
        _ => error(format!("cannot read {}: {e}", path.display())),
    };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut header = [0; 64];
    file.read_exact(&mut header).map_err(read)?;
    let [0x7f, b'E', b'L', b'F', class, order, ..] = header else {
        return Err(unfit("is no shared library (no ELF header)".to_owned()));
    };
    let big_endian = order == 2;
    let half = |at: usize| number(&header[at..at + 2], big_endian);
    let found = processor(class, half(18));
    if found != ARCH {
        return Err(unfit(format!("is for {found} processors, this program is for {ARCH}")));
    }
    const SHARED: u64 = 3;
    if half(16) != SHARED {
        return Err(unfit("is an ELF file, but no shared library".to_owned()));
    }
    // Of a file that was cut off the dynamic loader maps what is not there, and the process dies of a bus error.
    const SEGMENT: usize = 56;
    if class == 2 && half(54) == SEGMENT as u64 {
        let mut segments = vec![0; half(56) as usize * SEGMENT];
        file.seek(SeekFrom::Start(number(&header[32..40], big_endian))).and_then(|_| file.read_exact(&mut segments)).map_err(read)?;
        for segment in segments.chunks_exact(SEGMENT) {
            let long = |at: usize| number(&segment[at..at + 8], big_endian);
            const LOADED: u64 = 1;
            if number(&segment[..4], big_endian) == LOADED && long(8).saturating_add(long(32)) > length {
                return Err(unfit(format!("was cut off: it has {length} bytes")));
            }
        }
    }
    Ok(())
}

/// An unsigned number of an ELF file.
fn number(bytes: &[u8], big_endian: bool) -> u64 {
    let digits = bytes.iter().map(|byte| u64::from(*byte));
    let join = |sum: u64, digit: u64| sum << 8 | digit;
    if big_endian { digits.fold(0, join) } else { digits.rev().fold(0, join) }
}

/// The name that Rust gives to an ELF machine.
fn processor(class: u8, machine: u64) -> String {
    let name = match (machine, class) {
        (62, 2) => "x86_64",
        (183, 2) => "aarch64",
        (3, 1) => "x86",
        (40, 1) => "arm",
        (243, 2) => "riscv64",
        (21, 2) => "powerpc64",
        (22, 2) => "s390x",
        (258, 2) => "loongarch64",
        _ => return format!("other (ELF machine {machine})"),
    };
    name.to_owned()
}

fn error(message: String) -> EngineError {
    EngineError::Library { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_comes_first() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in
            ["libonnxruntime.so", "libonnxruntime.so.1.9.0", "libonnxruntime.so.1.17", "libonnxruntime.so.1.17.1", "libonnxruntime.sox"]
        {
            std::fs::write(dir.path().join(name), "").expect("writable");
        }
        std::fs::write(dir.path().join("libonnxruntime_providers_shared.so"), "").expect("writable");
        let names: Vec<String> = libraries(dir.path()).iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
        assert_eq!(names, ["libonnxruntime.so.1.17.1", "libonnxruntime.so.1.17", "libonnxruntime.so.1.9.0", "libonnxruntime.so"]);
        assert!(libraries(Path::new("/none")).is_empty());
    }

    #[test]
    fn places_without_a_library_are_listed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let nothing = search(&[dir.path().to_owned(), "/none".into()]).expect_err("nothing there").to_string();
        assert!(nothing.contains(&dir.path().display().to_string()) && nothing.contains("--ort-library"), "{nothing}");
        std::fs::write(dir.path().join(NAME), "text, ".repeat(20)).expect("writable");
        let unfit = search(&[dir.path().to_owned()]).expect_err("not a library").to_string();
        assert!(unfit.contains("no ELF header"), "{unfit}");
    }

    #[test]
    fn headers_tell_processors_and_size() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("library.so");
        // A header, and one segment that says how long the file should be.
        let check = |class: u8, kind: u16, machine: u16, segment: u64| {
            let mut bytes = vec![0; 64 + 56];
            bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
            bytes[16..18].copy_from_slice(&kind.to_le_bytes());
            bytes[18..20].copy_from_slice(&machine.to_le_bytes());
            (bytes[32], bytes[54], bytes[56], bytes[64]) = (64, 56, 1, 1);
            bytes[64 + 32..64 + 40].copy_from_slice(&segment.to_le_bytes());
            std::fs::write(&path, bytes).expect("writable");
            check_header(&path).map_err(|e| e.to_string())
        };
        let (own, foreign, name) = if ARCH == "x86_64" { (62, 183, "aarch64") } else { (183, 62, "x86_64") };
        assert_eq!(check(2, 3, own, 120), Ok(()));
        assert!(check(2, 3, own, 121).is_err_and(|e| e.contains("was cut off: it has 120 bytes")));
        assert!(check(2, 3, own, u64::MAX).is_err_and(|e| e.contains("was cut off")));
        assert!(check(2, 3, foreign, 0).is_err_and(|e| e.contains(&format!("is for {name} processors, this program is for {ARCH}"))));
        assert!(check(1, 3, 40, 0).is_err_and(|e| e.contains("is for arm")));
        assert!(check(2, 2, own, 0).is_err_and(|e| e.contains("but no shared library")));
    }
}
