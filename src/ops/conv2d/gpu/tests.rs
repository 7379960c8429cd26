use super::*;
use crate::ops::activation::Activation;
use std::collections::BTreeMap;

use crate::device::Device;
use crate::graph::Graph;
use crate::ops::Target;
use crate::ops::conv2d::Conv2dWeightGrad;
use crate::ops::conv2d::PaddingMode::{Reflect, Zeros};
use crate::ops::testing::{check_kernels, check_twins, check_views, gpu, random, relative_l2};
use crate::tensor::Tensor;

/// A convolution that one method computes on a GPU, whatever its shapes.
#[derive(Clone, Copy, Debug)]
struct Forced {
    conv: Conv2d,
    method: Method,
    /// Whether it is as [`WithoutSubgroups`] has it.
    plain: bool,
}

/// A convolution as adapters compute it whose subgroups are of no fixed size, and whose buffers are small.
#[derive(Debug)]
struct WithoutSubgroups(GpuConv2d);

/// Bytes of a buffer that holds two blocks of 64 of the Fourier transforms' products.
const SMALL: u64 = 26 << 20;

impl Op for WithoutSubgroups {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.0.infer(inputs)
    }

    fn scratch(&self, traits: &GpuTraits, inputs: &[Shape], output: Shape) -> Vec<usize> {
        let traits = GpuTraits { max_binding: SMALL, ..traits.clone() };
        self.0.scratch(&traits, inputs, output)
    }

    fn cpu(&self, _inputs: &[View], _out: ViewMut) {
        gpu_only(self)
    }

    fn gpu(&self, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        let traits = GpuTraits { subgroup: None, max_binding: SMALL, ..traits.clone() };
        self.0.gpu(&traits, inputs, output)
    }
}

impl Op for Forced {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.conv.infer(inputs)
    }

    fn specialize(&self, target: &Target, inputs: &[Shape]) -> Option<Specialized> {
        let Self { conv, method, plain } = *self;
        let special = matches!(target, Target::Gpu(_)).then(|| with_method(conv, method, inputs[1]))?;
        let without = || Arc::new(WithoutSubgroups(GpuConv2d { conv, method, weight: inputs[1] }));
        Some(if plain { Specialized { op: without(), ..special } } else { special })
    }

    fn cpu(&self, inputs: &[View], out: ViewMut) {
        self.conv.cpu(inputs, out);
    }

    fn gpu(&self, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        self.conv.gpu(traits, inputs, output)
    }
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
fn check(method: Method, conv: Conv2d, input: Shape, oc: usize) {
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
    check(Method::Winograd, Conv2d::new(same), Shape::new(1, 3, 7, 5), 5);
    check(Method::Winograd, everything(same, Activation::Silu), Shape::new(3, 33, 19, 37), 35);
    check(Method::Winograd, everything(valid, Activation::Tanh), Shape::new(2, 2, 18, 67), 40);
    check(Method::Winograd, everything(mirrored, Activation::LeakyRelu(0.2)), Shape::new(1, 5, 21, 9), 64);
    check(Method::Winograd, Conv2d::with_bias(enlarged), Shape::new(2, 9, 6, 11), 17);
}

#[test]
fn products_on_whole_quads() {
    let same = ConvSpec::same(3);
    for activation in [Activation::None, Activation::Silu] {
        check(Method::Winograd, everything(same, activation), Shape::new(2, 6, 12, 32), 9);
        check(Method::Winograd, everything(same, activation), Shape::new(1, 5, 7, 20), 33);
        check(Method::Gemm, everything(ConvSpec::same(1), activation), Shape::new(2, 5, 6, 10), 33);
    }
}

#[test]
fn products_without_subgroups() {
    let shape = Shape::new(2, 7, 19, 37);
    for (method, kernel) in [(Method::Winograd, 3), (Method::Gemm, 3), (Method::Gemm, 1), (Method::Fft, 7)] {
        let conv = everything(ConvSpec::same(kernel), Activation::Relu);
        check_twins(Forced { conv, method, plain: true }, &shapes(&conv, shape, 70), 1e-5);
    }
}

#[test]
fn winograd_of_many_channels_stays_accurate() {
    check(Method::Winograd, Conv2d::new(ConvSpec::same(3)), Shape::new(1, 512, 16, 16), 32);
}

#[test]
fn winograd_in_parts() {
    // 512 channels of 36 points take 2.4 MB a block of 32 tiles: 4 blocks at a time of the 24 here.
    let input = Shape::new(2, 512, 48, 128);
    let product =
        Product::new(Method::Winograd, &ConvSpec::same(3), Shape::new(8, 512, 3, 3), Shape::new(2, 8, 48, 128));
    assert!(product.is_some_and(|p| p.scratch()[0] <= 12 << 18 && p.scratch()[0] > 6 << 18));
    check(Method::Winograd, everything(ConvSpec::same(3), Activation::Relu), input, 8);
}

#[test]
fn gemm_on_odd_shapes() {
    let point = ConvSpec::same(1);
    let strided = ConvSpec { stride: [2; 2], ..ConvSpec::same(3) };
    let spread = ConvSpec { dilation: [2, 3], padding: [2, 3], padding_mode: Reflect, ..ConvSpec::same(3) };
    let oblong = ConvSpec { kernel: [7, 2], padding: [3, 1], stride: [3, 2], padding_mode: Zeros, ..ConvSpec::same(7) };
    let enlarged = ConvSpec { upsample: true, ..ConvSpec::same(1) };
    check(Method::Gemm, Conv2d::new(point), Shape::new(1, 3, 5, 5), 2);
    check(Method::Gemm, everything(point, Activation::Sigmoid), Shape::new(3, 67, 13, 11), 70);
    check(Method::Gemm, everything(strided, Activation::Silu), Shape::new(2, 9, 17, 38), 33);
    check(Method::Gemm, everything(spread, Activation::None), Shape::new(2, 5, 9, 14), 12);
    check(Method::Gemm, everything(oblong, Activation::Relu), Shape::new(1, 6, 20, 23), 31);
    check(Method::Gemm, Conv2d::with_bias(enlarged), Shape::new(2, 5, 3, 5), 9);
}

#[test]
fn fft_on_odd_shapes() {
    let large = |kernel| ConvSpec { kernel, padding: [kernel[0] / 2, kernel[1] / 2], ..ConvSpec::same(5) };
    let valid = ConvSpec { padding: [0; 2], ..large([5, 5]) };
    let mirrored = ConvSpec { padding_mode: Reflect, padding: [3, 9], ..large([11, 11]) };
    let enlarged = ConvSpec { upsample: true, ..large([17, 17]) };
    check(Method::Fft, Conv2d::new(large([15, 15])), Shape::new(1, 1, 18, 18), 1);
    check(Method::Fft, everything(large([15, 15]), Activation::Silu), Shape::new(3, 33, 19, 37), 35);
    check(Method::Fft, everything(valid, Activation::Tanh), Shape::new(2, 6, 30, 67), 5);
    check(Method::Fft, everything(mirrored, Activation::LeakyRelu(0.2)), Shape::new(1, 5, 21, 43), 64);
    check(Method::Fft, Conv2d::with_bias(enlarged), Shape::new(3, 9, 13, 22), 17);
    check(Method::Fft, everything(large([4, 15]), Activation::Relu), Shape::new(2, 7, 61, 38), 9);
}

#[test]
fn fft_in_parts() {
    // Two parts of output channels by two of tiles, or one by two.
    for (oc, expected) in [(66, [2, 4, 4]), (60, [1, 2, 2])] {
        let x = Shape::new(3, 17, 150, 95);
        let conv = everything(ConvSpec::same(5), Activation::Relu);
        let shapes = shapes(&conv, x, oc);
        let output = shapes[4];
        let fft = Fft::new(&conv.spec, shapes[1], output, SMALL).expect("it fits");
        assert!(fft.scratch().iter().all(|len| 4 * *len as u64 <= SMALL));
        let slots: Vec<Slot> = shapes.iter().map(|s| Slot::contiguous(*s)).collect();
        let of = conv.operands(&slots);
        let call = Call { conv: &conv, weight: shapes[1], of, output: Slot::contiguous(output) };
        let traits = GpuTraits { max_binding: SMALL, ..gpu().traits().clone() };
        let launches = fft.dispatches(&call, &traits);
        let count = |first: Bind| launches.iter().filter(|d| d.binds[0] == first).count();
        assert_eq!([Bind::Input(1), Bind::Input(0), Bind::Scratch(2)].map(count), expected);
        check_twins(Forced { conv, method: Method::Fft, plain: true }, &shapes, 1e-5);
    }
}

#[test]
fn direct_and_depthwise_on_odd_shapes() {
    let mirrored = ConvSpec { padding_mode: Reflect, ..ConvSpec::same(7) };
    let strided = ConvSpec { stride: [2, 3], dilation: [1, 2], ..ConvSpec::same(3) };
    let pairs = ConvSpec { groups: 6, padding_mode: Reflect, ..ConvSpec::same(3) };
    let enlarged = ConvSpec { upsample: true, ..ConvSpec::same(3) };
    for (method, plain) in [(Method::Direct, false), (Method::Depthwise, false), (Method::Depthwise, true)] {
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
fn every_variant_is_valid() {
    let activations = [
        Activation::None,
        Activation::Relu,
        Activation::Silu,
        Activation::LeakyRelu(0.1),
        Activation::Tanh,
        Activation::Sigmoid,
    ];
    let strided = ConvSpec { stride: [2; 2], ..ConvSpec::same(3) };
    for activation in activations {
        for spec in [ConvSpec::same(3), ConvSpec::same(1), ConvSpec::same(5), strided] {
            for method in [Method::Winograd, Method::Fft, Method::Gemm, Method::Direct, Method::Depthwise] {
                let suits = match method {
                    Method::Winograd => spec == ConvSpec::same(3),
                    Method::Fft => spec == ConvSpec::same(5),
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
    let choose = |spec: &ConvSpec, input: [usize; 4], oc: usize| {
        let weight = Shape::new(oc, input[1] / spec.groups, spec.kernel[0], spec.kernel[1]);
        Method::choose(spec, Shape(input), weight, 128 << 20)
    };
    let three = ConvSpec::same(3);
    assert_eq!(choose(&three, [1, 128, 128, 128], 128), Method::Winograd);
    assert_eq!(choose(&three, [1, 32, 256, 256], 32), Method::Winograd);
    assert_eq!(choose(&ConvSpec::same(15), [4, 128, 64, 64], 128), Method::Fft);
    assert_eq!(choose(&ConvSpec::same(5), [1, 32, 256, 256], 32), Method::Fft);
    assert_eq!(choose(&ConvSpec::same(1), [1, 128, 64, 64], 128), Method::Gemm);
    assert_eq!(choose(&ConvSpec { stride: [2; 2], ..three }, [1, 128, 128, 128], 128), Method::Gemm);
    assert_eq!(choose(&ConvSpec { groups: 64, ..three }, [1, 128, 64, 64], 64), Method::Depthwise);
    assert_eq!(choose(&three, [1, 64, 256, 256], 1), Method::Depthwise);
    // The weights of Winograd's products would take 144 MiB.
    assert_eq!(choose(&three, [1, 1024, 64, 64], 1024), Method::Gemm);
}

/// Convolutions that read one part of a concatenation and write another, at offsets that are no multiples of 4.
#[test]
fn parts_of_concatenations() {
    for kernel in [1, 3, 5] {
        let spec = ConvSpec::same(kernel);
        let mut graph = Graph::new();
        let mut weights = BTreeMap::new();
        let x = graph.input("x", Shape::new(2, 3, 7, 9));
        let mut conv = |graph: &mut Graph, method, input, oc: usize| {
            let name = format!("w{}", graph.nodes().len());
            let weight = Shape::new(oc, graph.shape(input).c(), kernel, kernel);
            let param = graph.param(&name, weight).expect("names differ");
            weights.insert(name.clone(), Tensor::new(weight.0, random(weight.numel(), 5)));
            let conv = Conv2d::new(spec);
            let forced = Forced { conv, method, plain: false };
            graph.apply(&name, forced, &[input, param]).expect("the shapes fit")
        };
        let method = [Method::Gemm, Method::Winograd, Method::Fft][kernel / 2];
        let a = conv(&mut graph, method, x, 5);
        let b = conv(&mut graph, method, a, 6);
        let c = conv(&mut graph, Method::Direct, b, 3);
        let d = conv(&mut graph, Method::Depthwise, c, 2);
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

/// A gradient by a weight by Fourier transforms, with buffers of at most so many bytes.
#[derive(Clone, Copy, Debug)]
struct ForcedGrad(Conv2dWeightGrad, u64);

impl ForcedGrad {
    fn fft(&self, dy: Shape) -> Fft {
        Fft::of_weight(&self.0.spec, self.0.weight, dy, self.1).expect("it suits")
    }
}

impl Op for ForcedGrad {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.0.infer(inputs)
    }

    fn scratch(&self, _traits: &GpuTraits, inputs: &[Shape], _output: Shape) -> Vec<usize> {
        self.fft(inputs[1]).scratch()
    }

    fn cpu(&self, inputs: &[View], out: ViewMut) {
        self.0.cpu(inputs, out);
    }

    fn gpu(&self, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        self.fft(inputs[1].shape).of_weight_dispatches(traits, &self.0.spec, [inputs[0], inputs[1], output])
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
        assert!(grad.fft(dy).scratch().iter().all(|len| 4 * *len as u64 <= max_bytes));
        check_twins(grad, &[x, dy], 1e-5);
        check_kernels(&grad, &[x, dy]);
    }
    let weight = Shape::new(3, 4, 5, 5);
    let grad = ForcedGrad(Conv2dWeightGrad { spec: ConvSpec::same(5), weight }, 128 << 20);
    check_views(grad, &[Shape::new(2, 4, 31, 33), Shape::new(2, 3, 31, 33)], 1e-5);
}
