//! The golden cases that DM-FNet answers: its UNet, its head, their blocks, loss and trainings, and the fusing of a pair.

use std::path::Path;

use serde::Deserialize;

use super::fusion_head::{HeadConfig, attention_block, fusion_head, head_block, three_att_block};
use super::stage2::fusion_loss;
use super::unet::{UnetConfig, noise_level_mlp, self_attention, unet};
use super::{DmFnet, Fuser, FusionNoise, MODALITIES, ModelFile, stage1, stage2};
use crate::device::{Device, Executable};
use crate::diffusion::{NoiseSchedule, q_sample, q_sample_batch};
use crate::graph::{Graph, GraphError, NodeId};
use crate::imaging::{Channels, FusionPair, Image, Samples, ycrcb_from_rgb};
use crate::models::blocks::{BlockKind, downsample, feature_wise_affine, resnet_block, upsample};
use crate::models::golden::attributes::Attributes;
use crate::models::golden::case::{Array, Case, Values};
use crate::models::golden::error::CaseError;
use crate::models::golden::row::{Block, DIM, Literal, OF_X, Row, Site, block, fixed, given, implied, plain};
use crate::models::golden::{CaseGraph, Computed, Golden, TrainingCase, expect_all, load_weights, params, schedule};
use crate::models::training::LossGraph;
use crate::models::training::loss::{FusionLossConfig, constants, local_variance};
use crate::ops::pointwise::Pointwise;
use crate::tensor::Shape;
use crate::weights::Weights;

/// What DM-FNet answers of golden cases.
pub(crate) static GOLDEN: Golden = Golden {
    blocks: BLOCKS,
    networks: &[("UNet", unet_case), ("Fusion_Head", head_case)],
    losses: &[("DM-FNet Fusionloss", loss_case)],
    pipelines: &[("DM-FNet t_fusion.py", pipeline_case)],
    trainings: &[("unet", stage1_case), ("head", stage2_case)],
};

/// Groups of the norms in blocks whose case does not say: the default of DM-FNet's classes.
fn default_groups() -> usize {
    32
}

static BLOCKS: &[Row] = &[
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
        read: |a| plain(a, |g, site| feature_wise_affine(g, site.tensor("x"), site.tensor("emb"))),
        ..OF_X
    },
    Row { name: "resnet_block", inputs: &["x", "emb?"], facts: &[DIM], read: block::<ResnetBlock>, ..OF_X },
    Row {
        name: "self_attention",
        facts: &[DIM, fixed("heads", Literal::Number(1.0)), fixed("scale", Literal::Text("1/sqrt(channels)"))],
        read: block::<SelfAttention>,
        ..OF_X
    },
    Row { name: "unet_upsample", facts: &[DIM], read: |a| plain(a, |g, site| upsample(g, site.tensor("x"))), ..OF_X },
    Row {
        name: "unet_downsample",
        facts: &[DIM],
        read: |a| plain(a, |g, site| downsample(g, site.tensor("x"))),
        ..OF_X
    },
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
        read: |a| plain(a, |g, site| three_att_block(g, site.tensor("x"))),
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
struct ResnetBlock {
    dim_out: usize,
    #[serde(default = "default_groups")]
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
    #[serde(default = "default_groups")]
    norm_groups: usize,
}

impl Block for SelfAttention {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        self_attention(g, site.tensor("x"), self.norm_groups)
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

/// What a UNet's configuration says that is not in its weights. The reference has attention at the levels where the side
/// of its training images is one of `attn_res`.
#[derive(Deserialize)]
struct UnetEntries {
    norm_groups: usize,
    image_size: Option<usize>,
    attn_res: Option<Vec<usize>>,
}

/// The size of a UNet, in which weights and configuration must agree.
fn unet_config(weights: &Weights, mut attributes: Attributes) -> Result<UnetConfig, CaseError> {
    let mut config = UnetConfig::from_weights(weights, 0)?;
    let implied = [
        ("in_channel", config.in_channel.into()),
        ("out_channel", config.out_channel.into()),
        ("inner_channel", config.inner_channel.into()),
        ("channel_mults", config.channel_mults.clone().into()),
        ("res_blocks", config.res_blocks.into()),
    ];
    expect_all(&mut attributes, &implied)?;
    attributes.expect("dropout", &0.into(), "cases are computed with")?;
    let entries: UnetEntries = attributes.clone().read()?;
    if let (Some(side), Some(at)) = (entries.image_size, entries.attn_res) {
        let stated: Vec<bool> = (0..config.attention.len()).map(|level| at.contains(&(side >> level))).collect();
        if stated != config.attention {
            let reason =
                format!("attn_res gives attention to levels {stated:?}, the weights to {:?}", config.attention);
            return Err(attributes.error(reason));
        }
    }
    config.norm_groups = entries.norm_groups;
    Ok(config)
}

/// A UNet: `in.x_noisy` and `in.noise_level` to `out.x_final`.
fn unet_case(case: &Case, attributes: Attributes) -> Result<CaseGraph, CaseError> {
    let [weights] = load_weights(case)?;
    let config = unet_config(&weights, attributes)?;
    let mut network = CaseGraph { prefix: "denoise_fn.", ..CaseGraph::new(&weights) };
    let x = network.input(case, "x_noisy")?;
    let level = network.input(case, "noise_level")?;
    let out = unet(&mut network.graph, &config, x, level)?;
    network.outputs.push(("out.x_final".into(), out.x_final));
    if case.tensors.contains_key("in.x_start") {
        let (shape, x_0) = case.nchw("in.x_start")?;
        let ((_, levels), (_, noise)) = (case.f32("in.noise_level")?, case.f32("in.noise")?);
        if levels.len() != shape.n() || noise.len() != x_0.len() {
            return Err(CaseError::tensor("in.noise", "noise and levels do not fit x_start"));
        }
        let values = Values::F32(q_sample_batch(x_0, levels, noise));
        network.derived.insert("in.x_noisy".into(), Array { dims: shape.0.to_vec(), values });
    }
    Ok(network)
}

/// A head's configuration as the reference has it.
#[derive(Deserialize)]
struct HeadEntries {
    feat_scales: Vec<usize>,
    inner_channel: Option<usize>,
    channel_multiplier: Option<Vec<usize>>,
    time_steps: Option<Vec<usize>>,
}

impl HeadEntries {
    /// What in it contradicts the weights.
    fn contradiction(&self, config: &HeadConfig) -> Option<String> {
        let levels = config.dims.len();
        if self.feat_scales.len() != levels {
            return Some(format!("feat_scales has {} scales for a head of {levels} levels", self.feat_scales.len()));
        }
        if self.time_steps.as_ref().is_some_and(|steps| steps.len() != config.time_steps) {
            return Some(format!("time_steps does not have the {} steps of the weights", config.time_steps));
        }
        if let (Some(inner), Some(multiples)) = (self.inner_channel, &self.channel_multiplier) {
            let dims: Vec<usize> = multiples.iter().rev().map(|multiple| inner * multiple).collect();
            if dims != config.dims {
                return Some(format!("channel_multiplier gives {dims:?} channels, the weights {:?}", config.dims));
            }
        }
        None
    }
}

/// A fusion head: `in.MODALITY.STEP.sSCALE` to `out.fused`.
fn head_case(case: &Case, attributes: Attributes) -> Result<CaseGraph, CaseError> {
    let [weights] = load_weights(case)?;
    head(&weights, attributes, case)
}

/// A fusion head on the features that are inputs of the case `features`; its output is `out.fused`.
fn head(weights: &Weights, mut attributes: Attributes, features: &Case) -> Result<CaseGraph, CaseError> {
    let config = HeadConfig::from_weights(weights)?;
    expect_all(&mut attributes, &[("out_channels", config.out_channels.into())])?;
    // The reference takes it and never reads it.
    attributes.take("img_size");
    let entries: HeadEntries = attributes.clone().read()?;
    if let Some(reason) = entries.contradiction(&config) {
        return Err(attributes.error(reason));
    }
    let mut scales = entries.feat_scales;
    // The largest index is the coarsest map, which comes first.
    scales.sort_by(|a, b| b.cmp(a));
    let mut network = CaseGraph::new(weights);
    let mut maps = [Vec::new(), Vec::new()];
    for (modality, maps) in MODALITIES.iter().zip(&mut maps) {
        for step in 0..config.time_steps {
            let of_step = scales.iter().map(|s| network.input(features, &format!("{modality}.{step}.s{s}")));
            maps.push(of_step.collect::<Result<Vec<_>, _>>()?);
        }
    }
    let [mri, other] = &maps;
    let fused = fusion_head(&mut network.graph, &config, mri, other)?;
    network.outputs.push(("out.fused".into(), fused));
    Ok(network)
}

/// What DM-FNet's parts of a loss weigh.
#[derive(Clone, Copy, Deserialize)]
struct LossEntries {
    alpha: f32,
    intensity_weight: f32,
    ssim_weight: f32,
}

/// The loss: its parts, and their gradients with respect to the fused image. Cases may have it twice, the second time with
/// variances that end at zero.
fn loss_case(case: &Case, attributes: Attributes) -> Result<CaseGraph, CaseError> {
    let entries: LossEntries = attributes.read()?;
    let mut network = CaseGraph { params: constants(), ..CaseGraph::default() };
    let images = [network.input(case, "fused")?, network.input(case, "vis")?, network.input(case, "ir")?];
    loss_parts(&mut network, entries, images, "", true)?;
    if case.tensors.contains_key("out_clamped.total") {
        loss_parts(&mut network, entries, images, "_clamped", false)?;
    }
    for (name, image) in [("act.sigma_sq_ir", images[2]), ("act.sigma_sq_vis", images[1])] {
        network.outputs.push((name.into(), local_variance(&mut network.graph, image)?));
    }
    if let Some((expected, window)) = case.tensors.get("act.window").zip(constants().remove("loss.gaussian")) {
        let array = Array { dims: expected.dims.clone(), values: Values::F32(window.into_data()) };
        network.derived.insert("act.window".into(), array);
    }
    Ok(network)
}

/// The parts of DM-FNet's loss, as `out{suffix}.*` and `grad{suffix}.*`.
fn loss_parts(
    network: &mut CaseGraph,
    entries: LossEntries,
    [fused, other, mri]: [NodeId; 3],
    suffix: &str,
    nan_switch: bool,
) -> Result<(), CaseError> {
    let LossEntries { alpha: gradient, intensity_weight: intensity, ssim_weight: ssim } = entries;
    let config = FusionLossConfig { intensity, gradient, ssim, nan_switch, ..FusionLossConfig::default() };
    let loss = fusion_loss(&mut network.graph, &config, fused, mri, other)?;
    let lack = Pointwise::build(|[similarity]| similarity.affine(-ssim, ssim));
    let lack = network.graph.apply("lssim", lack, &[loss.ssim])?;
    let parts = [
        ("total", loss.total),
        ("loss_in", loss.intensity),
        ("loss_grad", loss.gradient),
        ("ssim", loss.ssim),
        ("lssim", lack),
        ("l_sobel", loss.edges),
    ];
    network.loss_parts(suffix, &parts, fused);
    Ok(())
}

/// Stage I: the UNet learns from noisy images, whose noise is given.
fn stage1_case(case: &Case, attributes: &mut Attributes) -> Result<TrainingCase, CaseError> {
    let [weights] = load_weights(case)?;
    let config = unet_config(&weights, attributes.nested("unet", "UNet")?)?;
    levels_are_of_steps(case, attributes)?;
    let (shape, _) = case.nchw("in.x_start.step0")?;
    let loss = stage1::loss_graph(&config, 0.0, shape.n(), shape.h())?;
    let prediction = loss.marked("denoise_fn.final_conv").map(|id| ("act.x_recon.step0", id));
    let inputs = |case: &Case, step: usize| {
        let of = |name: &str| case.f32(&format!("in.{name}.step{step}")).map(|(_, values)| values);
        let (x_0, levels, noise) = (of("x_start")?, of("noise_level")?, of("noise")?);
        let x_t = q_sample_batch(x_0, levels, noise);
        Ok(vec![("x_0".to_owned(), x_0.to_vec()), ("x_t".to_owned(), x_t), ("level".to_owned(), levels.to_vec())])
    };
    let is_trained = stage1::is_trained;
    Ok(TrainingCase {
        loss,
        params: params(&weights),
        is_trained,
        inputs,
        given: vec![],
        prediction,
        losses: "out.loss",
    })
}

/// Checks the levels that a case gives against the steps `t` of the schedule that it says they were drawn at: a level is
/// between that of the step before and that of its own.
fn levels_are_of_steps(case: &Case, attributes: &mut Attributes) -> Result<(), CaseError> {
    let steps = attributes.take("t").unwrap_or_default();
    let tables = NoiseSchedule::new(&schedule(attributes.nested("schedule", "schedule")?)?).sqrt_alphas_cumprod_prev;
    for (i, t) in steps.as_array().into_iter().flatten().enumerate() {
        let ends = t.as_u64().and_then(|t| tables.get((t as usize).checked_sub(1)?..)?.first_chunk::<2>());
        let name = format!("in.noise_level.step{i}");
        let (_, levels) = case.f32(&name)?;
        let within = |[before, own]: &[f64; 2]| levels.iter().all(|v| (*own as f32..=*before as f32).contains(v));
        if !ends.is_some_and(within) {
            return Err(CaseError::tensor(&name, format!("it is not of step {t} of the schedule")));
        }
    }
    Ok(())
}

/// Stage II: the fusion head learns from features that are given.
fn stage2_case(case: &Case, attributes: &mut Attributes) -> Result<TrainingCase, CaseError> {
    let [weights] = load_weights(case)?;
    let features = case.features.as_deref().ok_or_else(|| attributes.error("the case names no features"))?;
    let mut network = head(&weights, attributes.nested("head", "Fusion_Head")?, &Case::load(features)?)?;
    let alpha = attributes.take("alpha").and_then(|alpha| alpha.as_f64());
    let gradient = alpha.ok_or_else(|| attributes.error("alpha, the weight of the edges, is missing"))? as f32;
    let fused = network.outputs[0].1;
    let (other, mri) = (network.input(case, "vis")?, network.input(case, "ir")?);
    let config = FusionLossConfig { gradient, ..FusionLossConfig::default() };
    let loss = fusion_loss(&mut network.graph, &config, fused, mri, other)?;
    network.params.extend(constants());
    Ok(TrainingCase {
        loss: LossGraph {
            graph: network.graph,
            loss: loss.total,
            reports: vec![loss.intensity, loss.gradient],
            recompute: false,
        },
        params: network.params,
        is_trained: stage2::is_trained,
        inputs: |_, _| Ok(Vec::new()),
        given: network.inputs,
        prediction: Some(("act.fused.step0", fused)),
        losses: "out.losses",
    })
}

/// The groups of the UNet's norms: from the JSON beside its weights, else the reference's default.
fn norm_groups(weights: &Path) -> Result<usize, CaseError> {
    let default = ModelFile::default().norm_groups;
    let Ok(text) = std::fs::read_to_string(weights.with_extension("json")) else {
        return Ok(default);
    };
    let json = weights.with_extension("json");
    let sidecar: WeightsSidecar = serde_json::from_str(&text).map_err(|e| CaseError::file(&json, e))?;
    Ok(sidecar.config.norm_groups.unwrap_or(default))
}

/// What the JSON beside a UNet's weights says that they do not.
#[derive(Deserialize)]
struct WeightsSidecar {
    #[serde(default)]
    config: WeightsConfig,
}

#[derive(Default, Deserialize)]
struct WeightsConfig {
    norm_groups: Option<usize>,
}

/// A pipeline's configuration beside its schedule.
#[derive(Deserialize)]
struct PipelineEntries {
    time_steps: Vec<usize>,
}

/// The model of a pipeline's case.
fn model(case: &Case, mut attributes: Attributes) -> Result<DmFnet, CaseError> {
    let [unet, head] = load_weights(case)?;
    let schedule = schedule(attributes.nested("schedule", "schedule")?)?;
    let time_steps = attributes.read::<PipelineEntries>()?.time_steps;
    let norm_groups = norm_groups(&case.weights[0])?;
    Ok(DmFnet::new(unet, head, &ModelFile { norm_groups, time_steps, schedule, ..ModelFile::default() })?)
}

/// A picture of the case, `[h, w]` or `[h, w, 3]`.
fn picture(case: &Case, name: &str) -> Result<Image, CaseError> {
    let (dims, samples) = case.u8(name)?;
    let (height, width, channels) = match *dims {
        [h, w] => (h, w, Channels::Grey),
        [h, w, 3] => (h, w, Channels::Rgb),
        _ => return Err(CaseError::tensor(name, format!("{dims:?} is no picture"))),
    };
    Ok(Image::new(width, height, channels, Samples::U8(samples.to_vec()))?)
}

/// The fusing of a pair: two pictures and the noise to the fused picture.
fn pipeline_case(case: &Case, attributes: Attributes, device: &Device) -> Result<Computed, CaseError> {
    let model = model(case, attributes)?;
    let pair = FusionPair::new(picture(case, "in.mri_u8")?, picture(case, "in.other_rgb_u8")?)?;
    let pipeline = Pipeline { case, shape: Shape::new(1, 1, pair.height(), pair.width()), pair };
    let mut results = Computed::default();
    pipeline.preprocess(&mut results)?;
    pipeline.passes(&model, device, &mut results)?;
    let steps = model.time_steps.clone();
    pipeline.fuse(Fuser::new(model, device.clone()), &steps, &mut results)?;
    Ok(results)
}

struct Pipeline<'a> {
    case: &'a Case,
    pair: FusionPair,
    shape: Shape,
}

impl Pipeline<'_> {
    fn insert_u8(&self, results: &mut Computed, name: &str, channels: Channels, samples: Vec<u8>) {
        let mut dims = vec![self.pair.height(), self.pair.width()];
        if channels == Channels::Rgb {
            dims.push(3);
        }
        let values = Values::U8(samples);
        results.arrays.insert(name.to_owned(), Array { dims, values });
    }

    fn preprocess(&self, results: &mut Computed) -> Result<(), CaseError> {
        let other = picture(self.case, "in.other_rgb_u8")?;
        if let Samples::U8(grey) = other.to_grey().samples() {
            self.insert_u8(results, "act.other_l_u8", Channels::Grey, grey.clone());
        }
        let (_, rgb) = self.case.u8("in.other_rgb_u8")?;
        let ycrcb = rgb.as_chunks::<3>().0.iter().flat_map(|&p| ycrcb_from_rgb(p)).collect();
        self.insert_u8(results, "act.other_ycrcb_u8", Channels::Rgb, ycrcb);
        results.insert("in.mri", self.shape, self.pair.mri_input());
        results.insert("in.other", self.shape, self.pair.other_input());
        results.order = vec!["act.other_l_u8".into(), "act.other_ycrcb_u8".into()];
        Ok(())
    }

    /// The noise of a pass: its level and its picture.
    fn noise(&self, modality: &str, step: usize) -> Result<(f32, &[f32]), CaseError> {
        let name = format!("in.level.{modality}.t{step}");
        let (_, level) = self.case.f32(&name)?;
        let &[level] = level else {
            return Err(CaseError::tensor(&name, "it must be one number"));
        };
        let name = format!("in.noise.{modality}.t{step}");
        let (_, noise) = self.case.f32(&name)?;
        if noise.len() != self.shape.numel() {
            return Err(CaseError::tensor(&name, "it has not the pictures' size"));
        }
        Ok((level, noise))
    }

    /// The UNet's passes one by one, with its prediction, which fusing does not need, and the features that the case has.
    fn passes(&self, model: &DmFnet, device: &Device, results: &mut Computed) -> Result<(), CaseError> {
        let mut graph = Graph::new();
        let x = graph.input("x", self.shape);
        let level = graph.input("level", Shape::new(1, 1, 1, 1));
        let out = unet(&mut graph, &model.unet, x, level)?;
        let mut nodes = vec![out.x_final];
        nodes.extend(&out.decoder);
        let executable = device.compile(&graph, &nodes, model)?;
        let shapes: Vec<Shape> = nodes.iter().map(|&id| graph.shape(id)).collect();
        for &t in &model.time_steps {
            for (modality, input) in MODALITIES.iter().zip([self.pair.mri_input(), self.pair.other_input()]) {
                let pass = format!("{modality}.t{t}");
                let (level, noise) = self.noise(modality, t)?;
                let x = q_sample(&input, level, noise);
                self.pass(&executable, &shapes, &pass, &[("x", &x), ("level", &[level])], results)?;
            }
        }
        Ok(())
    }

    fn pass(
        &self,
        executable: &Executable,
        shapes: &[Shape],
        pass: &str,
        inputs: &[(&str, &[f32])],
        results: &mut Computed,
    ) -> Result<(), CaseError> {
        let mut maps = executable.run(inputs)?;
        // The decoder's maps are counted from the finest, so the last is computed first.
        for i in (0..maps.len()).rev() {
            let name = match i {
                0 => format!("act.x_final.{pass}"),
                i => format!("act.feat.{pass}.s{}", i - 1),
            };
            if self.case.tensors.contains_key(&name) {
                results.insert_activation(name, shapes[i], std::mem::take(&mut maps[i]));
            }
        }
        Ok(())
    }

    fn fuse(&self, fuser: Fuser, steps: &[usize], results: &mut Computed) -> Result<(), CaseError> {
        let mut noise = FusionNoise { levels: Vec::new(), planes: Vec::new() };
        for &t in steps {
            let [(a, x), (b, y)] = [self.noise(MODALITIES[0], t)?, self.noise(MODALITIES[1], t)?];
            noise.levels.push([a, b]);
            noise.planes.push([x.to_vec(), y.to_vec()]);
        }
        let (mri, other) = (self.pair.mri_input(), self.pair.other_input());
        let fused = fuser.fuse_planes(&mri, &other, self.pair.height(), self.pair.width(), &noise)?;
        if fused.iter().all(|v| v.is_finite()) {
            self.pictures(&fused, results)?;
        }
        results.insert("out.fused", self.shape, fused);
        Ok(())
    }

    fn pictures(&self, fused: &[f32], results: &mut Computed) -> Result<(), CaseError> {
        let grey = picture(self.case, "in.mri_u8")?.to_grey().with_luma(fused)?;
        if let Samples::U8(luma) = grey.samples() {
            self.insert_u8(results, "out.fused_u8", Channels::Grey, luma.clone());
        }
        let image = self.pair.fused_image(fused)?;
        if let Samples::U8(samples) = image.samples() {
            let bgr = match image.channels() {
                Channels::Rgb => samples.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [b, g, r]).collect(),
                // A picture without colour is written grey, which is its blue, green and red.
                Channels::Grey => samples.iter().flat_map(|&v| [v; 3]).collect(),
            };
            self.insert_u8(results, "out.result_bgr_u8", Channels::Rgb, bgr);
        }
        Ok(())
    }
}
