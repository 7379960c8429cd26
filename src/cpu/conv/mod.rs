//! Convolution on the CPU: Winograd tiles for 3x3, Fourier transforms for large kernels, implicit GEMM for the rest, a
//! direct loop for few channels.
//!
//! Weights are packed once into one flat buffer whose length follows from the shapes (`Algorithm::packed_len`). The order in
//! which an output's products are summed depends on shapes alone, so the number of threads does not change a single
//! bit.

mod direct;
mod epilogue;
mod fft;
mod fft_conv;
mod fft_grad;
mod gemm;
mod microkernel;
#[cfg(test)]
mod reference;
mod scratch;
mod source;
mod weight_grad;
mod winograd;
mod winograd_grad;

pub(crate) use epilogue::Epilogue;
#[cfg(test)]
pub(crate) use reference::conv2d_reference;
pub(crate) use weight_grad::conv2d_weight_grad;

use crate::cpu::view::{View, ViewMut};
use crate::tensor::Shape;
use epilogue::Output;
use pulp::{Arch, Simd, WithSimd};
use serde::Deserialize;
use source::Source;

/// What lies beyond the edges of a convolution's input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingMode {
    /// Zeros.
    #[default]
    Zeros,
    /// The input mirrored at its first and last pixel, which are not repeated.
    Reflect,
}

/// The hyperparameters of a two-dimensional convolution; pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvSpec {
    /// Height and width of the kernel.
    #[serde(alias = "kernel_size")]
    pub kernel: [usize; 2],
    /// Pixels of the input from one output pixel to the next.
    pub stride: [usize; 2],
    /// Pixels added on each of two opposite sides.
    pub padding: [usize; 2],
    /// Pixels of the input from one kernel tap to the next.
    pub dilation: [usize; 2],
    /// Groups that input and output channels are split into; each output group reads its own input group.
    pub groups: usize,
    /// What the padding holds.
    #[serde(default)]
    pub padding_mode: PaddingMode,
    /// Whether the input is enlarged twofold by nearest neighbours before the convolution.
    #[serde(skip)]
    pub upsample: bool,
}

impl ConvSpec {
    /// A square kernel with stride 1 and the zero padding that keeps the size (for odd `kernel`).
    pub const fn same(kernel: usize) -> Self {
        Self {
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [kernel / 2; 2],
            dilation: [1; 2],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
            upsample: false,
        }
    }

    /// The size of the input that the kernel slides over: after upsampling, before padding.
    pub(crate) const fn extent(&self, input: Shape) -> [usize; 2] {
        let scale = if self.upsample { 2 } else { 1 };
        [input.h() * scale, input.w() * scale]
    }

    /// The output's shape for an input `[n, ic, h, w]` and a weight `[oc, ic / groups, kh, kw]`. `None` if the shapes
    /// do not fit each other, the kernel does not fit the padded input, or reflection reaches beyond the input.
    pub fn output_shape(&self, input: Shape, weight: Shape) -> Option<Shape> {
        let fits = self.groups > 0
            && weight.c() * self.groups == input.c()
            && weight.n().is_multiple_of(self.groups)
            && [weight.h(), weight.w()] == self.kernel
            && self.kernel.iter().all(|&k| k > 0)
            && self.stride.iter().all(|&s| s > 0)
            && self.dilation.iter().all(|&d| d > 0);
        if !fits {
            return None;
        }
        let extent = self.extent(input);
        let mut size = [0; 2];
        for axis in 0..2 {
            let padding = self.padding[axis];
            if self.padding_mode == PaddingMode::Reflect && padding >= extent[axis] {
                return None;
            }
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let slack = (extent[axis] + 2 * padding).checked_sub(reach)?;
            size[axis] = slack / self.stride[axis] + 1;
        }
        Some(Shape::new(input.n(), weight.n(), size[0], size[1]))
    }
}

/// How a convolution, or its gradient with respect to the weight, is computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Algorithm {
    /// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016), which takes 36 products for 16 outputs where the
    /// definition takes 144; transposed for the gradient.
    Winograd,
    /// Products of the Fourier transforms of tiles.
    Fft,
    /// A matrix product over input patches that are gathered block by block. The gradient is a product over pixels for
    /// each tap.
    Gemm,
    /// Multiply-adds on rows of pixels, for few channels a group.
    Direct,
}

impl Algorithm {
    /// The algorithm used for an input `[n, ic, h, w]` and a weight `[oc, ic / groups, kh, kw]`.
    pub(crate) fn choose(spec: &ConvSpec, input: Shape, weight: Shape) -> Self {
        let per_group = weight.n() / spec.groups;
        if per_group < 4 {
            Self::Direct
        } else if winograd::supports(spec) && winograd::pays(spec, input, weight) {
            Self::Winograd
        } else if spec.output_shape(input, weight).is_some_and(|out| fft_conv::pays(spec, out, weight)) {
            Self::Fft
        } else {
            Self::Gemm
        }
    }

    /// Its name in the tables of the benchmark.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Winograd => "winograd",
            Self::Fft => "fft",
            Self::Gemm => "gemm",
            Self::Direct => "direct",
        }
    }

    /// Whether the algorithm can compute such a convolution at all.
    #[cfg(test)]
    pub(crate) fn supports(self, spec: &ConvSpec) -> bool {
        match self {
            Self::Winograd => winograd::supports(spec),
            Self::Fft => fft_conv::supports(spec),
            Self::Gemm | Self::Direct => true,
        }
    }

    /// Elements of the packed form of a weight `[oc, ic / groups, kh, kw]`.
    pub(crate) fn packed_len(self, spec: &ConvSpec, weight: Shape) -> usize {
        match self {
            Self::Winograd => winograd::packed_len(weight),
            Self::Gemm => gemm::packed_len(spec, weight),
            Self::Fft | Self::Direct => weight.numel(),
        }
    }

    /// Writes the packed form of a weight `[oc, ic / groups, kh, kw]`.
    ///
    /// # Panics
    /// If `packed` has not [`packed_len`](Self::packed_len) elements.
    pub(crate) fn pack_into(self, spec: &ConvSpec, shape: Shape, weight: &[f32], packed: &mut [f32]) {
        assert_eq!(packed.len(), self.packed_len(spec, shape), "packed weights");
        match self {
            Self::Winograd => winograd::pack_into(shape, weight, packed),
            Self::Gemm => gemm::pack_into(spec, shape, weight, packed),
            Self::Fft | Self::Direct => packed.copy_from_slice(weight),
        }
    }

    /// Convolves `[n, ic, h, w]` to `[n, oc, oh, ow]` (cross-correlation, as in PyTorch) and applies the epilogue,
    /// `activation(conv(x) + bias + channel_add + residual)`, on the given instruction set.
    ///
    /// # Panics
    /// If the shapes do not fit each other ([`ConvSpec::output_shape`]) or the weights were packed for another algorithm.
    pub(crate) fn run(self, arch: Arch, conv: &Conv, out: ViewMut) {
        let shape = conv
            .spec
            .output_shape(conv.x.shape, conv.weight_shape)
            .expect("shapes are checked when the graph is built");
        assert_eq!(out.shape, shape, "the output's shape");
        conv.epilogue.check(shape);
        let source = Source::new(conv.spec, conv.x);
        let out = Output::new(out, conv.epilogue);
        arch.dispatch(Run { algorithm: self, conv, source: &source, out: &out });
    }
}

/// One convolution's operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv<'a> {
    /// The hyperparameters.
    pub spec: &'a ConvSpec,
    /// The input, `[n, ic, h, w]`.
    pub x: View<'a>,
    /// The weights in the algorithm's packed form.
    pub packed: &'a [f32],
    /// The shape the weights had before, `[oc, ic / groups, kh, kw]`.
    pub weight_shape: Shape,
    /// What follows the sum of products.
    pub epilogue: &'a Epilogue<'a>,
}

/// A convolution by an algorithm, with its input and output in the form in which tasks use them.
#[derive(Clone, Copy)]
struct Run<'a> {
    algorithm: Algorithm,
    conv: &'a Conv<'a>,
    source: &'a Source<'a>,
    out: &'a Output<'a>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    fn with_simd<S: Simd>(self, simd: S) {
        match self.algorithm {
            Algorithm::Winograd => winograd::run(simd, self),
            Algorithm::Fft => fft_conv::run(simd, self),
            Algorithm::Gemm => gemm::run(simd, self),
            Algorithm::Direct => direct::run(simd, self),
        }
    }
}

#[cfg(test)]
mod tests;
