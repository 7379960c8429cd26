//! Sums over any of batch, channels and pixels.

use rayon::prelude::*;

use super::gradient_name;
use super::pointwise::Pointwise;
use crate::cpu::moments::sum;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Elements that one workgroup of the kernel sums.
const CHUNK: usize = 1 << 14;
/// Elements that one CPU task sums.
const PART: usize = 1 << 15;

/// The sum over some axes. Input: `[n, c, h, w]`; the result has 1 in place of each axis that is summed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReduceSum {
    /// Whether to sum over batch, channels, height and width, the last two together.
    pub over: [bool; 4],
}

impl ReduceSum {
    /// The sum of all elements.
    pub const ALL: Self = Self { over: [true; 4] };
    /// The sum over the pixels of each plane.
    pub const PIXELS: Self = Self { over: [false, false, true, true] };
    /// The sum over channels.
    pub const CHANNELS: Self = Self { over: [false, true, false, false] };
    /// The sum over the batch.
    pub const BATCH: Self = Self { over: [true, false, false, false] };

    /// The sum that turns a tensor of shape `from` into one of shape `to`, which has 1 where the two differ; `None` if
    /// they are equal.
    pub(crate) fn to(from: Shape, to: Shape) -> Option<Self> {
        let over = std::array::from_fn(|axis| from.0[axis] != to.0[axis]);
        (from != to).then_some(Self { over })
    }

    /// Elements summed for each element of the result.
    fn count(&self, x: Shape) -> usize {
        (0..4).filter(|&axis| self.over[axis]).map(|axis| x.0[axis]).product()
    }
}

impl Op for ReduceSum {
    fn name(&self) -> &'static str {
        "reduce_sum"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [x] = inputs else {
            return Err("it takes one tensor".into());
        };
        let [_, _, h, w] = self.over;
        if x.numel() == 0 {
            return Err("it takes a tensor that is not empty".into());
        }
        // Where planes are a single row or column, summing over either axis or over both is the same.
        if h != w && x.h() != 1 && x.w() != 1 {
            return Err("height and width must be summed together".into());
        }
        Ok(Shape(std::array::from_fn(|axis| if self.over[axis] { 1 } else { x.0[axis] })))
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        let spread = Pointwise::build(|[_, dy]| dy);
        Ok(vec![Some(g.apply(&name, spread, &[at.inputs[0], at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], out)),
            Target::Gpu(_) => op.launches(inputs[0], output),
        }
    }
}

impl ReduceSum {
    fn compute(&self, x: View, out: ViewMut) {
        if out.shape.plane() == 1 {
            self.sum_planes(x, out);
        } else {
            self.sum_across(x, out);
        }
    }

    /// Sums in chunks, then the chunks of each element of the result.
    fn launches(&self, x: Operand, output: Operand) -> Lowered {
        let (shape, outputs) = (x.shape(), output.shape().numel());
        let count = self.count(shape);
        let chunks = count.div_ceil(CHUNK);
        let partial = Operand::scratch(0, outputs * chunks);
        let summed = std::array::from_fn(|axis| if self.over[axis] { shape.0[axis] } else { 1 });
        let launch = |entry| {
            Launch::new("reduce_sum", entry)
                .vec4("out_shape", output.shape().0)
                .vec4("summed", summed)
                .vec4("strides", [x.slot.batch_stride, shape.plane(), shape.w(), 1])
                .u32("count", count)
                .u32("chunk_count", chunks)
                .u32("chunk", CHUNK)
                .write("partial", partial)
        };
        let of_chunks = launch("chunks").read("x", x.buffer()).u32("x_offset", x.slot.offset).over(outputs * chunks);
        let of_elements = launch("main").write("out", output).over(outputs);
        let rounds = (CHUNK / 64).max(count.div_ceil(CHUNK * 64));
        Lowered::gpu([of_chunks, of_elements]).scratch([partial.shape().numel()]).rounds(rounds)
    }

    /// Sums whole planes, then over batch and channels.
    fn sum_planes(&self, x: View, mut out: ViewMut) {
        let (shape, plane) = (x.shape, x.shape.plane());
        let parts = plane.div_ceil(PART);
        let sums: Vec<f64> = (0..shape.n() * shape.c() * parts)
            .into_par_iter()
            .map(|i| {
                let (row, part) = (i / parts, i % parts);
                let pixels = &x.plane(row / shape.c(), row % shape.c())[part * PART..];
                sum(&pixels[..PART.min(plane - part * PART)])
            })
            .collect();
        let [over_batch, over_channels, ..] = self.over;
        let mut totals = vec![0f64; out.shape.n() * out.shape.c()];
        for (i, sum) in sums.chunks(parts).map(|parts| parts.iter().sum::<f64>()).enumerate() {
            let n = if over_batch { 0 } else { i / shape.c() };
            let c = if over_channels { 0 } else { i % shape.c() };
            totals[n * out.shape.c() + c] += sum;
        }
        for (n, totals) in totals.chunks(out.shape.c()).enumerate() {
            for (out, total) in out.item(n).iter_mut().zip(totals) {
                *out = *total as f32;
            }
        }
    }

    /// Sums over batch or channels, pixel by pixel.
    fn sum_across(&self, x: View, mut out: ViewMut) {
        let (shape, plane) = (x.shape, x.shape.plane());
        let [over_batch, over_channels, ..] = self.over;
        for n in 0..out.shape.n() {
            let planes = out.item(n).par_chunks_mut(plane).enumerate();
            planes.for_each(|(c, row)| {
                let items = if over_batch { 0..shape.n() } else { n..n + 1 };
                let channels = if over_channels { 0..shape.c() } else { c..c + 1 };
                for (i, out) in row.chunks_mut(1024).enumerate() {
                    let mut sums = [0f64; 1024];
                    for (n, c) in items.clone().flat_map(|n| channels.clone().map(move |c| (n, c))) {
                        let pixels = &x.plane(n, c)[i * 1024..];
                        sums.iter_mut().zip(&pixels[..out.len()]).for_each(|(sum, &v)| *sum += f64::from(v));
                    }
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_gradient, check_kernels, check_twins_on, check_views, random, relative_l2};
    use super::*;

    const FORMS: [[bool; 4]; 7] = [
        [true; 4],
        [false, false, true, true],
        [true, false, true, true],
        [false, true, true, true],
        [true, false, false, false],
        [false, true, false, false],
        [true, true, false, false],
    ];

    fn check(over: [bool; 4], x: Shape) {
        let op = ReduceSum { over };
        let mut data = random(x.numel(), 3);
        data.iter_mut().for_each(|v| *v += 0.2);
        let to = op.infer(&[x]).expect("it takes the shape");
        let mut expected = vec![0f64; to.numel()];
        for (i, &v) in data.iter().enumerate() {
            let at = [i / x.item(), i / x.plane() % x.c(), i / x.w() % x.h(), i % x.w()];
            let [n, c, h, w]: [usize; 4] = std::array::from_fn(|axis| if over[axis] { 0 } else { at[axis] });
            expected[((n * to.c() + c) * to.h() + h) * to.w() + w] += f64::from(v);
        }
        let found = check_twins_on(op, &[x], std::slice::from_ref(&data), 1e-5);
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        let error = relative_l2(&found, &expected);
        assert!(error <= 1e-6, "{over:?} of {x}: {error:e}");
    }

    #[test]
    fn every_form_and_size() {
        for over in FORMS {
            check(over, Shape::new(3, 5, 9, 33));
            check(over, Shape::new(2, 1, 150, 257));
            check_views(ReduceSum { over }, &[Shape::new(3, 4, 5, 7)], 1e-5);
            check_gradient(ReduceSum { over }, &[Shape::new(2, 3, 5, 7)], 0.0, 1e-4);
        }
        check([true; 4], Shape::new(1, 1, 1, 3_000_001));
        check([false, true, true, true], Shape::new(70_000, 2, 1, 3));
        check_kernels(&ReduceSum::ALL, &[Shape::new(2, 3, 4, 5)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(2, 3, 4, 5);
        assert!(ReduceSum { over: [false, false, true, false] }.infer(&[x]).is_err());
        assert!(ReduceSum { over: [true, false, false, true] }.infer(&[x]).is_err());
        assert!(ReduceSum::ALL.infer(&[x, x]).is_err());
        assert!(ReduceSum::ALL.infer(&[Shape::new(0, 3, 4, 5)]).is_err());
        assert_eq!(ReduceSum::to(x, x), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(form in 0..7usize, n in 1..4usize, c in 1..9usize, h in 1..30usize, w in 1..60usize) {
            check(FORMS[form], Shape::new(n, c, h, w));
        }
    }
}
