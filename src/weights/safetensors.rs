//! Reading and writing `.safetensors`.

use std::borrow::Cow;
use std::path::Path;

use ::safetensors::tensor::{Dtype, SafeTensors, View};

use crate::files::write_whole;

use super::{Format, StoreType, StoredType, Weights, WeightsError};
use crate::tensor::Tensor;

/// Reads a whole `.safetensors` file; the header is checked against the file's length before anything is
/// converted.
pub(super) fn load(path: &Path) -> Result<Weights, WeightsError> {
    let bytes = std::fs::read(path).map_err(|reason| WeightsError::Io { path: path.to_path_buf(), reason })?;
    parse(&bytes, path)
}

/// The weights in the bytes of a `.safetensors` file; `path` is what errors call it.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Weights, WeightsError> {
    let damaged = |reason: String| WeightsError::Damaged { path: path.to_path_buf(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
    let mut weights = Weights::empty(path.to_path_buf(), Format::Safetensors);
    for (name, view) in file.iter() {
        let stored = stored_type(view.dtype()).ok_or_else(|| WeightsError::UnsupportedType {
            path: path.to_path_buf(),
            name: name.to_string(),
            dtype: view.dtype().to_string(),
        })?;
        let data = stored.decode(view.data()).map_err(|value| WeightsError::NotRepresentable {
            path: path.to_path_buf(),
            name: name.to_string(),
            value,
        })?;
        if view.shape().iter().product::<usize>() != data.len() {
            return Err(damaged(format!("tensor `{name}` does not fill its shape")));
        }
        let tensor = Tensor::new(view.shape(), data);
        weights.insert_stored(name.to_string(), tensor, stored)?;
    }
    Ok(weights)
}

fn stored_type(dtype: Dtype) -> Option<StoredType> {
    Some(match dtype {
        Dtype::F64 => StoredType::F64,
        Dtype::F32 => StoredType::F32,
        Dtype::F16 => StoredType::F16,
        Dtype::BF16 => StoredType::BF16,
        Dtype::I64 => StoredType::I64,
        Dtype::I32 => StoredType::I32,
        Dtype::I16 => StoredType::I16,
        Dtype::I8 => StoredType::I8,
        Dtype::U64 => StoredType::U64,
        Dtype::U32 => StoredType::U32,
        Dtype::U16 => StoredType::U16,
        Dtype::U8 => StoredType::U8,
        Dtype::BOOL => StoredType::Bool,
        _ => return None,
    })
}

struct Encoded {
    dtype: Dtype,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Encoded {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.dims
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// See [`Weights::save_safetensors`].
pub(super) fn save(weights: &Weights, path: &Path, store: StoreType) -> Result<(), WeightsError> {
    let mut encoded = Vec::with_capacity(weights.len());
    for (name, entry) in &weights.entries {
        let data = entry.tensor.data();
        let (dtype, bytes) = if entry.stored.is_float() {
            let bytes = store.encode(data).map_err(|value| WeightsError::OverflowsF16 { name: name.clone(), value })?;
            let dtype = match store {
                StoreType::F32 => Dtype::F32,
                StoreType::F16 => Dtype::F16,
            };
            (dtype, bytes)
        } else {
            let bytes = data.iter().flat_map(|&v| (v as i64).to_le_bytes());
            (Dtype::I64, bytes.collect())
        };
        let dims = entry.tensor.dims().to_vec();
        encoded.push((name.as_str(), Encoded { dtype, dims, bytes }));
    }
    let tag = [("format".to_string(), "pt".to_string())].into_iter().collect();
    let file = ::safetensors::serialize(encoded, Some(tag)).map_err(|e| io_error(path, std::io::Error::other(e)))?;
    write_whole(path, &file).map_err(|reason| io_error(path, reason))
}

fn io_error(path: &Path, reason: std::io::Error) -> WeightsError {
    WeightsError::Io { path: path.to_path_buf(), reason }
}

#[cfg(test)]
mod tests {
    use crate::tensor::Tensor;
    use crate::weights::{Format, StoreType, StoredType, Weights, WeightsError};

    fn sample() -> Weights {
        Weights::from_iter([
            ("a".to_string(), Tensor::new([2, 2], vec![1.0, -0.1, 3.5, 1e-3])),
            ("b".to_string(), Tensor::new([], vec![7.0])),
        ])
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        sample().save_safetensors(&path, StoreType::F32).unwrap();
        let read = Weights::load(&path).unwrap();
        assert_eq!(read.format(), Format::Safetensors);
        assert_eq!(read.get("a"), sample().get("a"));
        assert_eq!(read.get("b"), sample().get("b"));

        sample().save_safetensors(&path, StoreType::F16).unwrap();
        let read = Weights::load(&path).unwrap();
        assert_eq!(read.stored("a"), Some(StoredType::F16));
        let got = read.get("a").unwrap().data();
        assert_eq!(got, [1.0, -0.099_975_586, 3.5, 0.001_000_404_4]);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "a temporary file was left behind");
    }

    #[test]
    fn counters_stay_integers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/weights/zip.pth");
        let mut weights = Weights::load(fixture).unwrap();
        weights.save_safetensors(&path, StoreType::F16).unwrap();
        let read = Weights::load(&path).unwrap();
        let counter = "norm.num_batches_tracked";
        assert_eq!(read.stored(counter), Some(StoredType::I64));
        assert_eq!(read.get(counter).unwrap().data(), [12345.0]);

        weights.insert("big", Tensor::new([1], vec![1e6]));
        let error = weights.save_safetensors(&path, StoreType::F16).unwrap_err();
        assert!(matches!(error, WeightsError::OverflowsF16 { name, value } if name == "big" && value == 1e6));
        assert_eq!(Weights::load(&path).unwrap().len(), 7, "the old file was touched");
    }

    #[test]
    fn a_cut_file_and_a_wrong_header_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        sample().save_safetensors(&path, StoreType::F32).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Weights::load(&path).is_err(), "cut at {len}");
        }
        let header = br#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,16]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0; 16]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(Weights::load(&path), Err(WeightsError::Damaged { .. })));
    }
}
