//! Convolutions by their definition, for few output channels a group.

use super::{Call, Launch, Method};
use crate::ops::conv2d::ConvSpec;
use crate::ops::{Bind, Dispatch};
use crate::tensor::Shape;

/// Tiles of 4 output channels, none across two groups.
pub fn tiles(spec: &ConvSpec, weight: Shape) -> usize {
    spec.groups * (weight.n() / spec.groups).div_ceil(4)
}

/// The launches: one, or several parts of the batch where WebGPU's limit on workgroups asks for them.
pub fn dispatches(call: &Call, method: Method) -> Vec<Dispatch> {
    let spec = &call.conv.spec;
    let out = call.output.shape;
    // Pixels in a row of an invocation, and channels of a workgroup.
    let (file, pixels, channels) = match method {
        Method::Depthwise => ("conv2d_depthwise", 16, out.c()),
        _ => ("conv2d_direct", 8, tiles(spec, call.weight)),
    };
    let slide = spec.stride[1] == 1 && spec.dilation[1] == 1;
    let kernel = call.storing(file).flag("SLIDE", slide);
    let mut binds = vec![Bind::Input(0), Bind::Input(1)];
    binds.extend(call.epilogue_binds());
    let launch = Launch::default();
    let params = call.params(call.extent(), launch);
    let counts = [out.w().div_ceil(8 * pixels), out.h().div_ceil(8), channels * out.n()];
    vec![Dispatch::new(kernel, params, binds, counts)]
}
