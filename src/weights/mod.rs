//! Checkpoints: safetensors, the PyTorch `.pth` reader, names and shapes.

mod error;
mod pickle;
mod pth;
mod safetensors;
mod stored;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use error::{Mismatch, WeightsError};
pub use stored::{StoreType, StoredType};

use crate::tensor::Tensor;

/// The buffers of the reference's `GaussianDiffusion`, saved beside the UNet's parameters. They follow from
/// the noise schedule, so a model neither needs them nor trusts them.
pub(crate) const SCHEDULE_BUFFERS: [&str; 12] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
];

/// Whether a tensor of this name is state that no optimiser updates: a table of the noise schedule or a
/// running statistic of a batch norm.
pub(crate) fn is_buffer(name: &str) -> bool {
    SCHEDULE_BUFFERS.contains(&name)
        || [".running_mean", ".running_var", ".num_batches_tracked"].iter().any(|suffix| name.ends_with(suffix))
}

/// The container a checkpoint was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// `torch.save` since PyTorch 1.6: a zip archive.
    PthZip,
    /// `torch.save` of PyTorch 0.1.10 to 1.5: a row of pickles.
    PthLegacy,
    /// A `.safetensors` file.
    Safetensors,
    /// Not read from a file.
    Memory,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PthZip => "PyTorch zip",
            Self::PthLegacy => "PyTorch legacy",
            Self::Safetensors => "safetensors",
            Self::Memory => "memory",
        })
    }
}

#[derive(Clone, Debug)]
struct Entry {
    tensor: Tensor,
    stored: StoredType,
}

/// The tensors of a checkpoint by name, as `f32`, in the order of their names.
#[derive(Clone, Debug)]
pub struct Weights {
    path: PathBuf,
    format: Format,
    entries: BTreeMap<String, Entry>,
}

impl Default for Weights {
    fn default() -> Self {
        Self::empty("weights in memory".into(), Format::Memory)
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    /// Tensors in memory; of two with one name the later stays.
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        let mut weights = Self::default();
        for (name, tensor) in tensors {
            weights.insert(name, tensor);
        }
        weights
    }
}

impl Weights {
    /// Reads a `.pth` (zip or legacy) or `.safetensors` file, told apart by their content. A checkpoint is
    /// data: nothing in it is executed. A state_dict nested under `state_dict`, `model_state_dict` or
    /// `model` is found, and the `module.` that DataParallel puts before every name is taken off. Elements
    /// of f64, f16, bf16 and integer types become `f32`.
    ///
    /// # Errors
    /// The file cannot be read, is no whole checkpoint, names anything but tensors, or holds values that
    /// `f32` cannot represent. There is no partial result.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        match detect(path)? {
            Format::Safetensors => safetensors::load(path),
            format => pth::load(path, format),
        }
    }

    /// The weights in the bytes of a `.safetensors` file that is embedded in a program; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn from_safetensors(bytes: &[u8], name: &str) -> Result<Self, WeightsError> {
        safetensors::parse(bytes, Path::new(name))
    }

    fn empty(path: PathBuf, format: Format) -> Self {
        Self { path, format, entries: BTreeMap::new() }
    }

    fn insert_stored(&mut self, name: String, tensor: Tensor, stored: StoredType) -> Result<(), WeightsError> {
        if self.entries.contains_key(&name) {
            return Err(WeightsError::NameTwice { path: self.path.clone(), name });
        }
        self.entries.insert(name, Entry { tensor, stored });
        Ok(())
    }

    /// Puts a tensor under `name`, in place of the one that was there.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let stored = StoredType::F32;
        self.entries.insert(name.into(), Entry { tensor, stored });
    }

    /// The file that the tensors came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container of that file.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name).map(|entry| &entry.tensor)
    }

    /// The element type that the file stored a tensor in.
    #[cfg(test)]
    pub(crate) fn stored(&self, name: &str) -> Option<StoredType> {
        self.entries.get(name).map(|entry| entry.stored)
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Names and tensors in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), &entry.tensor))
    }

    /// Names, tensors and the element types that the file stored them in, in the order of the names.
    pub(crate) fn iter_stored(&self) -> impl Iterator<Item = (&str, &Tensor, StoredType)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), &entry.tensor, entry.stored))
    }

    /// Takes `prefix` off every name that has it; the other names stay.
    ///
    /// # Errors
    /// [`WeightsError::NameTwice`] when a shortened name is there already.
    pub(crate) fn strip_prefix(self, prefix: &str) -> Result<Self, WeightsError> {
        let mut stripped = Self::empty(self.path, self.format);
        for (name, entry) in self.entries {
            let name = match name.strip_prefix(prefix) {
                Some(rest) => rest.to_string(),
                None => name,
            };
            stripped.insert_stored(name, entry.tensor, entry.stored)?;
        }
        Ok(stripped)
    }

    /// Keeps the tensors whose name satisfies `keep`.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|name, _| keep(name));
    }

    /// Compares names and shapes with those of a model. Names in `ignored` may be there or not.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with every missing, unexpected and misshapen tensor.
    pub(crate) fn check(&self, expected: &[(String, Vec<usize>)], ignored: &[&str]) -> Result<(), WeightsError> {
        let mut mismatch = Mismatch::default();
        let mut known: BTreeMap<&str, &[usize]> = BTreeMap::new();
        for (name, dims) in expected {
            known.insert(name, dims);
            match self.get(name) {
                _ if ignored.contains(&name.as_str()) => {}
                None => mismatch.missing.push(name.clone()),
                Some(tensor) if tensor.dims() != dims => {
                    mismatch.misshapen.push((name.clone(), dims.clone(), tensor.dims().to_vec()))
                }
                Some(_) => {}
            }
        }
        mismatch.unexpected = self
            .names()
            .filter(|name| !known.contains_key(name) && !ignored.contains(name))
            .map(str::to_string)
            .collect();
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { path: self.path.clone(), mismatch })
    }

    /// Refuses NaN and infinite values.
    ///
    /// # Errors
    /// [`WeightsError::NotFinite`] with the first tensor that holds some, and how many.
    pub(crate) fn check_finite(&self) -> Result<(), WeightsError> {
        for (name, tensor) in self.iter() {
            let nan = tensor.data().iter().filter(|v| v.is_nan()).count();
            let infinite = tensor.data().iter().filter(|v| v.is_infinite()).count();
            if nan + infinite > 0 {
                return Err(WeightsError::NotFinite {
                    path: self.path.clone(),
                    name: name.to_string(),
                    nan,
                    infinite,
                    len: tensor.data().len(),
                });
            }
        }
        Ok(())
    }

    /// Writes all tensors to a `.safetensors` file, beside it first and then in its place, so that a
    /// reader sees the old file or the whole new one. Tensors that were stored as integers are written as
    /// int64, all others as `store`.
    ///
    /// # Errors
    /// The file cannot be written, or a value is over the range of float16.
    pub fn save_safetensors(&self, path: impl AsRef<Path>, store: StoreType) -> Result<(), WeightsError> {
        safetensors::save(self, path.as_ref(), store)
    }
}

/// Tells the containers apart by their first bytes.
fn detect(path: &Path) -> Result<Format, WeightsError> {
    let head = read_head(path, 262)?;
    let not = |reason: &str| Err(WeightsError::NotACheckpoint { path: path.to_path_buf(), reason: reason.into() });
    // torch.save opens a legacy file with this number, as a LONG1 or, in protocols 0 and 1, as text.
    let legacy_magic: [&[u8]; 2] = [b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356"];
    let opening = &head[..head.len().min(64)];
    if head.is_empty() {
        not("the file is empty")
    } else if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        Ok(Format::PthZip)
    } else if legacy_magic.iter().any(|magic| opening.windows(magic.len()).any(|w| w == *magic)) {
        Ok(Format::PthLegacy)
    } else if head.get(8) == Some(&b'{') && head[3..8].iter().all(|&b| b <= 5) {
        Ok(Format::Safetensors)
    } else if head.get(257..262) == Some(b"ustar") {
        not("it is a tar archive, the format of PyTorch before 0.1.10; load and save it with a newer PyTorch")
    } else if head.starts_with(b"version https://git-lfs") {
        not("it is a Git LFS pointer; fetch the file itself with `git lfs pull`")
    } else if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        not("it is text")
    } else {
        not("it is neither a PyTorch .pth nor a safetensors file")
    }
}

fn read_head(path: &Path, len: u64) -> Result<Vec<u8>, WeightsError> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(len).read_to_end(&mut head))
        .map_err(|reason| WeightsError::Io { path: path.to_path_buf(), reason })?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::{Weights, WeightsError};
    use crate::tensor::Tensor;

    fn weights(names: &[(&str, &[usize])]) -> Weights {
        names.iter().map(|(name, dims)| (name.to_string(), Tensor::zeros(*dims))).collect()
    }

    #[test]
    fn all_differences_are_in_one_error() {
        let found = weights(&[("a", &[2, 3]), ("b", &[4]), ("extra", &[1]), ("betas", &[9])]);
        let expected = [("a", vec![3, 2]), ("b", vec![4]), ("c", vec![1]), ("d", vec![2])]
            .map(|(name, dims)| (name.to_string(), dims));
        let message = found.check(&expected, &["betas"]).unwrap_err().to_string();
        assert_eq!(
            message,
            "weights in memory does not fit the model: 2 missing: c, d; 1 unexpected: extra; \
             1 misshapen: a should be [3, 2] and is [2, 3]"
        );
        let fits = weights(&[("b", &[4])]);
        assert!(fits.check(&expected[1..2], &["betas"]).is_ok());
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let mut found = weights(&[("a", &[1])]);
        assert!(found.check_finite().is_ok());
        let values = vec![f32::NAN, 1.0, f32::INFINITY, f32::NAN];
        found.insert("w", Tensor::new([4], values));
        match found.check_finite() {
            Err(WeightsError::NotFinite { name, nan: 2, infinite: 1, len: 4, .. }) => assert_eq!(name, "w"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_prefix_is_taken_off_and_may_not_collide() {
        let found = weights(&[("denoise_fn.x", &[1]), ("betas", &[2])]);
        let stripped = found.strip_prefix("denoise_fn.").unwrap();
        assert_eq!(stripped.names().collect::<Vec<_>>(), ["betas", "x"]);
        let clash = weights(&[("denoise_fn.x", &[1]), ("x", &[2])]);
        assert!(matches!(
            clash.strip_prefix("denoise_fn."),
            Err(WeightsError::NameTwice { name, .. }) if name == "x"
        ));
    }

    #[test]
    fn files_that_are_no_checkpoints_are_named_for_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.pth");
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 6] = [
            (b"", "the file is empty"),
            (b"hello, I am a text\n", "it is text"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (&tar, "tar archive"),
            (b"\x80\x02}q\0.", "neither"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "neither"),
        ];
        for (bytes, reason) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = Weights::load(&path).unwrap_err().to_string();
            assert!(message.contains("is not a checkpoint"), "{message}");
            assert!(message.contains(reason), "{message}");
        }
        let missing = Weights::load(dir.path().join("none.pth"));
        assert!(matches!(missing, Err(WeightsError::Io { .. })));
    }
}
