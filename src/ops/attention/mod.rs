//! Self-attention of one head over all pixels (Vaswani et al. 2017).

mod grad;

use rayon::prelude::*;

use super::gradient_name;
use crate::cpu::softmax::softmax_row;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Queries that one CPU task takes.
const QUERIES: usize = 32;
/// Channels and queries of one workgroup of the kernel.
const TILE: [usize; 2] = [128, 32];
/// Keys that the kernel takes at a time.
const KEYS: usize = 32;

/// `softmax(q . k / sqrt(c)) v` for every pixel over all pixels.
///
/// Input: `[n, 3c, h, w]`, the channels of `q`, `k` and `v` one after the other. Result: `[n, c, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SelfAttention;

impl Op for SelfAttention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [x] if x.c() % 3 == 0 && x.numel() > 0 => Ok(Shape::new(x.n(), x.c() / 3, x.h(), x.w())),
            _ => Err("it takes one tensor of q, k and v of as many channels each".into()),
        }
    }

    /// Both matrix products.
    fn macs(&self, inputs: &[Shape], output: Shape) -> u64 {
        2 * (output.numel() * inputs[0].plane()) as u64
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let qkv = at.inputs[0];
        Ok(vec![Some(g.apply(&gradient_name(g, qkv), grad::SelfAttentionGrad, &[qkv, at.dy])?)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| compute(inputs[0], out)),
            Target::Gpu(_) => Lowered::gpu([launch(inputs[0], output)]).rounds(rounds(output.shape())),
        }
    }
}

fn compute(x: View, mut out: ViewMut) {
    let channels = out.shape.c();
    let tokens = out.shape.plane();
    for n in 0..out.shape.n() {
        let (q, kv) = x.item(n).split_at(channels * tokens);
        let (k, v) = kv.split_at(channels * tokens);
        let blocks: Vec<Vec<f32>> = (0..tokens.div_ceil(QUERIES))
            .into_par_iter()
            .map(|block| attend(&q[block * QUERIES..], k, v, [channels, tokens], block))
            .collect();
        let rows = out.item(n).par_chunks_mut(tokens).enumerate();
        rows.for_each(|(c, row)| {
            for (part, block) in row.chunks_mut(QUERIES).zip(&blocks) {
                part.copy_from_slice(&block[c * part.len()..][..part.len()]);
            }
        });
    }
}

fn launch(x: Operand, output: Operand) -> Launch {
    let shape = output.shape();
    let [channels, tokens] = [shape.c(), shape.plane()];
    Launch::new("attention", "main")
        .read("x", x)
        .write("out", output)
        .u32("channels", channels)
        .u32("tokens", tokens)
        .f32("scale", 1.0 / (channels as f32).sqrt())
        .over_grid([channels.div_ceil(TILE[0]), tokens.div_ceil(TILE[1]), shape.n()])
}

/// Loop rounds of an invocation of the kernel for a result of this shape. Every 32 keys take one round of the outer
/// loop, one for every four channels of the scores, 8 that find the largest score and 8 that add four keys' values
/// each; each of the three inner loops may take one more, in which it only finds that it is over.
fn rounds(output: Shape) -> usize {
    output.plane().div_ceil(KEYS) * (1 + (output.c().div_ceil(4) + 1) + (8 + 1) + (8 + 1))
}

/// The result for one block of queries, `[channels, queries]`. `q` starts at the block's first query;
/// the channels of `q`, `k` and `v` lie `tokens` elements apart.
fn attend(q: &[f32], k: &[f32], v: &[f32], [channels, tokens]: [usize; 2], block: usize) -> Vec<f32> {
    let queries = QUERIES.min(tokens - block * QUERIES);
    let mut weights = vec![0.0; queries * tokens];
    attention_weights(q, k, [channels, tokens], &mut weights);
    let mut out = vec![0.0; channels * queries];
    let v = Matrix::rows(v, tokens);
    product([channels, queries, tokens], 1.0, v, Matrix::columns(&weights, tokens), &mut out, Store::Over(queries));
    out
}

/// The softmax over all keys for some queries, `[queries, tokens]`.
fn attention_weights(q: &[f32], k: &[f32], [channels, tokens]: [usize; 2], weights: &mut [f32]) {
    let shape = [weights.len() / tokens, tokens, channels];
    let scale = 1.0 / (channels as f32).sqrt();
    product(shape, scale, Matrix::columns(q, tokens), Matrix::rows(k, tokens), weights, Store::Over(tokens));
    weights.chunks_mut(tokens).for_each(softmax_row);
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    /// Elements from row to row and from column to column.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows lie `stride` apart.
    fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, strides: [stride, 1] }
    }

    /// A matrix whose columns lie `stride` apart.
    fn columns(data: &'a [f32], stride: usize) -> Self {
        Self { data, strides: [1, stride] }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = (rows - 1) * self.strides[0] + (columns - 1) * self.strides[1];
        last < self.data.len()
    }
}

/// Whether a product replaces what the matrix that it is written to holds or is added to it, and the elements from one
/// row of that matrix to the next.
#[derive(Clone, Copy)]
enum Store {
    /// It replaces what was there.
    Over(usize),
    /// It is added to what was there.
    Onto(usize),
}

/// The matrix product `scale * a * b` into `out`: `a` is `m` by `k`, `b` is `k` by `n`, `out` is `m` by `n` and
/// row-major. None of the sizes is 0.
fn product([m, n, k]: [usize; 3], scale: f32, a: Matrix, b: Matrix, out: &mut [f32], store: Store) {
    let (Store::Over(stride) | Store::Onto(stride)) = store;
    assert!(a.holds(m, k) && b.holds(k, n) && Matrix::rows(out, stride).holds(m, n) && stride >= n);
    let [ar, ac] = a.strides.map(usize::cast_signed);
    let [br, bc] = b.strides.map(usize::cast_signed);
    // SAFETY: the assertion above says that every element the strides reach lies inside its slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride.cast_signed(),
            matches!(store, Store::Onto(_)),
            a.data.as_ptr(),
            ac,
            ar,
            b.data.as_ptr(),
            bc,
            br,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_kernels, check_twins_on, check_views, random, relative_l2};
    use super::*;
    use crate::graph::MAX_LOOP_ROUNDS;

    /// The definition, in `f64`.
    fn oracle(x: Shape, data: &[f32]) -> Vec<f32> {
        let (c, tokens) = (x.c() / 3, x.plane());
        let mut out = vec![0f32; x.numel() / 3];
        for (item, out) in data.chunks(x.item()).zip(out.chunks_mut(c * tokens)) {
            let at = |part: usize, ch: usize, i: usize| f64::from(item[(part * c + ch) * tokens + i]);
            for i in 0..tokens {
                let score = |j: usize| (0..c).map(|ch| at(0, ch, i) * at(1, ch, j)).sum::<f64>();
                let scores: Vec<f64> = (0..tokens).map(|j| score(j) / (c as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for ch in 0..c {
                    let sum: f64 = (0..tokens).map(|j| weights[j] * at(2, ch, j)).sum();
                    out[ch * tokens + i] = (sum / total) as f32;
                }
            }
        }
        out
    }

    fn check(x: Shape, range: f32) {
        let mut data = random(x.numel(), 8);
        data.iter_mut().for_each(|v| *v *= range);
        let cpu = check_twins_on(SelfAttention, &[x], std::slice::from_ref(&data), 1e-5);
        let error = relative_l2(&cpu, &oracle(x, &data));
        assert!(error <= 1e-6, "{x}: {error:e}");
    }

    #[test]
    fn sizes_of_all_kinds() {
        check(Shape::new(1, 3 * 256, 16, 16), 1.0);
        check(Shape::new(2, 3 * 37, 9, 15), 2.0);
        check(Shape::new(1, 3, 1, 1), 1.0);
        check(Shape::new(1, 3 * 130, 5, 13), 1.0);
        check(Shape::new(1, 3 * 2, 1, 2100), 1.0);
        check_kernels(&SelfAttention, &[Shape::new(1, 6, 3, 4)]);
    }

    #[test]
    fn a_few_keys_with_all_the_weight() {
        check(Shape::new(1, 3 * 33, 5, 5), 6.0);
        check(Shape::new(1, 3, 1, 50), 30.0);
    }

    #[test]
    fn parts_of_concatenations() {
        check_views(SelfAttention, &[Shape::new(3, 15, 5, 7)], 1e-5);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(2, 12, 3, 5);
        let out = SelfAttention.infer(&[x]);
        assert_eq!(out, Ok(Shape::new(2, 4, 3, 5)));
        assert_eq!(SelfAttention.macs(&[x], Shape::new(2, 4, 3, 5)), 2 * 2 * 4 * 15 * 15);
        assert!(SelfAttention.infer(&[Shape::new(2, 11, 3, 5)]).is_err());
        assert!(SelfAttention.infer(&[x, x]).is_err());
    }

    #[test]
    fn loops_longer_than_llvmpipe_runs_are_announced() {
        assert!(rounds(Shape::new(1, 256, 128, 128)) <= MAX_LOOP_ROUNDS);
        assert!(rounds(Shape::new(1, 256, 192, 192)) > MAX_LOOP_ROUNDS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..3usize, c in 1..70usize, h in 1..12usize, w in 1..12usize) {
            check(Shape::new(n, 3 * c, h, w), 1.5);
        }
    }
}
