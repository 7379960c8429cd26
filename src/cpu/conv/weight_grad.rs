//! The gradient with respect to the weight: products of the input and the gradient with respect to the output, summed
//! over pixels.
//!
//! Both are laid out pixel by pixel, with a vector of channels at each. The gradient of a tap is then a product of two
//! matrices over pixels, and other taps are the same product with the input begun further on. Parts of the image have
//! sums of their own, which are joined in order; how many parts there are depends on the shapes alone.

use super::fft_conv;
use super::fft_grad;
use super::microkernel::{OC_BLOCK, PANEL_VECTORS, Product};
use super::scratch::Scratch;
use super::source::{Source, side_by_side};
use super::winograd_grad;
use super::{Algorithm, ConvSpec};
use crate::cpu::view::View;
use crate::tensor::Shape;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Parts of the image that have sums of their own, if there are enough pixels.
const PARTS: usize = 16;
/// Most elements of the sums of all parts, unless two parts need more.
const SUMS: usize = 5 << 20;
/// Values of the input that are laid out at a time, few enough for the L2 cache.
const STAGED: usize = 96 << 10;
/// Pixels whose products are summed before the next output channels have their turn, so that both factors stay in the
/// L1 cache.
const PIXELS: usize = 128;
/// Blocks of output channels of a task.
const BLOCKS: usize = 8;
/// Most pairs of input and output channels in a group for which each kernel is computed by itself.
const FEW: usize = 4;

/// The gradient with respect to the weight, `[oc, ic / groups, kh, kw]`, of a convolution of `x`; `dy` is the gradient
/// with respect to its result.
///
/// # Panics
/// If the shapes do not fit each other, see [`ConvSpec::output_shape`].
pub(crate) fn conv2d_weight_grad(spec: &ConvSpec, x: View, dy: View, weight: Shape) -> Vec<f32> {
    assert_eq!(spec.output_shape(x.shape, weight), Some(dy.shape), "the gradient's shape");
    Algorithm::choose_for_weight_grad(spec, dy.shape, weight).weight_grad(Arch::new(), spec, x, dy, weight)
}

impl Algorithm {
    /// The algorithm used for the gradient with respect to a weight `[oc, ic / groups, kh, kw]`, where `dy`, the
    /// gradient with respect to the result, is `[n, oc, oh, ow]`.
    pub(crate) fn choose_for_weight_grad(spec: &ConvSpec, dy: Shape, weight: Shape) -> Self {
        if weight.n() / spec.groups * weight.c() <= FEW {
            Self::Direct
        } else if winograd_grad::pays(spec, dy, weight) {
            Self::Winograd
        } else if fft_conv::pays(spec, dy, weight) {
            Self::Fft
        } else {
            Self::Gemm
        }
    }

    /// [`conv2d_weight_grad`] by this algorithm on the given instruction set.
    fn weight_grad(self, arch: Arch, spec: &ConvSpec, x: View, dy: View, weight: Shape) -> Vec<f32> {
        arch.dispatch(Run { algorithm: self, spec, source: &Source::new(spec, x), dy, weight })
    }
}

/// The gradient with respect to the weight, to be computed by `algorithm`.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    algorithm: Algorithm,
    pub(super) spec: &'a ConvSpec,
    pub(super) source: &'a Source<'a>,
    pub(super) dy: View<'a>,
    pub(super) weight: Shape,
}

impl WithSimd for Run<'_> {
    type Output = Vec<f32>;

    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        match self.algorithm {
            Algorithm::Winograd => winograd_grad::run(simd, self),
            Algorithm::Fft => fft_grad::run(simd, self),
            Algorithm::Gemm => by_products(simd, self),
            Algorithm::Direct => by_sums(simd, self),
        }
    }
}

/// Into how many parts an image of `units` pieces is divided, where sums have `len` elements: a power of two, which
/// threads share evenly.
pub(super) fn parts(units: usize, len: usize) -> usize {
    let most = units.min(PARTS).min((SUMS / len).max(2));
    if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 }
}

/// Divides `columns` columns, a multiple of a vector's lanes, into panels as even as can be: the first column of each
/// and how many it has.
#[inline(always)]
pub(super) fn panels<S: Simd>(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let vectors = columns / S::F32_LANES;
    let panels = vectors.div_ceil(PANEL_VECTORS);
    let start = move |panel: usize| panel * vectors / panels * S::F32_LANES;
    (0..panels).map(move |i| (start(i), start(i + 1) - start(i)))
}

/// The gradient by products of matrices.
fn by_products<S: Simd>(simd: S, run: Run) -> Vec<f32> {
    let layout = Layout::new::<S>(&run);
    let [group_oc, groups] = [run.weight.n() / run.spec.groups, run.spec.groups];
    let block_len = OC_BLOCK * layout.taps * layout.columns;
    let group_len = group_oc.div_ceil(OC_BLOCK) * block_len;
    let units = run.dy.shape.n() * layout.bands;
    let parts = parts(units, groups * group_len);
    let sums = &mut *Scratch::take(parts * groups * group_len);
    let tasks = sums.par_chunks_exact_mut(group_len).enumerate().flat_map(|(i, sums)| {
        let slices = sums.par_chunks_mut(BLOCKS * block_len).enumerate();
        slices.map(move |(slice, sums)| (i % groups, i / groups, slice * BLOCKS * OC_BLOCK, sums))
    });
    tasks.for_each(|(group, part, first_oc, sums)| {
        let units = part * units / parts..(part + 1) * units / parts;
        simd.vectorize(Task { run, layout: &layout, units, group, first_oc, sums });
    });
    let sums = &*sums;
    let [_, ic, kh, kw] = run.weight.0;
    let mut grad = vec![0.0; run.weight.numel()];
    grad.par_chunks_exact_mut(ic * kh * kw).enumerate().for_each(|(oc, grad)| {
        let (group, o) = (oc / group_oc, oc % group_oc);
        let row = group * group_len + o / OC_BLOCK * block_len + o % OC_BLOCK * layout.columns;
        for part in sums.chunks_exact(groups * group_len) {
            for tap in 0..layout.taps {
                let row = &part[row + tap * OC_BLOCK * layout.columns..];
                grad[tap..].iter_mut().step_by(layout.taps).zip(row).for_each(|(sum, v)| *sum += v);
            }
        }
    });
    grad
}

/// How input and gradient are laid out for the products.
struct Layout {
    /// Whether each tap of a channel counts as a channel, which is done where there are too few channels to fill a
    /// vector.
    folded: bool,
    /// Taps that do not count as channels, and the kernel that they make up.
    taps: usize,
    kernel: [usize; 2],
    /// Channels (of one group), and the columns of a product: the channels filled up to whole vectors.
    channels: usize,
    columns: usize,
    /// Phases of rows and of columns: they are sorted by their remainder modulo the stride, as far as taps need them.
    phases: [usize; 2],
    /// Pixels of a row, output rows of a band, bands of an image, and pixels of a phase.
    row_len: usize,
    rows: usize,
    bands: usize,
    phase_len: usize,
}

impl Layout {
    fn new<S: Simd>(run: &Run) -> Self {
        let spec = run.spec;
        let [_, ic, kh, kw] = run.weight.0;
        let folded = ic < S::F32_LANES / 2;
        let kernel = if folded { [1; 2] } else { [kh, kw] };
        let channels = if folded { ic * kh * kw } else { ic };
        let reach: [usize; 2] = std::array::from_fn(|axis| spec.dilation[axis] * (kernel[axis] - 1));
        let phases: [usize; 2] = std::array::from_fn(|axis| spec.stride[axis].min(reach[axis] + 1));
        let columns = channels.next_multiple_of(S::F32_LANES);
        let [height, width] = [run.dy.shape.h(), run.dy.shape.w()];
        let row_len = width + reach[1] / spec.stride[1];
        let extra = reach[0] / spec.stride[0];
        let fitting = STAGED / (columns * phases[0] * phases[1] * row_len);
        let rows = fitting.saturating_sub(extra).clamp(1, height);
        Self {
            folded,
            taps: kernel[0] * kernel[1],
            kernel,
            channels,
            columns,
            phases,
            row_len,
            rows,
            bands: height.div_ceil(rows),
            phase_len: (rows + extra) * row_len,
        }
    }
}

/// The sums over some bands, for some output channels of a group.
struct Task<'a> {
    run: Run<'a>,
    layout: &'a Layout,
    units: Range<usize>,
    group: usize,
    first_oc: usize,
    /// `[block][tap][OC_BLOCK][columns]`.
    sums: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Layout { columns, taps, phases, phase_len, row_len, .. } = *self.layout;
        let block_len = OC_BLOCK * taps * columns;
        let [_, _, height, width] = self.run.dy.shape.0;
        let staged = &mut *Scratch::take(phases[0] * phases[1] * phase_len * columns);
        let grads = &mut *Scratch::take(self.sums.len() / block_len * self.layout.rows * row_len * OC_BLOCK);
        // What lies between the rows stays zero. Columns and output channels beyond the last have any value.
        grads.fill(0.0);
        self.sums.fill(0.0);
        for unit in self.units.clone() {
            let (n, first) = (unit / self.layout.bands, unit % self.layout.bands * self.layout.rows);
            let rows = first..height.min(first + self.layout.rows);
            self.stage_input(simd, n, &rows, staged);
            self.stage_gradient(n, &rows, grads);
            let pixels = (rows.len() - 1) * row_len + width;
            for start in (0..pixels).step_by(PIXELS) {
                self.multiply(simd, start..pixels.min(start + PIXELS), staged, grads);
            }
        }
    }
}

impl Task<'_> {
    /// Adds the products over some pixels of a band.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, simd: S, pixels: Range<usize>, staged: &[f32], grads: &[f32]) {
        let Layout { columns, taps, phases, phase_len, row_len, .. } = *self.layout;
        let Run { spec, .. } = self.run;
        let band_len = self.layout.rows * row_len * OC_BLOCK;
        for (first, width) in panels::<S>(columns) {
            let panel = &staged[phases[0] * phases[1] * phase_len * first..];
            for tap in 0..taps {
                let place = [tap / self.layout.kernel[1], tap % self.layout.kernel[1]];
                let shift: [usize; 2] = std::array::from_fn(|axis| place[axis] * spec.dilation[axis]);
                let phase = shift[0] % spec.stride[0] * phases[1] + shift[1] % spec.stride[1];
                let at = phase * phase_len + shift[0] / spec.stride[0] * row_len + shift[1] / spec.stride[1];
                let b = &panel[(at + pixels.start) * width..][..pixels.len() * width];
                let blocks = self.sums.chunks_exact_mut(OC_BLOCK * taps * columns);
                for (sums, grads) in blocks.zip(grads.chunks_exact(band_len)) {
                    simd.vectorize(Product {
                        a: &grads[pixels.start * OC_BLOCK..pixels.end * OC_BLOCK],
                        b,
                        vectors: width / S::F32_LANES,
                        c: &mut sums[tap * OC_BLOCK * columns + first..],
                        c_stride: columns,
                        accumulate: true,
                    });
                }
            }
        }
    }

    /// Lays out the input that some output rows read, in panels of `[phase][pixel][column]`. Columns beyond the last
    /// channel have any value.
    #[inline(always)]
    fn stage_input<S: Simd>(&self, simd: S, n: usize, rows: &Range<usize>, staged: &mut [f32]) {
        let Layout { columns, phases, phase_len, row_len, .. } = *self.layout;
        let Run { spec, source, .. } = self.run;
        let [down, across] = spec.stride;
        let lines = rows.len() + phase_len / row_len - self.layout.rows;
        let len = row_len * across;
        let mut staged_rows = Scratch::take(4 * len);
        for (first, width) in panels::<S>(columns) {
            let panel = &mut staged[phases[0] * phases[1] * phase_len * first..];
            let end = self.layout.channels.min(first + width);
            for column in (first..end).step_by(4) {
                for line in 0..lines * phases[0] {
                    let (y, phase) = (line / phases[0], line % phases[0]);
                    for (i, staged) in staged_rows.chunks_exact_mut(len).enumerate().take(end - column) {
                        let (channel, shift) = self.place(column + i);
                        let from = [((rows.start + y) * down + phase + shift[0]) as isize, shift[1] as isize];
                        let from = [from[0] - spec.padding[0] as isize, from[1] - spec.padding[1] as isize];
                        source.fill_phases(simd, [n, channel], from, across, staged, len);
                    }
                    for i in 0..phases[1] {
                        let at = (phase * phases[1] + i) * phase_len + y * row_len;
                        let mut four = [&staged_rows[i * row_len..][..row_len]; 4];
                        for (j, row) in four.iter_mut().enumerate() {
                            *row = &staged_rows[j * len + i * row_len..][..row_len];
                        }
                        let to = &mut panel[at * width + column - first..];
                        side_by_side(four, (end - column).min(4), to, 4 * width, width);
                    }
                }
            }
        }
    }

    /// The input channel of a column and, where taps count as channels, how far the column's tap is from the first one.
    #[inline(always)]
    fn place(&self, column: usize) -> (usize, [usize; 2]) {
        let Run { spec, weight, .. } = self.run;
        let [_, ic, _, kw] = weight.0;
        if !self.layout.folded {
            return (self.group * ic + column, [0; 2]);
        }
        let tap = column % weight.plane();
        let shift = [tap / kw * spec.dilation[0], tap % kw * spec.dilation[1]];
        (self.group * ic + column / weight.plane(), shift)
    }

    /// Lays out the gradient with respect to some output rows, in blocks of `[pixel][OC_BLOCK]`.
    #[inline(always)]
    fn stage_gradient(&self, n: usize, rows: &Range<usize>, grads: &mut [f32]) {
        let row_len = self.layout.row_len;
        let group_oc = self.run.weight.n() / self.run.spec.groups;
        for (i, grads) in grads.chunks_exact_mut(self.layout.rows * row_len * OC_BLOCK).enumerate() {
            let first = self.first_oc + i * OC_BLOCK;
            let end = group_oc.min(first + OC_BLOCK);
            for oc in (first..end).step_by(4) {
                for (y, to) in rows.clone().zip(grads.chunks_exact_mut(row_len * OC_BLOCK)) {
                    let four = four_rows(&self.run.dy, n, [self.group * group_oc + oc, self.group * group_oc + end], y);
                    side_by_side(four, (end - oc).min(4), &mut to[oc - first..], 4 * OC_BLOCK, OC_BLOCK);
                }
            }
        }
    }
}

/// Row `y` of the channels `first` to `first + 3` of item `n`; in place of those from `end` on the last one before is
/// repeated.
#[inline(always)]
pub(super) fn four_rows<'a>(dy: &View<'a>, n: usize, [first, end]: [usize; 2], y: usize) -> [&'a [f32]; 4] {
    let width = dy.shape.w();
    let mut rows: [&[f32]; 4] = [&[]; 4];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &dy.plane(n, (first + i).min(end - 1))[y * width..][..width];
    }
    rows
}

/// The gradient where groups have few channels: each kernel by sums of products of rows.
fn by_sums<S: Simd>(simd: S, run: Run) -> Vec<f32> {
    let mut grad = vec![0.0; run.weight.numel()];
    let kernels = grad.par_chunks_exact_mut(run.weight.plane()).enumerate();
    kernels.for_each(|(i, kernel)| {
        let (oc, ic) = (i / run.weight.c(), i % run.weight.c());
        simd.vectorize(Kernel { run, oc, ic, kernel });
    });
    grad
}

/// The gradient with respect to one kernel.
struct Kernel<'a> {
    run: Run<'a>,
    oc: usize,
    ic: usize,
    kernel: &'a mut [f32],
}

impl WithSimd for Kernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Run { spec, source, dy, weight, .. } = self.run;
        let [_, group_in, kh, kw] = weight.0;
        let channel = self.oc / (weight.n() / spec.groups) * group_in + self.ic;
        let [batch, _, height, width] = dy.shape.0;
        let (lanes, stride) = (S::F32_LANES, spec.stride[1]);
        let padded = width.next_multiple_of(lanes);
        let phase_len = padded + (kw - 1) * spec.dilation[1] / stride + 1;
        let mut staged = Scratch::take(phase_len * stride);
        let mut grads = Scratch::take(padded);
        grads.fill(0.0);
        let mut totals = vec![0f64; kh * kw];
        let mut sums = vec![simd.splat_f32s(0.0); kh * kw];
        for n in 0..batch {
            sums.fill(simd.splat_f32s(0.0));
            for y in 0..height {
                grads[..width].copy_from_slice(&dy.plane(n, self.oc)[y * width..][..width]);
                let (grads, _) = S::as_simd_f32s(&grads);
                for (ky, sums) in sums.chunks_exact_mut(kw).enumerate() {
                    let line = (y * spec.stride[0] + ky * spec.dilation[0]) as isize - spec.padding[0] as isize;
                    let from = [line, -(spec.padding[1] as isize)];
                    source.fill_phases(simd, [n, channel], from, stride, &mut staged, phase_len * stride);
                    for (kx, sum) in sums.iter_mut().enumerate() {
                        let shift = kx * spec.dilation[1];
                        let at = shift % stride * phase_len + shift / stride;
                        let (values, _) = S::as_simd_f32s(&staged[at..][..padded]);
                        for (v, grad) in values.iter().zip(grads) {
                            *sum = simd.mul_add_e_f32s(*v, *grad, *sum);
                        }
                    }
                }
            }
            for (total, sum) in totals.iter_mut().zip(&sums) {
                *total += bytemuck::cast_slice::<S::f32s, f32>(std::slice::from_ref(sum))
                    .iter()
                    .map(|v| f64::from(*v))
                    .sum::<f64>();
            }
        }
        self.kernel.iter_mut().zip(totals).for_each(|(out, total)| *out = total as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::PaddingMode;
    use super::super::reference::padded;
    use super::*;
    use crate::ops::testing::{random, relative_l2};

    const ALGORITHMS: [Algorithm; 4] = [Algorithm::Winograd, Algorithm::Fft, Algorithm::Gemm, Algorithm::Direct];

    /// Elements between the batch items of the views.
    const GAP: usize = 5;

    fn view(data: &[f32], shape: Shape) -> View<'_> {
        View { data, shape, batch_stride: shape.item() + GAP }
    }

    /// Runs `check` with the operands of a convolution, and the gradient as its definition gives it, in `f64`.
    fn case(spec: ConvSpec, input: Shape, oc: usize, check: impl Fn(View, View, Shape, &[f32])) {
        let weight = Shape::new(oc, input.c() / spec.groups, spec.kernel[0], spec.kernel[1]);
        let output = spec.output_shape(input, weight).expect("the shapes fit");
        let data = [input, output].map(|s| random(s.n() * (s.item() + GAP), s.numel() as u64));
        let (x, dy) = (view(&data[0], input), view(&data[1], output));
        let [_, ic, kh, kw] = weight.0;
        let expected = (0..weight.numel()).map(|i| {
            let [o, tap] = [i / weight.item(), i % (kh * kw)];
            let channel = o / (oc / spec.groups) * ic + i / (kh * kw) % ic;
            let mut sum = 0.0;
            for n in 0..output.n() {
                for (pixel, dy) in dy.plane(n, o).iter().enumerate() {
                    let y = pixel / output.w() * spec.stride[0] + tap / kw * spec.dilation[0];
                    let column = pixel % output.w() * spec.stride[1] + tap % kw * spec.dilation[1];
                    sum += f64::from(*dy) * f64::from(padded(&spec, x, [n, channel], [y, column]));
                }
            }
            sum as f32
        });
        check(x, dy, weight, &expected.collect::<Vec<f32>>());
    }

    fn cases(check: impl Fn(&ConvSpec, View, View, Shape, &[f32])) {
        let three = ConvSpec::same(3);
        let mirrored = ConvSpec { padding_mode: PaddingMode::Reflect, padding: [2, 1], ..three };
        let enlarged = ConvSpec { upsample: true, padding: [0, 2], ..three };
        let oblong = ConvSpec { kernel: [5, 2], stride: [3, 2], dilation: [1, 3], groups: 2, ..mirrored };
        let depthwise = ConvSpec { groups: 6, stride: [2, 3], dilation: [2, 1], ..mirrored };
        for (spec, input, oc) in [
            (three, Shape::new(2, 19, 37, 45), 21),
            (three, Shape::new(1, 9, 30, 33), 140),
            (mirrored, Shape::new(3, 70, 13, 9), 11),
            (enlarged, Shape::new(2, 9, 15, 22), 18),
            (oblong, Shape::new(2, 14, 21, 34), 10),
            (depthwise, Shape::new(2, 6, 19, 41), 6),
            (ConvSpec::same(1), Shape::new(2, 50, 7, 19), 9),
            (ConvSpec::same(15), Shape::new(3, 19, 40, 37), 21),
            (ConvSpec { kernel: [4, 13], padding: [1, 6], ..mirrored }, Shape::new(2, 53, 30, 41), 18),
            (ConvSpec { kernel: [11, 5], ..enlarged }, Shape::new(2, 20, 9, 12), 33),
        ] {
            case(spec, input, oc, |x, dy, weight, expected| check(&spec, x, dy, weight, expected));
        }
    }

    #[test]
    fn every_algorithm_on_every_instruction_set() {
        let mut arches = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
        cases(|spec, x, dy, weight, expected| {
            for algorithm in ALGORITHMS.into_iter().filter(|algorithm| algorithm.supports(spec)) {
                for &arch in &arches {
                    let error = relative_l2(&algorithm.weight_grad(arch, spec, x, dy, weight), expected);
                    assert!(error <= 5e-6, "{algorithm:?} on {arch:?}, {spec:?} on {}: {error:e}", x.shape);
                }
            }
        });
    }

    #[test]
    fn threads_change_no_bit() {
        cases(|spec, x, dy, weight, _| {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
                pool.install(|| conv2d_weight_grad(spec, x, dy, weight))
            };
            let one = with(1);
            for threads in [2, 5] {
                assert!(one.iter().zip(with(threads)).all(|(a, b)| a.to_bits() == b.to_bits()), "{spec:?}");
            }
        });
    }
}
