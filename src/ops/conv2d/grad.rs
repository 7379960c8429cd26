//! The gradients of convolutions: with respect to the input another convolution, with the weight's channels swapped and
//! its kernels turned; with respect to the weight [`Conv2dWeightGrad`]; with respect to what is added a sum.

use rayon::prelude::*;

use super::{Conv2d, Conv2dWeightGrad, ConvSpec, PaddingMode};
use crate::cpu::activation::Activation;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, GraphError, Lowered, NodeId, Op, Target};
use crate::ops::adjoint::Adjoint;
use crate::ops::gradient_name;
use crate::ops::pointwise::Pointwise;
use crate::ops::reduce_sum::ReduceSum;
use crate::tensor::Shape;

/// The gradient rule of [`Conv2d`].
pub(super) fn grad(conv: &Conv2d, g: &mut Graph, at: Backward) -> Gradients {
    let dy = before_activation(g, at, conv.activation, Conv2d { activation: Activation::None, ..*conv })?;
    let of = conv.operands(at.inputs);
    let mut grads = vec![None; at.inputs.len()];
    if at.wanted[0] {
        grads[0] = Some(by_input(&conv.spec, g, of.x, of.weight, dy)?);
    }
    if at.wanted[1] {
        let op = Conv2dWeightGrad { spec: conv.spec, weight: g.shape(of.weight) };
        grads[1] = Some(g.apply(&gradient_name(g, of.weight), op, &[of.x, dy])?);
    }
    for (i, vector) in [of.bias, of.channel_add].into_iter().flatten() {
        if at.wanted[i] {
            grads[i] = Some(of_vector(g, vector, dy)?);
        }
    }
    if let Some((i, _)) = of.residual {
        grads[i] = Some(dy);
    }
    Ok(grads)
}

/// The gradient with respect to what an operation's activation is applied to; `plain` is the operation without the
/// activation. Where the activation's result does not determine its derivative, `plain` is computed again.
pub(in crate::ops) fn before_activation(
    g: &mut Graph,
    at: Backward,
    activation: Activation,
    plain: impl Op,
) -> Result<NodeId, GraphError> {
    if activation == Activation::None {
        return Ok(at.dy);
    }
    let name = gradient_name(g, at.output);
    if let Some(derivative) = Pointwise::act_grad_from_result(activation) {
        return g.apply(&name, derivative, &[at.output, at.dy]);
    }
    let before = g.apply(&name, plain, at.inputs)?;
    let grads = Pointwise::act(activation).grad(g, Backward { inputs: &[before], wanted: &[true], ..at })?;
    Ok(grads[0].unwrap_or(at.dy))
}

/// The gradient with respect to a vector that was added to every pixel.
pub(in crate::ops) fn of_vector(g: &mut Graph, vector: NodeId, dy: NodeId) -> Result<NodeId, GraphError> {
    match ReduceSum::to(g.shape(dy), g.shape(vector)) {
        Some(sum) => g.apply(&gradient_name(g, vector), sum, &[dy]),
        None => Ok(dy),
    }
}

/// The gradient with respect to the input.
fn by_input(spec: &ConvSpec, g: &mut Graph, x: NodeId, weight: NodeId, dy: NodeId) -> Result<NodeId, GraphError> {
    let name = gradient_name(g, x);
    let extent = spec.extent(g.shape(x));
    let reach: [usize; 2] = std::array::from_fn(|axis| spec.dilation[axis] * (spec.kernel[axis] - 1));
    let mut grad = dy;
    if spec.stride != [1; 2] {
        let size = std::array::from_fn(|axis| extent[axis] + 2 * spec.padding[axis] - reach[axis]);
        grad = g.apply(&name, Adjoint::Stride { stride: spec.stride, size }, &[grad])?;
    }
    let transposed = g.apply(&name, TransposeWeight { groups: spec.groups }, &[weight])?;
    // The adjoint's padding leaves out what zero padding added, if it can. Otherwise the gradient with respect to the
    // padded input is computed first, and its padding taken off after that.
    let whole = spec.padding_mode == PaddingMode::Reflect || (0..2).any(|axis| spec.padding[axis] > reach[axis]);
    let padding = if whole { reach } else { std::array::from_fn(|axis| reach[axis] - spec.padding[axis]) };
    let adjoint = ConvSpec { stride: [1; 2], padding, padding_mode: PaddingMode::Zeros, upsample: false, ..*spec };
    grad = g.apply(&name, Conv2d::new(adjoint), &[grad, transposed])?;
    if whole && spec.padding != [0; 2] {
        let folded = Adjoint::Padding { padding: spec.padding, mode: spec.padding_mode };
        grad = g.apply(&name, folded, &[grad])?;
    }
    if spec.upsample {
        grad = g.apply(&name, Adjoint::UpsampleNearest2, &[grad])?;
    }
    Ok(grad)
}

/// The weight of a convolution's adjoint, which computes the gradient with respect to the input: in each group input
/// and output channels are swapped, and kernels are turned by 180 degrees.
///
/// Input: `[oc, ic / groups, kh, kw]`. Result: `[ic, oc / groups, kh, kw]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TransposeWeight {
    /// Groups of the convolution.
    pub groups: usize,
}

impl Op for TransposeWeight {
    fn name(&self) -> &'static str {
        "conv2d_weight_transpose"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [w] if self.groups > 0 && w.numel() > 0 && w.n().is_multiple_of(self.groups) => {
                Ok(Shape::new(w.c() * self.groups, w.n() / self.groups, w.h(), w.w()))
            }
            _ => Err(format!("it takes one weight of {} groups", self.groups)),
        }
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let (op, weight) = (*self, inputs[0]);
        let Target::Gpu(_) = target else {
            return Lowered::cpu(move |inputs, out| op.compute(inputs[0], out));
        };
        let [rows, group_out, ..] = output.shape().0;
        let launch = Launch::new("conv2d_weight_transpose", "main")
            .read("weight", weight)
            .write("out", output)
            .u32("group_out", group_out)
            .u32("group_in", weight.shape().c())
            .u32("taps", weight.shape().plane());
        Lowered::gpu([launch.over_grid([output.shape().item().div_ceil(64), rows, 1])])
    }
}

impl TransposeWeight {
    fn compute(&self, weight: View, out: ViewMut) {
        let [rows, group_out, kh, kw] = out.shape.0;
        let (group_in, taps) = (rows / self.groups, kh * kw);
        let items = out.data.par_chunks_mut(out.batch_stride).take(rows).enumerate();
        items.for_each(|(row, out)| {
            for (o, kernel) in out.chunks_exact_mut(taps).take(group_out).enumerate() {
                let from = &weight.item(row / group_in * group_out + o)[row % group_in * taps..][..taps];
                kernel.iter_mut().zip(from.iter().rev()).for_each(|(to, v)| *to = *v);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        check_gradient, check_gradient_on, check_gradient_views, check_kernels, check_twins_on, check_views, random,
    };

    fn shapes(conv: Conv2d, x: Shape, oc: usize) -> Vec<Shape> {
        let [kh, kw] = conv.spec.kernel;
        let weight = Shape::new(oc, x.c() / conv.spec.groups, kh, kw);
        let output = conv.spec.output_shape(x, weight).expect("the shapes fit");
        let mut shapes = vec![x, weight];
        shapes.extend(conv.bias.then_some(Shape::new(1, oc, 1, 1)));
        shapes.extend(conv.channel_add.then_some(Shape::new(x.n(), oc, 1, 1)));
        shapes.extend(conv.residual.then_some(output));
        shapes
    }

    fn check(conv: Conv2d, x: Shape, oc: usize, tolerance: f64) {
        check_gradient(conv, &shapes(conv, x, oc), 0.0, tolerance);
    }

    #[test]
    fn plain_convolutions() {
        check(Conv2d::new(ConvSpec::same(3)), Shape::new(3, 9, 11, 14), 13, 1e-4);
        check(Conv2d::new(ConvSpec::same(3)), Shape::new(2, 20, 33, 41), 35, 1e-4);
        check(Conv2d::with_bias(ConvSpec::same(1)), Shape::new(2, 33, 7, 9), 12, 1e-4);
        check(Conv2d::new(ConvSpec::same(5)), Shape::new(1, 3, 9, 13), 4, 1e-4);
        check(Conv2d::new(ConvSpec { padding: [0, 4], ..ConvSpec::same(3) }), Shape::new(1, 8, 6, 5), 2, 1e-4);
        check(Conv2d::new(ConvSpec { padding: [1, 0], ..ConvSpec::same(1) }), Shape::new(1, 2, 3, 5), 9, 1e-4);
    }

    #[test]
    fn parts_of_concatenations() {
        for spec in [ConvSpec::same(3), ConvSpec { groups: 4, ..ConvSpec::same(3) }] {
            let conv = Conv2d { activation: Activation::Silu, ..Conv2d::with_bias(spec) };
            check_gradient_views(conv, &shapes(conv, Shape::new(2, 8, 25, 27), 12), 1e-5);
        }
    }

    #[test]
    fn strides_and_dilations() {
        let strided = ConvSpec { stride: [2; 2], ..ConvSpec::same(3) };
        for size in [[8, 12], [9, 11], [7, 10]] {
            check(Conv2d::new(strided), Shape::new(2, 9, size[0], size[1]), 10, 1e-4);
        }
        let spread = ConvSpec { dilation: [2, 3], padding: [2, 3], ..ConvSpec::same(3) };
        check(Conv2d::new(spread), Shape::new(2, 10, 9, 12), 5, 1e-4);
        let both = ConvSpec { stride: [3, 2], dilation: [2, 1], ..ConvSpec::same(5) };
        check(Conv2d::new(both), Shape::new(1, 12, 17, 14), 8, 1e-4);
        let point = ConvSpec { stride: [2; 2], ..ConvSpec::same(1) };
        check(Conv2d::new(point), Shape::new(1, 12, 6, 7), 8, 1e-4);
    }

    #[test]
    fn groups() {
        let mirrored = ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(3) };
        check(Conv2d::with_bias(ConvSpec { groups: 7, ..mirrored }), Shape::new(3, 7, 9, 37), 7, 1e-4);
        check(Conv2d::new(ConvSpec { groups: 3, ..ConvSpec::same(5) }), Shape::new(2, 3, 9, 70), 6, 1e-4);
        check(Conv2d::new(ConvSpec { groups: 3, ..ConvSpec::same(3) }), Shape::new(2, 33, 6, 5), 27, 1e-4);
        let strided = ConvSpec { groups: 5, stride: [2, 3], dilation: [1, 2], ..ConvSpec::same(3) };
        check(Conv2d::new(strided), Shape::new(2, 5, 9, 20), 5, 1e-4);
    }

    #[test]
    fn reflected_and_upsampled() {
        let mirrored = |kernel| ConvSpec { padding_mode: PaddingMode::Reflect, ..ConvSpec::same(kernel) };
        check(Conv2d::with_bias(mirrored(7)), Shape::new(2, 2, 9, 13), 1, 1e-4);
        check(Conv2d::new(mirrored(3)), Shape::new(2, 12, 16, 17), 9, 1e-4);
        let enlarged = ConvSpec { upsample: true, ..ConvSpec::same(3) };
        check(Conv2d::with_bias(enlarged), Shape::new(2, 10, 5, 9), 8, 1e-4);
        check(Conv2d::new(ConvSpec { upsample: true, ..mirrored(3) }), Shape::new(1, 4, 4, 5), 3, 1e-4);
    }

    #[test]
    fn what_follows_the_sums() {
        let full =
            |activation| Conv2d { spec: ConvSpec::same(3), bias: true, channel_add: true, residual: true, activation };
        let x = Shape::new(3, 8, 9, 12);
        for activation in [Activation::None, Activation::Tanh, Activation::Sigmoid, Activation::Silu] {
            check(full(activation), x, 11, 2e-4);
        }
        // Values of 20 and -20 are far from the corner at zero, which a step of the central difference could otherwise
        // pass.
        for activation in [Activation::Relu, Activation::LeakyRelu(0.2), Activation::LeakyRelu(-0.5)] {
            let shapes = shapes(full(activation), x, 11);
            let mut data: Vec<Vec<f32>> = (0..5).map(|i| random(shapes[i].numel(), 31 + i as u64)).collect();
            data[4].iter_mut().for_each(|v| *v = 20.0 * v.signum());
            check_gradient_on(full(activation), &shapes, &data, 3e-4);
        }
    }

    #[test]
    fn transposed_weights() {
        let weight = Shape::new(2, 1, 1, 2);
        let op = TransposeWeight { groups: 2 };
        assert_eq!(check_twins_on(op, &[weight], &[vec![1.0, 2.0, 3.0, 4.0]], 0.0), [2.0, 1.0, 4.0, 3.0]);
        let op = TransposeWeight { groups: 1 };
        assert_eq!(check_twins_on(op, &[weight], &[vec![1.0, 2.0, 3.0, 4.0]], 0.0), [2.0, 1.0, 4.0, 3.0]);
        let weight = Shape::new(15, 8, 3, 5);
        let data = random(weight.numel(), 2);
        let there = check_twins_on(TransposeWeight { groups: 3 }, &[weight], std::slice::from_ref(&data), 0.0);
        assert_ne!(there, data);
        let back = check_twins_on(TransposeWeight { groups: 3 }, &[Shape::new(24, 5, 3, 5)], &[there], 0.0);
        assert_eq!(back, data);
        check_views(op, &[weight], 0.0);
        check_kernels(&op, &[weight]);
        assert!(TransposeWeight { groups: 4 }.infer(&[weight]).is_err());
    }
}
