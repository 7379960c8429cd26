//! Cases of operations and of parts of losses: the table of those that are known, and how a case of one of them or of a
//! model's block is computed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Job;
use super::compare::Scale;
use super::network::{self, Results};
use crate::cpu::activation::Activation;
use crate::graph::{Graph, GraphError, Kind, NodeId};
use crate::models::MODELS;
use crate::models::golden::CaseGraph;
use crate::models::golden::attributes::Attributes;
use crate::models::golden::case::Case;
use crate::models::golden::error::CaseError;
use crate::models::golden::row::{
    Block, Fact, Layout, Literal, OF_X, Row, Site, Tensors, block, fixed, given, implied, operation, plain, reach,
};
use crate::models::training::loss;
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv2d::{Conv2d, ConvSpec};
use crate::ops::group_norm::GroupNorm;
use crate::ops::linear::Linear;
use crate::ops::pointwise::Pointwise;
use crate::ops::positional_encoding::PositionalEncoding;
use crate::ops::reduce::{ChannelMax, ChannelMean, GlobalAvgPool};
use crate::ops::resize::{UpsampleBilinear2, UpsampleNearest2};
use crate::ops::softmax::Softmax;
use crate::tensor::{Shape, Tensor};

/// The channels of `x`, which PyTorch calls features in its norms.
const CHANNELS: Fact = implied(&["channels", "num_channels", "num_features"], |t| t.dim("in.x", 1));

/// The row of an activation, which takes any number of dimensions.
const fn activation(name: &'static str) -> Row {
    Row { name, layout: Layout::Elements, read: block::<Activation>, ..OF_X }
}

static OPERATIONS: &[Row] = &[
    Row {
        name: "conv2d",
        weights: &["weight", "bias?"],
        facts: &[
            implied(&["in_channels"], |t| t.dim("in.x", 1)),
            implied(&["out_channels"], |t| t.dim("param.weight", 0)),
            implied(&["bias"], |t| Some(t.has("param.bias").into())),
            reach("kernel"),
            reach("stride"),
            reach("padding"),
            reach("dilation"),
        ],
        read: block::<ConvSpec>,
        ..OF_X
    },
    Row {
        name: "linear",
        weights: &["weight", "bias?"],
        facts: &[
            implied(&["in_features"], |t| t.dim("in.x", -1)),
            implied(&["out_features"], |t| t.dim("param.weight", 0)),
            given("bias", &["bias"], |t| Some(t.has("param.bias").into())),
        ],
        layout: Layout::Features,
        read: operation::<Linear>,
        ..OF_X
    },
    Row {
        name: "group_norm",
        weights: &["weight?", "bias?"],
        facts: &[CHANNELS, given("affine", &["affine"], |t| Some(t.has("param.weight").into()))],
        read: operation::<GroupNorm>,
        ..OF_X
    },
    Row {
        name: "instance_norm",
        weights: &["weight?", "bias?"],
        facts: &[
            given("groups", &["channels", "num_features"], |t| t.dim("in.x", 1)),
            given("affine", &["affine"], |t| Some(t.has("param.weight").into())),
            fixed("track_running_stats", Literal::Flag(false)),
        ],
        read: operation::<GroupNorm>,
        ..OF_X
    },
    Row {
        name: "batch_norm",
        weights: &["weight", "bias", "running_mean", "running_var"],
        facts: &[
            CHANNELS,
            fixed("momentum", Literal::Number(0.1)),
            fixed("affine", Literal::Flag(true)),
            fixed("track_running_stats", Literal::Flag(true)),
        ],
        read: block::<BatchNorm>,
        ..OF_X
    },
    activation("relu"),
    activation("silu"),
    activation("leaky_relu"),
    activation("tanh"),
    activation("sigmoid"),
    Row { name: "softmax", layout: Layout::Axis, read: operation::<Softmax>, ..OF_X },
    Row {
        name: "upsample_nearest2",
        facts: &[fixed("scale", Literal::Number(2.0))],
        read: operation::<UpsampleNearest2>,
        ..OF_X
    },
    Row {
        name: "upsample_bilinear2",
        facts: &[
            fixed("scale", Literal::Number(2.0)),
            Fact::Fixed { name: "align_corners", value: Literal::Flag(true), required: true },
        ],
        read: operation::<UpsampleBilinear2>,
        ..OF_X
    },
    Row { name: "global_avg_pool", read: operation::<GlobalAvgPool>, ..OF_X },
    Row { name: "channel_mean", facts: OVER_CHANNELS, read: operation::<ChannelMean>, ..OF_X },
    Row { name: "channel_max", facts: OVER_CHANNELS, read: operation::<ChannelMax>, ..OF_X },
    Row {
        name: "positional_encoding",
        inputs: &["noise_level"],
        facts: &[fixed(
            "formula",
            Literal::Text("count=d/2; e=level*exp(-ln(1e4)*i/count), i=0..count-1; cat(sin e, cos e)"),
        )],
        read: operation::<PositionalEncoding>,
        ..OF_X
    },
    // Parts of losses.
    Row {
        name: "sobel_abs",
        facts: &[fixed(
            "kernels",
            Literal::Text("x=[-1 0 1;-2 0 2;-1 0 1] y=[1 2 1;0 0 0;-1 -2 -1], zero padding 1, |gx|+|gy|"),
        )],
        loss: true,
        read: |a| plain(a, |g, site| loss::sobel_abs(g, site.tensor("x"))),
        ..OF_X
    },
    Row {
        name: "ssim",
        inputs: &["a", "b"],
        facts: &[
            fixed("window", Literal::Number(11.0)),
            fixed("sigma", Literal::Number(1.5)),
            fixed("padding", Literal::Number(5.0)),
            fixed("C1", Literal::Number(1e-4)),
            fixed("C2", Literal::Number(9e-4)),
        ],
        loss: true,
        read: |a| plain(a, |g, site| loss::ssim(g, site.tensor("a"), site.tensor("b"))),
        ..OF_X
    },
];

const OVER_CHANNELS: &[Fact] = &[fixed("dim", Literal::Number(1.0)), fixed("keepdim", Literal::Flag(true))];

/// All operations and blocks.
fn rows() -> impl Iterator<Item = &'static Row> {
    OPERATIONS.iter().chain(MODELS.iter().flat_map(|model| model.golden.blocks))
}

/// The operation or block `name`.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    rows().find(|row| row.name == name)
}

impl Block for Activation {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        g.apply("y", Pointwise::act(*self), &site.ids())
    }
}

impl Block for ConvSpec {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        let conv = Conv2d { bias: site.find("bias").is_some(), ..Conv2d::new(*self) };
        g.apply("y", conv, &site.ids())
    }
}

/// The norm with its running statistics, or in training with the batch's, towards which the running ones move.
impl Block for BatchNorm {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        if !site.training {
            return g.apply("y", *self, &site.ids());
        }
        let inputs = ["x", "weight", "bias", "running_mean", "running_var"].map(|name| site.tensor(name));
        let trained = self.training(g, "y", inputs)?;
        g.assign(inputs[3], trained.running_mean)?;
        g.assign(inputs[4], trained.running_var)?;
        Ok(trained.y)
    }
}

/// Computes the case of an operation or a block.
pub(super) fn run(row: &'static Row, job: Job) -> Result<Results, CaseError> {
    let Job { case, mut attributes, device, forward_only } = job;
    let dims = case.tensors.iter().map(|(name, array)| (name.as_str(), array.dims.as_slice()));
    let tensors = Tensors(dims.collect());
    for fact in row.facts {
        fact.check(&mut attributes, &tensors)?;
    }
    let mut network = CaseGraph { param_prefix: row.scope, ..CaseGraph::default() };
    let operands = operands(row, case, &mut attributes, &mut network)?;
    let site = Site { operands, training: case.train };
    let y = (row.read)(attributes)?.build(&mut network.graph, &site)?;
    let params = case.params("param.");
    all_read(row, &params, &network)?;
    network.params = params.into_iter().map(|(name, tensor)| (format!("{}{name}", row.scope), tensor)).collect();
    if row.loss {
        network.params.extend(loss::constants());
    }
    let dims = result_dims(row, case, network.graph.shape(y));
    same_size(case, &dims)?;
    network.outputs.push(("out.y".into(), y));
    let moved = network.graph.nodes().iter().filter(|node| matches!(node.kind, Kind::Assign));
    network.outputs.extend(moved.map(|node| (format!("after.{}", node.name), node.inputs[0])));
    let mut results = network::run(&network, case, device, Scale::Op, forward_only)?;
    if let Some(y) = results.computed.arrays.get_mut("out.y") {
        y.dims = dims;
    }
    Ok(results)
}

/// The row's tensors that the case has, as nodes. Each tensor of the case must be one of the row's.
fn operands(
    row: &Row,
    case: &Case,
    attributes: &mut Attributes,
    network: &mut CaseGraph,
) -> Result<Vec<(&'static str, NodeId)>, CaseError> {
    let listed = |name: &str| row.inputs.iter().any(|known| known.trim_end_matches('?') == name);
    let strange = case.tensors.keys().find(|name| name.strip_prefix("in.").is_some_and(|name| !listed(name)));
    if let Some(name) = strange {
        return Err(CaseError::tensor(name, format!("{} takes no such tensor", row.name)));
    }
    let mut operands = Vec::new();
    let there = |prefix: &str, name: &&'static str| {
        let (name, optional) = (name.trim_end_matches('?'), name.ends_with('?'));
        (!optional || case.tensors.contains_key(&format!("{prefix}{name}"))).then_some(name)
    };
    for name in row.inputs.iter().filter_map(|name| there("in.", name)) {
        let shape = input_shape(row.layout, case, name, attributes)?;
        operands.push((name, network.input_as(name, shape, case.f32(&format!("in.{name}"))?.1)));
    }
    for name in row.weights.iter().filter_map(|name| there("param.", name)) {
        let (shape, _) = case.nchw(&format!("param.{name}"))?;
        operands.push((name, network.graph.param(name, shape)?));
    }
    Ok(operands)
}

/// The shape in which the operation takes the tensor `in.{name}`.
fn input_shape(layout: Layout, case: &Case, name: &str, attributes: &mut Attributes) -> Result<Shape, CaseError> {
    let name = format!("in.{name}");
    let (dims, values) = case.f32(&name)?;
    Ok(match (layout, dims) {
        (Layout::Nchw, _) => case.nchw(&name)?.0,
        (Layout::Elements, _) => Shape::from_dims(dims).unwrap_or(Shape::new(1, 1, 1, values.len())),
        (Layout::Features, [.., features]) => Shape::new(values.len() / features, *features, 1, 1),
        (Layout::Features, []) => return Err(CaseError::tensor(&name, "a number has no features")),
        (Layout::Axis, _) => axis_shape(dims, attributes)?,
    })
}

/// The shape of a tensor whose dimension `dim` is worked on: the attribute gives way to `axis`, width or channels.
fn axis_shape(dims: &[usize], attributes: &mut Attributes) -> Result<Shape, CaseError> {
    let given = attributes.take("dim");
    let dim = given.as_ref().and_then(Value::as_i64).and_then(|dim| isize::try_from(dim).ok());
    let counted =
        dim.and_then(|dim| if dim < 0 { dims.len().checked_add_signed(dim) } else { Some(dim.unsigned_abs()) });
    let Some(dim) = counted.filter(|dim| *dim < dims.len()) else {
        let dim = given.map_or("missing".into(), |value| value.to_string());
        return Err(attributes.error(format!("dim is {dim}, which is no dimension of {dims:?}")));
    };
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let (outer, inner) = (product(&dims[..dim]), product(&dims[dim + 1..]));
    let (shape, axis) = match (dims, dim) {
        (&[n, c, h, w], 1) => (Shape::new(n, c, h, w), "channels"),
        (&[n, c, h, w], 3) => (Shape::new(n, c, h, w), "width"),
        _ if dim + 1 == dims.len() => (Shape::new(1, 1, outer, dims[dim]), "width"),
        _ => (Shape::new(outer, dims[dim], 1, inner), "channels"),
    };
    attributes.give("axis", axis.into())?;
    Ok(shape)
}

/// The dimensions that the reference's result has where medfuse's is of this shape.
fn result_dims(row: &Row, case: &Case, shape: Shape) -> Vec<usize> {
    let of_x = case.tensors.get("in.x").map_or(&[][..], |x| &x.dims);
    match (row.layout, of_x) {
        (Layout::Elements | Layout::Axis, dims) => dims.to_vec(),
        (Layout::Features, [before @ .., _]) => [before, &[shape.c()]].concat(),
        _ => shape.0.to_vec(),
    }
}

/// Refuses weights that the network has no use for: the reference's module was another, similar one.
fn all_read(row: &Row, params: &BTreeMap<String, Tensor>, network: &CaseGraph) -> Result<(), CaseError> {
    let read = |name: &String| network.graph.params().contains_key(&format!("{}{name}", row.scope));
    match params.keys().find(|name| !read(name)) {
        Some(name) => {
            let reason = format!("{} with these attributes has no such weight", row.name);
            Err(CaseError::tensor(&format!("param.{name}"), reason))
        }
        None => Ok(()),
    }
}

/// Refuses a case whose result has another size before it is computed: a few bytes could ask for gigabytes.
fn same_size(case: &Case, dims: &[usize]) -> Result<(), CaseError> {
    let product = |dims: &[usize]| dims.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    match case.tensors.get("out.y") {
        None => Err(CaseError::tensor("out.y", "the case lacks it")),
        Some(expected) if product(&expected.dims) != product(dims) => {
            let reason = format!("it is {:?}, but medfuse's result is {dims:?}", expected.dims);
            Err(CaseError::tensor("out.y", reason))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names: Vec<&str> = rows().map(|row| row.name).collect();
        assert!(names.iter().all(|name| find(name).is_some_and(|row| row.name == *name)));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
