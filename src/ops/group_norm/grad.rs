//! The gradient of group normalisation: sums over each channel, then the gradient with respect to `x`.

use rayon::prelude::*;

use super::{BLOCK, GroupNorm, add_scratch};
use crate::cpu::activation::Activation;
use crate::cpu::view::{View, ViewMut};
use crate::cpu::wide::wide_fn;
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::ops::gradient_name;
use crate::ops::reduce_sum::ReduceSum;
use crate::tensor::Shape;

/// Pixels of a channel that one workgroup of the kernel sums.
const CHUNK: usize = 4096;
/// Elements that the CPU takes at a time, few enough for the first-level cache.
const TILE: usize = 2048;
/// Partial sums kept side by side, so that the loop over them vectorises.
const LANES: usize = 32;

/// The gradient rule. The gradients with respect to weight and bias are the channels' sums, added over the batch.
pub(super) fn grad(norm: GroupNorm, g: &mut Graph, at: Backward) -> Gradients {
    let x = at.inputs[0];
    let channels = g.shape(x).c();
    let mut inputs = at.inputs.to_vec();
    inputs.push(at.dy);
    let sums = g.apply(&gradient_name(g, x), GroupNormSums { norm }, &inputs)?;
    inputs.push(sums);
    let wrt_x = if at.wanted[0] { Some(g.apply(&gradient_name(g, x), GroupNormGrad { norm }, &inputs)?) } else { None };
    let mut grads = vec![wrt_x];
    // The first channels of the sums are the bias's gradient, the next are the weight's.
    for (&input, start) in at.inputs[1..].iter().zip([channels, 0]) {
        let name = gradient_name(g, input);
        let sums = g.slice(&name, sums, start, channels)?;
        grads.push(Some(g.apply(&name, ReduceSum::BATCH, &[sums])?));
    }
    Ok(grads)
}

/// Sums that the gradients of a [`GroupNorm`] are made of: with `xhat` the normalised `x` and `d` the gradient before
/// the activation, `dy * activation'(weight * xhat + bias)`, for each channel of each item.
///
/// Inputs: those of the norm, then `dy`, of `x`'s shape. Result: `[n, 4c, 1, 1]`, channel by channel the sums of `d`,
/// then those of `d * xhat`, then the means and the inverse standard deviations of the channels' groups.
#[derive(Clone, Copy, PartialEq, Debug)]
struct GroupNormSums {
    norm: GroupNorm,
}

/// The gradient of a [`GroupNorm`] with respect to `x`: with `d` as in [`GroupNormSums`] and means over the group,
/// `(weight * d - mean(weight * d) - xhat * mean(weight * d * xhat)) / sqrt(variance + eps)`.
///
/// Inputs: those of the norm, then `dy`, of `x`'s shape, then the result of [`GroupNormSums`]. Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Debug)]
struct GroupNormGrad {
    norm: GroupNorm,
}

/// The numbers that the elements of one channel are normalised with.
#[derive(Clone, Copy)]
struct Line {
    mean: f32,
    rstd: f32,
    weight: f32,
    bias: f32,
    activation: Activation,
}

impl Line {
    fn new(norm: &GroupNorm, inputs: &[View], c: usize, mean: f32, rstd: f32) -> Self {
        let [weight, bias] = if norm.affine { [inputs[1].data[c], inputs[2].data[c]] } else { [1.0, 0.0] };
        Self { mean, rstd, weight, bias, activation: norm.activation }
    }

    /// Writes the gradient before the activation, `dy * activation'(weight * xhat + bias)`.
    #[inline(always)]
    fn before_activation(self, x: &[f32], dy: &[f32], out: &mut [f32]) {
        let scale = self.rstd * self.weight;
        self.activation.map_derivative(x, dy, out, |x| (x - self.mean) * scale + self.bias);
    }
}

wide_fn! {
    /// The sums of `d` and of `d * xhat`.
    fn sums<'a>(x: &'a [f32], dy: &'a [f32], line: Line) -> [f64; 2] {
        let mut d = [0f32; TILE];
        let mut total = [0f64; 2];
        for (x, dy) in x.chunks(TILE).zip(dy.chunks(TILE)) {
            let d = &mut d[..x.len()];
            line.before_activation(x, dy, d);
            let mut plain = [0f32; LANES];
            let mut scaled = [0f32; LANES];
            let (d_whole, d_rest) = d.as_chunks::<LANES>();
            let (x_whole, x_rest) = x.as_chunks::<LANES>();
            for (d, x) in d_whole.iter().zip(x_whole) {
                for i in 0..LANES {
                    plain[i] += d[i];
                    scaled[i] += d[i] * (x[i] - line.mean);
                }
            }
            for (i, (d, x)) in d_rest.iter().zip(x_rest).enumerate() {
                plain[i] += d;
                scaled[i] += d * (x - line.mean);
            }
            total[0] += plain.iter().map(|&v| f64::from(v)).sum::<f64>();
            total[1] += scaled.iter().map(|&v| f64::from(v)).sum::<f64>();
        }
        [total[0], total[1] * f64::from(line.rstd)]
    }
}

wide_fn! {
    /// The gradient with respect to some elements of a channel, from the group's means of `weight * d` and of
    /// `weight * d * xhat`.
    fn wrt_x<'a>(out: &'a mut [f32], x: &'a [f32], dy: &'a [f32], line: Line, means: [f32; 2]) -> () {
        let slope = means[1] * line.rstd;
        for ((out, x), dy) in out.chunks_mut(TILE).zip(x.chunks(TILE)).zip(dy.chunks(TILE)) {
            line.before_activation(x, dy, out);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = line.rstd * (line.weight * *out - means[0] - (x - line.mean) * slope);
            }
        }
    }
}

/// Checks the norm's inputs and `dy`.
fn check(norm: &GroupNorm, inputs: &[Shape]) -> Result<Shape, String> {
    let [inputs @ .., dy] = inputs else {
        return Err("it takes the norm's inputs and dy".into());
    };
    let x = norm.infer(inputs)?;
    if *dy != x || x.numel() == 0 {
        return Err(format!("dy must have x's shape {x} and not be empty"));
    }
    Ok(x)
}

impl Op for GroupNormSums {
    fn name(&self) -> &'static str {
        "group_norm_sums"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let x = check(&self.norm, inputs)?;
        Ok(Shape::new(x.n(), 4 * x.c(), 1, 1))
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs, out)),
            Target::Gpu(_) => op.launches(inputs, output),
        }
    }
}

impl GroupNormSums {
    /// Sums of each channel of item `n`.
    fn channels(&self, inputs: &[View], n: usize, line: impl Fn(usize) -> Line + Sync) -> Vec<[f64; 2]> {
        let (x, dy) = (inputs[0], inputs[inputs.len() - 1]);
        let plane = x.shape.plane();
        let parts = plane.div_ceil(BLOCK);
        let parts_of = |i: usize| {
            let (c, first) = (i / parts, i % parts * BLOCK);
            let range = first..plane.min(first + BLOCK);
            sums(&x.plane(n, c)[range.clone()], &dy.plane(n, c)[range], line(c))
        };
        let sums: Vec<[f64; 2]> = (0..x.shape.c() * parts).into_par_iter().map(parts_of).collect();
        let join = |a: [f64; 2], b: &[f64; 2]| [a[0] + b[0], a[1] + b[1]];
        sums.chunks(parts).map(|parts| parts.iter().fold([0.0; 2], join)).collect()
    }

    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let x = inputs[0];
        let per_group = x.shape.c() / self.norm.groups;
        for n in 0..x.shape.n() {
            let groups = self.norm.moments(&x, n);
            let statistics = |c: usize| {
                let moments = groups[c / per_group];
                (moments.mean as f32, self.norm.rstd(moments) as f32)
            };
            let sums = self.channels(inputs, n, |c| {
                let (mean, rstd) = statistics(c);
                Line::new(&self.norm, inputs, c, mean, rstd)
            });
            let item = out.item(n);
            for (c, [plain, scaled]) in sums.iter().enumerate() {
                let (mean, rstd) = statistics(c);
                for (k, value) in [*plain as f32, *scaled as f32, mean, rstd].into_iter().enumerate() {
                    item[k * x.shape.c() + c] = value;
                }
            }
        }
    }

    fn launches(&self, inputs: &[Operand], output: Operand) -> Lowered {
        let (x, dy) = (inputs[0], inputs[inputs.len() - 1]);
        let shape = x.shape();
        let chunk_count = shape.plane().div_ceil(CHUNK);
        let mut scratch = Vec::new();
        let (statistics, mut launches) = self.norm.statistics(x, &mut scratch);
        let launch = |entry| {
            launch("group_norm_sums", entry, &self.norm, shape)
                .u32("chunk_len", CHUNK)
                .u32("chunk_count", chunk_count)
                .read("statistics", statistics)
        };
        let sums = |entry| self.norm.with_weights(launch(entry).read("x", x).read("dy", dy), inputs);
        let channels = [shape.c(), shape.n(), 1];
        if chunk_count == 1 {
            launches.push(sums("whole").write("out", output).over_grid(channels));
        } else {
            let partial = add_scratch(&mut scratch, 2 * shape.n() * shape.c() * chunk_count);
            launches.push(sums("chunks").write("partial", partial).over_grid([chunk_count, shape.c(), shape.n()]));
            launches.push(launch("merge").write("partial", partial).write("out", output).over_grid(channels));
        }
        Lowered::gpu(launches).scratch(scratch)
    }
}

impl Op for GroupNormGrad {
    fn name(&self) -> &'static str {
        "group_norm_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [inputs @ .., sums] = inputs else {
            return Err("it takes the norm's inputs, dy and the sums".into());
        };
        let x = check(&self.norm, inputs)?;
        let expected = Shape::new(x.n(), 4 * x.c(), 1, 1);
        if *sums == expected { Ok(x) } else { Err(format!("the sums must have shape {expected}")) }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs, out)),
            Target::Gpu(_) => op.launches(inputs, output),
        }
    }
}

impl GroupNormGrad {
    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let (x, dy, sums) = (inputs[0], inputs[inputs.len() - 2], inputs[inputs.len() - 1]);
        let (channels, plane) = (x.shape.c(), x.shape.plane());
        let per_group = channels / self.norm.groups;
        for n in 0..x.shape.n() {
            let sums = sums.item(n);
            let line = |c: usize| Line::new(&self.norm, inputs, c, sums[2 * channels + c], sums[3 * channels + c]);
            let mean = |group: usize, of: usize| {
                let channels_of = group * per_group..(group + 1) * per_group;
                let weighted = channels_of.map(|c| f64::from(line(c).weight) * f64::from(sums[of * channels + c]));
                (weighted.sum::<f64>() / (per_group * plane) as f64) as f32
            };
            let means: Vec<[f32; 2]> = (0..self.norm.groups).map(|i| [mean(i, 0), mean(i, 1)]).collect();
            let rows = out.item(n).par_chunks_mut(plane).enumerate();
            rows.for_each(|(c, row)| {
                let blocks = x.plane(n, c).par_chunks(BLOCK).zip(dy.plane(n, c).par_chunks(BLOCK));
                let blocks = row.par_chunks_mut(BLOCK).zip(blocks);
                blocks.for_each(|(out, (x, dy))| wrt_x(out, x, dy, line(c), means[c / per_group]));
            });
        }
    }

    fn launches(&self, inputs: &[Operand], output: Operand) -> Lowered {
        let [dy, sums] = [inputs[inputs.len() - 2], inputs[inputs.len() - 1]];
        let shape = inputs[0].shape();
        let mut scratch = Vec::new();
        let group_means = add_scratch(&mut scratch, 2 * shape.n() * self.norm.groups);
        let launch = |entry| {
            let launch = launch("group_norm_grad", entry, &self.norm, shape);
            self.norm.with_weights(launch.read("sums", sums).write("group_means", group_means), inputs)
        };
        let means = launch("means").over_grid([self.norm.groups, shape.n(), 1]);
        let main = launch("main").read("x", inputs[0]).read("dy", dy).write("out", output);
        let blocks = shape.plane().div_ceil(1024);
        Lowered::gpu([means, main.over_grid([blocks, shape.c(), shape.n()])]).scratch(scratch)
    }
}

/// A launch of a kernel of the gradient for `x` of this shape.
fn launch(file: &'static str, entry: &'static str, norm: &GroupNorm, x: Shape) -> Launch {
    let derivative = format!("    return {};", norm.activation.wgsl_derivative("x"));
    let launch = Launch::new(file, entry).text("derivative", derivative).u32("channels", x.c()).u32("plane", x.plane());
    norm.with_values(launch, x.c())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::testing::{
        check_gradient, check_gradient_views, check_kernels, check_twins_on, random, relative_l2,
    };
    use super::*;

    fn norm(groups: usize, affine: bool, activation: Activation) -> GroupNorm {
        GroupNorm { groups, eps: 1e-5, affine, activation }
    }

    fn shapes(norm: &GroupNorm, x: Shape) -> Vec<Shape> {
        let mut shapes = vec![x];
        shapes.resize(if norm.affine { 3 } else { 1 }, Shape::new(1, x.c(), 1, 1));
        shapes
    }

    /// Compares both operations on both devices with the definition in `f64`, on values around `centre`.
    fn check_all(norm: GroupNorm, x: Shape, centre: f32) {
        let mut shapes = shapes(&norm, x);
        shapes.push(x);
        let mut data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), 40 + i as u64)).collect();
        data[0].iter_mut().for_each(|v| *v += centre);
        let wide = |i: usize, k: usize| f64::from(data[i][k]);
        let len = x.item() / norm.groups;
        let mut expected_sums = vec![0f64; 4 * x.n() * x.c()];
        let mut expected = Vec::with_capacity(x.numel());
        for run in 0..x.n() * norm.groups {
            let (item, all) = (run / norm.groups, run * len..(run + 1) * len);
            let mean = all.clone().map(|i| wide(0, i)).sum::<f64>() / len as f64;
            let variance = all.clone().map(|i| (wide(0, i) - mean).powi(2)).sum::<f64>() / len as f64;
            let rstd = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            let channel = |i: usize| i / x.plane() % x.c();
            let weight = |i: usize| if norm.affine { wide(1, channel(i)) } else { 1.0 };
            let xhat = |i: usize| (wide(0, i) - mean) * rstd;
            let d = |i: usize| {
                let v = xhat(i) * weight(i) + if norm.affine { wide(2, channel(i)) } else { 0.0 };
                let sigmoid = 1.0 / (1.0 + (-v).exp());
                let slope =
                    if norm.activation == Activation::None { 1.0 } else { sigmoid * (1.0 + v * (1.0 - sigmoid)) };
                wide(data.len() - 1, i) * slope
            };
            let mut means = [0f64; 2];
            for i in all.clone() {
                let at = item * 4 * x.c() + channel(i);
                for (k, value) in [d(i), d(i) * xhat(i)].into_iter().enumerate() {
                    expected_sums[at + k * x.c()] += value;
                    means[k] += weight(i) * value / len as f64;
                }
                expected_sums[at + 2 * x.c()] = mean;
                expected_sums[at + 3 * x.c()] = rstd;
            }
            expected.extend(all.map(|i| (rstd * (weight(i) * d(i) - means[0] - xhat(i) * means[1])) as f32));
        }
        let sums = check_twins_on(GroupNormSums { norm }, &shapes, &data, 1e-5);
        let expected_sums: Vec<f32> = expected_sums.into_iter().map(|v| v as f32).collect();
        let error = relative_l2(&sums, &expected_sums);
        assert!(error <= 1e-6, "sums of {norm:?} on {x}: {error:e}");
        shapes.push(Shape::new(x.n(), 4 * x.c(), 1, 1));
        data.push(sums);
        let found = check_twins_on(GroupNormGrad { norm }, &shapes, &data, 1e-5);
        let error = relative_l2(&found, &expected);
        assert!(error <= 2e-6, "{norm:?} on {x}: {error:e}");
    }

    #[test]
    fn groups_of_every_size() {
        for (groups, x) in [
            (1, Shape::new(2, 6, 33, 65)),
            (3, Shape::new(2, 6, 5, 7)),
            (6, Shape::new(2, 6, 130, 63)),
            (1, Shape::new(1, 130, 3, 5)),
            (1, Shape::new(1, 2, 3, 2501)),
        ] {
            for (affine, activation) in [(false, Activation::Silu), (true, Activation::None), (true, Activation::Silu)]
            {
                check_all(norm(groups, affine, activation), x, 0.5);
            }
        }
    }

    #[test]
    fn kernels_are_valid() {
        // Groups that one workgroup reads alone, and larger ones.
        for x in [Shape::new(2, 6, 5, 7), Shape::new(2, 6, 65, 64)] {
            for (affine, activation) in
                [false, true].into_iter().flat_map(|a| Activation::ALL.iter().map(move |act| (a, *act)))
            {
                let norm = norm(2, affine, activation);
                let mut all = shapes(&norm, x);
                all.push(x);
                check_kernels(&GroupNormSums { norm }, &all);
                all.push(Shape::new(x.n(), 4 * x.c(), 1, 1));
                check_kernels(&GroupNormGrad { norm }, &all);
            }
        }
    }

    #[test]
    fn a_group_of_millions_far_from_zero() {
        check_all(norm(1, true, Activation::Silu), Shape::new(1, 48, 256, 256), 2.0);
    }

    #[test]
    fn more_groups_than_a_dispatch_has_workgroups() {
        check_all(norm(70_000, true, Activation::None), Shape::new(1, 70_000, 1, 3), 0.0);
    }

    #[test]
    fn gradients_of_every_form() {
        for (affine, activation) in [
            (false, Activation::None),
            (true, Activation::Silu),
            (true, Activation::Tanh),
            (false, Activation::Sigmoid),
        ] {
            let norm = norm(2, affine, activation);
            check_gradient(norm, &shapes(&norm, Shape::new(2, 6, 5, 9)), 0.1, 2e-3);
            check_gradient_views(norm, &shapes(&norm, Shape::new(3, 4, 5, 7)), 1e-5);
        }
    }

    #[test]
    fn corners_differentiate_on_both_devices() {
        for activation in [Activation::Relu, Activation::LeakyRelu(0.2)] {
            let norm = norm(2, true, activation);
            check_gradient_views(norm, &shapes(&norm, Shape::new(2, 6, 5, 9)), 1e-5);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let norm = norm(2, true, Activation::None);
        let x = Shape::new(2, 4, 3, 3);
        let mut all = shapes(&norm, x);
        all.push(x);
        let sums = Shape::new(2, 16, 1, 1);
        assert_eq!(GroupNormSums { norm }.infer(&all), Ok(sums));
        assert!(GroupNormSums { norm }.infer(&all[..3]).is_err());
        all.push(sums);
        assert_eq!(GroupNormGrad { norm }.infer(&all), Ok(x));
        all[4] = Shape::new(2, 4, 1, 1);
        assert!(GroupNormGrad { norm }.infer(&all).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, groups in 1..6usize, per in 1..4usize, h in 1..40usize, w in 1..40usize, affine: bool) {
            // In groups of so few elements deviations may be near eps, and the result is all rounding.
            prop_assume!(per * h * w > 8);
            check_all(norm(groups, affine, Activation::Silu), Shape::new(n, groups * per, h, w), 0.1);
        }
    }
}
