//! Activation functions, elementwise.

use serde::{Deserialize, Deserializer};

use crate::cpu::math;
use crate::cpu::wide::wide_fn;

/// An elementwise nonlinearity.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`, also called Swish.
    Silu,
    /// `x` where positive, else `x` times this slope.
    #[serde(deserialize_with = "negative_slope")]
    LeakyRelu(f32),
    /// The hyperbolic tangent.
    Tanh,
    /// The logistic function.
    Sigmoid,
}

/// The slope of a leaky ReLU as PyTorch has it: an attribute `negative_slope`, 0.01 where it is not given.
fn negative_slope<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct LeakyRelu {
        negative_slope: f32,
    }

    impl Default for LeakyRelu {
        fn default() -> Self {
            Self { negative_slope: 0.01 }
        }
    }

    LeakyRelu::deserialize(deserializer).map(|leaky| leaky.negative_slope)
}

impl Activation {
    /// The function's value at `x`. A NaN stays one.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => relu(x),
            Self::Silu => math::silu(x),
            Self::LeakyRelu(slope) => leaky_relu(x, slope),
            Self::Tanh => math::tanh(x),
            Self::Sigmoid => math::sigmoid(x),
        }
    }

    /// The function's derivative at `x`; at the corner of a ReLU that of the left side, as in PyTorch.
    #[inline(always)]
    pub fn derivative(self, x: f32) -> f32 {
        let step = |left: f32| if x > 0.0 { 1.0 } else { left };
        match self {
            Self::None => 1.0,
            Self::Relu => step(0.0),
            Self::Silu => {
                let s = math::sigmoid(x);
                s * x.mul_add(1.0 - s, 1.0)
            }
            Self::LeakyRelu(slope) => step(slope),
            Self::Tanh => {
                let y = math::tanh(x);
                y.mul_add(-y, 1.0)
            }
            Self::Sigmoid => {
                let s = math::sigmoid(x);
                s * (1.0 - s)
            }
        }
    }

    /// The number by which kernels know the function (`shaders/shared/activation.wgsl`), and its slope.
    pub(crate) fn code(self) -> (f64, f32) {
        match self {
            Self::None => (0.0, 0.0),
            Self::Relu => (1.0, 0.0),
            Self::Silu => (2.0, 0.0),
            Self::LeakyRelu(slope) => (3.0, slope),
            Self::Tanh => (4.0, 0.0),
            Self::Sigmoid => (5.0, 0.0),
        }
    }

    /// Applies the function to every element, with the widest vectors the machine has. The same bits as [`apply`](Self::apply).
    pub fn apply_slice(self, xs: &mut [f32]) {
        apply_all(self, xs);
    }

    /// `out[i] = activation(f(x[i]))`, written to be inlined into a caller that is compiled for wide vectors.
    #[inline(always)]
    pub(crate) fn map(self, x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
        self.map_pair(x, x, out, |x, _| f(x));
    }

    /// `out[i] = activation(f(x[i], y[i]))`, written like [`map`](Self::map).
    #[inline(always)]
    pub(crate) fn map_pair(self, x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
        match self {
            Self::None => map_pair(x, y, out, f),
            Self::Relu => map_pair(x, y, out, |x, y| relu(f(x, y))),
            Self::Silu => map_pair(x, y, out, |x, y| math::silu(f(x, y))),
            Self::LeakyRelu(slope) => map_pair(x, y, out, |x, y| leaky_relu(f(x, y), slope)),
            Self::Tanh => map_pair(x, y, out, |x, y| math::tanh(f(x, y))),
            Self::Sigmoid => map_pair(x, y, out, |x, y| math::sigmoid(f(x, y))),
        }
    }

    /// `out[i] = dy[i] * derivative(f(x[i]))`, written like [`map`](Self::map).
    #[inline(always)]
    pub(crate) fn map_derivative(self, x: &[f32], dy: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
        match self {
            Self::None => out.copy_from_slice(dy),
            Self::Relu => map_pair(x, dy, out, |x, dy| dy * Self::Relu.derivative(f(x))),
            Self::Silu => map_pair(x, dy, out, |x, dy| dy * Self::Silu.derivative(f(x))),
            Self::LeakyRelu(slope) => map_pair(x, dy, out, |x, dy| dy * Self::LeakyRelu(slope).derivative(f(x))),
            Self::Tanh => map_pair(x, dy, out, |x, dy| dy * Self::Tanh.derivative(f(x))),
            Self::Sigmoid => map_pair(x, dy, out, |x, dy| dy * Self::Sigmoid.derivative(f(x))),
        }
    }
}

#[inline(always)]
fn map_pair(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
        *out = f(x, y);
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn leaky_relu(x: f32, slope: f32) -> f32 {
    if x < 0.0 { x * slope } else { x }
}

wide_fn! {
    fn apply_all<'a>(activation: Activation, xs: &'a mut [f32]) -> () {
        match activation {
            Activation::None => {}
            Activation::Relu => in_place(xs, relu),
            Activation::Silu => in_place(xs, math::silu),
            Activation::LeakyRelu(slope) => in_place(xs, |x| leaky_relu(x, slope)),
            Activation::Tanh => in_place(xs, math::tanh),
            Activation::Sigmoid => in_place(xs, math::sigmoid),
        }
    }
}

#[inline(always)]
fn in_place(xs: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in xs {
        *x = f(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::None,
        Activation::Relu,
        Activation::Silu,
        Activation::LeakyRelu(0.2),
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    #[test]
    fn slices_and_single_values_agree_to_the_bit() {
        for activation in ALL {
            let xs: Vec<f32> = (-700..700).map(|i| i as f32 * 0.173).collect();
            let mut got = xs.clone();
            activation.apply_slice(&mut got);
            let want: Vec<f32> = xs.iter().map(|&x| activation.apply(x)).collect();
            assert_eq!(got, want, "{activation:?}");
            let mut mapped = vec![0.0; xs.len()];
            activation.map(&xs, &mut mapped, |x| x);
            assert_eq!(mapped, want, "{activation:?}");
        }
    }

    #[test]
    fn values() {
        assert_eq!(Activation::Relu.apply(-2.0), 0.0);
        assert_eq!(Activation::Relu.apply(f32::NEG_INFINITY), 0.0);
        assert_eq!(Activation::LeakyRelu(0.25).apply(-2.0), -0.5);
        assert_eq!(Activation::LeakyRelu(0.25).apply(3.0), 3.0);
        assert!((Activation::Silu.apply(1.0) - 0.731_058_6).abs() < 1e-7);
        for activation in ALL {
            assert!(activation.apply(f32::NAN).is_nan(), "{activation:?}");
        }
    }
}
