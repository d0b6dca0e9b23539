//! Arrays of numbers: NumPy's `.npy`, the arrays in a pickle (plain or joblib's), and the k-means codebooks made of them.

use std::path::{Path, PathBuf};

use super::pickle::{Id, Pickle, PickleError, Value, Values};
use crate::units::MOST_UNITS;
use crate::weights::{Weights, WeightsError};

/// An array in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Why an array was not read.
#[derive(Debug, thiserror::Error)]
pub enum ArrayError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Pickle { path: PathBuf, source: PickleError },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file is damaged, or of another kind than its name says.
    #[error("{path}: {message}")]
    Format { path: PathBuf, message: String },
}

/// Size in bytes, kind (`f`, `i`, `u`, `b`) and byte order of a NumPy element type such as `<f4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ElementType {
    kind: u8,
    size: usize,
    big_endian: bool,
}

impl ElementType {
    fn parse(text: &str) -> Option<Self> {
        let order = text.as_bytes().first().filter(|byte| b"<>|=".contains(byte));
        let rest = &text[usize::from(order.is_some())..];
        let kind = *rest.as_bytes().first()?;
        let size: usize = rest.get(1..)?.parse().ok()?;
        let known = matches!((kind, size), (b'f', 2 | 4 | 8) | (b'i' | b'u', 1 | 2 | 4 | 8) | (b'b', 1));
        known.then_some(Self { kind, size, big_endian: order == Some(&b'>') })
    }

    /// The `numpy.dtype` that stands at `id`.
    fn of(values: &Values, id: Id) -> Option<Self> {
        let object = values.object(id).filter(|object| &*object.class == "numpy.dtype")?;
        let mut element = Self::parse(values.text(*object.arguments.first()?)?)?;
        let order = object.state.and_then(|state| values.text(*values.sequence(state)?.get(1)?));
        element.big_endian |= order == Some(">");
        Some(element)
    }

    fn value(self, bytes: &[u8]) -> f32 {
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        if self.big_endian {
            wide[..self.size].reverse();
        }
        let bits = u64::from_le_bytes(wide);
        let unused = 64 - 8 * self.size as u32;
        match (self.kind, self.size) {
            (b'f', 2) => half::f16::from_bits(bits as u16).to_f32(),
            (b'f', 4) => f32::from_bits(bits as u32),
            (b'f', _) => f64::from_bits(bits) as f32,
            (b'i', _) => ((bits << unused) as i64 >> unused) as f32,
            _ => bits as f32,
        }
    }
}

/// Bytes of an element of the `numpy.dtype` at `id`; `None` for Python objects and other types that hold no numbers.
pub(super) fn item_size(values: &Values, id: Id) -> Option<usize> {
    ElementType::of(values, id).map(|element| element.size)
}

/// Numbers from raw bytes; `columns_first` is Fortran's order.
fn array(bytes: &[u8], element: ElementType, shape: Vec<usize>, columns_first: bool) -> Result<Array, String> {
    let count = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).ok_or("a shape beyond any file")?;
    if count.checked_mul(element.size) != Some(bytes.len()) {
        return Err(format!(
            "{} bytes for an array of shape {shape:?} with {} bytes an element; it may be truncated",
            bytes.len(),
            element.size
        ));
    }
    // Its other axis may still have any length.
    if count == 0 {
        return Err(format!("an array of shape {shape:?} holds no numbers"));
    }
    let mut data: Vec<f32> = bytes.chunks_exact(element.size).map(|bytes| element.value(bytes)).collect();
    if columns_first && shape.len() == 2 {
        let (rows, columns) = (shape[0], shape[1]);
        data = (0..rows).flat_map(|r| (0..columns).map(|c| data[c * rows + r]).collect::<Vec<_>>()).collect();
    } else if columns_first && shape.len() > 2 {
        return Err("an array of more than two axes in Fortran's order; save it with np.ascontiguousarray".into());
    }
    Ok(Array { shape, data })
}

/// Reads an `.npy` file, format versions 1 to 3.
pub fn npy(bytes: &[u8]) -> Result<Array, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("this is no .npy file")?;
    let (major, header) = match rest {
        [major @ 1, _, header @ ..] | [major @ 2..=3, _, header @ ..] => (*major, header),
        _ => return Err("an .npy file of an unknown version".into()),
    };
    let width = if major == 1 { 2 } else { 4 };
    let cut = || "the .npy file ends in its header; it may be truncated".to_owned();
    let mut wide = [0; 4];
    wide[..width].copy_from_slice(header.get(..width).ok_or_else(cut)?);
    let length = u32::from_le_bytes(wide) as usize;
    let text = header.get(width..width + length).ok_or_else(cut)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is no text")?;
    let field = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = field("descr").ok_or("the header has no descr")?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).ok_or("structured arrays hold no plain numbers")?.0;
    let element = ElementType::parse(descr).ok_or_else(|| format!("elements of type {descr} are no numbers that can be read"))?;
    let columns_first = field("fortran_order").ok_or("the header has no fortran_order")?.starts_with("True");
    let shape = field("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or("the header has no shape")?.0;
    let shape = shape.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::parse).collect::<Result<Vec<usize>, _>>();
    array(&header[width + length..], element, shape.map_err(|_| "a shape that is no list of numbers")?, columns_first)
}

/// The NumPy array at `id`, in any of the forms in which one is pickled.
fn pickled(pickle: &Pickle, id: Id) -> Result<Array, String> {
    let strange = || "what should be an array is none that can be read".to_owned();
    let object = pickle.object(id).ok_or_else(strange)?;
    if let (Some(raw), Some(state)) = (&object.raw, object.state) {
        let field = |key: &str| pickle.get(state, key).ok_or_else(strange);
        let element = ElementType::of(pickle, field("dtype")?).ok_or_else(strange)?;
        let columns_first = pickle.text(field("order")?) == Some("F");
        return array(raw, element, pickle.sizes(field("shape")?).ok_or_else(strange)?, columns_first);
    }
    let name = object.class.rsplit('.').next().unwrap_or_default();
    // `_reconstruct(…)` with the state (version, shape, dtype, fortran_order, data); `_frombuffer(data, dtype, shape, order)`.
    let (shape, dtype, columns_first, data) =
        match (name, object.state.and_then(|state| pickle.sequence(state)), object.arguments.as_slice()) {
            ("_reconstruct", Some([_, shape, dtype, fortran, data]), _) => (*shape, *dtype, pickle.int(*fortran) == Some(1), *data),
            ("_frombuffer", _, [data, dtype, shape, order]) => (*shape, *dtype, pickle.text(*order) == Some("F"), *data),
            _ => return Err(strange()),
        };
    let element = ElementType::of(pickle, dtype).ok_or("the array holds no plain numbers")?;
    let shape = pickle.sizes(shape).ok_or_else(strange)?;
    match pickle.value(data) {
        Value::Bytes(bytes) => array(bytes, element, shape, columns_first),
        // Protocol 5 wraps the bytes of `_frombuffer`; protocol 2 hides them in `_codecs.encode(text, 'latin1')`.
        Value::Object(inner) => match inner.arguments.first().map(|id| pickle.value(*id)) {
            Some(Value::Bytes(bytes)) => array(bytes, element, shape, columns_first),
            Some(Value::Text(text)) => {
                let bytes = text.chars().map(|c| u8::try_from(u32::from(c)).map_err(|_| strange())).collect::<Result<Vec<u8>, _>>()?;
                array(&bytes, element, shape, columns_first)
            }
            _ => Err(strange()),
        },
        _ => Err(strange()),
    }
}

/// The centroids `[k, d]` of a k-means: an `.npy`, a safetensors file with one matrix, or a pickled scikit-learn `KMeans` or
/// `MiniBatchKMeans` (by pickle or joblib, not compressed).
pub fn kmeans(path: &Path) -> Result<Array, ArrayError> {
    let format = |message: String| ArrayError::Format { path: path.into(), message };
    let array = if path.extension().is_some_and(|extension| extension == "safetensors") {
        let weights = Weights::open(path)?;
        let matrices: Vec<(String, Vec<usize>)> = weights.shapes().into_iter().filter(|(_, shape)| shape.len() == 2).collect();
        match matrices.as_slice() {
            [(name, shape)] => Array { data: weights.tensor(name, shape)?, shape: shape.clone() },
            others => return Err(format(format!("one matrix of centroids is expected, there are {}", others.len()))),
        }
    } else {
        let bytes = std::fs::read(path).map_err(|source| ArrayError::Read { path: path.into(), source })?;
        if bytes.starts_with(b"\x93NUMPY") { npy(&bytes).map_err(format)? } else { pickled_kmeans(path, &bytes)? }
    };
    match array.shape[..] {
        [k, _] if k > MOST_UNITS => Err(format(format!("{k} centroids: at most {MOST_UNITS} units are possible"))),
        [k, d] if k > 1 && d > 0 && array.data.iter().all(|x| x.is_finite()) => Ok(array),
        [_, _] => Err(format("the centroids are not finite, or fewer than two".into())),
        _ => Err(format(format!("centroids are a matrix [k, d], this array has the shape {:?}", array.shape))),
    }
}

fn pickled_kmeans(path: &Path, bytes: &[u8]) -> Result<Array, ArrayError> {
    let format = |message: String| ArrayError::Format { path: path.into(), message };
    const COMPRESSED: [&[u8]; 5] = [b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18"];
    if COMPRESSED.iter().any(|magic| bytes.starts_with(magic)) {
        return Err(format(
            "the file is compressed: write it again with joblib.dump(kmeans, path, compress=0), or np.save its cluster_centers_".into(),
        ));
    }
    let pickle = Pickle::read(bytes).map_err(|source| ArrayError::Pickle { path: path.into(), source })?;
    if let Ok(array) = pickled(&pickle, pickle.root()) {
        return Ok(array);
    }
    let model = pickle.find(|class| class.starts_with("sklearn.") && class.ends_with("KMeans"));
    let centres = model.and_then(|model| pickle.get(model, "cluster_centers_"));
    let centres = centres.ok_or_else(|| format("it holds neither an array nor a scikit-learn KMeans with cluster_centers_".into()))?;
    pickled(&pickle, centres).map_err(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy_file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn npy_files_of_all_number_types_are_read() {
        let floats: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let read = npy(&npy_file("<f4", "False", "(2, 3)", &floats)).expect("reads");
        assert_eq!((read.shape, read.data), (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let read = npy(&npy_file("<f4", "True", "(2, 3)", &floats)).expect("reads");
        assert_eq!(read.data, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        let big: Vec<u8> = [-2.5f64, 7.0].iter().flat_map(|x| x.to_be_bytes()).collect();
        assert_eq!(npy(&npy_file(">f8", "False", "(2,)", &big)).expect("reads").data, [-2.5, 7.0]);
        assert_eq!(npy(&npy_file("|i1", "False", "(2,)", &[0xff, 3])).expect("reads").data, [-1.0, 3.0]);
    }

    #[test]
    fn a_codebook_has_so_many_centroids_that_their_distances_fit() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("kmeans.npy");
        let read = |k: usize| {
            let numbers: Vec<u8> = (0..k).flat_map(|i| (i as f32).to_le_bytes()).collect();
            std::fs::write(&path, npy_file("<f4", "False", &format!("({k}, 1)"), &numbers)).expect("written");
            kmeans(&path).map(|array| array.shape).map_err(|error| error.to_string())
        };
        assert_eq!(read(MOST_UNITS), Ok(vec![MOST_UNITS, 1]));
        assert!(read(MOST_UNITS + 1).expect_err("too many").contains("at most"));
        assert!(read(1).expect_err("too few").contains("fewer than two"));
    }

    #[test]
    fn broken_npy_files_are_refused_at_every_length() {
        let whole = npy_file("<f4", "False", "(2, 3)", &[0; 24]);
        for length in 0..whole.len() {
            npy(&whole[..length]).expect_err("a truncated file is read");
        }
        assert!(npy(&npy_file("|O", "False", "(1,)", &[0; 8])).expect_err("objects").contains("no numbers"));
        assert!(npy(&npy_file("<f4", "False", "(99999999999, 99999999999)", &[])).is_err());
        for order in ["True", "False"] {
            assert!(npy(&npy_file("<f4", order, "(999999999999999, 0)", &[])).expect_err("empty").contains("no numbers"));
        }
    }
}
