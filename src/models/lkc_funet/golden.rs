//! The golden cases that LKC-FUNet answers: the network, its blocks, its loss and its training.

use serde::Deserialize;

use super::training::{is_trained, lkc_loss, loss_graph};
use super::{LkcConfig, Mode, lkc_funet, multi_scale_gated_attn, replk_block};
use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::blocks::{BlockKind, resnet_block};
use crate::models::golden::attributes::{Attributes, NoAttributes};
use crate::models::golden::case::Case;
use crate::models::golden::error::CaseError;
use crate::models::golden::row::{Block, DIM, Literal, OF_X, Row, Site, block, fixed, plain, reach};
use crate::models::golden::{CaseGraph, Golden, TrainingCase, expect_all, load_weights, params};
use crate::models::training::loss::{FusionLossConfig, constants};
use crate::weights::Weights;

/// What LKC-FUNet answers of golden cases.
pub(crate) static GOLDEN: Golden = Golden {
    blocks: BLOCKS,
    networks: &[("LKC-FUNet", network_case)],
    losses: &[("LKC-FUNet Fusionloss (losses/DMFNet_loss.py)", loss_case)],
    pipelines: &[],
    trainings: &[("net", training_case)],
};

static BLOCKS: &[Row] = &[
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
        read: |a| {
            plain(a, |g, site| {
                let mode = if site.training { Mode::Training(None) } else { Mode::Inference };
                multi_scale_gated_attn(g, site.tensor("x"), site.tensor("g"), mode)
            })
        },
        ..OF_X
    },
];

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

/// What an LKC-FUNet's configuration says that is not in its weights.
#[derive(Deserialize)]
struct LkcEntries {
    norm_groups: usize,
}

/// The size of an LKC-FUNet, in which weights and configuration must agree.
fn lkc_config(weights: &Weights, mut attributes: Attributes) -> Result<LkcConfig, CaseError> {
    let mut config = LkcConfig::from_weights(weights, 0)?;
    let levels = config.conv_sizes.len().saturating_sub(1);
    let implied = [
        ("in_channel", config.in_channel.into()),
        ("out_channel", config.out_channel.into()),
        ("inner_channel", config.inner_channel.into()),
        ("channel_mults", vec![config.channel_mult; levels].into()),
        ("conv_sizes", config.conv_sizes.clone().into()),
        ("res_blocks", config.res_blocks.into()),
    ];
    expect_all(&mut attributes, &implied)?;
    attributes.expect("dropout", &0.into(), "cases are computed with")?;
    // The reference takes these two and never reads them: the network has no attention.
    attributes.take("image_size");
    attributes.take("attn_res");
    config.norm_groups = attributes.read::<LkcEntries>()?.norm_groups;
    Ok(config)
}

/// The network: `in.img_cat` to `out.fused`.
fn network_case(case: &Case, attributes: Attributes) -> Result<CaseGraph, CaseError> {
    let [weights] = load_weights(case)?;
    let config = lkc_config(&weights, attributes)?;
    let mut network = CaseGraph { prefix: "model.", ..CaseGraph::new(&weights) };
    let img_cat = network.input(case, "img_cat")?;
    let fused = lkc_funet(&mut network.graph, &config, img_cat, Mode::Inference)?;
    network.outputs.push(("out.fused".into(), fused));
    Ok(network)
}

/// The loss: its parts, and their gradients with respect to the fused image.
fn loss_case(case: &Case, attributes: Attributes) -> Result<CaseGraph, CaseError> {
    attributes.read::<NoAttributes>()?;
    let mut network = CaseGraph { params: constants(), ..CaseGraph::default() };
    let fused = network.input(case, "fused")?;
    let (mri, other) = (network.input(case, "mri")?, network.input(case, "other")?);
    let loss = lkc_loss(&mut network.graph, &FusionLossConfig::lkc(), fused, mri, other)?;
    let parts =
        [("total", loss.total), ("loss_in", loss.intensity), ("loss_grad", loss.gradient), ("loss_ssim", loss.ssim)];
    network.loss_parts("", &parts, fused);
    Ok(network)
}

/// The training, on pairs that are given.
fn training_case(case: &Case, attributes: &mut Attributes) -> Result<TrainingCase, CaseError> {
    let [weights] = load_weights(case)?;
    let config = lkc_config(&weights, attributes.nested("net", "LKC-FUNet")?)?;
    let (shape, _) = case.nchw("in.mri.step0")?;
    let loss = loss_graph(&config, &FusionLossConfig::lkc(), 0.0, shape.n(), shape.h())?;
    let prediction = loss.marked("model.final_conv").map(|id| ("act.fused.step0", id));
    let inputs = |case: &Case, step: usize| {
        let of = |name: &str| Ok((name.to_owned(), case.f32(&format!("in.{name}.step{step}"))?.1.to_vec()));
        ["mri", "other"].into_iter().map(of).collect()
    };
    let mut params = params(&weights);
    params.extend(constants());
    Ok(TrainingCase { loss, params, is_trained, inputs, given: vec![], prediction, losses: "out.losses" })
}
