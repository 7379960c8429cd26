//! DM-FNet's fusion head (`models/fs_modules/fs_head.py`): fuses the UNet's features of both images over several noise
//! steps, from the coarsest level to the finest.

use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::blocks::{channel_attention, mean_and_max};
use crate::models::checkpoint::ModelError;
use crate::models::layers::{act, add, conv, reflect};
use crate::ops::conv2d::{Conv2d, ConvSpec};
use crate::ops::pointwise::Pointwise;
use crate::ops::resize::UpsampleBilinear2;
use crate::weights::Weights;

/// Shortest side of the coarsest features: the 7x7 reflection needs four pixels.
pub(crate) const MIN_COARSE_SIDE: usize = 4;

/// The size of a fusion head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeadConfig {
    /// Channels of the features at each level, coarsest first.
    pub dims: Vec<usize>,
    /// Number of noise steps whose features are fused.
    pub time_steps: usize,
    /// Channels between the two last convolutions.
    pub decode_channels: usize,
    /// Channels of the fused image.
    pub out_channels: usize,
}

impl HeadConfig {
    /// The published size: 3,026,640 parameters.
    pub fn published() -> Self {
        Self { dims: vec![256, 128, 128, 128, 128], time_steps: 3, decode_channels: 64, out_channels: 1 }
    }

    /// Reads the size off a checkpoint with keys `decoder.*`, `rgb_decode1.*` and `rgb_decode2.*`.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] if layers are missing that every head has.
    pub fn from_weights(weights: &Weights) -> Result<Self, ModelError> {
        let fail = |reason: String| ModelError::not_of("a DM-FNet fusion head", weights, reason);
        let dims = |name: &str| {
            let tensor = weights.get(name).filter(|t| t.dims().len() == 4);
            tensor
                .map(|t| [t.dims()[0], t.dims()[1]])
                .ok_or_else(|| fail(format!("{name} is missing or not a convolution")))
        };
        let [decode_channels, _] = dims("rgb_decode2.conv.weight")?;
        let [out_channels, _] = dims("rgb_decode1.conv.weight")?;
        let mut levels = Vec::new();
        while let Ok(level) = dims(&format!("decoder.{}.block.0.weight", 2 * levels.len())) {
            levels.push(level);
        }
        let Some(&[first, joined]) = levels.first() else {
            return Err(fail("decoder.0.block.0.weight is missing".into()));
        };
        let time_steps = joined / first.max(1);
        if !levels.iter().all(|[out, joined]| *joined == out * time_steps && time_steps > 0) {
            return Err(fail("its levels take different numbers of noise steps".into()));
        }
        Ok(Self { dims: levels.iter().map(|l| l[0]).collect(), time_steps, decode_channels, out_channels })
    }
}

/// Writes the head. `mri[t][level]` and `other[t][level]` are the features of noise step `t`, coarsest level first,
/// each level twice as large as the one before. The result is in (-1, 1).
///
/// # Errors
/// [`GraphError`] if the features do not fit the head.
pub fn fusion_head(
    g: &mut Graph,
    cfg: &HeadConfig,
    mri: &[Vec<NodeId>],
    other: &[Vec<NodeId>],
) -> Result<NodeId, GraphError> {
    let levels = cfg.dims.len();
    let mut fused: Vec<NodeId> = Vec::new();
    let mut finest = None;
    for level in 0..levels {
        let [x, y] = [mri, other].map(|features| merge_steps(g, cfg, features, level));
        let (x, y) = (x?, y?);
        let out = cfg.dims[(level + 1).min(levels - 1)];
        let h = g.scope(&format!("decoder.{}", 2 * level + 1), |g| {
            let h = attention_block(g, x, y, &fused, out)?;
            Ok(g.mark(h))
        })?;
        if level + 1 < levels {
            fused.push(g.apply("msf", UpsampleBilinear2, &[h])?);
        }
        finest = Some(h);
    }
    let h = finest.expect("a head has levels");
    let h = g.scope("rgb_decode2", |g| {
        let h = conv(g, "conv", h, cfg.decode_channels, ConvSpec::same(3))?;
        let h = act(g, h, Activation::LeakyRelu(0.2))?;
        Ok(g.mark(h))
    })?;
    g.scope("rgb_decode1", |g| {
        let h = conv(g, "conv", h, cfg.out_channels, ConvSpec::same(3))?;
        let h = act(g, h, Activation::Tanh)?;
        Ok(g.mark(h))
    })
}

/// One level's features of all noise steps in one map; a single step passes unchanged, as in the reference.
fn merge_steps(g: &mut Graph, cfg: &HeadConfig, features: &[Vec<NodeId>], level: usize) -> Result<NodeId, GraphError> {
    let steps: Vec<NodeId> = features.iter().map(|step| step[level]).collect();
    g.scope(&format!("decoder.{}", 2 * level), |g| {
        if let [only] = steps[..] {
            return Ok(only);
        }
        let joined = g.concat("steps", &steps)?;
        let h = head_block(g, joined, cfg.dims[level])?;
        Ok(g.mark(h))
    })
}

/// 1x1 convolution, ReLU, 3x3 convolution, ReLU (`Block` of the reference).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn head_block(g: &mut Graph, x: NodeId, out: usize) -> Result<NodeId, GraphError> {
    g.scope("block", |g| two_convs(g, x, out))
}

fn two_convs(g: &mut Graph, x: NodeId, out: usize) -> Result<NodeId, GraphError> {
    let h = conv(g, "0", x, out, ConvSpec::same(1))?;
    let h = act(g, h, Activation::Relu)?;
    let h = conv(g, "2", h, out, ConvSpec::same(3))?;
    act(g, h, Activation::Relu)
}

/// Fuses two feature maps and adds what the coarser levels found (`AttentionBlock2`). `fused` are the upsampled
/// results of all coarser levels, coarsest first.
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn attention_block(
    g: &mut Graph,
    x: NodeId,
    y: NodeId,
    fused: &[NodeId],
    out: usize,
) -> Result<NodeId, GraphError> {
    let sum = g.apply("sum", Pointwise::add(), &[x, y])?;
    let gate = g.scope("att", |g| three_att_gate(g, sum))?;
    let weighted = Pointwise::build(|[gate, sum, x, y]| {
        let w = sum * gate;
        w.clone() * x.clone() + w.affine(-1.0, 1.0) * y.clone() + x + y
    });
    let mut feature = g.apply("fea", weighted, &[gate, sum, x, y])?;
    if let Some(&finer) = fused.last() {
        feature = add(g, feature, finer)?;
    }
    if let [.., coarser, _] = fused {
        let channels = g.shape(x).c();
        let h = g.scope("block1", |g| two_convs(g, *coarser, channels))?;
        let h = g.apply("be_fea", UpsampleBilinear2, &[h])?;
        feature = add(g, feature, h)?;
    }
    head_block(g, feature, out)
}

/// Spatial, channel and pixel attention on `x`: `x` times its gate (`ThreeAttBlock`).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn three_att_block(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let gate = three_att_gate(g, x)?;
    g.apply("res", Pointwise::mul(), &[x, gate])
}

/// The gate in (0, 1) of each element of `x`.
fn three_att_gate(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let by_channel = g.scope("ca", |g| channel_attention(g, x))?;
    let by_place = g.scope("sa", |g| {
        let both = mean_and_max(g, x)?;
        conv(g, "sa", both, 1, reflect(7))
    })?;
    let pattern = add(g, by_place, by_channel)?;
    g.scope("pa", |g| pixel_attention(g, x, pattern))
}

/// The sigmoid of a 3x3 convolution over each channel of `x` and the same channel of `pattern`. The reference
/// interleaves the two and convolves in groups of two; two depthwise convolutions save the copy.
fn pixel_attention(g: &mut Graph, x: NodeId, pattern: NodeId) -> Result<NodeId, GraphError> {
    g.scope("pa2", |g| {
        let channels = g.shape(x).c();
        let spec = ConvSpec { groups: channels, ..reflect(3) };
        let weight = g.param("weight", [channels, 2, 3, 3])?;
        let bias = g.param("bias", [channels])?;
        let of_x = g.slice("weight_x", weight, 0, 1)?;
        let of_pattern = g.slice("weight_pattern", weight, 1, 1)?;
        let a = g.apply("x", Conv2d::with_bias(spec), &[x, of_x, bias])?;
        let b = g.apply("pattern", Conv2d::new(spec), &[pattern, of_pattern])?;
        let both = add(g, a, b)?;
        act(g, both, Activation::Sigmoid)
    })
}
