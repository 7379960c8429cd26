//! Convolutions by their definition, one output channel at a time.

use super::{Call, Costs, Method, window};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Prepared};

/// Columns and rows of the pixels that a workgroup computes: of the kernel for any adapter, and of that for subgroups
/// of 8.
const PIXELS: [[usize; 2]; 2] = [[128, 8], [64, 64]];

/// The definition, for groups of one or two output channels.
pub(super) struct Depthwise;

impl Method for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise"
    }

    fn fits(&self, call: &Call) -> bool {
        call.group_out() <= 2
    }

    /// Zero: where this method fits, no other does.
    fn cost(&self, _call: &Call, _costs: &Costs) -> f64 {
        0.0
    }

    fn pack(&self, _call: &Call) -> Option<Prepared> {
        None
    }

    fn launches(&self, call: &Call, weight: Operand) -> Lowered {
        let (spec, out) = (call.spec(), call.output_shape());
        let [_, group_in, kh, kw] = call.weight_shape().0;
        // The kernel whose lanes hand each other weights is written for one input channel a group, stride 1 and
        // dilation 1.
        let by_subgroups = group_in == 1 && call.is_dense() && call.traits.subgroup == Some(8);
        let file = if by_subgroups { "conv2d_depthwise_subgroup" } else { "conv2d_depthwise" };
        let launch = Launch::new(file, "main").read("weight", weight).u32("group_out", call.group_out());
        let launch = call.stored(call.seen(launch));
        let launch = match by_subgroups {
            true => launch.u32("kernel_h", kh).u32("kernel_w", kw),
            false => window(launch, spec)
                .flag("SLIDE", spec.stride[1] == 1 && spec.dilation[1] == 1)
                .u32("group_in", group_in),
        };
        let [width, height] = PIXELS[usize::from(by_subgroups)];
        let grid = [out.w().div_ceil(width), out.h().div_ceil(height), out.c() * out.n()];
        let rounds = (group_in * (4 + kh * (4 + kw))).max((kh + 3) * (4 + kw.div_ceil(4)));
        Lowered::gpu([launch.over_grid(grid)]).rounds(rounds)
    }
}
