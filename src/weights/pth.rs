//! Reading what `torch.save` wrote, as data.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, MAX_PICKLE_SIZE, PickleValue, PytorchError, PytorchReader};

use super::pickle::{PickleFault, check_pickle};
use super::{Format, StoredType, Weights, WeightsError};
use crate::tensor::Tensor;

/// Keys under which training scripts nest the state_dict of a checkpoint.
const NESTED: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// Pickles at the front of a legacy file: magic number, protocol, system, object, storage keys.
const LEGACY_PICKLES: usize = 5;

/// How many times its length a file may expand into tensors. Tied weights share one storage, so more than
/// once is honest; a view with stride 0 could otherwise ask for any amount.
const MAX_EXPANSION: u64 = 8;

/// Reads a `.pth` of the format found, see [`Weights::load`].
pub(super) fn load(path: &Path, format: Format) -> Result<Weights, WeightsError> {
    check_pickles(path, format)?;
    let root = PytorchReader::read_pickle_data(path, None).map_err(|e| read_error(path, e))?;
    let (reader, value) = open_state_dict(path, root)?;
    if count_tensors(&value) != reader.len() {
        return Err(damaged(path, "two tensors have one name"));
    }
    if reader.is_empty() {
        return Err(WeightsError::NotACheckpoint { path: path.to_path_buf(), reason: "it holds no tensors".into() });
    }
    check_sizes(path, &reader)?;
    let mut weights = Weights::empty(path.to_path_buf(), format);
    for (name, source) in reader.into_tensors() {
        let stored = stored_type(source.dtype());
        let bytes = source.read().map_err(|e| read_error(path, PytorchError::Io(e)))?;
        let data = stored.decode(&bytes).map_err(|value| WeightsError::NotRepresentable {
            path: path.to_path_buf(),
            name: name.clone(),
            value,
        })?;
        let tensor = Tensor::new(source.shape(), data);
        weights.insert_stored(name, tensor, stored)?;
    }
    if weights.names().all(|name| name.starts_with("module.")) {
        weights = weights.strip_prefix("module.")?;
    }
    Ok(weights)
}

/// Refuses the file unless all its pickles name nothing but tensors.
fn check_pickles(path: &Path, format: Format) -> Result<(), WeightsError> {
    let (bytes, pickles) = match format {
        Format::PthZip => (data_pkl(path)?, 1),
        _ => (super::read_head(path, MAX_PICKLE_SIZE)?, LEGACY_PICKLES),
    };
    let mut at = 0;
    for _ in 0..pickles {
        at += check_pickle(&bytes[at..]).map_err(|fault| match fault {
            PickleFault::Foreign(global) => WeightsError::ForeignGlobal { path: path.to_path_buf(), global },
            PickleFault::Broken(reason) => damaged(path, reason),
        })?;
    }
    Ok(())
}

/// The pickle of a zip checkpoint: of several entries `data.pkl` the one that the reader takes.
fn data_pkl(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let io = |reason| WeightsError::Io { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(io)?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| damaged(path, format!("it begins as a zip archive that cannot be read to its end: {e}")))?;
    let names = archive
        .file_names()
        .map(|name| name.map(|name| name.to_string()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| damaged(path, e.to_string()))?;
    let Some(index) = names
        .iter()
        .filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
        .min_by_key(|name| name.len())
        .and_then(|name| archive.index_for_name(name))
    else {
        return Err(WeightsError::NotACheckpoint {
            path: path.to_path_buf(),
            reason: "it is a zip archive without the data.pkl of a PyTorch checkpoint".into(),
        });
    };
    // A CRC of 0 means that torch.save was told to compute none.
    let unchecked = archive.by_index_raw(index).map_err(|e| damaged(path, e.to_string()))?.crc32() == 0;
    let options = zip::ZipReadOptions::new().ignore_crc32(unchecked);
    let entry = archive.by_index_with_options(index, options).map_err(|e| damaged(path, e.to_string()))?;
    let mut bytes = Vec::new();
    entry.take(MAX_PICKLE_SIZE).read_to_end(&mut bytes).map_err(|e| damaged(path, e.to_string()))?;
    Ok(bytes)
}

/// The state_dict itself: the root, or the dictionary under one of the usual keys.
fn open_state_dict(path: &Path, root: PickleValue) -> Result<(PytorchReader, PickleValue), WeightsError> {
    let PickleValue::Dict(mut dict) = root else {
        return Err(WeightsError::NotACheckpoint {
            path: path.to_path_buf(),
            reason: "its pickle holds no dictionary of tensors; save model.state_dict()".into(),
        });
    };
    let nested = NESTED.into_iter().find(|key| matches!(dict.get(*key), Some(PickleValue::Dict(_))));
    let reader = match nested {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    };
    let reader = reader.map_err(|e| read_error(path, e))?;
    let value = match nested.and_then(|key| dict.remove(key)) {
        Some(value) => value,
        None => PickleValue::Dict(dict),
    };
    Ok((reader, value))
}

fn count_tensors(value: &PickleValue) -> usize {
    match value {
        PickleValue::Dict(dict) => dict.values().map(count_tensors).sum(),
        PickleValue::List(items) => items.iter().map(count_tensors).sum(),
        PickleValue::Unsupported(kind) => usize::from(kind == "torch.Tensor"),
        _ => 0,
    }
}

/// Compares what the tensors declare with the length of the file before any of it is allocated.
fn check_sizes(path: &Path, reader: &PytorchReader) -> Result<(), WeightsError> {
    let file = std::fs::metadata(path).map_err(|reason| WeightsError::Io { path: path.to_path_buf(), reason })?.len();
    let mut total = 0u64;
    for (name, tensor) in reader.tensors() {
        let bytes = tensor.byte_len() as u64;
        if bytes > file {
            let shape = tensor.shape();
            return Err(damaged(
                path,
                format!("tensor `{name}` of shape {shape:?} takes {bytes} bytes and the file has {file}"),
            ));
        }
        total = total.saturating_add(bytes);
    }
    if total > file.saturating_mul(MAX_EXPANSION) {
        return Err(damaged(path, format!("its tensors take {total} bytes and the file has {file}")));
    }
    Ok(())
}

fn damaged(path: &Path, reason: impl Into<String>) -> WeightsError {
    WeightsError::Damaged { path: PathBuf::from(path), reason: reason.into() }
}

fn read_error(path: &Path, error: PytorchError) -> WeightsError {
    match error {
        PytorchError::Io(reason) if reason.raw_os_error().is_some() => {
            WeightsError::Io { path: path.to_path_buf(), reason }
        }
        other => damaged(path, other.to_string()),
    }
}

fn stored_type(dtype: DType) -> StoredType {
    match dtype {
        DType::F64 => StoredType::F64,
        DType::F32 => StoredType::F32,
        DType::F16 => StoredType::F16,
        DType::BF16 => StoredType::BF16,
        DType::I64 => StoredType::I64,
        DType::I32 => StoredType::I32,
        DType::I16 => StoredType::I16,
        DType::I8 => StoredType::I8,
        DType::U64 => StoredType::U64,
        DType::U32 => StoredType::U32,
        DType::U16 => StoredType::U16,
        DType::U8 => StoredType::U8,
        DType::Bool => StoredType::Bool,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use crate::weights::{Format, StoredType, Weights, WeightsError};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights").join(name)
    }

    fn refusal(name: &str) -> WeightsError {
        Weights::load(fixture(name)).expect_err(name)
    }

    #[test]
    fn all_containers_give_the_same_tensors() {
        for (file, format) in [
            ("zip.pth", Format::PthZip),
            ("zip_protocol4.pth", Format::PthZip),
            ("zip_deflated.pth", Format::PthZip),
            ("zip_root21.pth", Format::PthZip),
            ("legacy.pth", Format::PthLegacy),
        ] {
            let weights = Weights::load(fixture(file)).unwrap();
            assert_eq!(weights.format(), format, "{file}");
            let tensor = |name: &str| {
                let tensor = weights.get(name).unwrap();
                (tensor.dims().to_vec(), tensor.data().to_vec())
            };
            assert_eq!(weights.len(), 7, "{file}");
            let rows = vec![0.5, -1.0, 2.0, 3.0, 4.5, -6.25];
            assert_eq!(tensor("layer.weight"), (vec![2, 3], rows));
            let columns = vec![0.5, 3.0, -1.0, 4.5, 2.0, -6.25];
            assert_eq!(tensor("layer.transposed"), (vec![3, 2], columns));
            assert_eq!(tensor("layer.tail"), (vec![2], vec![100.0, 200.0]));
            assert_eq!(tensor("half"), (vec![3], vec![1.5, -0.25, 65504.0]));
            assert_eq!(tensor("brain"), (vec![2], vec![1.0, -2.5]));
            assert_eq!(tensor("double"), (vec![1], vec![0.1]));
            assert_eq!(tensor("norm.num_batches_tracked"), (vec![], vec![12345.0]));
            assert_eq!(weights.stored("half"), Some(StoredType::F16));
            assert_eq!(weights.stored("brain"), Some(StoredType::BF16));
            assert_eq!(weights.stored("norm.num_batches_tracked"), Some(StoredType::I64));
        }
    }

    #[test]
    fn a_nested_state_dict_of_data_parallel_is_found() {
        let weights = Weights::load(fixture("nested.pth")).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a.weight", "b"]);
    }

    #[test]
    fn pickles_that_would_run_code_are_refused_by_name() {
        for file in ["evil.pth", "evil_protocol4.pth", "evil_legacy.pth"] {
            match refusal(file) {
                WeightsError::ForeignGlobal { global, .. } => assert_eq!(global, "posix.system"),
                other => panic!("{file}: {other}"),
            }
        }
    }

    #[test]
    fn sizes_beyond_the_file_are_refused_before_they_are_allocated() {
        let message = refusal("expanded.pth").to_string();
        assert!(message.contains("takes 4294967296 bytes"), "{message}");
        let message = refusal("overdeclared.pth").to_string();
        assert!(message.contains("takes 1073741824 bytes"), "{message}");
    }

    #[test]
    fn contents_that_would_be_lost_are_refused() {
        let message = refusal("twice.pth").to_string();
        assert!(message.contains("two tensors have one name"), "{message}");
        let message = refusal("no_tensors.pth").to_string();
        assert!(message.contains("holds no tensors"), "{message}");
        let message = refusal("big_count.pth").to_string();
        assert!(message.contains("16777217"), "{message}");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.pth");
        for file in ["zip.pth", "zip_deflated.pth", "legacy.pth"] {
            let whole = std::fs::read(fixture(file)).unwrap();
            for len in 0..whole.len() {
                std::fs::write(&path, &whole[..len]).unwrap();
                assert!(Weights::load(&path).is_err(), "{file} cut at {len}");
            }
        }
        let whole = std::fs::read(fixture("zip.pth")).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let message = Weights::load(&path).unwrap_err().to_string();
        assert!(message.contains("if it was cut off or damaged"), "{message}");
    }

    #[test]
    fn a_flipped_byte_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flipped.pth");
        for file in ["zip.pth", "legacy.pth"] {
            let whole = std::fs::read(fixture(file)).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
                std::fs::write(&path, &bytes).unwrap();
                if let Ok(weights) = Weights::load(&path) {
                    assert!(weights.len() <= 7);
                }
            }
        }
    }

    #[test]
    fn archives_that_are_no_checkpoints_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.pth");
        // The end record of a zip archive without entries.
        let mut empty_zip = b"PK\x05\x06".to_vec();
        empty_zip.resize(22, 0);
        std::fs::write(&path, &empty_zip).unwrap();
        let message = Weights::load(&path).unwrap_err().to_string();
        assert!(message.contains("without the data.pkl"), "{message}");
    }
}
