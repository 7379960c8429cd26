//! What is measured besides the models: single convolutions, and the inputs of all plans.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::graph::Location;
use crate::graph::{Graph, GraphError, Plan};
use crate::models::layers::conv;
use crate::models::networks::{Network, SEED, normal, random_weights};
use crate::ops::conv2d::ConvSpec;
use crate::tensor::{Shape, Tensor};

/// One convolution of a `side` x `side` map with its weights.
///
/// # Errors
/// None for an odd `kernel`.
pub(crate) fn convolution(
    kernel: usize,
    channels: [usize; 2],
    side: usize,
) -> Result<(Network, BTreeMap<String, Tensor>), GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::new(1, channels[0], side, side));
    let out = conv(&mut graph, "conv", x, channels[1], ConvSpec::same(kernel))?;
    let weights = random_weights(&graph, &mut ChaCha8Rng::seed_from_u64(SEED));
    let network = Network { name: "single convolutions".into(), graph, outputs: vec![out] };
    Ok((network, weights))
}

/// Inputs for a plan, in its order: noise levels near 1, everything else from N(0, 1).
pub(crate) fn random_inputs(plan: &Plan) -> Vec<(String, Vec<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    let of = |(name, location): &(String, Location)| {
        let len = location.slot.shape.numel();
        let values = match name.starts_with("level") {
            true => vec![0.9998; len],
            false => (0..len).map(|_| normal(&mut rng)).collect(),
        };
        (name.clone(), values)
    };
    plan.inputs.iter().map(of).collect()
}
