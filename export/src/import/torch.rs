//! Tensors in PyTorch's own files (`torch.save`): the zip archives of today and the plain pickles from before 1.6.
//!
//! Only the tensors' descriptions are read when a file is opened; a tensor's numbers are read when it is asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::{bf16, f16};
use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive};

use super::pickle::{Id, Pickle, PickleError, Value};

/// Why a file of PyTorch was not read; the caller adds its path.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// Copy or download the file again.
    #[error("this is no whole file of PyTorch: {0}; it may be truncated")]
    Damaged(String),
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error("{0}")]
    Unsupported(String),
}

/// Element types of PyTorch that hold weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    BF16,
    F32,
    F64,
    /// Counters and the like: named, but not read.
    Other(usize),
}

impl Element {
    /// By the name of a storage class (`torch.FloatStorage`).
    fn of_storage(class: &str) -> Option<Self> {
        Some(match class.strip_prefix("torch.")?.trim_start_matches("cuda.") {
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "FloatStorage" => Self::F32,
            "DoubleStorage" => Self::F64,
            "LongStorage" => Self::Other(8),
            "IntStorage" => Self::Other(4),
            "ShortStorage" => Self::Other(2),
            "BoolStorage" | "ByteStorage" | "CharStorage" => Self::Other(1),
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(size) => size,
        }
    }
}

/// Where a tensor's numbers are.
struct Place<'a> {
    element: Element,
    storage: &'a str,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

/// An opened file.
#[derive(Debug)]
pub struct Torch {
    file: File,
    /// Start and length in bytes of each storage.
    storages: HashMap<String, (u64, u64)>,
    /// The description of each tensor, which is worked out when it is asked for: many may share a few bytes of the file.
    tensors: BTreeMap<String, Id>,
    /// What else the file says: configurations, say.
    pub pickle: Pickle,
}

/// How files from before PyTorch 1.6 begin.
const LEGACY_MAGIC: [u8; 15] = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// Where checkpoints keep their tensors if not at the top: fairseq, lightning and most others, HiFi-GAN.
const NESTED: [&str; 4] = ["model", "state_dict", "generator", "model_state_dict"];
/// Largest description that is read: those of real checkpoints have at most a few megabytes.
const MOST_PICKLE_BYTES: u64 = 512 << 20;
/// Longest name of a tensor or key of a storage. Every tensor gets a copy, and a file may use one text for many.
const LONGEST_KEY: usize = 256;

impl Torch {
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        let file = File::open(path)?;
        let mut start = [0; LEGACY_MAGIC.len()];
        let read = file.read_at(&mut start, 0)?;
        match &start[..read] {
            [b'P', b'K', ..] => Self::open_zip(file),
            start if *start == LEGACY_MAGIC => Self::open_legacy(file),
            _ => Err(TorchError::Damaged("it is neither a zip archive nor an old pickle of PyTorch".into())),
        }
    }

    fn open_zip(file: File) -> Result<Self, TorchError> {
        let entries = zip_entries(&file)?;
        let name = entries.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let name = name.ok_or_else(|| TorchError::Damaged("the archive has no data.pkl".into()))?;
        let folder = name.trim_end_matches("data.pkl").to_owned();
        const BIG: &[u8] = b"big";
        if let Some(order) = entries.get(&format!("{folder}byteorder"))
            && order.1 == BIG.len() as u64
            && range(&file, *order)? == BIG
        {
            return Err(TorchError::Unsupported("the file was written on a big-endian machine".into()));
        }
        if entries[name].1 > MOST_PICKLE_BYTES {
            return Err(TorchError::Unsupported(format!(
                "its data.pkl has {} MB: no description of tensors is so long",
                entries[name].1 >> 20
            )));
        }
        let pickle = Pickle::read(&range(&file, entries[name])?)?;
        let tensors = tensors(&pickle);
        let prefix = format!("{folder}data/");
        let storages = entries.iter().filter_map(|(name, place)| Some((name.strip_prefix(&prefix)?.to_owned(), *place))).collect();
        Ok(Self { file, storages, tensors, pickle })
    }

    /// Magic number, version and machine, the object, the storages' keys, and then the storages: a count of elements each, and
    /// the elements.
    fn open_legacy(file: File) -> Result<Self, TorchError> {
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        (&file).take(MOST_PICKLE_BYTES).read_to_end(&mut bytes)?;
        let mut at = 0;
        let mut next = || -> Result<Pickle, PickleError> {
            let pickle = Pickle::read(&bytes[at..])?;
            at += pickle.length();
            Ok(pickle)
        };
        for _ in ["magic number", "version", "machine"] {
            next()?;
        }
        let (pickle, keys) = (next()?, next()?);
        let sizes: HashMap<&str, usize> = (0..)
            .map_while(|id| pickle.try_value(id))
            .filter_map(|value| storage(&pickle, value).map(|(key, element)| (key, element.size())))
            .collect();
        let damaged = |what: &str| TorchError::Damaged(what.to_owned());
        let mut storages = HashMap::new();
        let mut start = at as u64;
        for key in keys.sequence(keys.root()).ok_or_else(|| damaged("there is no list of storages"))? {
            let key = keys.text(*key).ok_or_else(|| damaged("a storage has no name"))?;
            let size = *sizes.get(key).ok_or_else(|| damaged("a storage belongs to no tensor"))?;
            let mut count = [0; 8];
            file.read_exact_at(&mut count, start).map_err(|_| damaged("it ends before its last storage"))?;
            let bytes = u64::from_le_bytes(count).checked_mul(size as u64);
            let place = bytes.and_then(|bytes| Some((bytes, bytes.checked_add(start + 8)?))).filter(|(_, end)| *end <= length);
            let (bytes, end) = place.ok_or_else(|| damaged("it ends before its last storage"))?;
            storages.insert(key.to_owned(), (start + 8, bytes));
            start = end;
        }
        let tensors = tensors(&pickle);
        Ok(Self { file, storages, tensors, pickle })
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.place(name).map(|place| place.shape)
    }

    /// A tensor's values in row-major order; `None` if there is no tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Result<Vec<f32>, TorchError>> {
        self.place(name).map(|place| self.values(&place))
    }

    fn place(&self, name: &str) -> Option<Place<'_>> {
        tensor(&self.pickle, *self.tensors.get(name)?)
    }

    fn values(&self, place: &Place) -> Result<Vec<f32>, TorchError> {
        let size = place.element.size();
        if let Element::Other(_) = place.element {
            return Err(TorchError::Unsupported("it holds whole numbers, not weights".into()));
        }
        let outside = || TorchError::Damaged("a tensor reaches beyond its storage".into());
        let count = place.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).ok_or_else(outside)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let reach = place.shape.iter().zip(&place.stride).try_fold(0usize, |all, (n, step)| all.checked_add((n - 1).checked_mul(*step)?));
        let reach = reach.and_then(|reach| reach.checked_add(1)).ok_or_else(outside)?;
        // A view may repeat the few numbers of its storage (`expand`) as often as it likes; no weights are stored so.
        if count > reach {
            return Err(TorchError::Unsupported(format!(
                "a tensor of the shape {:?} repeats the {reach} numbers of its storage; save it with .contiguous()",
                place.shape
            )));
        }
        let start = place.offset.checked_mul(size).ok_or_else(outside)?;
        let bytes = self.bytes(place.storage, start, reach.checked_mul(size).ok_or_else(outside)?)?;
        let value = |bytes: &[u8]| match place.element {
            Element::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Element::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Element::F64 => f64::from_le_bytes(bytes.try_into().expect("eight bytes")) as f32,
            _ => f32::from_le_bytes(bytes.try_into().expect("four bytes")),
        };
        let flat: Vec<f32> = bytes.chunks_exact(size).map(value).collect();
        if reach == count && contiguous(&place.shape, &place.stride) {
            return Ok(flat);
        }
        // A view, such as a transposed matrix.
        let mut index = vec![0; place.shape.len()];
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(flat[index.iter().zip(&place.stride).map(|(i, step)| i * step).sum::<usize>()]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < place.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(values)
    }

    /// Bytes `start..start + length` of a storage.
    fn bytes(&self, storage: &str, start: usize, length: usize) -> Result<Vec<u8>, TorchError> {
        let short = || TorchError::Damaged(format!("storage {storage} is too short"));
        let (at, size) = self.storages.get(storage).copied().ok_or_else(short)?;
        if start.checked_add(length).is_none_or(|end| end as u64 > size) {
            return Err(short());
        }
        range(&self.file, (at + start as u64, length as u64))
    }
}

/// Start and length of the entries of a zip archive. PyTorch stores them as they are, so that they can be read in place.
fn zip_entries(file: &File) -> Result<BTreeMap<String, (u64, u64)>, TorchError> {
    let damaged = |error: rawzip::Error| TorchError::Damaged(error.to_string());
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_file(file.try_clone()?, &mut buffer).map_err(damaged)?;
    let mut found = Vec::new();
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(damaged)? {
        if entry.compression_method() != CompressionMethod::STORE {
            return Err(TorchError::Unsupported("the archive is compressed; torch.save does not do that".into()));
        }
        found.push((String::from_utf8_lossy(entry.file_path().as_ref()).into_owned(), entry.wayfinder()));
    }
    let length = file.metadata()?.len();
    let place = |(name, finder)| {
        let (start, end) = archive.get_entry(finder).map_err(damaged)?.compressed_data_range();
        if start > end || end > length {
            return Err(TorchError::Damaged(format!("its entry {name} lies outside of it")));
        }
        Ok((name, (start, end - start)))
    };
    found.into_iter().map(place).collect()
}

/// Bytes of a file, which were seen to be in it.
fn range(file: &File, (start, length): (u64, u64)) -> Result<Vec<u8>, TorchError> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, start).map_err(|_| TorchError::Damaged("it ends in the middle".into()))?;
    Ok(bytes)
}

fn contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(stride).rev().all(|(n, stride)| {
        let fits = *n == 1 || *stride == step;
        step *= n;
        fits
    })
}

/// Key and elements of the storage that a persistent value names: `('storage', class, key, location, count, …)`.
fn storage<'a>(pickle: &'a Pickle, value: &Value) -> Option<(&'a str, Element)> {
    let Value::Persistent(id) = value else { return None };
    let [_, class, key, ..] = pickle.sequence(*id)? else { return None };
    let Value::Global(class) = pickle.value(*class) else { return None };
    Some((pickle.text(*key).filter(|key| key.len() <= LONGEST_KEY)?, Element::of_storage(class)?))
}

/// The tensors of the dictionary that holds most of them.
fn tensors(pickle: &Pickle) -> BTreeMap<String, Id> {
    let of = |id: Id| {
        let mut tensors = BTreeMap::new();
        // One by one, so that a name that stands there again and again is kept once.
        for (key, value) in pickle.entries(id).unwrap_or_default() {
            if let Some(name) = pickle.text(*key).filter(|name| name.len() <= LONGEST_KEY)
                && tensor(pickle, *value).is_some()
            {
                tensors.insert(name.to_owned(), *value);
            }
        }
        tensors
    };
    let nested = NESTED.iter().filter_map(|key| pickle.get(pickle.root(), key));
    std::iter::once(pickle.root()).chain(nested).map(of).max_by_key(BTreeMap::len).unwrap_or_default()
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, …)`, maybe inside of `_rebuild_parameter(tensor, …)`.
fn tensor(pickle: &Pickle, id: Id) -> Option<Place<'_>> {
    let mut object = pickle.object(id)?;
    if object.class.ends_with("._rebuild_parameter") {
        object = pickle.object(*object.arguments.first()?)?;
    }
    let [value, offset, shape, stride, ..] = object.arguments.as_slice() else { return None };
    if !object.class.contains("._rebuild_tensor") {
        return None;
    }
    let (storage, element) = storage(pickle, pickle.value(*value))?;
    let (shape, stride) = (pickle.sizes(*shape)?, pickle.sizes(*stride)?);
    let offset = usize::try_from(pickle.int(*offset)?).ok()?;
    (shape.len() == stride.len()).then_some(Place { element, storage, offset, shape, stride })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes a tensor over the storage `0`.
    fn rebuilt(class: &str, shape: &[i64], stride: &[i64]) -> Vec<u8> {
        let tuple = |numbers: &[i64]| {
            let wide = |n: &i64| [b"\x8a\x08".as_slice(), &n.to_le_bytes()].concat();
            [b"(".to_vec(), numbers.iter().flat_map(wide).collect(), b"t".to_vec()].concat()
        };
        let storage = format!("(X\x07\0\0\0storagectorch\n{class}\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01NtQ");
        let call = b"ctorch._utils\n_rebuild_tensor_v2\n(".as_slice();
        [call, storage.as_bytes(), b"K\0", &tuple(shape), &tuple(stride), b"\x89NtR"].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A file from before PyTorch 1.6 with a dictionary of these entries over the storage `0`, which promises `count` elements and has
    /// `data`.
    fn legacy_of(entries: &[u8], count: u64, data: &[u8]) -> tempfile::NamedTempFile {
        let object = [b"\x80\x02}".as_slice(), entries, b"."].concat();
        let mut bytes = [LEGACY_MAGIC.as_slice(), b"\x80\x02M\xe9\x03.", b"\x80\x02}.", &object, b"\x80\x02]X\x01\0\0\x000a."].concat();
        bytes.extend(count.to_le_bytes());
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("written");
        file
    }

    /// The same with one tensor `w`.
    fn legacy(class: &str, shape: &[i64], stride: &[i64], count: u64, data: &[u8]) -> tempfile::NamedTempFile {
        legacy_of(&[text("w"), rebuilt(class, shape, stride), b"s".to_vec()].concat(), count, data)
    }

    #[test]
    fn views_are_read_and_none_takes_more_than_its_storage() {
        let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let read = |shape: &[i64], stride: &[i64]| {
            let torch = Torch::open(legacy("FloatStorage", shape, stride, 6, &data).path()).expect("opens");
            torch.tensor("w").expect("it is there").map_err(|error| error.to_string())
        };
        assert_eq!(read(&[2, 3], &[3, 1]), Ok(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(read(&[3, 2], &[1, 3]), Ok(vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(read(&[0], &[1]), Ok(vec![]));
        for shape in [1 << 62, 1 << 42] {
            let error = read(&[shape], &[0]).expect_err("one number, over and over");
            assert!(error.contains("contiguous"), "{error}");
        }
        assert!(read(&[1 << 62], &[1]).is_err() && read(&[1 << 62, 1 << 62], &[1, 1]).is_err());
    }

    #[test]
    fn a_storage_without_end_is_refused() {
        for class in ["ByteStorage", "FloatStorage"] {
            for count in [u64::MAX, u64::MAX - 8, 1 << 62] {
                let error = Torch::open(legacy(class, &[1], &[1], count, &[0; 4]).path()).expect_err("there is not so much");
                assert!(error.to_string().contains("ends before"), "{error}");
            }
        }
    }

    /// A name of a megabyte and a tensor, each kept in the memo, in many pairs of four bytes.
    #[test]
    fn a_name_is_kept_once_and_none_is_long() {
        let tensor = rebuilt("FloatStorage", &[1], &[1]);
        let kept = [text(&"w".repeat(1 << 20)), b"q\0".to_vec(), tensor, b"q\x01".to_vec()].concat();
        let longest = "w".repeat(LONGEST_KEY);
        let short = [text(&longest), b"q\x02h\x01".to_vec(), b"h\x02h\x01".repeat(1000)].concat();
        let entries = [b"(".as_slice(), &kept, &b"h\0h\x01".repeat(1000), &short, b"u"].concat();
        let torch = Torch::open(legacy_of(&entries, 1, &2.0f32.to_le_bytes()).path()).expect("opens");
        assert_eq!(torch.names().collect::<Vec<_>>(), [longest.as_str()]);
        assert_eq!(torch.shape(&longest), Some(vec![1]));
        assert_eq!(torch.tensor(&longest).expect("it is there").expect("read"), [2.0]);
    }

    /// An archive of one entry, whose bytes are a hole in the file.
    #[test]
    fn a_description_in_an_archive_is_no_longer_than_one_alone() {
        let name = b"archive/data.pkl";
        let size = (MOST_PICKLE_BYTES as u32 + 1).to_le_bytes();
        // What both headers of an entry say of it: version, flags, method, time, checksum, sizes, and lengths of name and extra field.
        let said = [b"\x14\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(), &size, &size, &[name.len() as u8, 0, 0, 0]].concat();
        let local = [b"PK\x03\x04".as_slice(), &said, name].concat();
        let directory = [b"PK\x01\x02\x14\0".as_slice(), &said, &[0; 14], name].concat();
        let start = local.len() as u32 + MOST_PICKLE_BYTES as u32 + 1;
        let counts = [b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(), &(directory.len() as u32).to_le_bytes(), &start.to_le_bytes(), b"\0\0"];
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().write_all_at(&local, 0).expect("written");
        file.as_file().write_all_at(&[directory, counts.concat()].concat(), u64::from(start)).expect("written");
        let error = Torch::open(file.path()).expect_err("no checkpoint says so much").to_string();
        assert!(error.contains("data.pkl has 512 MB"), "{error}");
    }
}
