//! The times that the stages of convolutions take on a class of adapters, by which a method is chosen.

use crate::gpu::GpuTraits;

/// Times of single stages, in nanoseconds of one core of llvmpipe for 8 lanes at once; only their ratios decide which
/// method is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// Winograd: the transform of an input tile, and that of an output tile, in one channel.
    pub winograd: [f64; 2],
    /// GEMM: a pixel that is gathered for one tap, and one that is scattered to the result.
    pub gemm: [f64; 2],
    /// A multiply-add of a matrix product.
    pub product: f64,
    /// How many multiply-adds of a matrix product take as long as storing one sum of them.
    pub product_sum: usize,
    /// The Fourier transform of a pair of input tiles, and that of a pair of output tiles, in one channel.
    pub fft: [f64; 2],
    /// The Fourier transform of a kernel, for one pair of channels.
    pub fft_kernel: f64,
    /// A multiply-add of the gradient with respect to the weight, where it is summed over chunks of pixels.
    pub weight_grad: f64,
    /// A multiply-add of the direct method.
    pub direct: f64,
}

/// llvmpipe (Mesa 22.3) on two cores of an AMD EPYC (Zen 5), `medfuse bench --device gpu`, 2026-11.
const LLVMPIPE: Costs = Costs {
    winograd: [1000.0, 1150.0],
    gemm: [25.0, 30.0],
    product: 0.54,
    product_sum: 24,
    fft: [18_000.0, 24_000.0],
    fft_kernel: 9000.0,
    weight_grad: 15.0,
    direct: 3.6,
};

/// The costs of an adapter's class. No hardware has been measured yet: all adapters are taken for llvmpipe.
pub(super) fn of(_traits: &GpuTraits) -> &'static Costs {
    &LLVMPIPE
}
