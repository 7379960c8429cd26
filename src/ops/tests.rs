//! Holds every kernel, in every launch that the operations and their gradients make of it, against what its text
//! declares. No GPU is needed: plans are made for adapters that are not there.

use std::collections::BTreeSet;

use super::attention::SelfAttention;
use super::batch_norm::BatchNorm;
use super::conv2d::{Conv2d, ConvSpec, PaddingMode};
use super::dropout::Dropout;
use super::gradients;
use super::group_norm::GroupNorm;
use super::linear::Linear;
use super::pointwise::Pointwise;
use super::positional_encoding::PositionalEncoding;
use super::reduce::{ChannelMax, ChannelMean, GlobalAvgPool};
use super::reduce_sum::ReduceSum;
use super::resize::{UpsampleBilinear2, UpsampleNearest2};
use super::softmax::{Axis, Softmax};
use super::testing::adapters;
use crate::cpu::activation::Activation;
use crate::gpu::{Launch, check, kernel_names};
use crate::graph::{Graph, NodeId, Op, Plan, Target, Work};
use crate::tensor::Shape;

type Apply = dyn Fn(&mut Graph, &[NodeId]) -> NodeId;

/// An operation on inputs of these shapes, with its gradients with respect to those that have one.
struct Case {
    op: Box<Apply>,
    shapes: Vec<Shape>,
    differentiated: usize,
}

fn case(op: impl Op + Clone, shapes: &[Shape], differentiated: usize) -> Case {
    let apply = move |g: &mut Graph, inputs: &[NodeId]| g.apply("op", op.clone(), inputs).expect("the shapes fit");
    Case { op: Box::new(apply), shapes: shapes.to_vec(), differentiated }
}

fn convolution(spec: ConvSpec, x: Shape, oc: usize) -> Case {
    let conv = Conv2d { channel_add: true, residual: true, activation: Activation::Silu, ..Conv2d::with_bias(spec) };
    let weight = Shape::new(oc, x.c() / spec.groups, spec.kernel[0], spec.kernel[1]);
    let output = spec.output_shape(x, weight).expect("the shapes fit");
    let vector = Shape::new(1, oc, 1, 1);
    case(conv, &[x, weight, vector, Shape::new(x.n(), oc, 1, 1), output], 5)
}

fn cases() -> Vec<Case> {
    let image = Shape::new(2, 12, 40, 36);
    let vector = Shape::new(1, 12, 1, 1);
    let three = ConvSpec::same(3);
    let norm = |groups, affine| GroupNorm { groups, eps: 1e-5, affine, activation: Activation::Silu };
    let large = Shape::new(2, 12, 256, 256);
    vec![
        convolution(three, Shape::new(1, 128, 64, 64), 128),
        convolution(ConvSpec { upsample: true, ..three }, Shape::new(1, 128, 31, 31), 65),
        convolution(ConvSpec { stride: [2; 2], ..three }, Shape::new(1, 64, 65, 64), 64),
        convolution(ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(7) }, image, 1),
        convolution(ConvSpec { groups: 3, ..three }, image, 12),
        convolution(ConvSpec { groups: 12, ..ConvSpec::same(5) }, image, 12),
        convolution(ConvSpec::same(1), Shape::new(1, 128, 64, 64), 64),
        convolution(ConvSpec::same(15), Shape::new(4, 128, 64, 64), 128),
        case(Linear::with_bias(), &[Shape::new(3, 40, 1, 1), Shape::new(20, 40, 1, 1), Shape::new(1, 20, 1, 1)], 3),
        case(norm(3, true), &[image, vector, vector], 3),
        case(norm(12, false), &[image], 1),
        case(norm(1, true), &[large, vector, vector], 3),
        case(BatchNorm { eps: 1e-5, activation: Activation::Relu }, &[image, vector, vector, vector, vector], 3),
        case(SelfAttention, &[image], 1),
        case(Softmax { axis: Axis::Channels }, &[image], 1),
        case(Softmax { axis: Axis::Width }, &[image], 1),
        case(ChannelMax, &[image], 1),
        case(ChannelMean, &[image], 1),
        case(GlobalAvgPool, &[image], 1),
        case(GlobalAvgPool, &[large], 1),
        case(ReduceSum::ALL, &[large], 1),
        case(UpsampleNearest2, &[image], 1),
        case(UpsampleBilinear2, &[image], 1),
        case(PositionalEncoding { dim: 16 }, &[Shape::new(2, 1, 1, 1)], 1),
        case(Dropout { p: 0.2, layer: 1 }, &[image, Shape::new(1, 2, 1, 1)], 1),
        case(Pointwise::add(), &[image, vector], 2),
    ]
}

/// The launches of a case and its gradients where its first input and its results are parts of concatenations.
fn launches(case: &Case, target: Target) -> Vec<Launch> {
    let mut g = Graph::new();
    let given: Vec<NodeId> =
        case.shapes.iter().enumerate().map(|(i, shape)| g.input(&format!("x{i}"), *shape)).collect();
    let beside = |g: &mut Graph, node: NodeId| {
        let Shape([n, _, h, w]) = g.shape(node);
        let before = g.input("before", Shape::new(n, 3, h, w));
        g.concat("whole", &[before, node]).expect("they fit")
    };
    let whole = beside(&mut g, given[0]);
    let mut inputs = given.clone();
    inputs[0] = g.slice("x", whole, 3, case.shapes[0].c()).expect("it has that many");
    let out = (case.op)(&mut g, &inputs);
    let dy = g.input("dy", g.shape(out));
    let found = gradients(&mut g, &[(out, dy)], &given[..case.differentiated]).expect("it has gradients");
    let mut outputs = vec![beside(&mut g, out)];
    outputs.extend(found.into_iter().flatten());
    let plan = Plan::new(&g, &outputs, target).expect("it can be planned");
    let steps = plan.setup.iter().chain(&plan.steps).chain(&plan.commits);
    steps
        .flat_map(|step| match &step.work {
            Work::Gpu(launches) => launches.clone(),
            Work::Cpu(_) => panic!("{} is a function", step.name),
        })
        .collect()
}

#[test]
fn every_kernel_is_launched_as_its_text_declares() {
    // The yardsticks are the benchmark's, which tests them.
    let mut reached = BTreeSet::from(["peak_copy", "peak_fma"]);
    for traits in adapters() {
        for case in cases() {
            for launch in launches(&case, Target::Gpu(traits.clone())) {
                check(&launch).unwrap_or_else(|error| panic!("{error}"));
                reached.insert(launch.kernel.file);
            }
        }
    }
    let missed: Vec<&str> = kernel_names().filter(|name| !reached.contains(name)).collect();
    assert!(missed.is_empty(), "no operation here launches {missed:?}");
}
