//! DM-FNet in the parts that are timed on their own: one pass of the UNet, the fusion head, both with random weights.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::fusion_head::{HeadConfig, fusion_head};
use super::unet::{UnetConfig, unet};
use super::{DmFnet, MODALITIES, ModelFile};
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::checkpoint::ModelError;
use crate::models::networks::{Network, SEED, random_weights};
use crate::tensor::Shape;

/// The published sizes with another number of channels at the first level.
pub(crate) fn configs(channels: usize) -> (UnetConfig, HeadConfig) {
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
pub(crate) fn random_model(channels: usize) -> Result<DmFnet, ModelError> {
    let (unet, head) = configs(channels);
    let side = unet.multiple() * 4;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |network: Network| random_weights(&network.graph, &mut rng);
    let unet_weights = draw(unet_pass(&unet, side, PassOutputs::Prediction)?);
    let head_weights = draw(head_pass(&head, side)?);
    DmFnet::new(unet_weights.into_iter().collect(), head_weights.into_iter().collect(), &ModelFile::default())
}

/// The outputs that are requested of a UNet pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PassOutputs {
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
pub(crate) fn unet_pass(config: &UnetConfig, size: usize, outputs: PassOutputs) -> Result<Network, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::new(1, config.in_channel, size, size));
    let level = graph.input("level", Shape::new(1, 1, 1, 1));
    let made = unet(&mut graph, config, x, level)?;
    let blocks = config.res_blocks + 1;
    let (name, outputs) = match outputs {
        PassOutputs::Features => {
            let first_of_level = made.decoder.into_iter().skip(blocks - 1).step_by(blocks);
            ("UNet pass", first_of_level.collect())
        }
        PassOutputs::Prediction => ("UNet pass to x_0", vec![made.x_final]),
        PassOutputs::Everything => {
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
pub(crate) fn head_pass(config: &HeadConfig, size: usize) -> Result<Network, GraphError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Plan;
    use crate::graph::Target;
    use crate::ops::testing::gpu;

    fn published(size: usize) -> [Network; 4] {
        let (unet, head) = configs(128);
        let pass = |outputs| unet_pass(&unet, size, outputs).expect("the published size");
        let [a, b, c] = [PassOutputs::Features, PassOutputs::Prediction, PassOutputs::Everything].map(pass);
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
    fn a_full_size_pass_needs_at_most_400_mib() {
        for target in targets() {
            for network in &published(256)[..3] {
                let mib = plan(network, target.clone()).run_bytes() >> 20;
                assert!(mib <= 400, "{}: {mib} MiB on {target:?}", network.name);
            }
        }
    }
}
