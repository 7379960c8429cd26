//! The convolution of the CPU executor: weights packed once, then Winograd, Fourier transforms, GEMM or direct.

use std::borrow::Cow;
use std::sync::Arc;

use super::Conv2d;
use crate::cpu::conv::{Algorithm, ConvSpec, conv2d, pack_into, packed_len};
use crate::cpu::view::{View, ViewMut};
use crate::ops::{Dispatch, GpuTraits, Op, Slot, Specialized};
use crate::tensor::Shape;

/// `conv` on packed weights.
pub fn specialize(conv: Conv2d, inputs: &[Shape]) -> Specialized {
    let (input, weight) = (inputs[0], inputs[1]);
    Specialized {
        op: Arc::new(Packed { conv, weight }),
        prepared: vec![(1, Arc::new(Pack { spec: conv.spec, input, weight }))],
    }
}

/// Packs a weight for the algorithm that an input of this shape is convolved by.
#[derive(Clone, Copy, Debug)]
struct Pack {
    spec: ConvSpec,
    input: Shape,
    weight: Shape,
}

/// A [`Conv2d`] whose weight has been packed.
#[derive(Clone, Copy, Debug)]
struct Packed {
    conv: Conv2d,
    weight: Shape,
}

/// Neither operation is ever planned for a GPU.
fn cpu_only(op: &dyn Op) -> ! {
    unreachable!("{} is made by the CPU's plan", op.name())
}

impl Op for Pack {
    fn name(&self) -> &'static str {
        "conv2d_pack"
    }

    fn infer(&self, _inputs: &[Shape]) -> Result<Shape, String> {
        let len = packed_len(&self.spec, self.input, self.weight);
        Ok(Shape::new(1, len, 1, 1))
    }

    fn cpu(&self, inputs: &[View], out: ViewMut) {
        let (given, size) = (inputs[0], self.weight.numel());
        // A weight may be a slice of a larger one, so its output channels need not be contiguous.
        let weight = if given.batch_stride == self.weight.item() {
            Cow::Borrowed(&given.data[..size])
        } else {
            Cow::Owned((0..self.weight.n()).map(|n| given.item(n)).collect::<Vec<_>>().concat())
        };
        let len = out.shape.numel();
        pack_into(&self.spec, self.input, self.weight, &weight, &mut out.data[..len]);
    }

    fn gpu(&self, _traits: &GpuTraits, _inputs: &[Slot], _output: Slot) -> Vec<Dispatch> {
        cpu_only(self)
    }
}

impl Op for Packed {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        self.conv.infer_with(inputs, self.weight)
    }

    fn macs(&self, _inputs: &[Shape], output: Shape) -> u64 {
        (output.numel() * self.weight.item()) as u64
    }

    fn summary(&self) -> String {
        self.conv.describe()
    }

    fn cpu_algorithm(&self, inputs: &[Shape]) -> &'static str {
        Algorithm::choose(&self.conv.spec, inputs[0], self.weight).name()
    }

    fn cpu(&self, inputs: &[View], out: ViewMut) {
        let of = self.conv.operands(inputs);
        let epilogue = self.conv.epilogue(&of);
        let packed = of.weight.item(0);
        conv2d(&self.conv.spec, of.x, packed, self.weight, &epilogue, out);
    }

    fn gpu(&self, _traits: &GpuTraits, _inputs: &[Slot], _output: Slot) -> Vec<Dispatch> {
        cpu_only(self)
    }
}
