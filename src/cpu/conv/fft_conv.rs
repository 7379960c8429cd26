//! Convolutions by Fourier transforms of 32x32 tiles, which pay where kernels are large: a tile of a 15x15 kernel takes
//! 1,028 complex products for 648 outputs of two tiles, where 145,800 products would be due.
//!
//! Two tiles of a channel are transformed at once, as the real and the imaginary part of one; a real kernel keeps them
//! apart. A real kernel's spectrum is conjugate-symmetric, so half of its frequencies suffice. For a pair of tiles both
//! the value at such a frequency and the conjugate of the value at its negative are needed: they are the two *slots* of
//! the pair. For each frequency of the half the channels are summed by one complex product of matrices. It is computed
//! as a real one: one factor has rows `(re, im)` for the real part and `(im, -re)` for the imaginary part of the other.
//! Both factors come in *pieces* of the sum, of [`PIECE`] complex terms each.

use super::fft::{POINTS, SIZE, bring_near, fill_part, points, tile_len, transform, transform_back};
use super::microkernel::{OC_BLOCK, Product};
use super::scratch::Scratch;
use super::source::{Source, side_by_side};
use super::weight_grad::panels;
use super::winograd::{load, store};
use super::{Conv, ConvSpec, Run};
use crate::tensor::Shape;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Complex terms of a piece of the sums: a multiple of the lanes of every kind of vector.
pub(super) const PIECE: usize = 16;
/// Rows of complex numbers that fit into an [`OC_BLOCK`] of real rows.
pub(super) const COMPLEX_BLOCK: usize = OC_BLOCK / 2;
/// Elements of the transformed input that are held at a time, unless one pair of tiles has more.
const HELD: usize = 24 << 20;

/// Whether such a convolution can be computed this way.
pub(super) fn supports(spec: &ConvSpec) -> bool {
    let sides = spec.kernel.iter().all(|side| (4..=17).contains(side));
    sides && spec.stride == [1, 1] && spec.dilation == [1, 1] && spec.groups == 1
}

/// Whether it is faster than summing products. The transform of a tile of 16 channels takes about as long as 2.4
/// million multiply-adds.
pub(super) fn pays(spec: &ConvSpec, out: Shape, weight: Shape) -> bool {
    if !supports(spec) {
        return false;
    }
    let [oc, ic] = [weight.n(), weight.c()].map(|channels| channels.next_multiple_of(PIECE));
    let pairs = Tiling::new(spec, out).pairs();
    let products = 8 * POINTS * pairs * ic * oc;
    let transforms = 150_000 * (pairs * (ic + oc) + ic * oc);
    products + transforms < out.n() * out.plane() * weight.numel()
}

/// How the output is cut into tiles, two of which form a pair.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// Outputs of a tile along each axis.
    pub(super) step: [usize; 2],
    across: usize,
    down: usize,
    batch: usize,
}

impl Tiling {
    pub(super) fn new(spec: &ConvSpec, out: Shape) -> Self {
        let step = spec.kernel.map(|side| SIZE + 1 - side);
        Self { step, across: out.w().div_ceil(step[1]), down: out.h().div_ceil(step[0]), batch: out.n() }
    }

    pub(super) fn pairs(&self) -> usize {
        (self.across * self.down * self.batch).div_ceil(2)
    }

    /// Batch item, first output row and first output column of a pair's first (0) or second (1) tile; `None` if there
    /// is no such tile.
    pub(super) fn corner(&self, pair: usize, part: usize) -> Option<[usize; 3]> {
        let tile = 2 * pair + part;
        let (row, column) = (tile / self.across, tile % self.across);
        let place = [row / self.down, row % self.down * self.step[0], column * self.step[1]];
        (place[0] < self.batch).then_some(place)
    }

    /// Writes the spectra of the input that a pair of tiles reads, with a channel in each lane.
    #[inline(always)]
    pub(super) fn transform_inputs<S: Simd>(
        &self,
        simd: S,
        spec: &ConvSpec,
        source: &Source,
        pair: usize,
        channels: Range<usize>,
        tile: &mut [f32],
    ) {
        for part in 0..2 {
            let corner = self
                .corner(pair, part)
                .map(|[n, y, x]| (n, [y as isize - spec.padding[0] as isize, x as isize - spec.padding[1] as isize]));
            fill_part(simd, source, corner, channels.clone(), [SIZE; 2], tile, part);
        }
        transform(simd, tile, SIZE);
    }
}

/// The matrix products of all points (frequencies). The factors are laid out as `[piece][point][block][2 *
/// PIECE][OC_BLOCK]` (rows) and `[piece][panel][point][2 * PIECE][columns of the panel]` (columns), the sums as
/// `[point][block][OC_BLOCK][columns]`.
#[derive(Clone, Copy)]
pub(super) struct Products {
    /// Complex terms of a sum.
    pub(super) terms: usize,
    /// Blocks of [`COMPLEX_BLOCK`] rows.
    pub(super) blocks: usize,
    /// Columns, a multiple of a vector's lanes.
    pub(super) columns: usize,
}

impl Products {
    pub(super) fn pieces(&self) -> usize {
        self.terms.div_ceil(PIECE)
    }

    /// The terms of a piece.
    pub(super) fn piece(&self, piece: usize) -> Range<usize> {
        piece * PIECE..self.terms.min((piece + 1) * PIECE)
    }

    /// Elements of a piece of the factor of rows.
    pub(super) fn rows_len(&self) -> usize {
        POINTS * self.blocks * 2 * PIECE * OC_BLOCK
    }

    /// Elements of a piece of the factor of columns.
    pub(super) fn columns_len(&self) -> usize {
        POINTS * 2 * PIECE * self.columns
    }

    /// Elements of the sums.
    pub(super) fn sums_len(&self) -> usize {
        POINTS * self.blocks * OC_BLOCK * self.columns
    }

    /// Computes the sums; adds to what `sums` holds if `accumulate`.
    pub(super) fn run<S: Simd>(self, simd: S, rows: &[f32], columns: &[f32], sums: &mut [f32], accumulate: bool) {
        let tasks = sums.par_chunks_exact_mut(self.sums_len() / POINTS).enumerate();
        tasks.for_each(|(point, sums)| {
            simd.vectorize(PointProducts { products: self, rows, columns, point, sums, accumulate });
        });
    }
}

/// The products of one point.
struct PointProducts<'a> {
    products: Products,
    rows: &'a [f32],
    columns: &'a [f32],
    point: usize,
    sums: &'a mut [f32],
    accumulate: bool,
}

impl WithSimd for PointProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Products { blocks, columns, .. } = self.products;
        for (first, width) in panels::<S>(columns) {
            for piece in 0..self.products.pieces() {
                let depth = 2 * self.products.piece(piece).len();
                let b = piece * self.products.columns_len() + 2 * PIECE * (POINTS * first + self.point * width);
                let a = piece * self.products.rows_len() + self.point * blocks * 2 * PIECE * OC_BLOCK;
                for block in 0..blocks {
                    simd.vectorize(Product {
                        a: &self.rows[a + block * 2 * PIECE * OC_BLOCK..][..depth * OC_BLOCK],
                        b: &self.columns[b..][..depth * width],
                        vectors: width / S::F32_LANES,
                        c: &mut self.sums[block * OC_BLOCK * columns + first..],
                        c_stride: columns,
                        accumulate: self.accumulate || piece > 0,
                    });
                }
            }
        }
    }
}

/// Runs a convolution, whose weights are as they were given.
pub(super) fn run<S: Simd>(simd: S, run: Run) {
    let [oc, ic, ..] = run.conv.weight_shape.0;
    let tiling = Tiling::new(run.conv.spec, run.out.shape);
    let fitting = HELD / (POINTS * ic * OC_BLOCK);
    let chunks = tiling.pairs().div_ceil(fitting.max(1));
    // Every pair of tiles has two slots, and every slot is a row.
    let blocks = (2 * tiling.pairs().div_ceil(chunks)).div_ceil(COMPLEX_BLOCK);
    let products = Products { terms: ic, blocks, columns: oc.next_multiple_of(S::F32_LANES) };
    let kernels = &mut *Scratch::take(products.pieces() * products.columns_len());
    kernels.par_chunks_exact_mut(products.columns_len()).enumerate().for_each(|(piece, kernels)| {
        let mut rest = kernels;
        let mut tasks = Vec::new();
        for (first, width) in panels::<S>(products.columns) {
            let (kernels, after) = rest.split_at_mut(2 * PIECE * POINTS * width);
            tasks.push((first, width, kernels));
            rest = after;
        }
        tasks.into_par_iter().for_each(|(first, width, kernels)| {
            simd.vectorize(Kernels { conv: run.conv, channels: products.piece(piece), first, width, kernels });
        });
    });
    let inputs = &mut *Scratch::take(products.pieces() * products.rows_len());
    let sums = &mut *Scratch::take(products.sums_len());
    for first in (0..tiling.pairs()).step_by(blocks * COMPLEX_BLOCK / 2) {
        let pairs = first..tiling.pairs().min(first + blocks * COMPLEX_BLOCK / 2);
        inputs.par_chunks_exact_mut(products.rows_len()).enumerate().for_each(|(piece, inputs)| {
            let channels = products.piece(piece);
            simd.vectorize(Inputs { run, tiling, products, pairs: pairs.clone(), channels, inputs });
        });
        products.run(simd, inputs, kernels, sums, false);
        let sums = &*sums;
        let vectors = products.columns / S::F32_LANES;
        (0..pairs.len() * vectors).into_par_iter().for_each(|task| {
            let (place, column) = (task / vectors, task % vectors * S::F32_LANES);
            let pair = pairs.start + place;
            simd.vectorize(Outputs { run, tiling, products, pair, place, column, sums });
        });
    }
}

/// The spectra of some output channels' kernels for a piece of the input channels: a panel of columns.
struct Kernels<'a> {
    conv: &'a Conv<'a>,
    channels: Range<usize>,
    first: usize,
    width: usize,
    /// `[point][2 * PIECE][width]`.
    kernels: &'a mut [f32],
}

impl WithSimd for Kernels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let [oc, _, kh, _] = self.conv.weight_shape.0;
        let mut tile = Scratch::take(tile_len(lanes));
        // The inverse transform is SIZE * SIZE times too large, and a value and a conjugate that are added make it
        // twice that.
        let scale = simd.splat_f32s(0.5 / (SIZE * SIZE) as f32);
        for at in (0..self.width).step_by(lanes) {
            let outputs = self.first + at..oc.min(self.first + at + lanes);
            for i in (0..self.channels.len()).step_by(2) {
                // Two input channels' kernels in one transform.
                for part in 0..2 {
                    let channel = self.channels.start + i + part;
                    let channel = (channel < self.channels.end).then_some(channel);
                    self.fill(outputs.clone(), channel, &mut tile, part, lanes);
                }
                transform(simd, &mut tile, kh);
                for (point, [f, g]) in points(lanes) {
                    let [re, im] = [load::<S>(&tile, f), load::<S>(&tile, f + lanes)];
                    let [conj, minus] = [load::<S>(&tile, g), load::<S>(&tile, g + lanes)];
                    let to = (point * 2 * PIECE + 2 * i) * self.width + at;
                    let own = [simd.add_f32s(re, conj), simd.sub_f32s(im, minus)];
                    let next = [simd.add_f32s(im, minus), simd.sub_f32s(conj, re)];
                    for (k, value) in own.into_iter().chain(next).enumerate() {
                        store::<S>(self.kernels, to + k * self.width, simd.mul_f32s(scale, value));
                    }
                }
            }
        }
    }
}

impl Kernels<'_> {
    /// Writes the kernels between some output channels and one input channel into the real or the imaginary part of the
    /// tiles.
    #[inline(always)]
    fn fill(&self, outputs: Range<usize>, channel: Option<usize>, tile: &mut [f32], part: usize, lanes: usize) {
        let [_, ic, kh, kw] = self.conv.weight_shape.0;
        let mut rows = [[0.0; SIZE]; 4];
        for first in (0..outputs.len()).step_by(4) {
            let count = (outputs.len() - first).min(4);
            for y in 0..kh {
                if let Some(channel) = channel {
                    for (o, row) in rows[..count].iter_mut().enumerate() {
                        let kernel = ((outputs.start + first + o) * ic + channel) * kh * kw;
                        row[..kw].copy_from_slice(&self.conv.packed[kernel + y * kw..][..kw]);
                    }
                }
                let four = [&rows[0][..], &rows[1], &rows[2], &rows[3]];
                side_by_side(four, count, &mut tile[(2 * y * SIZE + part) * lanes + first..], 8 * lanes, 2 * lanes);
            }
        }
    }
}

/// The spectra of a piece of the input channels in some pairs of tiles.
struct Inputs<'a> {
    run: Run<'a>,
    tiling: Tiling,
    products: Products,
    pairs: Range<usize>,
    channels: Range<usize>,
    /// `[point][block][2 * PIECE][OC_BLOCK]`.
    inputs: &'a mut [f32],
}

impl WithSimd for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let mut tile = Scratch::take(tile_len(lanes));
        let mut near = Scratch::take(4 * lanes);
        for first in self.channels.clone().step_by(lanes) {
            let channels = first..self.channels.end.min(first + lanes);
            for (place, pair) in self.pairs.clone().enumerate() {
                let Run { conv, source, .. } = self.run;
                self.tiling.transform_inputs(simd, conv.spec, source, pair, channels.clone(), &mut tile);
                let block = place * 2 / COMPLEX_BLOCK;
                let row = place * 4 % OC_BLOCK;
                for (point, [f, g]) in points(lanes) {
                    bring_near::<S>(&tile, [f, g], &mut near, lanes);
                    let term = (point * self.products.blocks + block) * PIECE + first - self.channels.start;
                    let terms = self.inputs[2 * term * OC_BLOCK..].chunks_exact_mut(2 * OC_BLOCK);
                    for (lane, to) in terms.take(channels.len()).enumerate() {
                        let [a, b, c, d] = [0, 1, 2, 3].map(|k| near[k * lanes + lane]);
                        to[row..row + 4].copy_from_slice(&[a, b, c, -d]);
                        to[OC_BLOCK + row..][..4].copy_from_slice(&[b, -a, -d, -c]);
                    }
                }
            }
        }
    }
}

/// The outputs of a vector of channels in a pair of tiles.
struct Outputs<'a> {
    run: Run<'a>,
    tiling: Tiling,
    products: Products,
    pair: usize,
    /// The number of the pair among those whose sums these are.
    place: usize,
    /// The first channel.
    column: usize,
    sums: &'a [f32],
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let columns = self.products.columns;
        let mut tile = Scratch::take(tile_len(lanes));
        let row = self.place * 2 / COMPLEX_BLOCK * OC_BLOCK + self.place * 4 % OC_BLOCK;
        for (point, [f, g]) in points(lanes) {
            let at = (point * self.products.blocks * OC_BLOCK + row) * columns + self.column;
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| load::<S>(self.sums, at + k * columns));
            store::<S>(&mut tile, g, simd.neg_f32s(d));
            store::<S>(&mut tile, g + lanes, c);
            store::<S>(&mut tile, f, b);
            store::<S>(&mut tile, f + lanes, a);
        }
        transform_back(simd, &mut tile, self.tiling.step[0]);
        let shape = self.run.out.shape;
        let channels = lanes.min(shape.c() - self.column);
        let mut rows = Scratch::take(lanes * SIZE);
        for part in 0..2 {
            let Some([n, y, x]) = self.tiling.corner(self.pair, part) else {
                continue;
            };
            let [height, width] = [self.tiling.step[0].min(shape.h() - y), self.tiling.step[1].min(shape.w() - x)];
            for line in 0..height {
                // Real and imaginary parts are exchanged after the inverse transform.
                let pixels = tile[(2 * line * SIZE + 1 - part) * lanes..].chunks(2 * lanes);
                for (i, pixel) in pixels.take(width).enumerate() {
                    for (row, value) in rows.chunks_exact_mut(SIZE).zip(&pixel[..lanes]) {
                        row[i] = *value;
                    }
                }
                for (c, row) in rows.chunks_exact(SIZE).take(channels).enumerate() {
                    let pixel = (y + line) * shape.w() + x;
                    // SAFETY: each channel of each tile is one task's.
                    unsafe { self.run.out.write([n, self.column + c, pixel], &row[..width]) };
                }
            }
        }
    }
}
