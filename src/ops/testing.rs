//! What the tests of operations share: random tensors, the comparison of both devices (a kernel and its twin on the
//! CPU), gradients against central differences, and checks of kernels without a GPU.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::gradients;
use crate::cpu::view::{View, ViewMut};
use crate::device::Device;
use crate::gpu::{Bind, Gpu, GpuTraits, Launch, Operand, check};
use crate::graph::{Copy, Graph, Lowered, NodeId, Op, Target, Work, operands};
use crate::tensor::{Shape, Slot, Tensor};

/// Values in [-1, 1), the same for the same seed.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let unit = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..len).map(|_| unit(rng.next_u32())).collect()
}

/// The L2 norm of the difference, relative to that of `expected`.
pub(crate) fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |d: f64| d * d;
    let diff: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (diff / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// The adapter that kernel tests run on; there must be one.
pub(crate) fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let open = || match Device::select("gpu") {
        Ok(Device::Gpu(gpu)) => gpu,
        Ok(Device::Cpu) => panic!("`gpu` never selects the CPU"),
        Err(error) => panic!("kernel tests need an adapter: {error}"),
    };
    GPU.get_or_init(open).clone()
}

/// Runs `op` on random inputs of these shapes on the CPU and on the GPU and fails if they differ by more than
/// `tolerance` (relative L2). Returns the CPU's result.
pub(crate) fn check_twins(op: impl Op + Clone, shapes: &[Shape], tolerance: f64) -> Vec<f32> {
    let data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), 7 + i as u64)).collect();
    check_twins_on(op, shapes, &data, tolerance)
}

/// [`check_twins`] on given inputs. Those from the second on are weights of the graph, so that what is prepared of
/// weights is tried as well.
pub(crate) fn check_twins_on(op: impl Op + Clone, shapes: &[Shape], data: &[Vec<f32>], tolerance: f64) -> Vec<f32> {
    let mut graph = Graph::new();
    let (inputs, weights) = x_and_weights(&mut graph, shapes, data);
    let out = graph.apply("op", op, &inputs).expect("the shapes fit");
    let given = [("x", &data[0][..])];
    let run = |device: Device| {
        let exe = device.compile(&graph, &[out], &weights).expect("it compiles");
        exe.run(&given).expect("it runs").remove(0)
    };
    let cpu = run(Device::Cpu);
    let on_gpu = run(Device::Gpu(gpu()));
    let error = relative_l2(&on_gpu, &cpu);
    assert!(error <= tolerance, "{:?} on {shapes:?}: gpu and cpu differ by {error:e}", graph.node(out).kind);
    cpu
}

/// Adds to `graph` an input `x` of the first shape and weights of the other shapes; returns all of them, and the
/// weights' values.
fn x_and_weights(graph: &mut Graph, shapes: &[Shape], data: &[Vec<f32>]) -> (Vec<NodeId>, BTreeMap<String, Tensor>) {
    let mut inputs = vec![graph.input("x", shapes[0])];
    let mut weights = BTreeMap::new();
    for (i, (shape, data)) in shapes.iter().zip(data).enumerate().skip(1) {
        let name = format!("w{i}");
        inputs.push(graph.param(&name, *shape).expect("names differ"));
        weights.insert(name, Tensor::new(shape.0, data.clone()));
    }
    (inputs, weights)
}

/// Fails if the result of `op`, on either device, changes where its first input and its result are parts of
/// concatenations: views at an offset, with a batch stride of their own.
pub(crate) fn check_views(op: impl Op + Clone, shapes: &[Shape], tolerance: f64) {
    let data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), 70 + i as u64)).collect();
    let expected = check_twins_on(op.clone(), shapes, &data, tolerance);
    let mut graph = Graph::new();
    let (mut inputs, weights) = x_and_weights(&mut graph, shapes, &data);
    let part = |graph: &mut Graph, node: NodeId, name: &str| {
        let Shape([n, _, h, w]) = graph.shape(node);
        let before = graph.input(name, Shape::new(n, 3, h, w));
        graph.concat("whole", &[before, node]).expect("they fit")
    };
    inputs[0] = graph.apply("copy", Copy, &inputs[..1]).expect("it fits");
    let read = part(&mut graph, inputs[0], "before x");
    let out = graph.apply("op", op, &inputs).expect("the shapes fit");
    let written = part(&mut graph, out, "before out");
    let Shape([n, c, h, w]) = graph.shape(out);
    let before_x = vec![9.0; 3 * shapes[0].n() * shapes[0].plane()];
    let before_out = vec![7.0; 3 * n * h * w];
    let given = [("x", &data[0][..]), ("before x", &before_x), ("before out", &before_out)];
    for device in [Device::Cpu, Device::Gpu(gpu())] {
        let exe = device.compile(&graph, &[written, read], &weights).expect("it compiles");
        let found = exe.run(&given).expect("it runs").remove(0);
        let items = found.chunks((c + 3) * h * w);
        assert!(items.clone().all(|item| item[..3 * h * w].iter().all(|v| *v == 7.0)));
        let own: Vec<f32> = items.flat_map(|item| &item[3 * h * w..]).copied().collect();
        let error = relative_l2(&own, &expected);
        assert!(error <= tolerance, "views differ by {error:e} on {device:?}");
    }
}

/// Compares the gradients of `op` with respect to all its inputs, on the CPU, with central differences along random
/// directions, and with the gradients on the GPU. Inputs are random numbers in [-1, 1) plus `shift`.
///
/// `tolerance` is relative to the largest value that the directional derivative can have: the gradient's norm times the
/// direction's.
pub(crate) fn check_gradient(op: impl Op + Clone, shapes: &[Shape], shift: f32, tolerance: f64) {
    let mut data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), 31 + i as u64)).collect();
    data.iter_mut().flatten().for_each(|v| *v += shift);
    check_gradient_on(op, shapes, &data, tolerance);
}

/// [`check_gradient`] at given inputs.
pub(crate) fn check_gradient_on(op: impl Op + Clone, shapes: &[Shape], data: &[Vec<f32>], tolerance: f64) {
    const STEP: f32 = 1e-2;
    let names: Vec<String> = (0..shapes.len()).map(|i| format!("x{i}")).collect();
    let none: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut graph = Graph::new();
    let inputs: Vec<NodeId> = names.iter().zip(shapes).map(|(name, shape)| graph.input(name, *shape)).collect();
    let y = graph.apply("op", op, &inputs).expect("the shapes fit");
    let dy = graph.input("dy", graph.shape(y));
    let weights = random(graph.shape(y).numel(), 30);
    let run = |device: Device, graph: &Graph, outputs: &[NodeId], data: &[Vec<f32>]| {
        let exe = device.compile(graph, outputs, &none).expect("it compiles");
        let mut given: Vec<(&str, &[f32])> =
            names.iter().map(String::as_str).zip(data.iter().map(Vec::as_slice)).collect();
        given.push(("dy", &weights));
        exe.run(&given).expect("it runs")
    };
    let loss = |data: &[Vec<f32>]| -> f64 {
        let y = run(Device::Cpu, &graph, &[y], data).remove(0);
        y.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let numeric = |slot: usize, direction: &[f32]| {
        let at = |step: f32| {
            let mut moved = data.to_vec();
            moved[slot].iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
            loss(&moved)
        };
        (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP))
    };
    let mut with_grads = graph.clone();
    let found = gradients(&mut with_grads, &[(y, dy)], &inputs).expect("it has a gradient");
    let nodes: Vec<NodeId> = found.into_iter().map(|id| id.expect("the result depends on every input")).collect();
    let grads = run(Device::Cpu, &with_grads, &nodes, data);
    let on_gpu = run(Device::Gpu(gpu()), &with_grads, &nodes, data);
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    for (slot, (grad, on_gpu)) in grads.iter().zip(&on_gpu).enumerate() {
        let direction = random(grad.len(), 60 + slot as u64);
        let exact: f64 = grad.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let error = (exact - numeric(slot, &direction)).abs() / (norm(grad) * norm(&direction)).max(1e-9);
        let layer = &graph.node(y).kind;
        assert!(error <= tolerance, "{layer:?} on {shapes:?}: gradient {slot} is off by {error:e}");
        let error = relative_l2(on_gpu, grad);
        assert!(error <= 1e-4, "{layer:?} on {shapes:?}: gradient {slot} differs by {error:e} between gpu and cpu");
    }
}

/// Fails if a gradient of `op`, on either device, changes where the first input is a slice and the result a part of a
/// concatenation. The first input, the gradient with respect to it and the gradient with respect to the result are
/// views then.
pub(crate) fn check_gradient_views(op: impl Op + Clone, shapes: &[Shape], tolerance: f64) {
    const BEFORE: usize = 3;
    let wider = |s: Shape| Shape::new(s.n(), s.c() + BEFORE, s.h(), s.w());
    let out = op.infer(shapes).expect("the shapes fit");
    let mut data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), 31 + i as u64)).collect();
    data[0] = random(wider(shapes[0]).numel(), 31);
    let dy = random(wider(out).numel(), 30);
    let run = |device: Device, viewed: bool| {
        let mut graph = Graph::new();
        let mut wrt = vec![graph.input("x0", wider(shapes[0]))];
        for (i, shape) in shapes.iter().enumerate().skip(1) {
            wrt.push(graph.input(&format!("x{i}"), *shape));
        }
        let part = |graph: &mut Graph, whole: NodeId| {
            let channels = graph.shape(whole).c() - BEFORE;
            let part = graph.slice("part", whole, BEFORE, channels).expect("it has that many");
            // A copy is dense, a slice is not.
            if viewed { part } else { graph.apply("copy", Copy, &[part]).expect("it fits") }
        };
        let mut inputs = wrt.clone();
        inputs[0] = part(&mut graph, wrt[0]);
        let mut y = graph.apply("op", op.clone(), &inputs).expect("the shapes fit");
        let mut seed = graph.input("dy", wider(out));
        if viewed {
            let before = graph.slice("before", seed, 0, BEFORE).expect("it has that many");
            y = graph.concat("whole", &[before, y]).expect("they fit");
        } else {
            seed = part(&mut graph, seed);
        }
        let found = gradients(&mut graph, &[(y, seed)], &wrt).expect("it has a gradient");
        let outputs: Vec<NodeId> = found.into_iter().map(|id| id.expect("it depends on every input")).collect();
        let exe = device.compile(&graph, &outputs, &BTreeMap::<String, Tensor>::new()).expect("it compiles");
        let names: Vec<String> = (0..data.len()).map(|i| format!("x{i}")).collect();
        let mut given: Vec<(&str, &[f32])> =
            names.iter().map(String::as_str).zip(data.iter().map(Vec::as_slice)).collect();
        given.push(("dy", &dy));
        exe.run(&given).expect("it runs")
    };
    let expected = run(Device::Cpu, false);
    for device in [Device::Cpu, Device::Gpu(gpu())] {
        for (i, (found, expected)) in run(device.clone(), true).iter().zip(&expected).enumerate() {
            let error = relative_l2(found, expected);
            assert!(error <= tolerance, "{op:?}: gradient {i} of views differs by {error:e} on {device:?}");
        }
    }
}

/// `op` as it is computed on `target`, its tensors contiguous.
pub(crate) fn lowered(op: &dyn Op, target: &Target, shapes: &[Shape]) -> Lowered {
    let output = op.infer(shapes).expect("the shapes fit");
    let slots: Vec<Slot> = shapes.iter().map(|shape| Slot::contiguous(*shape)).collect();
    let (inputs, output) = operands(&slots, Slot::contiguous(output));
    op.lower(target, &inputs, output)
}

/// Computes `op` on the CPU from `inputs`, none of which may be one that the operation wants prepared.
pub(crate) fn compute(op: &dyn Op, inputs: &[View], out: ViewMut) {
    let slots: Vec<Slot> =
        inputs.iter().map(|view| Slot { shape: view.shape, offset: 0, batch_stride: view.batch_stride }).collect();
    let (operands, output) = operands(&slots, Slot::contiguous(out.shape));
    match op.lower(&Target::Cpu, &operands, output).work {
        Work::Cpu(compute) => compute(inputs, out),
        Work::Gpu(_) => panic!("{} has launches on the CPU", op.name()),
    }
}

/// Two kinds of adapters, for tests that need none: with the subgroups of 8 that some kernels use, and without.
pub(crate) fn adapters() -> [GpuTraits; 2] {
    [Some(8), None].map(|subgroup| GpuTraits { max_binding: 1 << 30, max_buffer: 1 << 30, software: false, subgroup })
}

/// Fails if a launch of `op` on inputs of these shapes does not suit its kernel, or a kernel is not valid. It needs no
/// GPU.
pub(crate) fn check_kernels(op: &dyn Op, shapes: &[Shape]) {
    for traits in adapters() {
        let lowered = lowered(op, &Target::Gpu(traits), shapes);
        check_launches(op.name(), &lowered.work, &lowered);
        for prepared in &lowered.prepared {
            check_launches(&prepared.what, &prepared.work, &lowered);
        }
    }
}

fn check_launches(name: &str, work: &Work, lowered: &Lowered) {
    let Work::Gpu(launches) = work else {
        panic!("{name} has a function on a GPU");
    };
    assert!(!launches.is_empty(), "{name} launches nothing");
    for launch in launches {
        check(launch).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_scratch(name, launch, lowered);
    }
}

/// Fails unless every scratch buffer that a launch names is asked for, in the length that it needs.
fn check_scratch(name: &str, launch: &Launch, lowered: &Lowered) {
    use crate::gpu::Use;
    for (tensor, used) in &launch.tensors {
        if let Use::Read(operand) | Use::Write(operand) = used
            && let Operand { bind: Bind::Scratch(i), slot } = operand
        {
            let there = lowered.scratch.get(*i).copied().unwrap_or(0);
            assert!(slot.offset + slot.shape.numel() <= there, "{name}: scratch {i}, {tensor} in {launch:?}");
        }
    }
}
