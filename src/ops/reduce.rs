//! Reductions: mean and maximum over channels, mean over planes.

use rayon::prelude::*;
use serde::Deserialize;

use super::gradient_name;
use super::pointwise::Pointwise;
use crate::cpu::moments::sum;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Pixels that one CPU task reduces.
const PIXELS: usize = 1024;
/// Pixels of a plane that one workgroup of the kernel sums.
const CHUNK: usize = 1 << 14;

/// The mean over channels. Input: `[n, c, h, w]`. Result: `[n, 1, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct ChannelMean;

/// The maximum over channels. Input: `[n, c, h, w]`. Result: `[n, 1, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct ChannelMax;

/// The mean of each plane. Input: `[n, c, h, w]`. Result: `[n, c, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct GlobalAvgPool;

/// The result of a reduction over the channels of the only input.
fn over_channels(inputs: &[Shape]) -> Result<Shape, String> {
    single(inputs).map(|x| Shape::new(x.n(), 1, x.h(), x.w()))
}

/// The only input, which must have something to reduce.
fn single(inputs: &[Shape]) -> Result<Shape, String> {
    match inputs {
        [x] if x.numel() > 0 => Ok(*x),
        [_] => Err("it takes a tensor that is not empty".into()),
        _ => Err("it takes one tensor".into()),
    }
}

/// A launch of a kernel that uses `shared/channels.wgsl`: an invocation for each pixel of each item.
pub(super) fn over_pixels(file: &'static str, x: Operand, output: Operand) -> Launch {
    let shape = x.shape();
    let launch = Launch::new(file, "main").read("x", x).write("out", output);
    let launch = launch.u32("channels", shape.c()).u32("plane", shape.plane());
    launch.over_grid([shape.plane().div_ceil(64), shape.n(), 1])
}

/// Loop rounds of a kernel that takes eight channels a round, and those left one by one.
fn by_eight(channels: usize) -> usize {
    channels / 8 + 7
}

/// The gradient with respect to the elements of a mean of `count`: each gets an equal share.
fn spread(g: &mut Graph, at: Backward, count: usize) -> Gradients {
    let name = gradient_name(g, at.inputs[0]);
    let share = Pointwise::build(|[_, dy]| dy.affine(1.0 / count as f32, 0.0));
    Ok(vec![Some(g.apply(&name, share, &[at.inputs[0], at.dy])?)])
}

/// Calls `reduce(out, channel)` for every block of pixels, on all threads: `out` is the block in the result, `channel(c)`
/// the same pixels in channel `c` of `x`.
fn reduce_channels<'a>(x: View<'a>, mut out: ViewMut, reduce: impl Fn(&mut [f32], &dyn Fn(usize) -> &'a [f32]) + Sync) {
    for n in 0..x.shape.n() {
        let blocks = out.item(n).par_chunks_mut(PIXELS).enumerate();
        blocks.for_each(|(block, out)| {
            let len = out.len();
            reduce(out, &|c| &x.plane(n, c)[block * PIXELS..][..len]);
        });
    }
}

impl Op for ChannelMean {
    fn name(&self) -> &'static str {
        "channel_mean"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        over_channels(inputs)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        spread(g, at, g.shape(at.inputs[0]).c())
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| Self::compute(inputs[0], out)),
            Target::Gpu(_) => {
                let launch = over_pixels("channel_mean", inputs[0], output);
                Lowered::gpu([launch]).rounds(by_eight(inputs[0].shape().c()))
            }
        }
    }
}

impl ChannelMean {
    fn compute(x: View, out: ViewMut) {
        let channels = x.shape.c();
        reduce_channels(x, out, |out, channel| {
            let mut sums = [0f64; PIXELS];
            for c in 0..channels {
                for (sum, &v) in sums.iter_mut().zip(channel(c)) {
                    *sum += f64::from(v);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum / channels as f64) as f32;
            }
        });
    }
}

impl Op for ChannelMax {
    fn name(&self) -> &'static str {
        "channel_max"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        over_channels(inputs)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let x = at.inputs[0];
        Ok(vec![Some(g.apply(&gradient_name(g, x), ChannelMaxGrad, &[x, at.output, at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| Self::compute(inputs[0], out)),
            Target::Gpu(_) => {
                let launch = over_pixels("channel_max", inputs[0], output);
                Lowered::gpu([launch]).rounds(by_eight(inputs[0].shape().c()))
            }
        }
    }
}

impl ChannelMax {
    fn compute(x: View, out: ViewMut) {
        let channels = x.shape.c();
        reduce_channels(x, out, |out, channel| {
            out.copy_from_slice(channel(0));
            for c in 1..channels {
                for (top, &v) in out.iter_mut().zip(channel(c)) {
                    // A NaN wins and stays.
                    *top = if v > *top || v.is_nan() { v } else { *top };
                }
            }
        });
    }
}

/// The gradient of [`ChannelMax`] with respect to its input: a pixel's gradient goes to the first channel that holds
/// the maximum.
///
/// Inputs: `x` `[n, c, h, w]`; the maxima and the gradient with respect to them, `[n, 1, h, w]`. Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ChannelMaxGrad;

impl Op for ChannelMaxGrad {
    fn name(&self) -> &'static str {
        "channel_max_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [x, y, dy] if over_channels(&[*x])? == *y && y == dy => Ok(*x),
            _ => Err("it takes x, its maxima and the gradient with respect to them".into()),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(Self::compute),
            Target::Gpu(_) => Self::launches(inputs, output),
        }
    }
}

impl ChannelMaxGrad {
    fn compute(inputs: &[View], mut out: ViewMut) {
        let [x, y, dy] = [inputs[0], inputs[1], inputs[2]];
        let (channels, plane) = (x.shape.c(), x.shape.plane());
        for n in 0..x.shape.n() {
            let mut holders = vec![0; plane];
            holders.par_chunks_mut(PIXELS).enumerate().for_each(|(block, holders)| {
                let tops = &y.item(n)[block * PIXELS..];
                for c in (0..channels).rev() {
                    let values = &x.plane(n, c)[block * PIXELS..];
                    for ((holder, top), v) in holders.iter_mut().zip(tops).zip(values) {
                        *holder = if v == top { c } else { *holder };
                    }
                }
            });
            let rows = out.item(n).par_chunks_mut(plane).enumerate();
            rows.for_each(|(c, row)| {
                for ((out, holder), dy) in row.iter_mut().zip(&holders).zip(dy.item(n)) {
                    *out = if *holder == c { *dy } else { 0.0 };
                }
            });
        }
    }

    fn launches(inputs: &[Operand], output: Operand) -> Lowered {
        let shape = output.shape();
        let launch = Launch::new("channel_max_grad", "main")
            .read("x", inputs[0])
            .read("y", inputs[1])
            .read("dy", inputs[2])
            .write("out", output)
            .u32("channels", shape.c())
            .u32("plane", shape.plane());
        let launch = launch.over_grid([shape.plane().div_ceil(64), shape.n(), 1]);
        Lowered::gpu([launch]).rounds(shape.c())
    }
}

impl Op for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        single(inputs).map(|x| Shape::new(x.n(), x.c(), 1, 1))
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        spread(g, at, g.shape(at.inputs[0]).plane())
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| Self::compute(inputs[0], out)),
            Target::Gpu(_) => Self::launches(inputs[0], output),
        }
    }
}

impl GlobalAvgPool {
    fn compute(x: View, mut out: ViewMut) {
        for n in 0..x.shape.n() {
            let channels = out.item(n).par_iter_mut().enumerate();
            channels.for_each(|(c, out)| {
                *out = (sum(x.plane(n, c)) / x.shape.plane() as f64) as f32;
            });
        }
    }

    fn launches(x: Operand, output: Operand) -> Lowered {
        let shape = x.shape();
        let chunk_count = shape.plane().div_ceil(CHUNK);
        let launch = |entry| {
            Launch::new("global_avg_pool", entry)
                .u32("channels", shape.c())
                .u32("plane", shape.plane())
                .u32("chunk_len", CHUNK)
                .u32("chunk_count", chunk_count)
        };
        let channels = [shape.c(), shape.n(), 1];
        if chunk_count == 1 {
            return Lowered::gpu([launch("whole").read("x", x).write("out", output).over_grid(channels)]);
        }
        let partial = Operand::scratch(0, shape.n() * shape.c() * chunk_count);
        let chunks = launch("chunks").read("x", x).write("partial", partial);
        let merge = launch("merge").write("partial", partial).write("out", output).over_grid(channels);
        let chunks = chunks.over_grid([chunk_count, shape.c(), shape.n()]);
        Lowered::gpu([chunks, merge]).scratch([partial.shape().numel()])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{
        adapters, check_gradient, check_gradient_views, check_kernels, check_twins_on, check_views, compute, lowered,
        random, relative_l2,
    };
    use super::*;
    use crate::graph::MAX_LOOP_ROUNDS;

    const SHAPES: [Shape; 6] = [
        Shape::new(2, 5, 33, 65),
        Shape::new(1, 3, 2, 2500),
        Shape::new(3, 70_000, 1, 1),
        Shape::new(70_000, 2, 1, 1),
        Shape::new(1, 1, 2049, 1025),
        Shape::new(1, 1, 5000, 2001),
    ];

    fn check(op: impl Op + Clone, x: Shape, value: impl Fn(&[f32], Shape) -> Vec<f64>) {
        let mut data = random(x.numel(), 3);
        data.iter_mut().for_each(|v| *v += 0.1);
        let cpu = check_twins_on(op, &[x], std::slice::from_ref(&data), 1e-5);
        let items = data.chunks(x.item()).flat_map(|item| value(item, x));
        let expected: Vec<f32> = items.map(|v| v as f32).collect();
        let error = relative_l2(&cpu, &expected);
        assert!(error <= 1e-6, "{x}: {error:e}");
    }

    fn check_all(x: Shape) {
        fn over_channels(item: &[f32], x: Shape, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
            let column = |i: usize| item[i..].iter().step_by(x.plane()).map(|&v| f64::from(v));
            (0..x.plane()).filter_map(|i| column(i).reduce(&f)).collect()
        }
        check(ChannelMax, x, |item, x| over_channels(item, x, f64::max));
        check(ChannelMean, x, |item, x| {
            let sums = over_channels(item, x, |a, b| a + b);
            sums.iter().map(|v| v / x.c() as f64).collect()
        });
        check(GlobalAvgPool, x, |item, x| {
            let sum = |plane: &[f32]| plane.iter().map(|&v| f64::from(v)).sum::<f64>();
            let planes = item.chunks(x.plane());
            planes.map(|plane| sum(plane) / x.plane() as f64).collect()
        });
    }

    #[test]
    fn sizes_of_all_kinds() {
        SHAPES.into_iter().for_each(check_all);
        for x in SHAPES {
            check_kernels(&ChannelMean, &[x]);
            check_kernels(&ChannelMax, &[x]);
            check_kernels(&GlobalAvgPool, &[x]);
        }
    }

    #[test]
    fn parts_of_concatenations() {
        let x = [Shape::new(3, 4, 9, 8)];
        check_views(ChannelMean, &x, 1e-5);
        check_views(ChannelMax, &x, 0.0);
        check_views(GlobalAvgPool, &x, 1e-5);
    }

    #[test]
    fn gradients_are_spread_evenly_or_go_to_the_maximum() {
        let x = [Shape::new(2, 5, 7, 9)];
        check_gradient(ChannelMean, &x, 0.0, 1e-3);
        check_gradient(GlobalAvgPool, &x, 0.0, 1e-3);
        check_gradient_views(ChannelMean, &x, 1e-6);
        check_gradient_views(GlobalAvgPool, &x, 1e-6);
        check_gradient_views(ChannelMax, &x, 0.0);
        for x in [Shape::new(2, 5, 33, 65), Shape::new(1, 1, 1, 1), Shape::new(2, 300, 1, 70)] {
            let data = random(x.numel(), 3);
            let mut tops = vec![f32::MIN; x.n() * x.plane()];
            let pixel = |i: usize| i / x.item() * x.plane() + i % x.plane();
            data.iter().enumerate().for_each(|(i, v)| tops[pixel(i)] = tops[pixel(i)].max(*v));
            let dy = random(tops.len(), 4);
            let expected = (0..x.numel()).map(|i| if data[i] == tops[pixel(i)] { dy[pixel(i)] } else { 0.0 });
            let expected: Vec<f32> = expected.collect();
            let one = Shape::new(x.n(), 1, x.h(), x.w());
            assert_eq!(check_twins_on(ChannelMaxGrad, &[x, one, one], &[data, tops, dy], 0.0), expected);
            check_kernels(&ChannelMaxGrad, &[x, one, one]);
        }
    }

    #[test]
    fn the_first_of_equal_maxima_gets_the_gradient() {
        let [x, one] = [Shape::new(1, 4, 1, 2), Shape::new(1, 1, 1, 2)];
        let data = vec![vec![1.0, 5.0, 2.0, 5.0, 2.0, 0.0, 1.0, 5.0], vec![2.0, 5.0], vec![3.0, 4.0]];
        let found = check_twins_on(ChannelMaxGrad, &[x, one, one], &data, 0.0);
        assert_eq!(found, [0.0, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_nan_is_the_maximum() {
        let x = [1.0, f32::NAN, 3.0];
        let mut out = [0.0];
        let view = View::contiguous(&x, Shape::new(1, 3, 1, 1));
        compute(&ChannelMax, &[view], ViewMut::contiguous(&mut out, Shape::new(1, 1, 1, 1)));
        assert!(out[0].is_nan());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(2, 3, 4, 5);
        assert_eq!(ChannelMean.infer(&[x]), Ok(Shape::new(2, 1, 4, 5)));
        assert_eq!(ChannelMax.infer(&[x]), Ok(Shape::new(2, 1, 4, 5)));
        assert_eq!(GlobalAvgPool.infer(&[x]), Ok(Shape::new(2, 3, 1, 1)));
        assert!(ChannelMax.infer(&[x, x]).is_err());
        assert!(ChannelMaxGrad.infer(&[x, Shape::new(2, 1, 4, 5), x]).is_err());
        assert!(ChannelMax.infer(&[Shape::new(1, 0, 2, 2)]).is_err());
    }

    #[test]
    fn loops_too_long_for_software_adapters_are_told() {
        let gpu = Target::Gpu(adapters()[0].clone());
        for (channels, fits) in [(1 << 18, true), (1 << 20, false)] {
            let x = Shape::new(1, channels, 1, 1);
            assert_eq!(lowered(&ChannelMean, &gpu, &[x]).rounds <= MAX_LOOP_ROUNDS, fits);
            assert_eq!(lowered(&ChannelMax, &gpu, &[x]).rounds <= MAX_LOOP_ROUNDS, fits);
        }
        let [x, one] = [Shape::new(1, 70_000, 1, 1), Shape::new(1, 1, 1, 1)];
        assert!(lowered(&ChannelMaxGrad, &gpu, &[x, one, one]).rounds > MAX_LOOP_ROUNDS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, c in 1..50usize, h in 1..40usize, w in 1..40usize) {
            check_all(Shape::new(n, c, h, w));
        }
    }
}
