//! Group normalisation (Wu and He 2018); instance normalisation where every channel is a group.

mod grad;

use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::pointwise::Pointwise;
use crate::cpu::activation::Activation;
use crate::cpu::moments::Moments;
use crate::cpu::view::{View, ViewMut};
use crate::cpu::wide::wide_fn;
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Elements that one CPU task normalises.
pub(super) const BLOCK: usize = 1 << 14;
/// Elements of a group that one workgroup reads alone; larger groups are read in chunks.
const WHOLE_GROUP: usize = 4096;

/// Normalises each group of neighbouring channels to mean 0 and variance 1, then scales and shifts each channel and
/// applies an activation.
///
/// Inputs: `x` `[n, c, h, w]`; if affine also `weight` and `bias`, each `[1, c, 1, 1]`. Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNorm {
    /// Groups, which must divide the channels; as many as channels make it an instance norm.
    #[serde(alias = "num_groups")]
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether there are a weight and a bias.
    pub affine: bool,
    /// Applied last.
    #[serde(default)]
    pub activation: Activation,
}

impl GroupNorm {
    /// The moments of each group of batch item `n`.
    fn moments(&self, x: &View, n: usize) -> Vec<Moments> {
        let groups = x.item(n).par_chunks(x.shape.item() / self.groups);
        groups.map(Moments::of).collect()
    }

    /// The inverse of the standard deviation.
    fn rstd(&self, moments: Moments) -> f64 {
        1.0 / (moments.variance() + f64::from(self.eps)).sqrt()
    }

    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let x = inputs[0];
        let (channels, plane) = (x.shape.c(), x.shape.plane());
        let per_group = channels / self.groups;
        for n in 0..x.shape.n() {
            let moments = self.moments(&x, n);
            let rows = out.item(n).par_chunks_mut(plane).enumerate();
            rows.for_each(|(c, row)| {
                let Moments { mean, .. } = moments[c / per_group];
                let (weight, bias) = match inputs {
                    [_, weight, bias] => (weight.data[c].into(), bias.data[c].into()),
                    _ => (1.0, 0.0),
                };
                let scale = self.rstd(moments[c / per_group]) * weight;
                // The part of the mean that an f32 does not hold goes into the shift.
                let centre = mean as f32;
                let shift = bias - (mean - f64::from(centre)) * scale;
                let blocks = row.par_chunks_mut(BLOCK).zip(x.plane(n, c).par_chunks(BLOCK));
                blocks.for_each(|(out, x)| {
                    let line = [centre, scale as f32, shift as f32];
                    normalise(out, x, line, self.activation);
                });
            });
        }
    }

    fn launches(&self, inputs: &[Operand], output: Operand) -> Lowered {
        let (x, shape) = (inputs[0], output.shape());
        let mut scratch = Vec::new();
        let (statistics, mut launches) = self.statistics(x, &mut scratch);
        let blocks = shape.plane().div_ceil(1024);
        let main = Launch::new("group_norm", "main")
            .text("activation", format!("    return {};", self.activation.wgsl("v")))
            .read("x", x)
            .read("statistics", statistics)
            .write("out", output)
            .u32("plane", shape.plane());
        let main = self.with_weights(self.with_values(main, shape.c()), inputs);
        launches.push(main.over_grid([blocks, shape.c(), shape.n()]));
        Lowered::gpu(launches).scratch(scratch)
    }

    /// The launches that compute mean and inverse standard deviation of each group, and the operand `[n, groups, 2]`
    /// that holds them afterwards. The scratch buffers that this takes are added to `scratch`.
    fn statistics(&self, x: Operand, scratch: &mut Vec<usize>) -> (Operand, Vec<Launch>) {
        let shape = x.shape();
        let group_len = shape.item() / self.groups;
        let chunk_len = chunk_len(shape.numel(), group_len);
        let chunk_count = group_len.div_ceil(chunk_len);
        let launch = |entry| {
            Launch::new("group_norm_moments", entry)
                .u32("groups", self.groups)
                .u32("group_len", group_len)
                .u32("chunk_len", chunk_len)
                .u32("chunk_count", chunk_count)
                .f32("eps", self.eps)
        };
        let statistics = add_scratch(scratch, 2 * shape.n() * self.groups);
        let groups = [self.groups, shape.n(), 1];
        if chunk_count <= 1 {
            let whole = launch("whole").read("x", x).write("statistics", statistics).over_grid(groups);
            return (statistics, vec![whole]);
        }
        let moments = add_scratch(scratch, 2 * shape.n() * self.groups * chunk_count);
        let of_chunks = launch("chunks").read("x", x).write("chunk_moments", moments);
        let merge = launch("merge").write("chunk_moments", moments).write("statistics", statistics);
        let chunks = [chunk_count, self.groups, shape.n()];
        (statistics, vec![of_chunks.over_grid(chunks), merge.over_grid(groups)])
    }

    /// The launch with the values by which kernels find a channel's group, weight and bias in a tensor of `channels`.
    fn with_values(&self, launch: Launch, channels: usize) -> Launch {
        launch
            .u32("affine", usize::from(self.affine))
            .u32("groups", self.groups)
            .u32("group_channels", channels / self.groups)
    }

    /// The launch with the weight and the bias of the norm's `inputs`, if it has them.
    fn with_weights(&self, launch: Launch, inputs: &[Operand]) -> Launch {
        let [weight, bias] = [1, 2].map(|i| self.affine.then(|| inputs[i]));
        launch.read_if_any("weight", weight).read_if_any("bias", bias)
    }
}

/// Elements of a group that a workgroup reads, of groups of `group_len` in a tensor of `numel`: some 500 chunks, which
/// fill a large GPU, but none so short that joining them costs more than reading them.
fn chunk_len(numel: usize, group_len: usize) -> usize {
    if group_len <= WHOLE_GROUP { WHOLE_GROUP } else { (numel / 512).next_multiple_of(1024).clamp(1024, 16_384) }
}

/// A scratch buffer of `len` elements, the next of `scratch`.
fn add_scratch(scratch: &mut Vec<usize>, len: usize) -> Operand {
    scratch.push(len);
    Operand::scratch(scratch.len() - 1, len)
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let [x, rest @ ..] = inputs else {
            return Err("it takes at least x".into());
        };
        if self.groups == 0 || x.c() % self.groups != 0 {
            return Err(format!("{} groups must divide the channels", self.groups));
        }
        let channels = Shape::new(1, x.c(), 1, 1);
        let expected = if self.affine { 2 } else { 0 };
        if rest.len() != expected || rest.iter().any(|s| *s != channels) {
            return Err(format!("it takes x and {expected} tensors of shape {channels}"));
        }
        Ok(*x)
    }

    fn absorb_consumer(&self, next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let activation = next.as_any().downcast_ref::<Pointwise>()?.as_activation()?;
        (self.activation == Activation::None).then(|| Arc::new(Self { activation, ..*self }) as _)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        grad::grad(*self, g, at)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs, out)),
            Target::Gpu(_) => op.launches(inputs, output),
        }
    }
}

wide_fn! {
    /// `out[i] = activation((x[i] - centre) * scale + shift)`, where `line` is `[centre, scale, shift]`.
    ///
    /// The centre is subtracted first: in a group of equal values the scale is over 300 and would magnify what
    /// `x * scale` loses by rounding.
    pub(super) fn normalise<'a>(
        out: &'a mut [f32],
        x: &'a [f32],
        line: [f32; 3],
        activation: Activation,
    ) -> () {
        let [centre, scale, shift] = line;
        activation.map(x, out, |x| (x - centre) * scale + shift);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_kernels, check_twins_on, check_views, random, relative_l2};
    use super::*;

    fn norm(groups: usize, affine: bool) -> GroupNorm {
        GroupNorm { groups, eps: 1e-5, affine, activation: Activation::None }
    }

    fn shapes(op: &GroupNorm, x: Shape) -> Vec<Shape> {
        let channels = Shape::new(1, x.c(), 1, 1);
        let mut shapes = vec![x];
        shapes.resize(if op.affine { 3 } else { 1 }, channels);
        shapes
    }

    /// The definition, in `f64`.
    fn oracle(op: &GroupNorm, shape: Shape, data: &[Vec<f32>]) -> Vec<f32> {
        let len = shape.item() / op.groups;
        let mut out = Vec::with_capacity(shape.numel());
        for (run, group) in data[0].chunks(len).enumerate() {
            let wide = || group.iter().map(|&v| f64::from(v));
            let mean = wide().sum::<f64>() / len as f64;
            let variance = wide().map(|v| (v - mean) * (v - mean)).sum::<f64>() / len as f64;
            for (i, v) in wide().enumerate() {
                let c = ((run % op.groups) * len + i) / shape.plane();
                let y = (v - mean) / (variance + f64::from(op.eps)).sqrt();
                let y = match data {
                    [_, w, b] => y * f64::from(w[c]) + f64::from(b[c]),
                    _ => y,
                };
                out.push(match op.activation {
                    Activation::Silu => y / (1.0 + (-y).exp()),
                    _ => y,
                } as f32);
            }
        }
        out
    }

    /// Compares both devices with the oracle on values around `centre`.
    fn check(op: GroupNorm, x: Shape, centre: f32) {
        let shapes = shapes(&op, x);
        let mut data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), i as u64)).collect();
        data[0].iter_mut().for_each(|v| *v += centre);
        let cpu = check_twins_on(op, &shapes, &data, 1e-5);
        let error = relative_l2(&cpu, &oracle(&op, x, &data));
        assert!(error <= 1e-6, "{op:?} on {x}: {error:e}");
    }

    #[test]
    fn groups_of_every_size() {
        for (groups, x) in [
            (1, Shape::new(2, 6, 33, 65)),
            (3, Shape::new(2, 6, 5, 7)),
            (6, Shape::new(3, 6, 130, 31)),
            (32, Shape::new(1, 128, 16, 16)),
            (1, Shape::new(1, 2, 3, 2501)),
            (70, Shape::new(1, 70, 1, 1)),
        ] {
            for affine in [false, true] {
                let op = norm(groups, affine);
                check(op, x, 0.5);
                for &activation in Activation::ALL {
                    check_kernels(&GroupNorm { activation, ..op }, &shapes(&op, x));
                }
            }
        }
    }

    #[test]
    fn a_group_of_millions_far_from_zero() {
        check(norm(1, true), Shape::new(1, 192, 256, 256), 2.0);
    }

    #[test]
    fn more_groups_than_a_dispatch_has_workgroups() {
        check(norm(70_000, true), Shape::new(1, 70_000, 1, 2), 0.0);
    }

    #[test]
    fn parts_of_concatenations() {
        let op = norm(4, true);
        check_views(op, &shapes(&op, Shape::new(3, 8, 9, 5)), 1e-6);
    }

    #[test]
    fn an_activation_joins() {
        let silu = Pointwise::act(Activation::Silu);
        let joined = norm(2, true).absorb_consumer(&silu, 0, &[Shape::new(1, 4, 3, 3)]);
        let joined: GroupNorm = *joined.expect("it joins").as_any().downcast_ref().expect("norm");
        assert_eq!(joined.activation, Activation::Silu);
        check(joined, Shape::new(2, 4, 17, 3), 0.2);
        assert!(joined.absorb_consumer(&silu, 0, &[]).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(1, 6, 2, 2);
        assert!(norm(4, false).infer(&[x]).is_err());
        assert!(norm(0, false).infer(&[x]).is_err());
        assert!(norm(2, true).infer(&[x]).is_err());
        assert!(norm(2, true).infer(&[x, x, x]).is_err());
        assert!(norm(2, false).infer(&[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, groups in 1..6usize, per in 1..4usize, h in 1..40usize, w in 1..40usize, affine: bool) {
            // In groups of one or two elements deviations may be near eps, and the result is all rounding.
            prop_assume!(per * h * w > 2);
            check(norm(groups, affine), Shape::new(n, groups * per, h, w), 0.1);
        }
    }
}
