//! What a model says of its training, and what trainings have in common: the configuration's sections, the pairs and their
//! batches, the losses, the first weights, the samples.
//!
//! The loop itself, which runs any [`TrainTask`], is `crate::train`.

pub mod config;
pub mod data;
mod error;
pub mod init;
pub mod loss;
pub mod samples;
pub mod sections;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::device::{Device, ParamSource};
use crate::graph::{Graph, GraphError, Kind, NodeId};
use crate::tensor::{Shape, Tensor};
use config::TrainingConfig;
use data::Dataset;
pub use error::TrainingError;
use samples::Figures;

/// A training of a model, as `medfuse train` offers it.
pub struct Training {
    /// Its name on the command line, in checkpoints and logs.
    pub name: &'static str,
    /// A line about it.
    pub about: &'static str,
    /// The files that it needs besides the pairs.
    pub files: &'static [TrainingFile],
    /// Its configuration at its defaults.
    pub config: fn() -> Box<dyn TrainingConfig>,
}

impl fmt::Debug for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A file that a training needs, `--NAME FILE` on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrainingFile {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// A line of help.
    pub about: &'static str,
}

/// What a training is given to begin with.
#[derive(Clone, Copy, Debug)]
pub struct TaskInputs<'a> {
    /// The pairs to train on and those to validate with.
    pub data: &'a Dataset,
    /// Where it validates.
    pub device: &'a Device,
    /// The files of [`Training::files`], in that order.
    pub files: &'a [PathBuf],
}

/// Why a training cannot begin, or a sample or a model cannot be made or written.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// A graph that ends in a loss.
#[derive(Clone, Debug)]
pub struct LossGraph {
    /// The graph.
    pub graph: Graph,
    /// The loss, `[1, 1, 1, 1]`.
    pub loss: NodeId,
    /// What else is reported of each batch, single numbers too.
    pub reports: Vec<NodeId>,
    /// Whether the backward pass computes most of the forward pass again in place of keeping it: about a third more time
    /// for a fraction of the memory.
    pub recompute: bool,
}

impl LossGraph {
    /// The node that the graph marks as the result of `module`.
    #[cfg(feature = "verify")]
    pub(super) fn marked(&self, module: &str) -> Option<NodeId> {
        self.graph.marks().iter().find(|(name, _)| name == module).map(|(_, id)| *id)
    }

    /// The weights that the graph itself assigns, such as running statistics, with their shapes.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = (&str, Shape)> {
        let nodes = self.graph.nodes().iter().filter(|node| matches!(node.kind, Kind::Assign));
        nodes.map(|node| (node.name.as_str(), node.shape))
    }
}

/// What is trained: the parts of a run in which the trainings differ.
pub trait TrainTask {
    /// The run's name, that of its [`Training`].
    fn stage(&self) -> &'static str;

    /// The graph of the loss on one batch.
    ///
    /// # Errors
    /// [`GraphError`] if the network does not take the crop's size.
    fn graph(&self) -> Result<LossGraph, GraphError>;

    /// Whether a weight is trained; the others come from [`TrainTask::frozen`].
    fn is_trained(&self, name: &str) -> bool;

    /// The first values of the trained weights, of which names and dimensions are given: one after the other in that order.
    fn first_weights(&self, weights: &[(String, Vec<usize>)], seed: u64) -> Vec<f32> {
        weights.iter().flat_map(|(name, dims)| init::orthogonal(name, dims, seed).into_data()).collect()
    }

    /// Weights that are read but not trained.
    fn frozen(&self) -> &dyn ParamSource;

    /// What a resumed run must share with its first part besides the configuration and the pairs, lines of text.
    fn identity(&self) -> String {
        String::new()
    }

    /// The names of the graph's reports.
    fn reports(&self) -> &'static [&'static str];

    /// The graph's inputs for batch `number`, always the same for the same number.
    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>>;

    /// Writes pictures of what the model does after `step` steps into `folder`; gives figures of the validation pairs.
    ///
    /// # Errors
    /// Whatever stands in the way of that.
    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, TaskError>;

    /// Writes the trained model into `folder`.
    ///
    /// # Errors
    /// Whatever stands in the way of that.
    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), TaskError>;
}
