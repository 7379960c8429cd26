//! Cases of operations and blocks.

use super::case::{Case, Config};
use super::compare::Scale;
use super::error::CaseError;
use super::network::{Network, Results};
use crate::device::Device;
use crate::graph::{Graph, GraphError, Kind, NodeId};
use crate::models::blocks::{BlockKind, downsample, feature_wise_affine, resnet_block, upsample};
use crate::models::dm_fnet::fusion_head::{attention_block, head_block, three_att_block};
use crate::models::dm_fnet::unet::{noise_level_mlp, self_attention};
use crate::models::lkc_funet::{Mode, multi_scale_gated_attn, replk_block};
use crate::models::training::loss;
use crate::ops::Op;
use crate::ops::activation::Activation;
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv2d::{Conv2d, ConvSpec, PaddingMode};
use crate::ops::group_norm::GroupNorm;
use crate::ops::linear::Linear;
use crate::ops::pointwise::Pointwise;
use crate::ops::positional_encoding::PositionalEncoding;
use crate::ops::reduce::{ChannelMax, ChannelMean, GlobalAvgPool};
use crate::ops::resize::{UpsampleBilinear2, UpsampleNearest2};
use crate::ops::softmax::{Axis, Softmax};
use crate::tensor::Shape;

/// Groups of the norms in blocks whose case does not say: the reference's default.
const NORM_GROUPS: usize = 32;

type Built = Result<NodeId, CaseError>;

/// Whether an operation exists for training alone.
pub(super) fn is_for_training(op: &str) -> bool {
    matches!(op, "sobel_abs" | "ssim")
}

/// Computes the case of the operation or block `op`.
pub(super) fn run(case: &Case, op: &str, device: &Device, forward_only: bool) -> Result<Results, CaseError> {
    let mut block = Block { case, config: Config(&case.config), network: Network::default(), dims: None };
    // Parameters first: blocks may rename them.
    block.network.params = case.params("param.");
    let y = block.build(op)?;
    block.network.outputs.push(("out.y".into(), y));
    let mut results = block.network.run(case, device, Scale::Op)?;
    if !forward_only {
        block.network.differentiate(case, device, &mut results)?;
    }
    if let (Some(dims), Some(y)) = (block.dims, results.arrays.get_mut("out.y")) {
        y.dims = dims;
    }
    Ok(results)
}

struct Block<'a> {
    case: &'a Case,
    config: Config<'a>,
    network: Network,
    /// The result's dimensions, where they are not those of its shape in the graph.
    dims: Option<Vec<usize>>,
}

impl Block<'_> {
    fn build(&mut self, op: &str) -> Built {
        match op {
            "conv2d" => self.conv2d(),
            "linear" => self.linear(),
            "group_norm" => self.group_norm(),
            "instance_norm" => self.instance_norm(),
            "batch_norm" => self.batch_norm(),
            "relu" => self.activation(Activation::Relu),
            "silu" => self.activation(Activation::Silu),
            "tanh" => self.activation(Activation::Tanh),
            "sigmoid" => self.activation(Activation::Sigmoid),
            "leaky_relu" => {
                let slope = self.config.number("negative_slope")?;
                self.activation(Activation::LeakyRelu(slope))
            }
            "softmax" => self.softmax(),
            "upsample_nearest2" => self.of_x(UpsampleNearest2),
            "upsample_bilinear2" => self.upsample_bilinear2(),
            "global_avg_pool" => self.of_x(GlobalAvgPool),
            "channel_mean" => self.of_x(ChannelMean),
            "channel_max" => self.of_x(ChannelMax),
            "positional_encoding" => self.positional_encoding(),
            "noise_level_mlp" => self.noise_level_mlp(),
            "feature_wise_affine" => self.feature_wise_affine(),
            "resnet_block" => self.resnet_block(),
            "lkc_resnet_block" => self.lkc_resnet_block(),
            "replk_block" => self.replk_block(),
            "multi_scale_gated_attn" => self.multi_scale_gated_attn(),
            "self_attention" => self.self_attention(),
            "unet_upsample" => self.block_of_x(upsample),
            "unet_downsample" => self.block_of_x(downsample),
            "head_block" => self.head_block(),
            "three_att_block" => self.block_of_x(three_att_block),
            "attention_block2" => self.attention_block2(),
            "sobel_abs" => self.sobel_abs(),
            "ssim" => self.ssim(),
            _ => Err(CaseError::Unknown(op.to_owned())),
        }
    }

    fn input(&mut self, name: &str) -> Built {
        self.network.input(self.case, name)
    }

    fn has(&self, tensor: &str) -> bool {
        self.case.tensors.contains_key(tensor)
    }

    fn block_of_x(&mut self, block: impl FnOnce(&mut Graph, NodeId) -> Result<NodeId, GraphError>) -> Built {
        let x = self.input("x")?;
        Ok(block(&mut self.network.graph, x)?)
    }

    fn of_x(&mut self, op: impl Op) -> Built {
        self.block_of_x(|g, x| g.apply("y", op, &[x]))
    }

    /// An operation on `x` and weights of one value for each of its channels.
    fn of_x_by_channel(&mut self, op: impl Op, weights: &[&str]) -> Built {
        let mut inputs = vec![self.input("x")?];
        let g = &mut self.network.graph;
        let channels = Shape::new(1, g.shape(inputs[0]).c(), 1, 1);
        for name in weights {
            inputs.push(g.param(name, channels)?);
        }
        Ok(g.apply("y", op, &inputs)?)
    }

    /// An activation, which takes any number of dimensions.
    fn activation(&mut self, activation: Activation) -> Built {
        let (dims, values) = self.case.f32("in.x")?;
        let flat = Shape::new(1, 1, 1, values.len());
        let x = self.network.input_as("x", Shape::from_dims(dims).unwrap_or(flat), values);
        self.dims = Some(dims.to_vec());
        Ok(self.network.graph.apply("y", Pointwise::act(activation), &[x])?)
    }

    fn conv2d(&mut self) -> Built {
        let config = self.config;
        let padding_mode = match config.word("padding_mode") {
            None | Some("zeros") => PaddingMode::Zeros,
            Some("reflect") => PaddingMode::Reflect,
            Some(other) => return Err(CaseError::Unimplemented(format!("padding mode {other}"))),
        };
        let spec = ConvSpec {
            kernel: config.pair("kernel")?,
            stride: config.pair("stride")?,
            padding: config.pair("padding")?,
            dilation: config.pair("dilation")?,
            groups: config.count("groups")?,
            padding_mode,
            upsample: false,
        };
        let (into, out) = (config.count("in_channels")?, config.count("out_channels")?);
        if spec.groups == 0 || into % spec.groups != 0 {
            let reason = format!("{} must divide the {into} channels", spec.groups);
            return Err(CaseError::config("groups", reason));
        }
        let [kh, kw] = spec.kernel;
        let x = self.input("x")?;
        let g = &mut self.network.graph;
        let weight = g.param("weight", Shape::new(out, into / spec.groups, kh, kw))?;
        if !config.flag("bias")? {
            return Ok(g.apply("y", Conv2d::new(spec), &[x, weight])?);
        }
        let bias = g.param("bias", Shape::new(1, out, 1, 1))?;
        Ok(g.apply("y", Conv2d::with_bias(spec), &[x, weight, bias])?)
    }

    /// The last dimension is the features', whatever comes before it the batch's.
    fn linear(&mut self) -> Built {
        let (into, out) = (self.config.count("in_features")?, self.config.count("out_features")?);
        let (dims, values) = self.case.f32("in.x")?;
        if dims.last() != Some(&into) || into == 0 {
            let reason = format!("{dims:?} does not end with {into} features");
            return Err(CaseError::tensor("in.x", reason));
        }
        let shape = Shape::new(values.len() / into, into, 1, 1);
        self.dims = Some([&dims[..dims.len() - 1], &[out]].concat());
        let x = self.network.input_as("x", shape, values);
        let g = &mut self.network.graph;
        let weight = g.param("weight", Shape::new(out, into, 1, 1))?;
        if !self.network.params.contains_key("bias") {
            return Ok(g.apply("y", Linear::new(), &[x, weight])?);
        }
        let bias = g.param("bias", Shape::new(1, out, 1, 1))?;
        Ok(g.apply("y", Linear::with_bias(), &[x, weight, bias])?)
    }

    fn norm(&mut self, groups: usize, affine: bool) -> Built {
        let norm = GroupNorm { groups, eps: self.config.number("eps")?, affine, activation: Activation::None };
        let weights: &[&str] = if affine { &["weight", "bias"] } else { &[] };
        self.of_x_by_channel(norm, weights)
    }

    fn group_norm(&mut self) -> Built {
        let groups = self.config.count("groups")?;
        self.norm(groups, self.has("param.weight"))
    }

    fn instance_norm(&mut self) -> Built {
        let (channels, affine) = (self.config.count("channels")?, self.config.flag("affine")?);
        self.norm(channels, affine)
    }

    fn batch_norm(&mut self) -> Built {
        let norm = BatchNorm { eps: self.config.number("eps")?, activation: Activation::None };
        let names = ["weight", "bias", "running_mean", "running_var"];
        if !self.case.train {
            return self.of_x_by_channel(norm, &names);
        }
        let x = self.input("x")?;
        let g = &mut self.network.graph;
        let channels = Shape::new(1, g.shape(x).c(), 1, 1);
        let [weight, bias, mean, variance] = names.map(|name| g.param(name, channels));
        let norm = norm.training(g, "y", [x, weight?, bias?, mean?, variance?])?;
        for (name, id) in [("after.running_mean", norm.running_mean), ("after.running_var", norm.running_var)] {
            self.network.outputs.push((name.into(), id));
        }
        Ok(norm.y)
    }

    fn sobel_abs(&mut self) -> Built {
        self.network.params.extend(loss::constants());
        self.block_of_x(loss::sobel_abs)
    }

    fn ssim(&mut self) -> Built {
        self.network.params.extend(loss::constants());
        let (a, b) = (self.input("a")?, self.input("b")?);
        Ok(loss::ssim(&mut self.network.graph, a, b)?)
    }

    /// A softmax over any dimension of any number of them: over rows if it is the last, else over channels.
    fn softmax(&mut self) -> Built {
        let dim = self.config.count("dim")?;
        let (dims, values) = self.case.f32("in.x")?;
        let Some(&len) = dims.get(dim) else {
            return Err(CaseError::config("dim", format!("{dims:?} has no dimension {dim}")));
        };
        let product = |dims: &[usize]| dims.iter().product::<usize>();
        let (outer, inner) = (product(&dims[..dim]), product(&dims[dim + 1..]));
        let (shape, axis) = match (dims, dim) {
            (&[n, c, h, w], 1) => (Shape::new(n, c, h, w), Axis::Channels),
            (&[n, c, h, w], 3) => (Shape::new(n, c, h, w), Axis::Width),
            _ if dim + 1 == dims.len() => (Shape::new(1, 1, outer, len), Axis::Width),
            _ => (Shape::new(outer, len, 1, inner), Axis::Channels),
        };
        let x = self.network.input_as("x", shape, values);
        self.dims = Some(dims.to_vec());
        Ok(self.network.graph.apply("y", Softmax { axis }, &[x])?)
    }

    fn upsample_bilinear2(&mut self) -> Built {
        if !self.config.flag("align_corners")? {
            let what = "bilinear upsampling without aligned corners";
            return Err(CaseError::Unimplemented(what.into()));
        }
        self.of_x(UpsampleBilinear2)
    }

    fn positional_encoding(&mut self) -> Built {
        let dim = self.config.count("dim")?;
        let level = self.input("noise_level")?;
        Ok(self.network.graph.apply("y", PositionalEncoding { dim }, &[level])?)
    }

    fn noise_level_mlp(&mut self) -> Built {
        let dim = self.config.count("dim")?;
        let level = self.input("noise_level")?;
        let params = std::mem::take(&mut self.network.params);
        self.network.param_prefix = "noise_level_mlp.";
        let renamed = params.into_iter().map(|(k, v)| (format!("noise_level_mlp.{k}"), v));
        self.network.params = renamed.collect();
        Ok(noise_level_mlp(&mut self.network.graph, dim, level)?)
    }

    fn feature_wise_affine(&mut self) -> Built {
        if self.config.0.get("use_affine_level").is_some() && self.config.flag("use_affine_level")? {
            let what = "a noise level that also scales (use_affine_level)";
            return Err(CaseError::Unimplemented(what.into()));
        }
        let (x, embedding) = (self.input("x")?, self.input("emb")?);
        Ok(feature_wise_affine(&mut self.network.graph, x, embedding)?)
    }

    fn resnet_block(&mut self) -> Built {
        let out = self.config.count("dim_out")?;
        let groups = self.config.count_or("norm_groups", NORM_GROUPS)?;
        let x = self.input("x")?;
        let embedding = if self.has("in.emb") { Some(self.input("emb")?) } else { None };
        Ok(resnet_block(&mut self.network.graph, x, embedding, out, BlockKind::swish(groups))?)
    }

    fn lkc_resnet_block(&mut self) -> Built {
        let (out, norm_groups) = (self.config.count("dim_out")?, self.config.count("groups")?);
        let kernel = self.config.count("kernel")?;
        let kind = BlockKind { norm_groups, activation: Activation::Relu, kernel, dropout: None };
        self.block_of_x(|g, x| resnet_block(g, x, None, out, kind))
    }

    fn replk_block(&mut self) -> Built {
        let kernel = self.config.count("kernel")?;
        self.block_of_x(|g, x| replk_block(g, x, kernel, None))
    }

    fn multi_scale_gated_attn(&mut self) -> Built {
        let (x, skip) = (self.input("x")?, self.input("g")?);
        let mode = if self.case.train { Mode::Training(None) } else { Mode::Inference };
        let y = multi_scale_gated_attn(&mut self.network.graph, x, skip, mode)?;
        let moved = self.network.graph.nodes().iter().filter(|node| matches!(node.kind, Kind::Assign));
        self.network.outputs.extend(moved.map(|node| (format!("after.{}", node.name), node.inputs[0])));
        Ok(y)
    }

    fn self_attention(&mut self) -> Built {
        if self.config.count_or("heads", 1)? != 1 {
            return Err(CaseError::Unimplemented("attention with several heads".into()));
        }
        let groups = self.config.count_or("norm_groups", NORM_GROUPS)?;
        self.block_of_x(|g, x| self_attention(g, x, groups))
    }

    fn head_block(&mut self) -> Built {
        let dim = self.config.count("dim")?;
        self.block_of_x(|g, x| head_block(g, x, dim))
    }

    fn attention_block2(&mut self) -> Built {
        let level = self.config.count("lvl")?;
        let (x, y) = (self.input("x")?, self.input("y")?);
        let mut fused = Vec::new();
        for (name, from) in [("msf_prev2", 3), ("msf_prev", 2)] {
            if level >= from {
                fused.push(self.input(name)?);
            }
        }
        let (weight, _) = self.case.nchw("param.m.block.2.weight")?;
        let g = &mut self.network.graph;
        Ok(g.scope("m", |g| attention_block(g, x, y, &fused, weight.n()))?)
    }
}
