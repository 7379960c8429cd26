//! Convolutions with large kernels by Fourier transforms (overlap-save): tiles of 32x32 pixels, of which each yields 33
//! less the kernel's size a side, are multiplied with the kernels' spectra frequency by frequency. Two tiles are one of
//! complex numbers: a convolution with a real kernel keeps real and imaginary parts apart.

use super::{Call, Launch, cost, even, product};
use crate::ops::conv2d::{Conv2d, ConvSpec, Operands, PaddingMode};
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Slot};
use crate::tensor::Shape;

/// Matrix products: three real ones for each of the 514 frequencies that are not others' conjugates.
const BATCH: usize = 3 * 514;

/// Bytes of 32 neighbours in all products.
const LINE: u64 = 4 * 32 * BATCH as u64;

/// Most bytes of the left operand, and of the right operand and the sums unless two blocks need more.
const SCRATCH: [u64; 2] = [128 << 20, 64 << 20];

/// A convolution by Fourier transforms, or its gradient by the weight.
///
/// The products are computed in parts that fit the buffers, each some blocks of 32 rows by some blocks of 32 columns.
#[derive(Clone, Copy, Debug)]
pub struct Fft {
    /// Rows and columns of tiles in an image, and tiles of the batch.
    grid: [usize; 2],
    count: usize,
    /// Terms of a sum, rows and columns of the products.
    depth: usize,
    size: [usize; 2],
    /// Blocks of rows and of columns computed at a time.
    at_once: [usize; 2],
    /// An estimate of the time, in the unit of [`cost`].
    pub cost: f64,
}

/// First and number of some rows or columns.
type Range = [usize; 2];

impl Fft {
    /// The convolution; `None` if transforms do not suit it, or need larger buffers than `max_bytes`.
    pub fn new(spec: &ConvSpec, weight: Shape, output: Shape, max_bytes: u64) -> Option<Self> {
        let [oc, ic, ..] = weight.0;
        let tiles = Self::tiled(spec, output)?;
        let pairs = tiles.count.div_ceil(2);
        let operands = [(ic * oc) as f64 * cost::FFT_KERNEL, (ic * pairs) as f64 * cost::FFT[0]];
        let all = Self { depth: even(ic), size: [oc, 2 * pairs], ..tiles };
        all.fitted(max_bytes, operands, (oc * pairs) as f64 * cost::FFT[1])
    }

    /// The gradient by the weight: for every frequency the products of the spectra of both images' tiles, summed over the
    /// tiles, some at a time. Tiles of the gradient by the result, `dy`, are cut to what they yield.
    pub fn of_weight(spec: &ConvSpec, weight: Shape, dy: Shape, max_bytes: u64) -> Option<Self> {
        let [oc, ic, ..] = weight.0;
        let tiles = Self::tiled(spec, dy)?;
        let most = (SCRATCH[1].min(max_bytes / 2) / LINE).saturating_sub(1) as usize & !1;
        let parts = tiles.count.div_ceil(most.max(1));
        let depth = even(tiles.count.div_ceil(parts));
        let operands = [oc, ic].map(|channels| (channels * depth / 2) as f64 * cost::FFT[0]);
        let all = Self { depth, size: [oc, ic], ..tiles };
        let part = all.fitted(max_bytes, operands, (oc * ic.div_ceil(2)) as f64 * cost::FFT[1])?;
        Some(Self { cost: parts as f64 * part.cost, ..part })
    }

    /// The tiles of a convolution's result, if transforms suit it.
    fn tiled(spec: &ConvSpec, output: Shape) -> Option<Self> {
        let plain = spec.groups == 1 && spec.stride == [1; 2] && spec.dilation == [1; 2];
        if !plain || spec.kernel.iter().any(|size| !(4..=17).contains(size)) {
            return None;
        }
        let grid = [output.h().div_ceil(33 - spec.kernel[0]), output.w().div_ceil(33 - spec.kernel[1])];
        let count = output.n() * grid[0] * grid[1];
        Some(Self { grid, count, depth: 0, size: [0; 2], at_once: [0; 2], cost: 0.0 })
    }

    /// These products in parts that fit; `operands` is the time to make each operand once, `back` that after the sums.
    fn fitted(self, max_bytes: u64, operands: [f64; 2], back: f64) -> Option<Self> {
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
        let sums = BATCH * (self.depth + cost::PRODUCT_SUM) * 32 * rows * 32 * columns.next_multiple_of(2) / 8;
        let cost = operands[0] + again as f64 * operands[1] + sums as f64 * cost::PRODUCT + back;
        Some(Self { at_once, cost, ..self })
    }

    /// Elements of the scratch buffers: left operand, right operand, sums.
    pub fn scratch(&self) -> Vec<usize> {
        let (depth, [rows, columns]) = (self.depth, self.at_once);
        let lines = [rows * (depth + 1), columns * (depth + 1), columns * (32 * rows + 1)];
        lines.map(|lines| 32 * BATCH * lines).to_vec()
    }

    /// The launches of all parts: `operand` makes that of an axis, `back` what follows the products.
    fn parts(
        &self,
        traits: &GpuTraits,
        operand: impl Fn(usize, [Range; 2]) -> Dispatch,
        back: impl Fn([Range; 2]) -> Dispatch,
    ) -> Vec<Dispatch> {
        let ranges = |axis: usize| {
            let (len, step) = (self.size[axis], 32 * self.at_once[axis]);
            (0..len).step_by(step).map(move |first| [first, step.min(len - first)])
        };
        let products = [0, 1, 2].map(Bind::Scratch);
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

    fn launch(&self, [rows, _]: [Range; 2], first: usize) -> Launch {
        let ([image_rows, row_quads], rows) = (self.grid, rows[1].next_multiple_of(32));
        Launch { depth: self.depth, rows, row_quads, image_rows, first_quad: first, quads: self.count }
    }

    /// The launches of the convolution, in order.
    pub fn dispatches(&self, call: &Call, traits: &GpuTraits) -> Vec<Dispatch> {
        let operand = |axis: usize, part @ [rows, columns]: [Range; 2]| {
            let launch = self.launch(part, columns[0]);
            if axis == 1 {
                return operand(axis, call, launch, false, [columns[1] / 2, self.depth]);
            }
            // Kernels are images of one tile.
            let weight = call.of.weight;
            let x = Slot { shape: call.weight, offset: weight.offset + rows[0] * weight.batch_stride, ..weight };
            let launch = Launch { image_rows: 1, row_quads: 1, first_quad: 0, quads: rows[1], ..launch };
            operand(axis, &bare(&whole(&call.conv.spec), x, call), launch, false, [rows[1], self.depth])
        };
        let back = |part @ [rows, columns]: [Range; 2]| {
            let call = some_outputs(call, rows);
            let mut binds = vec![Bind::Scratch(2)];
            binds.extend(call.epilogue_binds());
            let params = call.params(call.extent(), self.launch(part, columns[0]));
            Dispatch::new(call.storing("fft_output"), params, binds, [columns[1] / 2, rows[1], 1])
        };
        self.parts(traits, operand, back)
    }

    /// The launches of the gradient by the weight, for an input, the gradient by the convolution's result and the gradient.
    pub fn of_weight_dispatches(&self, traits: &GpuTraits, spec: &ConvSpec, [x, dy, grad]: [Slot; 3]) -> Vec<Dispatch> {
        let conv = &Conv2d::new(*spec);
        let call = |[rows, columns]: [Range; 2]| {
            let offset = grad.offset + rows[0] * grad.batch_stride + columns[0] * grad.shape.plane();
            let weight = Slot { offset, ..grad };
            let of = Operands { x: some_channels(x, columns), weight, bias: None, channel_add: None, residual: None };
            Call { conv, weight: grad.shape, of, output: dy }
        };
        let tiles = (0..self.count).step_by(self.depth);
        let launches = tiles.flat_map(|first| {
            let operand = |axis: usize, part: [Range; 2]| {
                let (launch, counts) = (self.launch(part, first), [part[axis][1], self.depth / 2]);
                match axis {
                    0 => operand(
                        axis,
                        &bare(&whole(spec), some_channels(dy, part[0]), &call(part)),
                        launch,
                        true,
                        counts,
                    ),
                    _ => operand(axis, &call(part), launch, true, counts),
                }
            };
            let back = |part @ [rows, columns]: [Range; 2]| {
                let kernel = Kernel::new("fft_output").flag("GRADIENT", true).flag("ADDED", first > 0);
                let binds = vec![Bind::Scratch(2), Bind::Absent, Bind::Absent, Bind::Absent, Bind::Output];
                let params = call(part).params([0; 2], self.launch(part, first));
                Dispatch::new(kernel, params, binds, [columns[1].div_ceil(2), rows[1], 1])
            };
            self.parts(traits, operand, back)
        });
        launches.collect()
    }
}

/// Transforms the image that `call` reads.
fn operand(axis: usize, call: &Call, launch: Launch, summed: bool, [x, y]: [usize; 2]) -> Dispatch {
    let kernel = Kernel::new("fft_operand").flag("LEFT", axis == 0).flag("SUMMED", summed);
    let kernel = kernel.flag("KERNELS", axis == 0 && !summed);
    let binds = vec![Bind::Input(1 - axis), Bind::Scratch(axis)];
    Dispatch::new(kernel, call.params(call.extent(), launch), binds, [x, y, 1])
}

/// A convolution that reads images as they are.
fn whole(spec: &ConvSpec) -> Conv2d {
    Conv2d::new(ConvSpec { padding: [0; 2], padding_mode: PaddingMode::Zeros, upsample: false, ..*spec })
}

/// The call of `conv` that reads `x`.
fn bare<'a>(conv: &'a Conv2d, x: Slot, call: &Call) -> Call<'a> {
    Call { conv, weight: call.weight, of: Operands { x, bias: None, ..call.of }, output: call.output }
}

/// Some channels of a tensor.
fn some_channels(slot: Slot, [first, count]: Range) -> Slot {
    let Shape([n, _, h, w]) = slot.shape;
    Slot { shape: Shape::new(n, count, h, w), offset: slot.offset + first * h * w, ..slot }
}

/// The part of a convolution that computes some of its output channels.
fn some_outputs<'a>(call: &Call<'a>, rows: Range) -> Call<'a> {
    let some = |operand: Option<(usize, Slot)>| operand.map(|(i, slot)| (i, some_channels(slot, rows)));
    let Operands { bias, channel_add, residual, .. } = call.of;
    let of = Operands { bias: some(bias), channel_add: some(channel_add), residual: some(residual), ..call.of };
    Call { of, output: some_channels(call.output, rows), ..*call }
}
