//! The gradient of a convolution with respect to its weight.

use super::{ConvSpec, gpu};
use crate::cpu::conv::{Algorithm, conv2d_weight_grad};
use crate::gpu::Operand;
use crate::graph::{Lowered, Op, Target};
use crate::tensor::Shape;

/// The gradient of a convolution with respect to its weight:
/// `dW[o, i, ky, kx] = sum over n, y, x of dy[n, o, y, x] * x[n, i, y + ky - pad, x + kx - pad]`, with stride, dilation
/// and groups likewise.
///
/// Inputs: `x` `[n, ic, h, w]` and `dy`, the gradient with respect to the convolution's result, `[n, oc, oh, ow]`.
/// Result: `weight`, `[oc, ic / groups, kh, kw]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conv2dWeightGrad {
    /// The hyperparameters of the convolution.
    pub spec: ConvSpec,
    /// The weight's shape.
    pub weight: Shape,
}

impl Op for Conv2dWeightGrad {
    fn name(&self) -> &'static str {
        "conv2d_weight_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [x, dy] = inputs else {
            return Err("it takes an input and a gradient".into());
        };
        if x.numel() == 0 || self.weight.numel() == 0 {
            return Err("no tensor may be empty".into());
        }
        match self.spec.output_shape(*x, self.weight) {
            Some(output) if output == *dy => Ok(self.weight),
            Some(output) => Err(format!("the gradient should be {output}")),
            None => Err(format!("a weight of {} does not go with this input", self.weight)),
        }
    }

    fn macs(&self, inputs: &[Shape], _output: Shape) -> u64 {
        (inputs[1].numel() * self.weight.item()) as u64
    }

    fn summary(&self) -> String {
        super::Conv2d::new(self.spec).describe() + " weight gradient"
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let (op, dy) = (*self, inputs[1].shape());
        match target {
            Target::Cpu => {
                let method = Algorithm::choose_for_weight_grad(&op.spec, dy, op.weight).name();
                let compute = Lowered::cpu(move |inputs, mut out| {
                    let grad = conv2d_weight_grad(&op.spec, inputs[0], inputs[1], op.weight);
                    for (n, item) in grad.chunks_exact(op.weight.item()).enumerate() {
                        out.item(n).copy_from_slice(item);
                    }
                });
                compute.method(method)
            }
            Target::Gpu(traits) => gpu::weight_grad::lower(traits, &op.spec, inputs[0], inputs[1], output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv2d::PaddingMode;
    use crate::ops::testing::{check_kernels, check_twins, check_twins_on, check_views, lowered, random, relative_l2};
    use proptest::prelude::*;

    fn op(spec: ConvSpec, x: Shape, oc: usize) -> (Conv2dWeightGrad, [Shape; 2]) {
        let weight = Shape::new(oc, x.c() / spec.groups, spec.kernel[0], spec.kernel[1]);
        let dy = spec.output_shape(x, weight).expect("the shapes fit");
        (Conv2dWeightGrad { spec, weight }, [x, dy])
    }

    /// The definition, in `f64`, of a convolution of one group without dilation, with zero padding.
    fn oracle(op: Conv2dWeightGrad, [x, dy]: [Shape; 2], data: &[Vec<f32>]) -> Vec<f32> {
        let [oc, ic, kh, kw] = op.weight.0;
        let (spec, mut grad) = (op.spec, Vec::with_capacity(op.weight.numel()));
        let at = |n: usize, i: usize, y: usize, column: usize| {
            let (y, column) = (y.checked_sub(spec.padding[0])?, column.checked_sub(spec.padding[1])?);
            (y < x.h() && column < x.w()).then(|| data[0][((n * ic + i) * x.h() + y) * x.w() + column])
        };
        for tap in 0..oc * ic * kh * kw {
            let [o, i, ky, kx] = [tap / (ic * kh * kw), tap / (kh * kw) % ic, tap / kw % kh, tap % kw];
            let mut sum = 0.0;
            for n in 0..dy.n() {
                for pixel in 0..dy.plane() {
                    let [y, column] = [pixel / dy.w() * spec.stride[0] + ky, pixel % dy.w() * spec.stride[1] + kx];
                    let v = at(n, i, y, column).unwrap_or(0.0);
                    sum += f64::from(v) * f64::from(data[1][(n * oc + o) * dy.plane() + pixel]);
                }
            }
            grad.push(sum as f32);
        }
        grad
    }

    fn check(spec: ConvSpec, x: Shape, oc: usize) {
        let (op, shapes) = op(spec, x, oc);
        let data: Vec<Vec<f32>> = (0..2).map(|i| random(shapes[i].numel(), 5 + i as u64)).collect();
        let found = check_twins_on(op, &shapes, &data, 1e-5);
        let error = relative_l2(&found, &oracle(op, shapes, &data));
        assert!(error <= 3e-6, "{op:?} on {shapes:?}: {error:e}");
    }

    #[test]
    fn sums_over_many_pixels() {
        check(ConvSpec::same(3), Shape::new(3, 17, 41, 53), 9);
        check(ConvSpec::same(3), Shape::new(2, 70, 10, 10), 66);
        // Several parts, slices of output channels and panels of input channels.
        check(ConvSpec::same(3), Shape::new(2, 20, 31, 42), 35);
        check(ConvSpec::same(3), Shape::new(1, 9, 30, 33), 140);
        check(ConvSpec::same(3), Shape::new(1, 70, 24, 24), 8);
        check(ConvSpec::same(3), Shape::new(1, 2, 150, 161), 5);
        check(ConvSpec::same(1), Shape::new(2, 40, 61, 67), 33);
        check(ConvSpec { stride: [2; 2], ..ConvSpec::same(3) }, Shape::new(2, 32, 96, 95), 16);
        check(ConvSpec::same(7), Shape::new(1, 1, 90, 110), 3);
        check(ConvSpec::same(3), Shape::new(1, 48, 1, 1), 8);
        check(ConvSpec { padding: [0, 2], ..ConvSpec::same(3) }, Shape::new(2, 16, 19, 22), 24);
    }

    #[test]
    fn depthwise_over_many_pixels() {
        let spec = ConvSpec { groups: 5, padding_mode: PaddingMode::Reflect, ..ConvSpec::same(15) };
        let (op, shapes) = op(spec, Shape::new(2, 5, 70, 90), 5);
        check_twins(op, &shapes, 1e-5);
        check_kernels(&op, &shapes);
    }

    #[test]
    fn parts_of_concatenations() {
        for (spec, channels) in [(ConvSpec::same(3), 9), (ConvSpec { groups: 9, ..ConvSpec::same(3) }, 9)] {
            let (op, shapes) = op(spec, Shape::new(3, channels, 12, 20), 18);
            check_views(op, &shapes, 1e-5);
            check_kernels(&op, &shapes);
        }
    }

    #[test]
    fn algorithms_suit_their_shapes() {
        let algorithm = |spec: ConvSpec, x: [usize; 4], oc| {
            let (op, shapes) = op(spec, Shape(x), oc);
            lowered(&op, &Target::Cpu, &shapes).method
        };
        let three = ConvSpec::same(3);
        assert_eq!(algorithm(three, [2, 128, 160, 160], 128), "winograd");
        assert_eq!(algorithm(three, [2, 256, 10, 10], 256), "gemm");
        assert_eq!(algorithm(ConvSpec { stride: [2; 2], ..three }, [2, 32, 96, 96], 32), "gemm");
        assert_eq!(algorithm(ConvSpec { groups: 32, ..three }, [2, 32, 96, 96], 32), "direct");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (op, [x, dy]) = op(ConvSpec::same(3), Shape::new(2, 4, 5, 6), 3);
        assert_eq!(op.infer(&[x, dy]), Ok(op.weight));
        assert_eq!(op.macs(&[x, dy], op.weight), 2 * 30 * 3 * 4 * 9);
        assert!(op.infer(&[x, x]).is_err());
        assert!(op.infer(&[dy, dy]).is_err());
        assert!(op.infer(&[x]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape(
            (n, groups) in (1..4usize, 1..4usize), (ic, oc) in (1..20usize, 1..20usize), size in (1..20usize, 1..40usize),
            kernel in (1..5usize, 1..5usize), stride in (1..4usize, 1..4usize), dilation in (1..3usize, 1..3usize),
            padding in (0..4usize, 0..4usize), (reflect, upsample) in (any::<bool>(), any::<bool>()),
        ) {
            let spec = ConvSpec {
                kernel: kernel.into(), stride: stride.into(), padding: padding.into(), dilation: dilation.into(), groups,
                padding_mode: if reflect { PaddingMode::Reflect } else { PaddingMode::Zeros }, upsample,
            };
            let x = Shape::new(n, ic * groups, size.0, size.1);
            let weight = Shape::new(oc * groups, ic, kernel.0, kernel.1);
            if let Some(dy) = spec.output_shape(x, weight) {
                check_twins(Conv2dWeightGrad { spec, weight }, &[x, dy], 1e-5);
            }
        }
    }
}
