//! The diffusion UNet of SR3 as DM-FNet uses it (`models/sr3_modules/unet.py`), conditioned on the noise level.

use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::blocks::{BlockKind, DropoutSeed, downsample, norm_act_conv, resnet_block, upsample};
use crate::models::checkpoint::ModelError;
use crate::models::layers::{act, add, conv, conv_without_bias, group_norm, linear};
use crate::ops::attention::SelfAttention;
use crate::ops::conv2d::ConvSpec;
use crate::ops::positional_encoding::PositionalEncoding;
use crate::weights::Weights;

/// The size of a UNet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnetConfig {
    /// Channels of the input.
    pub in_channel: usize,
    /// Channels of the output.
    pub out_channel: usize,
    /// Channels of the first level.
    pub inner_channel: usize,
    /// Groups of the norms.
    pub norm_groups: usize,
    /// Channels of each level, as multiples of the first.
    pub channel_mults: Vec<usize>,
    /// Residual blocks of each level on the way down; one more on the way up.
    pub res_blocks: usize,
    /// Whether the blocks of each level have self-attention; the middle always has.
    pub attention: Vec<bool>,
}

impl UnetConfig {
    /// The published size: inner_channel 128, 20,670,081 parameters.
    pub fn published() -> Self {
        Self {
            in_channel: 1,
            out_channel: 1,
            inner_channel: 128,
            norm_groups: 32,
            channel_mults: vec![1, 1, 1, 1, 2],
            res_blocks: 2,
            attention: vec![false; 5],
        }
    }

    /// Reads the size off a checkpoint with keys `denoise_fn.*`. The number of norm groups is not in it.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] if layers are missing that every UNet has.
    pub fn from_weights(weights: &Weights, norm_groups: usize) -> Result<Self, ModelError> {
        let fail = |reason: String| ModelError::not_of("a DM-FNet UNet", weights, reason);
        let dims = |name: &str| {
            let name = format!("denoise_fn.{name}");
            let tensor = weights.get(&name).filter(|t| t.dims().len() == 4);
            tensor.map(|t| t.dims().to_vec()).ok_or_else(|| fail(format!("{name} is missing or not a convolution")))
        };
        let first = dims("init_conv.weight")?;
        let out_channel = dims("final_conv.block.3.weight")?[0];
        let mut levels: Vec<(usize, usize, bool)> = vec![(0, 0, false)];
        for i in 0.. {
            let level = levels.len() - 1;
            if let Ok(block) = dims(&format!("downs.{i}.res_block.block1.block.3.weight")) {
                let attention = dims(&format!("downs.{i}.attn.qkv.weight")).is_ok();
                levels[level] = (block[0], levels[level].1 + 1, attention);
            } else if dims(&format!("downs.{i}.conv.weight")).is_ok() {
                levels.push((0, 0, false));
            } else {
                break;
            }
        }
        let (inner_channel, res_blocks) = (first[0], levels[0].1);
        let even = |&(channels, blocks, _): &(usize, usize, bool)| {
            channels > 0 && blocks == res_blocks && channels % inner_channel == 0
        };
        if inner_channel == 0 || !levels.iter().all(even) {
            return Err(fail("its levels are not even in their residual blocks".into()));
        }
        Ok(Self {
            in_channel: first[1],
            out_channel,
            inner_channel,
            norm_groups,
            channel_mults: levels.iter().map(|l| l.0 / inner_channel).collect(),
            res_blocks,
            attention: levels.iter().map(|l| l.2).collect(),
        })
    }

    /// Height and width must be multiples of this.
    pub fn multiple(&self) -> usize {
        1 << (self.channel_mults.len() - 1)
    }
}

/// What a UNet gives.
#[derive(Clone, Debug)]
pub struct UnetOutputs {
    /// The prediction of x_0.
    pub x_final: NodeId,
    /// The outputs of the decoder's residual blocks, finest level first: index `j` is the reference's `fd[j]`.
    pub decoder: Vec<NodeId>,
}

/// Writes the UNet: `x` is x_t `[n, in_channel, h, w]`, `level` the square root of alpha_bar `[n, 1, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if height or width is not a multiple of [`UnetConfig::multiple`].
pub fn unet(g: &mut Graph, cfg: &UnetConfig, x: NodeId, level: NodeId) -> Result<UnetOutputs, GraphError> {
    unet_with_dropout(g, cfg, x, level, None)
}

/// [`unet`] in training, with dropout in the second half of each residual block.
///
/// # Errors
/// Those of [`unet`].
pub(crate) fn unet_with_dropout(
    g: &mut Graph,
    cfg: &UnetConfig,
    x: NodeId,
    level: NodeId,
    dropout: Option<DropoutSeed>,
) -> Result<UnetOutputs, GraphError> {
    g.scope("denoise_fn", |g| {
        let kind = BlockKind { dropout, ..BlockKind::swish(cfg.norm_groups) };
        let builder = Builder { cfg, embedding: noise_level_mlp(g, cfg.inner_channel, level)?, kind };
        let mut skips = Vec::new();
        let x = builder.encoder(g, x, &mut skips)?;
        let x =
            builder.block(g, "mid.0", x, cfg.inner_channel * cfg.channel_mults[cfg.channel_mults.len() - 1], true)?;
        let x = builder.block(g, "mid.1", x, g.shape(x).c(), false)?;
        let mut decoder = Vec::new();
        let x = builder.decoder(g, x, skips, &mut decoder)?;
        decoder.reverse();
        let x_final = g.scope("final_conv", |g| {
            let out = norm_act_conv(g, x, cfg.out_channel, BlockKind::swish(cfg.norm_groups))?;
            Ok(g.mark(out))
        })?;
        Ok(UnetOutputs { x_final, decoder })
    })
}

/// The embedding of the noise level, `[n, inner_channel, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if `level` is not `[n, 1, 1, 1]`.
pub(crate) fn noise_level_mlp(g: &mut Graph, inner_channel: usize, level: NodeId) -> Result<NodeId, GraphError> {
    g.scope("noise_level_mlp", |g| {
        let t = g.apply("0", PositionalEncoding { dim: inner_channel }, &[level])?;
        let t = linear(g, "1", t, 4 * inner_channel)?;
        let t = act(g, t, Activation::Silu)?;
        let t = linear(g, "3", t, inner_channel)?;
        Ok(g.mark(t))
    })
}

/// Self-attention over all pixels, one head, added to its input (`SelfAttention` of the reference).
///
/// # Errors
/// [`GraphError`] if the groups do not divide the channels.
pub(crate) fn self_attention(g: &mut Graph, x: NodeId, norm_groups: usize) -> Result<NodeId, GraphError> {
    let channels = g.shape(x).c();
    let h = group_norm(g, "norm", x, norm_groups)?;
    let qkv = conv_without_bias(g, "qkv", h, 3 * channels, ConvSpec::same(1))?;
    let h = g.apply("attention", SelfAttention, &[qkv])?;
    let h = conv(g, "out", h, channels, ConvSpec::same(1))?;
    add(g, h, x)
}

struct Builder<'a> {
    cfg: &'a UnetConfig,
    embedding: NodeId,
    kind: BlockKind,
}

impl Builder<'_> {
    /// A residual block and, where the level has it, self-attention (`ResnetBlocWithAttn`).
    fn block(&self, g: &mut Graph, name: &str, x: NodeId, out: usize, attention: bool) -> Result<NodeId, GraphError> {
        g.scope(name, |g| {
            let mut x = g.scope("res_block", |g| {
                let h = resnet_block(g, x, Some(self.embedding), out, self.kind)?;
                Ok(g.mark(h))
            })?;
            if attention {
                x = g.scope("attn", |g| self_attention(g, x, self.kind.norm_groups))?;
            }
            Ok(g.mark(x))
        })
    }

    fn encoder(&self, g: &mut Graph, x: NodeId, skips: &mut Vec<NodeId>) -> Result<NodeId, GraphError> {
        let cfg = self.cfg;
        let mut x = g.scope("init_conv", |g| {
            let x = conv(g, "", x, cfg.inner_channel, ConvSpec::same(3))?;
            Ok(g.mark(x))
        })?;
        skips.push(x);
        let mut index = 0;
        for (level, mult) in cfg.channel_mults.iter().enumerate() {
            for _ in 0..cfg.res_blocks {
                let name = format!("downs.{index}");
                x = self.block(g, &name, x, cfg.inner_channel * mult, cfg.attention[level])?;
                skips.push(x);
                index += 1;
            }
            if level + 1 < cfg.channel_mults.len() {
                x = g.scope(&format!("downs.{index}"), |g| {
                    let x = downsample(g, x)?;
                    Ok(g.mark(x))
                })?;
                skips.push(x);
                index += 1;
            }
        }
        Ok(x)
    }

    fn decoder(
        &self,
        g: &mut Graph,
        mut x: NodeId,
        mut skips: Vec<NodeId>,
        decoder: &mut Vec<NodeId>,
    ) -> Result<NodeId, GraphError> {
        let cfg = self.cfg;
        let mut index = 0;
        for (level, mult) in cfg.channel_mults.iter().enumerate().rev() {
            for _ in 0..=cfg.res_blocks {
                let name = format!("ups.{index}");
                let skip = skips.pop().expect("as many skips as blocks on the way up");
                let joined = g.concat(&name, &[x, skip])?;
                x = self.block(g, &name, joined, cfg.inner_channel * mult, cfg.attention[level])?;
                decoder.push(x);
                index += 1;
            }
            if level > 0 {
                x = g.scope(&format!("ups.{index}"), |g| {
                    let x = upsample(g, x)?;
                    Ok(g.mark(x))
                })?;
                index += 1;
            }
        }
        Ok(x)
    }
}
