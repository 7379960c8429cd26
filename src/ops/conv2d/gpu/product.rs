//! Convolutions by matrix products, Winograd's and plain: columns are written to scratch, multiplied with the packed
//! weight, and the products carried to the result, a part of the image at a time.

use super::{Call, Launch, Method, cost, even};
use crate::ops::conv2d::{ConvSpec, PaddingMode};
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Params, Slot};
use crate::tensor::Shape;

/// The most elements of a scratch buffer, unless a single pair of blocks needs more: 12 MiB.
const SCRATCH: usize = 12 << 18;

/// Tiles or pixels of a block.
const BLOCK: usize = 32;

/// The matrix products of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    method: Method,
    /// Products in a batch: 36 for Winograd.
    batch: usize,
    /// Products that an element sums up, made even.
    depth: usize,
    /// Output channels in blocks of 32.
    row_blocks: usize,
    /// Rows of tiles or pixels in an image, and groups of 4 in a row.
    image_rows: usize,
    row_quads: usize,
    /// Groups of 4 in all images, and blocks that they fill.
    quads: usize,
    blocks: usize,
    /// Blocks computed at a time.
    chunk: usize,
    /// Whether pixels form a single row, as they may where each multiplies itself alone.
    flat: bool,
    /// Whether the result is made of whole groups of 4, and whole tiles.
    exact: bool,
    channels: [usize; 2],
    taps: usize,
}

impl Product {
    /// The products of `method`, if it works by products and can compute such a convolution.
    pub fn new(method: Method, spec: &ConvSpec, weight: Shape, output: Shape) -> Option<Self> {
        if spec.groups != 1 {
            return None;
        }
        let unit = spec.stride == [1; 2];
        let (batch, taps, flat, rows, columns) = match method {
            Method::Winograd if spec.kernel == [3; 2] && unit && spec.dilation == [1; 2] => {
                (36, 1, false, output.h().div_ceil(4), output.w().div_ceil(4))
            }
            Method::Gemm => {
                let alone = spec.kernel == [1; 2] && unit && spec.padding == [0; 2];
                let taps = spec.kernel[0] * spec.kernel[1];
                if alone && !spec.upsample {
                    (1, taps, true, 1, output.plane())
                } else {
                    (1, taps, false, output.h(), output.w())
                }
            }
            _ => return None,
        };
        let exact = match method {
            Method::Winograd => output.w().is_multiple_of(16) && output.h().is_multiple_of(4),
            _ => columns.is_multiple_of(4),
        };
        let depth = even(weight.c() * taps);
        let row_blocks = weight.n().div_ceil(32);
        let row_quads = columns.div_ceil(4);
        let quads = output.n() * rows * row_quads;
        let blocks = quads.div_ceil(BLOCK / 4);
        let widest = batch * BLOCK * ((row_blocks * 32).max(depth) + 1);
        let fitting = (SCRATCH / widest).max(2) / 2 * 2;
        Some(Self {
            method,
            batch,
            depth,
            row_blocks,
            image_rows: rows,
            row_quads,
            quads,
            blocks,
            chunk: fitting.min(blocks).min(65_534),
            flat,
            exact,
            channels: [weight.c(), weight.n()],
            taps,
        })
    }

    /// An estimate of the time, in the unit of [`cost`].
    pub fn cost(&self) -> f64 {
        // Products are made of pairs of blocks.
        let [paired, moved] = [self.blocks.next_multiple_of(2), self.blocks].map(|blocks| (blocks * BLOCK / 8) as f64);
        let product = (self.batch * self.depth * self.row_blocks * 32) as f64 * cost::PRODUCT;
        let [ic, oc] = self.channels.map(|c| c as f64);
        let moves = match self.method {
            Method::Winograd => ic * cost::WINOGRAD[0] + oc * cost::WINOGRAD[1],
            _ => ic * self.taps as f64 * cost::GEMM[0] + oc * cost::GEMM[1],
        };
        paired * product + moved * moves
    }

    /// Elements of the two scratch buffers: columns and products. Their layouts have one row more than is used.
    pub fn scratch(&self) -> [usize; 2] {
        let of = |rows: usize| self.chunk * self.batch * (rows + 1) * BLOCK;
        [of(self.depth), of(self.row_blocks * 32)]
    }

    /// The launches, in order: columns, products and result of one part of the image after the other.
    pub fn dispatches(&self, call: &Call, traits: &GpuTraits) -> Vec<Dispatch> {
        (0..self.blocks).step_by(self.chunk).flat_map(|first| self.part(call, traits, first)).collect()
    }

    fn part(&self, call: &Call, traits: &GpuTraits, first: usize) -> [Dispatch; 3] {
        let blocks = self.chunk.min(self.blocks - first);
        let launch = Launch {
            depth: self.depth,
            rows: self.row_blocks * 32,
            row_quads: self.row_quads,
            image_rows: self.image_rows,
            first_quad: first * (BLOCK / 4),
            quads: self.quads,
        };
        let extent = if self.flat { [1, call.of.x.shape.plane()] } else { call.extent() };
        let params = call.params(extent, launch);
        let (read, written) = self.aligned(call);
        let [ic, oc] = self.channels;
        let (before, before_counts, after, after_rows) = match self.method {
            Method::Winograd => {
                (Kernel::new("winograd_input"), [blocks, self.depth.div_ceil(8), 1], "winograd_output", oc.div_ceil(8))
            }
            _ => (
                Kernel::new("conv2d_gather").flag("POINT", self.taps == 1),
                [blocks.div_ceil(8), ic.div_ceil(8), 1],
                "conv2d_scatter",
                oc.div_ceil(32),
            ),
        };
        let before = before.flag("ALIGNED", read);
        let after = call.storing(after).flag("EXACT", self.exact).flag("ALIGNED", written);
        let mut stored = vec![Bind::Scratch(1)];
        stored.extend(call.epilogue_binds());
        let gathered = vec![Bind::Input(0), Bind::Scratch(0)];
        let operands = [Bind::Input(1), Bind::Scratch(0), Bind::Scratch(1)];
        [
            Dispatch::new(before, params.clone(), gathered, before_counts),
            multiply(traits, operands, self.depth, [self.row_blocks, blocks, self.batch]),
            Dispatch::new(after, params, stored, [blocks, after_rows, 1]),
        ]
    }

    /// Whether kernels can read the input, and write the result, as vectors of 4 elements.
    fn aligned(&self, call: &Call) -> (bool, bool) {
        let spec = &call.conv.spec;
        let four = |slot: &Slot| slot.offset.is_multiple_of(4) && slot.batch_stride.is_multiple_of(4);
        let x = &call.of.x;
        let rows = match self.method {
            Method::Winograd => {
                spec.padding[1] == 1
                    && spec.padding_mode == PaddingMode::Zeros
                    && !spec.upsample
                    && x.shape.w().is_multiple_of(4)
            }
            _ => self.flat && self.exact,
        };
        let residual = call.of.residual.is_none_or(|(_, slot)| four(&slot));
        let lines = match self.method {
            Method::Winograd => call.output.shape.w().is_multiple_of(4),
            _ => self.exact,
        };
        (four(x) && rows, four(&call.output) && residual && lines)
    }
}

/// The launch of a batch of matrix products on the layouts of `gemm.wgsl`: of two operands, the result third. `counts` are
/// the blocks of 32 rows, those of 32 columns and the batch.
pub fn multiply(traits: &GpuTraits, operands: [Bind; 3], depth: usize, counts: [usize; 3]) -> Dispatch {
    let (kernel, at_once) = match traits.subgroup {
        Some(8) => ("gemm_subgroup", 2),
        _ => ("gemm", 4),
    };
    let [rows, columns, batch] = counts;
    let params = Params::new().u(depth).u(rows).u(columns).u(batch);
    Dispatch::new(Kernel::new(kernel), params, operands.to_vec(), [rows, columns.div_ceil(at_once), batch])
}
