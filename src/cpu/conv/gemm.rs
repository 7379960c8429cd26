//! Any convolution as a matrix product: packed weights times input patches that are gathered a panel at a time.

use super::epilogue::Output;
use super::microkernel::{OC_BLOCK, PANEL_VECTORS, Product};
use super::scratch::Scratch;
use super::source::Source;
use super::{Conv, ConvSpec};
use crate::tensor::Shape;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Panels of pixels that share a pass over the weights.
const PANELS: usize = 4;
/// About how many products are summed before the next output channels' turn, so that the panels stay in L2.
const DEPTH: usize = 512;

/// Elements of the packed weights: `[group][oc block][ic][kh][kw][OC_BLOCK]`, output channels filled up with zeros.
pub(super) fn packed_len(spec: &ConvSpec, weight: Shape) -> usize {
    let per_group = (weight.n() / spec.groups).div_ceil(OC_BLOCK) * OC_BLOCK;
    spec.groups * per_group * weight.item()
}

/// Packs a weight `[oc, ic / groups, kh, kw]`.
pub(super) fn pack_into(spec: &ConvSpec, shape: Shape, weight: &[f32], packed: &mut [f32]) {
    let depth = shape.item();
    let group_oc = shape.n() / spec.groups;
    let blocks = group_oc.div_ceil(OC_BLOCK);
    for (i, packed) in packed.chunks_exact_mut(OC_BLOCK * depth).enumerate() {
        let (group, first) = (i / blocks, i % blocks * OC_BLOCK);
        for (k, packed) in packed.chunks_exact_mut(OC_BLOCK).enumerate() {
            for (o, packed) in packed.iter_mut().enumerate() {
                let oc = first + o;
                *packed = if oc < group_oc {
                    weight[(group * group_oc + oc) * depth + k]
                } else {
                    0.0
                };
            }
        }
    }
}

/// Runs a convolution whose weights [`pack_into`] packed.
pub(super) fn run(arch: Arch, conv: &Conv, source: &Source, out: &Output) {
    arch.dispatch(Run { conv, source, out });
}

#[derive(Clone, Copy)]
struct Run<'a> {
    conv: &'a Conv<'a>,
    source: &'a Source<'a>,
    out: &'a Output<'a>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    fn with_simd<S: Simd>(self, simd: S) {
        let shape = self.out.shape;
        let groups = self.conv.spec.groups;
        let panel = PANEL_VECTORS * S::F32_LANES;
        let panels = shape.plane().div_ceil(panel);
        let blocks = (shape.c() / groups).div_ceil(OC_BLOCK);
        // Enough tasks for all threads: first fewer panels to a task, then fewer output channels.
        let wanted = 4 * rayon::current_num_threads();
        let outer = shape.n() * groups;
        let share = (panels * outer / wanted).clamp(1, PANELS);
        let parts = panels.div_ceil(share);
        let slices = wanted.div_ceil(outer * parts).clamp(1, blocks.div_ceil(4));
        (0..outer * parts * slices)
            .into_par_iter()
            .for_each(|task| {
                let (slice, rest) = (task % slices, task / slices);
                let (part, item) = (rest % parts, rest / parts);
                let first = part * share * panel;
                simd.vectorize(Task {
                    run: self,
                    n: item / groups,
                    group: item % groups,
                    pixels: first..shape.plane().min(first + share * panel),
                    blocks: slice * blocks / slices..(slice + 1) * blocks / slices,
                });
            });
    }
}

/// Some output channels of some pixels.
struct Task<'a> {
    run: Run<'a>,
    n: usize,
    group: usize,
    pixels: Range<usize>,
    blocks: Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Conv {
            spec,
            packed,
            weight_shape,
            ..
        } = *self.run.conv;
        let lanes = S::F32_LANES;
        let taps = weight_shape.plane();
        let depth = weight_shape.item();
        let step = (DEPTH / taps).max(1);
        // Whole vectors; the last panel may be narrower.
        let width = self.pixels.len().div_ceil(lanes) * lanes;
        let group_oc = weight_shape.n() / spec.groups;
        let group_blocks = group_oc.div_ceil(OC_BLOCK);
        let rows = self.blocks.len() * OC_BLOCK;
        let mut sums = Scratch::take(rows * width);
        let sums = &mut *sums;
        let mut panels = Scratch::take(step.min(weight_shape.c()) * taps * width);
        let panels = &mut *panels;
        for first in (0..weight_shape.c()).step_by(step) {
            let channels = first..weight_shape.c().min(first + step);
            let k = channels.len() * taps;
            self.gather(simd, channels, &mut panels[..k * width]);
            for (i, sums) in sums.chunks_exact_mut(OC_BLOCK * width).enumerate() {
                let block = self.group * group_blocks + self.blocks.start + i;
                let a = &packed[(block * depth + first * taps) * OC_BLOCK..];
                let mut start = 0;
                while start < width {
                    let vectors = ((width - start) / lanes).min(PANEL_VECTORS);
                    simd.vectorize(Product {
                        a: &a[..k * OC_BLOCK],
                        b: &panels[start * k..][..vectors * lanes * k],
                        vectors,
                        c: &mut sums[start..],
                        c_stride: width,
                        accumulate: first > 0,
                    });
                    start += vectors * lanes;
                }
            }
        }

        let first = self.blocks.start * OC_BLOCK;
        let channels = first..group_oc.min(first + rows);
        for (sums, c) in sums.chunks_exact(width).zip(channels) {
            let place = [self.n, self.group * group_oc + c, self.pixels.start];
            // SAFETY: each channel and pixel is one task's.
            unsafe { self.run.out.write(place, &sums[..self.pixels.len()]) };
        }
    }
}

impl Task<'_> {
    /// Gathers the patches of some input channels of the group: panels of `[ic][kh][kw][pixel]`.
    #[inline(always)]
    fn gather<S: Simd>(&self, _: S, channels: Range<usize>, panels: &mut [f32]) {
        let weight = self.run.conv.weight_shape;
        let taps = weight.plane();
        let k = channels.len() * taps;
        let most = PANEL_VECTORS * S::F32_LANES;
        let mut pixel = self.pixels.start;
        for panel in panels.chunks_mut(most * k) {
            let width = panel.len() / k;
            let end = self.pixels.end.min(pixel + width);
            for (panel, c) in panel.chunks_exact_mut(taps * width).zip(channels.clone()) {
                self.gather_channel(self.group * weight.c() + c, pixel..end, panel, width);
            }
            pixel = end;
        }
    }

    /// Gathers the patches of one input channel for a panel's pixels: `[kh][kw][width]`, zeros after the last pixel.
    #[inline(always)]
    fn gather_channel(&self, c: usize, pixels: Range<usize>, panel: &mut [f32], width: usize) {
        let spec = self.run.conv.spec;
        let columns = self.run.out.shape.w();
        let [kh, kw] = spec.kernel;
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            // The pixels of one output row.
            let (oy, ox) = (pixel / columns, pixel % columns);
            let len = (columns - ox).min(pixels.end - pixel);
            let at = pixel - pixels.start;
            let row = (oy * spec.stride[0]) as isize - spec.padding[0] as isize;
            let column = (ox * spec.stride[1]) as isize - spec.padding[1] as isize;
            for ky in 0..kh {
                let row = row + (ky * spec.dilation[0]) as isize;
                let panel = &mut panel[ky * kw * width..][..kw * width];
                if kw == 1 && spec.stride[1] == 1 {
                    let out = &mut panel[at..][..len];
                    self.run.source.fill([self.n, c], row, column, out);
                } else {
                    self.gather_row([c, at, len], row, column, panel, width);
                }
            }
            pixel += len;
        }
        for row in panel.chunks_exact_mut(width) {
            row[pixels.len()..].fill(0.0);
        }
    }

    /// Gathers `len` pixels from place `at` on for every tap of one kernel row.
    #[inline(always)]
    fn gather_row(
        &self,
        [c, at, len]: [usize; 3],
        row: isize,
        column: isize,
        panel: &mut [f32],
        width: usize,
    ) {
        let spec = self.run.conv.spec;
        let (stride, dilation) = (spec.stride[1], spec.dilation[1]);
        let reach = (len - 1) * stride + (spec.kernel[1] - 1) * dilation + 1;
        let mut staged = Scratch::take(reach);
        let staged = &mut *staged;
        self.run.source.fill([self.n, c], row, column, staged);
        for (kx, panel) in panel.chunks_exact_mut(width).enumerate() {
            let from = &staged[kx * dilation..];
            let out = &mut panel[at..][..len];
            match stride {
                1 => out.copy_from_slice(&from[..len]),
                2 => pick(out, from, 2),
                _ => pick(out, from, stride),
            }
        }
    }
}

/// Every `stride`-th value. Inlined where the stride is a constant, this vectorises.
#[inline(always)]
fn pick(out: &mut [f32], from: &[f32], stride: usize) {
    for (out, value) in out.iter_mut().zip(from.iter().step_by(stride)) {
        *out = *value;
    }
}
