//! The gradient with respect to the weight of 3x3 convolutions by Winograd's F(4x4, 3x3), transposed: with the forward
//! pass `A^T [(G w G^T) * (B^T x B)] A` for each tile, the gradient with respect to `w` is `G^T [sum over tiles of (A
//! dy A^T) * (B^T x B)] G`.
//!
//! Input and gradient are laid out with their channels side by side, so that the sums over tiles are 36 products of
//! matrices. Parts of the image have sums of their own, which are joined in order; how many parts there are depends on
//! the shapes alone.

use super::ConvSpec;
use super::microkernel::{OC_BLOCK, PANEL_VECTORS, Product};
use super::scratch::Scratch;
use super::source::side_by_side;
use super::weight_grad::{Run, four_rows, panels, parts};
use super::winograd::{PATCH, POINTS, TILE, load, store, supports, times, transform_patch};
use crate::tensor::Shape;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Most transformed values of a band of tiles, so that they stay in the L2 cache.
const TRANSFORMED: usize = 256 << 10;
/// Tiles of a band, unless a row has more.
const TILES: usize = 64;
/// Fewest tiles of a part: with fewer, transforming its sums back would take longer than the products.
const PART_TILES: usize = 64;
/// Tasks beyond which output channels are not divided further: each task would transform the same input again.
const TASKS: usize = 8;

/// Whether it is possible and faster than products of matrices: there must be enough channels and tiles to pay for the
/// transforms.
pub(super) fn pays(spec: &ConvSpec, dy: Shape, weight: Shape) -> bool {
    let tiles = dy.n() * dy.h().div_ceil(TILE) * dy.w().div_ceil(TILE);
    let full = tiles * TILE * TILE <= 2 * dy.n() * dy.plane();
    supports(spec) && weight.c() >= 8 && weight.n() >= 8 && tiles >= 32 && full
}

/// How tiles and channels are cut.
#[derive(Clone, Copy)]
struct Layout {
    /// Input channels, filled up to whole vectors.
    columns: usize,
    /// Tiles of a row, rows of tiles, how many of them form a band, and bands.
    across: usize,
    down: usize,
    rows: usize,
    bands: usize,
    /// Blocks of output channels of a task.
    blocks: usize,
}

impl Layout {
    /// Sums of one block of output channels: `[panel][point][OC_BLOCK][columns of the panel]`.
    fn block_len(&self) -> usize {
        POINTS * OC_BLOCK * self.columns
    }
}

/// The gradient with respect to the weight of a convolution that this algorithm [`supports`].
pub(super) fn run<S: Simd>(simd: S, run: Run) -> Vec<f32> {
    let [oc, ic, ..] = run.weight.0;
    let columns = ic.next_multiple_of(S::F32_LANES);
    let [across, down] = [run.dy.shape.w().div_ceil(TILE), run.dy.shape.h().div_ceil(TILE)];
    let blocks = oc.div_ceil(OC_BLOCK);
    let most = (TRANSFORMED / (POINTS * (columns + oc))).min(TILES);
    let rows = (most / across).clamp(1, down);
    let mut layout = Layout { columns, across, down, rows, bands: down.div_ceil(rows), blocks };
    let units = run.dy.shape.n() * layout.bands;
    let all = blocks * layout.block_len();
    let tiles = run.dy.shape.n() * across * down;
    let parts = parts(units.min((tiles / PART_TILES).max(1)), all);
    layout.blocks = blocks.div_ceil((TASKS / parts).clamp(1, blocks.div_ceil(8)));
    let sums = &mut *Scratch::take(parts * all);
    let tasks = sums.par_chunks_exact_mut(all).enumerate().flat_map(|(part, sums)| {
        let slices = sums.par_chunks_mut(layout.blocks * layout.block_len()).enumerate();
        slices.map(move |(slice, sums)| (part, slice, sums))
    });
    tasks.for_each(|(part, slice, sums)| {
        let units = part * units / parts..(part + 1) * units / parts;
        simd.vectorize(Task { run, layout, units, first_oc: slice * layout.blocks * OC_BLOCK, sums });
    });
    let sums = &*sums;
    let mut grad = vec![0.0; run.weight.numel()];
    grad.par_chunks_mut(OC_BLOCK * ic * 9).enumerate().for_each(|(block, grad)| {
        let block = block * layout.block_len();
        simd.vectorize(TransformBack { parts: sums, part_len: all, block, columns, ic, grad });
    });
    grad
}

/// The sums over some bands of tiles, for some output channels.
struct Task<'a> {
    run: Run<'a>,
    layout: Layout,
    units: Range<usize>,
    first_oc: usize,
    /// `[block][panel][point][OC_BLOCK][columns of the panel]`.
    sums: &'a mut [f32],
}

/// Some rows of tiles of a batch item.
#[derive(Clone, Copy)]
struct Band {
    n: usize,
    first: usize,
    rows: usize,
    tiles: usize,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Layout { columns, across, down, rows, bands, .. } = self.layout;
        let blocks = self.sums.len() / self.layout.block_len();
        let v = &mut *Scratch::take(POINTS * rows * across * columns);
        let u = &mut *Scratch::take(blocks * POINTS * gradient_stride::<S>(rows * across));
        self.sums.fill(0.0);
        for unit in self.units.clone() {
            let first = unit % bands * rows;
            let rows = rows.min(down - first);
            let band = Band { n: unit / bands, first, rows, tiles: rows * across };
            self.transform_input(simd, band, v);
            self.transform_gradient(simd, band, u);
            self.multiply(simd, band, v, u);
        }
    }
}

/// Elements from one point of the transformed gradient to the next: a row's last vector may reach beyond its tiles.
#[inline(always)]
fn gradient_stride<S: Simd>(tiles: usize) -> usize {
    tiles * OC_BLOCK + S::F32_LANES
}

impl Task<'_> {
    /// Writes the band's `B^T x B`, in panels of `[point][tile][column]`. Columns beyond the last channel have any
    /// value.
    #[inline(always)]
    fn transform_input<S: Simd>(&self, simd: S, band: Band, v: &mut [f32]) {
        let (zero, across) = (simd.splat_f32s(0.0), self.layout.across);
        let padding = self.run.spec.padding.map(|p| p as isize);
        let lines = band.rows * TILE + 2;
        let len = (across + 1) * TILE;
        let mut rows = Scratch::take(4 * len);
        let mut staged = Scratch::take(lines * len * PANEL_VECTORS * S::F32_LANES);
        for (first, width) in panels::<S>(self.layout.columns) {
            // Columns are sorted by their remainder modulo the tile's size: the values of neighbouring tiles are then
            // neighbours.
            let phase = (across + 1) * width;
            let end = self.run.weight.c().min(first + width);
            for c in (first..end).step_by(4) {
                for (y, staged) in staged.chunks_exact_mut(TILE * phase).take(lines).enumerate() {
                    let place = [(band.first * TILE + y) as isize - padding[0], -padding[1]];
                    for (i, row) in rows.chunks_exact_mut(len).enumerate().take(end - c) {
                        self.run.source.fill(simd, [band.n, c + i], place, row, len);
                    }
                    let four = [&rows[..len], &rows[len..2 * len], &rows[2 * len..3 * len], &rows[3 * len..]];
                    side_by_side(four, (end - c).min(4), &mut staged[c - first..], width, phase);
                }
            }
            let v = &mut v[POINTS * band.tiles * first..];
            for y in 0..band.rows {
                for at in (0..across * width).step_by(S::F32_LANES) {
                    let mut half = [[zero; PATCH]; PATCH];
                    for (i, half) in half.iter_mut().enumerate() {
                        let mut line = [zero; PATCH];
                        for (j, value) in line.iter_mut().enumerate() {
                            let row = (y * TILE + i) * TILE * phase;
                            *value = load::<S>(&staged, row + j % TILE * phase + j / TILE * width + at);
                        }
                        *half = transform_patch(simd, line);
                    }
                    for x in 0..PATCH {
                        let mut column = [zero; PATCH];
                        for (value, half) in column.iter_mut().zip(&half) {
                            *value = half[x];
                        }
                        for (point, value) in transform_patch(simd, column).iter().enumerate() {
                            let point = point * PATCH + x;
                            store::<S>(v, (point * band.tiles + y * across) * width + at, *value);
                        }
                    }
                }
            }
        }
    }

    /// Writes the band's `A dy A^T`, in blocks of `[point][tile][OC_BLOCK]`.
    #[inline(always)]
    fn transform_gradient<S: Simd>(&self, simd: S, band: Band, u: &mut [f32]) {
        let (zero, across) = (simd.splat_f32s(0.0), self.layout.across);
        let dy = self.run.dy;
        let stride = gradient_stride::<S>(self.layout.rows * across);
        // The last vector of a phase may reach beyond it.
        let phase = across * OC_BLOCK + S::F32_LANES;
        let mut staged = Scratch::take(band.rows * TILE * TILE * phase);
        // What lies beyond the edges stays zero.
        staged.fill(0.0);
        for (block, u) in u.chunks_exact_mut(POINTS * stride).enumerate() {
            let first = self.first_oc + block * OC_BLOCK;
            let end = self.run.weight.n().min(first + OC_BLOCK);
            for c in (first..end).step_by(4) {
                let lines = staged.chunks_exact_mut(TILE * phase).zip(band.first * TILE..dy.shape.h());
                for (staged, y) in lines {
                    let four = four_rows(&dy, band.n, [c, end], y);
                    side_by_side(four, (end - c).min(4), &mut staged[c - first..], OC_BLOCK, phase);
                }
            }
            for y in 0..band.rows {
                for at in (0..across * OC_BLOCK).step_by(S::F32_LANES) {
                    let mut half = [[zero; PATCH]; TILE];
                    for (i, half) in half.iter_mut().enumerate() {
                        let mut line = [zero; TILE];
                        for (j, value) in line.iter_mut().enumerate() {
                            *value = load::<S>(&staged, ((y * TILE + i) * TILE + j) * phase + at);
                        }
                        *half = spread(simd, line);
                    }
                    for x in 0..PATCH {
                        let mut column = [zero; TILE];
                        for (value, half) in column.iter_mut().zip(&half) {
                            *value = half[x];
                        }
                        for (point, value) in spread(simd, column).iter().enumerate() {
                            let point = point * PATCH + x;
                            store::<S>(u, point * stride + y * across * OC_BLOCK + at, *value);
                        }
                    }
                }
            }
        }
    }

    /// Adds the band's products.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, simd: S, band: Band, v: &[f32], u: &[f32]) {
        let stride = gradient_stride::<S>(self.layout.rows * self.layout.across);
        let block_len = self.layout.block_len();
        for (first, width) in panels::<S>(self.layout.columns) {
            let v = &v[POINTS * band.tiles * first..];
            for (point, b) in v.chunks_exact(band.tiles * width).take(POINTS).enumerate() {
                for (sums, u) in self.sums.chunks_exact_mut(block_len).zip(u.chunks_exact(POINTS * stride)) {
                    simd.vectorize(Product {
                        a: &u[point * stride..][..band.tiles * OC_BLOCK],
                        b,
                        vectors: width / S::F32_LANES,
                        c: &mut sums[OC_BLOCK * (POINTS * first + point * width)..],
                        c_stride: width,
                        accumulate: true,
                    });
                }
            }
        }
    }
}

/// `A y` along one axis.
#[inline(always)]
fn spread<S: Simd>(simd: S, y: [S::f32s; TILE]) -> [S::f32s; PATCH] {
    let near = simd.add_f32s(y[0], y[2]);
    let near_odd = simd.add_f32s(y[1], y[3]);
    let far = times(simd, 4.0, y[2], y[0]);
    let far_odd = times(simd, 4.0, y[3], y[1]);
    [
        y[0],
        simd.add_f32s(near, near_odd),
        simd.sub_f32s(near, near_odd),
        times(simd, 2.0, far_odd, far),
        times(simd, -2.0, far_odd, far),
        y[3],
    ]
}

/// `G^T m` along one axis.
#[inline(always)]
fn gather<S: Simd>(simd: S, m: [S::f32s; PATCH]) -> [S::f32s; 3] {
    let near = simd.add_f32s(m[1], m[2]);
    let near_odd = simd.sub_f32s(m[2], m[1]);
    let far = simd.add_f32s(m[3], m[4]);
    let far_odd = simd.sub_f32s(m[3], m[4]);
    let sixth = simd.splat_f32s(1.0 / 6.0);
    [
        times(simd, 0.25, m[0], times(simd, 1.0 / 24.0, far, simd.neg_f32s(simd.mul_f32s(sixth, near)))),
        times(simd, 1.0 / 12.0, far_odd, simd.mul_f32s(sixth, near_odd)),
        times(simd, 1.0 / 6.0, simd.sub_f32s(far, near), m[5]),
    ]
}

/// Adds the parts up and transforms them back, for a block of output channels.
struct TransformBack<'a> {
    parts: &'a [f32],
    part_len: usize,
    /// Where in a part the block's sums begin.
    block: usize,
    columns: usize,
    ic: usize,
    /// `[oc][ic][3][3]`.
    grad: &'a mut [f32],
}

impl WithSimd for TransformBack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let mut taps = Scratch::take(9 * lanes);
        for (first, width) in panels::<S>(self.columns) {
            for (o, grad) in self.grad.chunks_exact_mut(self.ic * 9).enumerate() {
                for at in (0..width).step_by(lanes).filter(|at| first + at < self.ic) {
                    let mut sums = [[zero; PATCH]; PATCH];
                    for part in self.parts.chunks_exact(self.part_len) {
                        for (point, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                            let place = OC_BLOCK * (POINTS * first + point * width) + o * width + at;
                            *sum = simd.add_f32s(*sum, load::<S>(part, self.block + place));
                        }
                    }
                    let mut half = [[zero; PATCH]; 3];
                    for x in 0..PATCH {
                        let mut column = [zero; PATCH];
                        for (value, sums) in column.iter_mut().zip(&sums) {
                            *value = sums[x];
                        }
                        for (half, value) in half.iter_mut().zip(gather(simd, column)) {
                            half[x] = value;
                        }
                    }
                    for (i, half) in half.into_iter().enumerate() {
                        for (j, value) in gather(simd, half).into_iter().enumerate() {
                            store::<S>(&mut taps, (3 * i + j) * lanes, value);
                        }
                    }
                    let kernels = grad[(first + at) * 9..].as_chunks_mut::<9>().0;
                    for (lane, kernel) in kernels.iter_mut().take(lanes).enumerate() {
                        for (tap, value) in kernel.iter_mut().enumerate() {
                            *value = taps[tap * lanes + lane];
                        }
                    }
                }
            }
        }
    }
}
