//! Training LKC-FUNet (`train.py` and `losses/DMFNet_loss.py` of its repository).

use std::collections::BTreeMap;
use std::path::Path;

use super::{LkcConfig, LkcFile, LkcFunet, LkcFuser, Mode, NAME, ValueRange, lkc_funet};
use crate::device::{Device, ParamSource};
use crate::graph::{Graph, GraphError, NodeId};
use crate::models::blocks::DropoutSeed;
use crate::models::checkpoint::save_model_json;
use crate::models::training::config::{Sections, TrainingConfig, configuration, decay, need, section};
use crate::models::training::data::{Batches, Dataset};
use crate::models::training::init::pytorch_default;
use crate::models::training::loss::{FusionLossConfig, constants, ssim};
use crate::models::training::samples::{Figures, sample_fused};
use crate::models::training::sections::{Data, LossParts, Optimiser, OptimiserKind, Rate, Run};
use crate::models::training::{LossGraph, TaskError, TaskInputs, TrainTask, Training, TrainingError};
use crate::ops::pointwise::Pointwise;
use crate::tensor::{Shape, Tensor};
use crate::weights::{StoreType, Weights, is_buffer};

/// The training as `medfuse train` offers it.
pub(crate) const TRAINING: Training =
    Training { name: NAME, about: "Train an LKC-FUNet", files: &[], config: || Box::new(LkcTrainConfig::default()) };

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

impl LkcNet {
    /// The network's size, of the published one's kernels and blocks.
    pub(crate) fn size(&self) -> LkcConfig {
        let Self { inner_channel, norm_groups, .. } = *self;
        LkcConfig { inner_channel, norm_groups, ..LkcConfig::published() }
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// [`TrainingError::Value`], which names the key and says what it must be.
    pub(crate) fn check(&self) -> Result<(), TrainingError> {
        let (channels, groups) = (self.inner_channel, self.norm_groups);
        need("net.norm_groups", (1..=1024).contains(&groups), "must be from 1 to 1024")?;
        // The channel attention has an eighth of the levels' channels, the last block's norm five times as many as the first.
        let fits = (2..=1024).contains(&channels) && channels.is_multiple_of(2) && channels.is_multiple_of(groups);
        need("net.inner_channel", fits, format!("must be even, a multiple of norm_groups ({groups}), at most 1024"))?;
        decay("net.dropout", self.dropout)
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

impl LkcLossWeights {
    fn parts(&self) -> LossParts {
        LossParts([self.intensity, self.gradient, self.ssim, self.gradient_gain, self.overlap])
    }

    /// What the loss is made by, of images in `range`.
    pub(crate) fn config(&self, range: ValueRange) -> FusionLossConfig {
        self.parts().config(range.ends())
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
    /// LKC-FUNet. The reference runs 1,000 epochs, 22 steps each for 715 pairs.
    LkcTrainConfig {
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

impl TrainingConfig for LkcTrainConfig {
    fn check(&self) -> Result<(), TrainingError> {
        self.check_sections()?;
        let multiple = self.net.size().multiple();
        let reason = format!("must be a multiple of {multiple}, for the network halves it twice");
        need("data.crop", self.data.crop.is_multiple_of(multiple), reason)
    }

    fn task<'a>(&'a self, inputs: TaskInputs<'a>) -> Result<Box<dyn TrainTask + 'a>, TaskError> {
        Ok(Box::new(LkcTraining::new(self, inputs.data, inputs.device)?))
    }
}

impl FusionLossConfig {
    /// LKC-FUNet's of the reference (`losses/DMFNet_loss.py`): every part counts alike.
    pub(crate) fn lkc() -> Self {
        Self { intensity: 1.0, gradient: 1.0, ssim: 1.0, ..Self::default() }
    }
}

/// The nodes of LKC-FUNet's loss, each `[1, 1, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LkcLoss {
    /// The sum of the parts.
    pub total: NodeId,
    /// The distance to the brighter source (`loss_in`).
    pub intensity: NodeId,
    /// The distance of the edges (`loss_grad`).
    pub gradient: NodeId,
    /// What the mean similarity to both sources lacks to 1 (`loss_ssim`).
    pub ssim: NodeId,
}

/// The loss that LKC-FUNet is trained with (`losses/DMFNet_loss.py` of its repository): images `[n, 1, h, w]`.
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn lkc_loss(
    g: &mut Graph,
    cfg: &FusionLossConfig,
    fused: NodeId,
    mri: NodeId,
    other: NodeId,
) -> Result<LkcLoss, GraphError> {
    let intensity = cfg.target.intensity_distance(g, [fused, mri, other])?;
    let gradient = cfg.target.edge_distance(g, [fused, mri, other])?;
    let (like_m, like_o) = (ssim(g, mri, fused)?, ssim(g, other, fused)?);
    let lack = Pointwise::build(|[m, o]| m.affine(-0.5, 0.5) + o.affine(-0.5, 0.5));
    let ssim = g.apply("ssim", lack, &[like_m, like_o])?;
    let FusionLossConfig { intensity: of_i, gradient: of_g, ssim: of_s, .. } = *cfg;
    let sum = Pointwise::build(|[i, g, s]| i.affine(of_i, 0.0) + g.affine(of_g, 0.0) + s.affine(of_s, 0.0));
    let total = g.apply("total", sum, &[intensity, gradient, ssim])?;
    Ok(LkcLoss { total, intensity, gradient, ssim })
}

/// The names of the loss's parts.
pub(crate) const REPORTS: &[&str] = &["gradient", "intensity", "ssim"];

/// The network's loss on a batch of pairs `[n, 1, side, side]`, which it moves the batch norms' running statistics with
/// (weights that the graph assigns). Inputs: `mri`, `other` and, with `dropout`, its seed `dropout` `[1, 2, 1, 1]`. Reports:
/// [`REPORTS`].
///
/// # Errors
/// [`GraphError`] if `side` is not a multiple of [`LkcConfig::multiple`].
pub(crate) fn loss_graph(
    config: &LkcConfig,
    loss: &FusionLossConfig,
    dropout: f32,
    batch: usize,
    side: usize,
) -> Result<LossGraph, GraphError> {
    let mut graph = Graph::new();
    let image = Shape::new(batch, 1, side, side);
    let [mri, other] = ["mri", "other"].map(|name| graph.input(name, image));
    let dropout = DropoutSeed::input(&mut graph, dropout);
    let img_cat = graph.concat("img_cat", &[other, mri])?;
    let fused = lkc_funet(&mut graph, config, img_cat, Mode::Training(dropout))?;
    let loss = lkc_loss(&mut graph, loss, fused, mri, other)?;
    Ok(LossGraph { graph, loss: loss.total, reports: vec![loss.gradient, loss.intensity, loss.ssim], recompute: false })
}

/// Whether a weight is trained: all are but the batch norms' running statistics.
pub(crate) fn is_trained(name: &str) -> bool {
    name.starts_with("model.") && !is_buffer(name)
}

/// The training of an LKC-FUNet on a data set.
#[derive(Debug)]
pub(crate) struct LkcTraining<'a> {
    config: &'a LkcTrainConfig,
    data: &'a Dataset,
    device: &'a Device,
    batches: Batches<'a>,
    constants: BTreeMap<String, Tensor>,
}

impl<'a> LkcTraining<'a> {
    /// The run on the data set's training pairs; `device` is where it validates.
    ///
    /// # Errors
    /// [`TrainingError`] if there are none or they are smaller than the crop.
    pub(crate) fn new(
        config: &'a LkcTrainConfig,
        data: &'a Dataset,
        device: &'a Device,
    ) -> Result<Self, TrainingError> {
        let batches = Batches::new(&data.train, config.data.sampling(), config.run.seed)?;
        Ok(Self { config, data, device, batches, constants: constants() })
    }

    fn model_file(&self) -> LkcFile {
        let LkcNet { norm_groups, range, .. } = self.config.net;
        LkcFile { norm_groups, range, ..LkcFile::default() }
    }
}

impl TrainTask for LkcTraining<'_> {
    fn stage(&self) -> &'static str {
        NAME
    }

    fn graph(&self) -> Result<LossGraph, GraphError> {
        let LkcTrainConfig { net, loss, data, run, .. } = self.config;
        let graph = loss_graph(&net.size(), &loss.config(net.range), net.dropout as f32, data.batch, data.crop)?;
        Ok(LossGraph { recompute: run.recompute, ..graph })
    }

    fn is_trained(&self, name: &str) -> bool {
        is_trained(name)
    }

    fn first_weights(&self, weights: &[(String, Vec<usize>)], seed: u64) -> Vec<f32> {
        pytorch_default(weights, seed)
    }

    fn frozen(&self) -> &dyn ParamSource {
        &self.constants
    }

    fn reports(&self) -> &'static [&'static str] {
        REPORTS
    }

    fn inputs(&self, number: u64) -> BTreeMap<String, Vec<f32>> {
        let batch = self.batches.batch(number);
        let mut images = [batch.mri.into_data(), batch.other.into_data()];
        let [scale, shift] = self.config.net.range.scale_and_shift();
        images.iter_mut().flatten().for_each(|v| *v = scale * *v + shift);
        let [mri, other] = images;
        let seed = DropoutSeed::values(self.config.run.seed, number);
        [("mri", mri), ("other", other), ("dropout", seed)].map(|(name, values)| (name.to_owned(), values)).into()
    }

    fn sample(&self, folder: &Path, weights: &BTreeMap<String, Tensor>, step: u64) -> Result<Figures, TaskError> {
        let model = LkcFunet::new(weights.clone().into_iter().collect(), &self.model_file())?;
        sample_fused(folder, step, &self.data.validation, &LkcFuser::new(model, self.device.clone()))
    }

    fn publish(&self, folder: &Path, weights: BTreeMap<String, Tensor>) -> Result<(), TaskError> {
        let model: Weights = weights.into_iter().collect();
        model.save_safetensors(folder.join(format!("{NAME}.safetensors")), StoreType::F32)?;
        Ok(save_model_json(&self.model_file(), folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::training::loss::FusionTarget;
    use crate::ops::testing::random;

    #[test]
    fn the_loss_s_defaults_are_the_reference_s() {
        assert_eq!(LkcTrainConfig::default().loss.config(ValueRange::Signed), FusionLossConfig::lkc());
    }

    /// Intensity and gradient of LKC-FUNet's loss for three images of 6 x 5 pixels.
    fn parts(target: FusionTarget, images: &[Vec<f32>; 3]) -> [f32; 2] {
        let mut g = Graph::new();
        let names = ["fused", "mri", "other"];
        let [fused, mri, other] = names.map(|name| g.input(name, Shape::new(1, 1, 6, 5)));
        let cfg = FusionLossConfig { target, ..FusionLossConfig::lkc() };
        let loss = lkc_loss(&mut g, &cfg, fused, mri, other).unwrap();
        let executable = Device::Cpu.compile(&g, &[loss.intensity, loss.gradient], &constants()).unwrap();
        let inputs: Vec<_> = names.iter().zip(images).map(|(name, image)| (*name, image.as_slice())).collect();
        let parts = executable.run(&inputs).unwrap();
        [parts[0][0], parts[1][0]]
    }

    #[test]
    fn overlap_adds_the_darker_image_above_black_up_to_white_and_gain_scales_the_edges() {
        for [black, white] in [[-1.0, 1.0], [0.0, 1.0]] {
            let level = |v: f32| black + (white - black) * (0.5 * v + 0.5);
            let mut images = [1, 2, 3].map(|seed| random(30, seed).into_iter().map(level).collect::<Vec<f32>>());
            images[1][14] = white;
            let target = FusionTarget { overlap: 0.3, gradient_gain: 1.0, range: [black, white] };
            let [fused, mri, other] = &images;
            let distance = |i: usize| {
                let held_to = mri[i].max(other[i]) + 0.3 * (mri[i].min(other[i]) - black);
                (fused[i] - held_to.min(white)).abs() / 30.0
            };
            let expected: f32 = (0..30).map(distance).sum();
            let [intensity, edges] = parts(target, &images);
            assert!((intensity - expected).abs() < 1e-5, "{intensity} {expected}");
            let plain = parts(FusionTarget { range: [black, white], ..FusionTarget::default() }, &images);
            assert!((plain[0] - intensity).abs() > 1e-2 && plain[1] == edges);

            // An image of zeros has no edges, also to the zeros beyond its border: the distance is the target itself.
            images[0] = vec![0.0; 30];
            let of = |gain| parts(FusionTarget { gradient_gain: gain, ..target }, &images)[1];
            assert!((of(1.5) - 1.5 * of(1.0)).abs() < 1e-5 * of(1.0).max(1.0), "{} {}", of(1.5), of(1.0));
        }
    }
}
