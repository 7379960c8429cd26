//! Convolutions with large kernels by Fourier transforms (overlap-save): tiles of 32x32 pixels, of which each yields 33
//! less the kernel's size a side, are multiplied with the kernels' spectra frequency by frequency. Two tiles are one of
//! complex numbers: a convolution with a real kernel keeps real and imaginary parts apart.

use super::{Call, Launch, cost, even, product};
use crate::ops::conv2d::{Conv2d, ConvSpec, Operands, PaddingMode};
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Slot};
use crate::tensor::Shape;

/// One more than the outputs that a tile yields along an axis and the kernel's size there.
const REACH: usize = 33;

/// Matrix products: three real ones for each of the 514 frequencies that are not others' conjugates.
const BATCH: usize = 3 * 514;

/// Bytes of 32 neighbours in all products.
const LINE: u64 = 4 * 32 * BATCH as u64;

/// Most bytes of the left operand, and of the right operand and the sums unless two blocks need more.
const SCRATCH: [u64; 2] = [128 << 20, 64 << 20];

/// The products of all frequencies, in blocks of 32 rows and 32 columns, computed in parts that fit the buffers.
#[derive(Clone, Copy, Debug)]
struct Products {
    depth: usize,
    /// Blocks of rows and of columns, and how many of each are computed at a time.
    blocks: [usize; 2],
    at_once: [usize; 2],
    /// How long making each operand takes, in the unit of [`cost`].
    costs: [f64; 2],
}

/// Some rows and columns of the products.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Part {
    /// First block and number of blocks, of rows and of columns.
    blocks: [[usize; 2]; 2],
    /// Whether each operand is made anew.
    made: [bool; 2],
}

impl Part {
    /// First and number of the rows (axis 0) or columns (axis 1) of `len`.
    fn range(&self, axis: usize, len: usize) -> [usize; 2] {
        let [first, count] = self.blocks[axis].map(|blocks| 32 * blocks);
        [first, count.min(len - first)]
    }
}

impl Products {
    /// `None` if a buffer of `max_bytes` is too small for a part.
    fn new(depth: usize, [rows, columns]: [usize; 2], costs: [f64; 2], max_bytes: u64) -> Option<Self> {
        let blocks = [rows.div_ceil(32), columns.div_ceil(32)];
        let fitting = |bytes: u64, len: usize| (bytes.min(max_bytes) / (LINE * (len as u64 + 1))) as usize;
        // Two blocks of sums fit.
        let most = (max_bytes / LINE / 2).saturating_sub(1) as usize / 32;
        let rows = blocks[0].min(fitting(SCRATCH[0], depth)).min(most);
        let longest = depth.max(32 * rows);
        let columns = blocks[1].min((fitting(SCRATCH[1], longest) & !1).max(2)).min(fitting(u64::MAX, longest));
        (rows > 0 && columns > 0).then_some(Self { depth, blocks, at_once: [rows, columns], costs })
    }

    /// How often each operand is made: either the rows or the columns are gone through once.
    fn repeats(&self) -> [usize; 2] {
        let [rows, columns] = [0, 1].map(|axis| self.blocks[axis].div_ceil(self.at_once[axis]));
        let again = [columns - 1, rows - 1].map(|times| times as f64);
        match (rows, columns) {
            (1, _) | (_, 1) => [1; 2],
            _ if again[1] * self.costs[1] <= again[0] * self.costs[0] => [1, rows],
            _ => [columns, 1],
        }
    }

    fn cost(&self) -> f64 {
        let repeats = self.repeats();
        let operands: f64 = (0..2).map(|axis| repeats[axis] as f64 * self.costs[axis]).sum();
        let [rows, columns] = [self.blocks[0], self.blocks[1].next_multiple_of(2)].map(|blocks| 32 * blocks);
        operands + (BATCH * self.depth * rows * columns / 8) as f64 * cost::PRODUCT
    }

    fn parts(&self) -> Vec<Part> {
        let of = |axis: usize| {
            let [blocks, at_once] = [self.blocks[axis], self.at_once[axis]];
            (0..blocks).step_by(at_once).map(move |first| [first, at_once.min(blocks - first)])
        };
        let order: Vec<[[usize; 2]; 2]> = match self.repeats() {
            [1, _] => of(0).flat_map(|rows| of(1).map(move |columns| [rows, columns])).collect(),
            _ => of(1).flat_map(|columns| of(0).map(move |rows| [rows, columns])).collect(),
        };
        let before = std::iter::once(None).chain(order.iter().map(Some));
        let part = |(blocks, before): (&[[usize; 2]; 2], Option<&[[usize; 2]; 2]>)| Part {
            blocks: *blocks,
            made: [0, 1].map(|axis| before.is_none_or(|before| before[axis] != blocks[axis])),
        };
        order.iter().zip(before).map(part).collect()
    }

    fn multiply(&self, traits: &GpuTraits, part: &Part) -> Dispatch {
        let [[_, rows], [_, columns]] = part.blocks;
        let operands = [Bind::Scratch(0), Bind::Scratch(1), Bind::Scratch(2)];
        product::multiply(traits, operands, self.depth, [rows, columns, BATCH])
    }
}

/// A convolution by Fourier transforms, or its gradient by the weight.
#[derive(Clone, Copy, Debug)]
pub struct Fft {
    /// Rows and columns of tiles in an image, and tiles of the batch.
    grid: [usize; 2],
    count: usize,
    /// Input and output channels.
    channels: [usize; 2],
    products: Products,
    /// An estimate of the time, in the unit of [`cost`].
    pub cost: f64,
}

/// Rows and columns of tiles of an image, and tiles of all images; `None` if transforms do not suit the convolution.
fn tiles(spec: &ConvSpec, output: Shape) -> Option<([usize; 2], usize)> {
    let plain = spec.groups == 1 && spec.stride == [1; 2] && spec.dilation == [1; 2];
    if !plain || spec.kernel.iter().any(|size| !(4..=17).contains(size)) {
        return None;
    }
    let grid = [output.h().div_ceil(REACH - spec.kernel[0]), output.w().div_ceil(REACH - spec.kernel[1])];
    Some((grid, output.n() * grid[0] * grid[1]))
}

/// Channels `first` to `first + count` of a tensor.
fn some_channels(slot: Slot, [first, count]: [usize; 2]) -> Slot {
    let Shape([n, _, h, w]) = slot.shape;
    Slot { shape: Shape::new(n, count, h, w), offset: slot.offset + first * h * w, ..slot }
}

impl Fft {
    /// The convolution; `None` if transforms do not suit it, or need larger buffers than `max_bytes`.
    pub fn new(spec: &ConvSpec, weight: Shape, output: Shape, max_bytes: u64) -> Option<Self> {
        let (grid, count) = tiles(spec, output)?;
        let channels @ [ic, oc] = [weight.c(), weight.n()];
        let pairs = count.div_ceil(2);
        let costs = [(ic * oc) as f64 * cost::FFT_KERNEL, (ic * pairs) as f64 * cost::FFT[0]];
        let products = Products::new(even(ic), [oc, 2 * pairs], costs, max_bytes)?;
        let cost = products.cost() + (oc * pairs) as f64 * cost::FFT[1];
        Some(Self { grid, count, channels, products, cost })
    }

    /// The gradient by the weight: for every frequency the products of the spectra of both images' tiles, summed over the
    /// tiles, some at a time. Tiles of the gradient by the result, `dy`, are cut to what they yield.
    pub fn of_weight(spec: &ConvSpec, weight: Shape, dy: Shape, max_bytes: u64) -> Option<Self> {
        let (grid, count) = tiles(spec, dy)?;
        let channels @ [ic, oc] = [weight.c(), weight.n()];
        let most = (SCRATCH[1].min(max_bytes / 2) / LINE).saturating_sub(1) as usize & !1;
        let parts = count.div_ceil(most.max(1));
        let at_once = even(count.div_ceil(parts));
        let costs = [oc, ic].map(|channels| (channels * at_once / 2) as f64 * cost::FFT[0]);
        let products = Products::new(at_once, [oc, ic], costs, max_bytes)?;
        let cost = parts as f64 * (products.cost() + (oc * ic.div_ceil(2)) as f64 * cost::FFT[1]);
        Some(Self { grid, count, channels, products, cost })
    }

    /// Elements of the scratch buffers: left operand, right operand, sums.
    pub fn scratch(&self) -> Vec<usize> {
        let Products { depth, at_once: [rows, columns], .. } = self.products;
        let lines = [rows * (depth + 1), columns * (depth + 1), columns * (32 * rows + 1)];
        lines.map(|lines| 32 * BATCH * lines).to_vec()
    }

    fn launch(&self, part: &Part, first: usize) -> Launch {
        let ([image_rows, row_quads], rows) = (self.grid, 32 * part.blocks[0][1]);
        Launch { depth: self.products.depth, rows, row_quads, image_rows, first_quad: first, quads: self.count }
    }

    /// The launches of the convolution, in order.
    pub fn dispatches(&self, call: &Call, traits: &GpuTraits) -> Vec<Dispatch> {
        self.products.parts().iter().flat_map(|part| self.part(call, traits, part)).collect()
    }

    fn part(&self, call: &Call, traits: &GpuTraits, part: &Part) -> Vec<Dispatch> {
        let depth = self.products.depth;
        let rows = part.range(0, self.channels[1]);
        let [first, tiles] = part.range(1, even(self.count));
        let call = &of_channels(call, rows);
        let params = call.params(call.extent(), self.launch(part, first));
        let mut stored = vec![Bind::Scratch(2)];
        stored.extend(call.epilogue_binds());
        let operands = [
            (Kernel::new("fft_operand").flag("LEFT", true).flag("KERNELS", true), 1, [rows[1], depth, 1]),
            (Kernel::new("fft_operand"), 0, [tiles / 2, depth, 1]),
        ];
        let made = operands.into_iter().enumerate().filter(|(axis, _)| part.made[*axis]);
        let mut launches: Vec<Dispatch> = made
            .map(|(axis, (kernel, input, counts))| {
                Dispatch::new(kernel, params.clone(), vec![Bind::Input(input), Bind::Scratch(axis)], counts)
            })
            .collect();
        launches.push(self.products.multiply(traits, part));
        launches.push(Dispatch::new(call.storing("fft_output"), params, stored, [tiles / 2, rows[1], 1]));
        launches
    }

    /// The launches of the gradient by the weight, for an input, the gradient by the convolution's result and the gradient.
    pub fn of_weight_dispatches(&self, traits: &GpuTraits, spec: &ConvSpec, slots: [Slot; 3]) -> Vec<Dispatch> {
        let parts = self.products.parts();
        let tiles = (0..self.count).step_by(self.products.depth);
        let of =
            |first: usize| parts.iter().flat_map(move |part| self.of_weight_part(traits, spec, slots, part, first));
        tiles.flat_map(of).collect()
    }

    fn of_weight_part(
        &self,
        traits: &GpuTraits,
        spec: &ConvSpec,
        [x, dy, grad]: [Slot; 3],
        part: &Part,
        first: usize,
    ) -> Vec<Dispatch> {
        let [rows, columns] = [part.range(0, self.channels[1]), part.range(1, self.channels[0])];
        let offset = grad.offset + rows[0] * grad.batch_stride + columns[0] * grad.shape.plane();
        let params = |spec: ConvSpec, x: Slot| {
            let of = Operands { x, weight: Slot { offset, ..grad }, bias: None, channel_add: None, residual: None };
            let call = Call { conv: &Conv2d::new(spec), weight: grad.shape, of, output: dy };
            call.params(call.extent(), self.launch(part, first))
        };
        let cut = ConvSpec { padding: [0; 2], padding_mode: PaddingMode::Zeros, upsample: false, ..*spec };
        let params = [params(cut, some_channels(dy, rows)), params(*spec, some_channels(x, columns))];
        let mut launches = Vec::new();
        for axis in (0..2).filter(|axis| part.made[*axis]) {
            let left = axis == 0;
            let kernel = Kernel::new("fft_operand").flag("SUMMED", true).flag("LEFT", left).flag("CUT", left);
            let binds = vec![Bind::Input(1 - axis), Bind::Scratch(axis)];
            let counts = [self.products.depth / 2, [rows[1], columns[1]][axis], 1];
            launches.push(Dispatch::new(kernel, params[axis].clone(), binds, counts));
        }
        launches.push(self.products.multiply(traits, part));
        let kernel = Kernel::new("fft_output").flag("GRADIENT", true).flag("ADDED", first > 0);
        let binds = vec![Bind::Scratch(2), Bind::Absent, Bind::Absent, Bind::Absent, Bind::Output];
        launches.push(Dispatch::new(kernel, params[1].clone(), binds, [columns[1].div_ceil(2), rows[1], 1]));
        launches
    }
}

/// The part of a convolution that computes some of its output channels.
fn of_channels<'a>(call: &Call<'a>, range @ [first, count]: [usize; 2]) -> Call<'a> {
    let [_, ic, kh, kw] = call.weight.0;
    let of = &call.of;
    let some = |operand: Option<(usize, Slot)>| operand.map(|(i, slot)| (i, some_channels(slot, range)));
    let weight = Slot { offset: of.weight.offset + first * of.weight.batch_stride, ..of.weight };
    let (bias, channel_add, residual) = (some(of.bias), some(of.channel_add), some(of.residual));
    Call {
        weight: Shape::new(count, ic, kh, kw),
        of: Operands { x: of.x, weight, bias, channel_add, residual },
        output: some_channels(call.output, range),
        ..*call
    }
}
