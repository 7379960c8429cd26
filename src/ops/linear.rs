//! Linear (fully connected) layers.

use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::conv2d::grad::{TransposeWeight, before_activation, of_vector};
use super::conv2d::{Conv2dWeightGrad, ConvSpec};
use super::gradient_name;
use super::pointwise::Pointwise;
use crate::cpu::activation::Activation;
use crate::cpu::moments::dot;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Output features that one CPU task computes.
const ROWS: usize = 16;

/// `activation(weight * x + bias)` of each item's features.
///
/// Inputs: `x` `[n, in, 1, 1]`, `weight` `[out, in, 1, 1]`, with a bias also `bias` `[1, out, 1, 1]`.
/// Result: `[n, out, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Linear {
    /// Whether there is a bias.
    pub bias: bool,
    /// Applied last.
    pub activation: Activation,
}

impl Linear {
    /// A layer without bias.
    pub fn new() -> Self {
        Self { bias: false, activation: Activation::None }
    }

    /// A layer with bias.
    pub fn with_bias() -> Self {
        Self { bias: true, ..Self::new() }
    }
}

impl Default for Linear {
    fn default() -> Self {
        Self::new()
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let expected = if self.bias { 3 } else { 2 };
        if inputs.len() != expected {
            return Err(format!("it takes {expected} tensors"));
        }
        let [x, weight] = [inputs[0], inputs[1]];
        if x.plane() != 1 || weight.plane() != 1 || weight.c() != x.c() {
            return Err("it takes x of n x in and a weight of out x in features".into());
        }
        if inputs.get(2).is_some_and(|b| *b != Shape::new(1, weight.n(), 1, 1)) {
            return Err(format!("its bias must have {} elements", weight.n()));
        }
        Ok(Shape::new(x.n(), weight.n(), 1, 1))
    }

    fn macs(&self, inputs: &[Shape], output: Shape) -> u64 {
        (inputs[0].c() * output.numel()) as u64
    }

    fn absorb_consumer(&self, next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let activation = next.as_any().downcast_ref::<Pointwise>()?.as_activation()?;
        (self.activation == Activation::None).then(|| Arc::new(Self { activation, ..*self }) as _)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let dy = before_activation(g, at, self.activation, Self { activation: Activation::None, ..*self })?;
        let [x, weight] = [at.inputs[0], at.inputs[1]];
        let mut grads = vec![None; at.inputs.len()];
        if at.wanted[0] {
            let name = gradient_name(g, x);
            let transposed = g.apply(&name, TransposeWeight { groups: 1 }, &[weight])?;
            grads[0] = Some(g.apply(&name, Self::new(), &[dy, transposed])?);
        }
        if at.wanted[1] {
            let op = Conv2dWeightGrad { spec: ConvSpec::same(1), weight: g.shape(weight) };
            grads[1] = Some(g.apply(&gradient_name(g, weight), op, &[x, dy])?);
        }
        if self.bias && at.wanted[2] {
            grads[2] = Some(of_vector(g, at.inputs[2], dy)?);
        }
        Ok(grads)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        let Target::Gpu(_) = target else {
            return Lowered::cpu(move |inputs, out| op.compute(inputs, out));
        };
        let launch = Launch::new("linear", "main")
            .text("activation", format!("    return {};", op.activation.wgsl("v")))
            .read("x", inputs[0])
            .read("weight", inputs[1])
            .read_if_any("bias", inputs.get(2).copied())
            .write("out", output)
            .u32("has_bias", usize::from(op.bias))
            .u32("in_features", inputs[0].shape().c());
        Lowered::gpu([launch.over_grid([output.shape().c(), output.shape().n(), 1])])
    }
}

impl Linear {
    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let weight = inputs[1];
        for n in 0..out.shape.n() {
            let x = inputs[0].item(n);
            let blocks = out.item(n).par_chunks_mut(ROWS).enumerate();
            blocks.for_each(|(block, out)| {
                for (i, out) in out.iter_mut().enumerate() {
                    let row = block * ROWS + i;
                    let sum = dot(weight.item(row), x);
                    let bias = inputs.get(2).map_or(0.0, |b| b.data[row]);
                    *out = self.activation.apply((sum + f64::from(bias)) as f32);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_gradient, check_kernels, check_twins_on, check_views, random, relative_l2};
    use super::*;

    fn shapes(op: Linear, n: usize, features: [usize; 2]) -> Vec<Shape> {
        let [from, to] = features;
        let mut shapes = vec![Shape::new(n, from, 1, 1), Shape::new(to, from, 1, 1)];
        if op.bias {
            shapes.push(Shape::new(1, to, 1, 1));
        }
        shapes
    }

    /// The definition, in `f64`.
    fn oracle(op: Linear, from: usize, data: &[Vec<f32>]) -> Vec<f32> {
        let mut out = Vec::new();
        for x in data[0].chunks(from) {
            for (row, weight) in data[1].chunks(from).enumerate() {
                let products = weight.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let y = products.sum::<f64>() + data.get(2).map_or(0.0, |b| f64::from(b[row]));
                out.push(match op.activation {
                    Activation::Silu => y / (1.0 + (-y).exp()),
                    _ => y,
                } as f32);
            }
        }
        out
    }

    fn check(op: Linear, n: usize, features: [usize; 2]) {
        let shapes = shapes(op, n, features);
        let data: Vec<Vec<f32>> = (0..shapes.len()).map(|i| random(shapes[i].numel(), i as u64)).collect();
        let cpu = check_twins_on(op, &shapes, &data, 1e-5);
        let error = relative_l2(&cpu, &oracle(op, features[0], &data));
        assert!(error <= 1e-6, "{op:?} on {shapes:?}: {error:e}");
    }

    #[test]
    fn small_and_large_layers() {
        for op in [Linear::new(), Linear::with_bias()] {
            check_kernels(&op, &shapes(op, 1, [16, 24]));
            for (n, features) in [(1, [128, 512]), (3, [7, 1]), (2, [2500, 33]), (70_000, [1, 2])] {
                check(op, n, features);
            }
        }
    }

    #[test]
    fn gradients_by_all_inputs() {
        let silu = Linear { activation: Activation::Silu, ..Linear::with_bias() };
        for (op, n, features) in [(Linear::new(), 1, [5, 3]), (Linear::with_bias(), 3, [33, 70]), (silu, 2, [9, 20])] {
            check_gradient(op, &shapes(op, n, features), 0.0, 1e-4);
        }
    }

    #[test]
    fn parts_of_concatenations() {
        check_views(Linear::with_bias(), &shapes(Linear::with_bias(), 3, [9, 5]), 1e-6);
    }

    #[test]
    fn an_activation_joins() {
        let silu = Pointwise::act(Activation::Silu);
        let joined = Linear::with_bias().absorb_consumer(&silu, 0, &[]);
        let joined: Linear = *joined.expect("it joins").as_any().downcast_ref().expect("linear");
        check(joined, 2, [31, 17]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let [x, weight] = [Shape::new(2, 4, 1, 1), Shape::new(3, 4, 1, 1)];
        let op = Linear::new();
        assert_eq!(op.infer(&[x, weight]), Ok(Shape::new(2, 3, 1, 1)));
        assert_eq!(op.macs(&[x, weight], Shape::new(2, 3, 1, 1)), 24);
        assert!(op.infer(&[x, Shape::new(3, 5, 1, 1)]).is_err());
        assert!(op.infer(&[Shape::new(2, 4, 2, 1), weight]).is_err());
        assert!(op.infer(&[x, weight, Shape::new(1, 3, 1, 1)]).is_err());
        assert!(Linear::with_bias().infer(&[x, weight, x]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..5usize, from in 1..300usize, to in 1..90usize, bias: bool) {
            check(Linear { bias, ..Linear::new() }, n, [from, to]);
        }
    }
}
