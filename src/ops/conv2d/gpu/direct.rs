//! Convolutions by their definition, 4 output channels of a group at a time.

use super::{Call, Costs, Method, packed_in_tiles, window};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Prepared};

/// Output channels that an invocation computes.
const TILE: usize = 4;
/// Columns and rows of a workgroup's pixels.
const PIXELS: [usize; 2] = [64, 8];

/// The definition, for groups of three output channels or more.
pub(super) struct Direct;

/// How many tiles of output channels there are; no tile holds channels of two groups.
fn tiles(call: &Call) -> usize {
    call.spec().groups * call.group_out().div_ceil(TILE)
}

impl Method for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn fits(&self, call: &Call) -> bool {
        call.group_out() > 2
    }

    fn cost(&self, call: &Call, costs: &Costs) -> f64 {
        let out = call.output_shape();
        let pixels = out.n() * out.h() * out.w().next_multiple_of(PIXELS[0]) / 8;
        (pixels * tiles(call) * call.weight_shape().item()) as f64 * TILE as f64 * costs.direct
    }

    fn pack(&self, call: &Call) -> Option<Prepared> {
        let what = format!("in tiles of {TILE}, {} groups", call.spec().groups);
        Some(packed_in_tiles(call, what, TILE, call.weight_shape().item()))
    }

    fn launches(&self, call: &Call, weight: Operand) -> Lowered {
        let (spec, out) = (call.spec(), call.output_shape());
        let [_, group_in, kh, kw] = call.weight_shape().0;
        let launch = Launch::new("conv2d_direct", "main")
            .flag("SLIDE", spec.stride[1] == 1 && spec.dilation[1] == 1)
            .read("weight", weight)
            .u32("group_in", group_in)
            .u32("group_out", call.group_out());
        let launch = call.stored(window(call.seen(launch), spec));
        let grid = [out.w().div_ceil(PIXELS[0]), out.h().div_ceil(PIXELS[1]), tiles(call) * out.n()];
        Lowered::gpu([launch.over_grid(grid)]).rounds(group_in * (4 + kh * (4 + kw)))
    }
}
