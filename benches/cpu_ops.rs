//! The CPU executor's kernels at the shapes of DM-FNet and a narrow UNet, beside a plain matrix product as the
//! machine's yardstick.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gemm::Parallelism;
use medfuse::bench::networks::random_inputs;
use medfuse::bench::time_steps;
use medfuse::cpu::conv::{ConvSpec, Epilogue, conv2d, conv2d_weight_grad, pack_weights};
use medfuse::cpu::view::{View, ViewMut};
use medfuse::device::{Device, Executable};
use medfuse::graph::Graph;
use medfuse::models::dm_fnet::passes::{PassOutputs, random_model, unet_pass};
use medfuse::ops::Op;
use medfuse::ops::activation::Activation;
use medfuse::ops::attention::SelfAttention;
use medfuse::ops::group_norm::GroupNorm;
use medfuse::ops::pointwise::Pointwise;
use medfuse::ops::resize::UpsampleBilinear2;
use medfuse::tensor::Shape;
use std::collections::BTreeMap;
use std::time::Duration;

/// Input channels, output channels, size of the map and of the kernel, stride.
const CONVS: [[usize; 5]; 13] = [
    [128, 128, 256, 3, 1],
    [128, 128, 128, 3, 1],
    [256, 128, 256, 3, 1],
    [384, 256, 64, 3, 1],
    [512, 256, 64, 3, 1],
    [256, 256, 32, 3, 1],
    [512, 512, 16, 3, 1],
    [512, 256, 16, 3, 1],
    [64, 64, 256, 3, 1],
    [256, 128, 128, 1, 1],
    [512, 512, 16, 1, 1],
    [128, 128, 256, 3, 2],
    [2, 64, 256, 3, 1],
];

/// Values of both signs and many magnitudes without a generator.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.7).sin()).collect()
}

fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv2d");
    for [ic, oc, size, kernel, stride] in CONVS {
        let spec = ConvSpec { stride: [stride; 2], ..ConvSpec::same(kernel) };
        let input = Shape::new(1, ic, size, size);
        let weight = Shape::new(oc, ic, kernel, kernel);
        let output = spec.output_shape(input, weight).expect("the shapes fit");
        let x = values(input.numel());
        let packed = pack_weights(&spec, input, weight, &values(weight.numel()));
        let bias = values(oc);
        let mut out = vec![0.0; output.numel()];
        let operations = 2 * output.numel() * weight.item();
        group.throughput(Throughput::Elements(operations as u64));
        let name = format!("{kernel}x{kernel} stride {stride} {ic}->{oc}");
        group.bench_function(BenchmarkId::new(name, size), |b| {
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            b.iter(|| {
                let x = View::contiguous(&x, input);
                let out = ViewMut::contiguous(&mut out, output);
                conv2d(&spec, x, &packed, weight, &epilogue, out);
            });
        });
    }
    group.finish();
}

fn weight_gradients(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv2d weight gradient");
    for [ic, oc, size, kernel, stride] in CONVS {
        let spec = ConvSpec { stride: [stride; 2], ..ConvSpec::same(kernel) };
        let input = Shape::new(1, ic, size, size);
        let weight = Shape::new(oc, ic, kernel, kernel);
        let output = spec.output_shape(input, weight).expect("the shapes fit");
        let (x, dy) = (values(input.numel()), values(output.numel()));
        let operations = 2 * output.numel() * weight.item();
        group.throughput(Throughput::Elements(operations as u64));
        let name = format!("{kernel}x{kernel} stride {stride} {ic}->{oc}");
        group.bench_function(BenchmarkId::new(name, size), |b| {
            let (x, dy) = (View::contiguous(&x, input), View::contiguous(&dy, output));
            b.iter(|| conv2d_weight_grad(&spec, x, dy, weight));
        });
    }
    group.finish();
}

/// Times `op` on inputs of these shapes, which count as the bytes it reads.
fn operation(c: &mut Criterion, name: &str, op: impl Op, shapes: &[Shape]) {
    let mut graph = Graph::new();
    let mut inputs = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        inputs.push(graph.input(&format!("x{i}"), *shape));
    }
    let out = graph.apply(name, op, &inputs).expect("the shapes fit");
    let exe = Device::Cpu.compile(&graph, &[out], &BTreeMap::new()).expect("it has no weights");
    let mut group = c.benchmark_group(name);
    let bytes: usize = shapes.iter().map(|shape| 4 * shape.numel()).sum();
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(shapes[0].to_string(), |b| b.iter_custom(|runs| execute(&exe, runs)));
    group.finish();
}

/// Time of `runs` runs without the copying of inputs and outputs.
fn execute(exe: &Executable, runs: u64) -> Duration {
    let inputs = random_inputs(exe.plan());
    let run = || -> f64 { time_steps(exe, &inputs).expect("it runs").iter().sum() };
    Duration::from_secs_f64((0..runs).map(|_| run()).sum())
}

fn operations(c: &mut Criterion) {
    let map = Shape::new(1, 128, 256, 256);
    let vector = Shape::new(1, 128, 1, 1);
    let norm = GroupNorm { groups: 32, eps: 1e-5, affine: true, activation: Activation::Silu };
    operation(c, "group_norm silu", norm, &[map, vector, vector]);
    operation(c, "add", Pointwise::add(), &[map, map]);
    let half = Shape::new(1, 128, 128, 128);
    operation(c, "upsample_bilinear2", UpsampleBilinear2, &[half]);
    let qkv = Shape::new(1, 3 * 256, 16, 16);
    operation(c, "attention", SelfAttention, &[qkv]);
}

fn unet(c: &mut Criterion) {
    let model = random_model(32).expect("a multiple of the norms' groups");
    let network = unet_pass(&model.unet, 128, PassOutputs::Features).expect("a multiple of 16");
    let exe = Device::Cpu.compile(&network.graph, &network.outputs, &model).expect("its own weights");
    let mut group = c.benchmark_group("unet pass, 32 channels");
    group.throughput(Throughput::Elements(2 * exe.plan().macs));
    group.bench_function("128x128", |b| b.iter_custom(|runs| execute(&exe, runs)));
    group.finish();
}

fn yardstick(c: &mut Criterion) {
    let mut group = c.benchmark_group("sgemm");
    let n = 2048;
    let (a, b) = (values(n * n), values(n * n));
    let mut product = vec![0.0f32; n * n];
    let stride = n as isize;
    group.throughput(Throughput::Elements(2 * (n as u64).pow(3)));
    group.bench_function(BenchmarkId::new("gemm crate", n), |bench| {
        bench.iter(|| {
            let (out, a, b) = (product.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            // SAFETY: three square row-major matrices of the given size.
            unsafe {
                gemm::gemm(
                    n,
                    n,
                    n,
                    out,
                    1,
                    stride,
                    false,
                    a,
                    1,
                    stride,
                    b,
                    1,
                    stride,
                    0.0f32,
                    1.0f32,
                    false,
                    false,
                    false,
                    Parallelism::Rayon(0),
                );
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = yardstick, convolutions, weight_gradients, operations, unet
}
criterion_main!(benches);
