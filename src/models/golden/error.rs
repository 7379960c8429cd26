//! What can be wrong with a golden case.

use std::error::Error;
use std::path::{Path, PathBuf};

use crate::device::RunError;
use crate::graph::GraphError;
use crate::imaging::ImagingError;
use crate::models::checkpoint::ModelError;
use crate::weights::WeightsError;

/// Why a golden case cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A folder has no cases, or a file is not of one.
    #[error("there are no cases: a case is NAME.safetensors and NAME.json, where NAME does not end in weights")]
    NoCases,
    /// A file or folder cannot be read, or is not what a case's file of its ending is.
    #[error("{path}: {reason}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is missing, is not as the JSON has it, or is not what the operation or network takes.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The configuration lacks an attribute, has one that is not known or says something that cannot be.
    #[error("{of}: {reason}")]
    Attribute {
        /// The operation, block or network.
        of: String,
        /// What is wrong, a sentence that names the attribute.
        reason: String,
    },
    /// The case is about something that medfuse does not compute; the sentence names it.
    #[error("{0}")]
    Unknown(String),
    /// What the case describes cannot be made or run.
    #[error(transparent)]
    Compute(Box<dyn Error + Send + Sync>),
}

impl CaseError {
    /// An error of the file or folder `path`.
    pub(crate) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// An error of the tensor `name`.
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.into() }
    }
}

macro_rules! compute {
    ($($error:ty),*) => {
        $(impl From<$error> for CaseError {
            fn from(error: $error) -> Self {
                Self::Compute(Box::new(error))
            }
        })*
    };
}

compute!(WeightsError, ModelError, GraphError, RunError, ImagingError);
