//! Convolutions on a GPU: a table of methods, of which each call takes the cheapest that fits.

mod costs;
mod depthwise;
mod direct;
mod fft;
mod gemm;
mod product;
#[cfg(test)]
mod tests;
pub(super) mod weight_grad;
mod winograd;

use super::{Conv2d, ConvSpec, Operands, PaddingMode};
use crate::gpu::{Bind, GpuTraits, Launch, Operand};
use crate::graph::{Lowered, Prepared};
use crate::tensor::{Shape, Slot};
use costs::Costs;

/// A way to compute convolutions on a GPU. Adding one is a file and a row of [`METHODS`].
trait Method: Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Whether it can compute this convolution on this adapter.
    fn fits(&self, call: &Call) -> bool;

    /// An estimate of the time, in the unit of [`Costs`]. Asked only where the method fits.
    fn cost(&self, call: &Call, costs: &Costs) -> f64;

    /// The form of the weight that the launches read, if it is not the weight itself.
    fn pack(&self, call: &Call) -> Option<Prepared>;

    /// The launches, in order, on the packed `weight`.
    fn launches(&self, call: &Call, weight: Operand) -> Lowered;
}

/// The methods. Between equals the first is taken.
static METHODS: [&dyn Method; 5] =
    [&depthwise::Depthwise, &direct::Direct, &gemm::Gemm, &winograd::Winograd, &fft::Fft];

/// A convolution, with the places of its tensors and the adapter that it runs on.
#[derive(Clone)]
struct Call<'a> {
    conv: &'a Conv2d,
    traits: &'a GpuTraits,
    /// The inputs; the weight is `[oc, ic / groups, kh, kw]`.
    of: Operands<Operand>,
    output: Operand,
}

/// How `conv` is computed on a GPU.
pub(super) fn lower(conv: &Conv2d, traits: &GpuTraits, inputs: &[Operand], output: Operand) -> Lowered {
    let call = Call { conv, traits, of: conv.operands(inputs), output };
    by(choose(&call), &call)
}

/// The cheapest method that fits.
fn choose(call: &Call) -> &'static dyn Method {
    let costs = costs::of(call.traits);
    let mut best: (&dyn Method, f64) = (&depthwise::Depthwise, f64::INFINITY);
    for method in METHODS.into_iter().filter(|method| method.fits(call)) {
        let cost = method.cost(call, costs);
        if cost < best.1 {
            best = (method, cost);
        }
    }
    best.0
}

/// How `method` computes the convolution.
fn by(method: &dyn Method, call: &Call) -> Lowered {
    let pack = method.pack(call);
    let weight = pack.as_ref().map_or(call.of.weight, |pack| {
        let slot = Slot::contiguous(Shape::new(1, 1, 1, pack.len));
        Operand { bind: Bind::Input(pack.input), slot }
    });
    method.launches(call, weight).method(method.name()).prepare(pack)
}

fn even(n: usize) -> usize {
    n.next_multiple_of(2)
}

impl<'a> Call<'a> {
    fn spec(&self) -> &'a ConvSpec {
        &self.conv.spec
    }

    fn input_shape(&self) -> Shape {
        self.of.x.shape()
    }

    /// `[oc, ic / groups, kh, kw]`.
    fn weight_shape(&self) -> Shape {
        self.of.weight.shape()
    }

    fn output_shape(&self) -> Shape {
        self.output.shape()
    }

    /// Output channels of a group.
    fn group_out(&self) -> usize {
        self.weight_shape().n() / self.spec().groups
    }

    /// Whether stride and dilation are 1.
    fn is_dense(&self) -> bool {
        self.spec().stride == [1; 2] && self.spec().dilation == [1; 2]
    }

    /// Gives the launch the tensor `x` and the fields of `conv2d_input_fields.wgsl`, which say how the convolution
    /// reads it.
    fn seen(&self, launch: Launch) -> Launch {
        seen(launch, self.of.x, self.spec(), self.spec().extent(self.input_shape()))
    }

    /// Gives the launch bias, channel add, residual and result, the activation, and the fields of
    /// `conv2d_output_fields.wgsl`.
    fn stored(&self, launch: Launch) -> Launch {
        let (of, out, conv) = (&self.of, self.output_shape(), self.conv);
        let channel_add = of.channel_add.map(|(_, vector)| vector.repeated(out.n()));
        launch
            .text("activation", format!("    return {};", conv.activation.wgsl("v")))
            .flag("RESIDUAL", conv.residual)
            .read_if_any("bias", of.bias.map(|(_, bias)| bias))
            .read_if_any("channel_add", channel_add)
            .read_if_any("residual", of.residual.map(|(_, tensor)| tensor))
            .write("out", self.output)
            .u32("out_channels", out.c())
            .u32("out_h", out.h())
            .u32("out_w", out.w())
            .u32("has_bias", usize::from(conv.bias))
            .u32("has_channel_add", usize::from(conv.channel_add))
    }

    /// The convolution that computes `count` of the output channels from `first` on.
    fn some_outputs(&self, first: usize, count: usize) -> Self {
        let some = |operand: Option<(usize, Operand)>| operand.map(|(i, tensor)| (i, tensor.channels(first, count)));
        let Operands { bias, channel_add, residual, .. } = self.of;
        let of = Operands { bias: some(bias), channel_add: some(channel_add), residual: some(residual), ..self.of };
        Self { of, output: self.output.channels(first, count), ..self.clone() }
    }
}

/// Gives the launch the tensor `x` and how a convolution of `spec` reads it, as an image of `extent` lines and columns.
fn seen(launch: Launch, x: Operand, spec: &ConvSpec, extent: [usize; 2]) -> Launch {
    as_seen(launch.read("x", x), spec, extent)
}

/// Gives the launch how a convolution of `spec` reads its input, as an image of `extent` lines and columns.
fn as_seen(launch: Launch, spec: &ConvSpec, extent: [usize; 2]) -> Launch {
    launch
        .i32("in_h", extent[0])
        .i32("in_w", extent[1])
        .u32("upsample", usize::from(spec.upsample))
        .u32("reflect", usize::from(spec.padding_mode == PaddingMode::Reflect))
        .i32("pad_h", spec.padding[0])
        .i32("pad_w", spec.padding[1])
}

/// The fields of `conv2d_window_fields.wgsl`.
fn window(launch: Launch, spec: &ConvSpec) -> Launch {
    launch
        .u32("kernel_h", spec.kernel[0])
        .u32("kernel_w", spec.kernel[1])
        .u32("stride_h", spec.stride[0])
        .u32("stride_w", spec.stride[1])
        .u32("dilation_h", spec.dilation[0])
        .u32("dilation_w", spec.dilation[1])
}

/// The weight laid out in tiles of `rows` output channels of one group, with room for `depth` products each: one launch
/// of `conv2d_weight.wgsl`. `what` names this form in the plan.
fn packed_in_tiles(call: &Call, what: String, rows: usize, depth: usize) -> Prepared {
    let (weight, group_out) = (call.of.weight, call.group_out());
    let tiles = group_out.div_ceil(rows);
    let len = call.spec().groups * tiles * rows * depth;
    let launch = Launch::new("conv2d_weight", "main")
        .constant("ROWS", rows as f64)
        .read("weight", Operand { bind: Bind::Input(0), ..weight })
        .write("tiles", packed(len))
        .u32("group_out", group_out)
        .u32("group_tiles", tiles)
        .u32("products", weight.shape().item())
        .u32("depth", depth)
        .u32("elements", len)
        .over(len.div_ceil(64));
    Prepared::on_gpu(1, what, len, launch)
}

/// The row that a weight is packed into.
fn packed(len: usize) -> Operand {
    Operand { bind: Bind::Output, slot: Slot::contiguous(Shape::new(1, 1, 1, len)) }
}
