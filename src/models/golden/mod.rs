//! What golden cases may ask of a model. Each model says it in a file of its own, beside its networks; `crate::verify`
//! runs what is written here and compares it with the case.

pub mod attributes;
pub mod case;
pub mod error;
pub mod row;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::device::Device;
use crate::diffusion::ScheduleConfig;
use crate::graph::{Graph, NodeId};
use crate::models::training::LossGraph;
use crate::tensor::{Shape, Tensor};
use crate::weights::Weights;
use attributes::Attributes;
use case::{Array, Case, Values};
use error::CaseError;
use row::Row;

/// What a model answers of golden cases. Names are the values of a configuration's entries `block`, `net`, `loss` and
/// `pipeline`.
pub struct Golden {
    /// Parts of its networks.
    pub blocks: &'static [Row],
    /// Its networks.
    pub networks: &'static [(&'static str, Write)],
    /// Its losses, of images that the case has.
    pub losses: &'static [(&'static str, Write)],
    /// What it does beyond a single graph.
    pub pipelines: &'static [(&'static str, RunPipeline)],
    /// Its trainings, by the entry of the configuration that has the attributes of the network.
    pub trainings: &'static [(&'static str, Train)],
}

/// Writes the graph of a case. The attributes are all that its configuration says of the network or the loss.
pub(crate) type Write = fn(&Case, Attributes) -> Result<CaseGraph, CaseError>;
/// Computes the case of a pipeline.
pub(crate) type RunPipeline = fn(&Case, Attributes, &Device) -> Result<Computed, CaseError>;
/// Writes the loss of a case. It takes the attributes out that are not the optimiser's.
pub(crate) type Train = fn(&Case, &mut Attributes) -> Result<TrainingCase, CaseError>;

/// A graph with all that it needs to run, and its outputs under the case's names.
#[derive(Debug, Default)]
pub(crate) struct CaseGraph {
    /// The graph.
    pub graph: Graph,
    /// The values of its inputs.
    pub inputs: NamedValues,
    /// Its weights.
    pub params: BTreeMap<String, Tensor>,
    /// The nodes that the case names `out.*`, and activations that no module of the network gives.
    pub outputs: Vec<(String, NodeId)>,
    /// Gradients that the case may have: the name, a number, and what the gradient of that number is with respect to.
    pub gradients: Vec<(String, NodeId, NodeId)>,
    /// What the case has that needs no graph, such as inputs that follow from others.
    pub derived: BTreeMap<String, Array>,
    /// Module names begin with this where the case's do not.
    pub prefix: &'static str,
    /// Weights begin with this where the case's do not.
    pub param_prefix: &'static str,
}

/// Float32 values by name.
pub(crate) type NamedValues = Vec<(String, Vec<f32>)>;

impl CaseGraph {
    /// An empty graph with these weights.
    pub(crate) fn new(weights: &Weights) -> Self {
        Self { params: params(weights), ..Self::default() }
    }

    /// Adds the case's tensor `in.{name}` as an input, in NCHW.
    ///
    /// # Errors
    /// [`CaseError::Tensor`] if the case lacks it or it has no NCHW reading.
    pub(crate) fn input(&mut self, case: &Case, name: &str) -> Result<NodeId, CaseError> {
        let (shape, values) = case.nchw(&format!("in.{name}"))?;
        Ok(self.input_as(name, shape, values))
    }

    /// Adds an input of these values.
    pub(crate) fn input_as(&mut self, name: &str, shape: Shape, values: &[f32]) -> NodeId {
        self.inputs.push((name.to_owned(), values.to_vec()));
        self.graph.input(name, shape)
    }

    /// Adds the parts of a loss as the outputs `out{suffix}.PART`, and their gradients with respect to `image` as
    /// `grad{suffix}.PART`.
    pub(crate) fn loss_parts(&mut self, suffix: &str, parts: &[(&str, NodeId)], image: NodeId) {
        for (part, id) in parts {
            self.outputs.push((format!("out{suffix}.{part}"), *id));
            self.gradients.push((format!("grad{suffix}.{part}"), *id, image));
        }
    }
}

/// What was computed of a case, under the names that it has for them.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    /// The results: `out.*`, `act.*`, `grad.*` and so on, and `in.*` that were derived from others.
    pub arrays: BTreeMap<String, Array>,
    /// The activations' names, in the order in which they are computed.
    pub order: Vec<String>,
}

impl Computed {
    /// Adds a float32 result of this shape.
    pub(crate) fn insert(&mut self, name: impl Into<String>, shape: Shape, values: Vec<f32>) {
        self.arrays.insert(name.into(), Array { dims: shape.0.to_vec(), values: Values::F32(values) });
    }

    /// Adds an activation after those that are there.
    pub(crate) fn insert_activation(&mut self, name: String, shape: Shape, values: Vec<f32>) {
        self.order.push(name.clone());
        self.insert(name, shape, values);
    }
}

/// A case that trains a network for some steps.
pub(crate) struct TrainingCase {
    /// The loss, whose inputs are [`TrainingCase::inputs`].
    pub loss: LossGraph,
    /// All that the graph reads: the weights at the beginning, and constants.
    pub params: BTreeMap<String, Tensor>,
    /// Whether a weight is trained.
    pub is_trained: fn(&str) -> bool,
    /// The inputs of a step, counted from 0.
    pub inputs: fn(&Case, usize) -> Result<NamedValues, CaseError>,
    /// Inputs that are the same in every step.
    pub given: NamedValues,
    /// A node of the first step that the case may have, with its name there.
    pub prediction: Option<(&'static str, NodeId)>,
    /// The tensor with the losses of each step, and what else is reported.
    pub losses: &'static str,
}

/// Loads the case's files of weights, of which there must be `N`.
///
/// # Errors
/// [`CaseError`] if the case names more or fewer, or one cannot be read.
pub(crate) fn load_weights<const N: usize>(case: &Case) -> Result<[Weights; N], CaseError> {
    let Ok(paths) = <&[_; N]>::try_from(&case.weights[..]) else {
        let reason = format!("{N} files of weights are needed, it names {}", case.weights.len());
        return Err(CaseError::tensor("weights", reason));
    };
    let mut loaded = paths.iter().map(Weights::load).collect::<Result<Vec<_>, _>>()?;
    Ok(std::array::from_fn(|_| loaded.remove(0)))
}

/// Weights by name.
pub(crate) fn params(weights: &Weights) -> BTreeMap<String, Tensor> {
    weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

/// Longest noise schedule of a case: its tables must fit into memory.
const MAX_TIMESTEPS: u64 = 100_000;

/// The configuration of a noise schedule.
///
/// # Errors
/// [`CaseError::Attribute`] if an attribute is missing, not known or has a value that cannot be.
pub(crate) fn schedule(attributes: Attributes) -> Result<ScheduleConfig, CaseError> {
    attributes.at_most("n_timestep", MAX_TIMESTEPS)?;
    attributes.read()
}

/// Checks attributes that the weights imply, where the configuration has them.
///
/// # Errors
/// [`CaseError::Attribute`] if one is something else.
pub(crate) fn expect_all(attributes: &mut Attributes, implied: &[(&str, Value)]) -> Result<(), CaseError> {
    for (name, value) in implied {
        attributes.expect(name, value, "the weights say")?;
    }
    Ok(())
}
