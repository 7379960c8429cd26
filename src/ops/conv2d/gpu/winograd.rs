//! Convolutions of 3x3 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2016): 36 matrix products over 4x4
//! tiles of the output.

use super::product::{Columns, Part, by_four, stored_by_four};
use super::{Call, Costs, Method, PaddingMode, even, packed};
use crate::gpu::{Bind, Launch, Operand};
use crate::graph::{Lowered, Prepared};

/// Winograd's minimal filtering.
pub(super) struct Winograd;

fn columns(call: &Call) -> Columns {
    let out = call.output_shape();
    Columns::new(call, 36, 1, [out.h().div_ceil(4), out.w().div_ceil(4)])
}

impl Method for Winograd {
    fn name(&self) -> &'static str {
        "winograd"
    }

    fn fits(&self, call: &Call) -> bool {
        let spec = call.spec();
        let bytes = || 4 * columns(call).packed_len() as u64;
        spec.groups == 1
            && call.group_out() > 2
            && spec.kernel == [3; 2]
            && call.is_dense()
            && bytes() <= call.traits.largest_tensor()
    }

    fn cost(&self, call: &Call, costs: &Costs) -> f64 {
        let columns = columns(call);
        let [oc, ic, ..] = call.weight_shape().0.map(|count| count as f64);
        let [paired, moved] = columns.blocks_by_lanes();
        paired * columns.macs() * costs.product + moved * (ic * costs.winograd[0] + oc * costs.winograd[1])
    }

    fn pack(&self, call: &Call) -> Option<Prepared> {
        let columns = columns(call);
        let [oc, ic, ..] = call.weight_shape().0;
        let launch = Launch::new("winograd_weight", "main")
            .read("weight", Operand { bind: Bind::Input(0), ..call.of.weight })
            .write("transformed", packed(columns.packed_len()))
            .u32("out_channels", oc)
            .u32("in_channels", ic)
            .u32("depth", even(ic))
            .over_grid([even(ic), columns.row_blocks, 1]);
        Some(Prepared::on_gpu(1, "transformed for Winograd".into(), columns.packed_len(), launch))
    }

    fn launches(&self, call: &Call, weight: Operand) -> Lowered {
        let (spec, columns, out) = (call.spec(), columns(call), call.output_shape());
        let [oc, ic, ..] = call.weight_shape().0;
        // Whether rows of the input begin at multiples of 4 elements and one column of zeros is padded on each side.
        let aligned = spec.padding[1] == 1
            && spec.padding_mode == PaddingMode::Zeros
            && !spec.upsample
            && call.input_shape().w().is_multiple_of(4)
            && by_four(&call.of.x);
        let input = |part: Part| {
            let launch = Launch::new("winograd_input", "main")
                .flag("ALIGNED", aligned)
                .write("transformed", columns.columns())
                .u32("in_channels", ic)
                .u32("depth", columns.depth);
            let grid = [part.blocks, columns.depth.div_ceil(8), 1];
            columns.quads(call.seen(launch), part).over_grid(grid)
        };
        let output = |part: Part| {
            let launch = Launch::new("winograd_output", "main")
                .flag("EXACT", out.w().is_multiple_of(16) && out.h().is_multiple_of(4))
                .flag("ALIGNED", out.w().is_multiple_of(4) && stored_by_four(call))
                .read("sums", columns.products())
                .u32("rows", columns.row_blocks * 32);
            columns.quads(call.stored(launch), part).over_grid([part.blocks, oc.div_ceil(8), 1])
        };
        columns.launches(call.traits, weight, input, output)
    }
}
