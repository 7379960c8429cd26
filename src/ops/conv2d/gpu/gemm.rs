//! Convolutions by one matrix product over gathered pixels.

use super::product::{Columns, Part, by_four, stored_by_four};
use super::{Call, Costs, Method, packed_in_tiles, seen, window};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Prepared};

/// One matrix product over gathered pixels.
pub(super) struct Gemm;

/// Whether each output pixel reads the one input pixel at its own place, so that a plane may be taken for a single row.
fn is_flat(call: &Call) -> bool {
    let spec = call.spec();
    spec.kernel == [1; 2] && spec.stride == [1; 2] && spec.padding == [0; 2] && !spec.upsample
}

/// Rows and columns of an image of the result.
fn size(call: &Call) -> [usize; 2] {
    let out = call.output_shape();
    if is_flat(call) { [1, out.plane()] } else { [out.h(), out.w()] }
}

fn taps(call: &Call) -> usize {
    call.weight_shape().plane()
}

fn columns(call: &Call) -> Columns {
    Columns::new(call, 1, taps(call), size(call))
}

impl Method for Gemm {
    fn name(&self) -> &'static str {
        "gemm"
    }

    fn fits(&self, call: &Call) -> bool {
        let bytes = || 4 * columns(call).packed_len() as u64;
        call.spec().groups == 1 && call.group_out() > 2 && bytes() <= call.traits.largest_tensor()
    }

    fn cost(&self, call: &Call, costs: &Costs) -> f64 {
        let columns = columns(call);
        let [oc, ic, ..] = call.weight_shape().0;
        let [paired, moved] = columns.blocks_by_lanes();
        let moves = (ic * taps(call)) as f64 * costs.gemm[0] + oc as f64 * costs.gemm[1];
        paired * columns.macs() * costs.product + moved * moves
    }

    fn pack(&self, call: &Call) -> Option<Prepared> {
        Some(packed_in_tiles(call, "in tiles of 32".into(), 32, columns(call).depth + 1))
    }

    fn launches(&self, call: &Call, weight: Operand) -> Lowered {
        let (spec, columns, flat) = (call.spec(), columns(call), is_flat(call));
        let exact = size(call)[1].is_multiple_of(4);
        let extent = if flat { [1, call.input_shape().plane()] } else { spec.extent(call.input_shape()) };
        let [oc, ic, ..] = call.weight_shape().0;
        let gather = |part: Part| {
            let launch = Launch::new("conv2d_gather", "main")
                .flag("POINT", taps(call) == 1)
                .flag("ALIGNED", flat && exact && by_four(&call.of.x))
                .write("columns", columns.columns())
                .u32("in_channels", ic)
                .u32("depth", columns.depth);
            let launch = columns.quads(window(seen(launch, call.of.x, spec, extent), spec), part);
            launch.over_grid([part.blocks.div_ceil(8), ic.div_ceil(8), 1])
        };
        let scatter = |part: Part| {
            let launch = Launch::new("conv2d_scatter", "main")
                .flag("EXACT", exact)
                .flag("ALIGNED", exact && stored_by_four(call))
                .read("sums", columns.products())
                .u32("rows", columns.row_blocks * 32);
            columns.quads(call.stored(launch), part).over_grid([part.blocks, oc.div_ceil(32), 1])
        };
        columns.launches(call.traits, weight, gather, scatter)
    }
}
