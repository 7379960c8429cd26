//! The convolution of the CPU: the weight packed once, then Winograd, Fourier transforms, a matrix product or a direct loop.

use std::borrow::Cow;

use pulp::Arch;

use super::{Conv2d, Operands};
use crate::cpu::conv::{Algorithm, Conv, ConvSpec, Epilogue};
use crate::cpu::view::View;
use crate::gpu::Operand;
use crate::graph::{Lowered, Prepared};
use crate::tensor::Shape;

/// How `conv` is computed on the CPU.
pub(super) fn lower(conv: Conv2d, inputs: &[Operand]) -> Lowered {
    let [input, weight_shape] = [inputs[0].shape(), inputs[1].shape()];
    let algorithm = Algorithm::choose(&conv.spec, input, weight_shape);
    let compute = Lowered::cpu(move |inputs, out| {
        let of = conv.operands(inputs);
        let (spec, packed, epilogue) = (&conv.spec, of.weight.item(0), &conv.epilogue(&of));
        algorithm.run(Arch::new(), &Conv { spec, x: of.x, packed, weight_shape, epilogue }, out);
    });
    compute.method(algorithm.name()).prepare(Some(pack(algorithm, conv.spec, weight_shape)))
}

/// The weight as the algorithm reads it.
fn pack(algorithm: Algorithm, spec: ConvSpec, weight: Shape) -> Prepared {
    let what = format!("packed for {}, {} groups", algorithm.name(), spec.groups);
    Prepared::on_cpu(1, what, algorithm.packed_len(&spec, weight), move |inputs, out| {
        let given = inputs[0];
        // A weight may be a slice of a larger one, so its output channels need not be contiguous.
        let values = if given.batch_stride == weight.item() {
            Cow::Borrowed(&given.data[..weight.numel()])
        } else {
            Cow::Owned((0..weight.n()).map(|n| given.item(n)).collect::<Vec<_>>().concat())
        };
        let len = out.shape.numel();
        algorithm.pack_into(&spec, weight, &values, &mut out.data[..len]);
    })
}

impl Conv2d {
    /// What is done to the sums.
    pub(super) fn epilogue<'a>(&self, of: &Operands<View<'a>>) -> Epilogue<'a> {
        Epilogue {
            bias: of.bias.map(|(_, view)| view.item(0)),
            channel_add: of.channel_add.map(|(_, view)| view),
            residual: of.residual.map(|(_, view)| view),
            activation: self.activation,
        }
    }
}
