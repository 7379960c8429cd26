//! What the stages of convolutions cost on a class of adapters, as measured.

use crate::gpu::GpuTraits;

/// Nanoseconds of one core for eight lanes; only ratios matter to the choice of a method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// Winograd's transforms of an input tile and of an output tile.
    pub winograd: [f64; 2],
    /// A gathered pixel and a scattered one.
    pub gemm: [f64; 2],
    /// A multiply-add of a matrix product.
    pub product: f64,
    /// Multiply-adds that storing a sum of them takes as long as.
    pub product_sum: usize,
    /// Fourier transforms of a pair of input tiles and of a pair of output tiles.
    pub fft: [f64; 2],
    /// The Fourier transform of a kernel.
    pub fft_kernel: f64,
    /// A multiply-add of a tile of the gradient with respect to the weight.
    pub weight_grad: f64,
    /// A multiply-add of a tile of 4 output channels by definition.
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

/// The costs of an adapter's class. Hardware is taken for llvmpipe until it has been measured.
pub(super) fn of(_traits: &GpuTraits) -> &'static Costs {
    &LLVMPIPE
}
