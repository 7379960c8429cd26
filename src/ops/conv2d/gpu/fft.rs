//! Convolutions with large kernels by Fourier transforms (overlap-save). The input is cut into tiles of 32x32 pixels,
//! each of which yields 33 less the kernel's size outputs a side; their spectra are multiplied with the kernels'
//! frequency by frequency, summing over channels as matrix products. Two tiles are transformed at once, as the real and
//! the imaginary part of one: a convolution with a real kernel keeps the two apart.

use super::{Call, Costs, Method, costs, even, product, seen};
use crate::cpu::conv::{ConvSpec, PaddingMode};
use crate::gpu::{GpuTraits, Launch, Operand};
use crate::graph::{Lowered, Prepared};
use crate::tensor::Shape;

/// Real matrix products: three for each frequency. Of 1,024 frequencies 514 suffice, the others hold their conjugates.
const BATCH: usize = 3 * 514;

/// Bytes that 32 neighbouring elements of a row take in all of these products.
const LINE: u64 = 4 * 32 * BATCH as u64;

/// Most bytes of the left operand, and of the right operand and of the sums, unless two blocks need more.
const SCRATCH: [u64; 2] = [128 << 20, 64 << 20];

/// The method of Fourier transforms.
pub(super) struct Fft;

impl Method for Fft {
    fn name(&self) -> &'static str {
        "fft"
    }

    fn fits(&self, call: &Call) -> bool {
        call.group_out() > 2 && Transforms::of(call).is_some()
    }

    fn cost(&self, call: &Call, _costs: &Costs) -> f64 {
        Transforms::of(call).map_or(f64::INFINITY, |transforms| transforms.cost)
    }

    fn pack(&self, _call: &Call) -> Option<Prepared> {
        None
    }

    fn launches(&self, call: &Call, weight: Operand) -> Lowered {
        match Transforms::of(call) {
            Some(transforms) => transforms.convolution(call, weight),
            None => Lowered::gpu([]),
        }
    }
}

/// A convolution by Fourier transforms, or its gradient with respect to the weight.
///
/// The products are computed in parts that fit the buffers, each some blocks of 32 rows by some blocks of 32 columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transforms {
    /// Rows and columns of tiles in an image, and tiles of the batch.
    grid: [usize; 2],
    count: usize,
    /// Terms of a sum, rows and columns of the products.
    depth: usize,
    size: [usize; 2],
    /// Blocks of rows and of columns computed at a time.
    at_once: [usize; 2],
    /// An estimate of the time, in the unit of [`Costs`].
    pub cost: f64,
}

/// First and number of some rows or columns.
type Range = [usize; 2];

/// Some tiles of an image, as the kernels number them.
#[derive(Clone, Copy)]
struct Tiles {
    row_tiles: usize,
    image_rows: usize,
    first: usize,
    count: usize,
}

impl Tiles {
    /// The fields of `fft_tile_fields.wgsl`.
    fn fields(self, launch: Launch, kernel: [usize; 2]) -> Launch {
        launch
            .u32("kernel_h", kernel[0])
            .u32("kernel_w", kernel[1])
            .u32("row_tiles", self.row_tiles)
            .u32("image_rows", self.image_rows)
            .u32("first_tile", self.first)
            .u32("tiles", self.count)
    }
}

impl Transforms {
    /// The transforms of a convolution; `None` if it is not one that they can compute, or its operands need larger
    /// buffers than the adapter has.
    pub(crate) fn of(call: &Call) -> Option<Self> {
        let (costs, max_bytes) = (costs::of(call.traits), call.traits.largest_tensor());
        let [oc, ic, ..] = call.weight_shape().0;
        let tiles = Self::tiled(call.spec(), call.output_shape())?;
        let pairs = tiles.count.div_ceil(2);
        let operands = [(ic * oc) as f64 * costs.fft_kernel, (ic * pairs) as f64 * costs.fft[0]];
        let all = Self { depth: even(ic), size: [oc, 2 * pairs], ..tiles };
        all.fitted(max_bytes, costs, operands, (oc * pairs) as f64 * costs.fft[1])
    }

    /// The transforms of the gradient with respect to the weight: for every frequency the products of the spectra of
    /// both images' tiles, summed over the tiles, some tiles at a time. Tiles of `dy`, the gradient with respect to the
    /// result, are zero beyond the outputs that a tile yields.
    pub(crate) fn of_weight(spec: &ConvSpec, weight: Shape, dy: Shape, traits: &GpuTraits) -> Option<Self> {
        let (costs, max_bytes) = (costs::of(traits), traits.largest_tensor());
        let [oc, ic, ..] = weight.0;
        let tiles = Self::tiled(spec, dy)?;
        let most = (SCRATCH[1].min(max_bytes / 2) / LINE).saturating_sub(1) as usize & !1;
        let parts = tiles.count.div_ceil(most.max(1));
        let depth = even(tiles.count.div_ceil(parts));
        let operands = [oc, ic].map(|channels| (channels * depth / 2) as f64 * costs.fft[0]);
        let all = Self { depth, size: [oc, ic], ..tiles };
        let part = all.fitted(max_bytes, costs, operands, (oc * ic.div_ceil(2)) as f64 * costs.fft[1])?;
        Some(Self { cost: parts as f64 * part.cost, ..part })
    }

    /// The tiles of a convolution's result, if it has one group, stride and dilation 1 and a kernel of 4 to 17 a side.
    fn tiled(spec: &ConvSpec, output: Shape) -> Option<Self> {
        let plain = spec.groups == 1 && spec.stride == [1; 2] && spec.dilation == [1; 2];
        if !plain || spec.kernel.iter().any(|size| !(4..=17).contains(size)) {
            return None;
        }
        let grid = [output.h().div_ceil(33 - spec.kernel[0]), output.w().div_ceil(33 - spec.kernel[1])];
        let count = output.n() * grid[0] * grid[1];
        Some(Self { grid, count, depth: 0, size: [0; 2], at_once: [0; 2], cost: 0.0 })
    }

    /// These products cut into parts that fit the buffers; `operands` is the time of making each operand once, `back`
    /// that of what follows the sums.
    fn fitted(self, max_bytes: u64, costs: &Costs, operands: [f64; 2], back: f64) -> Option<Self> {
        let [rows, columns] = self.size.map(|len| len.div_ceil(32));
        let fitting = |bytes: u64, len: usize| (bytes.min(max_bytes) / (LINE * (len as u64 + 1))) as usize;
        // Two blocks of sums fit.
        let most = (max_bytes / LINE / 2).saturating_sub(1) as usize / 32;
        let at_once = rows.min(fitting(SCRATCH[0], self.depth)).min(most);
        let longest = self.depth.max(32 * at_once);
        let two = (fitting(SCRATCH[1], longest) & !1).max(2);
        let at_once = [at_once, columns.min(two).min(fitting(u64::MAX, longest))];
        if at_once.contains(&0) {
            return None;
        }
        let again = if at_once[1] < columns { rows.div_ceil(at_once[0]) } else { 1 };
        let sums = BATCH * (self.depth + costs.product_sum) * 32 * rows * 32 * columns.next_multiple_of(2) / 8;
        let cost = operands[0] + again as f64 * operands[1] + sums as f64 * costs.product + back;
        Some(Self { at_once, cost, ..self })
    }

    /// Elements of the scratch buffers: left operand, right operand, sums.
    pub(crate) fn scratch(&self) -> [usize; 3] {
        let (depth, [rows, columns]) = (self.depth, self.at_once);
        let lines = [rows * (depth + 1), columns * (depth + 1), columns * (32 * rows + 1)];
        lines.map(|lines| 32 * BATCH * lines)
    }

    fn scratch_buffer(&self, index: usize) -> Operand {
        Operand::scratch(index, self.scratch()[index])
    }

    fn rounds(&self) -> usize {
        512 + self.depth
    }

    /// All tiles of the image, or those from `first` on.
    fn tiles(&self, first: usize) -> Tiles {
        Tiles { row_tiles: self.grid[1], image_rows: self.grid[0], first, count: self.count }
    }

    /// The launches of all parts: `operand` makes the operand of an axis (0 the rows, 1 the columns) for a part, `back`
    /// what follows the products.
    fn parts(
        &self,
        traits: &GpuTraits,
        operand: impl Fn(usize, [Range; 2]) -> Launch,
        back: impl Fn([Range; 2]) -> Launch,
    ) -> Vec<Launch> {
        let ranges = |axis: usize| {
            let (len, step) = (self.size[axis], 32 * self.at_once[axis]);
            (0..len).step_by(step).map(move |first| [first, step.min(len - first)])
        };
        let products = [0, 1, 2].map(|index| self.scratch_buffer(index));
        let mut launches = Vec::new();
        for rows in ranges(0) {
            for columns in ranges(1) {
                let part = [rows, columns];
                launches.extend((columns[0] == 0).then(|| operand(0, part)));
                launches.extend((rows[0] == 0 || columns[1] < self.size[1]).then(|| operand(1, part)));
                let [rows, columns] = part.map(|[_, count]| count.div_ceil(32));
                launches.push(product::multiply(traits, products, self.depth, [rows, columns, BATCH]));
                launches.push(back(part));
            }
        }
        launches
    }

    /// Transforms the tiles of `x`, which are read as a convolution of `spec` reads them, into the operand of an axis.
    /// The products sum over tiles if `summed`, else over channels.
    fn operand(&self, axis: usize, x: Operand, spec: &ConvSpec, tiles: Tiles, summed: bool) -> Launch {
        let launch = Launch::new("fft_operand", "main")
            .flag("LEFT", axis == 0)
            .flag("SUMMED", summed)
            .flag("KERNELS", axis == 0 && !summed)
            .write("operand", self.scratch_buffer(axis))
            .u32("channels", x.shape().c())
            .u32("depth", self.depth);
        tiles.fields(seen(launch, x, spec, spec.extent(x.shape())), spec.kernel)
    }

    /// The convolution.
    fn convolution(&self, call: &Call, weight: Operand) -> Lowered {
        let spec = call.spec();
        let operand = |axis: usize, [rows, columns]: [Range; 2]| {
            if axis == 1 {
                let launch = self.operand(axis, call.of.x, spec, self.tiles(columns[0]), false);
                return launch.over_grid([columns[1] / 2, self.depth, 1]);
            }
            // A kernel is transformed as an image of one tile.
            let tiles = Tiles { row_tiles: 1, image_rows: 1, first: 0, count: rows[1] };
            let launch = self.operand(axis, weight.items(rows[0], rows[1]), &as_it_is(spec), tiles, false);
            launch.over_grid([rows[1], self.depth, 1])
        };
        let back = |[rows, columns]: [Range; 2]| {
            let launch = call.some_outputs(rows[0], rows[1]).stored(Launch::new("fft_output", "main"));
            let launch = self.tiles(columns[0]).fields(launch, spec.kernel);
            let launch = launch.read("sums", self.scratch_buffer(2)).u32("rows", rows[1].next_multiple_of(32));
            launch.over_grid([columns[1] / 2, rows[1], 1])
        };
        let launches = self.parts(call.traits, operand, back);
        Lowered::gpu(launches).scratch(self.scratch()).rounds(self.rounds())
    }

    /// The gradient `grad` with respect to the weight, for an input and the gradient with respect to the convolution's
    /// result.
    pub(crate) fn weight_grad(&self, traits: &GpuTraits, spec: &ConvSpec, [x, dy, grad]: [Operand; 3]) -> Lowered {
        let tiles = (0..self.count).step_by(self.depth);
        let launches = tiles.flat_map(|first| {
            let operand = |axis: usize, part: [Range; 2]| {
                let [begin, count] = part[axis];
                let launch = match axis {
                    0 => self.operand(axis, dy.channels(begin, count), &as_it_is(spec), self.tiles(first), true),
                    _ => self.operand(axis, x.channels(begin, count), spec, self.tiles(first), true),
                };
                launch.over_grid([count, self.depth / 2, 1])
            };
            let back = |[rows, columns]: [Range; 2]| {
                Launch::new("fft_weight_grad", "main")
                    .flag("ADDED", first > 0)
                    .read("sums", self.scratch_buffer(2))
                    .write("out", grad.items(rows[0], rows[1]).channels(columns[0], columns[1]))
                    .u32("in_channels", columns[1])
                    .u32("kernel_h", spec.kernel[0])
                    .u32("kernel_w", spec.kernel[1])
                    .u32("rows", rows[1].next_multiple_of(32))
                    .over_grid([columns[1].div_ceil(2), rows[1], 1])
            };
            self.parts(traits, operand, back)
        });
        Lowered::gpu(launches).scratch(self.scratch()).rounds(self.rounds())
    }
}

/// The same convolution without padding and upsampling, which reads images as they are.
fn as_it_is(spec: &ConvSpec) -> ConvSpec {
    ConvSpec { padding: [0; 2], padding_mode: PaddingMode::Zeros, upsample: false, ..*spec }
}
