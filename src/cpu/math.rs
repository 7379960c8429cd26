//! Elementary functions written so that a plain loop over them vectorises: no branches, no calls, no fused
//! multiply-adds, hence the same bits on every instruction set.

use std::f32::consts::LOG2_E;

/// Adding this to a number and subtracting it again rounds to the nearest integer; in between the low bits hold that
/// integer.
const ROUND: f32 = 12_582_912.0;
/// The natural logarithm of 2 as a sum of two parts. The first has so few bits that its products with small integers
/// are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` within 2 ulp. Overflows to infinity above 88.73, goes through the subnormals to zero below -87.3, keeps NaN.
/// Polynomial of the Cephes library's `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons, not `clamp`: a NaN passes through both.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let rounded = x * LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = x - k * LN2_HIGH - k * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let e = p * (r * r) + r + 1.0;
    // 2^k in two factors, since k reaches from -150 to 128.
    let k = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = k >> 1;
    e * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// `2^k` for `k` in -126..=127.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)`, the activation called SiLU or Swish.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The hyperbolic tangent within 2 ulp. Polynomial of the Cephes library's `tanhf` near zero.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_989e-3;
    p = p * z + 2.063_908_8e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of `want`, subnormals counted with the smallest normal's.
    fn ulps(got: f32, want: f64) -> f64 {
        let scale = (want.abs() as f32).max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(scale.to_bits() + 1)) - f64::from(scale);
        (f64::from(got) - want).abs() / ulp
    }

    fn worst(range: (f32, f32), f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let steps = 400_000;
        (0..=steps)
            .map(|i| range.0 + (range.1 - range.0) * (i as f32 / steps as f32))
            .map(|x| ulps(f(x), exact(f64::from(x))))
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_ulps() {
        assert!(worst((-88.0, 88.0), exp, f64::exp) < 2.0);
        assert!(worst((-1.0, 1.0), exp, f64::exp) < 2.0);
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(120.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(-120.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(88.72).is_finite());
        assert!(exp(-100.0) > 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_silu_and_tanh_follow_their_definitions() {
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst((-80.0, 80.0), sigmoid, logistic) < 4.0);
        assert!(worst((-80.0, 80.0), silu, |x| x / (1.0 + (-x).exp())) < 4.0);
        assert!(worst((-12.0, 12.0), tanh, f64::tanh) < 2.0);
        assert!(worst((-1.0, 1.0), tanh, f64::tanh) < 2.0);
        for f in [sigmoid, silu, tanh] {
            assert!(f(f32::NAN).is_nan());
        }
        assert_eq!((tanh(120.0), tanh(-120.0)), (1.0, -1.0));
        assert_eq!((sigmoid(120.0), sigmoid(-120.0)), (1.0, 0.0));
        assert_eq!((silu(120.0), silu(-120.0)), (120.0, 0.0));
    }
}
