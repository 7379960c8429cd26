//! Any convolution as a matrix product: packed weights times input patches that are gathered a panel at a time.

use super::microkernel::{OC_BLOCK, PANEL_VECTORS, Product};
use super::scratch::Scratch;
use super::source::copy;
use super::{Conv, ConvSpec, Run};
use crate::tensor::Shape;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// About how many products are summed before the next output channels have their turn.
const DEPTH: usize = 512;
/// Gathered values that stay in the L2 cache while all output channels are computed from them.
const GATHERED: usize = 96 << 10;

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
                *packed = if oc < group_oc { weight[(group * group_oc + oc) * depth + k] } else { 0.0 };
            }
        }
    }
}

/// Runs a convolution whose weights [`pack_into`] packed.
pub(super) fn run<S: Simd>(simd: S, run: Run) {
    let shape = run.out.shape;
    let groups = run.conv.spec.groups;
    let panel = PANEL_VECTORS * S::F32_LANES;
    let panels = shape.plane().div_ceil(panel);
    let blocks = (shape.c() / groups).div_ceil(OC_BLOCK);
    // Enough tasks for all threads: first fewer panels to a task, then fewer output channels.
    let wanted = 4 * rayon::current_num_threads();
    let outer = shape.n() * groups;
    let depth = run.conv.weight_shape.item().min(DEPTH);
    let most = (GATHERED / (depth * panel)).clamp(1, panels);
    let share = (panels * outer / wanted).clamp(1, most);
    let parts = panels.div_ceil(share);
    let slices = wanted.div_ceil(outer * parts).clamp(1, blocks.div_ceil(4));
    (0..outer * parts * slices).into_par_iter().for_each(|task| {
        let (slice, rest) = (task % slices, task / slices);
        let (part, item) = (rest % parts, rest / parts);
        let first = part * share * panel;
        simd.vectorize(Task {
            run,
            n: item / groups,
            group: item % groups,
            pixels: first..shape.plane().min(first + share * panel),
            blocks: slice * blocks / slices..(slice + 1) * blocks / slices,
        });
    });
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
        let Conv { spec, packed, weight_shape, .. } = *self.run.conv;
        let lanes = S::F32_LANES;
        let taps = weight_shape.plane();
        let depth = weight_shape.item();
        let step = (DEPTH / taps).max(1);
        // Panels are padded to whole vectors; the last one may be narrower.
        let width = self.pixels.len().div_ceil(lanes) * lanes;
        let group_oc = weight_shape.n() / spec.groups;
        let group_blocks = group_oc.div_ceil(OC_BLOCK);
        let rows = self.blocks.len() * OC_BLOCK;
        let sums = &mut *Scratch::take(rows * width);
        let panels = &mut *Scratch::take(step.min(weight_shape.c()) * taps * width);
        for first in (0..weight_shape.c()).step_by(step) {
            let channels = first..weight_shape.c().min(first + step);
            let k = channels.len() * taps;
            self.gather(simd, channels, &mut *panels, width);
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

/// The pixels of a panel that lie in one output row.
struct Segment {
    /// The first one's place in the panel.
    at: usize,
    len: usize,
    /// Where in the input the first one's patch begins.
    corner: [isize; 2],
}

impl Task<'_> {
    /// Gathers the patches of some input channels of the group, in panels of `[ic][kh][kw][pixel]`. Pixels of the last
    /// vector that are not used have any value.
    #[inline(always)]
    fn gather<S: Simd>(&self, simd: S, channels: Range<usize>, panels: &mut [f32], width: usize) {
        let weight = self.run.conv.weight_shape;
        let taps = weight.plane();
        let depth = channels.len() * taps;
        let first = self.group * weight.c();
        let channels = first + channels.start..first + channels.end;
        let mut start = 0;
        while start < width {
            let pixel = self.pixels.start + start;
            let len = (width - start).min(PANEL_VECTORS * S::F32_LANES);
            let pixels = pixel..self.pixels.end.min(pixel + len);
            let panel = &mut panels[start * depth..];
            if self.is_pointwise() {
                for (i, c) in channels.clone().enumerate() {
                    let from = &self.run.source.x.plane(self.n, c)[pixel..];
                    copy(simd, from, &mut panel[i * len..], pixels.len());
                }
            } else {
                let segments = self.segments(pixels);
                self.gather_panel(simd, &segments, channels.clone(), panel, len);
            }
            start += len;
        }
    }

    /// Whether every patch is a single pixel at the output's own place, so that rows can be copied.
    #[inline(always)]
    fn is_pointwise(&self) -> bool {
        let spec = self.run.conv.spec;
        let plain = spec.stride == [1; 2] && spec.padding == [0; 2] && !spec.upsample;
        plain && spec.kernel == [1; 2]
    }

    /// The parts of output rows that a range of pixels covers.
    fn segments(&self, pixels: Range<usize>) -> Vec<Segment> {
        let spec = self.run.conv.spec;
        let columns = self.run.out.shape.w();
        let mut segments = Vec::with_capacity(pixels.len() / columns + 2);
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let place = [pixel / columns, pixel % columns];
            let len = (columns - place[1]).min(pixels.end - pixel);
            segments.push(Segment {
                at: pixel - pixels.start,
                len,
                corner: std::array::from_fn(|axis| {
                    (place[axis] * spec.stride[axis]) as isize - spec.padding[axis] as isize
                }),
            });
            pixel += len;
        }
        segments
    }

    /// Gathers one panel, `width` pixels wide.
    #[inline(always)]
    fn gather_panel<S: Simd>(
        &self,
        simd: S,
        segments: &[Segment],
        channels: Range<usize>,
        panel: &mut [f32],
        width: usize,
    ) {
        let spec = self.run.conv.spec;
        let ([kh, kw], [_, stride], [_, dilation]) = (spec.kernel, spec.stride, spec.dilation);
        let longest = segments.iter().map(|s| s.len).max().unwrap_or(0);
        // Columns are sorted by their remainder modulo the stride, with room for a whole vector at the end.
        let phase_len = longest + (kw - 1) * dilation / stride + S::F32_LANES;
        let row_len = phase_len * stride;
        let mut staged = Scratch::take(segments.len() * kh * row_len);
        for (i, c) in channels.enumerate() {
            for (j, staged) in staged.chunks_exact_mut(row_len).enumerate() {
                let (segment, ky) = (&segments[j / kh], j % kh);
                let from = [segment.corner[0] + (ky * spec.dilation[0]) as isize, segment.corner[1]];
                let needed = (segment.len - 1) * stride + (kw - 1) * dilation + 1;
                self.run.source.fill_phases(simd, [self.n, c], from, stride, staged, needed);
            }
            for tap in 0..kh * kw {
                let (ky, shift) = (tap / kw, tap % kw * dilation);
                let within = shift % stride * phase_len + shift / stride;
                // The order matters: a copy may write beyond its segment, and the next one overwrites that.
                for (j, segment) in segments.iter().enumerate() {
                    let from = &staged[(j * kh + ky) * row_len + within..];
                    let to = &mut panel[(i * kh * kw + tap) * width + segment.at..];
                    copy(simd, from, to, segment.len);
                }
            }
        }
    }
}
