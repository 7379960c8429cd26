//! Convolutions by their definition, for few output channels a group.

use super::{Call, Launch, Method};
use crate::ops::conv2d::ConvSpec;
use crate::ops::{Bind, Dispatch, GpuTraits};
use crate::tensor::Shape;

/// The kernel whose lanes hand each other weights; it knows no strides and no sums over channels.
const SUBGROUP: &str = "conv2d_depthwise_subgroup";

/// Tiles of 4 output channels, none across two groups.
pub fn tiles(spec: &ConvSpec, weight: Shape) -> usize {
    spec.groups * (weight.n() / spec.groups).div_ceil(4)
}

/// The launches: one, or several parts of the batch where WebGPU's limit on workgroups asks for them.
pub fn dispatches(call: &Call, method: Method, traits: &GpuTraits) -> Vec<Dispatch> {
    let spec = &call.conv.spec;
    let out = call.output.shape;
    let depthwise = call.weight.c() == 1 && spec.stride == [1; 2] && spec.dilation == [1; 2];
    // Columns and rows of a workgroup's pixels, and its channels.
    let (file, pixels, channels) = match method {
        Method::Depthwise if depthwise && traits.subgroup == Some(8) => (SUBGROUP, [64, 64], out.c()),
        Method::Depthwise => ("conv2d_depthwise", [128, 8], out.c()),
        _ => ("conv2d_direct", [64, 8], tiles(spec, call.weight)),
    };
    let mut kernel = call.storing(file);
    if file != SUBGROUP {
        kernel = kernel.flag("SLIDE", spec.stride[1] == 1 && spec.dilation[1] == 1);
    }
    let mut binds = vec![Bind::Input(0), Bind::Input(1)];
    binds.extend(call.epilogue_binds());
    let launch = Launch::default();
    let params = call.params(call.extent(), launch);
    let counts = [out.w().div_ceil(pixels[0]), out.h().div_ceil(pixels[1]), channels * out.n()];
    vec![Dispatch::new(kernel, params, binds, counts)]
}
