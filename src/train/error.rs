//! What can be wrong with a run: its step, its folder, its checkpoints, its log.

use std::path::PathBuf;

use super::run::CHECKPOINT;
use crate::device::RunError;
use crate::models::training::TaskError;

/// Why a run failed, or its checkpoint or log cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The step cannot be built.
    #[error(transparent)]
    Build(#[from] RunError),
    /// The folder already holds a run.
    #[error("{} already holds a run: go on with it (--resume) or take another folder", .0.display())]
    Exists(PathBuf),
    /// The folder holds no run to go on with.
    #[error("{} holds no run to go on with: there is no {CHECKPOINT} in it", .0.display())]
    NothingToResume(PathBuf),
    /// The weights to begin with are of another network.
    #[error("the weights to begin with have no {0} of the size that is trained: they are of another network")]
    Init(String),
    /// The run has done more than it is to do.
    #[error("the run has done {done} steps already: it cannot end after {steps}")]
    Shorter {
        /// Steps done.
        done: u64,
        /// Steps wanted.
        steps: u64,
    },
    /// A step's result was not finite.
    #[error("step {step}: {reason}; the last checkpoint is kept in {}", kept.display())]
    NotFinite {
        /// The step.
        step: u64,
        /// What the layer is.
        reason: Box<RunError>,
        /// The last checkpoint.
        kept: PathBuf,
    },
    /// A step failed.
    #[error("step {step}: {reason}")]
    Run {
        /// The step.
        step: u64,
        /// Why.
        reason: RunError,
    },
    /// What the run reports cannot be written.
    #[error(transparent)]
    Report(#[from] std::io::Error),
    /// A sample or the model cannot be made or written.
    #[error("the model and its samples: {0}")]
    Publish(TaskError),
    /// A checkpoint or a log cannot be written or read.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A file is not a training checkpoint.
    #[error("{} is not a training checkpoint of medfuse: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint is of another network or run.
    #[error("{} does not go with this run: {reason}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A file is the log of another kind of run.
    #[error("the log {} has the columns {found}, not {expected}: move it away", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
        /// The line of this run.
        expected: String,
    },
}
