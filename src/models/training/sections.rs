//! The sections that the configurations of all trainings have: the pairs, the update, the learning rate, the run.

use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::config::{at_least_one, decay, need, not_negative, positive, section, share};
use super::data::Sampling;
use super::loss::{FusionLossConfig, FusionTarget};

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

impl Data {
    /// How batches are drawn.
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            crop: self.crop,
            batch: self.batch,
            balanced: self.balanced,
            min_content: self.min_content,
            flip_horizontal: self.flip_horizontal,
            flip_vertical: self.flip_vertical,
        }
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        need("data.crop", (1..=4096).contains(&self.crop), "must be from 1 to 4096 pixels")?;
        need("data.batch", (1..=1024).contains(&self.batch), "must be from 1 to 1024")?;
        need("data.accumulate", (1..=4096).contains(&self.accumulate), "must be from 1 to 4096")?;
        share("data.min_content", self.min_content)?;
        share("data.flip_horizontal", self.flip_horizontal)?;
        share("data.flip_vertical", self.flip_vertical)
    }
}

impl Optimiser {
    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
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
    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        share("rate.final_share", self.final_share)?;
        at_least_one("rate.every", self.every)?;
        share("rate.gamma", self.gamma)
    }
}

impl Run {
    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        at_least_one("run.steps", self.steps)?;
        need("run.seed", i64::try_from(self.seed).is_ok(), "must be less than 2^63")?;
        at_least_one("run.log_every", self.log_every)?;
        at_least_one("run.checkpoint_every", self.checkpoint_every)
    }
}

/// The values that the `loss` sections of fusion models share, in this order: the weights of intensity, gradient and
/// similarity, the gain of the gradients and the overlap.
pub(crate) struct LossParts(pub [f64; 5]);

impl LossParts {
    /// Checks their ranges.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(self) -> Result<(), TrainingError> {
        let Self([intensity, gradient, ssim, gradient_gain, overlap]) = self;
        not_negative("loss.intensity", intensity)?;
        not_negative("loss.gradient", gradient)?;
        not_negative("loss.ssim", ssim)?;
        need("loss.intensity", intensity + gradient + ssim > 0.0, "and the other weights are all 0")?;
        positive("loss.gradient_gain", gradient_gain)?;
        share("loss.overlap", overlap)
    }

    /// What a loss of images from black to white, `range`, is made by.
    pub(crate) fn config(self, range: [f32; 2]) -> FusionLossConfig {
        let [intensity, gradient, ssim, gradient_gain, overlap] = self.0.map(|value| value as f32);
        let target = FusionTarget { overlap, gradient_gain, range };
        FusionLossConfig { intensity, gradient, ssim, target, ..FusionLossConfig::default() }
    }
}
