//! The launches of the gradient by the weight: partial sums over chunks of pixels, then their sums.

use super::fft::Fft;
use super::{Call, Launch, cost, max_bytes};
use crate::ops::conv2d::{Conv2d, ConvSpec, Operands};
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Slot};
use crate::tensor::Shape;

/// Pixels of a chunk, at least and at most: an invocation's loops make two rounds for each.
const CHUNK: [usize; 2] = [2048, 16_384];
/// Elements of the partial sums from which on chunks get longer: 16 MiB.
const PARTIAL: usize = 4 << 20;

/// Pixels of a chunk, and how many chunks there are.
fn chunks(weight: Shape, dy: Shape) -> [usize; 2] {
    let pixels = dy.n() * dy.plane();
    let chunk = pixels.div_ceil((PARTIAL / weight.numel()).max(1)).clamp(CHUNK[0], CHUNK[1]);
    let count = pixels.div_ceil(chunk);
    [pixels.div_ceil(count).next_multiple_of(16), count]
}

/// The gradient by Fourier transforms, where they are faster.
fn transforms(traits: &GpuTraits, spec: &ConvSpec, weight: Shape, dy: Shape) -> Option<Fft> {
    let tiles = weight.n().next_multiple_of(32) * weight.item().next_multiple_of(32) / 8;
    let sums = (dy.n() * dy.plane() * tiles) as f64 * cost::WEIGHT_GRAD;
    Fft::of_weight(spec, weight, dy, max_bytes(traits)).filter(|fft| fft.cost < sums)
}

/// Elements of the scratch buffers.
pub fn scratch(traits: &GpuTraits, spec: &ConvSpec, weight: Shape, dy: Shape) -> Vec<usize> {
    match transforms(traits, spec, weight, dy) {
        Some(fft) => fft.scratch(),
        None => vec![chunks(weight, dy)[1] * weight.numel()],
    }
}

/// See [`Op::loop_rounds`](crate::ops::Op::loop_rounds); transforms need fewer.
pub fn loop_rounds(weight: Shape, dy: Shape) -> usize {
    let [chunk, count] = chunks(weight, dy);
    2 * chunk + count + 64
}

/// The launches for an input, the gradient by the convolution's result and the gradient by the weight.
pub fn dispatches(traits: &GpuTraits, spec: &ConvSpec, x: Slot, dy: Slot, grad: Slot) -> Vec<Dispatch> {
    let weight = grad.shape;
    if let Some(fft) = transforms(traits, spec, weight, dy.shape) {
        return fft.of_weight_dispatches(traits, spec, [x, dy, grad]);
    }
    let of = Operands { x, weight: grad, bias: None, channel_add: None, residual: None };
    let call = Call { conv: &Conv2d::new(*spec), weight, of, output: dy };
    let [chunk, count] = chunks(weight, dy.shape);
    let params = call.params(call.extent(), Launch { depth: chunk, rows: count, ..Launch::default() });
    let binds = vec![Bind::Input(0), Bind::Input(1), Bind::Scratch(0), Bind::Output];
    let group_out = weight.n() / spec.groups;
    // A tile is 32x32: elements one by one are fewer multiply-adds where a group fills but a small part of it.
    let (entry, groups) = if group_out * weight.item() <= 64 {
        ("element", weight.numel())
    } else {
        ("tile", spec.groups * group_out.div_ceil(32) * weight.item().div_ceil(32))
    };
    let launch = |entry, groups| {
        let kernel = Kernel::new("conv2d_weight_grad").entry(entry);
        Dispatch::folded(kernel, params.clone(), binds.clone(), groups)
    };
    vec![launch(entry, groups * count), launch("main", weight.numel().div_ceil(64))]
}
