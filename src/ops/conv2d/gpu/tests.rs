use super::*;
use std::collections::BTreeMap;

use super::depthwise::Depthwise;
use super::direct::Direct;
use super::fft::{Fft, Transforms};
use super::gemm::Gemm;
use super::winograd::Winograd;
use crate::cpu::activation::Activation;
use crate::cpu::conv::conv2d_reference;
use crate::device::Device;
use crate::graph::{Graph, Op, Target, Work, operands};
use crate::ops::conv2d::Conv2dWeightGrad;
use crate::ops::conv2d::PaddingMode::{Reflect, Zeros};
use crate::ops::testing::{adapters, check_kernels, check_twins, check_views, gpu, random, relative_l2};
use crate::tensor::Tensor;

/// A convolution that one method computes on a GPU, whatever its shapes, and the reference on the CPU.
#[derive(Clone, Copy)]
struct Forced {
    conv: Conv2d,
    method: &'static dyn Method,
    /// Whether the adapter has no subgroups of a fixed size, and small buffers.
    plain: bool,
}

/// Bytes of a buffer that holds two blocks of 64 of the Fourier transforms' products.
const SMALL: u64 = 26 << 20;

impl std::fmt::Debug for Forced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} by {}, plain {}", self.conv, self.method.name(), self.plain)
    }
}

/// An adapter without subgroups of a fixed size, with small buffers.
fn plain(traits: &GpuTraits) -> GpuTraits {
    GpuTraits { subgroup: None, max_binding: SMALL, ..traits.clone() }
}

impl Op for Forced {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.conv.infer(inputs)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let Self { conv, method, plain: is_plain } = *self;
        let Target::Gpu(traits) = target else {
            return Lowered::cpu(move |inputs, mut out| {
                let of = conv.operands(inputs);
                let weight: Vec<f32> = (0..of.weight.shape.n()).flat_map(|n| of.weight.item(n)).copied().collect();
                let result = conv2d_reference(&conv.spec, of.x, &weight, of.weight.shape, &conv.epilogue(&of));
                for (n, item) in result.chunks(out.shape.item()).enumerate() {
                    out.item(n).copy_from_slice(item);
                }
            });
        };
        let traits = if is_plain { plain(traits) } else { traits.clone() };
        by(method, &Call { conv: &conv, traits: &traits, of: conv.operands(inputs), output })
    }
}

/// The call of `conv` on contiguous tensors.
fn with_call<T>(conv: &Conv2d, traits: &GpuTraits, shapes: &[Shape], then: impl FnOnce(&Call) -> T) -> T {
    let slots: Vec<Slot> = shapes.iter().map(|shape| Slot::contiguous(*shape)).collect();
    let output = Slot::contiguous(conv.infer(shapes).expect("the shapes fit"));
    let (inputs, output) = operands(&slots, output);
    then(&Call { conv, traits, of: conv.operands(&inputs), output })
}

fn shapes(conv: &Conv2d, input: Shape, oc: usize) -> Vec<Shape> {
    let [kh, kw] = conv.spec.kernel;
    let weight = Shape::new(oc, input.c() / conv.spec.groups, kh, kw);
    let output = conv.spec.output_shape(input, weight).expect("the shapes fit");
    let mut shapes = vec![input, weight];
    shapes.extend(conv.bias.then_some(Shape::new(1, oc, 1, 1)));
    shapes.extend(conv.channel_add.then_some(Shape::new(input.n(), oc, 1, 1)));
    shapes.extend(conv.residual.then_some(output));
    shapes
}

/// Fails unless `method` computes what the reference does.
fn check(method: &'static dyn Method, conv: Conv2d, input: Shape, oc: usize) {
    check_twins(Forced { conv, method, plain: false }, &shapes(&conv, input, oc), 1e-5);
}

fn everything(spec: ConvSpec, activation: Activation) -> Conv2d {
    Conv2d { spec, bias: true, channel_add: true, residual: true, activation }
}

#[test]
fn winograd_on_odd_shapes() {
    let same = ConvSpec::same(3);
    let valid = ConvSpec { padding: [0; 2], ..same };
    let mirrored = ConvSpec { padding_mode: Reflect, padding: [2, 1], ..same };
    let enlarged = ConvSpec { upsample: true, ..same };
    check(&Winograd, Conv2d::new(same), Shape::new(1, 3, 7, 5), 5);
    check(&Winograd, everything(same, Activation::Silu), Shape::new(3, 33, 19, 37), 35);
    check(&Winograd, everything(valid, Activation::Tanh), Shape::new(2, 2, 18, 67), 40);
    check(&Winograd, everything(mirrored, Activation::LeakyRelu(0.2)), Shape::new(1, 5, 21, 9), 64);
    check(&Winograd, Conv2d::with_bias(enlarged), Shape::new(2, 9, 6, 11), 17);
}

#[test]
fn products_on_whole_quads() {
    let same = ConvSpec::same(3);
    for activation in [Activation::None, Activation::Silu] {
        check(&Winograd, everything(same, activation), Shape::new(2, 6, 12, 32), 9);
        check(&Winograd, everything(same, activation), Shape::new(1, 5, 7, 20), 33);
        check(&Gemm, everything(ConvSpec::same(1), activation), Shape::new(2, 5, 6, 10), 33);
    }
}

#[test]
fn products_without_subgroups() {
    let shape = Shape::new(2, 7, 19, 37);
    let methods: [(&'static dyn Method, usize); 4] = [(&Winograd, 3), (&Gemm, 3), (&Gemm, 1), (&Fft, 7)];
    for (method, kernel) in methods {
        let conv = everything(ConvSpec::same(kernel), Activation::Relu);
        check_twins(Forced { conv, method, plain: true }, &shapes(&conv, shape, 70), 1e-5);
    }
}

#[test]
fn winograd_of_many_channels_stays_accurate() {
    check(&Winograd, Conv2d::new(ConvSpec::same(3)), Shape::new(1, 512, 16, 16), 32);
}

#[test]
fn winograd_in_parts() {
    // 512 channels of 36 points take 2.4 MB a block of 32 tiles: 4 blocks at a time of the 24 here.
    let input = Shape::new(2, 512, 48, 128);
    let conv = everything(ConvSpec::same(3), Activation::Relu);
    let scratch = with_call(&conv, &adapters()[0], &shapes(&conv, input, 8), |call| by(&Winograd, call).scratch);
    assert!(scratch[0] <= 12 << 18 && scratch[0] > 6 << 18, "{scratch:?}");
    check(&Winograd, conv, input, 8);
}

#[test]
fn gemm_on_odd_shapes() {
    let point = ConvSpec::same(1);
    let strided = ConvSpec { stride: [2; 2], ..ConvSpec::same(3) };
    let spread = ConvSpec { dilation: [2, 3], padding: [2, 3], padding_mode: Reflect, ..ConvSpec::same(3) };
    let oblong = ConvSpec { kernel: [7, 2], padding: [3, 1], stride: [3, 2], padding_mode: Zeros, ..ConvSpec::same(7) };
    let enlarged = ConvSpec { upsample: true, ..ConvSpec::same(1) };
    check(&Gemm, Conv2d::new(point), Shape::new(1, 3, 5, 5), 2);
    check(&Gemm, everything(point, Activation::Sigmoid), Shape::new(3, 67, 13, 11), 70);
    check(&Gemm, everything(strided, Activation::Silu), Shape::new(2, 9, 17, 38), 33);
    check(&Gemm, everything(spread, Activation::None), Shape::new(2, 5, 9, 14), 12);
    check(&Gemm, everything(oblong, Activation::Relu), Shape::new(1, 6, 20, 23), 31);
    check(&Gemm, Conv2d::with_bias(enlarged), Shape::new(2, 5, 3, 5), 9);
}

#[test]
fn fft_on_odd_shapes() {
    let large = |kernel| ConvSpec { kernel, padding: [kernel[0] / 2, kernel[1] / 2], ..ConvSpec::same(5) };
    let valid = ConvSpec { padding: [0; 2], ..large([5, 5]) };
    let mirrored = ConvSpec { padding_mode: Reflect, padding: [3, 9], ..large([11, 11]) };
    let enlarged = ConvSpec { upsample: true, ..large([17, 17]) };
    check(&Fft, Conv2d::new(large([15, 15])), Shape::new(1, 1, 18, 18), 1);
    check(&Fft, everything(large([15, 15]), Activation::Silu), Shape::new(3, 33, 19, 37), 35);
    check(&Fft, everything(valid, Activation::Tanh), Shape::new(2, 6, 30, 67), 5);
    check(&Fft, everything(mirrored, Activation::LeakyRelu(0.2)), Shape::new(1, 5, 21, 43), 64);
    check(&Fft, Conv2d::with_bias(enlarged), Shape::new(3, 9, 13, 22), 17);
    check(&Fft, everything(large([4, 15]), Activation::Relu), Shape::new(2, 7, 61, 38), 9);
}

#[test]
fn fft_in_parts() {
    // Two parts of output channels by two of tiles, or one by two.
    for (oc, expected) in [(66, [2, 4, 4]), (60, [1, 2, 2])] {
        let x = Shape::new(3, 17, 150, 95);
        let conv = everything(ConvSpec::same(5), Activation::Relu);
        let shapes = shapes(&conv, x, oc);
        let launches = with_call(&conv, &plain(&adapters()[0]), &shapes, |call| {
            let lowered = by(&Fft, call);
            assert!(lowered.scratch.iter().all(|len| 4 * *len as u64 <= SMALL));
            lowered.work
        });
        let Work::Gpu(launches) = launches else { panic!("it runs on a GPU") };
        let reads = |bind: Bind| {
            let first = |launch: &&Launch| {
                launch.tensors.iter().any(|(_, used)| matches!(used, crate::gpu::Use::Read(t) if t.bind == bind))
            };
            launches.iter().filter(|launch| launch.kernel.file.starts_with("fft")).filter(first).count()
        };
        assert_eq!([Bind::Input(1), Bind::Input(0), Bind::Scratch(2)].map(reads), expected);
        check_twins(Forced { conv, method: &Fft, plain: true }, &shapes, 1e-5);
    }
}

#[test]
fn direct_and_depthwise_on_odd_shapes() {
    let mirrored = ConvSpec { padding_mode: Reflect, ..ConvSpec::same(7) };
    let strided = ConvSpec { stride: [2, 3], dilation: [1, 2], ..ConvSpec::same(3) };
    let pairs = ConvSpec { groups: 6, padding_mode: Reflect, ..ConvSpec::same(3) };
    let enlarged = ConvSpec { upsample: true, ..ConvSpec::same(3) };
    let methods: [(&'static dyn Method, bool); 3] = [(&Direct, false), (&Depthwise, false), (&Depthwise, true)];
    for (method, plain) in methods {
        let check = |conv, input, oc| check_twins(Forced { conv, method, plain }, &shapes(&conv, input, oc), 1e-5);
        check(Conv2d::with_bias(mirrored), Shape::new(1, 2, 9, 13), 1);
        check(everything(strided, Activation::Tanh), Shape::new(2, 3, 17, 29), 7);
        check(everything(pairs, Activation::Sigmoid), Shape::new(2, 12, 11, 70), 6);
        check(everything(pairs, Activation::None), Shape::new(1, 6, 4, 8), 30);
        check(everything(enlarged, Activation::Silu), Shape::new(2, 4, 5, 67), 5);
        let wide = ConvSpec { groups: 3, ..ConvSpec::same(15) };
        check(Conv2d::new(wide), Shape::new(1, 3, 21, 2051), 3);
        let mirrored = ConvSpec { groups: 6, ..mirrored };
        check(everything(mirrored, Activation::Relu), Shape::new(2, 6, 19, 37), 12);
        let enlarged = ConvSpec { groups: 4, ..enlarged };
        check(everything(enlarged, Activation::None), Shape::new(1, 4, 5, 67), 4);
    }
}

#[test]
fn more_channels_of_items_than_workgroups_in_a_dimension() {
    let spec = ConvSpec { groups: 192, ..ConvSpec::same(3) };
    let x = Shape::new(342, 192, 3, 3);
    check_twins(Conv2d::new(spec), &[x, Shape::new(192, 1, 3, 3)], 1e-5);
    let spec = ConvSpec { groups: 192, ..ConvSpec::same(1) };
    check_twins(Conv2d::new(spec), &[Shape::new(342, 192, 1, 2), Shape::new(576, 1, 1, 1)], 1e-5);
}

#[test]
fn every_variant_is_valid() {
    let strided = ConvSpec { stride: [2; 2], ..ConvSpec::same(3) };
    for &activation in Activation::ALL {
        for spec in [ConvSpec::same(3), ConvSpec::same(1), ConvSpec::same(5), strided] {
            for method in METHODS {
                let suits = match method.name() {
                    "winograd" => spec == ConvSpec::same(3),
                    "fft" => spec == ConvSpec::same(5),
                    _ => true,
                };
                if !suits {
                    continue;
                }
                for residual in [false, true] {
                    let conv = Conv2d { residual, ..everything(spec, activation) };
                    for width in [8, 9, 16] {
                        let shapes = shapes(&conv, Shape::new(1, 4, 8, width), 4);
                        for plain in [false, true] {
                            check_kernels(&Forced { conv, method, plain }, &shapes);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn methods_suit_their_shapes() {
    let chosen = |spec: &ConvSpec, input: [usize; 4], oc: usize| {
        let weight = Shape::new(oc, input[1] / spec.groups, spec.kernel[0], spec.kernel[1]);
        let traits = GpuTraits { max_binding: 128 << 20, ..adapters()[0].clone() };
        with_call(&Conv2d::new(*spec), &traits, &[Shape(input), weight], |call| choose(call).name())
    };
    let three = ConvSpec::same(3);
    assert_eq!(chosen(&three, [1, 128, 128, 128], 128), "winograd");
    assert_eq!(chosen(&three, [1, 32, 256, 256], 32), "winograd");
    assert_eq!(chosen(&ConvSpec::same(15), [4, 128, 64, 64], 128), "fft");
    assert_eq!(chosen(&ConvSpec::same(5), [1, 32, 256, 256], 32), "fft");
    assert_eq!(chosen(&ConvSpec::same(1), [1, 128, 64, 64], 128), "gemm");
    assert_eq!(chosen(&ConvSpec { stride: [2; 2], ..three }, [1, 128, 128, 128], 128), "gemm");
    assert_eq!(chosen(&ConvSpec { groups: 64, ..three }, [1, 128, 64, 64], 64), "depthwise");
    assert_eq!(chosen(&three, [1, 64, 256, 256], 1), "depthwise");
    // The weights of Winograd's products would take 144 MiB.
    assert_eq!(chosen(&three, [1, 1024, 64, 64], 1024), "gemm");
}

/// Convolutions that read one part of a concatenation and write another, at offsets that are no multiples of 4.
#[test]
fn parts_of_concatenations() {
    for kernel in [1, 3, 5] {
        let spec = ConvSpec::same(kernel);
        let mut graph = Graph::new();
        let mut weights = BTreeMap::new();
        let x = graph.input("x", Shape::new(2, 3, 7, 9));
        let mut conv = |graph: &mut Graph, method: &'static dyn Method, input, oc: usize| {
            let name = format!("w{}", graph.nodes().len());
            let weight = Shape::new(oc, graph.shape(input).c(), kernel, kernel);
            let param = graph.param(&name, weight).expect("names differ");
            weights.insert(name.clone(), Tensor::new(weight.0, random(weight.numel(), 5)));
            let conv = Conv2d::new(spec);
            let forced = Forced { conv, method, plain: false };
            graph.apply(&name, forced, &[input, param]).expect("the shapes fit")
        };
        let methods: [&'static dyn Method; 3] = [&Gemm, &Winograd, &Fft];
        let method = methods[kernel / 2];
        let a = conv(&mut graph, method, x, 5);
        let b = conv(&mut graph, method, a, 6);
        let c = conv(&mut graph, &Direct, b, 3);
        let d = conv(&mut graph, &Depthwise, c, 2);
        let whole = graph.concat("whole", &[a, b, c, d]).expect("the shapes fit");
        let out = conv(&mut graph, method, whole, 4);
        let data = random(2 * 3 * 63, 1);
        let run = |device: Device| {
            let exe = device.compile(&graph, &[out], &weights).expect("it compiles");
            exe.run(&[("x", &data)]).expect("it runs").remove(0)
        };
        let error = relative_l2(&run(Device::Gpu(gpu())), &run(Device::Cpu));
        assert!(error < 1e-5, "{kernel}x{kernel}: {error:e}");
    }
}

/// A gradient with respect to a weight by Fourier transforms, with buffers of at most so many bytes.
#[derive(Clone, Copy, Debug)]
struct ForcedGrad(Conv2dWeightGrad, u64);

impl Op for ForcedGrad {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.0.infer(inputs)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let Target::Gpu(traits) = target else {
            return self.0.lower(target, inputs, output);
        };
        let traits = GpuTraits { max_binding: self.1, ..traits.clone() };
        let [x, dy] = [inputs[0], inputs[1]];
        let transforms = Transforms::of_weight(&self.0.spec, self.0.weight, dy.shape(), &traits).expect("it suits");
        assert!(transforms.scratch().iter().all(|len| 4 * *len as u64 <= self.1));
        transforms.weight_grad(&traits, &self.0.spec, [x, dy, output])
    }
}

#[test]
fn fft_of_weight_gradients() {
    let mirrored = ConvSpec { padding_mode: Reflect, padding: [3, 9], ..ConvSpec::same(11) };
    let enlarged = ConvSpec { upsample: true, kernel: [4, 15], padding: [0, 7], ..ConvSpec::same(5) };
    let cases = [
        (ConvSpec::same(15), [2, 33, 37, 40], 35, 128 << 20),
        (ConvSpec::same(17), [3, 1, 17, 17], 1, 128 << 20),
        (mirrored, [1, 5, 21, 43], 3, 128 << 20),
        (enlarged, [2, 6, 20, 19], 9, 128 << 20),
        // Several parts of tiles, of output channels and of input channels.
        (ConvSpec::same(5), [2, 70, 200, 140], 70, SMALL),
    ];
    for (spec, x, oc, max_bytes) in cases {
        let x = Shape(x);
        let weight = Shape::new(oc, x.c(), spec.kernel[0], spec.kernel[1]);
        let dy = spec.output_shape(x, weight).expect("the shapes fit");
        let grad = ForcedGrad(Conv2dWeightGrad { spec, weight }, max_bytes);
        check_twins(grad, &[x, dy], 1e-5);
        check_kernels(&grad, &[x, dy]);
    }
    let weight = Shape::new(3, 4, 5, 5);
    let grad = ForcedGrad(Conv2dWeightGrad { spec: ConvSpec::same(5), weight }, 128 << 20);
    check_views(grad, &[Shape::new(2, 4, 31, 33), Shape::new(2, 3, 31, 33)], 1e-5);
}
