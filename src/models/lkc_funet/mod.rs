//! LKC-FUNet (arXiv 2411.10036, `models/UNets/DFMNet_UNet_skl4.py` of its repository): fuses two images in one pass of a
//! UNet with large kernels, dense and depthwise, and gated attention where the encoder's features come back.

#[cfg(feature = "verify")]
mod golden;
#[cfg(feature = "train")]
pub mod training;

use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::blocks::{
    BlockKind, DropoutSeed, channel_attention, downsample, mean_and_max, norm_act_conv, resnet_block, upsample,
};
use super::checkpoint::{
    ModelError, check_model_json, check_names, embedded, parse_json, read_model_json, weights_file,
};
use super::fusing::{PairFuser, PlanCache};
use super::layers::{NORM_EPS, act, add, batch_norm, conv, conv_without_bias, group_norm};
use super::networks::{BenchRow, Effort, Network, SEED, random_weights};
use super::options::{ModelOption, ModelOptions, OptionValues};
#[cfg(feature = "train")]
use super::training::{LossGraph, loss::FusionLossConfig};
use super::{FusionModel, Loader, Model, ModelKind, ModelRow};
use crate::cpu::activation::Activation;
use crate::device::{Device, ParamSource};
use crate::graph::{Graph, GraphError, NodeId};
use crate::imaging::{FusionPair, Image, Padding, pad_to_multiple};
use crate::ops::conv2d::ConvSpec;
use crate::ops::pointwise::Pointwise;
use crate::ops::reduce::GlobalAvgPool;
use crate::tensor::{Shape, Tensor};
use crate::weights::Weights;

/// LKC-FUNet's row in the table of the models.
pub static ROW: ModelRow = ModelRow {
    name: NAME,
    title: "LKC-FUNet",
    about: "LKC-FUNet: one pass of a UNet with large kernels",
    files: &FILES,
    ships: cfg!(feature = "shipped-weights"),
    options: &[ModelOption {
        name: RANGE,
        value_name: "RANGE",
        about: "The range of lkc-funet's images, in and out: 0 to 1 or -1 to 1 [default: the model's]",
        values: OptionValues::Names(&[
            ("unit", "From 0 to 1, as the reference fuses"),
            ("signed", "From -1 to 1, as the reference trains"),
        ]),
    }],
    kind: ModelKind::Fusion(Loader { open, random: |width| Ok(Box::new(random_model(width)?)) }),
    bench: BenchRow {
        measured: "a pair",
        sizes: "a multiple of 4",
        width: 32,
        training_batch: 4,
        training_size: 64,
        trained: "on a batch",
    },
    #[cfg(feature = "train")]
    trainings: &[training::TRAINING],
    #[cfg(feature = "verify")]
    golden: &golden::GOLDEN,
};

/// Its name in `model.json` and on the command line.
const NAME: &str = "lkc-funet";
/// Its file of weights.
const FILES: [&str; 1] = [NAME];
/// The option that chooses the range of its images.
const RANGE: &str = "range";

/// Side of the kernel between the first convolution and the first level (`IN_conv`).
const IN_KERNEL: usize = 15;

/// A layer's result.
type Built = Result<NodeId, GraphError>;

/// The size of an LKC-FUNet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LkcConfig {
    /// Channels of the input: the two images.
    pub in_channel: usize,
    /// Channels of the output.
    pub out_channel: usize,
    /// Channels of the first convolution.
    pub inner_channel: usize,
    /// Channels of every level, as a multiple of the first convolution's.
    pub channel_mult: usize,
    /// Side of the kernels of each level, finest first, and of the middle; odd.
    pub conv_sizes: Vec<usize>,
    /// Groups of the norms in the residual blocks. The norms of the blocks with depthwise kernels have one group.
    pub norm_groups: usize,
    /// Blocks of each level on the way down; one more on the way up.
    pub res_blocks: usize,
}

impl LkcConfig {
    /// The published size: inner_channel 32, 41,174,438 parameters.
    pub fn published() -> Self {
        Self {
            in_channel: 2,
            out_channel: 1,
            inner_channel: 32,
            channel_mult: 4,
            conv_sizes: vec![15, 11, 5, 5],
            norm_groups: 32,
            res_blocks: 2,
        }
    }

    /// Reads the size off a checkpoint with keys `model.*`. The number of norm groups is not in it.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] if layers are missing that every LKC-FUNet has.
    pub fn from_weights(weights: &Weights, norm_groups: usize) -> Result<Self, ModelError> {
        let fail = |reason: String| ModelError::not_of("an LKC-FUNet", weights, reason);
        let dims = |name: &str| {
            let name = format!("model.{name}");
            let dims = weights.get(&name).and_then(|t| <[usize; 4]>::try_from(t.dims()).ok());
            dims.ok_or_else(|| fail(format!("{name} is missing or not a convolution")))
        };
        let [inner_channel, in_channel, ..] = dims("init_conv.weight")?;
        let [channels, ..] = dims("IN_conv.3.weight")?;
        let [out_channel, ..] = dims("final_conv.block.3.weight")?;
        let [_, _, middle, _] = dims("mid.0.res_block.large_kernel.lkb_origin.conv.weight")?;
        // The first block of each level is dense, the others are depthwise.
        let (mut conv_sizes, mut depthwise) = (Vec::new(), 0);
        for i in 0.. {
            let of = |layer: &str| dims(&format!("downs.{i}.{layer}.weight"));
            if let Ok([_, _, kernel, _]) = of("res_block.block1.block.3") {
                conv_sizes.push(kernel);
            } else if of("res_block.pw1.conv").is_ok() {
                depthwise += 1;
            } else if of("conv").is_err() {
                break;
            }
        }
        let res_blocks = 1 + depthwise / conv_sizes.len().max(1);
        conv_sizes.push(middle);
        Ok(Self {
            in_channel,
            out_channel,
            inner_channel,
            channel_mult: channels / inner_channel.max(1),
            conv_sizes,
            norm_groups,
            res_blocks,
        })
    }

    fn levels(&self) -> usize {
        self.conv_sizes.len().saturating_sub(1)
    }

    fn channels(&self) -> usize {
        self.inner_channel * self.channel_mult
    }

    /// Height and width must be multiples of this.
    pub fn multiple(&self) -> usize {
        1 << self.levels().saturating_sub(1)
    }
}

/// What a network is written for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    /// Batch norms use their running statistics.
    Inference,
    /// The same without those batch norms that a model on a device has in the convolutions before them.
    Folded,
    /// Batch norms use the batch's statistics and move the running ones (weights that the graph assigns). With a seed
    /// there is dropout in the dense blocks, and whole branches of the others are dropped with the same probability.
    Training(Option<DropoutSeed>),
}

impl Mode {
    fn is_training(self) -> bool {
        matches!(self, Self::Training(_))
    }
}

/// Writes the network: `img_cat` is the other image and the MRI `[n, 2, h, w]`, the result the fused image `[n, 1, h, w]`.
///
/// # Errors
/// [`GraphError`] if height or width is not a multiple of [`LkcConfig::multiple`] or the groups do not divide the channels.
pub fn lkc_funet(g: &mut Graph, cfg: &LkcConfig, img_cat: NodeId, mode: Mode) -> Built {
    let dropout = match mode {
        Mode::Inference | Mode::Folded => None,
        Mode::Training(dropout) => dropout,
    };
    g.scope("model", |g| {
        let drop_path = dropout.map(|dropout| Ok((ones(g, img_cat)?, dropout))).transpose()?;
        let builder = Builder { cfg, mode, dropout, drop_path };
        let mut skips = Vec::new();
        let mut x = builder.encoder(g, img_cat, &mut skips)?;
        for name in ["mid.0", "mid.1"] {
            x = builder.large_kernel(g, name, x, cfg.conv_sizes[cfg.levels()])?;
        }
        x = builder.decoder(g, x, skips)?;
        layer(g, "final_conv", |g| {
            let kind = BlockKind { dropout: None, ..builder.kind(3) };
            norm_act_conv(g, x, cfg.out_channel, kind)
        })
    })
}

/// A one for each item of `x`, `[n, 1, 1, 1]`.
fn ones(g: &mut Graph, x: NodeId) -> Built {
    let channel = g.slice("ones", x, 0, 1)?;
    let mean = g.apply("ones", GlobalAvgPool, &[channel])?;
    g.apply("ones", Pointwise::build(|[x]| x.affine(0.0, 1.0)), &[mean])
}

/// Stochastic depth (Huang et al. 2016, timm's `DropPath`): a one for each batch item, `[n, 1, 1, 1]`, and with which
/// probability and seed a branch is dropped for it.
pub(crate) type DropPath = (NodeId, DropoutSeed);

/// Pointwise and depthwise convolutions with norms over all channels, added to their input (`RepLKBlock`).
///
/// # Errors
/// [`GraphError`] if the shapes do not fit.
pub(crate) fn replk_block(g: &mut Graph, x: NodeId, kernel: usize, drop_path: Option<DropPath>) -> Built {
    let channels = g.shape(x).c();
    let wide = channels + channels / 2;
    let h = group_norm(g, "prelkb_bn", x, 1)?;
    let h = conv_without_bias(g, "pw1.conv", h, wide, ConvSpec::same(1))?;
    let h = group_norm(g, "pw1.bn", h, 1)?;
    let h = act(g, h, Activation::Relu)?;
    let depthwise = ConvSpec { groups: wide, ..ConvSpec::same(kernel) };
    let h = conv_without_bias(g, "large_kernel.lkb_origin.conv", h, wide, depthwise)?;
    let h = group_norm(g, "large_kernel.lkb_origin.bn", h, 1)?;
    let h = act(g, h, Activation::Relu)?;
    let h = conv_without_bias(g, "pw2.conv", h, channels, ConvSpec::same(1))?;
    let h = group_norm(g, "pw2.bn", h, 1)?;
    let Some((ones, dropout)) = drop_path else {
        return add(g, x, h);
    };
    let kept = dropout.apply(g, "drop_path", ones)?;
    g.apply("", Pointwise::build(|[x, kept, h]| x + kept * h), &[x, kept, h])
}

/// The decoder's features `x` and the encoder's, `skip`, each weighted by what both show: twice the channels of `x`
/// (`MultiScaleGatedAttn`).
///
/// # Errors
/// [`GraphError`] if the shapes differ or `x` has fewer than eight channels.
pub(crate) fn multi_scale_gated_attn(g: &mut Graph, x: NodeId, skip: NodeId, mode: Mode) -> Built {
    let channels = g.shape(x).c();
    let both = g.scope("multi", |g| {
        let by_channel = g.scope("local", |g| channel_attention(g, x))?;
        let by_place = g.scope("global_", |g| {
            let both = mean_and_max(g, skip)?;
            conv_batch_norm(g, ["proj.0", "proj.1"], both, 1, mode)
        })?;
        let sum = add(g, by_channel, by_place)?;
        batch_norm(g, "bn", sum, mode.is_training())
    })?;
    let paths = conv(g, "selection", both, 2, ConvSpec::same(1))?;
    let [of_x, of_skip] = [0, 1].map(|path| g.slice("paths", paths, path, 1));
    // The softmax of two numbers is the sigmoid of their difference and what that lacks to one.
    let interaction = Pointwise::build(|[of_x, of_skip, x, skip]| {
        let weight = (of_x - of_skip).act(Activation::Sigmoid);
        let x = x * weight.clone().affine(1.0, 1.0);
        let skip = skip * weight.affine(-1.0, 2.0);
        x.clone() * skip.clone().act(Activation::Sigmoid) + skip * x.act(Activation::Sigmoid)
    });
    let h = g.apply("interaction", interaction, &[of_x?, of_skip?, x, skip])?;
    let h = conv_batch_norm(g, ["proj", "bn"], h, channels, mode)?;
    let h = g.apply("weighted", Pointwise::build(|[h, x]| h.act(Activation::Sigmoid) * x), &[h, x])?;
    conv(g, "conv_block.0", h, 2 * channels, ConvSpec::same(1))
}

/// A convolution of kernel 1 and a batch norm, named `names`.
fn conv_batch_norm(g: &mut Graph, names: [&str; 2], x: NodeId, channels: usize, mode: Mode) -> Built {
    let h = conv(g, names[0], x, channels, ConvSpec::same(1))?;
    if mode == Mode::Folded { Ok(h) } else { batch_norm(g, names[1], h, mode.is_training()) }
}

/// A module under the scope `name`, its result marked.
fn layer(g: &mut Graph, name: &str, build: impl FnOnce(&mut Graph) -> Built) -> Built {
    g.scope(name, |g| build(g).map(|id| g.mark(id)))
}

struct Builder<'a> {
    cfg: &'a LkcConfig,
    mode: Mode,
    dropout: Option<DropoutSeed>,
    drop_path: Option<DropPath>,
}

impl Builder<'_> {
    fn kind(&self, kernel: usize) -> BlockKind {
        let (norm_groups, dropout) = (self.cfg.norm_groups, self.dropout);
        BlockKind { norm_groups, activation: Activation::Relu, kernel, dropout }
    }

    /// A residual block with dense kernels, for where the channels change or a level begins.
    fn dense(&self, g: &mut Graph, name: &str, x: NodeId, kernel: usize) -> Built {
        let (channels, kind) = (self.cfg.channels(), self.kind(kernel));
        layer(g, name, |g| g.scope("res_block", |g| resnet_block(g, x, None, channels, kind)))
    }

    fn large_kernel(&self, g: &mut Graph, name: &str, x: NodeId, kernel: usize) -> Built {
        layer(g, name, |g| g.scope("res_block", |g| replk_block(g, x, kernel, self.drop_path)))
    }

    /// The skips are the first convolution's result and each level's.
    fn encoder(&self, g: &mut Graph, x: NodeId, skips: &mut Vec<NodeId>) -> Built {
        let cfg = self.cfg;
        let first = layer(g, "init_conv", |g| conv(g, "", x, cfg.inner_channel, ConvSpec::same(3)))?;
        skips.push(first);
        let mut x = layer(g, "IN_conv", |g| {
            let h = batch_norm(g, "0", first, self.mode.is_training())?;
            let h = act(g, h, Activation::Relu)?;
            let h = self.dropout.map_or(Ok(h), |dropout| dropout.apply(g, "2", h))?;
            conv(g, "3", h, cfg.channels(), ConvSpec::same(IN_KERNEL))
        })?;
        let mut names = (0..).map(|index| format!("downs.{index}"));
        let mut next = || names.next().unwrap_or_default();
        for level in 0..cfg.levels() {
            let kernel = cfg.conv_sizes[level];
            x = self.dense(g, &next(), x, kernel)?;
            for _ in 1..cfg.res_blocks {
                x = self.large_kernel(g, &next(), x, kernel)?;
            }
            skips.push(x);
            if level + 1 < cfg.levels() {
                x = layer(g, &next(), |g| downsample(g, x))?;
            }
        }
        Ok(x)
    }

    fn decoder(&self, g: &mut Graph, mut x: NodeId, mut skips: Vec<NodeId>) -> Built {
        let cfg = self.cfg;
        let mut names = (0..).map(|index| format!("ups.{index}"));
        let mut next = || names.next().unwrap_or_default();
        for level in (0..cfg.levels()).rev() {
            let kernel = cfg.conv_sizes[level];
            let skip = skips.pop().expect("a skip for each level and the first convolution's");
            x = layer(g, &next(), |g| multi_scale_gated_attn(g, x, skip, self.mode))?;
            x = self.dense(g, &next(), x, kernel)?;
            for _ in 1..cfg.res_blocks + usize::from(level > 0) {
                x = self.large_kernel(g, &next(), x, kernel)?;
            }
            if level > 0 {
                x = layer(g, &next(), |g| upsample(g, x))?;
            }
        }
        let name = next();
        skips.insert(0, x);
        let joined = g.concat(&name, &skips)?;
        self.dense(g, &name, joined, cfg.conv_sizes[0])
    }
}

/// The range of a network's images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueRange {
    /// From 0 to 1, as the reference fuses.
    #[default]
    Unit,
    /// From -1 to 1, as the reference trains.
    Signed,
}

impl ValueRange {
    /// The range that the option [`RANGE`] names.
    fn named(name: &str) -> Result<Self, ModelError> {
        match name {
            "unit" => Ok(Self::Unit),
            "signed" => Ok(Self::Signed),
            _ => Err(ModelError::Option(format!("the range {name} is neither unit nor signed"))),
        }
    }

    /// The scale and the shift that bring -1 and 1 to the range's ends.
    pub(crate) fn scale_and_shift(self) -> [f32; 2] {
        match self {
            Self::Unit => [0.5, 0.5],
            Self::Signed => [1.0, 0.0],
        }
    }

    /// Black and white.
    pub(crate) fn ends(self) -> [f32; 2] {
        let [scale, shift] = self.scale_and_shift();
        [shift - scale, shift + scale]
    }
}

/// What a checkpoint does not say of an LKC-FUNet: the file `model.json` beside the weights.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct LkcFile {
    /// The network's name.
    pub model: String,
    /// Groups of the norms in the residual blocks.
    pub norm_groups: usize,
    /// The range of the images, in and out.
    pub range: ValueRange,
}

impl Default for LkcFile {
    fn default() -> Self {
        Self { model: NAME.into(), norm_groups: 32, range: ValueRange::Unit }
    }
}

impl LkcFile {
    /// The text of a `model.json` that errors call `name`.
    fn parse(text: &str, name: &str) -> Result<Self, ModelError> {
        let file: Self = parse_json(text, name)?;
        check_model_json(name, &file.model, NAME, file.norm_groups)?;
        Ok(file)
    }
}

/// LKC-FUNet with its weights.
#[derive(Clone, Debug)]
pub struct LkcFunet {
    /// Its size.
    pub config: LkcConfig,
    /// The range of its images, in and out.
    pub range: ValueRange,
    /// Its weights, keys `model.*`.
    pub weights: Weights,
    /// Whether batch norms are in the weights.
    mode: Mode,
}

impl LkcFunet {
    /// Loads `lkc-funet` (`.safetensors` or `.pth`) and `model.json`, if it is there, from a folder.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing, unreadable or of another architecture, or a weight is not finite.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        let file = read_model_json(folder, LkcFile::parse)?;
        Self::new(Weights::load(weights_file(folder, NAME, &FILES)?)?, &file)
    }

    /// The model whose weights ship inside medfuse; `weights/lkc-funet-small/card.md` says what it is.
    ///
    /// # Errors
    /// [`ModelError::NotShipped`] in a library without the feature `shipped-weights`.
    pub fn shipped() -> Result<Self, ModelError> {
        let [Some(weights), Some(file)] =
            [embedded!("lkc-funet-small/lkc-funet.safetensors"), embedded!("lkc-funet-small/model.json")]
        else {
            return Err(ModelError::NotShipped(NAME));
        };
        let weights = Weights::from_safetensors(weights, "shipped lkc-funet")?;
        Self::new(weights, &LkcFile::parse(&String::from_utf8_lossy(file), "shipped model.json")?)
    }

    /// The model of a checkpoint with keys `model.*`. How many batches its batch norms have seen may be in it or not.
    ///
    /// # Errors
    /// [`ModelError`] if it does not fit the architecture or a weight is not finite.
    pub fn new(mut weights: Weights, file: &LkcFile) -> Result<Self, ModelError> {
        let config = LkcConfig::from_weights(&weights, file.norm_groups)?;
        if (config.in_channel, config.out_channel) != (2, 1) {
            return Err(ModelError::not_of("an LKC-FUNet", &weights, "it does not make one image of two"));
        }
        weights.retain(|name| !name.ends_with(".num_batches_tracked"));
        weights.check_finite()?;
        let model = Self { config, range: file.range, weights, mode: Mode::Inference };
        let side = model.config.multiple();
        check_names(&model.weights, &model.graph(side, side)?.0, |_| true, &[])?;
        Ok(model)
    }

    /// The network for images of `height` x `width` and its output, see [`lkc_funet`]. Its input is `img_cat`.
    ///
    /// # Errors
    /// [`GraphError`] if the size is not a multiple of [`LkcConfig::multiple`].
    pub fn graph(&self, height: usize, width: usize) -> Result<(Graph, NodeId), GraphError> {
        let mut g = Graph::new();
        let img_cat = g.input("img_cat", Shape::new(1, self.config.in_channel, height, width));
        let fused = lkc_funet(&mut g, &self.config, img_cat, self.mode)?;
        Ok((g, fused))
    }

    /// The same model with the batch norms that follow a convolution in that convolution's weights: for each of its
    /// channels `weight * gamma / sqrt(var + eps)` and `(bias - mean) * gamma / sqrt(var + eps) + beta`.
    ///
    /// The others stay: one is after a sum, one reads a tensor that a skip reads too.
    #[must_use]
    pub fn fold(mut self) -> Self {
        if self.mode == Mode::Folded {
            return self;
        }
        let gate = |name: &str| name.strip_suffix("selection.weight").map(str::to_owned);
        let gates: Vec<String> = self.weights.names().filter_map(gate).collect();
        for gate in gates {
            for (conv, norm) in [("multi.global_.proj.0", "multi.global_.proj.1"), ("proj", "bn")] {
                self.fold_pair(&format!("{gate}{conv}"), &format!("{gate}{norm}"));
            }
        }
        self.mode = Mode::Folded;
        self
    }

    fn fold_pair(&mut self, conv: &str, norm: &str) {
        let of = |layer: &str, name: &str| {
            let tensor = self.weights.get(&format!("{layer}.{name}"));
            tensor.expect("names are checked when a model is made").clone()
        };
        let [gamma, beta, mean, variance] =
            ["weight", "bias", "running_mean", "running_var"].map(|name| of(norm, name));
        let scale = gamma.data().iter().zip(variance.data()).map(|(g, v)| g / (v + NORM_EPS).sqrt());
        let scale: Vec<f32> = scale.collect();
        let (weight, bias) = (of(conv, "weight"), of(conv, "bias"));
        let rows = weight.data().chunks(weight.data().len() / scale.len()).zip(&scale);
        let folded = rows.flat_map(|(row, s)| row.iter().map(move |w| w * s)).collect();
        let shifted = (0..scale.len()).map(|c| (bias.data()[c] - mean.data()[c]) * scale[c] + beta.data()[c]).collect();
        self.weights.insert(format!("{conv}.weight"), Tensor::new(weight.dims(), folded));
        self.weights.insert(format!("{conv}.bias"), Tensor::new(bias.dims(), shifted));
        let prefix = format!("{norm}.");
        self.weights.retain(|name| !name.starts_with(&prefix));
    }
}

/// Loads the model from a folder, or without one the weights that ship.
fn open(folder: Option<&Path>, options: &ModelOptions) -> Result<Box<dyn FusionModel>, ModelError> {
    let mut model = folder.map_or_else(LkcFunet::shipped, LkcFunet::load)?;
    if let Some(name) = options.name(RANGE) {
        model.range = ValueRange::named(name)?;
    }
    Ok(Box::new(model))
}

/// The published architecture with `channels` at its first convolution and random weights, its batch norms folded.
fn random_model(channels: usize) -> Result<LkcFunet, ModelError> {
    let config = LkcConfig { inner_channel: channels, ..LkcConfig::published() };
    let mut graph = Graph::new();
    let side = config.multiple();
    let img_cat = graph.input("img_cat", Shape::new(1, config.in_channel, side, side));
    lkc_funet(&mut graph, &config, img_cat, Mode::Inference)?;
    let weights = random_weights(&graph, &mut ChaCha8Rng::seed_from_u64(SEED));
    LkcFunet::new(weights.into_iter().collect(), &LkcFile::default()).map(LkcFunet::fold)
}

impl Model for LkcFunet {
    fn weights(&self) -> &dyn ParamSource {
        &self.weights
    }

    fn parts(&self, size: usize) -> Result<Vec<Network>, GraphError> {
        Ok(vec![Network::whole_pair(self.graph(size, size)?)])
    }

    fn networks(&self, size: usize) -> Result<Vec<(Network, Effort)>, GraphError> {
        Ok(vec![(Network::whole_pair(self.graph(size, size)?), Effort::Short)])
    }

    #[cfg(feature = "train")]
    fn loss(&self, size: usize) -> Result<LossGraph, GraphError> {
        training::loss_graph(&self.config, &FusionLossConfig::lkc(), 0.0, ROW.bench.training_batch, size)
    }
}

impl FusionModel for LkcFunet {
    fn on(self: Box<Self>, device: Device) -> Box<dyn PairFuser> {
        Box::new(LkcFuser::new(*self, device))
    }
}

/// LKC-FUNet on a device, fusing images one after the other.
#[derive(Debug)]
pub struct LkcFuser {
    model: LkcFunet,
    device: Device,
    plans: PlanCache,
}

impl LkcFuser {
    /// A fuser of `model` on `device`.
    pub fn new(model: LkcFunet, device: Device) -> Self {
        Self { model: model.fold(), device, plans: PlanCache::default() }
    }
}

impl PairFuser for LkcFuser {
    fn fuse(&self, pair: &FusionPair, _seed: u64) -> Result<Image, ModelError> {
        let (model, multiple) = (&self.model, self.model.config.multiple());
        let padding = Padding::new(pair.height(), pair.width(), multiple, multiple);
        let pad = |plane: Vec<f32>| pad_to_multiple(&plane, pair.height(), pair.width(), multiple, multiple).0;
        let mut img_cat = [pad(pair.other_input()), pad(pair.mri_input())].concat();
        let [scale, shift] = model.range.scale_and_shift();
        img_cat.iter_mut().for_each(|v| *v = scale * *v + shift);
        let size = [padding.padded_height, padding.padded_width];
        let executable = self.plans.executable(size, |h, w| model.graph(h, w), &self.device, &model.weights)?;
        let mut fused = padding.crop(&executable.run(&[("img_cat", &img_cat)])?.swap_remove(0));
        fused.iter_mut().for_each(|v| *v = (*v - shift) / scale);
        Ok(pair.fused_image(&fused)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::imaging::{Channels, Samples};
    use crate::ops::testing::{gpu, random, relative_l2};

    /// A network of 8 channels, with kernels of its own.
    fn tiny() -> LkcConfig {
        LkcConfig {
            inner_channel: 4,
            channel_mult: 2,
            conv_sizes: vec![7, 5, 3],
            norm_groups: 2,
            ..LkcConfig::published()
        }
    }

    /// Random weights with positive variances, and the counters that PyTorch saves beside them.
    fn weights(config: &LkcConfig) -> Weights {
        let mut g = Graph::new();
        let img_cat = g.input("img_cat", Shape::new(1, 2, 8, 8));
        lkc_funet(&mut g, config, img_cat, Mode::Inference).unwrap();
        let value = |(i, (name, id)): (usize, (&String, &NodeId))| {
            let shape = g.shape(*id);
            let scale = (1.0 / shape.item() as f32).sqrt();
            let mut values: Vec<f32> = random(shape.numel(), i as u64).iter().map(|v| v * scale).collect();
            if name.ends_with("running_var") {
                values.iter_mut().for_each(|v| *v = v.abs() + 0.5);
            }
            let vector = shape.n() == 1 && shape.plane() == 1 && !name.ends_with("proj.0.weight");
            let dims = if vector { vec![shape.c()] } else { shape.0.to_vec() };
            (name.clone(), Tensor::new(dims, values))
        };
        let mut weights: Weights = g.params().iter().enumerate().map(value).collect();
        weights.insert("model.IN_conv.0.num_batches_tracked", Tensor::new([], vec![3.0]));
        weights
    }

    #[test]
    fn the_published_size() {
        let config = LkcConfig::published();
        let mut g = Graph::new();
        let img_cat = g.input("img_cat", Shape::new(1, 2, 8, 8));
        lkc_funet(&mut g, &config, img_cat, Mode::Inference).unwrap();
        let (buffers, trained): (Vec<_>, Vec<_>) = g.params().iter().partition(|(name, _)| name.contains(".running_"));
        let elements = |of: &[(&String, &NodeId)]| of.iter().map(|(_, id)| g.shape(**id).numel()).sum::<usize>();
        assert_eq!((trained.len(), elements(&trained)), (246, 41_174_438));
        assert_eq!((buffers.len(), elements(&buffers)), (20, 1606));
        assert_eq!(config.multiple(), 4);
    }

    #[test]
    fn sizes_are_read_off_the_names_and_other_names_refused() {
        let (config, mut weights) = (tiny(), weights(&tiny()));
        assert_eq!(LkcConfig::from_weights(&weights, 2).unwrap(), config);
        let file = LkcFile { norm_groups: 2, ..LkcFile::default() };
        assert_eq!(LkcFunet::new(weights.clone(), &file).unwrap().config, config);
        let refused = |weights: &Weights, part: &str| {
            let error = LkcFunet::new(weights.clone(), &file).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        weights.insert("model.mid.2.hello", Tensor::new([1], vec![0.0]));
        refused(&weights, "1 unexpected: model.mid.2.hello");
        weights.retain(|name| !name.starts_with("model.mid."));
        refused(&weights, "not an LKC-FUNet: model.mid.0");
        weights.retain(|_| false);
        refused(&weights, "model.init_conv.weight is missing");
    }

    #[test]
    fn folded_batch_norms_change_nothing_but_rounding() {
        let file = LkcFile { norm_groups: 2, ..LkcFile::default() };
        let plain = LkcFunet::new(weights(&tiny()), &file).unwrap();
        let folded = plain.clone().fold().fold();
        assert_eq!(plain.weights.names().count() - folded.weights.names().count(), 2 * 2 * 4);
        let images = random(2 * 8 * 8, 1);
        let of = |model: &LkcFunet| {
            let (g, fused) = model.graph(8, 8).unwrap();
            let executable = Device::Cpu.compile(&g, &[fused], &model.weights).unwrap();
            executable.run(&[("img_cat", &images)]).unwrap().swap_remove(0)
        };
        let error = relative_l2(&of(&folded), &of(&plain));
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn both_devices_fuse_any_size_alike_in_either_range() {
        let (width, height) = (19, 13);
        let levels = |seed: u64| random(width * height, seed).iter().map(|v| ((v + 1.0) * 127.0) as u8).collect();
        let image = |seed| Image::new(width, height, Channels::Grey, Samples::U8(levels(seed))).unwrap();
        let pair = FusionPair::new(image(1), image(2)).unwrap();
        let mut results = BTreeMap::new();
        for range in [ValueRange::Unit, ValueRange::Signed] {
            let file = LkcFile { norm_groups: 2, range, ..LkcFile::default() };
            let model = LkcFunet::new(weights(&tiny()), &file).unwrap();
            let fused = [Device::Cpu, Device::Gpu(gpu())].map(|device| {
                let fused = LkcFuser::new(model.clone(), device).fuse(&pair, 0).unwrap();
                assert_eq!((fused.width(), fused.height()), (width, height));
                match fused.samples() {
                    Samples::U8(samples) => samples.clone(),
                    Samples::U16(_) => panic!("8-bit images give 8 bits"),
                }
            });
            assert!(fused[0].iter().zip(&fused[1]).all(|(a, b)| a.abs_diff(*b) <= 1), "{fused:?}");
            results.insert(format!("{range:?}"), fused[0].clone());
        }
        assert_ne!(results["Unit"], results["Signed"]);
    }

    /// What a network in training gives for a batch of `images`, with the share `p` dropped.
    fn trained(images: &[f32], p: f32, seed: f32, device: &Device) -> Vec<f32> {
        let mut g = Graph::new();
        let img_cat = g.input("img_cat", Shape::new(images.len() / 128, 2, 8, 8));
        let dropout = DropoutSeed { p, seed: g.input("dropout", Shape::new(1, 2, 1, 1)) };
        let fused = lkc_funet(&mut g, &tiny(), img_cat, Mode::Training(Some(dropout))).unwrap();
        let executable = device.compile(&g, &[fused], &weights(&tiny())).unwrap();
        executable.run(&[("img_cat", images), ("dropout", &[seed, 1.0])]).unwrap().swap_remove(0)
    }

    #[test]
    fn training_drops_by_its_seed_and_alike_on_both_devices() {
        let images = random(3 * 128, 5);
        let first = trained(&images, 0.3, 1.0, &Device::Cpu);
        assert_eq!(first, trained(&images, 0.3, 1.0, &Device::Cpu));
        assert!(relative_l2(&trained(&images, 0.3, 1.0, &Device::Gpu(gpu())), &first) < 1e-4);
        assert!(relative_l2(&trained(&images, 0.3, 2.0, &Device::Cpu), &first) > 1e-2);
        assert!(relative_l2(&trained(&images, 0.0, 1.0, &Device::Cpu), &first) > 1e-2);
    }

    #[test]
    fn stochastic_depth_drops_whole_items_of_the_branch() {
        let (n, shape) = (64, Shape::new(64, 8, 4, 4));
        let mut g = Graph::new();
        let x = g.input("x", shape);
        let seed = g.input("dropout", Shape::new(1, 2, 1, 1));
        let drop_path = Some((ones(&mut g, x).unwrap(), DropoutSeed { p: 0.25, seed }));
        let outputs =
            g.scope("model.mid.0.res_block", |g| Ok([replk_block(g, x, 3, None)?, replk_block(g, x, 3, drop_path)?]));
        let executable = Device::Cpu.compile(&g, &outputs.unwrap(), &weights(&tiny())).unwrap();
        let values = random(shape.numel(), 3);
        let found = executable.run(&[("x", &values), ("dropout", &[1.0, 2.0])]).unwrap();
        let item = |v: &[f32], i: usize| v[i * shape.item()..][..shape.item()].to_vec();
        let mut dropped = 0;
        for i in 0..n {
            let [x, plain, found] = [&values, &found[0], &found[1]].map(|v| item(v, i));
            let kept: Vec<f32> = x.iter().zip(&plain).map(|(x, y)| x + (y - x) / 0.75).collect();
            if found == x {
                dropped += 1;
            } else {
                assert!(relative_l2(&found, &kept) < 1e-5);
            }
        }
        assert!((6..=26).contains(&dropped), "{dropped} of {n}");
    }
}
