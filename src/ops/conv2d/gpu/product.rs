//! What convolutions by matrix products share, Winograd and GEMM. The pixels or tiles of a part of the image are
//! written to scratch as the columns of a matrix, multiplied with the packed weight, and the products carried to the
//! result; then comes the next part.

use super::{Call, even};
use crate::gpu::{GpuTraits, Launch, Operand};
use crate::graph::Lowered;

/// The most elements of a scratch buffer (12 MiB), unless a single pair of blocks needs more.
const SCRATCH: usize = 12 << 18;

/// Tiles or pixels of a block.
pub(super) const BLOCK: usize = 32;

/// The layout of a convolution's matrix products. A column is a pixel or a tile; four columns along a row are a quad, 8
/// quads a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Products in a batch: 36 for Winograd.
    pub batch: usize,
    /// Terms of a sum, made even.
    pub depth: usize,
    /// Output channels in blocks of 32.
    pub row_blocks: usize,
    /// Rows of tiles or pixels in an image, and quads in a row.
    image_rows: usize,
    row_quads: usize,
    /// Quads in all images, and the blocks that they fill.
    quads: usize,
    pub blocks: usize,
    /// Blocks computed at a time.
    chunk: usize,
}

/// A part of the image: its first block and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub first: usize,
    pub blocks: usize,
}

impl Columns {
    /// `batch` products of `taps` taps of every input channel for images of `rows` x `columns` tiles or pixels.
    pub fn new(call: &Call, batch: usize, taps: usize, [rows, columns]: [usize; 2]) -> Self {
        let weight = call.weight_shape();
        let depth = even(weight.c() * taps);
        let row_blocks = weight.n().div_ceil(32);
        let row_quads = columns.div_ceil(4);
        let quads = call.output_shape().n() * rows * row_quads;
        let blocks = quads.div_ceil(BLOCK / 4);
        let widest = batch * BLOCK * ((row_blocks * 32).max(depth) + 1);
        let fitting = (SCRATCH / widest).max(2) / 2 * 2;
        Self { batch, depth, row_blocks, image_rows: rows, row_quads, quads, blocks, chunk: fitting.min(blocks) }
    }

    /// Elements of the packed weight.
    pub(crate) fn packed_len(&self) -> usize {
        self.batch * self.row_blocks * 32 * (self.depth + 1)
    }

    /// Elements of the two scratch buffers, columns and products. Their layouts have one row more than is used, so that
    /// what is written together does not fall into the same cache sets.
    pub(crate) fn scratch(&self) -> [usize; 2] {
        let of = |rows: usize| self.chunk * self.batch * (rows + 1) * BLOCK;
        [of(self.depth), of(self.row_blocks * 32)]
    }

    /// The columns in scratch.
    pub(crate) fn columns(&self) -> Operand {
        Operand::scratch(0, self.scratch()[0])
    }

    /// The products in scratch.
    pub(crate) fn products(&self) -> Operand {
        Operand::scratch(1, self.scratch()[1])
    }

    /// The fields of `conv2d_quad_fields.wgsl`.
    pub(crate) fn quads(&self, launch: Launch, part: Part) -> Launch {
        launch
            .u32("row_quads", self.row_quads)
            .u32("image_rows", self.image_rows)
            .u32("first_quad", part.first * (BLOCK / 4))
            .u32("quads", self.quads)
    }

    /// How many vectors of 8 columns are multiplied, and how many are moved: blocks are multiplied in pairs.
    pub(crate) fn blocks_by_lanes(&self) -> [f64; 2] {
        [self.blocks.next_multiple_of(2), self.blocks].map(|blocks| (blocks * BLOCK / 8) as f64)
    }

    /// Multiply-adds of one column.
    pub(crate) fn macs(&self) -> f64 {
        (self.batch * self.depth * self.row_blocks * 32) as f64
    }

    /// The launches of all parts: `before` writes the columns, `after` carries the products to the result.
    pub(crate) fn launches(
        &self,
        traits: &GpuTraits,
        weight: Operand,
        before: impl Fn(Part) -> Launch,
        after: impl Fn(Part) -> Launch,
    ) -> Lowered {
        let parts = (0..self.blocks).step_by(self.chunk);
        let parts = parts.map(|first| Part { first, blocks: self.chunk.min(self.blocks - first) });
        let launches = parts.flat_map(|part| {
            let counts = [self.row_blocks, part.blocks, self.batch];
            let product = multiply(traits, [weight, self.columns(), self.products()], self.depth, counts);
            [before(part), product, after(part)]
        });
        // The kernel's loop takes a round for each term of a sum. Loops of constant length inside it are unrolled; 64
        // more rounds are a margin for its begin and end.
        Lowered::gpu(launches).scratch(self.scratch()).rounds(64 + self.depth)
    }
}

/// Whether every item of a tensor begins at a multiple of 4 elements.
pub(super) fn by_four(tensor: &Operand) -> bool {
    tensor.slot.offset.is_multiple_of(4) && tensor.slot.batch_stride.is_multiple_of(4)
}

/// Whether the result, and what is added to it, begin their items at multiples of 4 elements.
pub(super) fn stored_by_four(call: &Call) -> bool {
    by_four(&call.output) && call.of.residual.is_none_or(|(_, tensor)| by_four(&tensor))
}

/// The launch of a batch of matrix products. The operands are left, right and product, laid out as `shared/gemm.wgsl`
/// says; `counts` are the blocks of 32 rows, the blocks of 32 columns, and the products of the batch.
pub(super) fn multiply(traits: &GpuTraits, operands: [Operand; 3], depth: usize, counts: [usize; 3]) -> Launch {
    let (file, at_once) = match traits.subgroup {
        Some(8) => ("gemm_subgroup", 2),
        _ => ("gemm", 4),
    };
    let [left, right, product] = operands;
    let [rows, columns, batch] = counts;
    Launch::new(file, "main")
        .read("left", left)
        .read("right", right)
        .write("product", product)
        .u32("depth", depth)
        .u32("row_blocks", rows)
        .u32("column_blocks", columns)
        .u32("batch", batch)
        .over_grid([rows, columns.div_ceil(at_once), batch])
}
