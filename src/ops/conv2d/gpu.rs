//! The choice of a convolution's kernels on a GPU.

use super::{Conv2d, PaddingMode};
use crate::ops::activation::Activation;
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Params, Slot, Specialized};
use crate::tensor::Shape;

/// The form of `conv` that suits its shapes.
pub fn specialize(_conv: Conv2d, _traits: &GpuTraits, _inputs: &[Shape]) -> Option<Specialized> {
    None
}

/// The number by which kernels know an activation, and its slope.
pub fn activation_code(activation: Activation) -> (usize, f32) {
    match activation {
        Activation::None => (0, 0.0),
        Activation::Relu => (1, 0.0),
        Activation::Silu => (2, 0.0),
        Activation::LeakyRelu(slope) => (3, slope),
        Activation::Tanh => (4, 0.0),
        Activation::Sigmoid => (5, 0.0),
    }
}

/// The direct kernel: any hyperparameters.
pub fn direct(conv: &Conv2d, _traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
    let of = conv.operands(inputs);
    let spec = &conv.spec;
    let (code, slope) = activation_code(conv.activation);
    let bind = |slot: Option<(usize, Slot)>| slot.map_or(Bind::Absent, |(i, _)| Bind::Input(i));
    let there = |slot: Option<(usize, Slot)>| usize::from(slot.is_some());
    let slot = |slot: Option<(usize, Slot)>| slot.map(|(_, s)| s);
    let add_stride = of.channel_add.map_or(
        0,
        |(_, s)| if s.shape.n() == 1 { 0 } else { s.batch_stride },
    );
    let shape = output.shape;
    let params = Params::new()
        .slot(&of.x)
        .slot(&of.weight)
        .optional_slot(slot(of.residual).as_ref())
        .slot(&output)
        .u(of.bias.map_or(0, |(_, s)| s.offset))
        .u(of.channel_add.map_or(0, |(_, s)| s.offset))
        .u(add_stride)
        .u(there(of.bias) + 2 * there(of.channel_add) + 4 * there(of.residual))
        .u(of.weight.shape.c())
        .u(of.x.shape.h())
        .u(of.x.shape.w())
        .u(shape.c())
        .u(shape.h())
        .u(shape.w())
        .u(spec.kernel[0])
        .u(spec.kernel[1])
        .u(spec.stride[0])
        .u(spec.stride[1])
        .u(spec.padding[0])
        .u(spec.padding[1])
        .u(spec.dilation[0])
        .u(spec.dilation[1])
        .u(shape.c() / spec.groups)
        .u(usize::from(spec.padding_mode == PaddingMode::Reflect))
        .u(usize::from(spec.upsample))
        .u(code)
        .f(slope);
    let binds = vec![
        Bind::Input(0),
        Bind::Input(1),
        bind(of.bias),
        bind(of.channel_add),
        bind(of.residual),
        Bind::Output,
    ];
    let counts = [shape.plane().div_ceil(64).min(65_535), shape.c(), shape.n()];
    vec![Dispatch::new(
        Kernel::new("conv2d_direct"),
        params,
        binds,
        counts,
    )]
}
