//! Sums, means and variances of long runs of `f32`: short vectorised sums in `f32`, joined in `f64` in a fixed order.

use super::wide::wide_fn;
use rayon::prelude::*;

/// Partial sums kept side by side, so that the loop over them vectorises.
const LANES: usize = 32;
/// Elements summed in `f32` before `f64` takes over; they stay in the first-level cache for the second pass.
const BLOCK: usize = 4096;
/// Elements that one thread takes at a time.
const PART: usize = 1 << 16;

/// Count, mean and sum of squared deviations from the mean.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Moments {
    /// How many elements.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    /// The moments of `x`, on all threads. The result does not depend on their number.
    pub(crate) fn of(x: &[f32]) -> Self {
        let parts: Vec<Self> = x.par_chunks(PART).map(of_part).collect();
        parts.into_iter().fold(Self::default(), Self::join)
    }

    #[inline(always)]
    fn of_block(x: &[f32]) -> Self {
        let count = x.len() as f64;
        let mean = sum_of(x, |v| v) / count;
        let shift = mean as f32;
        let squares = sum_of(x, |v| (v - shift) * (v - shift));
        let rounding = mean - f64::from(shift);
        Self { count, mean, m2: squares - count * rounding * rounding }
    }

    /// The moments of the union of two sets of elements (Chan, Golub and LeVeque 1979).
    #[inline(always)]
    pub(crate) fn join(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let delta = other.mean - self.mean;
        let share = other.count / count;
        Self { count, mean: self.mean + delta * share, m2: self.m2 + other.m2 + delta * delta * self.count * share }
    }

    /// The variance of the elements: the mean of the squared deviations, not the estimate of a sample's.
    pub(crate) fn variance(&self) -> f64 {
        self.m2 / self.count
    }
}

wide_fn! {
    fn of_part<'a>(x: &'a [f32]) -> Moments {
        let mut all = Moments::default();
        for block in x.chunks(BLOCK) {
            all = all.join(Moments::of_block(block));
        }
        all
    }
}

wide_fn! {
    /// The sum of `x`.
    pub(crate) fn sum<'a>(x: &'a [f32]) -> f64 {
        let mut sum = 0.0;
        for block in x.chunks(BLOCK) {
            sum += sum_of(block, |v| v);
        }
        sum
    }
}

wide_fn! {
    /// The inner product of two slices of one length.
    pub(crate) fn dot<'a>(x: &'a [f32], y: &'a [f32]) -> f64 {
        let mut sum = 0.0;
        for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
            sum += dot_block(x, y);
        }
        sum
    }
}

#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += f(v);
        }
    }
    for (sum, &v) in sums.iter_mut().zip(rest) {
        *sum += f(v);
    }
    sums.iter().map(|&s| f64::from(s)).sum()
}

#[inline(always)]
fn dot_block(x: &[f32], y: &[f32]) -> f64 {
    let mut sums = [0f32; LANES];
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in whole_x.iter().zip(whole_y) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(rest_x).zip(rest_y) {
        *sum += x * y;
    }
    sums.iter().map(|&s| f64::from(s)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_follow_their_definition_far_from_zero() {
        for len in [1, 31, 4097, 150_001] {
            let x: Vec<f32> = (0..len).map(|i| 300.0 + ((i * 37) % 101) as f32 / 50.0).collect();
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
            let m2: f64 = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
            let found = Moments::of(&x);
            assert_eq!(found.count, len as f64);
            assert!((found.mean - mean).abs() <= 1e-7 * mean, "{len}");
            assert!((found.m2 - m2).abs() <= 1e-5 * m2, "{len}");
        }
    }

    #[test]
    fn sums_and_products_take_every_element() {
        for len in [0usize, 1, 33, 5000] {
            let x: Vec<f32> = (1..=len).map(|i| i as f32).collect();
            let ones = vec![1.0; len];
            let expected = (len * (len + 1) / 2) as f64;
            assert!((sum(&x) - expected).abs() <= 1e-7 * expected);
            assert!((dot(&x, &ones) - expected).abs() <= 1e-7 * expected);
        }
    }
}
