//! What can be wrong with a checkpoint.

use std::fmt;
use std::path::PathBuf;

/// Why a checkpoint was not read, not written, or does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused to read or write the file.
    #[error("{path}: {reason}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// The bytes are no checkpoint at all.
    #[error("{path} is not a checkpoint: {reason}", path = .path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What it is instead, as far as one can tell.
        reason: String,
    },
    /// A checkpoint that contradicts itself, ends too early, or is of a kind that is not read (big-endian, sparse, quantised).
    #[error("{path} cannot be read as a checkpoint ({reason}); if it was cut off or damaged, copy or download it again", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first contradiction found.
        reason: String,
    },
    /// The pickle names something that is not a part of a tensor, so loading it with Python could run code.
    #[error(
        "{path} is refused: its pickle names `{global}`, and a checkpoint may name nothing but tensors; \
         save a plain state_dict (torch.save(model.state_dict(), ...)) of float tensors",
        path = .path.display()
    )]
    ForeignGlobal {
        /// The file.
        path: PathBuf,
        /// The dotted Python name.
        global: String,
    },
    /// A tensor whose elements have a type that cannot become `f32`.
    #[error("{path}: tensor `{name}` holds {dtype}, which is not supported; convert it to float32 first", path = .path.display())]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type in the file's words.
        dtype: String,
    },
    /// A value of a 64-bit tensor that `f32` cannot hold: an integer that would be rounded, a float over its range.
    #[error("{path}: tensor `{name}` holds {value}, which float32 cannot represent", path = .path.display())]
    NotRepresentable {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value.
        value: String,
    },
    /// A value too large for half precision.
    #[error("tensor `{name}` holds {value}, over the range of float16 (65504); store it as f32")]
    OverflowsF16 {
        /// The tensor.
        name: String,
        /// The first such value.
        value: f32,
    },
    /// Two tensors of one file end up with one name.
    #[error("{path} names the tensor `{name}` twice", path = .path.display())]
    NameTwice {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The tensors are not those of the model.
    #[error("{path} does not fit the model: {mismatch}", path = .path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every difference.
        mismatch: Mismatch,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor `{name}` holds {nan} NaN and {infinite} infinite of {len} values", path = .path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The first such tensor in the order of names.
        name: String,
        /// How many of its values are NaN.
        nan: usize,
        /// How many of its values are infinite.
        infinite: usize,
        /// How many values it has.
        len: usize,
    },
}

/// Every difference between the tensors of a file and those a model expects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Expected names that the file lacks.
    pub missing: Vec<String>,
    /// Names in the file that the model does not know.
    pub unexpected: Vec<String>,
    /// Name, shape expected, shape found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Mismatch {
    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                parts.push(format!("{} {what}: {}", names.len(), names.join(", ")));
            }
        }
        if !self.misshapen.is_empty() {
            let list: Vec<String> = self
                .misshapen
                .iter()
                .map(|(name, want, got)| format!("{name} should be {want:?} and is {got:?}"))
                .collect();
            parts.push(format!("{} misshapen: {}", list.len(), list.join(", ")));
        }
        f.write_str(&parts.join("; "))
    }
}
