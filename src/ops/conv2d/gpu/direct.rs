//! Convolutions by their definition, for few output channels a group.

use super::{Call, Launch, Method};
use crate::ops::conv2d::ConvSpec;
use crate::ops::{Bind, Dispatch, GpuTraits};
use crate::tensor::Shape;

/// Tiles of 4 output channels, none across two groups.
pub fn tiles(spec: &ConvSpec, weight: Shape) -> usize {
    spec.groups * (weight.n() / spec.groups).div_ceil(4)
}

/// The launches: one, or several parts of the batch where WebGPU's limit on workgroups asks for them.
pub fn dispatches(call: &Call, method: Method, traits: &GpuTraits) -> Vec<Dispatch> {
    let spec = &call.conv.spec;
    let out = call.output.shape;
    // What the kernel whose lanes hand each other weights knows: no strides and no sums over channels.
    let depthwise = call.weight.c() == 1 && spec.stride == [1; 2] && spec.dilation == [1; 2];
    let sliding = |file| call.storing(file).flag("SLIDE", spec.stride[1] == 1 && spec.dilation[1] == 1);
    // Columns and rows of a workgroup's pixels, and its channels.
    let (kernel, pixels, channels) = match method {
        Method::Depthwise if depthwise && traits.subgroup == Some(8) => {
            (call.storing("conv2d_depthwise_subgroup"), [64, 64], out.c())
        }
        Method::Depthwise => (sliding("conv2d_depthwise"), [128, 8], out.c()),
        _ => (sliding("conv2d_direct"), [64, 8], tiles(spec, call.weight)),
    };
    let mut binds = vec![Bind::Input(0), Bind::Input(1)];
    binds.extend(call.epilogue_binds());
    let launch = Launch::default();
    let params = call.params(call.extent(), launch);
    let counts = [out.w().div_ceil(pixels[0]), out.h().div_ceil(pixels[1]), channels * out.n()];
    vec![Dispatch::new(kernel, params, binds, counts)]
}
