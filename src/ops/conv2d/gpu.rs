//! Convolutions on a GPU: which method for which shape, weights packed once, and the launches.

mod direct;
mod fft;
mod product;
#[cfg(test)]
mod tests;
pub(super) mod weight_grad;

use std::sync::Arc;

use super::{Conv2d, ConvSpec, Operands, PaddingMode};
use crate::cpu::view::{View, ViewMut};
use crate::ops::{Bind, Dispatch, GpuTraits, Kernel, Op, Params, Slot, Specialized};
use crate::tensor::Shape;
use fft::Fft;
use product::Product;

/// How a convolution is computed on a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2016): 36 matrix products over 4x4 tiles of the output.
    Winograd,
    /// Fourier transforms of 32x32 tiles, and a matrix product for each of their frequencies.
    Fft,
    /// One matrix product over gathered pixels.
    Gemm,
    /// By definition, 4 output channels of a group at a time.
    Direct,
    /// By definition, one output channel at a time; of one input channel 4 rows, where lanes can exchange weights.
    Depthwise,
}

/// What the stages cost on llvmpipe, in nanoseconds of a core for eight lanes; ratios are what matters.
mod cost {
    /// Transforms of an input tile and of an output tile.
    pub const WINOGRAD: [f64; 2] = [1000.0, 1150.0];
    /// A gathered pixel and a scattered one.
    pub const GEMM: [f64; 2] = [25.0, 30.0];
    /// A multiply-add of a matrix product.
    pub const PRODUCT: f64 = 0.54;
    /// Multiply-adds that storing a sum of them takes as long as.
    pub const PRODUCT_SUM: usize = 24;
    /// Fourier transforms of a pair of input tiles and of a pair of output tiles.
    pub const FFT: [f64; 2] = [18_000.0, 24_000.0];
    /// The Fourier transform of a kernel.
    pub const FFT_KERNEL: f64 = 9000.0;
    /// A multiply-add of a tile of the gradient by the weight.
    pub const WEIGHT_GRAD: f64 = 15.0;
    /// A multiply-add of a tile of 4 output channels.
    pub const DIRECT: f64 = 3.6;
}

impl Method {
    /// The method for an input `[n, ic, h, w]` and a weight `[oc, ic / groups, kh, kw]` whose packed form may take
    /// `max_bytes`.
    pub fn choose(spec: &ConvSpec, input: Shape, weight: Shape, max_bytes: u64) -> Self {
        let group_out = weight.n() / spec.groups;
        if group_out <= 2 {
            return Self::Depthwise;
        }
        let Some(output) = spec.output_shape(input, weight) else {
            return Self::Direct;
        };
        let mut best = (Self::Direct, direct_cost(spec, weight, output));
        for method in [Self::Gemm, Self::Winograd] {
            let packed = method.packed_len(spec, weight).unwrap_or(0);
            if 4 * packed as u64 > max_bytes {
                continue;
            }
            if let Some(product) = Product::new(method, spec, weight, output) {
                let cost = product.cost();
                if cost < best.1 {
                    best = (method, cost);
                }
            }
        }
        match Fft::new(spec, weight, output, max_bytes) {
            Some(fft) if fft.cost < best.1 => Self::Fft,
            _ => best.0,
        }
    }

    /// Elements of the packed form of a weight, `None` if the weight is used as it is.
    fn packed_len(self, spec: &ConvSpec, weight: Shape) -> Option<usize> {
        match self {
            Self::Winograd => Some(36 * weight.n().next_multiple_of(32) * (even(weight.c()) + 1)),
            Self::Gemm => Some(weight.n().next_multiple_of(32) * (even(weight.item()) + 1)),
            Self::Direct => Some(4 * direct::tiles(spec, weight) * weight.item()),
            Self::Fft | Self::Depthwise => None,
        }
    }
}

/// The largest buffer that kernels can see.
fn max_bytes(traits: &GpuTraits) -> u64 {
    traits.max_binding.min(traits.max_buffer)
}

fn even(n: usize) -> usize {
    n.next_multiple_of(2)
}

fn direct_cost(spec: &ConvSpec, weight: Shape, output: Shape) -> f64 {
    let pixels = output.n() * output.h() * output.w().next_multiple_of(64) / 8;
    (pixels * direct::tiles(spec, weight) * weight.item()) as f64 * 4.0 * cost::DIRECT
}

/// The form of `conv` that suits its shapes.
pub fn specialize(conv: Conv2d, traits: &GpuTraits, inputs: &[Shape]) -> Specialized {
    let method = Method::choose(&conv.spec, inputs[0], inputs[1], max_bytes(traits));
    with_method(conv, method, inputs[1])
}

fn with_method(conv: Conv2d, method: Method, weight: Shape) -> Specialized {
    let pack = Pack { method, spec: conv.spec, weight };
    let prepared: Vec<(usize, Arc<dyn Op>)> = match method {
        Method::Fft | Method::Depthwise => Vec::new(),
        _ => vec![(1, Arc::new(pack))],
    };
    Specialized { op: Arc::new(GpuConv2d { conv, method, weight }), prepared }
}

/// The launches of a convolution whose weight has not been packed.
pub fn unpacked(conv: &Conv2d, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
    let call = Call { conv, weight: inputs[1].shape, of: conv.operands(inputs), output };
    direct::dispatches(&call, Method::Depthwise, traits)
}

/// Packs a weight for a method.
#[derive(Clone, Copy, Debug)]
struct Pack {
    method: Method,
    spec: ConvSpec,
    weight: Shape,
}

/// A [`Conv2d`] whose weight has been packed for its method.
#[derive(Clone, Copy, Debug)]
struct GpuConv2d {
    conv: Conv2d,
    method: Method,
    weight: Shape,
}

impl GpuConv2d {
    /// The transforms, if that is the method.
    fn fft(&self, traits: &GpuTraits, output: Shape) -> Option<Fft> {
        let fft = || Fft::new(&self.conv.spec, self.weight, output, max_bytes(traits));
        (self.method == Method::Fft).then(fft).flatten()
    }
}

/// Neither operation is ever planned for the CPU.
fn gpu_only(op: &dyn Op) -> ! {
    unreachable!("{} is made by a GPU's plan", op.name())
}

impl Op for Pack {
    fn name(&self) -> &'static str {
        "conv2d_weight"
    }

    fn infer(&self, _inputs: &[Shape]) -> Result<Shape, String> {
        let len = self.method.packed_len(&self.spec, self.weight);
        Ok(Shape::new(1, len.unwrap_or(self.weight.numel()), 1, 1))
    }

    fn cpu(&self, _inputs: &[View], _out: ViewMut) {
        gpu_only(self)
    }

    fn gpu(&self, _traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        let weight = self.weight;
        let binds = vec![Bind::Input(0), Bind::Output];
        let params = Params::new().slot(&inputs[0]);
        if self.method == Method::Winograd {
            let (row_blocks, depth) = (weight.n().div_ceil(32), even(weight.c()));
            let params = params.u(weight.n()).u(weight.c()).u(depth);
            let kernel = Kernel::new("winograd_weight");
            return vec![Dispatch::new(kernel, params, binds, [depth, row_blocks, 1])];
        }
        let group_out = weight.n() / self.spec.groups;
        let products = weight.item();
        let (rows, depth) = match self.method {
            Method::Gemm => (32, even(products) + 1),
            _ => (4, products),
        };
        let elements = output.shape.numel();
        let params = params.u(group_out).u(group_out.div_ceil(rows)).u(products).u(depth).u(elements);
        let kernel = Kernel::new("conv2d_weight").constant("ROWS", rows as f64);
        let workgroups = elements.div_ceil(64).min(65_535);
        vec![Dispatch::new(kernel, params, binds, [workgroups, 1, 1])]
    }
}

impl Op for GpuConv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.conv.infer_with(inputs, self.weight)
    }

    fn macs(&self, _inputs: &[Shape], output: Shape) -> u64 {
        (output.numel() * self.weight.item()) as u64
    }

    /// Products are summed one after the other. Loops of constant length inside are unrolled; a loop's begin and end
    /// count as well, for which there is a margin: the limit was met at 17 to 22 rounds for each channel of a 3x3 kernel.
    fn loop_rounds(&self, _inputs: &[Shape], _output: Shape) -> usize {
        let [_, group_in, kh, kw] = self.weight.0;
        match self.method {
            Method::Gemm | Method::Winograd => 64 + even(self.weight.item()),
            Method::Fft => 512 + even(group_in),
            Method::Direct => group_in * (4 + kh * (4 + kw)),
            Method::Depthwise => (group_in * (4 + kh * (4 + kw))).max((kh + 3) * (4 + kw.div_ceil(4))),
        }
    }

    fn summary(&self) -> String {
        self.conv.describe()
    }

    fn scratch(&self, traits: &GpuTraits, _inputs: &[Shape], output: Shape) -> Vec<usize> {
        if let Some(fft) = self.fft(traits, output) {
            return fft.scratch();
        }
        Product::new(self.method, &self.conv.spec, self.weight, output)
            .map_or(Vec::new(), |product| product.scratch().to_vec())
    }

    fn cpu(&self, _inputs: &[View], _out: ViewMut) {
        gpu_only(self)
    }

    fn gpu(&self, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        let call = Call { conv: &self.conv, weight: self.weight, of: self.conv.operands(inputs), output };
        if let Some(fft) = self.fft(traits, output.shape) {
            return fft.dispatches(&call, traits);
        }
        match Product::new(self.method, &self.conv.spec, self.weight, output.shape) {
            Some(product) => product.dispatches(&call, traits),
            None => direct::dispatches(&call, self.method, traits),
        }
    }
}

/// One convolution's operands, from which all its launches are made.
struct Call<'a> {
    conv: &'a Conv2d,
    /// The weight's shape before packing.
    weight: Shape,
    of: Operands<Slot>,
    output: Slot,
}

/// The fields of the kernels' parameters that differ between the launches of a convolution.
#[derive(Clone, Copy, Default)]
struct Launch {
    depth: usize,
    rows: usize,
    row_quads: usize,
    image_rows: usize,
    first_quad: usize,
    quads: usize,
}

impl Call<'_> {
    /// `struct Params` of `shaders/shared/conv2d.wgsl`, for an input of `extent` lines and columns.
    fn params(&self, extent: [usize; 2], launch: Launch) -> Params {
        let spec = &self.conv.spec;
        let (of, out) = (&self.of, self.output.shape);
        let add = of
            .channel_add
            .map(|(_, slot)| Slot { batch_stride: if slot.shape.n() == 1 { 0 } else { slot.batch_stride }, ..slot });
        Params::new()
            .slot(&of.x)
            .u(extent[0])
            .u(extent[1])
            .u(usize::from(spec.upsample))
            .u(usize::from(spec.padding_mode == PaddingMode::Reflect))
            .u(of.x.shape.c())
            .u(spec.kernel[0])
            .u(spec.kernel[1])
            .u(spec.stride[0])
            .u(spec.stride[1])
            .u(spec.padding[0])
            .u(spec.padding[1])
            .u(spec.dilation[0])
            .u(spec.dilation[1])
            .u(self.weight.c())
            .u(self.weight.n() / spec.groups)
            .slot(&self.output)
            .u(out.n())
            .u(out.c())
            .u(out.h())
            .u(out.w())
            .u(usize::from(of.bias.is_some()) + 2 * usize::from(of.channel_add.is_some()))
            .u(of.bias.map_or(0, |(_, slot)| slot.offset))
            .optional_slot(add.as_ref())
            .optional_slot(of.residual.map(|(_, slot)| slot).as_ref())
            .slot(&of.weight)
            .u(launch.depth)
            .u(launch.rows)
            .u(launch.row_quads)
            .u(launch.image_rows)
            .u(launch.first_quad)
            .u(launch.quads)
    }

    /// Lines and columns of the input as the convolution sees it.
    fn extent(&self) -> [usize; 2] {
        let scale = if self.conv.spec.upsample { 2 } else { 1 };
        [self.of.x.shape.h() * scale, self.of.x.shape.w() * scale]
    }

    /// A kernel that stores the result, in the variant for what follows the sums.
    fn storing(&self, file: &'static str) -> Kernel {
        let conv = self.conv;
        let (code, slope) = conv.activation.code();
        Kernel::new(file)
            .constant("ACTIVATION", code)
            .constant("SLOPE", f64::from(slope))
            .flag("RESIDUAL", conv.residual)
    }

    /// The bindings of what follows the sums, and of the result.
    fn epilogue_binds(&self) -> [Bind; 4] {
        let bind = |slot: Option<(usize, Slot)>| slot.map_or(Bind::Absent, |(i, _)| Bind::Input(i));
        let of = &self.of;
        [bind(of.bias), bind(of.channel_add), bind(of.residual), Bind::Output]
    }
}
