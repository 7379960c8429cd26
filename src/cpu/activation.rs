//! Activation functions, elementwise: one table of them, for the CPU and for kernels.

use serde::{Deserialize, Deserializer};

use super::math;
use super::wide::wide_fn;

/// Makes [`Activation`] and its functions from a table. Loops over elements are written out for every row, so that each
/// is compiled for wide vectors by itself.
macro_rules! activations {
    ($($(#[$meta:meta])+ $variant:ident $(($slope:ident))? $name:literal: $value:expr, $derivative:expr;)+) => {
        /// An elementwise nonlinearity.
        #[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Activation {
            /// The identity.
            #[default]
            None,
            $($(#[$meta])+ $variant $((activations!(@type $slope)))?,)+
        }

        impl Activation {
            /// One of each, for tests.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[Self::None, $(Self::$variant $((activations!(@sample $slope)))?),+];

            /// Its name. Kernels call its functions `NAME_value` and `NAME_derivative`
            /// (`shaders/shared/activation.wgsl`).
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    Self::None => "identity",
                    $(Self::$variant $((activations!(@any $slope)))? => $name,)+
                }
            }

            /// The number that the function takes beside `x`, if it takes one: a leaky ReLU's slope.
            const fn slope(self) -> Option<f32> {
                match self {
                    Self::None => None,
                    $(Self::$variant $(($slope))? => activations!(@some $($slope)?),)+
                }
            }

            /// The function's value at `x`. A NaN stays one.
            #[inline(always)]
            pub(crate) fn apply(self, x: f32) -> f32 {
                match self {
                    Self::None => x,
                    $(Self::$variant $(($slope))? => ($value)(x),)+
                }
            }

            /// The function's derivative at `x`. At the corner of a ReLU it is that of the left side, as in PyTorch.
            #[inline(always)]
            pub(crate) fn derivative(self, x: f32) -> f32 {
                match self {
                    Self::None => 1.0,
                    $(Self::$variant $(($slope))? => ($derivative)(x),)+
                }
            }

            /// `out[i] = activation(f(x[i], y[i]))`, written like [`map`](Self::map).
            #[inline(always)]
            pub(crate) fn map_pair(self, x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
                match self {
                    Self::None => map_pair(x, y, out, f),
                    $(Self::$variant $(($slope))? => map_pair(x, y, out, |x, y| ($value)(f(x, y))),)+
                }
            }

            /// `out[i] = dy[i] * derivative(f(x[i]))`, written like [`map`](Self::map).
            #[inline(always)]
            pub(crate) fn map_derivative(self, x: &[f32], dy: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
                match self {
                    Self::None => out.copy_from_slice(dy),
                    $(Self::$variant $(($slope))? => map_pair(x, dy, out, |x, dy| dy * ($derivative)(f(x))),)+
                }
            }
        }

        wide_fn! {
            fn apply_all<'a>(activation: Activation, xs: &'a mut [f32]) -> () {
                match activation {
                    Activation::None => {}
                    $(Activation::$variant $(($slope))? => in_place(xs, $value),)+
                }
            }
        }
    };
    (@type $slope:ident) => { f32 };
    (@sample $slope:ident) => { 0.2 };
    (@any $slope:ident) => { _ };
    (@some) => { None };
    (@some $slope:ident) => { Some($slope) };
}

// Each row: the name in the literature and in kernels, the value at x, the derivative at x.
activations! {
    /// `max(x, 0)`.
    Relu "relu": relu, |x| step(x, 0.0);
    /// `x * sigmoid(x)`, also called Swish.
    Silu "silu": math::silu, silu_derivative;
    /// `x` where positive, else `x` times this slope.
    #[serde(deserialize_with = "negative_slope")]
    LeakyRelu(slope) "leaky_relu": |x| leaky_relu(x, slope), |x| step(x, slope);
    /// The hyperbolic tangent.
    Tanh "tanh": math::tanh, tanh_derivative;
    /// The logistic function.
    Sigmoid "sigmoid": math::sigmoid, sigmoid_derivative;
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
    /// Applies the function to every element, with the widest vectors the machine has. The same bits as
    /// [`apply`](Self::apply).
    pub(crate) fn apply_slice(self, xs: &mut [f32]) {
        apply_all(self, xs);
    }

    /// `out[i] = activation(f(x[i]))`, written to be inlined into a caller that is compiled for wide vectors.
    #[inline(always)]
    pub(crate) fn map(self, x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
        self.map_pair(x, x, out, |x, _| f(x));
    }

    /// The WGSL of the function's value at `x`, where `x` is itself an expression in WGSL.
    pub(crate) fn wgsl(self, x: &str) -> String {
        self.call("value", x)
    }

    /// The WGSL of the function's derivative at `x`.
    pub(crate) fn wgsl_derivative(self, x: &str) -> String {
        self.call("derivative", x)
    }

    fn call(self, suffix: &str, x: &str) -> String {
        match self.slope() {
            Some(slope) => format!("{}_{suffix}({x}, {slope:?}f)", self.name()),
            None => format!("{}_{suffix}({x})", self.name()),
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
fn in_place(xs: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in xs {
        *x = f(*x);
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

/// 1 where positive, else `left`.
#[inline(always)]
fn step(x: f32, left: f32) -> f32 {
    if x > 0.0 { 1.0 } else { left }
}

#[inline(always)]
fn silu_derivative(x: f32) -> f32 {
    let s = math::sigmoid(x);
    s * x.mul_add(1.0 - s, 1.0)
}

#[inline(always)]
fn tanh_derivative(x: f32) -> f32 {
    let y = math::tanh(x);
    y.mul_add(-y, 1.0)
}

#[inline(always)]
fn sigmoid_derivative(x: f32) -> f32 {
    let s = math::sigmoid(x);
    s * (1.0 - s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_single_values_agree_to_the_bit() {
        for &activation in Activation::ALL {
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
        for &activation in Activation::ALL {
            assert!(activation.apply(f32::NAN).is_nan(), "{activation:?}");
        }
    }
}
