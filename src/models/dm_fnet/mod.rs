//! DM-FNet (arXiv 2506.15218): fuses two images by the features that a diffusion UNet has of them at several noise steps.

pub mod denoiser;
pub mod fusion_head;
#[cfg(feature = "verify")]
mod golden;
pub mod passes;
#[cfg(feature = "train")]
pub mod stage1;
#[cfg(feature = "train")]
pub mod stage2;
pub mod unet;

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checkpoint::{
    ModelError, check_model_json, check_names, embedded, parse_json, read_model_json, save_model_json, weights_file,
};
use super::fusing::{PairFuser, PlanCache};
use super::networks::{BenchRow, Effort, Network};
use super::options::{ModelOption, ModelOptions, OptionValues};
#[cfg(feature = "train")]
use super::training::LossGraph;
use super::{FusionModel, Loader, Model, ModelKind, ModelRow};
use crate::device::{Device, Executable, ParamSource};
use crate::diffusion::{NoiseSchedule, NoiseSource, ScheduleConfig, q_sample};
use crate::graph::{Graph, GraphError, NodeId};
use crate::imaging::{FusionPair, Image, Padding, pad_to_multiple};
use crate::tensor::{Shape, Tensor};
use crate::weights::{SCHEDULE_BUFFERS, Weights};
use fusion_head::{HeadConfig, MIN_COARSE_SIDE, fusion_head};
use passes::{PassOutputs, head_pass, random_model, unet_pass};
use unet::{UnetConfig, unet};

/// DM-FNet's row in the table of the models.
pub static ROW: ModelRow = ModelRow {
    name: NAME,
    title: "DM-FNet",
    about: "DM-FNet: the features of a diffusion UNet at several noise steps, fused by a head",
    files: &FILES,
    ships: cfg!(feature = "shipped-weights"),
    options: &[ModelOption {
        name: STEPS,
        value_name: "T,T,...",
        about: "Noise steps whose features dm-fnet fuses, such as 5,10,20 [default: the model's]",
        values: OptionValues::Counts,
    }],
    kind: ModelKind::Fusion(Loader { open, random: |width| Ok(Box::new(random_model(width)?)) }),
    bench: BenchRow {
        measured: "a UNet pass, the fusion head and a pair",
        sizes: "a multiple of 16 from 64 on",
        width: 128,
        training_batch: 2,
        training_size: 160,
        trained: "its UNet's on a batch",
    },
    #[cfg(feature = "train")]
    trainings: &[stage1::TRAINING, stage2::TRAINING],
    #[cfg(feature = "verify")]
    golden: &golden::GOLDEN,
};

/// Its name in `model.json` and on the command line.
const NAME: &str = "dm-fnet";
/// Its files of weights.
const FILES: [&str; 2] = ["unet", "head"];
/// The option that chooses the noise steps.
const STEPS: &str = "steps";

/// The modalities in the order the reference passes them through the UNet at each step.
pub(crate) const MODALITIES: [&str; 2] = ["MRI", "Other"];

/// Longest noise schedule that a model file or a training may ask for.
const MAX_TIMESTEPS: usize = 100_000;

/// What a checkpoint does not say of a model: the file `model.json` beside the weights.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFile {
    /// The network's name.
    pub model: String,
    /// Groups of the UNet's norms.
    pub norm_groups: usize,
    /// Noise steps whose features are fused.
    pub time_steps: Vec<usize>,
    /// The noise schedule of the fusion.
    pub schedule: ScheduleConfig,
}

impl Default for ModelFile {
    fn default() -> Self {
        Self { model: NAME.into(), norm_groups: 32, time_steps: vec![5, 10, 20], schedule: ScheduleConfig::default() }
    }
}

/// The two networks of DM-FNet with their weights.
#[derive(Clone, Debug)]
pub struct DmFnet {
    /// The UNet's size.
    pub unet: UnetConfig,
    /// The head's size.
    pub head: HeadConfig,
    /// Noise steps whose features are fused, in order.
    pub time_steps: Vec<usize>,
    /// The noise schedule.
    pub schedule: NoiseSchedule,
    unet_weights: Weights,
    head_weights: Weights,
}

impl ParamSource for DmFnet {
    fn param(&self, name: &str) -> Option<&Tensor> {
        self.unet_weights.get(name).or_else(|| self.head_weights.get(name))
    }
}

impl DmFnet {
    /// Loads `unet` and `head` (`.safetensors` or `.pth`) and `model.json`, if it is there, from a folder.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing, unreadable or of another architecture, or a weight is not finite.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        // A folder of another model says so rather than that files are missing.
        let config = read_model_file(folder)?;
        let [unet, head] = FILES.map(|name| weights_file(folder, name, &FILES));
        let (unet, head) = (unet?, head?);
        Self::new(Weights::load(unet)?, Weights::load(head)?, &config)
    }

    /// The model whose weights ship inside medfuse; `weights/dm-fnet-small/card.md` says what it is.
    ///
    /// # Errors
    /// [`ModelError::NotShipped`] in a library without the feature `shipped-weights`.
    pub fn shipped() -> Result<Self, ModelError> {
        let [Some(unet), Some(head), Some(file)] = [
            embedded!("dm-fnet-small/unet.safetensors"),
            embedded!("dm-fnet-small/head.safetensors"),
            embedded!("dm-fnet-small/model.json"),
        ] else {
            return Err(ModelError::NotShipped(NAME));
        };
        let unet = Weights::from_safetensors(unet, "shipped unet")?;
        let head = Weights::from_safetensors(head, "shipped head")?;
        Self::new(unet, head, &parse_model_file(&String::from_utf8_lossy(file), "shipped model.json")?)
    }

    /// The model of two checkpoints.
    ///
    /// # Errors
    /// [`ModelError`] if they do not fit the architecture or each other.
    pub fn new(unet_weights: Weights, head_weights: Weights, file: &ModelFile) -> Result<Self, ModelError> {
        let unet = UnetConfig::from_weights(&unet_weights, file.norm_groups)?;
        let head = HeadConfig::from_weights(&head_weights)?;
        unet_weights.check_finite()?;
        head_weights.check_finite()?;
        let widths: Vec<usize> = unet.channel_mults.iter().rev().map(|m| m * unet.inner_channel).collect();
        if widths != head.dims {
            let reason = format!("the UNet's levels have {widths:?} channels, the head reads {:?}", head.dims);
            return Err(ModelError::Mismatch(reason));
        }
        let model = Self {
            unet,
            head,
            time_steps: file.time_steps.clone(),
            schedule: NoiseSchedule::new(&file.schedule),
            unet_weights,
            head_weights,
        };
        model.check_steps(&model.time_steps)?;
        model.check_names()?;
        Ok(model)
    }

    /// The same model, fusing the features of other noise steps.
    ///
    /// # Errors
    /// [`ModelError::Steps`] if the head was trained for another number of steps or a step is not on the schedule.
    pub fn with_steps(mut self, steps: &[usize]) -> Result<Self, ModelError> {
        self.check_steps(steps)?;
        self.time_steps = steps.to_vec();
        Ok(self)
    }

    fn check_steps(&self, steps: &[usize]) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Steps { steps: steps.to_vec(), reason });
        let (wanted, last) = (self.head.time_steps, self.schedule.len());
        if steps.len() != wanted {
            return fail(format!("this head fuses {wanted} steps"));
        }
        if steps.iter().any(|t| !(1..=last).contains(t)) {
            return fail(format!("the schedule has steps 1 to {last}"));
        }
        if (1..steps.len()).any(|i| steps[..i].contains(&steps[i])) {
            return fail("one of them is given twice".into());
        }
        Ok(())
    }

    /// Compares the checkpoints' names and shapes with the networks'.
    fn check_names(&self) -> Result<(), ModelError> {
        let side = self.multiple() * MIN_COARSE_SIDE;
        let (graph, _) = self.graph(side, side)?;
        let of_unet = |name: &str| name.starts_with("denoise_fn.");
        check_names(&self.unet_weights, &graph, of_unet, &SCHEDULE_BUFFERS)?;
        check_names(&self.head_weights, &graph, |name| !of_unet(name), &[])?;
        Ok(())
    }

    /// Height and width of the network's input must be multiples of this.
    pub(crate) fn multiple(&self) -> usize {
        self.unet.multiple()
    }

    /// The whole network for images of `height` x `width` and its output, see `dm_fnet`.
    ///
    /// # Errors
    /// [`GraphError`] if the size is not a multiple of `DmFnet::multiple` or too small.
    pub fn graph(&self, height: usize, width: usize) -> Result<(Graph, NodeId), GraphError> {
        let mut g = Graph::new();
        let fused = dm_fnet(&mut g, &self.unet, &self.head, &self.time_steps, [1, height, width])?;
        Ok((g, fused))
    }
}

/// Loads the model from a folder, or without one the weights that ship.
fn open(folder: Option<&Path>, options: &ModelOptions) -> Result<Box<dyn FusionModel>, ModelError> {
    let model = folder.map_or_else(DmFnet::shipped, DmFnet::load)?;
    Ok(Box::new(match options.counts(STEPS) {
        Some(steps) => model.with_steps(steps)?,
        None => model,
    }))
}

impl Model for DmFnet {
    fn weights(&self) -> &dyn ParamSource {
        self
    }

    fn parts(&self, size: usize) -> Result<Vec<Network>, GraphError> {
        Ok(vec![unet_pass(&self.unet, size, PassOutputs::Features)?, head_pass(&self.head, size)?])
    }

    fn networks(&self, size: usize) -> Result<Vec<(Network, Effort)>, GraphError> {
        let pass = |outputs| unet_pass(&self.unet, size, outputs);
        Ok(vec![
            (pass(PassOutputs::Features)?, Effort::Short),
            (pass(PassOutputs::Prediction)?, Effort::Long),
            (pass(PassOutputs::Everything)?, Effort::PlanOnly),
            (head_pass(&self.head, size)?, Effort::Short),
            (Network::whole_pair(self.graph(size, size)?), Effort::VeryLong),
        ])
    }

    #[cfg(feature = "train")]
    fn loss(&self, size: usize) -> Result<LossGraph, GraphError> {
        stage1::loss_graph(&self.unet, 0.0, ROW.bench.training_batch, size)
    }
}

impl FusionModel for DmFnet {
    fn on(self: Box<Self>, device: Device) -> Box<dyn PairFuser> {
        Box::new(Fuser::new(*self, device))
    }
}

/// Writes the whole network for a batch of images, `[n, height, width]`; gives the fused images `[n, 1, height, width]`.
/// Inputs: `x_t.MRI.tN`, `x_t.Other.tN` `[n, 1, height, width]` and `level.MRI.tN`, `level.Other.tN` `[n, 1, 1, 1]` of
/// each noise step N.
///
/// # Errors
/// [`GraphError`] if the size is not a multiple of the UNet's or too small.
pub(crate) fn dm_fnet(
    g: &mut Graph,
    unet_config: &UnetConfig,
    head: &HeadConfig,
    time_steps: &[usize],
    [batch, height, width]: [usize; 3],
) -> Result<NodeId, GraphError> {
    let mut features: [Vec<Vec<NodeId>>; 2] = [Vec::new(), Vec::new()];
    for t in time_steps {
        for (modality, features) in MODALITIES.iter().zip(&mut features) {
            let image = Shape::new(batch, unet_config.in_channel, height, width);
            let x = g.input(&format!("x_t.{modality}.t{t}"), image);
            let level = g.input(&format!("level.{modality}.t{t}"), Shape::new(batch, 1, 1, 1));
            let out = unet(g, unet_config, x, level)?;
            features.push(head_features(unet_config, head, &out.decoder));
        }
    }
    let [mri, other] = &features;
    if time_steps.len() == 1 {
        declare_unused(g, head)?;
    }
    fusion_head(g, head, mri, other)
}

/// The first block of each level of the decoder, coarsest first: `feat_scales` 14, 11, 8, 5, 2 of the published size.
fn head_features(unet: &UnetConfig, head: &HeadConfig, decoder: &[NodeId]) -> Vec<NodeId> {
    let per_level = unet.res_blocks + 1;
    (1..=head.dims.len()).rev().map(|level| decoder[level * per_level - 1]).collect()
}

/// The merging blocks' weights, which a head of a single step has and does not use.
fn declare_unused(g: &mut Graph, head: &HeadConfig) -> Result<(), GraphError> {
    for (level, &dim) in head.dims.iter().enumerate() {
        g.scope(&format!("decoder.{}.block", 2 * level), |g| {
            g.param("0.weight", [dim, dim, 1, 1])?;
            g.param("0.bias", [dim])?;
            g.param("2.weight", [dim, dim, 3, 3])?;
            g.param("2.bias", [dim])
        })?;
    }
    Ok(())
}

impl ModelFile {
    /// Writes `model.json` into a folder.
    ///
    /// # Errors
    /// No such folder, no permission, disk full.
    pub(crate) fn save(&self, folder: &Path) -> std::io::Result<()> {
        save_model_json(self, folder)
    }
}

/// Reads `model.json` of a folder; without one, what it would say of the published model.
///
/// # Errors
/// [`ModelError::ModelFile`] if it cannot be read or understood.
pub(crate) fn read_model_file(folder: &Path) -> Result<ModelFile, ModelError> {
    read_model_json(folder, parse_model_file)
}

fn parse_model_file(text: &str, name: &str) -> Result<ModelFile, ModelError> {
    let fail = |reason: String| ModelError::ModelFile { path: name.to_owned(), reason };
    let file: ModelFile = parse_json(text, name)?;
    check_model_json(name, &file.model, NAME, file.norm_groups)?;
    if !(1..=MAX_TIMESTEPS).contains(&file.schedule.n_timestep) {
        let found = file.schedule.n_timestep;
        return Err(fail(format!("n_timestep must be 1 to {MAX_TIMESTEPS}, not {found}")));
    }
    let betas = [file.schedule.linear_start, file.schedule.linear_end];
    if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
        let reason = "linear_start and linear_end must be at least 0 and below 1";
        return Err(fail(reason.into()));
    }
    Ok(file)
}

/// The noise of one fusion: for each step and modality the level and a standard normal image.
#[derive(Clone, Debug)]
pub struct FusionNoise {
    /// Square roots of alpha_bar, `[step][modality]`.
    pub levels: Vec<[f32; 2]>,
    /// Standard normal planes of the padded size, `[step][modality]`.
    pub planes: Vec<[Vec<f32>; 2]>,
}

/// DM-FNet on a device, fusing images one after the other.
#[derive(Debug)]
pub struct Fuser {
    model: DmFnet,
    device: Device,
    plans: PlanCache,
}

impl Fuser {
    /// A fuser of `model` on `device`.
    pub fn new(model: DmFnet, device: Device) -> Self {
        Self { model, device, plans: PlanCache::default() }
    }

    /// The model.
    pub fn model(&self) -> &DmFnet {
        &self.model
    }

    /// The plan for padded images of this size, made at its first use.
    ///
    /// # Errors
    /// [`ModelError`] if the network does not fit the device.
    pub(crate) fn executable(&self, height: usize, width: usize) -> Result<Arc<Executable>, ModelError> {
        self.plans.executable([height, width], |h, w| self.model.graph(h, w), &self.device, &self.model)
    }

    /// Fuses a pair; `seed` determines the noise, so the same seed gives the same bytes on one device.
    ///
    /// # Errors
    /// [`ModelError`] if the network does not fit the device or fails on it.
    pub fn fuse(&self, pair: &FusionPair, seed: u64) -> Result<Image, ModelError> {
        let padding = self.padding(pair.height(), pair.width());
        let plane = padding.padded_height * padding.padded_width;
        // What the device cannot hold is refused before any noise is drawn.
        self.executable(padding.padded_height, padding.padded_width)?;
        let mut source = NoiseSource::new(seed);
        let mut noise = FusionNoise { levels: Vec::new(), planes: Vec::new() };
        for &t in &self.model.time_steps {
            let mut draw = || (source.level(&self.model.schedule, t), source.normal(plane));
            let ((a, x), (b, y)) = (draw(), draw());
            noise.levels.push([a, b]);
            noise.planes.push([x, y]);
        }
        let fused = self.fuse_planes(&pair.mri_input(), &pair.other_input(), pair.height(), pair.width(), &noise)?;
        Ok(pair.fused_image(&fused)?)
    }

    /// How planes of this size are padded for the network.
    pub(crate) fn padding(&self, height: usize, width: usize) -> Padding {
        let multiple = self.model.multiple();
        Padding::new(height, width, multiple, multiple * MIN_COARSE_SIDE)
    }

    /// Fuses two planes in [-1, 1] (row-major, `height` x `width`) with given noise; the result is in (-1, 1).
    ///
    /// # Errors
    /// [`ModelError`] if the network does not fit the device or fails on it.
    pub fn fuse_planes(
        &self,
        mri: &[f32],
        other: &[f32],
        height: usize,
        width: usize,
        noise: &FusionNoise,
    ) -> Result<Vec<f32>, ModelError> {
        let multiple = self.model.multiple();
        let side = multiple * MIN_COARSE_SIDE;
        let padded = [mri, other].map(|plane| pad_to_multiple(plane, height, width, multiple, side).0);
        let padding = self.padding(height, width);
        let executable = self.executable(padding.padded_height, padding.padded_width)?;
        let mut named: Vec<(String, Vec<f32>)> = Vec::new();
        for ((t, levels), planes) in self.model.time_steps.iter().zip(&noise.levels).zip(&noise.planes) {
            for m in 0..2 {
                let x_t = q_sample(&padded[m], levels[m], &planes[m]);
                named.push((format!("x_t.{}.t{t}", MODALITIES[m]), x_t));
                named.push((format!("level.{}.t{t}", MODALITIES[m]), vec![levels[m]]));
            }
        }
        let inputs: Vec<(&str, &[f32])> = named.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        Ok(padding.crop(&executable.run(&inputs)?.swap_remove(0)))
    }
}

impl PairFuser for Fuser {
    fn fuse(&self, pair: &FusionPair, seed: u64) -> Result<Image, ModelError> {
        Self::fuse(self, pair, seed)
    }
}
