//! Folders of weights, whatever the model: their files, `model.json`, and what can be wrong with them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::device::RunError;
use crate::files::write_whole;
use crate::graph::{Graph, GraphError};
use crate::imaging::ImagingError;
use crate::weights::{Weights, WeightsError};

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A checkpoint cannot be read or does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights are not of the model that they are loaded for.
    #[error("{}: these weights are not {network}: {reason}", path.display())]
    Architecture {
        /// The checkpoint.
        path: PathBuf,
        /// The network with its article, such as "an LKC-FUNet".
        network: &'static str,
        /// What it lacks.
        reason: String,
    },
    /// A model's weights are not built into this library.
    #[error("the weights of {0} are not built in (feature shipped-weights): give a folder of weights")]
    NotShipped(&'static str),
    /// An option cannot be used.
    #[error("{0}")]
    Option(String),
    /// A folder of weights has no such file.
    #[error("{folder} has no {name}.safetensors or {name}.pth: --weights takes a folder with {all}")]
    MissingFile {
        /// The folder.
        folder: String,
        /// The file's name without extension.
        name: &'static str,
        /// The files that the model needs.
        all: String,
    },
    /// `model.json` cannot be understood.
    #[error("{path}: {reason}")]
    ModelFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// UNet and head do not belong together.
    #[error("this head does not go with this UNet: {0}")]
    Mismatch(String),
    /// The noise steps cannot be used.
    #[error("noise steps {steps:?}: {reason}")]
    Steps {
        /// The steps.
        steps: Vec<usize>,
        /// Why not.
        reason: String,
    },
    /// The network does not take these shapes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The network cannot run on this device.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The images cannot be used.
    #[error(transparent)]
    Imaging(#[from] ImagingError),
}

impl ModelError {
    /// The error of weights that are not of `network`, named with its article.
    pub(super) fn not_of(network: &'static str, weights: &Weights, reason: impl Into<String>) -> Self {
        Self::Architecture { path: weights.path().into(), network, reason: reason.into() }
    }
}

/// The file `name.safetensors` or else `name.pth` of a folder; `all` are the files that the model needs.
///
/// # Errors
/// [`ModelError::MissingFile`] if neither is there.
pub(crate) fn weights_file(folder: &Path, name: &'static str, all: &[&str]) -> Result<PathBuf, ModelError> {
    let mut paths = ["safetensors", "pth"].map(|e| folder.join(format!("{name}.{e}"))).into_iter();
    let missing = || ModelError::MissingFile { folder: folder.display().to_string(), name, all: all.join(" and ") };
    paths.find(|p| p.is_file()).ok_or_else(missing)
}

/// A file of the folder `weights/` of this repository as bytes; `None` in a library without the feature `shipped-weights`.
#[cfg(feature = "shipped-weights")]
macro_rules! embedded {
    ($path:literal) => {
        Some(&include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/", $path))[..])
    };
}
#[cfg(not(feature = "shipped-weights"))]
macro_rules! embedded {
    ($path:literal) => {
        None::<&[u8]>
    };
}
pub(super) use embedded;

/// Reads `model.json` of a folder as `parse` does, which is given its text and its name; the default without one.
///
/// # Errors
/// [`ModelError::ModelFile`] if it cannot be read or understood.
pub(crate) fn read_model_json<T: Default>(
    folder: &Path,
    parse: impl FnOnce(&str, &str) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let path = folder.join("model.json");
    let name = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, &name),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(T::default())
        }
        Err(e) => Err(ModelError::ModelFile { path: name, reason: e.to_string() }),
    }
}

/// Parses the text of a `model.json`; `name` is what errors call it.
///
/// # Errors
/// [`ModelError::ModelFile`] if it cannot be understood.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|e| ModelError::ModelFile { path: name.to_owned(), reason: e.to_string() })
}

/// Checks what every `model.json` says: its model and the groups of the norms.
///
/// # Errors
/// [`ModelError::ModelFile`] if it is of another model than `wanted` or there are no groups.
pub(crate) fn check_model_json(name: &str, model: &str, wanted: &str, norm_groups: usize) -> Result<(), ModelError> {
    let fail = |reason: String| Err(ModelError::ModelFile { path: name.to_owned(), reason });
    match norm_groups {
        _ if model != wanted => fail(format!("it describes the model {model:?}, not {wanted}")),
        0 => fail("norm_groups must be at least 1".into()),
        _ => Ok(()),
    }
}

/// Writes `model.json` into a folder.
///
/// # Errors
/// No such folder, no permission, disk full.
pub(crate) fn save_model_json(file: &impl Serialize, folder: &Path) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(file).map_err(std::io::Error::other)?;
    write_whole(folder.join("model.json"), text.as_bytes())
}

/// Compares a checkpoint's names and shapes with those weights of a network whose names `belong` to it. Names in `ignored`
/// may be there or not.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every missing, unexpected and misshapen tensor.
pub(crate) fn check_names(
    weights: &Weights,
    graph: &Graph,
    belong: impl Fn(&str) -> bool,
    ignored: &[&str],
) -> Result<(), WeightsError> {
    let expected = graph.params().iter().filter(|(name, _)| belong(name)).map(|(name, id)| {
        // A tensor of other dimensions but the same shape will do, such as a linear layer's as a convolution of 1x1.
        let same = weights.get(name).filter(|tensor| tensor.shape() == Some(graph.shape(*id)));
        (name.clone(), same.map_or_else(|| graph.dims(*id).to_vec(), |tensor| tensor.dims().to_vec()))
    });
    weights.check(&expected.collect::<Vec<_>>(), ignored)
}
