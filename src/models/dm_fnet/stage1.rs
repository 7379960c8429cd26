//! Stage I of DM-FNet: the diffusion UNet learns to predict x_0 from x_t (`train_ddpm.py`, `p_losses` of the reference).

use std::collections::BTreeMap;
use std::path::Path;

use super::denoiser::Denoiser;
use super::unet::{UnetConfig, unet_with_dropout};
use super::{MAX_TIMESTEPS, ModelFile};
use crate::device::{Device, ParamSource};
use crate::diffusion::{NoiseSchedule, NoiseSource, ScheduleConfig, ScheduleKind, q_sample, q_sample_batch};
use crate::graph::{Graph, GraphError};
use crate::imaging::Image;
use crate::models::blocks::DropoutSeed;
use crate::models::training::config::{Sections, TrainingConfig, configuration, decay, need, section};
use crate::models::training::data::{Batches, Dataset, check_sizes};
use crate::models::training::loss::mse;
use crate::models::training::samples::{Figures, save_strip};
use crate::models::training::sections::{Data, Optimiser, Rate, Run};
use crate::models::training::{LossGraph, TaskError, TaskInputs, TrainTask, Training, TrainingError};
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights};

/// Stage I as `medfuse train` offers it.
pub(crate) const TRAINING: Training = Training {
    name: NAME,
    about: "Train the diffusion UNet: it predicts an image from a noisy one",
    files: &[],
    config: || Box::new(Stage1Config::default()),
};

const NAME: &str = "stage1";

section! {
    /// The UNet that stage I trains.
    Unet {
        /// Channels of the first level.
        inner_channel: usize = 128,
        /// Channels of each level, as multiples of the first. The sides of an image must be multiples of 2^(levels - 1).
        channel_mults: Vec<usize> = vec![1, 1, 1, 1, 2],
        /// Residual blocks of each level on the way down; one more on the way up.
        res_blocks: usize = 2,
        /// Groups of the norms.
        norm_groups: usize = 32,
        /// Side of the images by which attn_res picks levels; it changes nothing else.
        image_size: usize = 160,
        /// A level has self-attention if image_size, halved at each level, is among these there.
        /// The middle always has it; the published network has it nowhere else.
        attn_res: Vec<usize> = vec![16],
        /// Probability that a feature is dropped, 0 to 1, in the second half of each residual block.
        dropout: f64 = 0.2,
    }
}

impl Unet {
    /// The network's size: of one channel in and out.
    pub(crate) fn size(&self) -> UnetConfig {
        let attends = |level: usize| {
            self.attn_res.iter().any(|&side| self.image_size >> level == side && side << level == self.image_size)
        };
        UnetConfig {
            in_channel: 1,
            out_channel: 1,
            inner_channel: self.inner_channel,
            norm_groups: self.norm_groups,
            channel_mults: self.channel_mults.clone(),
            res_blocks: self.res_blocks,
            attention: (0..self.channel_mults.len()).map(attends).collect(),
        }
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        let (channels, groups) = (self.inner_channel, self.norm_groups);
        need("unet.norm_groups", (1..=1024).contains(&groups), "must be from 1 to 1024")?;
        let even = channels > 0 && channels.is_multiple_of(2) && channels.is_multiple_of(groups) && channels <= 4096;
        need("unet.inner_channel", even, format!("must be even, a multiple of norm_groups ({groups}), at most 4096"))?;
        let levels = self.channel_mults.len();
        let mults = (1..=10).contains(&levels) && self.channel_mults.iter().all(|m| (1..=64).contains(m));
        need("unet.channel_mults", mults, "must be one to ten numbers from 1 to 64")?;
        need("unet.res_blocks", (1..=16).contains(&self.res_blocks), "must be from 1 to 16")?;
        decay("unet.dropout", self.dropout)
    }
}

section! {
    /// The noise schedule of the diffusion. The published networks are trained with cosine in stage I and fuse with linear.
    Noise {
        /// linear, quad, const, jsd, warmup10, warmup50 or cosine.
        schedule: ScheduleKind = ScheduleKind::Cosine,
        /// Number of noise steps.
        n_timestep: usize = 2000,
        /// First variance; cosine and jsd do not use it.
        linear_start: f64 = 1e-6,
        /// Last variance; cosine and jsd do not use it.
        linear_end: f64 = 1e-2,
    }
}

impl Noise {
    /// The schedule's configuration.
    pub(crate) fn schedule(&self) -> ScheduleConfig {
        let Self { schedule: kind, n_timestep, linear_start, linear_end } = *self;
        ScheduleConfig { kind, n_timestep, linear_start, linear_end }
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        let steps = (1..=MAX_TIMESTEPS).contains(&self.n_timestep);
        need("noise.n_timestep", steps, format!("must be from 1 to {MAX_TIMESTEPS}"))?;
        decay("noise.linear_start", self.linear_start)?;
        decay("noise.linear_end", self.linear_end)
    }
}

configuration! {
    /// Stage I: the UNet learns to tell images from noisy ones.
    Stage1Config {
        /// The network.
        unet: Unet = Unet::default(),
        /// The noise schedule.
        noise: Noise = Noise::default(),
        /// The batches.
        data: Data = Data::default(),
        /// The update.
        optimiser: Optimiser = Optimiser::default(),
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run::default(),
    }
}

impl TrainingConfig for Stage1Config {
    fn check(&self) -> Result<(), TrainingError> {
        self.check_sections()?;
        let multiple = self.unet.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the UNet halves it at each level");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)
    }

    fn task<'a>(&'a self, inputs: TaskInputs<'a>) -> Result<Box<dyn TrainTask + 'a>, TaskError> {
        Ok(Box::new(Stage1::new(self, inputs.data, inputs.device)?))
    }
}

/// The UNet's loss on a batch of images `[n, in_channel, side, side]`. Inputs: `x_0`, `x_t`, `level` `[n, 1, 1, 1]` and,
/// with `dropout`, its seed `dropout` `[1, 2, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of [`UnetConfig::multiple`].
pub(crate) fn loss_graph(
    config: &UnetConfig,
    dropout: f32,
    batch: usize,
    side: usize,
) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let image = Shape::new(batch, config.in_channel, side, side);
    let x_0 = graph.input("x_0", image);
    let x_t = graph.input("x_t", image);
    let level = graph.input("level", Shape::new(batch, 1, 1, 1));
    let dropout = DropoutSeed::input(&mut graph, dropout);
    let prediction = unet_with_dropout(&mut graph, config, x_t, level, dropout)?.x_final;
    let loss = mse(&mut graph, prediction, x_0)?;
    Ok(LossGraph { graph, loss, reports: Vec::new(), recompute: false })
}

/// Whether a weight is the UNet's.
pub(crate) fn is_trained(name: &str) -> bool {
    name.starts_with("denoise_fn.")
}

/// The graph's inputs for `images`, `[n, ...]`: one step of the schedule for all of them, and for each a level between
/// it and the step before, and its noise.
pub(crate) fn inputs(images: &Tensor, schedule: &NoiseSchedule, noise: &mut NoiseSource) -> BTreeMap<String, Vec<f32>> {
    let count = images.dims()[0];
    let t = noise.step(schedule);
    let levels: Vec<f32> = (0..count).map(|_| noise.level(schedule, t)).collect();
    let x_t = q_sample_batch(images.data(), &levels, &noise.normal(images.data().len()));
    BTreeMap::from([("x_t".to_owned(), x_t), ("x_0".to_owned(), images.data().to_vec()), ("level".to_owned(), levels)])
}

/// Noise steps of the validation, as shares of the schedule: from what fusion uses to nearly nothing but noise.
const SHARES: [f64; 4] = [0.01, 0.1, 0.35, 0.7];
/// Seed of the validation's noise, which is the same every time.
const VALIDATION_SEED: u64 = 0x5eed;

/// The run of stage I on a data set.
#[derive(Debug)]
pub(crate) struct Stage1<'a> {
    config: &'a Stage1Config,
    data: &'a Dataset,
    device: &'a Device,
    batches: Batches<'a>,
    schedule: NoiseSchedule,
    /// The graph reads no weights but those that are trained.
    nothing: BTreeMap<String, Tensor>,
}

impl<'a> Stage1<'a> {
    /// The run on the data set's training pairs; `device` is where it validates.
    ///
    /// # Errors
    /// [`TrainingError`] if there are none or they are smaller than the crop.
    pub(crate) fn new(config: &'a Stage1Config, data: &'a Dataset, device: &'a Device) -> Result<Self, TrainingError> {
        // These are cut to the crop's size as well.
        check_sizes(&data.validation, config.data.crop)?;
        Ok(Self {
            config,
            data,
            device,
            batches: Batches::new(&data.train, config.data.sampling(), config.run.seed)?,
            schedule: NoiseSchedule::new(&config.noise.schedule()),
            nothing: BTreeMap::new(),
        })
    }

    /// The mean squared error on both images of each validation pair at each of the validation's steps, and a strip of
    /// one image: itself, and how it is noisy and predicted at each step.
    fn validate(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<f64, TaskError> {
        let side = self.config.data.crop;
        let one = Shape::new(1, 1, side, side);
        let denoiser = Denoiser::new(&self.config.unet.size(), weights, self.device, one)?;
        let (mut total, mut count) = (0.0, 0usize);
        let mut strip: Vec<(String, Image)> = Vec::new();
        for (i, pair) in self.data.validation.iter().enumerate() {
            for (j, x_0) in pair.cut(pair.centre(side)).iter().enumerate() {
                let mut noise = NoiseSource::numbered(VALIDATION_SEED, (2 * i + j) as u64);
                for share in SHARES {
                    let t = ((self.schedule.len() as f64 * share) as usize).max(1);
                    let level = noise.level(&self.schedule, t);
                    let x_t = q_sample(x_0, level, &noise.normal(x_0.len()));
                    let found = denoiser.predict(&x_t, level)?;
                    total += found.iter().zip(x_0).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                    count += x_0.len();
                    if (i, j) == (0, 0) {
                        strip.push((format!("t={t}"), Image::from_plane(side, side, &x_t)?));
                        strip.push(("predicted".to_owned(), Image::from_plane(side, side, &found)?));
                    }
                }
            }
        }
        save_strip(folder, step, &strip)?;
        Ok(total / count as f64)
    }
}

impl TrainTask for Stage1<'_> {
    fn stage(&self) -> &'static str {
        NAME
    }

    fn graph(&self) -> Result<LossGraph, GraphError> {
        let Stage1Config { unet, data, run, .. } = self.config;
        let graph = loss_graph(&unet.size(), unet.dropout as f32, 2 * data.batch, data.crop)?;
        Ok(LossGraph { recompute: run.recompute, ..graph })
    }

    fn is_trained(&self, name: &str) -> bool {
        is_trained(name)
    }

    fn frozen(&self) -> &dyn ParamSource {
        &self.nothing
    }

    fn reports(&self) -> &'static [&'static str] {
        &[]
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let mut noise = NoiseSource::numbered(self.config.run.seed, number);
        let mut inputs = inputs(&self.batches.batch(number).images(), &self.schedule, &mut noise);
        inputs.insert("dropout".to_owned(), DropoutSeed::values(self.config.run.seed, number));
        inputs
    }

    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, TaskError> {
        if self.data.validation.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![("loss".to_owned(), self.validate(folder, weights, step)?)])
    }

    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), TaskError> {
        let mut model: Weights = weights.into_iter().collect();
        for (name, buffer) in self.schedule.buffers() {
            model.insert(name, Tensor::new([buffer.len()], buffer));
        }
        model.save_safetensors(folder.join("unet.safetensors"), StoreType::F32)?;
        let (norm_groups, schedule) = (self.config.unet.norm_groups, self.config.noise.schedule());
        let file = ModelFile { norm_groups, schedule, ..ModelFile::default() };
        Ok(file.save(folder)?)
    }
}
