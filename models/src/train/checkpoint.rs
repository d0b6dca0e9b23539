//! Checkpoints: a folder with `config.json` and `model.safetensors` in PyTorch's layout, tensor names equal to field paths.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::{BurnToPyTorchAdapter, FloatCastAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::store::{ChainAdapter, SafetensorsStoreError};
use burn::tensor::DType;
use safetensors::SafeTensors;
use serde::{Serialize, de::DeserializeOwned};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The disk is full, the folder is missing or not writable.
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// `config.json` does not describe this network; is it another network's folder?
    #[error("{path} is not the configuration of this network: {source}")]
    Config { path: PathBuf, source: serde_json::Error },
    /// The weights are missing, truncated or of another shape.
    #[error("cannot load the weights {path}: {message}")]
    Weights { path: PathBuf, message: String },
}

/// How floats lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    F16,
}

/// Writes `bytes` beside `path` and renames: whoever reads sees the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { what, path, source }
    };
    std::fs::write(&partial, bytes).map_err(io("write", &partial))?;
    std::fs::rename(&partial, path).map_err(io("write", path))
}

/// Saves `config` and the weights of `model` into `dir`, which is made if it is missing. The same weights are the same bytes, and
/// weights that are there already stay as they are: `units.json` knows its tokenizer by the hash of the file.
pub fn save<M: Module, C: Serialize>(dir: &Path, config: &C, model: &M, precision: Precision) -> Result<(), CheckpointError> {
    std::fs::create_dir_all(dir).map_err(|source| CheckpointError::Io { what: "make", path: dir.to_owned(), source })?;
    let path = dir.join("model.safetensors");
    let weights = |error: SafetensorsStoreError| CheckpointError::Weights { path: path.clone(), message: error.to_string() };
    // Burn's own metadata would come in another order each time.
    let mut store = SafetensorsStore::from_bytes(None).clear_metadata();
    store = match precision {
        Precision::F32 => store.with_to_adapter(BurnToPyTorchAdapter),
        Precision::F16 => store.with_to_adapter(ChainAdapter::new(BurnToPyTorchAdapter, FloatCastAdapter::to(DType::F16))),
    };
    model.save_into(&mut store).map_err(weights)?;
    let bytes = store.get_bytes().map_err(weights)?;
    if !std::fs::read(&path).is_ok_and(|before| same_tensors(&before, &bytes)) {
        write_atomically(&path, &bytes)?;
    }
    let path = dir.join("config.json");
    let json = serde_json::to_vec_pretty(config).map_err(|source| CheckpointError::Config { path: path.clone(), source })?;
    write_atomically(&path, &json)
}

/// Whether two safetensors files hold the same tensors, whatever their headers say besides.
fn same_tensors(a: &[u8], b: &[u8]) -> bool {
    let (Ok(a), Ok(b)) = (SafeTensors::deserialize(a), SafeTensors::deserialize(b)) else { return false };
    a.len() == b.len() && a.iter().all(|(name, tensor)| b.tensor(name).is_ok_and(|other| other == tensor))
}

/// Reads `dir/config.json`.
pub fn load_config<C: DeserializeOwned>(dir: &Path) -> Result<C, CheckpointError> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| CheckpointError::Io { what: "read", path: path.clone(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Config { path, source })
}

/// Loads `dir/model.safetensors` (f32 or f16) into `model`; every tensor of the model must be there.
pub fn load_weights<M: Module>(dir: &Path, mut model: M) -> Result<M, CheckpointError> {
    let path = dir.join("model.safetensors");
    let failed = |message: String| CheckpointError::Weights { path: path.clone(), message };
    let bytes = std::fs::read(&path).map_err(|source| CheckpointError::Io { what: "read", path: path.clone(), source })?;
    // What is missing is told below, in a line.
    let mut store = SafetensorsStore::from_bytes(Some(bytes))
        .allow_partial(true)
        .with_from_adapter(ChainAdapter::new(FloatCastAdapter::to(DType::F32), PyTorchToBurnAdapter));
    let result = model.load_from(&mut store).map_err(|error| failed(error.to_string()))?;
    if let Some((name, container)) = result.missing.first() {
        return Err(failed(format!("tensor `{name}` of {container} is missing ({} in all)", result.missing.len())));
    }
    if let Some(error) = result.errors.first() {
        return Err(failed(error.to_string()));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::tensor::{Device, Tensor};

    #[derive(Module, Debug)]
    struct Net {
        norm: LayerNorm,
        linear: Linear,
    }

    fn net(device: &Device) -> Net {
        Net { norm: LayerNormConfig::new(4).init(device), linear: LinearConfig::new(4, 6).init(device) }
    }

    #[test]
    fn weights_come_back_in_either_precision_and_lie_as_pytorch_has_them() {
        let device = Device::flex();
        let model = net(&device);
        let input = Tensor::<2>::from_floats([[0.1, -0.4, 0.3, 0.9]], &device);
        let expected = model.linear.forward(model.norm.forward(input.clone()));
        for (precision, tolerance) in [(Precision::F32, 1e-7), (Precision::F16, 2e-3)] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            save(dir.path(), &"net", &model, precision).expect("saved");
            let bytes = std::fs::read(dir.path().join("model.safetensors")).expect("written");
            let file = SafeTensors::deserialize(&bytes).expect("safetensors");
            assert_eq!(file.tensor("linear.weight").expect("named as the field").shape(), [6, 4]);
            assert!(file.tensor("norm.weight").is_ok());
            let loaded = load_weights(dir.path(), net(&device)).expect("loaded");
            let output = loaded.linear.forward(loaded.norm.forward(input.clone()));
            let error = (output - expected.clone()).abs().max().into_scalar::<f32>();
            assert!(error <= tolerance, "{precision:?}: {error}");
        }
    }

    #[test]
    fn what_another_network_lacks_is_named() {
        let (device, dir) = (Device::flex(), tempfile::tempdir().expect("a temporary folder"));
        let other: Linear = LinearConfig::new(4, 6).init(&device);
        save(dir.path(), &"another", &other, Precision::F32).expect("saved");
        let error = load_weights(dir.path(), net(&device)).expect_err("another network").to_string();
        assert!(error.contains("`linear.") || error.contains("`norm."), "{error}");
    }

    #[test]
    fn the_same_weights_are_the_same_bytes() {
        let (device, dir) = (Device::flex(), tempfile::tempdir().expect("a temporary folder"));
        let (model, path) = (net(&device), dir.path().join("model.safetensors"));
        let saved = |model: &Net| {
            save(dir.path(), &"net", model, Precision::F32).expect("saved");
            std::fs::read(&path).expect("written")
        };
        let first = saved(&model);
        for _ in 0..6 {
            std::fs::remove_file(&path).expect("it is there");
            assert!(saved(&model) == first, "another header or another order of the tensors");
        }
        // A file of an older version, with metadata: it stays, and with it the units that know it by its hash.
        let tensors = SafeTensors::deserialize(&first).expect("safetensors");
        let metadata = std::collections::HashMap::from([("producer".to_owned(), "burn".to_owned())]);
        let older = safetensors::serialize(tensors.tensors(), Some(metadata)).expect("serialised");
        assert!(older != first);
        std::fs::write(&path, &older).expect("written");
        assert!(saved(&model) == older, "the same weights were written again");
        assert!(saved(&net(&device)) != older, "other weights were not written");
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let device = Device::flex();
        let dir = tempfile::tempdir().expect("a temporary folder");
        save(dir.path(), &"net", &net(&device), Precision::F32).expect("saved");
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).expect("written");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("truncated");
        assert!(load_weights(dir.path(), net(&device)).is_err());
    }
}
