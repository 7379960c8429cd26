//! The input as the kernel sees it: upsampled and padded, a piece of a row at a time.

use super::{ConvSpec, PaddingMode};
use crate::cpu::view::View;

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
        Self {
            x,
            height,
            width,
            mode: spec.padding_mode,
            upsample: spec.upsample,
        }
    }

    /// The stored pixels from `[row, column]` on when the rectangle of this size needs neither padding nor upsampling
    /// and lies so far from the plane's end that `slack` further pixels may be read.
    #[inline(always)]
    pub(super) fn stored(
        &self,
        [n, c]: [usize; 2],
        [row, column]: [isize; 2],
        [rows, columns]: [usize; 2],
        slack: usize,
    ) -> Option<&'a [f32]> {
        let inside = row >= 0
            && column >= 0
            && row + rows as isize <= self.height
            && column + columns as isize <= self.width;
        if self.upsample || !inside {
            return None;
        }
        let start = row as usize * self.width as usize + column as usize;
        let needed = (rows - 1) * self.width as usize + columns + slack;
        let plane = self.x.plane(n, c);
        (start + needed <= plane.len()).then(|| &plane[start..])
    }

    /// Fills `out` with the pixels of `row` from `column` on.
    #[inline(always)]
    pub(super) fn fill(&self, [n, c]: [usize; 2], row: isize, column: isize, out: &mut [f32]) {
        let row = match self.mode {
            PaddingMode::Zeros if row < 0 || row >= self.height => {
                out.fill(0.0);
                return;
            }
            PaddingMode::Zeros => row,
            PaddingMode::Reflect => reflect(row, self.height),
        };
        let row = if self.upsample { row / 2 } else { row } as usize;
        let stored = self.x.shape.w();
        let pixels = &self.x.plane(n, c)[row * stored..][..stored];
        let len = out.len() as isize;
        let start = (-column).clamp(0, len) as usize;
        let end = (self.width - column).clamp(start as isize, len) as usize;
        let (left, rest) = out.split_at_mut(start);
        let (inside, right) = rest.split_at_mut(end - start);
        if !inside.is_empty() {
            let first = (column + start as isize) as usize;
            if self.upsample {
                for (i, out) in inside.iter_mut().enumerate() {
                    *out = pixels[(first + i) / 2];
                }
            } else {
                inside.copy_from_slice(&pixels[first..][..inside.len()]);
            }
        }
        self.fill_beyond(pixels, column, left);
        self.fill_beyond(pixels, column + end as isize, right);
    }

    /// Fills `out` with padding, from `column` on.
    #[inline(always)]
    fn fill_beyond(&self, pixels: &[f32], column: isize, out: &mut [f32]) {
        match self.mode {
            PaddingMode::Zeros => out.fill(0.0),
            PaddingMode::Reflect => {
                for (i, out) in out.iter_mut().enumerate() {
                    let column = reflect(column + i as isize, self.width) as usize;
                    *out = pixels[if self.upsample { column / 2 } else { column }];
                }
            }
        }
    }
}

/// The position inside `0..size` that mirrors `position`. Positions beyond the mirror's reach, which only the unused
/// rest of a vector has, are brought to an edge.
#[inline(always)]
fn reflect(position: isize, size: isize) -> isize {
    let last = size - 1;
    (last - (last - position.abs()).abs()).clamp(0, last)
}
