//! What `medfuse bench` runs of a model: its networks, how often they are run, and random weights for them.
//!
//! Speed does not depend on the weights, so random ones stand in for a checkpoint.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::graph::{Graph, NodeId};
use crate::tensor::Tensor;

/// Seed of the weights.
pub(crate) const SEED: u64 = 2;

/// A graph and what is asked of it.
#[derive(Clone, Debug)]
pub struct Network {
    /// What it is called in the tables.
    pub name: String,
    /// Its layers.
    pub graph: Graph,
    /// The outputs that are computed.
    pub outputs: Vec<NodeId>,
}

impl Network {
    /// A pair as `medfuse fuse` runs it, of a model's graph and its output.
    pub(crate) fn whole_pair((graph, fused): (Graph, NodeId)) -> Self {
        Self { name: "pair".into(), graph, outputs: vec![fused] }
    }
}

/// How often a benchmark runs a whole network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Always, as often as was asked for.
    Short,
    /// As often as was asked for, but not at all in a quick benchmark.
    Long,
    /// A few times at most, and not at all in a quick benchmark.
    VeryLong,
    /// Never: only its memory and its operations are of interest.
    PlanOnly,
}

/// What the benchmark says and presumes of a model.
#[derive(Clone, Copy, Debug)]
pub struct BenchRow {
    /// What is measured, in words that follow "of MODEL".
    pub measured: &'static str,
    /// The heights and widths that it takes, in words.
    pub sizes: &'static str,
    /// The published number of channels of the first level.
    pub width: usize,
    /// Images of the batch of a training step.
    pub training_batch: usize,
    /// Height and width of the images of a training step, unless others are asked for.
    pub training_size: usize,
    /// What a training step trains and on what, in words between "of MODEL" and the number of images.
    pub trained: &'static str,
}

/// Weights for a graph: biases are 0, scales of norms 1, all else is drawn from N(0, 1 / fan-in).
pub(crate) fn random_weights(graph: &Graph, rng: &mut ChaCha8Rng) -> BTreeMap<String, Tensor> {
    let mut draw = |(name, &id): (&String, &NodeId)| {
        let shape = graph.shape(id);
        let vector = shape.n() == 1 && shape.plane() == 1;
        let data = match vector {
            true if name.ends_with("bias") => vec![0.0; shape.numel()],
            true => vec![1.0; shape.numel()],
            false => {
                let std = (shape.item() as f32).sqrt().recip();
                (0..shape.numel()).map(|_| std * normal(rng)).collect()
            }
        };
        (name.clone(), Tensor::new(shape.0, data))
    };
    graph.params().iter().map(&mut draw).collect()
}

/// A standard normal number.
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}
