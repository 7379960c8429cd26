//! The gradient with respect to the weight of large kernels by Fourier transforms, see [`super::fft_conv`]. Its
//! spectrum is, summed over tiles, the input's spectrum times the conjugate of that of the gradient with respect to the
//! result. A tile of the latter holds as many pixels as a tile of the convolution has outputs; the rest of it is zero.

use super::ConvSpec;
use super::fft::{POINTS, SIZE, bring_near, fill_part, points, tile_len, transform, transform_back};
use super::fft_conv::{COMPLEX_BLOCK, PIECE, Products, Tiling};
use super::microkernel::OC_BLOCK;
use super::scratch::Scratch;
use super::source::Source;
use super::weight_grad::{Run, panels};
use super::winograd::{load, store};
use crate::tensor::Shape;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of both factors that are held at a time, unless a single piece of the sums has more.
const HELD: usize = 32 << 20;

/// The gradient with respect to the weight of a convolution that this algorithm supports.
pub(super) fn run<S: Simd>(simd: S, run: Run) -> Vec<f32> {
    let [oc, ic, ..] = run.weight.0;
    let tiling = Tiling::new(run.spec, run.dy.shape);
    let blocks = oc.div_ceil(COMPLEX_BLOCK);
    let columns = ic.next_multiple_of(S::F32_LANES);
    let all = Products { terms: 2 * tiling.pairs(), blocks, columns };
    let fitting = (HELD / (all.rows_len() + all.columns_len())).max(1);
    let sums = &mut *Scratch::take(all.sums_len());
    for first in (0..all.pieces()).step_by(fitting) {
        let pieces = first..all.pieces().min(first + fitting);
        let start = first * PIECE;
        let products = Products { terms: all.terms.min(pieces.end * PIECE) - start, ..all };
        let rows = &mut *Scratch::take(products.pieces() * products.rows_len());
        let inputs = &mut *Scratch::take(products.pieces() * products.columns_len());
        let pairs = |piece: usize| {
            let terms = products.piece(piece);
            (start + terms.start) / 2..(start + terms.end) / 2
        };
        rayon::join(
            || {
                let tasks = rows.par_chunks_exact_mut(products.rows_len()).enumerate();
                tasks.for_each(|(piece, rows)| {
                    simd.vectorize(Rows { run, tiling, blocks, pairs: pairs(piece), rows });
                });
            },
            || {
                let tasks = inputs.par_chunks_exact_mut(products.columns_len()).enumerate();
                tasks.for_each(|(piece, inputs)| {
                    simd.vectorize(Columns { run, tiling, columns, pairs: pairs(piece), inputs });
                });
            },
        );
        products.run(simd, rows, inputs, sums, first > 0);
    }
    let sums = &*sums;
    let mut grad = vec![0.0; run.weight.numel()];
    grad.par_chunks_mut(2 * run.weight.item()).enumerate().for_each(|(pair, grad)| {
        simd.vectorize(TransformBack { weight: run.weight, products: all, pair, sums, grad });
    });
    grad
}

/// The conjugate spectra of the gradient with respect to the result, in some pairs of tiles: the factor of rows.
struct Rows<'a> {
    run: Run<'a>,
    tiling: Tiling,
    blocks: usize,
    pairs: Range<usize>,
    /// `[point][block][2 * PIECE][OC_BLOCK]`.
    rows: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let plain = ConvSpec::same(1);
        let source = Source::new(&plain, self.run.dy);
        let step = self.tiling.step;
        let mut tile = Scratch::take(tile_len(lanes));
        // Blocks are read whole, so there is room for one where a vector is shorter.
        let near_stride = lanes.max(COMPLEX_BLOCK);
        let mut near = Scratch::take(4 * near_stride);
        let oc = self.run.weight.n();
        for first in (0..oc).step_by(lanes) {
            let channels = first..oc.min(first + lanes);
            for (i, pair) in self.pairs.clone().enumerate() {
                for part in 0..2 {
                    let corner = self.tiling.corner(pair, part).map(|[n, y, x]| (n, [y as isize, x as isize]));
                    fill_part(simd, &source, corner, channels.clone(), step, &mut tile, part);
                }
                transform(simd, &mut tile, step[0]);
                for (point, [f, g]) in points(lanes) {
                    bring_near::<S>(&tile, [f, g], &mut near, near_stride);
                    for block in (0..channels.len()).step_by(COMPLEX_BLOCK) {
                        let c = first + block;
                        let row = (point * self.blocks + c / COMPLEX_BLOCK) * 2 * PIECE + 4 * i;
                        let to = &mut self.rows[row * OC_BLOCK + 2 * (c % COMPLEX_BLOCK)..];
                        let count = COMPLEX_BLOCK.min(channels.len() - block);
                        write_block(&near[block..], near_stride, count, to);
                    }
                }
            }
        }
    }
}

/// Writes four terms of `count` complex rows: the conjugate value at a frequency and the value at its negative, each
/// once for the real and once for the imaginary part of the product. Values lie `stride` apart.
#[inline(always)]
fn write_block(near: &[f32], stride: usize, count: usize, to: &mut [f32]) {
    let mut terms = [[0.0; OC_BLOCK]; 4];
    for lane in 0..COMPLEX_BLOCK {
        let [re, im, other_re, other_im] = [0, 1, 2, 3].map(|k| near[k * stride + lane]);
        let values = [[re, -im], [im, re], [other_re, other_im], [-other_im, other_re]];
        for (term, value) in terms.iter_mut().zip(values) {
            term[2 * lane..][..2].copy_from_slice(&value);
        }
    }
    for (k, term) in terms.iter().enumerate() {
        if count == COMPLEX_BLOCK {
            to[k * OC_BLOCK..][..OC_BLOCK].copy_from_slice(term);
        } else {
            to[k * OC_BLOCK..][..2 * count].copy_from_slice(&term[..2 * count]);
        }
    }
}

/// The spectra of the input in some pairs of tiles: the factor of columns.
struct Columns<'a> {
    run: Run<'a>,
    tiling: Tiling,
    columns: usize,
    pairs: Range<usize>,
    /// `[panel][point][2 * PIECE][columns of the panel]`.
    inputs: &'a mut [f32],
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let mut tile = Scratch::take(tile_len(lanes));
        for (first, width) in panels::<S>(self.columns) {
            for at in (0..width).step_by(lanes) {
                let channels = first + at..self.run.weight.c().min(first + at + lanes);
                for (i, pair) in self.pairs.clone().enumerate() {
                    let Run { spec, source, .. } = self.run;
                    self.tiling.transform_inputs(simd, spec, source, pair, channels.clone(), &mut tile);
                    for (point, [f, g]) in points(lanes) {
                        let to = 2 * PIECE * (POINTS * first + point * width) + 4 * i * width + at;
                        let values = [f, f + lanes, g].map(|from| load::<S>(&tile, from));
                        for (k, value) in values.into_iter().enumerate() {
                            store::<S>(self.inputs, to + k * width, value);
                        }
                        let conjugate = simd.neg_f32s(load::<S>(&tile, g + lanes));
                        store::<S>(self.inputs, to + 3 * width, conjugate);
                    }
                }
            }
        }
    }
}

/// The gradient with respect to the kernels of two output channels.
struct TransformBack<'a> {
    weight: Shape,
    products: Products,
    pair: usize,
    sums: &'a [f32],
    /// `[2 or 1][ic][kh][kw]`.
    grad: &'a mut [f32],
}

impl WithSimd for TransformBack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let Products { blocks, columns, .. } = self.products;
        let [_, ic, kh, kw] = self.weight.0;
        let scale = simd.splat_f32s(0.5 / (SIZE * SIZE) as f32);
        let row = 2 * self.pair / COMPLEX_BLOCK * OC_BLOCK + 4 * self.pair % OC_BLOCK;
        let mut tile = Scratch::take(tile_len(lanes));
        for first in (0..ic).step_by(lanes) {
            for (point, [f, g]) in points(lanes) {
                let at = (point * blocks * OC_BLOCK + row) * columns + first;
                let mut sums = [simd.splat_f32s(0.0); 4];
                // The last output channel may be alone.
                for (k, sum) in sums.iter_mut().enumerate().take(2 * self.grad.len() / self.weight.item()) {
                    *sum = simd.mul_f32s(scale, load::<S>(self.sums, at + k * columns));
                }
                let [a, b, c, d] = sums;
                // One kernel is the real part and the other the imaginary part. Both parts are exchanged, as the
                // inverse transform wants them.
                store::<S>(&mut tile, g, simd.sub_f32s(c, b));
                store::<S>(&mut tile, g + lanes, simd.add_f32s(a, d));
                store::<S>(&mut tile, f, simd.add_f32s(b, c));
                store::<S>(&mut tile, f + lanes, simd.sub_f32s(a, d));
            }
            transform_back(simd, &mut tile, kh);
            for (part, grad) in self.grad.chunks_exact_mut(self.weight.item()).enumerate() {
                for (lane, kernel) in grad.chunks_exact_mut(kh * kw).skip(first).take(lanes).enumerate() {
                    for (tap, value) in kernel.iter_mut().enumerate() {
                        *value = tile[(2 * (tap / kw * SIZE + tap % kw) + 1 - part) * lanes + lane];
                    }
                }
            }
        }
    }
}
