//! The gradient of self-attention. It computes the matrix of attention weights again: the forward pass does not keep
//! it.

use rayon::prelude::*;

use super::{Matrix, QUERIES, Store, attention_weights, product};
use crate::cpu::softmax::softmax_row_backward;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Op, Target};
use crate::tensor::Shape;

/// Channels that one CPU task computes.
const CHANNELS: usize = 32;
/// Attention weights that the CPU holds at a time: blocks of queries are computed together as long as they have no
/// more, at least one block.
const WEIGHTS: usize = 1 << 22;
/// Rows and columns of a workgroup of the kernels `scores` and `main`.
const TILE: usize = 32;

/// The gradient of [`super::SelfAttention`] with respect to `q`, `k` and `v`. With `P` the softmax and `dO` the
/// gradient with respect to the result:
/// `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(P * dP))`, `dQ = dS K / sqrt(c)`, `dK = dS^T Q / sqrt(c)`.
///
/// Inputs: `[n, 3c, h, w]`, the channels of `q`, `k` and `v` one after the other; `dO` `[n, c, h, w]`.
/// Result: the first's shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SelfAttentionGrad;

impl Op for SelfAttentionGrad {
    fn name(&self) -> &'static str {
        "self_attention_grad"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [x, dy] if x.numel() > 0 && *x == Shape::new(dy.n(), 3 * dy.c(), dy.h(), dy.w()) => Ok(*x),
            _ => Err("it takes q, k and v in one tensor and dy".into()),
        }
    }

    /// Five matrix products.
    fn macs(&self, inputs: &[Shape], _output: Shape) -> u64 {
        5 * (inputs[1].numel() * inputs[1].plane()) as u64
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| compute(inputs[0], inputs[1], out)),
            Target::Gpu(_) => launches(inputs[0], inputs[1], output),
        }
    }
}

fn compute(x: View, dy: View, mut out: ViewMut) {
    let (channels, tokens) = (dy.shape.c(), dy.shape.plane());
    let sweep = (WEIGHTS / tokens).next_multiple_of(QUERIES).min(tokens);
    let mut weights = vec![0f32; sweep * tokens];
    let mut slopes = vec![0f32; sweep * tokens];
    for n in 0..dy.shape.n() {
        for first in (0..tokens).step_by(sweep) {
            let count = sweep.min(tokens - first);
            let (weights, slopes) = (&mut weights[..count * tokens], &mut slopes[..count * tokens]);
            let blocks = weights.par_chunks_mut(QUERIES * tokens).zip(slopes.par_chunks_mut(QUERIES * tokens));
            blocks.enumerate().for_each(|(block, (weights, slopes))| {
                let shape = [channels, tokens];
                with_respect_to_scores(x.item(n), dy.item(n), shape, first + block * QUERIES, weights, slopes);
            });
            join(x.item(n), dy.item(n), [channels, tokens], first, weights, slopes, out.item(n));
        }
    }
}

/// The launches: first the scores between all tokens and the gradients with respect to them, then the softmax of each
/// row, then the three products.
fn launches(x: Operand, dy: Operand, output: Operand) -> Lowered {
    let shape = dy.shape();
    let [channels, tokens] = [shape.c(), shape.plane()];
    let [weights, slopes] = [0, 1].map(|i| Operand::scratch(i, shape.n() * tokens * tokens));
    let launch = |entry| {
        Launch::new("attention_grad", entry)
            .write("weights", weights)
            .write("slopes", slopes)
            .u32("channels", channels)
            .u32("tokens", tokens)
            .f32("scale", 1.0 / (channels as f32).sqrt())
    };
    let tiles = tokens.div_ceil(TILE);
    let scores = launch("scores").read("x", x).read("dy", dy).over_grid([tiles, tiles, shape.n()]);
    let rows = launch("rows").over_grid([tokens, shape.n(), 1]);
    let grid = [tiles, channels.div_ceil(TILE), 3 * shape.n()];
    let products = launch("main").read("x", x).read("dy", dy).write("out", output).over_grid(grid);
    // The loops of the kernels: `scores` has one over channels, `rows` three over every 64th token and two trees of 6
    // rounds, `main` one over tokens. A loop may take one more round, in which it only finds that it is over.
    let rounds = (channels + 1).max(3 * (tokens.div_ceil(64) + 1) + 2 * (6 + 1)).max(tokens + 1);
    Lowered::gpu([scores, rows, products]).scratch([weights.shape().numel(), slopes.shape().numel()]).rounds(rounds)
}

/// Computes, for some queries from `first` on, `weights`, the softmax `P` of their scores, and `slopes`, `dS / sqrt(c)`
/// as [`SelfAttentionGrad`] has them. Both are `[queries, tokens]`.
fn with_respect_to_scores(
    x: &[f32],
    dy: &[f32],
    [channels, tokens]: [usize; 2],
    first: usize,
    weights: &mut [f32],
    slopes: &mut [f32],
) {
    let part = |i: usize| &x[i * channels * tokens..][..channels * tokens];
    attention_weights(&part(0)[first..], part(1), [channels, tokens], weights);
    let (dy, v) = (Matrix::columns(&dy[first..], tokens), Matrix::rows(part(2), tokens));
    product([slopes.len() / tokens, tokens, channels], 1.0, dy, v, slopes, Store::Over(tokens));
    let scale = 1.0 / (channels as f32).sqrt();
    for (slopes, weights) in slopes.chunks_mut(tokens).zip(weights.chunks(tokens)) {
        softmax_row_backward(slopes, weights, scale);
    }
}

/// Writes what some queries from `first` on contribute to the gradients of one batch item: their columns of `dQ`, and
/// their share of `dK` and `dV`, which is added to the shares of the queries before.
fn join(
    x: &[f32],
    dy: &[f32],
    [channels, tokens]: [usize; 2],
    first: usize,
    weights: &[f32],
    slopes: &[f32],
    out: &mut [f32],
) {
    let count = weights.len() / tokens;
    let store = if first == 0 { Store::Over(tokens) } else { Store::Onto(tokens) };
    let (dq, rest) = out.split_at_mut(channels * tokens);
    let (dk, dv) = rest.split_at_mut(channels * tokens);
    let third = channels * tokens;
    let blocks = |out| <[f32] as ParallelSliceMut<f32>>::par_chunks_mut(out, CHANNELS * tokens).enumerate();
    blocks(dq).for_each(|(i, out)| {
        let k = Matrix::rows(&x[third + i * CHANNELS * tokens..], tokens);
        let shape = [out.len() / tokens, count, tokens];
        product(shape, 1.0, k, Matrix::columns(slopes, tokens), &mut out[first..], Store::Over(tokens));
    });
    for (out, values, factors) in [(dk, slopes, x), (dv, weights, dy)] {
        blocks(out).for_each(|(i, out)| {
            let factors = Matrix::rows(&factors[i * CHANNELS * tokens + first..], tokens);
            product([out.len() / tokens, tokens, count], 1.0, factors, Matrix::rows(values, tokens), out, store);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{
        check_gradient, check_gradient_views, check_kernels, check_twins, random, relative_l2,
    };
    use super::super::SelfAttention;
    use super::*;

    fn shapes(n: usize, c: usize, h: usize, w: usize) -> [Shape; 2] {
        [Shape::new(n, 3 * c, h, w), Shape::new(n, c, h, w)]
    }

    #[test]
    fn sizes_of_all_kinds() {
        for shapes in [shapes(1, 64, 16, 16), shapes(2, 37, 9, 15), shapes(3, 1, 1, 1), shapes(1, 3, 1, 1100)] {
            check_twins(SelfAttentionGrad, &shapes, 1e-5);
            check_kernels(&SelfAttentionGrad, &shapes);
        }
    }

    #[test]
    fn central_differences_and_views_agree() {
        for shape in [Shape::new(2, 15, 5, 7), Shape::new(1, 3 * 40, 3, 3), Shape::new(1, 3, 1, 50)] {
            check_gradient(SelfAttention, &[shape], 0.0, 2e-3);
            check_gradient_views(SelfAttention, &[shape], 1e-5);
        }
    }

    #[test]
    fn queries_in_several_sweeps_add_up() {
        let [channels, tokens] = [5, 77];
        let x = random(3 * channels * tokens, 1);
        let dy = random(channels * tokens, 2);
        let run = |sweep: usize| {
            let mut out = vec![f32::NAN; x.len()];
            for first in (0..tokens).step_by(sweep) {
                let mut weights = vec![0f32; sweep.min(tokens - first) * tokens];
                let mut slopes = weights.clone();
                with_respect_to_scores(&x, &dy, [channels, tokens], first, &mut weights, &mut slopes);
                join(&x, &dy, [channels, tokens], first, &weights, &slopes, &mut out);
            }
            out
        };
        assert!(relative_l2(&run(32), &run(tokens)) <= 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let [x, dy] = shapes(2, 4, 3, 5);
        assert_eq!(SelfAttentionGrad.infer(&[x, dy]), Ok(x));
        assert_eq!(SelfAttentionGrad.macs(&[x, dy], x), 5 * 2 * 4 * 15 * 15);
        assert!(SelfAttentionGrad.infer(&[x]).is_err());
        assert!(SelfAttentionGrad.infer(&[x, x]).is_err());
    }
}
