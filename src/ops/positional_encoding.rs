//! The encoding of a noise level as sines and cosines.

use std::any::Any;
use std::fmt::Write;

use super::{Bind, Dispatch, GpuTraits, Kernel, Op, Params, Slot};
use crate::cpu::view::{View, ViewMut};
use crate::tensor::Shape;

/// The largest dimension: the kernel carries the frequencies in its text.
const MAX_DIM: usize = 4096;

/// `sin(level * f_i)` for `i = 0..dim/2`, then the cosines, with `f_i = 10000^(-i / (dim/2))`; the `PositionalEncoding`
/// of the SR3 family of diffusion networks, whose frequencies stop short of 1/10000.
///
/// Input: levels `[n, 1, 1, 1]`. Result: `[n, dim, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn cpu(&self, inputs: &[View], mut out: ViewMut) {
        for n in 0..out.shape.n() {
            let level = inputs[0].item(n)[0];
            let (sines, cosines) = out.item(n).split_at_mut(self.dim / 2);
            for (i, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
                (*sine, *cosine) = (level * self.frequency(i)).sin_cos();
            }
        }
    }

    fn gpu(&self, _traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        let count = self.dim / 2;
        let mut body = format!("    var table = array<f32, {count}>(");
        for i in 0..count {
            // Writing to a String cannot fail.
            let _ = write!(body, "{:?}f, ", self.frequency(i));
        }
        body.push_str(");\n    return table[i];");
        let kernel = Kernel { body: Some(body), ..Kernel::new("positional_encoding") };
        let params = Params::new().slot(&inputs[0]).slot(&output).u(output.shape.n()).u(count);
        let groups = (output.shape.n() * count).div_ceil(64);
        let binds = vec![Bind::Input(0), Bind::Output];
        vec![Dispatch::folded(kernel, params, binds, groups)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_kernels, check_twins_on, check_views, relative_l2};
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
