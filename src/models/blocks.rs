//! Blocks of layers that several networks are made of: residual blocks with dropout, the steps between levels, attention.

use super::layers::{act, add, conv, group_norm, linear};
use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::hash::fnv1a;
use crate::ops::conv2d::ConvSpec;
use crate::ops::dropout::Dropout;
use crate::ops::reduce::{ChannelMax, ChannelMean, GlobalAvgPool};
use crate::ops::resize::UpsampleNearest2;
use crate::tensor::Shape;

/// Reduction of the channel attention.
const REDUCTION: usize = 8;

/// Dropout in a network that is trained.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DropoutSeed {
    /// The probability that an element is dropped.
    pub p: f32,
    /// The seed of the masks, see [`Dropout`].
    pub seed: NodeId,
}

impl DropoutSeed {
    /// Dropout with probability `p`, whose seed is a new input `dropout` `[1, 2, 1, 1]`; none where `p` is 0.
    pub(crate) fn input(g: &mut Graph, p: f32) -> Option<Self> {
        (p > 0.0).then(|| Self { p, seed: g.input("dropout", Shape::new(1, 2, 1, 1)) })
    }

    /// The seed of batch `number` of a run: whole numbers that f32 holds.
    pub(crate) fn values(run: u64, number: u64) -> Vec<f32> {
        [run, number].map(|v| (v % (1 << 24)) as f32).to_vec()
    }

    /// The layer `name`, whose masks are its own.
    ///
    /// # Errors
    /// [`GraphError`] if the probability or the seed cannot be used.
    pub(crate) fn apply(self, g: &mut Graph, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        let layer = fnv1a(g.scoped(name).as_bytes()) as u32;
        g.apply(name, Dropout { p: self.p, layer }, &[x, self.seed])
    }
}

/// What the blocks of a UNet are made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct BlockKind {
    /// Groups of the norm.
    pub norm_groups: usize,
    /// What follows the norm.
    pub activation: Activation,
    /// Side of the convolution's kernel, odd.
    pub kernel: usize,
    /// Dropout before the convolution, in the second half of a residual block.
    pub dropout: Option<DropoutSeed>,
}

impl BlockKind {
    /// The blocks of DM-FNet's UNet, without dropout.
    pub(crate) fn swish(norm_groups: usize) -> Self {
        Self { norm_groups, activation: Activation::Silu, kernel: 3, dropout: None }
    }
}

/// GroupNorm, activation, dropout if there is any, and a convolution (`Block` of the reference).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn norm_act_conv(g: &mut Graph, x: NodeId, out: usize, kind: BlockKind) -> Result<NodeId, GraphError> {
    g.scope("block", |g| {
        let h = group_norm(g, "0", x, kind.norm_groups)?;
        let mut h = act(g, h, kind.activation)?;
        if let Some(dropout) = kind.dropout {
            h = dropout.apply(g, "2", h)?;
        }
        conv(g, "3", h, out, ConvSpec::same(kind.kernel))
    })
}

/// A residual block, with the noise level's embedding added in its middle if there is one (`ResnetBlock` of the
/// reference).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn resnet_block(
    g: &mut Graph,
    x: NodeId,
    embedding: Option<NodeId>,
    out: usize,
    kind: BlockKind,
) -> Result<NodeId, GraphError> {
    let mut h = g.scope("block1", |g| norm_act_conv(g, x, out, BlockKind { dropout: None, ..kind }))?;
    if let Some(embedding) = embedding {
        h = g.scope("noise_func", |g| feature_wise_affine(g, h, embedding))?;
    }
    let h = g.scope("block2", |g| norm_act_conv(g, h, out, kind))?;
    let skip = if g.shape(x).c() == out { x } else { conv(g, "res_conv", x, out, ConvSpec::same(1))? };
    add(g, h, skip)
}

/// Adds a linear map of the embedding to every pixel (`FeatureWiseAffine` without `use_affine_level`).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn feature_wise_affine(g: &mut Graph, x: NodeId, embedding: NodeId) -> Result<NodeId, GraphError> {
    let shift = linear(g, "noise_func.0", embedding, g.shape(x).c())?;
    add(g, x, shift)
}

/// Nearest upsampling by two and a 3x3 convolution (`Upsample` of the reference).
///
/// # Errors
/// None for any shape; the signature is that of the other layers.
pub(crate) fn upsample(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let up = g.apply("up", UpsampleNearest2, &[x])?;
    conv(g, "conv", up, g.shape(x).c(), ConvSpec::same(3))
}

/// A 3x3 convolution at every second pixel of every second row (`Downsample` of the reference).
///
/// # Errors
/// None for any shape; the signature is that of the other layers.
pub(crate) fn downsample(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let halved = ConvSpec { stride: [2, 2], ..ConvSpec::same(3) };
    conv(g, "conv", x, g.shape(x).c(), halved)
}

/// Two 1x1 convolutions of the means of `x`'s channels: `[n, c, 1, 1]` (`ChannelAttention`).
///
/// # Errors
/// [`GraphError`] if `x` has fewer than eight channels.
pub(crate) fn channel_attention(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let channels = g.shape(x).c();
    let h = g.apply("gap", GlobalAvgPool, &[x])?;
    let h = conv(g, "ca.0", h, channels / REDUCTION, ConvSpec::same(1))?;
    let h = act(g, h, Activation::Relu)?;
    conv(g, "ca.2", h, channels, ConvSpec::same(1))
}

/// Mean and maximum of `x`'s channels at each pixel, `[n, 2, h, w]`.
///
/// # Errors
/// None for any shape; the signature is that of the other layers.
pub(crate) fn mean_and_max(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let mean = g.apply("mean", ChannelMean, &[x])?;
    let max = g.apply("max", ChannelMax, &[x])?;
    g.concat("both", &[mean, max])
}
