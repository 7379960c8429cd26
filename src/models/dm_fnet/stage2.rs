//! Stage II of DM-FNet: the fusion head learns to fuse by the frozen UNet's features of noisy images (`Fusion_model.py`
//! of the reference).

use std::collections::BTreeMap;
use std::path::Path;

use super::fusion_head::{HeadConfig, MIN_COARSE_SIDE};
use super::stage1::Noise;
use super::unet::UnetConfig;
use super::{DmFnet, Fuser, MODALITIES, ModelFile, dm_fnet, read_model_file};
use crate::device::{Device, ParamSource};
use crate::diffusion::{NoiseSchedule, NoiseSource, ScheduleKind, q_sample};
use crate::files::folder_of;
use crate::graph::{Graph, GraphError, NodeId};
use crate::hash::fnv1a;
use crate::models::training::config::{Sections, TrainingConfig, configuration, need, section};
use crate::models::training::data::{Batch, Batches, Dataset};
use crate::models::training::loss::{FusionLossConfig, constants, structure_ssim};
use crate::models::training::samples::{Figures, sample_fused};
use crate::models::training::sections::{Data, LossParts, Optimiser, OptimiserKind, Rate, Run};
use crate::models::training::{LossGraph, TaskError, TaskInputs, TrainTask, Training, TrainingError, TrainingFile};
use crate::ops::pointwise::Pointwise;
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights};

/// Stage II as `medfuse train` offers it.
pub(crate) const TRAINING: Training = Training {
    name: NAME,
    about: "Train the fusion head on the features of a UNet of stage1, which stays as it is",
    files: &[TrainingFile { name: "unet", about: "The UNet's weights (.safetensors or .pth)" }],
    config: || Box::new(Stage2Config::default()),
};

const NAME: &str = "stage2";

section! {
    /// What of the networks a UNet's checkpoint does not say.
    Head {
        /// Groups of the UNet's norms.
        norm_groups: usize = 32,
        /// Noise steps at which the frozen UNet's features are taken.
        time_steps: Vec<usize> = vec![5, 10, 20],
        /// Channels between the head's last two convolutions.
        decode_channels: usize = 64,
    }
}

impl Head {
    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        let steps = &self.time_steps;
        let distinct = (1..steps.len()).all(|i| !steps[..i].contains(&steps[i]));
        // With a single step the head's merging blocks would be part of the model and never trained.
        need("head.time_steps", steps.len() > 1 && distinct, "must be two or more noise steps, none of them twice")?;
        need("head.norm_groups", self.norm_groups > 0, "must be at least 1")?;
        need("head.decode_channels", (1..=4096).contains(&self.decode_channels), "must be from 1 to 4096")
    }
}

section! {
    /// The weights of the parts of stage II's loss.
    LossWeights {
        /// Mean absolute difference to the brighter of both images.
        intensity: f64 = 1.5,
        /// Mean absolute difference of the Sobel gradients to the larger of both images'.
        gradient: f64 = 1.0,
        /// 1 - SSIM, at each pixel to the image that deviates more there.
        ssim: f64 = 0.5,
        /// Whether flat pixels, where rounding makes a variance negative, take the other image's structure, as they do in
        /// the reference by way of NaN.
        nan_switch: bool = true,
        /// What the stronger gradients are multiplied by before the fused image's are held to them; over 1 sharpens.
        gradient_gain: f64 = 1.0,
        /// Share of the darker image, above black, that is added to the brighter one before the fused image is held to it.
        overlap: f64 = 0.0,
    }
}

impl LossWeights {
    fn parts(&self) -> LossParts {
        LossParts([self.intensity, self.gradient, self.ssim, self.gradient_gain, self.overlap])
    }

    /// What the loss is made by.
    pub(crate) fn config(&self) -> FusionLossConfig {
        FusionLossConfig { nan_switch: self.nan_switch, ..self.parts().config([-1.0, 1.0]) }
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        self.parts().check()
    }
}

configuration! {
    /// Stage II: the head learns to fuse the frozen UNet's features. The reference runs 300 epochs of one pair a step, which
    /// is the default number of steps for 715 pairs.
    Stage2Config {
        /// The networks.
        head: Head = Head::default(),
        /// The noise schedule.
        noise: Noise = Noise { schedule: ScheduleKind::Linear, ..Noise::default() },
        /// The loss.
        loss: LossWeights = LossWeights::default(),
        /// The batches.
        data: Data = Data::default(),
        /// The update.
        optimiser: Optimiser =
            Optimiser { kind: OptimiserKind::Adam, lr: 1e-4, weight_decay: 0.0, ..Optimiser::default() },
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run { steps: 214_500, log_every: 60, checkpoint_every: 2000, ..Run::default() },
    }
}

impl TrainingConfig for Stage2Config {
    fn check(&self) -> Result<(), TrainingError> {
        self.check_sections()?;
        let last = self.noise.n_timestep;
        let on_schedule = self.head.time_steps.iter().all(|t| (1..=last).contains(t));
        need("head.time_steps", on_schedule, format!("must be from 1 to noise.n_timestep ({last})"))
    }

    fn task<'a>(&'a self, inputs: TaskInputs<'a>) -> Result<Box<dyn TrainTask + 'a>, TaskError> {
        let none = "stage2 trains on the features of a UNet: --unet must name its weights";
        let unet = inputs.files.first().ok_or_else(|| TrainingError::Unusable(none.into()))?;
        Ok(Box::new(Stage2::new(self, unet, inputs.data, inputs.device)?))
    }
}

/// The nodes of the fusion loss, each `[1, 1, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusionLoss {
    /// The sum of the weighted parts.
    pub total: NodeId,
    /// The weighted distance to the brighter source (`loss_in`).
    pub intensity: NodeId,
    /// The weighted distance of the edges and lack of similarity (`loss_grad`).
    pub gradient: NodeId,
    /// The distance of the edges itself.
    pub edges: NodeId,
    /// The similarity itself.
    pub ssim: NodeId,
}

/// Stage II's loss: images `[n, 1, h, w]` in [-1, 1].
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn fusion_loss(
    g: &mut Graph,
    cfg: &FusionLossConfig,
    fused: NodeId,
    mri: NodeId,
    other: NodeId,
) -> Result<FusionLoss, GraphError> {
    let distance = cfg.target.intensity_distance(g, [fused, mri, other])?;
    let intensity = g.apply("intensity", Pointwise::build(|[x]| x.affine(cfg.intensity, 0.0)), &[distance])?;
    let edges = cfg.target.edge_distance(g, [fused, mri, other])?;
    let ssim = structure_ssim(g, fused, mri, other, cfg.nan_switch)?;
    let weighted = Pointwise::build(|[edges, ssim]| edges.affine(cfg.gradient, 0.0) + ssim.affine(-cfg.ssim, cfg.ssim));
    let gradient = g.apply("gradient", weighted, &[edges, ssim])?;
    let total = g.apply("total", Pointwise::add(), &[intensity, gradient])?;
    Ok(FusionLoss { total, intensity, gradient, edges, ssim })
}

/// Names of the loss's parts, in the order of the graph's reports.
pub(crate) const REPORTS: [&str; 3] = ["loss_intensity", "loss_gradient", "ssim"];

/// The head's loss on a batch of pairs of `side` x `side`. Inputs: those of [`dm_fnet`], and the images `mri` and `other`
/// `[n, 1, side, side]`.
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of the UNet's or too small.
pub(crate) fn loss_graph(
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
pub(crate) fn is_trained(name: &str) -> bool {
    ["decoder.", "rgb_decode1.", "rgb_decode2."].iter().any(|prefix| name.starts_with(prefix))
}

/// The graph's inputs for a batch of pairs: each image at each noise step, with a level and noise of its own.
pub(crate) fn inputs(
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

/// The hash of a UNet's file. Fails if the `model.json` beside it says another number of groups than is `wanted`.
fn check_unet_file(unet: &Path, wanted: usize) -> Result<u64, TrainingError> {
    let bytes = std::fs::read(unet).map_err(|reason| TrainingError::Read { path: unet.into(), reason })?;
    let file = folder_of(unet).join("model.json");
    if file.exists() {
        let found = read_model_file(&folder_of(unet))?.norm_groups;
        if found != wanted {
            let file = file.display();
            return Err(TrainingError::Unusable(format!(
                "{file} says norm_groups {found}, the configuration {wanted}: set head.norm_groups = {found}"
            )));
        }
    }
    Ok(fnv1a(&bytes))
}

fn unusable(reason: impl std::fmt::Display) -> TrainingError {
    TrainingError::Unusable(format!("the UNet's weights cannot be used: {reason}"))
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
pub(crate) struct Stage2<'a> {
    config: &'a Stage2Config,
    data: &'a Dataset,
    device: &'a Device,
    batches: Batches<'a>,
    schedule: NoiseSchedule,
    unet: UnetConfig,
    head: HeadConfig,
    frozen: Frozen,
    /// Hash of the UNet's file.
    unet_hash: u64,
}

impl<'a> Stage2<'a> {
    /// The run on the data set's training pairs and the features of the UNet in the file `unet`; `device` is where it
    /// validates.
    ///
    /// # Errors
    /// [`TrainingError`] if the pairs, the UNet's weights or the crop cannot be used.
    pub(crate) fn new(
        config: &'a Stage2Config,
        unet: &Path,
        data: &'a Dataset,
        device: &'a Device,
    ) -> Result<Self, TrainingError> {
        let unet_hash = check_unet_file(unet, config.head.norm_groups)?;
        let unet = Weights::load(unet)?;
        let batches = Batches::new(&data.train, config.data.sampling(), config.run.seed)?;
        let size = UnetConfig::from_weights(&unet, config.head.norm_groups);
        let size = size.map_err(unusable)?;
        unet.check_finite().map_err(unusable)?;
        let (crop, multiple) = (config.data.crop, size.multiple());
        let least = multiple * MIN_COARSE_SIDE;
        if crop < least || !crop.is_multiple_of(multiple) {
            return Err(TrainingError::Unusable(format!(
                "data.crop must be a multiple of {multiple} and at least {least} for this UNet, not {crop}"
            )));
        }
        let head = HeadConfig {
            dims: size.channel_mults.iter().rev().map(|m| m * size.inner_channel).collect(),
            time_steps: config.head.time_steps.len(),
            decode_channels: config.head.decode_channels,
            out_channels: 1,
        };
        let schedule = NoiseSchedule::new(&config.noise.schedule());
        let frozen = Frozen { unet, constants: constants() };
        let this = Self { config, data, device, batches, schedule, unet: size, head, frozen, unet_hash };
        this.check_model()?;
        Ok(this)
    }

    /// Fails if the UNet with a head of this size is not a model that can be loaded, before it is trained for hours.
    fn check_model(&self) -> Result<(), TrainingError> {
        if self.unet.in_channel != 1 {
            return Err(unusable(format!("it takes images of {} channels, pairs have 1", self.unet.in_channel)));
        }
        let graph = self.graph().map_err(unusable)?.graph;
        let head = graph.params().iter().filter(|(name, _)| is_trained(name));
        let head = head.map(|(name, id)| (name.clone(), Tensor::zeros(graph.shape(*id).0)));
        self.fuser(&head.collect()).map_err(unusable)?;
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

    fn fuser(&self, head: &BTreeMap<String, Tensor>) -> Result<Fuser, TaskError> {
        let head: Weights = head.clone().into_iter().collect();
        let model = DmFnet::new(self.frozen.unet.clone(), head, &self.model_file())?;
        Ok(Fuser::new(model, self.device.clone()))
    }
}

impl TrainTask for Stage2<'_> {
    fn stage(&self) -> &'static str {
        NAME
    }

    fn graph(&self) -> Result<LossGraph, GraphError> {
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

    fn identity(&self) -> String {
        // Another UNet's features would pass for this one's after a resume: the shapes are the same.
        format!("unet = {:016x}\n", self.unet_hash)
    }

    fn reports(&self) -> &'static [&'static str] {
        &REPORTS
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let mut noise = NoiseSource::numbered(self.config.run.seed, number);
        inputs(&self.batches.batch(number), &self.schedule, &self.config.head.time_steps, &mut noise)
    }

    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, TaskError> {
        sample_fused(folder, step, &self.data.validation, &self.fuser(weights)?)
    }

    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), TaskError> {
        let head: Weights = weights.into_iter().collect();
        head.save_safetensors(folder.join("head.safetensors"), StoreType::F32)?;
        self.frozen.unet.save_safetensors(folder.join("unet.safetensors"), StoreType::F32)?;
        Ok(self.model_file().save(folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::ScheduleConfig;
    use crate::models::dm_fnet::stage1::Stage1Config;

    #[test]
    fn the_defaults_are_the_references() {
        let (one, two) = (Stage1Config::default(), Stage2Config::default());
        assert_eq!(one.unet.size(), UnetConfig::published());
        assert_eq!(two.noise.schedule(), ScheduleConfig::default());
        assert_eq!(two.loss.config(), FusionLossConfig::default());
        let of = |o: &Optimiser| (o.kind, o.lr, o.weight_decay);
        assert_eq!(of(&one.optimiser), (OptimiserKind::Adamw, 1e-5, 0.01));
        assert_eq!(of(&two.optimiser), (OptimiserKind::Adam, 1e-4, 0.0));
    }
}
