//! The gradients of operations that only move pixels within a plane: strides, padding, nearest upsampling.

use rayon::prelude::*;

use crate::cpu::conv::PaddingMode;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Op, Target};
use crate::tensor::Shape;

/// The adjoint (transpose) of a linear map that copies pixels to other places. It turns the gradient with respect to
/// the map's result into that with respect to its input: for each input pixel the sum over the pixels that it was
/// copied to.
///
/// Input: `[n, c, h, w]`, of the shape of the map's result. Result: of the shape of the map's input. Pairs are
/// `[vertical, horizontal]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adjoint {
    /// The adjoint of taking every `stride`-th pixel of a plane of this size, from the first one on: puts the pixels
    /// back and zeros between them.
    Stride {
        /// Pixels from one that was taken to the next.
        stride: [usize; 2],
        /// Height and width of the result.
        size: [usize; 2],
    },
    /// The adjoint of padding: takes the padding off; what was reflected is added to the pixel that it was copied from.
    Padding {
        /// Pixels added on each of two opposite sides.
        padding: [usize; 2],
        /// What the padding held.
        mode: PaddingMode,
    },
    /// The adjoint of [`UpsampleNearest2`](super::resize::UpsampleNearest2): sums blocks of 2x2.
    UpsampleNearest2,
}

impl Adjoint {
    /// The constant `KIND` of `shaders/adjoint.wgsl` for it, and the strides or the padding.
    fn code(self) -> (f64, [usize; 2]) {
        match self {
            Self::Stride { stride, .. } => (0.0, stride),
            Self::Padding { padding, mode: PaddingMode::Zeros } => (1.0, padding),
            Self::Padding { padding, mode: PaddingMode::Reflect } => (2.0, padding),
            Self::UpsampleNearest2 => (3.0, [2; 2]),
        }
    }

    /// The length of an axis of the result where the input's is `given`; `None` if no input has that length.
    fn size(self, axis: usize, given: usize) -> Option<usize> {
        match self {
            Self::Stride { stride, size } => {
                let fits = given > 0 && stride[axis] > 0 && (given - 1) * stride[axis] < size[axis];
                fits.then_some(size[axis])
            }
            Self::Padding { padding, mode } => {
                let inside = given.checked_sub(2 * padding[axis])?;
                let reach = if mode == PaddingMode::Reflect { padding[axis] } else { 0 };
                (inside > reach).then_some(inside)
            }
            Self::UpsampleNearest2 => (given > 0 && given.is_multiple_of(2)).then_some(given / 2),
        }
    }

    /// The rows of the input, of `given`, that row `i` of the result, of `size`, was copied to.
    fn lines(self, i: usize, size: usize, given: usize) -> impl Iterator<Item = usize> {
        let places = match self {
            Self::Stride { stride: [stride, _], .. } => {
                [(i.is_multiple_of(stride) && i / stride < given).then_some(i / stride), None, None]
            }
            Self::Padding { padding: [padding, _], mode } => {
                let reflect = mode == PaddingMode::Reflect;
                let before = reflect && i >= 1 && i <= padding;
                let after = reflect && i + 1 < size && i + 1 + padding >= size;
                let mirrored = || padding + 2 * (size - 1) - i;
                [Some(i + padding), before.then(|| padding - i), after.then(mirrored)]
            }
            Self::UpsampleNearest2 => [Some(2 * i), Some(2 * i + 1), None],
        };
        places.into_iter().flatten()
    }

    /// Adds a row of the input to a row `out` of the result, each pixel where it was copied from.
    fn add_row(self, row: &[f32], out: &mut [f32]) {
        match self {
            Self::Stride { stride: [_, stride], .. } => {
                out.iter_mut().step_by(stride).zip(row).for_each(|(out, v)| *out += v);
            }
            Self::Padding { padding: [_, padding], mode } => {
                out.iter_mut().zip(&row[padding..]).for_each(|(out, v)| *out += v);
                if mode == PaddingMode::Reflect {
                    let last = out.len() - 1;
                    for i in 1..=padding {
                        out[i] += row[padding - i];
                        out[last - i] += row[padding + last + i];
                    }
                }
            }
            Self::UpsampleNearest2 => {
                out.iter_mut().zip(row.as_chunks::<2>().0).for_each(|(out, [a, b])| *out += a + b);
            }
        }
    }
}

impl Op for Adjoint {
    fn name(&self) -> &'static str {
        "adjoint"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [x] = inputs else {
            return Err("it takes one tensor".into());
        };
        match (x.numel(), self.size(0, x.h()), self.size(1, x.w())) {
            (1.., Some(h), Some(w)) => Ok(Shape::new(x.n(), x.c(), h, w)),
            _ => Err(format!("{self:?} gives no tensor of this shape")),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], out)),
            Target::Gpu(_) => Lowered::gpu([op.launch(inputs[0], output)]),
        }
    }
}

impl Adjoint {
    fn compute(self, x: View, mut out: ViewMut) {
        let [_, _, height, width] = out.shape.0;
        for n in 0..out.shape.n() {
            let rows = out.item(n).par_chunks_mut(width).enumerate();
            rows.for_each(|(i, row)| {
                row.fill(0.0);
                let plane = x.plane(n, i / height);
                for line in self.lines(i % height, height, x.shape.h()) {
                    self.add_row(&plane[line * x.shape.w()..][..x.shape.w()], row);
                }
            });
        }
    }

    fn launch(self, x: Operand, output: Operand) -> Launch {
        let Shape([n, c, h, w]) = output.shape();
        let (kind, step) = self.code();
        Launch::new("adjoint", "main")
            .constant("KIND", kind)
            .read("x", x)
            .write("out", output)
            .i32("x_height", x.shape().h())
            .i32("x_width", x.shape().w())
            .i32("out_height", h)
            .i32("out_width", w)
            .i32("step_down", step[0])
            .i32("step_right", step[1])
            .over_grid([(h * w).div_ceil(64), c, n])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_kernels, check_twins_on, check_views, random, relative_l2};
    use super::*;

    const REFLECT: Adjoint = Adjoint::Padding { padding: [3, 2], mode: PaddingMode::Reflect };
    const CROP: Adjoint = Adjoint::Padding { padding: [1, 2], mode: PaddingMode::Zeros };

    /// Where on an axis of `size` the map took position `i` of its result from.
    fn source(op: Adjoint, axis: usize, i: usize, size: usize) -> Option<usize> {
        match op {
            Adjoint::Stride { stride, .. } => Some(i * stride[axis]),
            Adjoint::Padding { padding, mode } => {
                let (at, last) = (i as isize - padding[axis] as isize, size as isize - 1);
                let reflected = last - (last - at.abs()).abs();
                let inside = (0..=last).contains(&at);
                (inside || mode == PaddingMode::Reflect).then_some(reflected.cast_unsigned())
            }
            Adjoint::UpsampleNearest2 => Some(i / 2),
        }
    }

    fn check(op: Adjoint, x: Shape) {
        let data = random(x.numel(), 4);
        let to = op.infer(&[x]).expect("it takes the shape");
        let mut expected = vec![0f32; to.numel()];
        for (i, v) in data.iter().enumerate() {
            let (plane, y, column) = (i / x.plane(), i / x.w() % x.h(), i % x.w());
            if let (Some(y), Some(column)) = (source(op, 0, y, to.h()), source(op, 1, column, to.w())) {
                expected[plane * to.plane() + y * to.w() + column] += v;
            }
        }
        let found = check_twins_on(op, &[x], std::slice::from_ref(&data), 1e-6);
        let error = relative_l2(&found, &expected);
        assert!(error <= 1e-6, "{op:?} of {x}: {error:e}");
    }

    #[test]
    fn adjoints_put_every_pixel_where_it_came_from() {
        let stride = Adjoint::Stride { stride: [2, 3], size: [10, 33] };
        check(stride, Shape::new(2, 3, 5, 11));
        check(stride, Shape::new(2, 3, 4, 9));
        check(REFLECT, Shape::new(2, 3, 10, 9));
        check(REFLECT, Shape::new(1, 70, 31, 41));
        check(CROP, Shape::new(3, 2, 9, 7));
        check(Adjoint::UpsampleNearest2, Shape::new(2, 3, 6, 34));
        for (op, height) in [(stride, 5), (REFLECT, 10), (CROP, 10)] {
            check_views(op, &[Shape::new(2, 3, height, 9)], 1e-6);
        }
        for (op, height) in [(stride, 5), (REFLECT, 10), (CROP, 10), (Adjoint::UpsampleNearest2, 10)] {
            check_kernels(&op, &[Shape::new(1, 1, height, 10)]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(1, 1, 7, 6);
        assert!(REFLECT.infer(&[x]).is_err());
        assert!(Adjoint::UpsampleNearest2.infer(&[x]).is_err());
        assert!(Adjoint::Stride { stride: [2, 2], size: [13, 10] }.infer(&[x]).is_err());
        assert_eq!(Adjoint::Stride { stride: [2, 2], size: [13, 11] }.infer(&[x]), Ok(Shape::new(1, 1, 13, 11)));
        assert!(CROP.infer(&[x, x]).is_err());
    }
}
