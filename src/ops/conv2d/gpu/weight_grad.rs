//! The gradient with respect to the weight on a GPU: partial sums over chunks of pixels, then their sums; or Fourier
//! transforms, where they are faster.

use super::fft::Transforms;
use super::{as_seen, costs, window};
use crate::cpu::conv::ConvSpec;
use crate::gpu::{GpuTraits, Launch, Operand};
use crate::graph::Lowered;
use crate::tensor::Shape;

/// Fewest and most pixels of a chunk. An invocation's loops take two rounds for each pixel, which on software adapters
/// must stay below 65,535.
const CHUNK: [usize; 2] = [2048, 16_384];
/// Elements of the partial sums (16 MiB) beyond which chunks get longer, so that there are fewer.
const PARTIAL: usize = 4 << 20;
/// Output channels and taps of a workgroup's tile.
const TILE: usize = 32;

/// Pixels of a chunk, and how many chunks there are.
fn chunks(weight: Shape, dy: Shape) -> [usize; 2] {
    let pixels = dy.n() * dy.plane();
    let chunk = pixels.div_ceil((PARTIAL / weight.numel()).max(1)).clamp(CHUNK[0], CHUNK[1]);
    let count = pixels.div_ceil(chunk);
    [pixels.div_ceil(count).next_multiple_of(16), count]
}

/// How the gradient `grad` with respect to the weight is computed, for an input and the gradient with respect to the
/// convolution's result.
pub(in crate::ops::conv2d) fn lower(
    traits: &GpuTraits,
    spec: &ConvSpec,
    x: Operand,
    dy: Operand,
    grad: Operand,
) -> Lowered {
    let weight = grad.shape();
    let tiles = weight.n().next_multiple_of(TILE) * weight.item().next_multiple_of(TILE) / 8;
    let sums = (dy.shape().n() * dy.shape().plane() * tiles) as f64 * costs::of(traits).weight_grad;
    match Transforms::of_weight(spec, weight, dy.shape(), traits) {
        Some(transforms) if transforms.cost < sums => transforms.weight_grad(traits, spec, [x, dy, grad]).method("fft"),
        _ => sum_in_chunks(spec, x, dy, grad).method("direct"),
    }
}

fn sum_in_chunks(spec: &ConvSpec, x: Operand, dy: Operand, grad: Operand) -> Lowered {
    let (weight, out) = (grad.shape(), dy.shape());
    let [chunk_len, chunks] = chunks(weight, out);
    let partial = Operand::scratch(0, chunks * weight.numel());
    let group_out = weight.n() / spec.groups;
    // A tile is 32x32. Where a group fills but a small part of one, computing its elements one by one takes fewer
    // multiply-adds.
    let (entry, grid) = if group_out * weight.item() <= 64 {
        ("element", [chunks, weight.numel(), 1])
    } else {
        ("tile", [chunks, weight.item().div_ceil(TILE), spec.groups * group_out.div_ceil(TILE)])
    };
    let extent = spec.extent(x.shape());
    let launch = |entry| {
        let launch = Launch::new("conv2d_weight_grad", entry)
            .write("partial", partial)
            .u32("group_in", weight.c())
            .u32("group_out", group_out)
            .u32("batch", out.n())
            .u32("out_channels", out.c())
            .u32("out_h", out.h())
            .u32("out_w", out.w())
            .u32("chunk_len", chunk_len)
            .u32("chunks", chunks);
        window(as_seen(launch, spec, extent), spec)
    };
    let of_chunks = launch(entry).read("x", x).read("dy", dy).over_grid(grid);
    let main = launch("main").write("out", grad).over(weight.numel().div_ceil(64));
    Lowered::gpu([of_chunks, main]).scratch([partial.shape().numel()]).rounds(2 * chunk_len + chunks + 64)
}
