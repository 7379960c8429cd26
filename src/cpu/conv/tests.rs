//! Every algorithm on every instruction set against the definition.

use super::*;
use crate::cpu::activation::Activation;
use crate::ops::testing::{random, relative_l2};
use proptest::prelude::*;

/// The instruction sets that this machine has.
fn arches() -> Vec<Arch> {
    let mut arches = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
    arches
}

/// A convolution with random operands, all of them views into larger buffers.
struct Case {
    spec: ConvSpec,
    input: Shape,
    weight_shape: Shape,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    per_channel: Vec<f32>,
    residual: Vec<f32>,
    out: Shape,
}

/// Elements between the batch items of the views.
const GAP: usize = 5;

impl Case {
    fn new(spec: ConvSpec, input: Shape, oc: usize) -> Option<Self> {
        let [kh, kw] = spec.kernel;
        let weight_shape = Shape::new(oc, input.c() / spec.groups, kh, kw);
        let out = spec.output_shape(input, weight_shape)?;
        Some(Self {
            spec,
            input,
            weight_shape,
            x: random(input.n() * (input.item() + GAP), 1),
            weight: random(weight_shape.numel(), 2),
            bias: random(oc, 3),
            per_channel: random(out.n() * oc, 4),
            residual: random(out.n() * (out.item() + GAP), 5),
            out,
        })
    }

    fn view<'a>(data: &'a [f32], shape: Shape) -> View<'a> {
        View { data, shape, batch_stride: shape.item() + GAP }
    }

    fn epilogue(&self, parts: u8, activation: Activation) -> Epilogue<'_> {
        let one = Shape::new(if parts & 8 == 0 { 1 } else { self.out.n() }, self.out.c(), 1, 1);
        Epilogue {
            bias: (parts & 1 != 0).then_some(&self.bias),
            channel_add: (parts & 2 != 0).then(|| View::contiguous(&self.per_channel, one)),
            residual: (parts & 4 != 0).then(|| Self::view(&self.residual, self.out)),
            activation,
        }
    }

    fn reference(&self, epilogue: &Epilogue) -> Vec<f32> {
        let x = Self::view(&self.x, self.input);
        conv2d_reference(&self.spec, x, &self.weight, self.weight_shape, epilogue)
    }

    fn run(&self, algorithm: Algorithm, arch: Arch, epilogue: &Epilogue) -> Vec<f32> {
        let mut packed = vec![f32::NAN; algorithm.packed_len(&self.spec, self.weight_shape)];
        algorithm.pack_into(&self.spec, self.weight_shape, &self.weight, &mut packed);
        let conv = Conv {
            spec: &self.spec,
            x: Self::view(&self.x, self.input),
            packed: &packed,
            weight_shape: self.weight_shape,
            epilogue,
        };
        let stride = self.out.item() + GAP;
        let mut data = vec![7.0; self.out.n() * stride];
        let out = ViewMut { data: &mut data, shape: self.out, batch_stride: stride };
        algorithm.run(arch, &conv, out);
        for gap in data.chunks(stride).map(|item| &item[self.out.item()..]) {
            assert!(gap.iter().all(|&x| x == 7.0), "wrote outside the view");
        }
        data.chunks(stride).flat_map(|item| item[..self.out.item()].to_vec()).collect()
    }
}

const ALGORITHMS: [Algorithm; 4] = [Algorithm::Winograd, Algorithm::Fft, Algorithm::Gemm, Algorithm::Direct];

fn check(case: &Case, epilogue: &Epilogue) {
    let want = case.reference(epilogue);
    for algorithm in ALGORITHMS.into_iter().filter(|a| a.supports(&case.spec)) {
        for arch in arches() {
            let error = relative_l2(&case.run(algorithm, arch, epilogue), &want);
            assert!(error < 5e-6, "{algorithm:?} on {arch:?}: {error:e} for {:?} of {}", case.spec, case.input);
        }
    }
}

fn spec_strategy() -> impl Strategy<Value = ConvSpec> {
    (
        (1usize..8, 1usize..8, 1usize..4, 1usize..4),
        (0usize..4, 0usize..4, 1usize..3, 1usize..4),
        (1usize..4, any::<bool>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(|((kh, kw, sh, sw), (ph, pw, dh, dw), (groups, reflect, upsample, plain))| {
            let spec = ConvSpec {
                kernel: [kh, kw],
                stride: [sh, sw],
                padding: [ph, pw],
                dilation: [dh, dw],
                groups,
                padding_mode: if reflect { PaddingMode::Reflect } else { PaddingMode::Zeros },
                upsample,
            };
            // Half of all cases are ones that Winograd can do too.
            let plain = ConvSpec {
                kernel: [3; 2],
                stride: [1; 2],
                dilation: [1; 2],
                groups: if plain { 1 } else { groups },
                ..spec
            };
            if plain.groups == 1 { plain } else { spec }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn agrees_with_the_definition(
        spec in spec_strategy(),
        n in 1usize..4,
        group_in in 1usize..12,
        group_out in 1usize..20,
        height in 1usize..40,
        width in 1usize..90,
        parts in 0u8..16,
    ) {
        let input = Shape::new(n, group_in * spec.groups, height, width);
        if let Some(case) = Case::new(spec, input, group_out * spec.groups) {
            check(&case, &case.epilogue(parts, Activation::None));
        }
    }
}

#[test]
fn every_epilogue() {
    let case = Case::new(ConvSpec::same(3), Shape::new(2, 9, 13, 21), 11).unwrap();
    for parts in 0..16 {
        for &activation in Activation::ALL {
            check(&case, &case.epilogue(parts, activation));
        }
    }
}

#[test]
fn large_kernels_and_strides() {
    let reflect = ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(7) };
    let cases = [
        (reflect, Shape::new(2, 2, 4, 5), 1),
        (reflect, Shape::new(1, 3, 17, 70), 9),
        (ConvSpec::same(15), Shape::new(1, 5, 33, 50), 12),
        (ConvSpec { kernel: [17, 4], padding: [3, 0], ..reflect }, Shape::new(3, 21, 19, 37), 35),
        (ConvSpec { upsample: true, ..ConvSpec::same(11) }, Shape::new(2, 33, 20, 31), 50),
        (ConvSpec { groups: 6, ..ConvSpec::same(11) }, Shape::new(2, 6, 19, 70), 6),
        (ConvSpec { stride: [2; 2], ..ConvSpec::same(3) }, Shape::new(2, 17, 34, 66), 24),
        (ConvSpec { upsample: true, ..ConvSpec::same(3) }, Shape::new(1, 17, 16, 33), 24),
        (ConvSpec { groups: 2, ..ConvSpec::same(1) }, Shape::new(3, 34, 7, 9), 50),
    ];
    for (spec, input, oc) in cases {
        let case = Case::new(spec, input, oc).unwrap();
        check(&case, &case.epilogue(1, Activation::None));
    }
}

#[test]
fn many_channels_stay_accurate() {
    let case = Case::new(ConvSpec::same(3), Shape::new(1, 512, 16, 16), 24).unwrap();
    let epilogue = Epilogue::default();
    let want = case.reference(&epilogue);
    for algorithm in [Algorithm::Winograd, Algorithm::Gemm] {
        for arch in arches() {
            let error = relative_l2(&case.run(algorithm, arch, &epilogue), &want);
            assert!(error < 5e-6, "{algorithm:?} on {arch:?}: {error:e}");
        }
    }
}

#[test]
fn spectra_in_parts() {
    // 1,100 channels of 12 pairs of tiles do not fit what is held at a time.
    let case = Case::new(ConvSpec::same(5), Shape::new(3, 1100, 57, 60), 3).unwrap();
    let want = case.run(Algorithm::Gemm, Arch::new(), &Epilogue::default());
    let error = relative_l2(&case.run(Algorithm::Fft, Arch::new(), &Epilogue::default()), &want);
    assert!(error < 5e-6, "{error:e}");
}

#[test]
fn threads_change_no_bit() {
    let cases = [
        (ConvSpec::same(3), Shape::new(1, 40, 100, 130), 48),
        (ConvSpec::same(3), Shape::new(1, 200, 16, 16), 72),
        (ConvSpec::same(5), Shape::new(1, 40, 50, 60), 30),
        (ConvSpec::same(1), Shape::new(1, 100, 16, 16), 72),
        (ConvSpec::same(3), Shape::new(1, 40, 50, 60), 1),
    ];
    for (spec, input, oc) in cases {
        let case = Case::new(spec, input, oc).unwrap();
        let epilogue = case.epilogue(7, Activation::Silu);
        for algorithm in ALGORITHMS {
            if !algorithm.supports(&spec) {
                continue;
            }
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.run(algorithm, Arch::new(), &epilogue))
            };
            let one = with(1);
            for threads in [2, 3, 8] {
                let same = one.iter().zip(with(threads)).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{algorithm:?} differs with {threads} threads");
            }
        }
    }
}

#[test]
fn algorithms_suit_their_shapes() {
    let cases = [
        (ConvSpec::same(3), Shape::new(1, 16, 64, 64), 16, Algorithm::Winograd),
        (ConvSpec::same(3), Shape::new(1, 16, 4, 4), 16, Algorithm::Gemm),
        (ConvSpec::same(15), Shape::new(1, 32, 64, 60), 48, Algorithm::Fft),
        (ConvSpec::same(15), Shape::new(1, 2, 33, 20), 8, Algorithm::Gemm),
        (ConvSpec::same(1), Shape::new(1, 16, 64, 64), 16, Algorithm::Gemm),
        (ConvSpec::same(3), Shape::new(1, 16, 64, 64), 1, Algorithm::Direct),
    ];
    for (spec, input, oc, algorithm) in cases {
        let case = Case::new(spec, input, oc).unwrap();
        assert_eq!(Algorithm::choose(&spec, input, case.weight_shape), algorithm);
        let epilogue = Epilogue::default();
        assert!(relative_l2(&case.run(algorithm, Arch::new(), &epilogue), &case.reference(&epilogue)) < 2e-6);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let spec = ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(7) };
    let weight = Shape::new(1, 2, 7, 7);
    assert_eq!(spec.output_shape(Shape::new(1, 2, 3, 9), weight), None);
    assert_eq!(spec.output_shape(Shape::new(1, 3, 9, 9), weight), None);
    let narrow = ConvSpec { padding: [0; 2], ..ConvSpec::same(7) };
    assert_eq!(narrow.output_shape(Shape::new(1, 2, 6, 9), weight), None);
    let out = narrow.output_shape(Shape::new(1, 2, 7, 9), weight);
    assert_eq!(out, Some(Shape::new(1, 1, 1, 3)));
}
