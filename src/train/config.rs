//! What a training run is configured by: a TOML file's worth of values, those of the reference by default.
//!
//! The reference's values are those of `config/ddpm_train_MMIF.json` (stage I), `config/fusion_train.json` (stage II),
//! LKC-FUNet's `train.py`, and PyTorch's own for what these leave out.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::data::Sampling;
use super::loss::FusionLossConfig;
use crate::diffusion::{ScheduleConfig, ScheduleKind};
use crate::models::lkc_funet as models;
use crate::models::lkc_funet::ValueRange;
use crate::models::unet::UnetConfig;

/// Longest noise schedule.
const MAX_TIMESTEPS: usize = 100_000;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    /// A key that no configuration of this stage has.
    #[error("the configuration has no key {key}; it has {}", known.join(", "))]
    Unknown {
        /// The key with its section.
        key: String,
        /// The keys at that place.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("a value of the configuration is of the wrong kind: {0}")]
    Type(String),
    /// A value out of range.
    #[error("{key} {reason}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
}

/// The texts above a section and its keys in the printed file.
#[derive(Debug)]
pub struct Docs {
    about: &'static [&'static str],
    keys: &'static [(&'static str, &'static [&'static str])],
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
            const DOCS: Docs =
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

/// The sections that all stages have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The batches.
    pub data: &'a Data,
    /// The update.
    pub optimiser: &'a Optimiser,
    /// The learning rate's schedule.
    pub rate: &'a Rate,
    /// The run.
    pub run: &'a Run,
}

/// The configuration of one stage: its sections, their texts and their ranges.
pub trait Stage: Serialize + DeserializeOwned + Default {
    /// The sections' names and texts.
    const SECTIONS: &'static [(&'static str, Docs)];

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key and says what it must be.
    fn check(&self) -> Result<(), ConfigError>;

    /// The sections that all stages have.
    fn common(&self) -> Common<'_>;

    /// What a resumed run must share with its first part, a line `section.key = value` each: all but how long it is and what
    /// it writes when, unless the learning rate's course depends on the length.
    ///
    /// # Errors
    /// [`ConfigError::Type`] if a number is larger than TOML's, 2^63 - 1.
    fn settings(&self) -> Result<String, ConfigError> {
        let table = Table::try_from(self).map_err(|e| ConfigError::Type(e.to_string()))?;
        let sections = table.iter().filter_map(|(name, section)| Some((name, section.as_table()?)));
        let lines = sections.flat_map(|(name, section)| section.iter().map(move |(k, v)| (format!("{name}.{k}"), v)));
        let by_length = matches!(self.common().rate.kind, RateKind::Linear | RateKind::Cosine);
        let shared = |key: &str| match key {
            "run.seed" => true,
            "run.steps" => by_length,
            _ => !key.starts_with("run."),
        };
        Ok(lines.filter(|(key, _)| shared(key)).map(|(key, value)| format!("{key} = {value}\n")).collect())
    }

    /// The configuration of a TOML text; what it leaves out is the default. Ranges are [`Stage::check`]'s.
    ///
    /// # Errors
    /// [`ConfigError`] if the text is not TOML, or has an unknown key or a value of the wrong kind.
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let given: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
        let of_type = |e: &dyn std::fmt::Display| ConfigError::Type(e.to_string().trim_end().replace('\n', " "));
        let mut all = Table::try_from(Self::default()).map_err(|e| of_type(&e))?;
        merge(&mut all, given, "")?;
        all.try_into().map_err(|e| of_type(&e))
    }

    /// The configuration of a TOML file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], and those of [`Stage::parse`].
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.map_err(|source| ConfigError::Read { path: path.into(), source })?)
    }

    /// The configuration as TOML with a comment above every section and key.
    ///
    /// # Errors
    /// [`ConfigError::Type`] if a number is larger than TOML's, 2^63 - 1.
    fn to_commented_toml(&self) -> Result<String, ConfigError> {
        let plain = toml::to_string(self).map_err(|e| ConfigError::Type(e.to_string()))?;
        let (mut text, mut section) = (String::new(), None);
        for line in plain.lines() {
            let comments: &[&str] = if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = Self::SECTIONS.iter().find(|(n, _)| *n == name).map(|(_, docs)| docs);
                section.map_or(&[], |docs| docs.about)
            } else {
                let key = line.split(" = ").next();
                let of_key = section.and_then(|docs| docs.keys.iter().find(|(k, _)| Some(*k) == key));
                of_key.map_or(&[], |(_, comments)| comments)
            };
            comments.iter().for_each(|comment| text.push_str(&format!("#{comment}\n")));
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    }
}

/// Puts the values of `given` in the place of those of `all`, table by table.
fn merge(all: &mut Table, given: Table, path: &str) -> Result<(), ConfigError> {
    for (name, value) in given {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (all.get_mut(&name), value) {
            (None, _) => return Err(ConfigError::Unknown { key, known: all.keys().cloned().collect() }),
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new, &key)?,
            (Some(Value::Table(_)), _) => return Err(ConfigError::Type(format!("{key} is a section, not a value"))),
            (Some(old), new) => *old = new,
        }
    }
    Ok(())
}

/// A stage's struct with its sections, each with what differs from the section's default.
macro_rules! stage {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $section:ident: $type:ident = $default:expr,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $section: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($section: $default,)+ }
            }
        }

        impl Stage for $name {
            const SECTIONS: &'static [(&'static str, Docs)] = &[$((stringify!($section), $type::DOCS)),+];

            fn common(&self) -> Common<'_> {
                Common { data: &self.data, optimiser: &self.optimiser, rate: &self.rate, run: &self.run }
            }

            fn check(&self) -> Result<(), ConfigError> {
                $(self.$section.check()?;)+
                self.check_together()
            }
        }
    };
}

stage! {
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

stage! {
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

stage! {
    /// LKC-FUNet. The reference runs 1,000 epochs, 22 steps each for 715 pairs.
    LkcConfig {
        /// The network.
        net: LkcNet = LkcNet::default(),
        /// The loss.
        loss: LkcLossWeights = LkcLossWeights::default(),
        /// The batches.
        data: Data = Data { crop: 64, batch: 32, ..Data::default() },
        /// The update.
        optimiser: Optimiser =
            Optimiser { kind: OptimiserKind::Adam, lr: 2e-4, weight_decay: 0.0, ..Optimiser::default() },
        /// The learning rate's schedule.
        rate: Rate = Rate::default(),
        /// The run.
        run: Run = Run { steps: 22_000, log_every: 20, sample_every: 1000, checkpoint_every: 200, ..Run::default() },
    }
}

/// The error of a value out of range, unless it is in it.
fn need(key: &'static str, in_range: bool, reason: impl Into<String>) -> Result<(), ConfigError> {
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

/// The weights of a loss's parts.
fn loss_weights([intensity, gradient, ssim]: [f64; 3]) -> Result<(), ConfigError> {
    not_negative("loss.intensity", intensity)?;
    not_negative("loss.gradient", gradient)?;
    not_negative("loss.ssim", ssim)?;
    need("loss.intensity", intensity + gradient + ssim > 0.0, "and the other weights are all 0")
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

    fn check(&self) -> Result<(), ConfigError> {
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
    fn check(&self) -> Result<(), ConfigError> {
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

    fn check(&self) -> Result<(), ConfigError> {
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

    fn check(&self) -> Result<(), ConfigError> {
        need("data.crop", (1..=4096).contains(&self.crop), "must be from 1 to 4096 pixels")?;
        need("data.batch", (1..=1024).contains(&self.batch), "must be from 1 to 1024")?;
        need("data.accumulate", (1..=4096).contains(&self.accumulate), "must be from 1 to 4096")?;
        share("data.min_content", self.min_content)?;
        share("data.flip_horizontal", self.flip_horizontal)?;
        share("data.flip_vertical", self.flip_vertical)
    }
}

impl Optimiser {
    fn check(&self) -> Result<(), ConfigError> {
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
    fn check(&self) -> Result<(), ConfigError> {
        share("rate.final_share", self.final_share)?;
        at_least_one("rate.every", self.every)?;
        share("rate.gamma", self.gamma)
    }
}

impl LossWeights {
    /// What the loss is made by.
    pub fn config(&self) -> FusionLossConfig {
        let Self { intensity, gradient, ssim, nan_switch } = *self;
        let [intensity, gradient, ssim] = [intensity, gradient, ssim].map(|weight| weight as f32);
        FusionLossConfig { intensity, gradient, ssim, nan_switch }
    }

    fn check(&self) -> Result<(), ConfigError> {
        loss_weights([self.intensity, self.gradient, self.ssim])
    }
}

impl LkcNet {
    /// The network's size, of the published one's kernels and blocks.
    pub fn size(&self) -> models::LkcConfig {
        let Self { inner_channel, norm_groups, .. } = *self;
        models::LkcConfig { inner_channel, norm_groups, ..models::LkcConfig::published() }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let (channels, groups) = (self.inner_channel, self.norm_groups);
        need("net.norm_groups", (1..=1024).contains(&groups), "must be from 1 to 1024")?;
        // The channel attention has an eighth of the levels' channels, the last block's norm five times as many as the first.
        let fits = (2..=1024).contains(&channels) && channels.is_multiple_of(2) && channels.is_multiple_of(groups);
        need("net.inner_channel", fits, format!("must be even, a multiple of norm_groups ({groups}), at most 1024"))?;
        decay("net.dropout", self.dropout)
    }
}

impl LkcLossWeights {
    /// The weights in the order of the fields.
    pub fn weights(&self) -> [f32; 3] {
        [self.intensity, self.gradient, self.ssim].map(|weight| weight as f32)
    }

    fn check(&self) -> Result<(), ConfigError> {
        loss_weights([self.intensity, self.gradient, self.ssim])
    }
}

impl Run {
    fn check(&self) -> Result<(), ConfigError> {
        at_least_one("run.steps", self.steps)?;
        need("run.seed", i64::try_from(self.seed).is_ok(), "must be less than 2^63")?;
        at_least_one("run.log_every", self.log_every)?;
        at_least_one("run.checkpoint_every", self.checkpoint_every)
    }
}

impl Stage1Config {
    fn check_together(&self) -> Result<(), ConfigError> {
        let multiple = self.unet.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the UNet halves it at each level");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

impl LkcConfig {
    fn check_together(&self) -> Result<(), ConfigError> {
        let multiple = self.net.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the network halves it twice");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

impl Stage2Config {
    fn check_together(&self) -> Result<(), ConfigError> {
        let last = self.noise.n_timestep;
        let on_schedule = self.head.time_steps.iter().all(|t| (1..=last).contains(t));
        need("head.time_steps", on_schedule, format!("must be from 1 to noise.n_timestep ({last})"))?;
        need("rate.warmup", self.rate.warmup < self.run.steps, "must be less than run.steps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_key_is_commented<S: Stage + PartialEq + std::fmt::Debug>() {
        let text = S::default().to_commented_toml().unwrap();
        let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| !l.starts_with('#')) {
            assert!(i > 0 && lines[i - 1].starts_with("# "), "no comment above {line}");
        }
        assert_eq!(S::parse(&text).unwrap(), S::default());
        assert_eq!(S::parse("").unwrap(), S::default());
        S::default().check().unwrap();
    }

    #[test]
    fn printed_defaults_are_commented_and_read_back() {
        every_key_is_commented::<Stage1Config>();
        every_key_is_commented::<Stage2Config>();
        every_key_is_commented::<LkcConfig>();
    }

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

    #[test]
    fn a_file_changes_what_it_names_and_keeps_the_stages_other_defaults() {
        let text = "[optimiser]\neps = 1\n[data]\ncrop = 96\n[unet]\nattn_res = [40, 20]\n";
        let one = Stage1Config::parse(text).unwrap();
        assert_eq!((one.optimiser.eps, one.data.crop, one.data.batch), (1.0, 96, 1));
        assert_eq!(one.unet.size().attention, [false, false, true, true, false]);
        let two = Stage2Config::parse("[optimiser]\nclip = 0.5\n[noise]\nn_timestep = 1000").unwrap();
        assert_eq!((two.optimiser.lr, two.noise.schedule), (1e-4, ScheduleKind::Linear));
    }

    #[test]
    fn a_resumed_run_may_be_longer_unless_the_rate_depends_on_it() {
        let settings = |text: &str| Stage1Config::parse(text).unwrap().settings().unwrap();
        let plain = settings("");
        assert!(plain.contains("optimiser.lr = 0.00001\n") && plain.contains("unet.channel_mults = [1, 1, 1, 1, 2]\n"));
        assert_eq!(settings("[run]\nsteps = 5\nlog_every = 1"), plain);
        assert_ne!(settings("[run]\nseed = 5"), plain);
        let cosine = |steps| settings(&format!("[run]\nsteps = {steps}\n[rate]\nkind = \"cosine\""));
        assert_ne!(cosine(5), cosine(6));
    }

    #[test]
    fn what_is_not_known_or_of_the_wrong_kind_is_named() {
        let told = |text: &str| Stage1Config::parse(text).unwrap_err().to_string();
        let text = told("[data]\nbatchsize = 4");
        assert!(text.contains("no key data.batchsize") && text.contains("accumulate, balanced, batch"), "{text}");
        assert!(told("loss = 1").contains("no key loss"), "{}", told("loss = 1"));
        assert!(told("data = 1").contains("data is a section"), "{}", told("data = 1"));
        let text = told("[data]\nbatch = \"many\"");
        assert!(text.contains("batch") && !text.contains('\n'), "{text}");
        let text = told("[noise]\nschedule = \"sine\"");
        assert!(text.contains("sine") && text.contains("cosine"), "{text}");
        assert!(told("[run]\nsteps = -5").contains("steps"), "{}", told("[run]\nsteps = -5"));
        assert!(told("[run\n").contains("not TOML"));
        let error = Stage1Config::load(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read no/such.toml"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let one = |text: &str| Stage1Config::parse(text).unwrap().check().unwrap_err().to_string();
        for (text, part) in [
            ("[data]\ncrop = 100", "data.crop must be a multiple of 16"),
            ("[data]\ncrop = 0", "data.crop"),
            ("[data]\nmin_content = 1.5", "data.min_content must be from 0 to 1, not 1.5"),
            ("[unet]\ninner_channel = 48", "unet.inner_channel must be even, a multiple of norm_groups (32)"),
            ("[unet]\nnorm_groups = 0", "unet.norm_groups"),
            ("[unet]\nchannel_mults = []", "unet.channel_mults"),
            ("[unet]\ndropout = 1.0", "unet.dropout"),
            ("[noise]\nn_timestep = 0", "noise.n_timestep"),
            ("[optimiser]\nlr = nan", "optimiser.lr must be more than 0, not NaN"),
            ("[optimiser]\nbeta2 = 1", "optimiser.beta2"),
            ("[run]\nlog_every = 0", "run.log_every must be at least 1"),
            ("[run]\nsteps = 10\n[rate]\nwarmup = 10", "rate.warmup"),
        ] {
            assert!(one(text).contains(part), "{text}: {}", one(text));
        }
        let two = |text: &str| Stage2Config::parse(text).unwrap().check().unwrap_err().to_string();
        for (text, part) in [
            ("[head]\ntime_steps = [5, 5]", "none of them twice"),
            ("[head]\ntime_steps = [5, 2001]", "from 1 to noise.n_timestep (2000)"),
            ("[loss]\nintensity = 0\ngradient = 0\nssim = 0", "all 0"),
            ("[loss]\nssim = -1", "loss.ssim must be 0 or more, not -1"),
        ] {
            assert!(two(text).contains(part), "{text}: {}", two(text));
        }
    }
}
