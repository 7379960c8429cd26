//! What can be wrong with a golden case.

use std::path::PathBuf;

use crate::device::RunError;
use crate::graph::GraphError;
use crate::imaging::ImagingError;
use crate::models::checkpoint::ModelError;
use crate::models::dm_fnet::fusion_head::NotAHead;
use crate::models::dm_fnet::unet::NotAUnet;
use crate::models::lkc_funet::NotAnLkcFunet;
use crate::train::step::StepError;
use crate::weights::WeightsError;

/// Why a golden case cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A file or folder cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A folder has no cases, or a file is not of one.
    #[error("there are no cases: a case is NAME.safetensors and NAME.json, where NAME does not end in weights")]
    NoCases,
    /// A file is not what a case's file of its ending is.
    #[error("{path} is not a case's file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file of tensors and its JSON do not say the same.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The configuration lacks something or says something that cannot be.
    #[error("config.{key}: {reason}")]
    Config {
        /// The entry.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// What the case is about is not there yet.
    #[error("{0} is not implemented yet")]
    Unimplemented(String),
    /// The configuration names nothing that is known here.
    #[error("{0:?} is not an operation, network or pipeline that medfuse knows")]
    Unknown(String),
    /// The case's weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The case's model cannot be made or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The UNet's size cannot be told.
    #[error(transparent)]
    Unet(#[from] NotAUnet),
    /// The head's size cannot be told.
    #[error(transparent)]
    Head(#[from] NotAHead),
    /// The size of an LKC-FUNet cannot be told.
    #[error(transparent)]
    Lkc(#[from] NotAnLkcFunet),
    /// The network does not take these shapes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The network cannot run on this device.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The training step cannot be built or run.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The case's images cannot be used.
    #[error(transparent)]
    Imaging(#[from] ImagingError),
}

impl CaseError {
    /// An error of the configuration's entry `key`.
    pub(super) fn config(key: &str, reason: impl Into<String>) -> Self {
        Self::Config { key: key.to_owned(), reason: reason.into() }
    }

    /// An error of the tensor `name`.
    pub(super) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.into() }
    }
}
