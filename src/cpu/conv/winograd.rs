//! 3x3 convolutions by Winograd's F(4x4, 3x3): transformed input tiles are multiplied with transformed kernels, summed
//! over channels, and transformed back.
//!
//! As many tiles as a vector has lanes, such as sixteen, form a *group*, and up to three groups a *panel*. A panel's
//! transformed input stays in the L2 cache while all output channels are computed from it, [`OC_CHUNK`] at a time.

use super::epilogue::Output;
use super::microkernel::{OC_BLOCK, PANEL_VECTORS, Product};
use super::scratch::Scratch;
use super::source::Source;
use super::{ConvSpec, Run};
use crate::tensor::Shape;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Outputs of a tile along one axis.
pub(super) const TILE: usize = 4;
/// Inputs of a tile along one axis, also transformed values along one axis.
pub(super) const PATCH: usize = 6;
/// Transformed values of a tile.
pub(super) const POINTS: usize = PATCH * PATCH;
/// Output channels whose products are held before they are transformed back.
const OC_CHUNK: usize = 32;
/// Input channels whose kernels are transformed into a small buffer before they are written to their places.
const PACKED: usize = 16;
/// Input channels whose products are summed before the next output channels have their turn, so that both factors stay
/// in the L2 cache.
const IC_CHUNK: usize = 128;

/// Whether such a convolution can be computed this way.
pub(super) fn supports(spec: &ConvSpec) -> bool {
    spec.kernel == [3, 3] && spec.stride == [1, 1] && spec.dilation == [1, 1] && spec.groups == 1
}

/// Whether it is faster than a plain matrix product: there must be enough channels to pay for the transforms, and
/// enough tiles to fill vectors.
pub(super) fn pays(spec: &ConvSpec, input: Shape, weight: Shape) -> bool {
    let Some(out) = spec.output_shape(input, weight) else {
        return false;
    };
    let groups = Tiling::new(out, weight.c(), 16).groups();
    let products = groups * 16 * POINTS;
    let direct = out.n() * out.plane() * 9;
    weight.c() >= 8 && weight.n() >= 8 && 2 * products <= direct
}

/// Elements of the packed weights: `[oc chunk][point][oc block][ic][OC_BLOCK]`, output channels filled up with zeros.
pub(super) fn packed_len(weight: Shape) -> usize {
    weight.n().div_ceil(OC_BLOCK) * OC_BLOCK * weight.c() * POINTS
}

/// Transforms and packs a weight `[oc, ic, 3, 3]`.
pub(super) fn pack_into(shape: Shape, weight: &[f32], packed: &mut [f32]) {
    let chunks = packed.par_chunks_mut(OC_CHUNK * shape.c() * POINTS).enumerate();
    chunks.for_each(|(chunk, packed)| Arch::new().dispatch(Pack { shape, weight, first: chunk * OC_CHUNK, packed }));
}

/// Packs one chunk of output channels, from channel `first` on: `[point][oc block][ic][OC_BLOCK]`.
struct Pack<'a> {
    shape: Shape,
    weight: &'a [f32],
    first: usize,
    packed: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (oc, ic) = (self.shape.n(), self.shape.c());
        let channels = self.packed.len() / (ic * POINTS);
        // The 36 points lie far apart in `packed`, often by a power of two, so writing them interleaved would thrash
        // one cache set: they are collected here and written in runs.
        let mut near = [[[0.0; OC_BLOCK]; PACKED]; POINTS];
        for block in (0..channels).step_by(OC_BLOCK) {
            for start in (0..ic).step_by(PACKED) {
                let inputs = start..ic.min(start + PACKED);
                for i in inputs.clone() {
                    let mut taps = [[0.0; OC_BLOCK]; 9];
                    for o in 0..OC_BLOCK.min(oc - self.first - block) {
                        let kernel = &self.weight[((self.first + block + o) * ic + i) * 9..][..9];
                        for (taps, &value) in taps.iter_mut().zip(kernel) {
                            taps[o] = f64::from(value);
                        }
                    }
                    for (near, point) in near.iter_mut().zip(&transform_kernels(simd, &taps)) {
                        for (near, &value) in near[i - start].iter_mut().zip(point) {
                            *near = value as f32;
                        }
                    }
                }
                for (point, near) in near.iter().enumerate() {
                    let at = (point * channels + block) * ic + start * OC_BLOCK;
                    let values = near[..inputs.len()].as_flattened();
                    self.packed[at..][..values.len()].copy_from_slice(values);
                }
            }
        }
    }
}

/// `G g G^T` of a block of 3x3 kernels, in f64, which takes little time.
#[inline(always)]
fn transform_kernels<S: Simd>(simd: S, taps: &[[f64; OC_BLOCK]; 9]) -> [[f64; OC_BLOCK]; POINTS] {
    let mut points = [[0.0; OC_BLOCK]; POINTS];
    let zero = simd.splat_f64s(0.0);
    for at in 0..OC_BLOCK / S::F64_LANES {
        let mut half = [[zero; 3]; PATCH];
        for x in 0..3 {
            let mut column = [zero; 3];
            for (y, value) in column.iter_mut().enumerate() {
                *value = S::as_simd_f64s(&taps[3 * y + x]).0[at];
            }
            for (half, value) in half.iter_mut().zip(transform_kernel(simd, column)) {
                half[x] = value;
            }
        }
        for (points, half) in points.chunks_exact_mut(PATCH).zip(half) {
            for (point, value) in points.iter_mut().zip(transform_kernel(simd, half)) {
                S::as_mut_simd_f64s(point).0[at] = value;
            }
        }
    }
    points
}

/// `G g` along one axis.
#[inline(always)]
fn transform_kernel<S: Simd>(simd: S, g: [S::f64s; 3]) -> [S::f64s; PATCH] {
    let (sixth, minus_sixth) = (simd.splat_f64s(1.0 / 6.0), simd.splat_f64s(-1.0 / 6.0));
    let near = simd.mul_f64s(minus_sixth, simd.add_f64s(g[0], g[2]));
    let near_odd = simd.mul_f64s(minus_sixth, g[1]);
    let far = simd.mul_add_e_f64s(simd.splat_f64s(1.0 / 24.0), g[0], simd.mul_f64s(sixth, g[2]));
    let far_odd = simd.mul_f64s(simd.splat_f64s(1.0 / 12.0), g[1]);
    [
        simd.mul_f64s(simd.splat_f64s(1.0 / 4.0), g[0]),
        simd.add_f64s(near, near_odd),
        simd.sub_f64s(near, near_odd),
        simd.add_f64s(far, far_odd),
        simd.sub_f64s(far, far_odd),
        g[2],
    ]
}

/// How the output is cut into groups of tiles, one tile per lane.
struct Tiling {
    /// Tiles of a group side by side.
    across: usize,
    /// Tiles of a group below each other.
    down: usize,
    groups_across: usize,
    groups_down: usize,
    batch: usize,
    /// Most groups of a panel.
    most: usize,
}

impl Tiling {
    /// The tiling with the fewest groups; among equals the one with the longest rows.
    fn new(out: Shape, ic: usize, lanes: usize) -> Self {
        let (rows, columns) = (out.h().div_ceil(TILE), out.w().div_ceil(TILE));
        // A vector of pixels must not cross from one row of tiles to the next.
        let narrowest = (lanes / TILE).max(1);
        let mut best: Option<Self> = None;
        let mut across = lanes;
        while across >= narrowest {
            let tiling = Self {
                across,
                down: lanes / across,
                groups_across: columns.div_ceil(across),
                groups_down: rows.div_ceil(lanes / across),
                batch: out.n(),
                // With so few channels the transformed tiles of two groups fit into the L2 cache. With more they do not
                // anyway, and wider panels are better: they pass fewer times over the weights.
                most: if ic <= IC_CHUNK { 2 } else { PANEL_VECTORS },
            };
            if best.as_ref().is_none_or(|b| tiling.groups() < b.groups()) {
                best = Some(tiling);
            }
            across /= 2;
        }
        best.expect("a vector has at least one lane")
    }

    fn groups(&self) -> usize {
        self.batch * self.groups_across * self.groups_down
    }

    fn panels(&self) -> usize {
        self.groups().div_ceil(self.most)
    }

    /// The groups of a panel; panels differ by at most one group.
    fn panel(&self, panel: usize) -> Range<usize> {
        let (groups, panels) = (self.groups(), self.panels());
        panel * groups / panels..(panel + 1) * groups / panels
    }

    /// Batch item, first output row and first output column of a group.
    fn corner(&self, group: usize) -> [usize; 3] {
        let column = group % self.groups_across;
        let row = group / self.groups_across % self.groups_down;
        let item = group / (self.groups_across * self.groups_down);
        [item, row * self.down * TILE, column * self.across * TILE]
    }

    /// Where in a group's rows of pixels, `stride` apart, its four vectors of pixels begin.
    #[inline(always)]
    fn vectors(&self, lanes: usize, stride: usize) -> [usize; TILE] {
        std::array::from_fn(|j| {
            let (tile, phase) = (j * lanes / TILE, j * lanes % TILE);
            tile / self.across * TILE * stride + tile % self.across * TILE + phase
        })
    }
}

/// Runs a convolution whose weights [`pack_into`] packed.
pub(super) fn run<S: Simd>(simd: S, run: Run) {
    let tiling = Tiling::new(run.out.shape, run.conv.weight_shape.c(), S::F32_LANES);
    let job = Job { simd, run, tiling, ic: run.conv.weight_shape.c(), oc: run.conv.weight_shape.n() };
    if job.tiling.panels() >= 4 * rayon::current_num_threads() {
        job.by_panels();
    } else {
        job.by_channels();
    }
}

struct Job<'a, S> {
    simd: S,
    run: Run<'a>,
    tiling: Tiling,
    ic: usize,
    oc: usize,
}

impl<S: Simd> Job<'_, S> {
    /// For many tiles: every thread computes whole panels.
    fn by_panels(&self) {
        (0..self.tiling.panels()).into_par_iter().for_each(|panel| {
            let width = self.tiling.panel(panel).len() * S::F32_LANES;
            let v = &mut *Scratch::take(POINTS * self.ic * width);
            for first in (0..self.ic).step_by(IC_CHUNK) {
                let channels = first..self.ic.min(first + IC_CHUNK);
                let v = &mut v[POINTS * first * width..][..POINTS * channels.len() * width];
                self.transform(panel, channels, v);
            }
            for chunk in 0..self.oc.div_ceil(OC_CHUNK) {
                self.multiply(panel, chunk, IC_CHUNK, v);
            }
        });
    }

    /// For few tiles: the threads transform all panels together, then each computes some output channels.
    fn by_channels(&self) {
        // Smaller pieces give more threads work.
        let piece = IC_CHUNK.min(self.ic.div_ceil(rayon::current_num_threads()));
        let widths: Vec<usize> =
            (0..self.tiling.panels()).map(|panel| self.tiling.panel(panel).len() * S::F32_LANES).collect();
        let total: usize = widths.iter().sum();
        let v = &mut *Scratch::take(POINTS * self.ic * total);
        let mut pieces = Vec::new();
        let mut rest = &mut *v;
        for (panel, width) in widths.iter().enumerate() {
            for first in (0..self.ic).step_by(piece) {
                let channels = first..self.ic.min(first + piece);
                let (v, after) = rest.split_at_mut(POINTS * channels.len() * width);
                pieces.push((panel, channels, v));
                rest = after;
            }
        }
        pieces.into_par_iter().for_each(|(panel, channels, v)| self.transform(panel, channels, v));
        let v = &*v;
        let chunks = self.oc.div_ceil(OC_CHUNK);
        (0..chunks).into_par_iter().for_each(|chunk| {
            let mut rest = v;
            for (panel, width) in widths.iter().enumerate() {
                let (v, after) = rest.split_at(POINTS * self.ic * width);
                self.multiply(panel, chunk, piece, v);
                rest = after;
            }
        });
    }

    /// Writes the transformed tiles of some input channels of a panel to `v`, `[point][channel][group][lane]`.
    fn transform(&self, panel: usize, channels: Range<usize>, v: &mut [f32]) {
        self.simd.vectorize(Transform {
            source: self.run.source,
            padding: self.run.conv.spec.padding,
            tiling: &self.tiling,
            groups: self.tiling.panel(panel),
            channels,
            v,
        });
    }

    /// Multiplies a transformed panel, `[ic piece][point][channel][group][lane]`, with a chunk of output channels and
    /// writes the outputs.
    fn multiply(&self, panel: usize, chunk: usize, piece: usize, v: &[f32]) {
        let groups = self.tiling.panel(panel);
        let width = groups.len() * S::F32_LANES;
        let first = chunk * OC_CHUNK;
        let blocks = (self.oc - first).min(OC_CHUNK).div_ceil(OC_BLOCK);
        let channels = blocks * OC_BLOCK;
        let u = &self.run.conv.packed[first * self.ic * POINTS..][..channels * self.ic * POINTS];
        let m = &mut *Scratch::take(POINTS * channels * width);
        for (point, m) in m.chunks_exact_mut(channels * width).enumerate() {
            for start in (0..self.ic).step_by(piece) {
                let len = piece.min(self.ic - start);
                let b = &v[(POINTS * start + point * len) * width..][..len * width];
                for (block, c) in m.chunks_exact_mut(OC_BLOCK * width).enumerate() {
                    let a = (point * blocks + block) * self.ic + start;
                    self.simd.vectorize(Product {
                        a: &u[a * OC_BLOCK..][..len * OC_BLOCK],
                        b,
                        vectors: groups.len(),
                        c,
                        c_stride: width,
                        accumulate: start > 0,
                    });
                }
            }
        }
        self.simd.vectorize(TransformBack {
            out: self.run.out,
            tiling: &self.tiling,
            groups,
            channels: first..self.oc.min(first + channels),
            m,
            m_stride: channels * width,
        });
    }
}

/// Values that begin on a cache line: vectors kept on the stack must not straddle two.
#[repr(align(64))]
struct Aligned<T>(T);

/// The input transform, see [`Job::transform`].
struct Transform<'a> {
    source: &'a Source<'a>,
    padding: [usize; 2],
    tiling: &'a Tiling,
    groups: Range<usize>,
    channels: Range<usize>,
    v: &'a mut [f32],
}

impl WithSimd for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tiling { across, down, .. } = *self.tiling;
        let lanes = S::F32_LANES;
        let width = self.groups.len() * lanes;
        let point_stride = self.channels.len() * width;
        let rows = down * TILE + 2;
        let columns = across * TILE + 2;
        // The last vector reads two pixels more than the last tile needs.
        let staged_stride = columns + 2;
        let mut half = Aligned([[simd.splat_f32s(0.0); PATCH]; PATCH]);
        let staged = &mut *Scratch::take(rows * staged_stride + lanes);
        let mut corners = [(0, [0; 2]); PANEL_VECTORS];
        for (corner, group) in corners.iter_mut().zip(self.groups.clone()) {
            let [n, row, column] = self.tiling.corner(group);
            let place = [row, column].map(|x| x as isize);
            *corner = (n, [place[0] - self.padding[0] as isize, place[1] - self.padding[1] as isize]);
        }
        // All groups of a channel come before the next channel: they are neighbours in memory.
        for (i, c) in self.channels.clone().enumerate() {
            for (g, &(n, corner)) in corners[..self.groups.len()].iter().enumerate() {
                let stored = self.source.stored([n, c], corner, [rows, columns], 2);
                let (pixels, stride) = match stored {
                    Some(pixels) => (pixels, self.source.x.shape.w()),
                    None => {
                        for y in 0..rows {
                            let out = &mut staged[y * staged_stride..];
                            let from = [corner[0] + y as isize, corner[1]];
                            self.source.fill(simd, [n, c], from, out, staged_stride);
                        }
                        (&*staged, staged_stride)
                    }
                };
                let v = &mut self.v[i * width + g * lanes..];
                let vectors = self.tiling.vectors(lanes, stride);
                transform_group(simd, pixels, stride, vectors, &mut half.0, v, point_stride);
            }
        }
    }
}

/// `B^T d B` of one group's patches.
#[inline(always)]
fn transform_group<S: Simd>(
    simd: S,
    pixels: &[f32],
    stride: usize,
    vectors: [usize; TILE],
    half: &mut [[S::f32s; PATCH]; PATCH],
    v: &mut [f32],
    point_stride: usize,
) {
    let zero = simd.splat_f32s(0.0);
    for (y, half) in half.iter_mut().enumerate() {
        let (mut first, mut shifted) = ([zero; TILE], [zero; TILE]);
        for j in 0..TILE {
            first[j] = load::<S>(pixels, vectors[j] + y * stride);
            shifted[j] = load::<S>(pixels, vectors[j] + y * stride + TILE);
        }
        let [a, b, c, d] = simd.deinterleave_shfl_f32s(first);
        let [e, f, _, _] = simd.deinterleave_shfl_f32s(shifted);
        *half = transform_patch(simd, [a, b, c, d, e, f]);
    }
    for x in 0..PATCH {
        let mut column = [zero; PATCH];
        for (value, half) in column.iter_mut().zip(&*half) {
            *value = half[x];
        }
        let column = transform_patch(simd, column);
        for (y, &value) in column.iter().enumerate() {
            store::<S>(v, (y * PATCH + x) * point_stride, value);
        }
    }
}

/// `B^T d` along one axis.
#[inline(always)]
pub(super) fn transform_patch<S: Simd>(simd: S, d: [S::f32s; PATCH]) -> [S::f32s; PATCH] {
    let even = times(simd, -4.0, d[2], d[4]);
    let odd = times(simd, -4.0, d[1], d[3]);
    let even_half = simd.sub_f32s(d[4], d[2]);
    let odd_half = simd.sub_f32s(d[3], d[1]);
    [
        times(simd, 4.0, simd.sub_f32s(d[0], d[2]), even_half),
        simd.add_f32s(even, odd),
        simd.sub_f32s(even, odd),
        times(simd, 2.0, odd_half, even_half),
        times(simd, -2.0, odd_half, even_half),
        times(simd, -4.0, odd_half, simd.sub_f32s(d[5], d[3])),
    ]
}

/// The output transform and the epilogue for some output channels of a panel, from `[point][channel][group][lane]`.
struct TransformBack<'a> {
    out: &'a Output<'a>,
    tiling: &'a Tiling,
    groups: Range<usize>,
    channels: Range<usize>,
    m: &'a [f32],
    m_stride: usize,
}

impl WithSimd for TransformBack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tiling { across, down, .. } = *self.tiling;
        let lanes = S::F32_LANES;
        let width = self.groups.len() * lanes;
        let stride = across * TILE;
        let shape = self.out.shape;
        let vectors = self.tiling.vectors(lanes, stride);
        let mut half = Aligned([[simd.splat_f32s(0.0); PATCH]; TILE]);
        let rows = &mut *Scratch::take(TILE * TILE * lanes);
        for (i, c) in self.channels.clone().enumerate() {
            for (g, group) in self.groups.clone().enumerate() {
                let m = &self.m[i * width + g * lanes..];
                transform_group_back(simd, m, self.m_stride, vectors, stride, &mut half.0, rows);
                let [n, y, x] = self.tiling.corner(group);
                let height = (down * TILE).min(shape.h() - y);
                // If rows are as wide as the image, they follow one another and are written as one run of pixels.
                let (runs, len) =
                    if shape.w() == stride { (1, height * stride) } else { (height, stride.min(shape.w() - x)) };
                for run in 0..runs {
                    let pixel = (y + run) * shape.w() + x;
                    // SAFETY: each group and each chunk of channels is one task's.
                    unsafe { self.out.write([n, c, pixel], &rows[run * stride..][..len]) };
                }
            }
        }
    }
}

/// `A^T m A` of one group's tiles, as rows of pixels.
#[inline(always)]
fn transform_group_back<S: Simd>(
    simd: S,
    m: &[f32],
    m_stride: usize,
    vectors: [usize; TILE],
    stride: usize,
    half: &mut [[S::f32s; PATCH]; TILE],
    rows: &mut [f32],
) {
    for x in 0..PATCH {
        let mut column = [simd.splat_f32s(0.0); PATCH];
        for (y, value) in column.iter_mut().enumerate() {
            *value = load::<S>(m, (y * PATCH + x) * m_stride);
        }
        let column = transform_tile(simd, column);
        for (half, &value) in half.iter_mut().zip(&column) {
            half[x] = value;
        }
    }
    for (y, half) in half.iter().enumerate() {
        let pixels = simd.interleave_shfl_f32s(transform_tile(simd, *half));
        for j in 0..TILE {
            store::<S>(rows, vectors[j] + y * stride, pixels[j]);
        }
    }
}

/// `A^T m` along one axis.
#[inline(always)]
fn transform_tile<S: Simd>(simd: S, m: [S::f32s; PATCH]) -> [S::f32s; TILE] {
    let near = simd.add_f32s(m[1], m[2]);
    let near_odd = simd.sub_f32s(m[1], m[2]);
    let far = simd.add_f32s(m[3], m[4]);
    let far_odd = simd.sub_f32s(m[3], m[4]);
    [
        simd.add_f32s(simd.add_f32s(m[0], near), far),
        times(simd, 2.0, far_odd, near_odd),
        times(simd, 4.0, far, near),
        times(simd, 8.0, far_odd, simd.add_f32s(near_odd, m[5])),
    ]
}

/// `k * a + b`.
#[inline(always)]
pub(super) fn times<S: Simd>(simd: S, k: f32, a: S::f32s, b: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(k), a, b)
}

#[inline(always)]
pub(super) fn load<S: Simd>(from: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&from[at..][..S::F32_LANES]).0[0]
}

#[inline(always)]
pub(super) fn store<S: Simd>(to: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[at..][..S::F32_LANES]).0[0] = value;
}
