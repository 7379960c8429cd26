//! The direct algorithm, for few output channels to a group (depthwise convolutions, a single output channel):
//! multiply-adds on rows of pixels.

use super::Run;
use super::scratch::Scratch;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Vectors of pixels whose sums are kept in registers.
const VECTORS: usize = 4;
/// About how many output pixels a task computes.
const PIXELS: usize = 4096;

/// Runs a convolution with its weights as they are.
pub(super) fn run<S: Simd>(simd: S, run: Run) {
    let [n, oc, height, width] = run.out.shape.0;
    let rows = (PIXELS / width.max(1)).clamp(1, height);
    let bands = height.div_ceil(rows);
    (0..n * oc * bands).into_par_iter().for_each(|task| {
        let (band, plane) = (task % bands, task / bands);
        simd.vectorize(Task { run, n: plane / oc, oc: plane % oc, rows: band * rows..height.min((band + 1) * rows) });
    });
}

/// Some rows of one output channel.
struct Task<'a> {
    run: Run<'a>,
    n: usize,
    oc: usize,
    rows: Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let spec = self.run.conv.spec;
        let weight = self.run.conv.weight_shape;
        let [_, group_in, kh, kw] = weight.0;
        let group = self.oc / (weight.n() / spec.groups);
        let width = self.run.out.shape.w();
        let span = VECTORS * S::F32_LANES;
        let padded_width = width.div_ceil(span) * span;
        // Columns of the input are sorted by their remainder modulo the stride: a tap then reads consecutive values.
        let phase_len = padded_width + (kw - 1) * spec.dilation[1] / spec.stride[1] + 1;
        let row_len = phase_len * spec.stride[1];
        let staged_rows = (self.rows.len() - 1) * spec.stride[0] + (kh - 1) * spec.dilation[0] + 1;
        let sums = &mut *Scratch::take(self.rows.len() * padded_width);
        let staged = &mut *Scratch::take(staged_rows * row_len);
        sums.fill(0.0);
        for ic in 0..group_in {
            self.stage(simd, group * group_in + ic, staged, row_len);
            let taps = &self.run.conv.packed[(self.oc * group_in + ic) * kh * kw..];
            for (y, sums) in sums.chunks_exact_mut(padded_width).enumerate() {
                let rows = &staged[y * spec.stride[0] * row_len..];
                for (i, sums) in sums.chunks_exact_mut(span).enumerate() {
                    self.accumulate(simd, &rows[i * span..], row_len, taps, sums);
                }
            }
        }

        for (sums, y) in sums.chunks_exact(padded_width).zip(self.rows.clone()) {
            // SAFETY: each row of each channel is one task's.
            unsafe { self.run.out.write([self.n, self.oc, y * width], &sums[..width]) };
        }
    }
}

impl Task<'_> {
    /// Fills `staged` with the padded input rows that the task's output rows need.
    #[inline(always)]
    fn stage<S: Simd>(&self, simd: S, c: usize, staged: &mut [f32], row_len: usize) {
        let spec = self.run.conv.spec;
        let first = (self.rows.start * spec.stride[0]) as isize - spec.padding[0] as isize;
        let column = -(spec.padding[1] as isize);
        for (y, out) in staged.chunks_exact_mut(row_len).enumerate() {
            let from = [first + y as isize, column];
            self.run.source.fill_phases(simd, [self.n, c], from, spec.stride[1], out, row_len);
        }
    }

    /// Adds one input channel's products to a span of sums.
    #[inline(always)]
    fn accumulate<S: Simd>(&self, simd: S, rows: &[f32], row_len: usize, taps: &[f32], sums: &mut [f32]) {
        let spec = self.run.conv.spec;
        let [kh, kw] = spec.kernel;
        let stride = spec.stride[1];
        let phase_len = row_len / stride;
        let (sums, _) = S::as_mut_simd_f32s(sums);
        let mut kept = [simd.splat_f32s(0.0); VECTORS];
        kept.copy_from_slice(sums);
        for ky in 0..kh {
            for kx in 0..kw {
                let shift = kx * spec.dilation[1];
                let at = ky * spec.dilation[0] * row_len + shift % stride * phase_len + shift / stride;
                let (values, _) = S::as_simd_f32s(&rows[at..][..VECTORS * S::F32_LANES]);
                let tap = simd.splat_f32s(taps[ky * kw + kx]);
                for j in 0..VECTORS {
                    kept[j] = simd.mul_add_e_f32s(tap, values[j], kept[j]);
                }
            }
        }
        sums.copy_from_slice(&kept);
    }
}
