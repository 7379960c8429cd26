//! Softmax over channels or along rows.

use rayon::prelude::*;
use serde::Deserialize;

use super::gradient_name;
use super::pointwise::Pointwise;
use super::reduce::over_pixels;
use super::reduce_sum::ReduceSum;
use crate::cpu::math::exp;
use crate::cpu::softmax::{softmax_row, softmax_row_backward};
use crate::cpu::view::{View, ViewMut};
use crate::cpu::wide::wide_fn;
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Pixels that one CPU task takes.
const PIXELS: usize = 512;
/// Loop rounds in which the 64 invocations of a workgroup join their values, in a tree.
const TREE: usize = 6;

/// The axis that sums to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Channels, PyTorch's dimension 1.
    Channels,
    /// Width, the last dimension.
    Width,
}

/// `exp(x) / sum(exp(x))` along an axis, relative to the axis' maximum so that nothing overflows.
///
/// Input and result: `[n, c, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// The axis that sums to one.
    pub axis: Axis,
}

wide_fn! {
    /// For each of `len` pixels from `first` on: the maximum over the channels, and the inverse of the sum of the
    /// exponentials relative to it. `x` is a batch item with channels of `plane` pixels.
    fn top_and_scale<'a>(x: &'a [f32], plane: usize, first: usize, len: usize) -> Vec<[f32; 2]> {
        let (mut tops, mut totals) = (vec![f32::NEG_INFINITY; len], vec![0f64; len]);
        for channel in x.chunks_exact(plane) {
            for (top, &v) in tops.iter_mut().zip(&channel[first..][..len]) {
                *top = if v > *top { v } else { *top };
            }
        }
        for channel in x.chunks_exact(plane) {
            for ((total, top), &v) in totals.iter_mut().zip(&tops).zip(&channel[first..][..len]) {
                *total += f64::from(exp(v - top));
            }
        }
        let lines = tops.into_iter().zip(totals);
        lines.map(|(top, total)| [top, (1.0 / total) as f32]).collect()
    }
}

wide_fn! {
    /// `exp(x - top) * scale`, pixel by pixel.
    fn apply_lines<'a>(out: &'a mut [f32], x: &'a [f32], lines: &'a [[f32; 2]]) -> () {
        for ((out, &v), [top, scale]) in out.iter_mut().zip(x).zip(lines) {
            *out = exp(v - top) * scale;
        }
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [x] if x.numel() > 0 => Ok(*x),
            [_] => Err("it takes a tensor that is not empty".into()),
            _ => Err("it takes one tensor".into()),
        }
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        let grad = match self.axis {
            Axis::Channels => {
                let products = g.apply(&name, Pointwise::mul(), &[at.output, at.dy])?;
                let sum = g.apply(&name, ReduceSum::CHANNELS, &[products])?;
                g.apply(&name, Pointwise::build(|[y, dy, sum]| y * (dy - sum)), &[at.output, at.dy, sum])?
            }
            Axis::Width => g.apply(&name, SoftmaxWidthGrad, &[at.output, at.dy])?,
        };
        Ok(vec![Some(grad)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], out)),
            Target::Gpu(_) => op.launches(inputs[0], output),
        }
    }
}

impl Softmax {
    fn compute(&self, x: View, mut out: ViewMut) {
        match self.axis {
            Axis::Channels => Self::cpu_channels(x, out),
            Axis::Width => {
                let width = x.shape.w();
                for n in 0..x.shape.n() {
                    let rows = out.item(n).par_chunks_mut(width);
                    rows.zip(x.item(n).par_chunks(width)).for_each(|(out, x)| {
                        out.copy_from_slice(x);
                        softmax_row(out);
                    });
                }
            }
        }
    }

    fn cpu_channels(x: View, mut out: ViewMut) {
        let plane = x.shape.plane();
        for n in 0..x.shape.n() {
            let item = x.item(n);
            let blocks: Vec<usize> = (0..plane).step_by(PIXELS).collect();
            let of_block = |&first: &usize| {
                let len = PIXELS.min(plane - first);
                top_and_scale(item, plane, first, len)
            };
            let lines: Vec<[f32; 2]> = blocks.par_iter().flat_map_iter(of_block).collect();
            let rows = out.item(n).par_chunks_mut(plane).zip(item.par_chunks(plane));
            rows.for_each(|(out, x)| apply_lines(out, x, &lines));
        }
    }

    fn launches(&self, x: Operand, output: Operand) -> Lowered {
        let Shape([n, c, h, w]) = x.shape();
        match self.axis {
            // Three loops over the channels by four, each followed by one over at most three that are left.
            Axis::Channels => Lowered::gpu([over_pixels("softmax_channels", x, output)]).rounds(3 * (c / 4 + 3)),
            Axis::Width => {
                let launch = Launch::new("softmax_width", "main").read("x", x).write("out", output);
                let launch = launch.u32("width", w).over_grid([c * h, n, 1]);
                Lowered::gpu([launch]).rounds(3 * w.div_ceil(64) + TREE)
            }
        }
    }
}

/// The gradient of [`Softmax`] along rows: `y * (dy - sum(y * dy))`.
///
/// Inputs: the softmax `y` and the gradient with respect to it, `dy`, `[n, c, h, w]`. Result: the same shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SoftmaxWidthGrad;

impl Op for SoftmaxWidthGrad {
    fn name(&self) -> &'static str {
        "softmax_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [y, dy] if y == dy && y.numel() > 0 => Ok(*y),
            _ => Err("it takes two tensors of one shape that are not empty".into()),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs, out)),
            Target::Gpu(_) => op.launches(inputs, output),
        }
    }
}

impl SoftmaxWidthGrad {
    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let [y, dy] = [inputs[0], inputs[1]];
        let width = y.shape.w();
        for n in 0..y.shape.n() {
            let rows = y.item(n).par_chunks(width).zip(dy.item(n).par_chunks(width));
            out.item(n).par_chunks_mut(width).zip(rows).for_each(|(out, (y, dy))| {
                out.copy_from_slice(dy);
                softmax_row_backward(out, y, 1.0);
            });
        }
    }

    fn launches(&self, inputs: &[Operand], output: Operand) -> Lowered {
        let Shape([n, c, h, w]) = output.shape();
        let launch = Launch::new("softmax_width_grad", "main").read("y", inputs[0]).read("dy", inputs[1]);
        let launch = launch.write("out", output).u32("width", w).over_grid([c * h, n, 1]);
        Lowered::gpu([launch]).rounds(2 * w.div_ceil(64) + TREE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        adapters, check_gradient, check_gradient_views, check_kernels, check_twins, check_twins_on, check_views,
        lowered, random, relative_l2,
    };
    use super::*;
    use crate::graph::MAX_LOOP_ROUNDS;

    const AXES: [Axis; 2] = [Axis::Channels, Axis::Width];

    /// Compares both devices with the definition in `f64` on values up to `range` either side of zero.
    fn check(x: Shape, range: f32) {
        let mut data = random(x.numel(), 4);
        data.iter_mut().for_each(|v| *v *= range);
        for axis in AXES {
            let cpu = check_twins_on(Softmax { axis }, &[x], std::slice::from_ref(&data), 1e-5);
            let line = |i: usize| match axis {
                Axis::Channels => (i / x.item() * x.item() + i % x.plane(), x.plane(), x.c()),
                Axis::Width => (i / x.w() * x.w(), 1, x.w()),
            };
            let value = |i: usize| {
                let (first, step, len) = line(i);
                let relative = |k: usize| (f64::from(data[first + k * step]) - f64::from(data[i])).exp();
                (1.0 / (0..len).map(relative).sum::<f64>()) as f32
            };
            let expected: Vec<f32> = (0..x.numel()).map(value).collect();
            let error = relative_l2(&cpu, &expected);
            assert!(error <= 1e-6, "{axis:?} on {x}: {error:e}");
        }
    }

    #[test]
    fn sizes_of_all_kinds() {
        check(Shape::new(2, 5, 33, 65), 3.0);
        check(Shape::new(1, 3, 2, 2500), 20.0);
        check(Shape::new(2, 2500, 1, 3), 5.0);
        check(Shape::new(1, 35_000, 2, 1), 1.0);
        for axis in AXES {
            check_kernels(&Softmax { axis }, &[Shape::new(1, 2, 3, 4)]);
        }
    }

    #[test]
    fn huge_values_do_not_overflow() {
        check(Shape::new(1, 4, 3, 70), 1e4);
    }

    #[test]
    fn parts_of_concatenations() {
        for axis in AXES {
            check_views(Softmax { axis }, &[Shape::new(3, 4, 5, 7)], 1e-5);
        }
    }

    #[test]
    fn gradients_along_both_axes() {
        for axis in AXES {
            check_gradient(Softmax { axis }, &[Shape::new(2, 6, 5, 9)], 0.0, 1e-3);
            check_gradient_views(Softmax { axis }, &[Shape::new(3, 4, 5, 7)], 1e-5);
        }
        for y in [Shape::new(2, 3, 5, 1), Shape::new(1, 2, 1, 2500), Shape::new(1, 70_000, 1, 3)] {
            check_twins(SoftmaxWidthGrad, &[y, y], 1e-5);
            check_kernels(&SoftmaxWidthGrad, &[y, y]);
        }
        assert!(SoftmaxWidthGrad.infer(&[Shape::new(1, 2, 3, 4), Shape::new(1, 2, 3, 1)]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let op = Softmax { axis: Axis::Width };
        assert!(op.infer(&[]).is_err());
        assert!(op.infer(&[Shape::new(1, 2, 3, 0)]).is_err());
    }

    #[test]
    fn loops_too_long_for_software_adapters_are_told() {
        let rounds =
            |axis: Axis, x: Shape| lowered(&Softmax { axis }, &Target::Gpu(adapters()[0].clone()), &[x]).rounds;
        assert!(rounds(Axis::Channels, Shape::new(1, 80_000, 1, 1)) <= MAX_LOOP_ROUNDS);
        assert!(rounds(Axis::Channels, Shape::new(1, 90_000, 1, 1)) > MAX_LOOP_ROUNDS);
        assert!(rounds(Axis::Width, Shape::new(1, 1, 1, 1_300_000)) <= MAX_LOOP_ROUNDS);
        assert!(rounds(Axis::Width, Shape::new(1, 1, 1, 1_400_000)) > MAX_LOOP_ROUNDS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, c in 1..30usize, h in 1..20usize, w in 1..90usize) {
            check(Shape::new(n, c, h, w), 4.0);
        }
    }
}
