//! Plans as they run: views, pruning, joined operations, limits.

use std::collections::BTreeMap;

use super::Device;
use crate::cpu::activation::Activation;
use crate::gpu::GpuTraits;
use crate::graph::{Graph, NodeId, Plan, Target};
use crate::ops::conv2d::{Conv2d, ConvSpec};
use crate::ops::pointwise::Pointwise;
use crate::ops::resize::UpsampleNearest2;
use crate::ops::testing::{gpu, random, relative_l2};
use crate::tensor::{Shape, Tensor};

const SHAPE: Shape = Shape::new(2, 3, 4, 5);

fn double() -> Pointwise {
    Pointwise::build(|[x]| x.affine(2.0, 1.0))
}

/// The outputs on both devices, which must agree exactly.
fn run(graph: &Graph, outputs: &[NodeId], x: &[f32]) -> Vec<Vec<f32>> {
    let none: BTreeMap<String, Tensor> = BTreeMap::new();
    let on = |device: Device| {
        let exe = device.compile(graph, outputs, &none).expect("it compiles");
        exe.run(&[("x", x)]).expect("it runs")
    };
    let cpu = on(Device::Cpu);
    assert_eq!(on(Device::Gpu(gpu())), cpu);
    cpu
}

/// The channels of two tensors of [`SHAPE`]'s batch and plane, one after the other in each item.
fn joined(a: &[f32], b: &[f32]) -> Vec<f32> {
    let items = a.chunks(a.len() / 2).zip(b.chunks(b.len() / 2));
    items.flat_map(|(a, b)| [a, b].concat()).collect()
}

fn doubled(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| v.mul_add(2.0, 1.0)).collect()
}

#[test]
fn a_concatenation_is_written_in_place() {
    let mut g = Graph::new();
    let x = g.input("x", SHAPE);
    let a = g.apply("a", double(), &[x]).unwrap();
    let b = g.apply("b", Pointwise::act(Activation::Relu), &[x]).unwrap();
    let c = g.concat("c", &[a, b]).unwrap();
    let plan = Plan::new(&g, &[c], Target::Cpu).unwrap();
    assert_eq!(plan.steps.len(), 2, "no copy");
    assert_eq!(plan.steps[0].output.buffer, plan.steps[1].output.buffer);
    let data = random(SHAPE.numel(), 1);
    let relu: Vec<f32> = data.iter().map(|v| v.max(0.0)).collect();
    assert_eq!(run(&g, &[c], &data)[0], joined(&doubled(&data), &relu));
}

#[test]
fn parts_that_cannot_be_written_in_place_are_copied() {
    let mut g = Graph::new();
    let x = g.input("x", SHAPE);
    let a = g.apply("a", double(), &[x]).unwrap();
    // `b` reads the buffer that it would be written to, `x` is an input, and `a` is in two concatenations.
    let b = g.apply("b", double(), &[a]).unwrap();
    let first = g.concat("first", &[a, b]).unwrap();
    let second = g.concat("second", &[x, a]).unwrap();
    let data = random(SHAPE.numel(), 2);
    let (one, two) = (doubled(&data), doubled(&doubled(&data)));
    let found = run(&g, &[first, second], &data);
    assert_eq!(found, [joined(&one, &two), joined(&data, &one)]);
    let plan = Plan::new(&g, &[first, second], Target::Cpu).unwrap();
    for step in &plan.steps {
        let reads = step.inputs.iter().map(|l| l.buffer);
        assert!(reads.into_iter().all(|b| b != step.output.buffer), "{}", step.name);
    }
}

#[test]
fn nested_concatenations_and_slices_are_views() {
    let mut g = Graph::new();
    let x = g.input("x", SHAPE);
    let a = g.apply("a", double(), &[x]).unwrap();
    let b = g.apply("b", Pointwise::act(Activation::Relu), &[x]).unwrap();
    let inner = g.concat("inner", &[a, b]).unwrap();
    let c = g.apply("c", Pointwise::act(Activation::LeakyRelu(0.5)), &[x]).unwrap();
    let outer = g.concat("outer", &[inner, c]).unwrap();
    let slice = g.slice("slice", outer, 2, 3).unwrap();
    let read = g.apply("read", double(), &[slice]).unwrap();
    let data = random(SHAPE.numel(), 3);
    let whole = run(&g, &[outer], &data).remove(0);
    let plane = SHAPE.plane();
    let expected: Vec<f32> = (0..2).flat_map(|n| doubled(&whole[(n * 9 + 2) * plane..][..3 * plane])).collect();
    assert_eq!(run(&g, &[read, outer], &data), [expected, whole]);
    assert_eq!(Plan::new(&g, &[read], Target::Cpu).unwrap().steps.len(), 4);
}

#[test]
fn a_reshaped_tensor_is_a_view_unless_its_items_lie_apart() {
    let mut g = Graph::new();
    let x = g.input("x", SHAPE);
    let a = g.apply("a", double(), &[x]).unwrap();
    let b = g.apply("b", Pointwise::act(Activation::Relu), &[x]).unwrap();
    let whole = g.concat("whole", &[a, b]).unwrap();
    // The items of `b` lie apart, inside `whole`: other planes can be seen there, another number of items cannot.
    let planes = g.reshape("planes", b, Shape::new(2, 5, 12, 1)).unwrap();
    let items = g.reshape("items", b, Shape::new(6, 1, 4, 5)).unwrap();
    let channel = g.slice("channel", planes, 3, 1).unwrap();
    let read = g.apply("read", double(), &[channel]).unwrap();
    let second = g.apply("second", double(), &[items]).unwrap();
    let data = random(SHAPE.numel(), 4);
    let relu: Vec<f32> = data.iter().map(|v| v.max(0.0)).collect();
    let fourth: Vec<f32> = relu.chunks(60).flat_map(|item| doubled(&item[36..48])).collect();
    let expected = [fourth, doubled(&relu), joined(&doubled(&data), &relu)];
    assert_eq!(run(&g, &[read, second, whole], &data), expected);
    assert_eq!(Plan::new(&g, &[read, whole], Target::Cpu).unwrap().steps.len(), 3, "no copy");
    assert_eq!(Plan::new(&g, &[read, second, whole], Target::Cpu).unwrap().steps.len(), 5, "one copy");
    assert!(g.reshape("too few", b, Shape::new(2, 3, 4, 4)).is_err());
}

#[test]
fn what_no_output_needs_is_pruned_and_chains_share_two_buffers() {
    let mut g = Graph::new();
    let mut x = g.input("x", SHAPE);
    let spec = ConvSpec::same(3);
    let mut weights = BTreeMap::new();
    let mut last = x;
    for i in 0..6 {
        let name = format!("w{i}");
        let weight = g.param(&name, Shape::new(3, 3, 3, 3)).unwrap();
        weights.insert(name, Tensor::new([3, 3, 3, 3], random(81, i)));
        last = x;
        x = g.apply("conv", Conv2d::new(spec), &[x, weight]).unwrap();
    }
    let plan = Plan::new(&g, &[last], Target::Cpu).unwrap();
    assert_eq!((plan.steps.len(), plan.params.len()), (5, 5));
    assert_eq!(plan.macs, 5 * 27 * SHAPE.numel() as u64);
    // The input, and two buffers that the results alternate between.
    assert_eq!(plan.run_bytes(), 2 * 4 * SHAPE.numel() as u64);
}

#[test]
fn a_block_is_one_convolution_with_its_epilogue() {
    let mut g = Graph::new();
    let x = g.input("x", Shape::new(1, 3, 4, 5));
    let up = g.apply("up", UpsampleNearest2, &[x]).unwrap();
    let weight = g.param("weight", Shape::new(3, 3, 3, 3)).unwrap();
    let bias = g.param("bias", Shape::new(1, 3, 1, 1)).unwrap();
    let vector = g.param("vector", Shape::new(1, 3, 1, 1)).unwrap();
    let other = g.param("other", Shape::new(1, 3, 8, 10)).unwrap();
    let conv = Conv2d::with_bias(ConvSpec::same(3));
    let h = g.apply("conv", conv, &[up, weight, bias]).unwrap();
    let h = g.apply("vector", Pointwise::add(), &[h, vector]).unwrap();
    let h = g.apply("other", Pointwise::add(), &[other, h]).unwrap();
    let h = g.apply("act", Pointwise::act(Activation::Silu), &[h]).unwrap();
    let plan = Plan::new(&g, &[h], Target::Cpu).unwrap();
    assert_eq!(plan.steps.len(), 1);
    let weights: BTreeMap<String, Tensor> = g
        .params()
        .iter()
        .map(|(name, id)| {
            let shape = g.shape(*id);
            (name.clone(), Tensor::new(shape.0, random(shape.numel(), 4)))
        })
        .collect();
    let data = random(60, 5);
    let fused = |outputs: &[NodeId], device: Device| {
        let exe = device.compile(&g, outputs, &weights).expect("it compiles");
        exe.run(&[("x", &data)]).expect("it runs").remove(0)
    };
    // With every node asked for, nothing can be joined.
    let all: Vec<NodeId> = std::iter::once(h).chain((0..g.nodes().len()).map(NodeId)).collect();
    let apart = fused(&all, Device::Cpu);
    assert!(relative_l2(&fused(&[h], Device::Cpu), &apart) < 1e-6);
    assert!(relative_l2(&fused(&[h], Device::Gpu(gpu())), &apart) < 1e-6);
}

#[test]
fn loops_up_to_the_limit_are_right_and_longer_ones_refused() {
    // A 3x3 convolution loops over rows and taps of each channel; results were wrong from about 3,500 channels on.
    let sums = |channels: usize| {
        let weight = Shape::new(2, channels, 3, 3);
        let mut g = Graph::new();
        let x = g.input("x", Shape::new(1, channels, 3, 3));
        let w = g.param("w", weight).unwrap();
        let conv = Conv2d::new(ConvSpec::same(3));
        let y = g.apply("conv", conv, &[x, w]).unwrap();
        let w = Tensor::new(weight.0, random(weight.numel(), 6));
        let weights = BTreeMap::from([("w".to_owned(), w)]);
        let data = random(9 * channels, 7);
        let on = |device: Device| {
            let exe = device.compile(&g, &[y], &weights)?;
            Ok(exe.run(&[("x", &data)])?.remove(0))
        };
        (on(Device::Cpu), on(Device::Gpu(gpu())))
    };
    let (cpu, on_gpu): (Result<_, crate::device::RunError>, Result<_, _>) = sums(2_700);
    assert!(cpu.is_ok());
    assert_eq!(on_gpu.is_err(), gpu().traits().software);
    let (cpu, on_gpu) = sums(2_600);
    assert!(relative_l2(&on_gpu.unwrap(), &cpu.unwrap()) < 1e-5);
}

#[test]
fn a_tensor_over_the_adapters_limit_is_refused_by_name() {
    let mut g = Graph::new();
    let x = g.input("x", SHAPE);
    let y = g.apply("layer", double(), &[x]).unwrap();
    let traits = GpuTraits { max_binding: 4 * SHAPE.numel() as u64 - 1, ..gpu().traits().clone() };
    let error = Plan::new(&g, &[y], Target::Gpu(traits)).unwrap_err().to_string();
    assert!(error.contains("layer layer"), "{error}");
}
