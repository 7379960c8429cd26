//! Cases of whole networks: the UNet, the fusion head, the fusing pipeline, the schedules.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::attributes::{AttributeError, Attributes};
use super::case::{Array, Case, Values};
use super::compare::Scale;
use super::error::CaseError;
use super::network::{Network, Results};
use super::subject::Job;
use crate::device::{Device, Executable};
use crate::diffusion::{NoiseSchedule, ScheduleConfig, q_sample, q_sample_batch};
use crate::graph::Graph;
use crate::imaging::{Channels, FusionPair, Image, Samples, ycrcb_from_rgb};
use crate::models::dm_fnet::fusion_head::{HeadConfig, fusion_head};
use crate::models::dm_fnet::unet::{UnetConfig, unet};
use crate::models::dm_fnet::{DmFnet, Fuser, FusionNoise, MODALITIES, ModelFile};
use crate::models::lkc_funet::{LkcConfig, Mode, lkc_funet};
use crate::tensor::Shape;
use crate::weights::Weights;

/// The case's files of weights, of which there must be `count`.
pub(super) fn weights(case: &Case, count: usize) -> Result<Vec<Weights>, CaseError> {
    if case.weights.len() != count {
        let reason = format!("{count} files of weights are needed, it names {}", case.weights.len());
        return Err(CaseError::tensor("weights", reason));
    }
    Ok(case.weights.iter().map(Weights::load).collect::<Result<_, _>>()?)
}

/// The network's weights by name.
pub(super) fn params(weights: &Weights) -> std::collections::BTreeMap<String, crate::tensor::Tensor> {
    weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

/// Checks attributes that the weights imply, where the configuration has them.
fn expect_all(attributes: &mut Attributes, implied: &[(&str, Value)]) -> Result<(), AttributeError> {
    for (name, value) in implied {
        attributes.expect(name, value, "the weights say")?;
    }
    Ok(())
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
pub(super) fn unet_config(weights: &Weights, mut attributes: Attributes) -> Result<UnetConfig, CaseError> {
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
            return Err(attributes.error(reason).into());
        }
    }
    config.norm_groups = entries.norm_groups;
    Ok(config)
}

/// What an LKC-FUNet's configuration says that is not in its weights.
#[derive(Deserialize)]
struct LkcEntries {
    norm_groups: usize,
}

/// The size of an LKC-FUNet, in which weights and configuration must agree.
pub(super) fn lkc_config(weights: &Weights, mut attributes: Attributes) -> Result<LkcConfig, CaseError> {
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

/// Computes the case of a UNet: `in.x_noisy` and `in.noise_level` to `out.x_final`.
pub(super) fn run_unet(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let config = unet_config(&weights, attributes)?;
    let mut network = Network { params: params(&weights), prefix: "denoise_fn.", ..Network::default() };
    let x = network.input(case, "x_noisy")?;
    let level = network.input(case, "noise_level")?;
    let out = unet(&mut network.graph, &config, x, level)?;
    network.outputs.push(("out.x_final".into(), out.x_final));
    let mut results = network.run(case, device, Scale::Model)?;
    if case.tensors.contains_key("in.x_start") {
        let (shape, x_0) = case.nchw("in.x_start")?;
        let ((_, levels), (_, noise)) = (case.f32("in.noise_level")?, case.f32("in.noise")?);
        if levels.len() != shape.n() || noise.len() != x_0.len() {
            return Err(CaseError::tensor("in.noise", "noise and levels do not fit x_start"));
        }
        results.insert("in.x_noisy", shape, q_sample_batch(x_0, levels, noise));
    }
    Ok(results)
}

/// Computes the case of an LKC-FUNet: `in.img_cat` to `out.fused`.
pub(super) fn run_lkc(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let config = lkc_config(&weights, attributes)?;
    let mut network = Network { params: params(&weights), prefix: "model.", ..Network::default() };
    let img_cat = network.input(case, "img_cat")?;
    let fused = lkc_funet(&mut network.graph, &config, img_cat, Mode::Inference)?;
    network.outputs.push(("out.fused".into(), fused));
    network.run(case, device, Scale::Model)
}

/// Computes the case of a fusion head: `in.MODALITY.STEP.sSCALE` to `out.fused`.
pub(super) fn run_head(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, forward_only } = job;
    let weights = weights(case, 1)?.swap_remove(0);
    let network = head(&weights, attributes, case)?;
    let mut results = network.run(case, device, Scale::Model)?;
    if !forward_only {
        network.differentiate(case, device, &mut results)?;
    }
    Ok(results)
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

/// A fusion head on the features that are inputs of the case `features`; its output is `out.fused`.
pub(super) fn head(weights: &Weights, mut attributes: Attributes, features: &Case) -> Result<Network, CaseError> {
    let config = HeadConfig::from_weights(weights)?;
    expect_all(&mut attributes, &[("out_channels", config.out_channels.into())])?;
    // The reference takes it and never reads it.
    attributes.take("img_size");
    let entries: HeadEntries = attributes.clone().read()?;
    if let Some(reason) = entries.contradiction(&config) {
        return Err(attributes.error(reason).into());
    }
    let mut scales = entries.feat_scales;
    // The largest index is the coarsest map, which comes first.
    scales.sort_by(|a, b| b.cmp(a));
    let mut network = Network { params: params(weights), ..Network::default() };
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

/// Longest noise schedule of a case: its tables must fit into memory.
const MAX_TIMESTEPS: u64 = 100_000;

/// The configuration of a noise schedule.
pub(super) fn schedule(attributes: Attributes) -> Result<ScheduleConfig, AttributeError> {
    attributes.at_most("n_timestep", MAX_TIMESTEPS)?;
    attributes.read()
}

/// Computes the tables of a noise schedule.
pub(super) fn run_schedule(job: Job) -> Result<Results, CaseError> {
    let schedule = NoiseSchedule::new(&schedule(job.attributes)?);
    let mut results = Results::new(Scale::Schedule);
    for (name, table) in [
        ("betas", &schedule.betas),
        ("alphas_cumprod", &schedule.alphas_cumprod),
        ("sqrt_alphas_cumprod_prev", &schedule.sqrt_alphas_cumprod_prev),
    ] {
        let (dims, values) = (vec![table.len()], Values::F64(table.clone()));
        results.arrays.insert(format!("out.{name}_f64"), Array { dims, values });
    }
    for (name, buffer) in schedule.buffers() {
        let (dims, values) = (vec![buffer.len()], Values::F32(buffer));
        results.arrays.insert(format!("out.buffer.{name}"), Array { dims, values });
    }
    Ok(results)
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
    let mut loaded = weights(case, 2)?;
    let (head, unet) = (loaded.swap_remove(1), loaded.swap_remove(0));
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

/// Computes the case of the fusing pipeline: two pictures and the noise to the fused picture.
pub(super) fn run_pipeline(job: Job) -> Result<Results, CaseError> {
    let Job { case, attributes, device, .. } = job;
    let model = model(case, attributes)?;
    let pair = FusionPair::new(picture(case, "in.mri_u8")?, picture(case, "in.other_rgb_u8")?)?;
    let pipeline = Pipeline { case, shape: Shape::new(1, 1, pair.height(), pair.width()), pair };
    let mut results = Results::new(Scale::Model);
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
    fn insert_u8(&self, results: &mut Results, name: &str, channels: Channels, samples: Vec<u8>) {
        let mut dims = vec![self.pair.height(), self.pair.width()];
        if channels == Channels::Rgb {
            dims.push(3);
        }
        let values = Values::U8(samples);
        results.arrays.insert(name.to_owned(), Array { dims, values });
    }

    fn preprocess(&self, results: &mut Results) -> Result<(), CaseError> {
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
    fn passes(&self, model: &DmFnet, device: &Device, results: &mut Results) -> Result<(), CaseError> {
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
        results: &mut Results,
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

    fn fuse(&self, fuser: Fuser, steps: &[usize], results: &mut Results) -> Result<(), CaseError> {
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

    fn pictures(&self, fused: &[f32], results: &mut Results) -> Result<(), CaseError> {
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
