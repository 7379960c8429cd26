//! What is measured: the networks at the published architecture with random weights, and single convolutions.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use crate::graph::{Graph, GraphError, NodeId, Plan};
use crate::models::checkpoint::ModelError;
use crate::models::dm_fnet::{DmFnet, MODALITIES, ModelFile};
use crate::models::fusion_head::{HeadConfig, fusion_head};
use crate::models::layers::conv;
use crate::models::lkc_funet::{LkcConfig, LkcFile, LkcFunet, Mode, lkc_funet};
use crate::models::unet::{UnetConfig, unet};
use crate::ops::conv2d::ConvSpec;
use crate::tensor::{Shape, Tensor};

/// Seed of the weights and the inputs.
const SEED: u64 = 2;

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

/// The published sizes with another number of channels at the first level.
pub fn configs(channels: usize) -> (UnetConfig, HeadConfig) {
    let unet = UnetConfig { inner_channel: channels, ..UnetConfig::published() };
    let published = HeadConfig::published();
    let head = HeadConfig {
        dims: unet.channel_mults.iter().rev().map(|m| m * channels).collect(),
        decode_channels: (channels / 2).max(1),
        ..published
    };
    (unet, head)
}

/// DM-FNet at the published architecture with weights drawn from N(0, 1 / fan-in); norms scale by 1, biases are 0.
///
/// # Errors
/// [`ModelError`] if the channels are no multiple of the norms' 32 groups.
pub fn random_model(channels: usize) -> Result<DmFnet, ModelError> {
    let (unet, head) = configs(channels);
    let side = unet.multiple() * 4;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |network: Network| random_weights(&network.graph, &mut rng);
    let unet_weights = draw(unet_pass(&unet, side, Asked::Prediction)?);
    let head_weights = draw(head_pass(&head, side)?);
    DmFnet::new(unet_weights.into_iter().collect(), head_weights.into_iter().collect(), &ModelFile::default())
}

/// LKC-FUNet at the published architecture with weights drawn in the same way.
///
/// # Errors
/// [`ModelError`] if the channels do not suit the norms' 32 groups.
pub fn random_lkc_funet(channels: usize) -> Result<LkcFunet, ModelError> {
    let config = LkcConfig { inner_channel: channels, ..LkcConfig::published() };
    let mut graph = Graph::new();
    let side = config.multiple();
    let img_cat = graph.input("img_cat", Shape::new(1, config.in_channel, side, side));
    lkc_funet(&mut graph, &config, img_cat, Mode::Inference)?;
    let weights = random_weights(&graph, &mut ChaCha8Rng::seed_from_u64(SEED));
    LkcFunet::new(weights.into_iter().collect(), &LkcFile::default()).map(LkcFunet::fold)
}

fn random_weights(graph: &Graph, rng: &mut ChaCha8Rng) -> BTreeMap<String, Tensor> {
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

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

/// What is asked of a UNet pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The decoder's features that the head reads: what `medfuse fuse` runs.
    Features,
    /// The prediction of x_0, which needs every layer.
    Prediction,
    /// The prediction and all of the decoder's features, kept to the end, as the reference does.
    Everything,
}

/// One pass of the UNet on an image of `size` x `size`.
///
/// # Errors
/// [`GraphError`] if the size is no multiple of [`UnetConfig::multiple`].
pub fn unet_pass(config: &UnetConfig, size: usize, asked: Asked) -> Result<Network, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::new(1, config.in_channel, size, size));
    let level = graph.input("level", Shape::new(1, 1, 1, 1));
    let made = unet(&mut graph, config, x, level)?;
    let blocks = config.res_blocks + 1;
    let (name, outputs) = match asked {
        Asked::Features => {
            let first_of_level = made.decoder.into_iter().skip(blocks - 1).step_by(blocks);
            ("UNet pass", first_of_level.collect())
        }
        Asked::Prediction => ("UNet pass to x_0", vec![made.x_final]),
        Asked::Everything => {
            let all = made.decoder.into_iter().chain([made.x_final]);
            ("UNet pass, all outputs", all.collect())
        }
    };
    Ok(Network { name: name.into(), graph, outputs })
}

/// The fusion head on the features of images of `size` x `size`.
///
/// # Errors
/// [`GraphError`] if the coarsest features are too small.
pub fn head_pass(config: &HeadConfig, size: usize) -> Result<Network, GraphError> {
    let mut graph = Graph::new();
    let coarsest = config.dims.len() - 1;
    let mut features = |modality: &str| -> Vec<Vec<NodeId>> {
        let mut of_step = |t: usize| {
            let levels = config.dims.iter().enumerate();
            let input = |(level, &channels): (usize, &usize)| {
                let side = size >> (coarsest - level);
                let name = format!("{modality}.{t}.{level}");
                graph.input(&name, Shape::new(1, channels, side, side))
            };
            levels.map(input).collect()
        };
        (0..config.time_steps).map(&mut of_step).collect()
    };
    let [mri, other] = MODALITIES.map(&mut features);
    let fused = fusion_head(&mut graph, config, &mri, &other)?;
    Ok(Network { name: "fusion head".into(), graph, outputs: vec![fused] })
}

/// A pair as `medfuse fuse` runs it, of a model's graph and its output.
pub fn whole_pair((graph, fused): (Graph, NodeId)) -> Network {
    Network { name: "pair".into(), graph, outputs: vec![fused] }
}

/// One convolution of a `side` x `side` map with its weights.
///
/// # Errors
/// None for an odd `kernel`.
pub fn convolution(
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
pub fn random_inputs(plan: &Plan) -> Vec<(String, Vec<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    let of = |(name, location): &(String, crate::graph::plan::Location)| {
        let len = location.slot.shape.numel();
        let values = match name.starts_with("level") {
            true => vec![0.9998; len],
            false => (0..len).map(|_| normal(&mut rng)).collect(),
        };
        (name.clone(), values)
    };
    plan.inputs.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Target;
    use crate::ops::testing::gpu;

    fn published(size: usize) -> [Network; 4] {
        let (unet, head) = configs(128);
        let pass = |asked| unet_pass(&unet, size, asked).expect("the published size");
        let [a, b, c] = [Asked::Features, Asked::Prediction, Asked::Everything].map(pass);
        [a, b, c, head_pass(&head, size).expect("the published size")]
    }

    fn plan(network: &Network, target: Target) -> Plan {
        Plan::new(&network.graph, &network.outputs, target).expect("it can be planned")
    }

    fn targets() -> [Target; 2] {
        [Target::Cpu, Target::Gpu(gpu().traits().clone())]
    }

    fn gmac(macs: u64) -> f64 {
        (macs as f64 / 1e6).round() / 1e3
    }

    #[test]
    fn the_scaled_architecture_is_the_published_one() {
        assert_eq!(configs(128), (UnetConfig::published(), HeadConfig::published()));
    }

    #[test]
    fn multiply_adds_are_those_that_pytorch_counts() {
        // torch's FlopCounterMode and forward hooks on the reference at 256x256.
        let networks = published(256);
        let macs = networks.each_ref().map(|n| gmac(plan(n, Target::Cpu).macs));
        assert_eq!(macs, [132.486, 194.839, 194.839, 57.538]);
    }

    #[test]
    fn steps_account_for_all_multiply_adds() {
        for target in targets() {
            for network in published(64) {
                let plan = plan(&network, target.clone());
                let of_step = |s: &crate::graph::plan::Step| {
                    let shapes: Vec<Shape> = s.inputs.iter().map(|l| l.slot.shape).collect();
                    s.op.macs(&shapes, s.output.slot.shape)
                };
                let sum: u64 = plan.steps.iter().map(of_step).sum();
                assert_eq!(sum, plan.macs, "{}", network.name);
            }
        }
    }

    #[test]
    fn a_full_size_pass_needs_at_most_400_mib() {
        for target in targets() {
            for network in &published(256)[..3] {
                let mib = plan(network, target.clone()).run_bytes() >> 20;
                assert!(mib <= 400, "{}: {mib} MiB on {target:?}", network.name);
            }
        }
    }
}
