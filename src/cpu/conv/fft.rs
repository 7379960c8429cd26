//! Fourier transforms of 32x32 tiles, of as many channels at once as a vector has lanes.

use super::source::{Source, side_by_side};
use super::winograd::{load, store};
use pulp::Simd;
use std::ops::Range;

/// Points of a tile along one axis.
pub(super) const SIZE: usize = 32;
/// Points (frequencies) of half a spectrum. The other half of a real tile's spectrum holds their conjugates.
pub(super) const POINTS: usize = SIZE * SIZE / 2 + 2;

/// A complex number in every lane.
type Complex<S> = [<S as Simd>::f32s; 2];

/// The points of half a spectrum, each together with the point of its negative frequency, as `row * SIZE + column`.
const HALF: [[u16; 2]; POINTS] = half();

const fn half() -> [[u16; 2]; POINTS] {
    let mut points = [[0; 2]; POINTS];
    let (mut count, mut column) = (0, 0);
    while column <= SIZE / 2 {
        // In the first and the last column the negative of a frequency lies in the same column: half of its rows
        // suffice.
        let rows = if column % (SIZE / 2) == 0 { SIZE / 2 + 1 } else { SIZE };
        let mut row = 0;
        while row < rows {
            let negative = (SIZE - row) % SIZE * SIZE + (SIZE - column) % SIZE;
            points[count] = [(row * SIZE + column) as u16, negative as u16];
            (count, row) = (count + 1, row + 1);
        }
        column += 1;
    }
    points
}

/// The points of half a spectrum, numbered. Each comes with the places, in a tile of `lanes` channels, of its real part
/// and of the real part at the negative frequency. An imaginary part follows its real part a vector later.
#[inline(always)]
pub(super) fn points(lanes: usize) -> impl Iterator<Item = (usize, [usize; 2])> {
    HALF.iter().enumerate().map(move |(number, pair)| (number, pair.map(|point| 2 * usize::from(point) * lanes)))
}

/// Copies the values at a point and at its negative frequency, real and imaginary parts, into a small buffer
/// `[4][stride]` whose lanes are then read one by one.
#[inline(always)]
pub(super) fn bring_near<S: Simd>(tile: &[f32], [f, g]: [usize; 2], near: &mut [f32], stride: usize) {
    let lanes = S::F32_LANES;
    for (k, at) in [f, f + lanes, g, g + lanes].into_iter().enumerate() {
        store::<S>(near, k * stride, load::<S>(tile, at));
    }
}

/// exp(-2 pi i k / 32).
const TWIDDLES: [[f32; 2]; SIZE] = twiddles();

const fn twiddles() -> [[f32; 2]; SIZE] {
    let mut all = [[0.0; 2]; SIZE];
    let mut k = 0;
    while k < SIZE {
        all[k] = [cosine(k), cosine(k + SIZE / 4)];
        k += 1;
    }
    all
}

/// cos(2 pi k / 32).
const fn cosine(k: usize) -> f32 {
    /// Cosines of the first quarter of the circle.
    const QUARTER: [f64; SIZE / 4 + 1] = [
        1.0,
        0.980_785_280_403_230_4,
        0.923_879_532_511_286_7,
        0.831_469_612_302_545_2,
        std::f64::consts::FRAC_1_SQRT_2,
        0.555_570_233_019_602_2,
        0.382_683_432_365_089_8,
        0.195_090_322_016_128_27,
        0.0,
    ];
    let k = k % SIZE;
    let k = if k > SIZE / 2 { SIZE - k } else { k };
    let value = if k > SIZE / 4 { -QUARTER[SIZE / 2 - k] } else { QUARTER[k] };
    value as f32
}

/// A tile of each lane's channel: `[row][column][real, imaginary][lane]`.
pub(super) const fn tile_len(lanes: usize) -> usize {
    2 * SIZE * SIZE * lanes
}

/// Transforms tiles whose rows from `filled` on are zero; what the buffer holds there is not read.
#[inline(always)]
pub(super) fn transform<S: Simd>(simd: S, tile: &mut [f32], filled: usize) {
    for row in 0..filled {
        transform_line(simd, tile, row * SIZE, 1, SIZE);
    }
    for column in 0..SIZE {
        transform_line(simd, tile, column, SIZE, filled);
    }
}

/// The first `wanted` rows of the inverse transform, 1024 times too large. The spectra come with real and imaginary
/// parts exchanged, and so does the result: the forward transform of exchanged parts is the inverse one.
#[inline(always)]
pub(super) fn transform_back<S: Simd>(simd: S, tile: &mut [f32], wanted: usize) {
    for column in 0..SIZE {
        transform_line(simd, tile, column, SIZE, SIZE);
    }
    for row in 0..wanted {
        transform_line(simd, tile, row * SIZE, 1, SIZE);
    }
}

/// Transforms the line of points `first + k * stride`, of which those from `filled` on are zero.
#[inline(always)]
fn transform_line<S: Simd>(simd: S, tile: &mut [f32], first: usize, stride: usize, filled: usize) {
    let lanes = S::F32_LANES;
    let zero = simd.splat_f32s(0.0);
    let mut middle = [[[zero; 2]; 4]; 8];
    for phase in 0..4 {
        let mut values = [[zero; 2]; 8];
        for (n, value) in values.iter_mut().enumerate().filter(|(n, _)| 4 * n + phase < filled) {
            let at = (first + (4 * n + phase) * stride) * 2 * lanes;
            *value = [load::<S>(tile, at), load::<S>(tile, at + lanes)];
        }
        for (k, value) in eight(simd, values).into_iter().enumerate() {
            middle[k][phase] = times(simd, value, TWIDDLES[k * phase]);
        }
    }
    for (k, values) in middle.into_iter().enumerate() {
        for (j, [re, im]) in four(simd, values).into_iter().enumerate() {
            let at = (first + (k + 8 * j) * stride) * 2 * lanes;
            store::<S>(tile, at, re);
            store::<S>(tile, at + lanes, im);
        }
    }
}

#[inline(always)]
fn eight<S: Simd>(simd: S, [a, b, c, d, e, f, g, h]: [Complex<S>; 8]) -> [Complex<S>; 8] {
    let even = four(simd, [a, c, e, g]);
    let mut odd = four(simd, [b, d, f, h]);
    odd[1] = times(simd, odd[1], TWIDDLES[4]);
    odd[2] = [odd[2][1], simd.neg_f32s(odd[2][0])];
    odd[3] = times(simd, odd[3], TWIDDLES[12]);
    let mut all = [odd[0]; 8];
    for k in 0..4 {
        all[k] = add(simd, even[k], odd[k]);
        all[k + 4] = subtract(simd, even[k], odd[k]);
    }
    all
}

#[inline(always)]
fn four<S: Simd>(simd: S, [a, b, c, d]: [Complex<S>; 4]) -> [Complex<S>; 4] {
    let (p, q, r) = (add(simd, a, c), subtract(simd, a, c), add(simd, b, d));
    let [x, y] = subtract(simd, b, d);
    // q plus and minus -i (b - d).
    let right = [simd.add_f32s(q[0], y), simd.sub_f32s(q[1], x)];
    let left = [simd.sub_f32s(q[0], y), simd.add_f32s(q[1], x)];
    [add(simd, p, r), right, subtract(simd, p, r), left]
}

#[inline(always)]
fn add<S: Simd>(simd: S, a: Complex<S>, b: Complex<S>) -> Complex<S> {
    [simd.add_f32s(a[0], b[0]), simd.add_f32s(a[1], b[1])]
}

#[inline(always)]
fn subtract<S: Simd>(simd: S, a: Complex<S>, b: Complex<S>) -> Complex<S> {
    [simd.sub_f32s(a[0], b[0]), simd.sub_f32s(a[1], b[1])]
}

#[inline(always)]
fn times<S: Simd>(simd: S, a: Complex<S>, [re, im]: [f32; 2]) -> Complex<S> {
    let (minus_im, re, im) = (simd.splat_f32s(-im), simd.splat_f32s(re), simd.splat_f32s(im));
    let real = simd.mul_add_e_f32s(minus_im, a[1], simd.mul_f32s(re, a[0]));
    [real, simd.mul_add_e_f32s(im, a[0], simd.mul_f32s(re, a[1]))]
}

/// Writes the rectangle of `size` pixels whose first one is `corner` of batch item `n` into the real (0) or imaginary
/// (1) part of tiles, with a channel in each lane. The rest of its rows becomes zero; without a corner all of it does.
#[inline(always)]
pub(super) fn fill_part<S: Simd>(
    simd: S,
    source: &Source,
    corner: Option<(usize, [isize; 2])>,
    channels: Range<usize>,
    size: [usize; 2],
    tile: &mut [f32],
    part: usize,
) {
    let lanes = S::F32_LANES;
    let mut rows = [[0.0; SIZE]; 4];
    for first in (0..channels.len()).step_by(4) {
        let count = (channels.len() - first).min(4);
        for y in 0..size[0] {
            if let Some((n, [row, column])) = corner {
                for (c, row_out) in rows[..count].iter_mut().enumerate() {
                    let place = [row + y as isize, column];
                    source.fill(simd, [n, channels.start + first + c], place, row_out, size[1]);
                    row_out[size[1]..].fill(0.0);
                }
            }
            let four = [&rows[0][..], &rows[1], &rows[2], &rows[3]];
            let at = (2 * y * SIZE + part) * lanes + first;
            side_by_side(four, count, &mut tile[at..], 8 * lanes, 2 * lanes);
        }
    }
}
