//! Reading a checkpoint's tensors, shapes checked, errors that name what is near: safetensors (one file, or shards with an index) and
//! PyTorch's own files, in f32, f16 or bf16.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::import::torch::{Torch, TorchError};

/// Why a tensor or a file of tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Copy or download the file again.
    #[error("{path} is not a whole safetensors file ({bytes} bytes): {reason}; it may be truncated")]
    Damaged { path: PathBuf, bytes: u64, reason: String },
    #[error("{path}: {source}")]
    Torch { path: PathBuf, source: TorchError },
    #[error("{path} is no index of shards: {reason}")]
    Index { path: PathBuf, reason: String },
    #[error("{dir} has no weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin is expected")]
    None { dir: PathBuf },
    /// The checkpoint is of another architecture or configuration.
    #[error("{path} has no tensor `{name}`; nearest: {nearest}")]
    Missing { path: PathBuf, name: String, nearest: String },
    /// `config.json` and `model.safetensors` do not belong together.
    #[error("{path}: tensor `{name}` has shape {actual:?}, the configuration asks for {expected:?}")]
    Shape { path: PathBuf, name: String, expected: Vec<usize>, actual: Vec<usize> },
    #[error("{path}: tensor `{name}` is of type {actual}; f32, f16 and bf16 can be read")]
    Type { path: PathBuf, name: String, actual: String },
    /// Training diverged, or the file is damaged.
    #[error("{path}: tensor `{name}` holds a value that is not finite")]
    NotFinite { path: PathBuf, name: String },
    /// The disk that holds temporary files is full or cannot be written to; `TMPDIR` names another.
    #[error("cannot write a temporary file (is the disk full? TMPDIR names another folder): {0}")]
    Temporary(std::io::Error),
}

/// The tensors of one network.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// One file, or shards; and which of them holds a tensor, where an index says it.
    Safetensors {
        files: Vec<SafeFile>,
        index: Option<BTreeMap<String, usize>>,
    },
    Torch(Torch),
}

impl Weights {
    /// Opens a file of tensors: safetensors, an index of shards (`.json`), or PyTorch's (any other ending). No tensor is read yet.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let store = match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Store::Safetensors { files: vec![SafeFile::open(path)?], index: None },
            Some("json") => shards(path)?,
            _ => Store::Torch(Torch::open(path).map_err(|source| WeightsError::Torch { path: path.into(), source })?),
        };
        Ok(Self { path: path.into(), store })
    }

    /// Opens the weights in a folder in Hugging Face's layout.
    pub fn open_folder(dir: &Path) -> Result<Self, WeightsError> {
        let known = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        let found = known.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        Self::open(&found.ok_or_else(|| WeightsError::None { dir: dir.into() })?)
    }

    /// Every file that this is read from: the one, or the index and its shards.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        if let Store::Safetensors { files: shards, index: Some(_) } = &self.store {
            files.extend(shards.iter().map(|shard| shard.path.clone()));
        }
        files
    }

    /// Are there so many blocks: for each of them a tensor `PREFIX.NUMBER.FIELD`? A configuration can promise any number, and graphs
    /// are drawn by it.
    pub fn require_blocks(&self, prefix: &str, field: &str, count: usize) -> Result<(), WeightsError> {
        let names = (0..count).map(|number| format!("{prefix}.{number}.{field}"));
        names.filter(|name| self.shape(name).is_none()).map(|name| Err(self.missing(&name))).next().unwrap_or(Ok(()))
    }

    fn missing(&self, name: &str) -> WeightsError {
        let names = self.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        WeightsError::Missing { path: self.path.clone(), name: name.into(), nearest: nearest(name, &names) }
    }

    /// The file of PyTorch that this is, for what it says beside the tensors.
    pub fn torch(&self) -> Option<&Torch> {
        match &self.store {
            Store::Torch(torch) => Some(torch),
            _ => None,
        }
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        match &self.store {
            Store::Safetensors { index: Some(index), .. } => index.keys().cloned().collect(),
            Store::Safetensors { files, index: None } => files.iter().flat_map(|file| file.metadata.offset_keys()).collect(),
            Store::Torch(torch) => torch.names().map(str::to_owned).collect(),
        }
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.names().into_iter().filter_map(|name| self.shape(&name).map(|shape| (name, shape))).collect()
    }

    /// A tensor's shape; `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.store {
            Store::Safetensors { .. } => self.file_of(name)?.metadata.info(name).map(|info| info.shape.clone()),
            Store::Torch(torch) => torch.shape(name),
        }
    }

    /// The file that a tensor is in, or should be.
    fn file_of(&self, name: &str) -> Option<&SafeFile> {
        match &self.store {
            Store::Safetensors { files, index: Some(index) } => files.get(*index.get(name)?),
            Store::Safetensors { files, index: None } => files.first(),
            Store::Torch(_) => None,
        }
    }

    /// The tensor `name`, which must have exactly this shape, as f32 in row-major order.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let path = || self.path.clone();
        let actual = self.shape(name).ok_or_else(|| self.missing(name))?;
        // Before anything is read: the file may promise a tensor of any size.
        if actual != shape {
            return Err(WeightsError::Shape { path: path(), name: name.into(), expected: shape.into(), actual });
        }
        let data = match &self.store {
            Store::Safetensors { .. } => self.file_of(name).and_then(|file| file.tensor(name)),
            Store::Torch(torch) => torch.tensor(name).map(|data| data.map_err(|source| WeightsError::Torch { path: path(), source })),
        };
        let data = data.ok_or_else(|| self.missing(name))??;
        if data.iter().any(|x| !x.is_finite()) {
            return Err(WeightsError::NotFinite { path: path(), name: name.into() });
        }
        Ok(data)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    std::fs::read(path).map_err(|source| WeightsError::Read { path: path.into(), source })
}

/// Headers are no longer in the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file whose header is in memory; a tensor is read when it is asked for, so that a checkpoint of any size needs the
/// memory of its largest tensor.
#[derive(Debug)]
struct SafeFile {
    path: PathBuf,
    file: File,
    /// Where the tensors begin.
    begin: u64,
    metadata: Metadata,
}

impl SafeFile {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let unread = |source| WeightsError::Read { path: path.into(), source };
        let file = File::open(path).map_err(unread)?;
        let bytes = file.metadata().map_err(unread)?.len();
        let damaged = |reason: &str| WeightsError::Damaged { path: path.into(), bytes, reason: reason.to_owned() };
        let mut length = [0u8; 8];
        file.read_exact_at(&mut length, 0).map_err(|_| damaged("it has no header"))?;
        let begin = u64::from_le_bytes(length).checked_add(8).filter(|begin| *begin <= bytes.min(LONGEST_HEADER));
        let begin = begin.ok_or_else(|| damaged("its header is longer than the file"))?;
        let mut header = vec![0u8; (begin - 8) as usize];
        file.read_exact_at(&mut header, 8).map_err(unread)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&format!("its header: {error}")))?;
        if begin.checked_add(metadata.data_len() as u64) != Some(bytes) {
            return Err(damaged(&format!("its header promises {} bytes of tensors", metadata.data_len())));
        }
        Ok(Self { path: path.into(), file, begin, metadata })
    }

    fn tensor(&self, name: &str) -> Option<Result<Vec<f32>, WeightsError>> {
        self.metadata.info(name).map(|info| self.values(name, info))
    }

    fn values(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>, WeightsError> {
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0u8; to - from];
        let unread = |source| WeightsError::Read { path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, self.begin + from as u64).map_err(unread)?;
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match info.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            actual => return Err(WeightsError::Type { path: self.path.clone(), name: name.into(), actual: format!("{actual:?}") }),
        })
    }
}

/// The files of an index of shards, and which tensor is in which.
fn shards(path: &Path) -> Result<Store, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |reason: String| WeightsError::Index { path: path.into(), reason };
    let index: Index = serde_json::from_slice(&read(path)?).map_err(|error| wrong(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let place = |(name, file): (String, String)| {
        // An index from elsewhere must not point out of its folder.
        if Path::new(&file).components().count() != 1 || file == ".." {
            return Err(wrong(format!("the shard `{file}` lies in another folder")));
        }
        let file = folder.join(file);
        if !file.is_file() {
            return Err(wrong(format!("the shard {} is not there; download it too", file.display())));
        }
        Ok((name, file))
    };
    let places = index.weight_map.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<&PathBuf> = places.iter().map(|(_, file)| file).collect();
    paths.sort();
    paths.dedup();
    let number = |file: &PathBuf| paths.binary_search(&file).expect("all files are in the list");
    let index = places.iter().map(|(name, file)| (name.clone(), number(file))).collect();
    let files = paths.iter().map(|path| SafeFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    if let Some((name, file)) = places.iter().find(|(name, file)| files[number(file)].metadata.info(name).is_none()) {
        return Err(wrong(format!("the shard {} has no tensor `{name}`", file.display())));
    }
    Ok(Store::Safetensors { files, index: Some(index) })
}

/// The three names most like `name`, for an error message.
fn nearest(name: &str, names: &[&str]) -> String {
    let mut ranked: Vec<_> = names.iter().map(|other| (edit_distance(name, other), *other)).collect();
    ranked.sort();
    match ranked.as_slice() {
        [] => "the file holds no tensors".into(),
        some => some.iter().take(3).map(|(_, n)| format!("`{n}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn write(dir: &Path) -> PathBuf {
        let path = dir.join("model.safetensors");
        let f32s: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let nans: Vec<u8> = f32::NAN.to_le_bytes().into();
        let tensors = [
            ("blocks.0.up.weight", TensorView::new(Dtype::F32, vec![2, 3], &f32s)),
            ("blocks.0.up.bias", TensorView::new(Dtype::F16, vec![2], &f16s)),
            ("norm.weight", TensorView::new(Dtype::F32, vec![1], &nans)),
            ("steps", TensorView::new(Dtype::I32, vec![1], &nans)),
        ]
        .map(|(name, view)| (name, view.expect("shape and data fit")));
        safetensors::serialize_to_file(tensors, None, &path).expect("written");
        path
    }

    #[test]
    fn both_float_types_are_read() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let weights = Weights::open(&write(dir.path())).expect("opens");
        assert_eq!(weights.tensor("blocks.0.up.weight", &[2, 3]).expect("read"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(weights.tensor("blocks.0.up.bias", &[2]).expect("read"), [0.5, -2.0]);
    }

    #[test]
    fn errors_name_the_tensor_and_what_is_near() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let weights = Weights::open(&write(dir.path())).expect("opens");
        let message = |name: &str, shape: &[usize]| weights.tensor(name, shape).expect_err("fails").to_string();
        let missing = message("blocks.0.up.weights", &[2, 3]);
        assert!(missing.contains("no tensor `blocks.0.up.weights`; nearest: `blocks.0.up.weight`"), "{missing}");
        let shape = message("blocks.0.up.weight", &[3, 2]);
        assert!(shape.contains("[2, 3]") && shape.contains("[3, 2]"), "{shape}");
        assert!(message("norm.weight", &[1]).contains("not finite"));
        assert!(message("steps", &[1]).contains("I32"));
    }

    #[test]
    fn a_truncated_file_is_refused_at_every_length() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let whole = std::fs::read(write(dir.path())).expect("read");
        let path = dir.path().join("cut.safetensors");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let error = Weights::open(&path).expect_err("a truncated file opens");
            assert!(matches!(error, WeightsError::Damaged { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
