//! The sections of a configuration: their values, what the file says above each, their ranges and what they make.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::diffusion::{ScheduleConfig, ScheduleKind};
use crate::models::lkc_funet as models;
use crate::models::lkc_funet::ValueRange;
use crate::models::unet::UnetConfig;
use crate::train::data::Sampling;
use crate::train::loss::{FusionLossConfig, FusionTarget};

/// Longest noise schedule.
const MAX_TIMESTEPS: usize = 100_000;

/// The texts above a section and its keys in the printed file.
#[derive(Debug)]
pub struct Docs {
    pub(super) about: &'static [&'static str],
    pub(super) keys: &'static [(&'static str, &'static [&'static str])],
}

/// A struct whose docstrings are also the comments of its TOML section.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: $type,)+
        }

        impl $name {
            pub(super) const DOCS: Docs =
                Docs { about: &[$($about),+], keys: &[$((stringify!($key), &[$($doc),+])),+] };
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }
    };
}

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

section! {
    /// How batches are drawn.
    Data {
        /// Side of the square crops in pixels.
        crop: usize = 160,
        /// Pairs a step. Stage I takes both images of each pair, so its batches have twice as many images.
        batch: usize = 1,
        /// Batches whose gradients are averaged before each update.
        accumulate: usize = 1,
        /// Whether each sample draws its modality first, all alike; false makes all pairs alike, as the reference has it.
        balanced: bool = true,
        /// Least share of a crop's pixels, 0 to 1, that are over 10 of 255 in either image. A crop with less is drawn again,
        /// twenty times at most. 0 takes every crop, as the reference does.
        min_content: f64 = 0.1,
        /// Probability that a crop is mirrored left to right.
        flip_horizontal: f64 = 0.5,
        /// Probability that a crop is mirrored top to bottom.
        flip_vertical: f64 = 0.5,
        /// Pairs of each modality that are held out to validate with; which they are depends on their names alone.
        val_pairs: usize = 4,
    }
}

section! {
    /// The update of the weights, as PyTorch's Adam and AdamW compute it.
    Optimiser {
        /// adam or adamw: where weight_decay acts, on the gradient or on the weight.
        kind: OptimiserKind = OptimiserKind::Adamw,
        /// Learning rate.
        lr: f64 = 1e-5,
        /// Decay of the mean of the gradients.
        beta1: f64 = 0.9,
        /// Decay of the mean of the squared gradients.
        beta2: f64 = 0.999,
        /// Added to the root of the mean of squares.
        eps: f64 = 1e-8,
        /// Weight decay.
        weight_decay: f64 = 0.01,
        /// Longest gradient, as the L2 norm over all parameters; a longer one is shortened to this. 0 leaves it as it is.
        clip: f64 = 0.0,
        /// Decay of the exponential moving average of the weights, which is what is saved as the model then. 0: no average.
        ema_decay: f64 = 0.0,
        /// First step whose weights the average takes up.
        ema_start: u64 = 0,
    }
}

section! {
    /// How the learning rate goes over the steps. The reference keeps it constant: its schedule is never stepped.
    Rate {
        /// constant, linear (to final_share at the last step), cosine (likewise) or step.
        kind: RateKind = RateKind::Constant,
        /// Steps over which the rate first rises linearly from 0.
        warmup: u64 = 0,
        /// For linear and cosine: the share of lr that is left at the last step.
        final_share: f64 = 0.0,
        /// For step: every so many steps the rate is multiplied by gamma.
        every: u64 = 100_000,
        /// For step: the factor.
        gamma: f64 = 0.1,
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

section! {
    /// The LKC-FUNet.
    LkcNet {
        /// Channels of the first convolution; the levels have four times as many.
        inner_channel: usize = 32,
        /// Groups of the norms in the residual blocks.
        norm_groups: usize = 32,
        /// Probability, 0 to 1, that a feature of a dense block, or the branch of a block with depthwise kernels, is dropped.
        dropout: f64 = 0.2,
        /// signed (-1 to 1) or unit (0 to 1): the range of the images, in and out. The reference trains signed and tests unit.
        range: ValueRange = ValueRange::Signed,
    }
}

section! {
    /// The weights of the parts of LKC-FUNet's loss.
    LkcLossWeights {
        /// Mean absolute difference to the brighter of both images.
        intensity: f64 = 1.0,
        /// Mean absolute difference of the Sobel gradients to the larger of both images'.
        gradient: f64 = 1.0,
        /// 1 - the mean of the SSIM to both images.
        ssim: f64 = 1.0,
        /// What the stronger gradients are multiplied by before the fused image's are held to them; over 1 sharpens.
        gradient_gain: f64 = 1.0,
        /// Share of the darker image, above black, that is added to the brighter one before the fused image is held to it.
        overlap: f64 = 0.0,
    }
}

section! {
    /// The length of the run and what it leaves behind.
    Run {
        /// Updates of the weights.
        steps: u64 = 1_000_000,
        /// Seed of the first weights, the crops, the noise and the dropout.
        seed: u64 = 0,
        /// Compute most of the forward pass again on the way back in place of keeping it: less memory, about a third more time.
        recompute: bool = false,
        /// A row of the log every so many steps, with the mean of the losses since the last.
        log_every: u64 = 200,
        /// Sample pictures and the validation pairs' figures every so many steps; 0: never.
        sample_every: u64 = 2000,
        /// A checkpoint every so many steps, and one at the end.
        checkpoint_every: u64 = 10_000,
    }
}

/// Which optimiser.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserKind {
    /// Weight decay is added to the gradient (Kingma and Ba 2015).
    Adam,
    /// Weight decay shrinks the weights themselves (Loshchilov and Hutter 2019).
    Adamw,
}

/// How the learning rate goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RateKind {
    /// It stays.
    Constant,
    /// It falls evenly.
    Linear,
    /// It falls by a factor every so many steps.
    Step,
    /// It falls as half a cosine.
    Cosine,
}

/// The error of a value out of range, unless it is in it.
pub(super) fn need(key: &'static str, in_range: bool, reason: impl Into<String>) -> Result<(), ConfigError> {
    if in_range { Ok(()) } else { Err(ConfigError::Value { key, reason: reason.into() }) }
}

fn share(key: &'static str, value: f64) -> Result<(), ConfigError> {
    need(key, (0.0..=1.0).contains(&value), format!("must be from 0 to 1, not {value}"))
}

/// From 0 up to but not 1.
fn decay(key: &'static str, value: f64) -> Result<(), ConfigError> {
    need(key, (0.0..1.0).contains(&value), format!("must be at least 0 and less than 1, not {value}"))
}

fn positive(key: &'static str, value: f64) -> Result<(), ConfigError> {
    need(key, value > 0.0 && value.is_finite(), format!("must be more than 0, not {value}"))
}

fn not_negative(key: &'static str, value: f64) -> Result<(), ConfigError> {
    need(key, value >= 0.0 && value.is_finite(), format!("must be 0 or more, not {value}"))
}

/// What both losses have: the weights of intensity, gradient and similarity, the gain of the gradients and the overlap.
struct LossParts([f64; 5]);

impl LossParts {
    fn check(self) -> Result<(), ConfigError> {
        let Self([intensity, gradient, ssim, gradient_gain, overlap]) = self;
        not_negative("loss.intensity", intensity)?;
        not_negative("loss.gradient", gradient)?;
        not_negative("loss.ssim", ssim)?;
        need("loss.intensity", intensity + gradient + ssim > 0.0, "and the other weights are all 0")?;
        positive("loss.gradient_gain", gradient_gain)?;
        share("loss.overlap", overlap)
    }

    /// What a loss of images in `range` is made by.
    fn config(self, range: ValueRange) -> FusionLossConfig {
        let [intensity, gradient, ssim, gradient_gain, overlap] = self.0.map(|value| value as f32);
        let [scale, shift] = range.from_signed();
        let target = FusionTarget { overlap, gradient_gain, range: [shift - scale, shift + scale] };
        FusionLossConfig { intensity, gradient, ssim, target, ..FusionLossConfig::default() }
    }
}

fn at_least_one(key: &'static str, value: u64) -> Result<(), ConfigError> {
    need(key, value > 0, "must be at least 1")
}

impl Unet {
    /// The network's size: of one channel in and out.
    pub fn size(&self) -> UnetConfig {
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

    pub(super) fn check(&self) -> Result<(), ConfigError> {
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

impl Head {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let steps = &self.time_steps;
        let distinct = (1..steps.len()).all(|i| !steps[..i].contains(&steps[i]));
        // With a single step the head's merging blocks would be part of the model and never trained.
        need("head.time_steps", steps.len() > 1 && distinct, "must be two or more noise steps, none of them twice")?;
        need("head.norm_groups", self.norm_groups > 0, "must be at least 1")?;
        need("head.decode_channels", (1..=4096).contains(&self.decode_channels), "must be from 1 to 4096")
    }
}

impl Noise {
    /// The schedule's configuration.
    pub fn schedule(&self) -> ScheduleConfig {
        let Self { schedule: kind, n_timestep, linear_start, linear_end } = *self;
        ScheduleConfig { kind, n_timestep, linear_start, linear_end }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let steps = (1..=MAX_TIMESTEPS).contains(&self.n_timestep);
        need("noise.n_timestep", steps, format!("must be from 1 to {MAX_TIMESTEPS}"))?;
        decay("noise.linear_start", self.linear_start)?;
        decay("noise.linear_end", self.linear_end)
    }
}

impl Data {
    /// How batches are drawn.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            crop: self.crop,
            batch: self.batch,
            balanced: self.balanced,
            min_content: self.min_content,
            flip_horizontal: self.flip_horizontal,
            flip_vertical: self.flip_vertical,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        need("data.crop", (1..=4096).contains(&self.crop), "must be from 1 to 4096 pixels")?;
        need("data.batch", (1..=1024).contains(&self.batch), "must be from 1 to 1024")?;
        need("data.accumulate", (1..=4096).contains(&self.accumulate), "must be from 1 to 4096")?;
        share("data.min_content", self.min_content)?;
        share("data.flip_horizontal", self.flip_horizontal)?;
        share("data.flip_vertical", self.flip_vertical)
    }
}

impl Optimiser {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        positive("optimiser.lr", self.lr)?;
        decay("optimiser.beta1", self.beta1)?;
        decay("optimiser.beta2", self.beta2)?;
        positive("optimiser.eps", self.eps)?;
        not_negative("optimiser.weight_decay", self.weight_decay)?;
        not_negative("optimiser.clip", self.clip)?;
        decay("optimiser.ema_decay", self.ema_decay)
    }
}

impl Rate {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        share("rate.final_share", self.final_share)?;
        at_least_one("rate.every", self.every)?;
        share("rate.gamma", self.gamma)
    }
}

impl LossWeights {
    fn parts(&self) -> LossParts {
        LossParts([self.intensity, self.gradient, self.ssim, self.gradient_gain, self.overlap])
    }

    /// What the loss is made by.
    pub fn config(&self) -> FusionLossConfig {
        FusionLossConfig { nan_switch: self.nan_switch, ..self.parts().config(ValueRange::Signed) }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.parts().check()
    }
}

impl LkcNet {
    /// The network's size, of the published one's kernels and blocks.
    pub fn size(&self) -> models::LkcConfig {
        let Self { inner_channel, norm_groups, .. } = *self;
        models::LkcConfig { inner_channel, norm_groups, ..models::LkcConfig::published() }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let (channels, groups) = (self.inner_channel, self.norm_groups);
        need("net.norm_groups", (1..=1024).contains(&groups), "must be from 1 to 1024")?;
        // The channel attention has an eighth of the levels' channels, the last block's norm five times as many as the first.
        let fits = (2..=1024).contains(&channels) && channels.is_multiple_of(2) && channels.is_multiple_of(groups);
        need("net.inner_channel", fits, format!("must be even, a multiple of norm_groups ({groups}), at most 1024"))?;
        decay("net.dropout", self.dropout)
    }
}

impl LkcLossWeights {
    fn parts(&self) -> LossParts {
        LossParts([self.intensity, self.gradient, self.ssim, self.gradient_gain, self.overlap])
    }

    /// What the loss is made by, of images in `range`.
    pub fn config(&self, range: ValueRange) -> FusionLossConfig {
        self.parts().config(range)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.parts().check()
    }
}

impl Run {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one("run.steps", self.steps)?;
        need("run.seed", i64::try_from(self.seed).is_ok(), "must be less than 2^63")?;
        at_least_one("run.log_every", self.log_every)?;
        at_least_one("run.checkpoint_every", self.checkpoint_every)
    }
}
