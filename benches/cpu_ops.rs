//! The CPU executor's kernels at the shapes of DM-FNet, beside a plain matrix product as the machine's yardstick.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gemm::Parallelism;
use medfuse::cpu::conv::{ConvSpec, Epilogue, conv2d, pack_weights};
use medfuse::cpu::view::{View, ViewMut};
use medfuse::tensor::Shape;

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
        let spec = ConvSpec {
            stride: [stride; 2],
            ..ConvSpec::same(kernel)
        };
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
            let epilogue = Epilogue {
                bias: Some(&bias),
                ..Epilogue::default()
            };
            b.iter(|| {
                let x = View::contiguous(&x, input);
                let out = ViewMut::contiguous(&mut out, output);
                conv2d(&spec, x, &packed, weight, &epilogue, out);
            });
        });
    }
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
    targets = yardstick, convolutions
}
criterion_main!(benches);
