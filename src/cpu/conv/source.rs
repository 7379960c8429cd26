//! The input as a convolution reads it, upsampled and padded, a piece of a row at a time.

use super::scratch::Scratch;
use super::{ConvSpec, PaddingMode};
use crate::cpu::view::View;
use pulp::Simd;

/// The upsampled and padded input. Rows and columns are counted from the first unpadded pixel and may be negative.
pub(super) struct Source<'a> {
    pub(super) x: View<'a>,
    height: isize,
    width: isize,
    mode: PaddingMode,
    upsample: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(spec: &ConvSpec, x: View<'a>) -> Self {
        let [height, width] = spec.extent(x.shape).map(|size| size as isize);
        Self { x, height, width, mode: spec.padding_mode, upsample: spec.upsample }
    }

    /// The stored pixels from `[row, column]` on, if the rectangle of this size needs neither padding nor upsampling
    /// and `slack` pixels beyond it may be read.
    #[inline(always)]
    pub(super) fn stored(
        &self,
        [n, c]: [usize; 2],
        [row, column]: [isize; 2],
        [rows, columns]: [usize; 2],
        slack: usize,
    ) -> Option<&'a [f32]> {
        let inside =
            row >= 0 && column >= 0 && row + rows as isize <= self.height && column + columns as isize <= self.width;
        if self.upsample || !inside {
            return None;
        }
        let start = row as usize * self.width as usize + column as usize;
        let needed = (rows - 1) * self.width as usize + columns + slack;
        let plane = self.x.plane(n, c);
        (start + needed <= plane.len()).then(|| &plane[start..])
    }

    /// Fills `out` with `len` pixels of `row` from `column` on. What `out` has beyond `len` may be overwritten.
    #[inline(always)]
    pub(super) fn fill<S: Simd>(
        &self,
        simd: S,
        [n, c]: [usize; 2],
        [row, column]: [isize; 2],
        out: &mut [f32],
        len: usize,
    ) {
        let row = match self.mode {
            PaddingMode::Zeros if row < 0 || row >= self.height => {
                return clear(simd, out, len);
            }
            PaddingMode::Zeros => row,
            PaddingMode::Reflect => reflect(row, self.height),
        };
        let row = if self.upsample { row / 2 } else { row } as usize;
        let plane = self.x.plane(n, c);
        let stored = self.x.shape.w();
        let start = (-column).clamp(0, len as isize) as usize;
        let end = (self.width - column).clamp(start as isize, len as isize) as usize;
        if start > 0 {
            self.fill_beyond(simd, &plane[row * stored..], column, out, start);
        }
        if end > start {
            let first = (column + start as isize) as usize;
            if self.upsample {
                enlarge(&plane[row * stored..], first, &mut out[start..end]);
            } else {
                copy(simd, &plane[row * stored + first..], &mut out[start..], end - start);
            }
        }
        if len > end {
            let column = column + end as isize;
            self.fill_beyond(simd, &plane[row * stored..], column, &mut out[end..], len - end);
        }
    }

    /// [`fill`](Self::fill), with the pixels sorted by the remainder of their columns modulo `stride`: see
    /// [`split_phases`].
    #[inline(always)]
    pub(super) fn fill_phases<S: Simd>(
        &self,
        simd: S,
        place: [usize; 2],
        from: [isize; 2],
        stride: usize,
        out: &mut [f32],
        len: usize,
    ) {
        if stride == 1 {
            return self.fill(simd, place, from, out, len);
        }
        let mut row = Scratch::take(out.len());
        self.fill(simd, place, from, &mut row, len);
        split_phases(&row, stride, out);
    }

    /// Fills `out` with `len` pixels of padding, from `column` on.
    #[inline(always)]
    fn fill_beyond<S: Simd>(&self, simd: S, pixels: &[f32], column: isize, out: &mut [f32], len: usize) {
        match self.mode {
            PaddingMode::Zeros => clear(simd, out, len),
            PaddingMode::Reflect => {
                for (i, out) in out[..len].iter_mut().enumerate() {
                    let column = reflect(column + i as isize, self.width) as usize;
                    *out = pixels[if self.upsample { column / 2 } else { column }];
                }
            }
        }
    }
}

/// Copies `len` values, in whole vectors if both sides have room beyond them: a call of `memcpy` would take longer than
/// such short copies.
#[inline(always)]
pub(super) fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32], len: usize) {
    let (f, _) = S::as_simd_f32s(from);
    let (t, _) = S::as_mut_simd_f32s(to);
    let vectors = len.div_ceil(S::F32_LANES);
    if f.len() < vectors || t.len() < vectors {
        to[..len].copy_from_slice(&from[..len]);
        return;
    }
    match vectors {
        1 => copy_vectors::<S, 1>(simd, f, t),
        2 => copy_vectors::<S, 2>(simd, f, t),
        3 => copy_vectors::<S, 3>(simd, f, t),
        4 => copy_vectors::<S, 4>(simd, f, t),
        5 => copy_vectors::<S, 5>(simd, f, t),
        _ => to[..len].copy_from_slice(&from[..len]),
    }
}

/// Copies `N` vectors through registers.
#[inline(always)]
fn copy_vectors<S: Simd, const N: usize>(simd: S, from: &[S::f32s], to: &mut [S::f32s]) {
    let mut held = [simd.splat_f32s(0.0); N];
    held.copy_from_slice(&from[..N]);
    to[..N].copy_from_slice(&held);
}

/// Sets `len` values to zero, by storing one whole vector if that covers them and there is room.
#[inline(always)]
fn clear<S: Simd>(simd: S, out: &mut [f32], len: usize) {
    match S::as_mut_simd_f32s(out).0.first_mut() {
        Some(first) if len <= S::F32_LANES => *first = simd.splat_f32s(0.0),
        _ => out[..len].fill(0.0),
    }
}

/// Fills `out` with a row in which every pixel stands twice, from pixel `first` of the doubled row on.
#[inline(always)]
fn enlarge(pixels: &[f32], first: usize, out: &mut [f32]) {
    let (head, out) = out.split_at_mut((first % 2).min(out.len()));
    if let Some(head) = head.first_mut() {
        *head = pixels[first / 2];
    }
    let pixels = &pixels[first.div_ceil(2)..];
    let whole = out.len() / 2;
    for (pair, &pixel) in out.chunks_exact_mut(2).zip(pixels) {
        pair[0] = pixel;
        pair[1] = pixel;
    }
    if let Some(tail) = out.get_mut(2 * whole) {
        *tail = pixels[whole];
    }
}

/// Sorts the pixels of a row by the remainder of their columns modulo `stride`, which is called their phase. What a tap
/// of a strided convolution reads then lies together. `out` has room for whole phases.
#[inline(always)]
fn split_phases(row: &[f32], stride: usize, out: &mut [f32]) {
    let len = out.len() / stride;
    if stride == 2 {
        // A case of its own, since the compiler vectorises this form.
        let (even, odd) = out.split_at_mut(len);
        for ((even, odd), pair) in even.iter_mut().zip(odd).zip(row.chunks_exact(2)) {
            *even = pair[0];
            *odd = pair[1];
        }
        return;
    }
    for (phase, out) in out.chunks_exact_mut(len).enumerate() {
        let values = row[phase..].iter().step_by(stride);
        for (out, value) in out.iter_mut().zip(values) {
            *out = *value;
        }
    }
}

/// Writes the first `count` of four rows side by side: pixel `4 * q + i` of all of them at `q * step + i * phase`.
#[inline(always)]
pub(super) fn side_by_side(rows: [&[f32]; 4], count: usize, to: &mut [f32], step: usize, phase: usize) {
    let len = rows[0].len();
    let whole = if count == 4 { len / 4 } else { 0 };
    for q in 0..whole {
        let mut values = [[0.0; 4]; 4];
        for (values, row) in values.iter_mut().zip(rows) {
            values.copy_from_slice(&row[4 * q..4 * q + 4]);
        }
        for i in 0..4 {
            let pixel = [values[0][i], values[1][i], values[2][i], values[3][i]];
            to[q * step + i * phase..][..4].copy_from_slice(&pixel);
        }
    }
    for i in 4 * whole..len {
        for (c, row) in rows[..count].iter().enumerate() {
            to[i / 4 * step + i % 4 * phase + c] = row[i];
        }
    }
}

/// The position inside `0..size` that mirrors `position`. Positions too far out to be mirrored, which occur in the
/// unused rest of a vector only, are moved to an edge.
#[inline(always)]
fn reflect(position: isize, size: isize) -> isize {
    let last = size - 1;
    (last - (last - position.abs()).abs()).clamp(0, last)
}
