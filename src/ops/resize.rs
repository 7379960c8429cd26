//! Upsampling by two: nearest and bilinear.

use rayon::prelude::*;
use serde::Deserialize;

use super::adjoint::Adjoint;
use super::gradient_name;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Doubles height and width: each pixel becomes four.
///
/// Input: `[n, c, h, w]`. Result: `[n, c, 2h, 2w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct UpsampleNearest2;

/// Doubles height and width by bilinear interpolation with aligned corners: the corner pixels keep their values
/// (PyTorch's `align_corners=True`).
///
/// Input: `[n, c, h, w]`. Result: `[n, c, 2h, 2w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct UpsampleBilinear2;

fn doubled(inputs: &[Shape]) -> Result<Shape, String> {
    match inputs {
        [x] if x.numel() > 0 => Ok(Shape::new(x.n(), x.c(), 2 * x.h(), 2 * x.w())),
        [_] => Err("it takes a tensor that is not empty".into()),
        _ => Err("it takes one tensor".into()),
    }
}

/// The launch of a kernel whose workgroups write tiles of `[height, width]` pixels of the result's channels; `small` is
/// the shape of the smaller tensor.
fn launch(file: &'static str, tile: [usize; 2], small: Shape, output: Operand) -> Launch {
    let Shape([n, c, h, w]) = output.shape();
    Launch::new(file, "main")
        .u32("channels", c)
        .u32("height", small.h())
        .u32("width", small.w())
        .write("out", output)
        .over_grid([w.div_ceil(tile[1]), h.div_ceil(tile[0]), n * c])
}

impl Op for UpsampleNearest2 {
    fn name(&self) -> &'static str {
        "upsample_nearest2"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        doubled(inputs)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        Ok(vec![Some(g.apply(&name, Adjoint::UpsampleNearest2, &[at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| nearest(inputs[0], out)),
            Target::Gpu(_) => {
                Lowered::gpu([launch("upsample_nearest2", [8, 128], inputs[0].shape(), output).read("x", inputs[0])])
            }
        }
    }
}

fn nearest(x: View, mut out: ViewMut) {
    let width = x.shape.w();
    for n in 0..x.shape.n() {
        let rows = x.item(n).par_chunks(width);
        let pairs = out.item(n).par_chunks_mut(4 * width);
        pairs.zip(rows).for_each(|(pair, row)| {
            let (above, below) = pair.split_at_mut(2 * width);
            for (two, &v) in above.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *two = [v, v];
            }
            below.copy_from_slice(above);
        });
    }
}

/// The two neighbours of output position `o` on an axis of `len` inputs, and the weight of the second.
///
/// The place in the input is `o * (len - 1) / (2 * len - 1) = o / 2 - f / 2` with `f = o / (2 * len - 1)`. Written this
/// way the weight has one rounding error however long the axis is; PyTorch's `o * scale` multiplies the error of the
/// rounded scale by `o`.
fn neighbours(o: usize, len: usize) -> (usize, usize, f32) {
    let near = o / 2;
    let f = o as f32 / (2 * len - 1) as f32;
    if o % 2 == 1 { (near, (near + 1).min(len - 1), 0.5 - 0.5 * f) } else { (near, near.saturating_sub(1), 0.5 * f) }
}

impl Op for UpsampleBilinear2 {
    fn name(&self) -> &'static str {
        "upsample_bilinear2"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        doubled(inputs)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        Ok(vec![Some(g.apply(&name, UpsampleBilinear2Grad, &[at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| bilinear(inputs[0], out)),
            Target::Gpu(_) => {
                Lowered::gpu([launch("upsample_bilinear2", [8, 64], inputs[0].shape(), output).read("x", inputs[0])])
            }
        }
    }
}

fn bilinear(x: View, mut out: ViewMut) {
    let (height, width) = (x.shape.h(), x.shape.w());
    let columns: Vec<_> = (0..2 * width).map(|o| neighbours(o, width)).collect();
    for n in 0..x.shape.n() {
        let rows = out.item(n).par_chunks_mut(2 * width).enumerate();
        rows.for_each(|(i, row)| {
            let plane = x.plane(n, i / (2 * height));
            let (near, other, down) = neighbours(i % (2 * height), height);
            let near = &plane[near * width..][..width];
            let other = &plane[other * width..][..width];
            let between: Vec<f32> = near.iter().zip(other).map(|(a, b)| mix(*a, *b, down)).collect();
            for (out, &(near, other, right)) in row.iter_mut().zip(&columns) {
                *out = mix(between[near], between[other], right);
            }
        });
    }
}

/// The gradient with respect to the input of [`UpsampleBilinear2`]: for each input pixel the sum, over the result's
/// pixels that it goes into, of their gradient times its weight there.
///
/// Input: `dy` `[n, c, 2h, 2w]`. Result: `[n, c, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct UpsampleBilinear2Grad;

/// The output positions that input `i` of `len` goes into, and its weights there: the transpose of [`neighbours`].
fn receivers(i: usize, len: usize) -> [(usize, f32); 4] {
    let near = |o: usize| (o, 1.0 - neighbours(o, len).2);
    let other = |o: usize| (o, neighbours(o, len).2);
    let before = if i > 0 { other(2 * i - 1) } else { (0, 0.0) };
    let after = if i + 1 < len { other(2 * i + 2) } else { (0, 0.0) };
    [before, near(2 * i), near(2 * i + 1), after]
}

impl Op for UpsampleBilinear2Grad {
    fn name(&self) -> &'static str {
        "upsample_bilinear2_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [dy] if dy.numel() > 0 && dy.h().is_multiple_of(2) && dy.w().is_multiple_of(2) => {
                Ok(Shape::new(dy.n(), dy.c(), dy.h() / 2, dy.w() / 2))
            }
            _ => Err("it takes one tensor of even height and width".into()),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| bilinear_grad(inputs[0], out)),
            Target::Gpu(_) => {
                Lowered::gpu([launch("upsample_bilinear2_grad", [8, 64], output.shape(), output).read("dy", inputs[0])])
            }
        }
    }
}

fn bilinear_grad(dy: View, mut out: ViewMut) {
    let (height, width) = (out.shape.h(), out.shape.w());
    let columns: Vec<_> = (0..width).map(|i| receivers(i, width)).collect();
    for n in 0..dy.shape.n() {
        let rows = out.item(n).par_chunks_mut(width).enumerate();
        rows.for_each(|(i, row)| {
            let plane = dy.plane(n, i / height);
            let mut between = vec![0f32; 2 * width];
            for (o, weight) in receivers(i % height, height) {
                let line = &plane[o * 2 * width..][..2 * width];
                between.iter_mut().zip(line).for_each(|(sum, v)| *sum += weight * v);
            }
            for (out, receivers) in row.iter_mut().zip(&columns) {
                *out = receivers.iter().map(|&(o, weight)| weight * between[o]).sum();
            }
        });
    }
}

/// `a` where `t` is 0, `b` where it is 1.
fn mix(a: f32, b: f32, t: f32) -> f32 {
    a * (1.0 - t) + b * t
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        check_gradient, check_gradient_views, check_kernels, check_twins, check_twins_on, check_views, random,
        relative_l2,
    };
    use super::*;

    const SHAPES: [Shape; 5] = [
        Shape::new(2, 3, 9, 70),
        Shape::new(1, 2, 1, 1),
        Shape::new(1, 1, 1, 2100),
        Shape::new(3, 1, 1055, 1),
        Shape::new(1, 70_000, 1, 1),
    ];

    /// The result for input `data` of shape `x` whose pixel in row `i`, column `j` is `value(plane, i, j)`.
    fn expected(x: Shape, data: &[f32], value: impl Fn(&[f32], usize, usize) -> f64) -> Vec<f32> {
        let mut out = Vec::with_capacity(4 * x.numel());
        for plane in data.chunks(x.plane()) {
            for i in 0..4 * x.plane() {
                out.push(value(plane, i / (2 * x.w()), i % (2 * x.w())) as f32);
            }
        }
        out
    }

    fn check_nearest(x: Shape) {
        let data = random(x.numel(), 5);
        let cpu = check_twins_on(UpsampleNearest2, &[x], std::slice::from_ref(&data), 0.0);
        let oracle = |plane: &[f32], i: usize, j: usize| f64::from(plane[i / 2 * x.w() + j / 2]);
        assert_eq!(cpu, expected(x, &data, oracle));
    }

    fn check_bilinear(x: Shape) {
        let data = random(x.numel(), 6);
        let cpu = check_twins_on(UpsampleBilinear2, &[x], std::slice::from_ref(&data), 1e-6);
        let place = |o: usize, len: usize| {
            let at = o as f64 * (len - 1) as f64 / (2 * len - 1) as f64;
            let low = at.floor();
            (low as usize, (low as usize + 1).min(len - 1), at - low)
        };
        let oracle = |plane: &[f32], i: usize, j: usize| {
            let (y0, y1, down) = place(i, x.h());
            let (x0, x1, right) = place(j, x.w());
            let at = |y: usize, c: usize| f64::from(plane[y * x.w() + c]);
            let across = |y: usize| (1.0 - right) * at(y, x0) + right * at(y, x1);
            (1.0 - down) * across(y0) + down * across(y1)
        };
        let error = relative_l2(&cpu, &expected(x, &data, oracle));
        assert!(error <= 1e-6, "{x}: {error:e}");
        check_adjoint(x, &data, &cpu);
    }

    /// The gradient is the transpose: `<upsampled x, dy> = <x, gradient of dy>`.
    fn check_adjoint(x: Shape, data: &[f32], up: &[f32]) {
        let dy_shape = Shape::new(x.n(), x.c(), 2 * x.h(), 2 * x.w());
        let dy = random(dy_shape.numel(), 7);
        let dx = check_twins(UpsampleBilinear2Grad, &[dy_shape], 1e-6);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let size = (dot(up, up) * dot(&dy, &dy)).sqrt();
        let error = (dot(up, &dy) - dot(data, &dx)).abs() / size;
        assert!(error <= 1e-6, "{x}: {error:e}");
    }

    #[test]
    fn the_gradient_of_bilinear_upsampling() {
        check_gradient(UpsampleBilinear2, &[Shape::new(2, 3, 5, 7)], 0.0, 1e-4);
        check_gradient_views(UpsampleBilinear2, &[Shape::new(3, 2, 4, 9)], 1e-6);
        check_kernels(&UpsampleBilinear2Grad, &[Shape::new(1, 1, 2, 2)]);
        assert!(UpsampleBilinear2Grad.infer(&[Shape::new(1, 1, 2, 3)]).is_err());
    }

    #[test]
    fn sizes_of_all_kinds() {
        for x in SHAPES {
            check_nearest(x);
            check_bilinear(x);
        }
        check_gradient(UpsampleNearest2, &[Shape::new(2, 3, 5, 7)], 0.0, 1e-4);
        check_kernels(&UpsampleNearest2, &SHAPES[..1]);
        check_kernels(&UpsampleBilinear2, &SHAPES[..1]);
    }

    #[test]
    fn parts_of_concatenations() {
        check_views(UpsampleNearest2, &[Shape::new(3, 2, 5, 7)], 0.0);
        check_views(UpsampleBilinear2, &[Shape::new(3, 2, 5, 7)], 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(1, 2, 3, 4);
        assert_eq!(UpsampleNearest2.infer(&[x]), Ok(Shape::new(1, 2, 6, 8)));
        assert!(UpsampleBilinear2.infer(&[x, x]).is_err());
        assert!(UpsampleBilinear2.infer(&[Shape::new(1, 2, 0, 4)]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, c in 1..5usize, h in 1..40usize, w in 1..80usize) {
            check_nearest(Shape::new(n, c, h, w));
            check_bilinear(Shape::new(n, c, h, w));
        }
    }
}
