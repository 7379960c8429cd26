//! The encoding of a noise level as sines and cosines.

use std::fmt::Write;

use serde::Deserialize;

use super::gradient_name;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// The largest dimension: kernels carry the frequencies in their text.
const MAX_DIM: usize = 4096;

/// `sin(level * f_i)` for `i = 0..dim/2`, then the cosines, with `f_i = 10000^(-i / (dim/2))`: the `PositionalEncoding`
/// of the SR3 family of diffusion networks. Others divide by `dim/2 - 1`, so that the last frequency is 1/10000.
///
/// Input: levels `[n, 1, 1, 1]`. Result: `[n, dim, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionalEncoding {
    /// Sines and cosines together: even, 2 to 4,096.
    pub dim: usize,
}

impl PositionalEncoding {
    /// Frequency `i` in radians per unit of level.
    fn frequency(self, i: usize) -> f32 {
        let step = i as f64 / (self.dim / 2) as f64;
        (-(1e4f64.ln()) * step).exp() as f32
    }

    /// The WGSL of the frequencies: elements of an array, so that both devices use the same numbers.
    fn frequencies_text(self) -> String {
        let mut text = String::new();
        for i in 0..self.dim / 2 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {:?}f,", self.frequency(i));
        }
        text
    }

    fn compute(self, levels: View, mut out: ViewMut) {
        for n in 0..out.shape.n() {
            let level = levels.item(n)[0];
            let (sines, cosines) = out.item(n).split_at_mut(self.dim / 2);
            for (i, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
                (*sine, *cosine) = (level * self.frequency(i)).sin_cos();
            }
        }
    }

    fn launch(self, levels: Operand, output: Operand) -> Launch {
        let count = self.dim / 2;
        Launch::new("positional_encoding", "main")
            .text("frequencies", self.frequencies_text())
            .read("levels", levels)
            .write("out", output)
            .u32("count", count)
            .over_grid([count.div_ceil(64), output.shape().n(), 1])
    }
}

impl Op for PositionalEncoding {
    fn name(&self) -> &'static str {
        "positional_encoding"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [level] = inputs else {
            return Err("it takes one tensor".into());
        };
        if level.item() != 1 {
            return Err("it takes one level per item".into());
        }
        if self.dim < 2 || !self.dim.is_multiple_of(2) || self.dim > MAX_DIM {
            return Err(format!("its dimension must be even and at most {MAX_DIM}"));
        }
        Ok(Shape::new(level.n(), self.dim, 1, 1))
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        let grad = PositionalEncodingGrad { encoding: *self };
        Ok(vec![Some(g.apply(&name, grad, &[at.output, at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], out)),
            Target::Gpu(_) => Lowered::gpu([op.launch(inputs[0], output)]),
        }
    }
}

/// The gradient with respect to the levels of a [`PositionalEncoding`] `y`: the sum over `i < dim/2` of
/// `f_i * (y_(i + dim/2) * dy_i - y_i * dy_(i + dim/2))`, since `y_i` is a sine and `y_(i + dim/2)` its cosine.
///
/// Inputs: `y` and `dy`, `[n, dim, 1, 1]`. Result: `[n, 1, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PositionalEncodingGrad {
    encoding: PositionalEncoding,
}

impl Op for PositionalEncodingGrad {
    fn name(&self) -> &'static str {
        "positional_encoding_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [y, dy] if y == dy && *y == Shape::new(y.n(), self.encoding.dim, 1, 1) => Ok(Shape::new(y.n(), 1, 1, 1)),
            _ => Err("it takes an encoding and the gradient with respect to it".into()),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], inputs[1], out)),
            Target::Gpu(_) => Lowered::gpu([op.launch(inputs[0], inputs[1], output)]),
        }
    }
}

impl PositionalEncodingGrad {
    fn compute(self, y: View, dy: View, mut out: ViewMut) {
        let half = self.encoding.dim / 2;
        for n in 0..out.shape.n() {
            let [y, dy] = [y.item(n), dy.item(n)];
            let turn = |i: usize| f64::from(y[half + i] * dy[i]) - f64::from(y[i] * dy[half + i]);
            let sum: f64 = (0..half).map(|i| f64::from(self.encoding.frequency(i)) * turn(i)).sum();
            out.item(n)[0] = sum as f32;
        }
    }

    fn launch(self, y: Operand, dy: Operand, output: Operand) -> Launch {
        Launch::new("positional_encoding_grad", "main")
            .text("frequencies", self.encoding.frequencies_text())
            .read("y", y)
            .read("dy", dy)
            .write("out", output)
            .u32("count", self.encoding.dim / 2)
            .over(output.shape().n())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        check_gradient, check_gradient_views, check_kernels, check_twins, check_twins_on, check_views, relative_l2,
    };
    use super::*;

    fn check(dim: usize, levels: &[f32]) {
        let op = PositionalEncoding { dim };
        let shape = Shape::new(levels.len(), 1, 1, 1);
        let cpu = check_twins_on(op, &[shape], &[levels.to_vec()], 1e-6);
        let mut expected = Vec::new();
        for &level in levels {
            let angle = |i: usize| {
                let frequency = 1e4f64.powf(-(i as f64) / (dim / 2) as f64);
                f64::from(level) * frequency
            };
            expected.extend((0..dim / 2).map(|i| angle(i).sin() as f32));
            expected.extend((0..dim / 2).map(|i| angle(i).cos() as f32));
        }
        let error = relative_l2(&cpu, &expected);
        // An angle is rounded to f32 before its sine is taken.
        let rounding = levels.iter().fold(1.0, |m: f32, v| m.max(v.abs())) * f32::EPSILON;
        assert!(error <= f64::from(rounding).max(1e-7), "{dim}: {error:e}");
    }

    #[test]
    fn the_levels_of_a_schedule() {
        let levels = [0.999_97, 0.999_51, 0.0, 1.0, -0.3];
        for dim in [2, 6, 32, 128, 514] {
            check(dim, &levels);
            check_kernels(&PositionalEncoding { dim }, &[Shape::new(5, 1, 1, 1)]);
        }
    }

    #[test]
    fn every_quadrant_and_many_turns() {
        let levels: Vec<f32> = (-200..200).map(|i| i as f32 * 9.7).collect();
        check(64, &levels);
    }

    #[test]
    fn parts_of_concatenations() {
        check_views(PositionalEncoding { dim: 10 }, &[Shape::new(4, 1, 1, 1)], 1e-6);
    }

    #[test]
    fn the_gradient_with_respect_to_the_level() {
        for dim in [2, 10, 514] {
            let encoding = PositionalEncoding { dim };
            check_gradient(encoding, &[Shape::new(5, 1, 1, 1)], 0.3, 1e-3);
            check_gradient_views(encoding, &[Shape::new(4, 1, 1, 1)], 1e-5);
            let y = Shape::new(70, dim, 1, 1);
            check_twins(PositionalEncodingGrad { encoding }, &[y, y], 1e-5);
            check_kernels(&PositionalEncodingGrad { encoding }, &[y, y]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let level = Shape::new(2, 1, 1, 1);
        for dim in [0, 3, MAX_DIM + 2] {
            assert!(PositionalEncoding { dim }.infer(&[level]).is_err());
        }
        let op = PositionalEncoding { dim: 8 };
        assert_eq!(op.infer(&[level]), Ok(Shape::new(2, 8, 1, 1)));
        assert!(op.infer(&[Shape::new(1, 2, 1, 1)]).is_err());
        assert!(op.infer(&[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_level(half in 1..70usize, levels in prop::collection::vec(-1f32..1.0, 1..9)) {
            check(2 * half, &levels);
        }
    }
}
