//! Stage II of DM-FNet: the fusion head learns to fuse by the frozen UNet's features of noisy images (`Fusion_model.py`
//! of the reference).

use std::collections::BTreeMap;
use std::path::Path;

use super::config::Stage2Config;
use super::data::{Batch, Batches, DataError, Dataset};
use super::loss::{FusionLossConfig, constants, fusion_loss};
use super::run::{Figures, PublishError, Task, sample_fused};
use super::step::{Layout, LossGraph, StepError};
use crate::device::{Device, ParamSource};
use crate::diffusion::{NoiseSchedule, NoiseSource, q_sample};
use crate::graph::{Graph, GraphError};
use crate::models::dm_fnet::{DmFnet, Fuser, MODALITIES, ModelFile, dm_fnet};
use crate::models::fusion_head::{HeadConfig, MIN_COARSE_SIDE};
use crate::models::unet::UnetConfig;
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights};

/// Names of the loss's parts, in the order of the graph's reports.
pub const REPORTS: [&str; 3] = ["loss_intensity", "loss_gradient", "ssim"];

/// The head's loss on a batch of pairs of `side` x `side`. Inputs: those of [`dm_fnet`], and the images `mri` and `other`
/// `[n, 1, side, side]`.
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of the UNet's or too small.
pub fn loss_graph(
    unet: &UnetConfig,
    head: &HeadConfig,
    time_steps: &[usize],
    loss: &FusionLossConfig,
    batch: usize,
    side: usize,
) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let fused = dm_fnet(&mut graph, unet, head, time_steps, [batch, side, side])?;
    let image = Shape::new(batch, 1, side, side);
    let (mri, other) = (graph.input("mri", image), graph.input("other", image));
    let loss = fusion_loss(&mut graph, loss, fused, mri, other)?;
    Ok(LossGraph { graph, loss: loss.total, reports: vec![loss.intensity, loss.gradient, loss.ssim], recompute: false })
}

/// Whether a weight is the head's, which stage II trains.
pub fn is_trained(name: &str) -> bool {
    ["decoder.", "rgb_decode1.", "rgb_decode2."].iter().any(|prefix| name.starts_with(prefix))
}

/// The graph's inputs for a batch of pairs: each image at each noise step, with a level and noise of its own.
pub fn inputs(
    batch: &Batch,
    schedule: &NoiseSchedule,
    time_steps: &[usize],
    noise: &mut NoiseSource,
) -> BTreeMap<String, Vec<f32>> {
    let mut inputs = BTreeMap::new();
    for t in time_steps {
        for (modality, images) in MODALITIES.iter().zip([&batch.mri, &batch.other]) {
            let (x_t, levels) = noisy(images, schedule, *t, noise);
            inputs.insert(format!("x_t.{modality}.t{t}"), x_t);
            inputs.insert(format!("level.{modality}.t{t}"), levels);
        }
    }
    inputs.insert("mri".to_owned(), batch.mri.data().to_vec());
    inputs.insert("other".to_owned(), batch.other.data().to_vec());
    inputs
}

/// The images at noise step `t`, and the level of each.
fn noisy(images: &Tensor, schedule: &NoiseSchedule, t: usize, noise: &mut NoiseSource) -> (Vec<f32>, Vec<f32>) {
    let item = images.data().len() / images.dims()[0];
    let (mut x_t, mut levels) = (Vec::with_capacity(images.data().len()), Vec::new());
    for x_0 in images.data().chunks(item) {
        let level = noise.level(schedule, t);
        x_t.extend(q_sample(x_0, level, &noise.normal(item)));
        levels.push(level);
    }
    (x_t, levels)
}

/// Why stage II cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Stage2Error {
    /// The pairs cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The UNet's checkpoint is not one, or not for a head.
    #[error("the UNet's weights cannot be used: {0}")]
    Unet(String),
    /// The crop does not go with the UNet.
    #[error("data.crop must be a multiple of {multiple} and at least {least} for this UNet, not {crop}")]
    Crop {
        /// The crop.
        crop: usize,
        /// What it must be a multiple of.
        multiple: usize,
        /// The smallest.
        least: usize,
    },
}

/// What the head's graph reads and does not train.
#[derive(Debug)]
struct Frozen {
    unet: Weights,
    constants: BTreeMap<String, Tensor>,
}

impl ParamSource for Frozen {
    fn param(&self, name: &str) -> Option<&Tensor> {
        self.unet.get(name).or_else(|| self.constants.get(name))
    }
}

/// The run of stage II on a data set.
#[derive(Debug)]
pub struct Stage2<'a> {
    config: &'a Stage2Config,
    data: &'a Dataset,
    device: &'a Device,
    batches: Batches<'a>,
    schedule: NoiseSchedule,
    unet: UnetConfig,
    head: HeadConfig,
    frozen: Frozen,
}

impl<'a> Stage2<'a> {
    /// The run on the data set's training pairs and the features of `unet`; `device` is where it validates.
    ///
    /// # Errors
    /// [`Stage2Error`] if the pairs, the UNet's weights or the crop cannot be used.
    pub fn new(
        config: &'a Stage2Config,
        unet: Weights,
        data: &'a Dataset,
        device: &'a Device,
    ) -> Result<Self, Stage2Error> {
        let batches = Batches::new(&data.train, config.data.sampling(), config.run.seed)?;
        let size = UnetConfig::from_weights(&unet, config.head.norm_groups);
        let size = size.map_err(|e| Stage2Error::Unet(e.to_string()))?;
        unet.check_finite().map_err(|e| Stage2Error::Unet(e.to_string()))?;
        let (crop, multiple) = (config.data.crop, size.multiple());
        let least = multiple * MIN_COARSE_SIDE;
        if crop < least || !crop.is_multiple_of(multiple) {
            return Err(Stage2Error::Crop { crop, multiple, least });
        }
        let head = HeadConfig {
            dims: size.channel_mults.iter().rev().map(|m| m * size.inner_channel).collect(),
            time_steps: config.head.time_steps.len(),
            decode_channels: config.head.decode_channels,
            out_channels: 1,
        };
        let schedule = NoiseSchedule::new(&config.noise.schedule());
        let frozen = Frozen { unet, constants: constants() };
        let this = Self { config, data, device, batches, schedule, unet: size, head, frozen };
        this.check_model()?;
        Ok(this)
    }

    /// Fails if the UNet with a head of this size is not a model that can be loaded, before it is trained for hours.
    fn check_model(&self) -> Result<(), Stage2Error> {
        let unusable = |e: &dyn std::fmt::Display| Stage2Error::Unet(e.to_string());
        if self.unet.in_channel != 1 {
            return Err(unusable(&format!("it takes images of {} channels, pairs have 1", self.unet.in_channel)));
        }
        let layout = Layout::new(&self.graph().map_err(|e| unusable(&e))?, is_trained);
        let head = layout.entries().iter().map(|(name, dims)| (name.clone(), Tensor::zeros(dims.clone())));
        self.fuser(&head.collect()).map_err(|e| unusable(&e))?;
        Ok(())
    }

    fn model_file(&self) -> ModelFile {
        ModelFile {
            norm_groups: self.unet.norm_groups,
            time_steps: self.config.head.time_steps.clone(),
            schedule: self.config.noise.schedule(),
            ..ModelFile::default()
        }
    }

    fn fuser(&self, head: &BTreeMap<String, Tensor>) -> Result<Fuser, PublishError> {
        let head: Weights = head.clone().into_iter().collect();
        let model = DmFnet::new(self.frozen.unet.clone(), head, &self.model_file())?;
        Ok(Fuser::new(model, self.device.clone()))
    }
}

impl Task for Stage2<'_> {
    fn stage(&self) -> &'static str {
        "stage2"
    }

    fn graph(&self) -> Result<LossGraph, StepError> {
        let (steps, data) = (&self.config.head.time_steps, &self.config.data);
        let graph = loss_graph(&self.unet, &self.head, steps, &self.config.loss.config(), data.batch, data.crop)?;
        Ok(LossGraph { recompute: self.config.run.recompute, ..graph })
    }

    fn is_trained(&self, name: &str) -> bool {
        is_trained(name)
    }

    fn frozen(&self) -> &dyn ParamSource {
        &self.frozen
    }

    fn reports(&self) -> &'static [&'static str] {
        &REPORTS
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let mut noise = NoiseSource::numbered(self.config.run.seed, number);
        inputs(&self.batches.batch(number), &self.schedule, &self.config.head.time_steps, &mut noise)
    }

    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, PublishError> {
        sample_fused(folder, step, &self.data.validation, &self.fuser(weights)?)
    }

    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), PublishError> {
        let head: Weights = weights.into_iter().collect();
        head.save_safetensors(folder.join("head.safetensors"), StoreType::F32)?;
        self.frozen.unet.save_safetensors(folder.join("unet.safetensors"), StoreType::F32)?;
        Ok(self.model_file().save(folder)?)
    }
}
