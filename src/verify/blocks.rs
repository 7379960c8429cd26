//! Cases of blocks: parts of the networks, as the reference's classes have them, and the losses' parts.

use serde::Deserialize;

use super::ops::{OF_X, reach};
use super::row::{Block, Fact, Literal, Row, Site, block, fixed, given, implied};
use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::blocks::{BlockKind, downsample, feature_wise_affine, resnet_block, upsample};
use crate::models::dm_fnet::fusion_head::{attention_block, head_block, three_att_block};
use crate::models::dm_fnet::unet::{noise_level_mlp, self_attention};
use crate::models::lkc_funet::{Mode, multi_scale_gated_attn, replk_block};
use crate::models::training::loss;

/// The channels of `x`.
const DIM: Fact = implied(&["dim", "channels"], |t| t.dim("in.x", 1));

/// Groups of the norms in blocks whose case does not say: the default of DM-FNet's classes.
fn norm_groups() -> usize {
    32
}

pub(super) static BLOCKS: &[Row] = &[
    // DM-FNet's UNet.
    Row {
        name: "noise_level_mlp",
        inputs: &["noise_level"],
        scope: "noise_level_mlp.",
        read: block::<NoiseLevelMlp>,
        ..OF_X
    },
    Row {
        name: "feature_wise_affine",
        inputs: &["x", "emb"],
        facts: &[fixed("use_affine_level", Literal::Flag(false))],
        read: block::<FeatureWiseAffine>,
        ..OF_X
    },
    Row { name: "resnet_block", inputs: &["x", "emb?"], facts: &[DIM], read: block::<ResnetBlock>, ..OF_X },
    Row {
        name: "self_attention",
        facts: &[DIM, fixed("heads", Literal::Number(1.0)), fixed("scale", Literal::Text("1/sqrt(channels)"))],
        read: block::<SelfAttention>,
        ..OF_X
    },
    Row { name: "unet_upsample", facts: &[DIM], read: block::<Upsample>, ..OF_X },
    Row { name: "unet_downsample", facts: &[DIM], read: block::<Downsample>, ..OF_X },
    // DM-FNet's fusion head.
    Row {
        name: "head_block",
        facts: &[implied(&["time_steps"], |t| t.ratio(("in.x", 1), ("param.block.0.weight", 0)))],
        read: block::<HeadBlock>,
        ..OF_X
    },
    Row {
        name: "three_att_block",
        facts: &[DIM, fixed("reduction", Literal::Number(8.0))],
        read: block::<ThreeAttBlock>,
        ..OF_X
    },
    Row {
        name: "attention_block2",
        inputs: &["x", "y", "msf_prev2?", "msf_prev?"],
        facts: &[
            implied(&["lvl"], |t| {
                Some((1 + ["in.msf_prev", "in.msf_prev2"].iter().filter(|n| t.has(n)).count()).into())
            }),
            given("dim_out", &["dim_out"], |t| t.dim("param.m.block.2.weight", 0)),
        ],
        read: block::<AttentionBlock2>,
        ..OF_X
    },
    // LKC-FUNet.
    Row { name: "lkc_resnet_block", facts: &[DIM, reach("kernel")], read: block::<LkcResnetBlock>, ..OF_X },
    Row {
        name: "replk_block",
        facts: &[DIM, reach("kernel"), fixed("dw_ratio", Literal::Number(1.5))],
        read: block::<RepLkBlock>,
        ..OF_X
    },
    Row {
        name: "multi_scale_gated_attn",
        inputs: &["x", "g"],
        facts: &[DIM],
        read: block::<MultiScaleGatedAttn>,
        ..OF_X
    },
    // The losses.
    Row {
        name: "sobel_abs",
        facts: &[fixed(
            "kernels",
            Literal::Text("x=[-1 0 1;-2 0 2;-1 0 1] y=[1 2 1;0 0 0;-1 -2 -1], zero padding 1, |gx|+|gy|"),
        )],
        loss: true,
        read: block::<SobelAbs>,
        ..OF_X
    },
    Row {
        name: "ssim",
        inputs: &["a", "b"],
        facts: &[
            fixed("window", Literal::Number(11.0)),
            fixed("sigma", Literal::Number(1.5)),
            fixed("padding", Literal::Number(5.0)),
            fixed("C1", Literal::Number(1e-4)),
            fixed("C2", Literal::Number(9e-4)),
        ],
        loss: true,
        read: block::<Ssim>,
        ..OF_X
    },
];

#[derive(Deserialize)]
struct NoiseLevelMlp {
    dim: usize,
}

impl Block for NoiseLevelMlp {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        noise_level_mlp(g, self.dim, site.tensor("noise_level"))
    }
}

#[derive(Deserialize)]
struct FeatureWiseAffine;

impl Block for FeatureWiseAffine {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        feature_wise_affine(g, site.tensor("x"), site.tensor("emb"))
    }
}

#[derive(Deserialize)]
struct ResnetBlock {
    dim_out: usize,
    #[serde(default = "norm_groups")]
    norm_groups: usize,
}

impl Block for ResnetBlock {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        let kind = BlockKind::swish(self.norm_groups);
        resnet_block(g, site.tensor("x"), site.find("emb"), self.dim_out, kind)
    }
}

#[derive(Deserialize)]
struct SelfAttention {
    #[serde(default = "norm_groups")]
    norm_groups: usize,
}

impl Block for SelfAttention {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        self_attention(g, site.tensor("x"), self.norm_groups)
    }
}

#[derive(Deserialize)]
struct Upsample;

impl Block for Upsample {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        upsample(g, site.tensor("x"))
    }
}

#[derive(Deserialize)]
struct Downsample;

impl Block for Downsample {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        downsample(g, site.tensor("x"))
    }
}

#[derive(Deserialize)]
struct HeadBlock {
    dim: usize,
}

impl Block for HeadBlock {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        head_block(g, site.tensor("x"), self.dim)
    }
}

#[derive(Deserialize)]
struct ThreeAttBlock;

impl Block for ThreeAttBlock {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        three_att_block(g, site.tensor("x"))
    }
}

#[derive(Deserialize)]
struct AttentionBlock2 {
    dim_out: usize,
}

impl Block for AttentionBlock2 {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        let (x, y) = (site.tensor("x"), site.tensor("y"));
        let coarser: Vec<NodeId> = ["msf_prev2", "msf_prev"].iter().filter_map(|name| site.find(name)).collect();
        g.scope("m", |g| attention_block(g, x, y, &coarser, self.dim_out))
    }
}

#[derive(Deserialize)]
struct LkcResnetBlock {
    dim_out: usize,
    groups: usize,
    kernel: usize,
}

impl Block for LkcResnetBlock {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        let Self { dim_out, groups: norm_groups, kernel } = *self;
        let kind = BlockKind { norm_groups, activation: Activation::Relu, kernel, dropout: None };
        resnet_block(g, site.tensor("x"), None, dim_out, kind)
    }
}

#[derive(Deserialize)]
struct RepLkBlock {
    kernel: usize,
}

impl Block for RepLkBlock {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        replk_block(g, site.tensor("x"), self.kernel, None)
    }
}

#[derive(Deserialize)]
struct MultiScaleGatedAttn;

impl Block for MultiScaleGatedAttn {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        let mode = if site.training { Mode::Training(None) } else { Mode::Inference };
        multi_scale_gated_attn(g, site.tensor("x"), site.tensor("g"), mode)
    }
}

#[derive(Deserialize)]
struct SobelAbs;

impl Block for SobelAbs {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        loss::sobel_abs(g, site.tensor("x"))
    }
}

#[derive(Deserialize)]
struct Ssim;

impl Block for Ssim {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        loss::ssim(g, site.tensor("a"), site.tensor("b"))
    }
}
