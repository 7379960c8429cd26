//! How convolutions are computed on the CPU: the weight is packed once, then Winograd, Fourier transforms, a matrix
//! product or a direct loop read it.

use std::borrow::Cow;

use super::Conv2d;
use crate::cpu::conv::{Algorithm, ConvSpec, Epilogue, conv2d, pack_into, packed_len};
use crate::cpu::view::View;
use crate::gpu::Operand;
use crate::graph::{Lowered, Prepared};
use crate::tensor::Shape;

/// How `conv` is computed on the CPU.
pub(super) fn lower(conv: Conv2d, inputs: &[Operand]) -> Lowered {
    let [input, weight] = [inputs[0].shape(), inputs[1].shape()];
    let method = Algorithm::choose(&conv.spec, input, weight).name();
    let compute = Lowered::cpu(move |inputs, out| {
        let of = conv.operands(inputs);
        conv2d(&conv.spec, of.x, of.weight.item(0), weight, &conv.epilogue(&of), out);
    });
    compute.method(method).prepare(Some(pack(conv.spec, input, weight, method)))
}

/// The weight in the form that the algorithm reads which convolves an input of this shape.
fn pack(spec: ConvSpec, input: Shape, weight: Shape, method: &str) -> Prepared {
    let what = format!("packed for {method}, {} groups", spec.groups);
    Prepared::on_cpu(1, what, packed_len(&spec, input, weight), move |inputs, out| {
        let given = inputs[0];
        // A weight may be a slice of a larger one, so its output channels need not be contiguous.
        let values = if given.batch_stride == weight.item() {
            Cow::Borrowed(&given.data[..weight.numel()])
        } else {
            Cow::Owned((0..weight.n()).map(|n| given.item(n)).collect::<Vec<_>>().concat())
        };
        let len = out.shape.numel();
        pack_into(&spec, input, weight, &values, &mut out.data[..len]);
    })
}

impl Conv2d {
    /// What follows the sums of products.
    pub(super) fn epilogue<'a>(&self, of: &super::Operands<View<'a>>) -> Epilogue<'a> {
        Epilogue {
            bias: of.bias.map(|(_, view)| view.item(0)),
            channel_add: of.channel_add.map(|(_, view)| view),
            residual: of.residual.map(|(_, view)| view),
            activation: self.activation,
        }
    }
}
