//! Layers that several networks are made of.

use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv2d::{Conv2d, ConvSpec, PaddingMode};
use crate::ops::group_norm::GroupNorm;
use crate::ops::linear::Linear;
use crate::ops::pointwise::Pointwise;

/// PyTorch's epsilon of its norms.
pub(crate) const NORM_EPS: f32 = 1e-5;

/// A convolution with bias under the scope `name`, weights `weight` and `bias`.
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn conv(
    g: &mut Graph,
    name: &str,
    x: NodeId,
    out_channels: usize,
    spec: ConvSpec,
) -> Result<NodeId, GraphError> {
    g.scope(name, |g| {
        let weight = conv_weight(g, x, out_channels, &spec)?;
        let bias = g.param("bias", [out_channels])?;
        g.apply("", Conv2d::with_bias(spec), &[x, weight, bias])
    })
}

/// A convolution without bias under the scope `name`.
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn conv_without_bias(
    g: &mut Graph,
    name: &str,
    x: NodeId,
    out_channels: usize,
    spec: ConvSpec,
) -> Result<NodeId, GraphError> {
    g.scope(name, |g| {
        let weight = conv_weight(g, x, out_channels, &spec)?;
        g.apply("", Conv2d::new(spec), &[x, weight])
    })
}

/// The weight of a convolution of `x`.
fn conv_weight(g: &mut Graph, x: NodeId, out_channels: usize, spec: &ConvSpec) -> Result<NodeId, GraphError> {
    let in_channels = g.shape(x).c() / spec.groups;
    let [kh, kw] = spec.kernel;
    g.param("weight", [out_channels, in_channels, kh, kw])
}

/// A square convolution that reflects at the borders and keeps the size.
pub(crate) fn reflect(kernel: usize) -> ConvSpec {
    ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(kernel) }
}

/// A group norm with scale and shift under the scope `name`.
///
/// # Errors
/// [`GraphError`] if the groups do not divide the channels.
pub(crate) fn group_norm(g: &mut Graph, name: &str, x: NodeId, groups: usize) -> Result<NodeId, GraphError> {
    g.scope(name, |g| {
        let channels = [g.shape(x).c()];
        let weight = g.param("weight", channels)?;
        let bias = g.param("bias", channels)?;
        let norm = GroupNorm { groups, eps: NORM_EPS, affine: true, activation: Activation::None };
        g.apply("", norm, &[x, weight, bias])
    })
}

/// A batch norm under the scope `name`: with its running statistics, or in `training` with the batch's, towards which
/// the running statistics move ([`BatchNorm::training`]).
///
/// # Errors
/// [`GraphError`] in training if a channel has a single value.
pub(crate) fn batch_norm(g: &mut Graph, name: &str, x: NodeId, training: bool) -> Result<NodeId, GraphError> {
    g.scope(name, |g| {
        let channels = [g.shape(x).c()];
        let weight = g.param("weight", channels)?;
        let bias = g.param("bias", channels)?;
        let mean = g.param("running_mean", channels)?;
        let variance = g.param("running_var", channels)?;
        let norm = BatchNorm { eps: NORM_EPS, activation: Activation::None };
        let inputs = [x, weight, bias, mean, variance];
        if !training {
            return g.apply("", norm, &inputs);
        }
        let norm = norm.training(g, "", inputs)?;
        g.assign(mean, norm.running_mean)?;
        g.assign(variance, norm.running_var)?;
        Ok(norm.y)
    })
}

/// A linear layer with bias under the scope `name`.
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn linear(g: &mut Graph, name: &str, x: NodeId, out_features: usize) -> Result<NodeId, GraphError> {
    g.scope(name, |g| {
        let weight = g.param("weight", [out_features, g.shape(x).c()])?;
        let bias = g.param("bias", [out_features])?;
        g.apply("", Linear::with_bias(), &[x, weight, bias])
    })
}

/// An activation.
///
/// # Errors
/// None; the signature is that of the other layers.
pub(crate) fn act(g: &mut Graph, x: NodeId, activation: Activation) -> Result<NodeId, GraphError> {
    g.apply("act", Pointwise::act(activation), &[x])
}

/// The sum of two tensors.
///
/// # Errors
/// [`GraphError`] if they cannot be broadcast.
pub(crate) fn add(g: &mut Graph, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
    g.apply("", Pointwise::add(), &[a, b])
}
