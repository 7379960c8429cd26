//! Batch normalisation (Ioffe and Szegedy 2015): with running statistics, as trained networks apply it, or with those of
//! the batch itself, as training does.

use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::group_norm::{BLOCK, normalise};
use super::pointwise::Pointwise;
use super::reduce_sum::ReduceSum;
use crate::cpu::activation::Activation;
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, GraphError, Lowered, NodeId, Op, Target};
use crate::tensor::Shape;

/// Normalises each channel with its running mean and variance, then scales and shifts it and applies an activation.
///
/// With the mean and variance of the batch itself it is made of other operations: see [`BatchNorm::training`].
///
/// Inputs: `x` `[n, c, h, w]`; `weight`, `bias`, `running_mean`, `running_var`, each `[1, c, 1, 1]`.
/// Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Applied last.
    #[serde(default)]
    pub activation: Activation,
}

/// The share of a batch's statistics in the new running statistics, PyTorch's default.
const MOMENTUM: f32 = 0.1;

/// A batch norm in training mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrainedBatchNorm {
    /// The normalised tensor, of `x`'s shape.
    pub y: NodeId,
    /// What the running mean becomes, `[1, c, 1, 1]`.
    pub running_mean: NodeId,
    /// What the running variance becomes, `[1, c, 1, 1]`.
    pub running_var: NodeId,
}

impl BatchNorm {
    /// Adds the norm with the batch's own mean and variance over items and pixels; `inputs` are those of [`BatchNorm`].
    ///
    /// The new running statistics are nine tenths of the old and a tenth of the batch's, its variance divided by one
    /// less than the values of a channel, as in PyTorch.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if the shapes do not fit or a channel has a single value.
    pub fn training(&self, g: &mut Graph, name: &str, inputs: [NodeId; 5]) -> Result<TrainedBatchNorm, GraphError> {
        let shapes = inputs.map(|id| g.shape(id));
        let count = shapes[0].n() * shapes[0].plane();
        let fits = self.infer(&shapes).and_then(|_| match count {
            0 | 1 => Err("training needs more than one value in a channel".to_owned()),
            _ => Ok(()),
        });
        if let Err(reason) = fits {
            let shapes: Vec<String> = shapes.iter().map(Shape::to_string).collect();
            return Err(GraphError::Shape {
                layer: g.scoped(name),
                op: self.name(),
                shapes: shapes.join(", "),
                reason,
            });
        }
        let [x, weight, bias, running_mean, running_var] = inputs;
        let sum = ReduceSum { over: [true, false, true, true] };
        let share = |factor: f32| Pointwise::build(|[sum]| sum.affine(factor, 0.0));
        let total = g.apply(name, sum, &[x])?;
        let mean = g.apply(name, share(1.0 / count as f32), &[total])?;
        let deviation = g.apply(name, Pointwise::build(|[x, mean]| x - mean), &[x, mean])?;
        let squares = g.apply(name, Pointwise::build(|[d]| d.clone() * d), &[deviation])?;
        let total = g.apply(name, sum, &[squares])?;
        let variance = g.apply(name, share(1.0 / count as f32), &[total])?;
        let (eps, activation) = (self.eps, self.activation);
        let normalise = Pointwise::build(|[d, variance, weight, bias]| {
            (d / variance.affine(1.0, eps).sqrt() * weight + bias).act(activation)
        });
        let y = g.apply(name, normalise, &[deviation, variance, weight, bias])?;
        let moved = |factor: f32| {
            Pointwise::build(|[old, new]| old.affine(1.0 - MOMENTUM, 0.0) + new.affine(MOMENTUM * factor, 0.0))
        };
        let running_mean = g.apply(name, moved(1.0), &[running_mean, mean])?;
        let of_sample = moved(count as f32 / (count - 1) as f32);
        let running_var = g.apply(name, of_sample, &[running_var, variance])?;
        Ok(TrainedBatchNorm { y, running_mean, running_var })
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let &[x, weight, bias, mean, variance] = inputs else {
            return Err("it takes x, weight, bias, running_mean and running_var".into());
        };
        let channels = Shape::new(1, x.c(), 1, 1);
        if [weight, bias, mean, variance].iter().any(|s| *s != channels) {
            return Err(format!("all but x must have shape {channels}"));
        }
        Ok(x)
    }

    fn absorb_consumer(&self, next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let activation = next.as_any().downcast_ref::<Pointwise>()?.as_activation()?;
        (self.activation == Activation::None).then(|| Arc::new(Self { activation, ..*self }) as _)
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        // Written as an expression it is differentiated by the rule of expressions.
        let expression = Pointwise::build(|[x, weight, bias, mean, variance]| {
            ((x - mean) / variance.affine(1.0, self.eps).sqrt() * weight + bias).act(self.activation)
        });
        expression.grad(g, at)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs, out)),
            Target::Gpu(_) => op.launches(inputs, output),
        }
    }
}

impl BatchNorm {
    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let x = inputs[0];
        let plane = x.shape.plane();
        for n in 0..x.shape.n() {
            let rows = out.item(n).par_chunks_mut(plane).enumerate();
            rows.for_each(|(c, row)| {
                let [weight, bias, mean, variance] = [1, 2, 3, 4].map(|i| inputs[i].data[c]);
                let rstd = 1.0 / (f64::from(variance) + f64::from(self.eps)).sqrt();
                let line = [mean, (f64::from(weight) * rstd) as f32, bias];
                let blocks = row.par_chunks_mut(BLOCK).zip(x.plane(n, c).par_chunks(BLOCK));
                blocks.for_each(|(out, x)| normalise(out, x, line, self.activation));
            });
        }
    }

    fn launches(&self, inputs: &[Operand], output: Operand) -> Lowered {
        let shape = output.shape();
        let launch = Launch::new("batch_norm", "main")
            .text("activation", format!("    return {};", self.activation.wgsl("v")))
            .read("x", inputs[0])
            .read("weight", inputs[1])
            .read("bias", inputs[2])
            .read("running_mean", inputs[3])
            .read("running_variance", inputs[4])
            .write("out", output)
            .u32("plane", shape.plane())
            .f32("eps", self.eps);
        let blocks = shape.plane().div_ceil(1024);
        Lowered::gpu([launch.over_grid([blocks, shape.c(), shape.n()])])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::collections::BTreeMap;

    use super::super::testing::{
        check_gradient_on, check_gradient_views, check_kernels, check_twins_on, check_views, random, relative_l2,
    };
    use super::*;

    fn shapes(x: Shape) -> Vec<Shape> {
        let mut shapes = vec![x];
        shapes.resize(5, Shape::new(1, x.c(), 1, 1));
        shapes
    }

    fn check(activation: Activation, x: Shape) {
        let op = BatchNorm { eps: 1e-5, activation };
        let shapes = shapes(x);
        let mut data: Vec<Vec<f32>> = (0..5).map(|i| random(shapes[i].numel(), i as u64)).collect();
        data[4].iter_mut().for_each(|v| *v = v.abs() + 0.01);
        let cpu = check_twins_on(op, &shapes, &data, 1e-5);
        let wide = |i: usize, k: usize| f64::from(data[i][k]);
        let value = |(i, v): (usize, &f32)| {
            let c = i / x.plane() % x.c();
            let y = (f64::from(*v) - wide(3, c)) / (wide(4, c) + f64::from(1e-5f32)).sqrt();
            let y = y * wide(1, c) + wide(2, c);
            (if activation == Activation::Relu { y.max(0.0) } else { y }) as f32
        };
        let expected: Vec<f32> = data[0].iter().enumerate().map(value).collect();
        let error = relative_l2(&cpu, &expected);
        assert!(error <= 1e-6, "{x}: {error:e}");
    }

    #[test]
    fn sizes_of_all_kinds() {
        for x in [Shape::new(2, 5, 33, 65), Shape::new(1, 3, 1, 2500), Shape::new(3, 30_000, 1, 1)] {
            check(Activation::None, x);
        }
    }

    #[test]
    fn kernels_are_valid() {
        for &activation in Activation::ALL {
            check_kernels(&BatchNorm { eps: 1e-5, activation }, &shapes(Shape::new(1, 2, 3, 4)));
        }
    }

    #[test]
    fn an_activation_joins() {
        let op = BatchNorm { eps: 1e-5, activation: Activation::None };
        let relu = Pointwise::act(Activation::Relu);
        let joined = op.absorb_consumer(&relu, 0, &[]).expect("it joins");
        let joined: BatchNorm = *joined.as_any().downcast_ref().expect("batch norm");
        assert!(joined.absorb_consumer(&relu, 0, &[]).is_none());
        check(joined.activation, Shape::new(2, 3, 5, 7));
    }

    #[test]
    fn parts_of_concatenations() {
        let op = BatchNorm { eps: 2.0, activation: Activation::None };
        check_views(op, &shapes(Shape::new(3, 4, 9, 5)), 1e-6);
    }

    #[test]
    fn gradients_with_running_statistics() {
        for activation in [Activation::None, Activation::Silu] {
            let op = BatchNorm { eps: 0.5, activation };
            let shapes = shapes(Shape::new(2, 3, 5, 7));
            let mut data: Vec<Vec<f32>> = (0..5).map(|i| random(shapes[i].numel(), i as u64)).collect();
            data[4].iter_mut().for_each(|v| *v = v.abs() + 0.5);
            check_gradient_on(op, &shapes, &data, 2e-3);
            check_gradient_views(BatchNorm { eps: 2.0, activation }, &shapes, 1e-5);
        }
    }

    /// A batch norm in training mode on both devices: y, the running statistics, and the gradients with respect to x,
    /// weight and bias.
    fn trained(x: Shape, data: &[Vec<f32>]) -> Vec<Vec<f32>> {
        use crate::device::Device;
        use crate::ops::gradients;
        use crate::ops::testing::gpu;
        let op = BatchNorm { eps: 1e-5, activation: Activation::None };
        let names = ["x", "weight", "bias", "mean", "variance", "dy"];
        let mut g = Graph::new();
        let inputs: [NodeId; 5] = std::array::from_fn(|i| g.input(names[i], shapes(x)[i]));
        let norm = op.training(&mut g, "norm", inputs).unwrap();
        let dy = g.input("dy", x);
        let found = gradients(&mut g, &[(norm.y, dy)], &inputs[..3]).unwrap();
        let mut outputs = vec![norm.y, norm.running_mean, norm.running_var];
        outputs.extend(found.into_iter().flatten());
        let given: Vec<(&str, &[f32])> = names.into_iter().zip(data.iter().map(Vec::as_slice)).collect();
        let none: BTreeMap<String, crate::tensor::Tensor> = BTreeMap::new();
        let run = |device: Device| device.compile(&g, &outputs, &none).unwrap().run(&given).unwrap();
        let cpu = run(Device::Cpu);
        for (i, (a, b)) in run(Device::Gpu(gpu())).iter().zip(&cpu).enumerate() {
            let error = relative_l2(a, b);
            assert!(error <= 1e-5, "output {i} on {x}: {error:e}");
        }
        cpu
    }

    #[test]
    fn training_uses_the_batchs_statistics() {
        let x = Shape::new(3, 4, 5, 7);
        let mut data: Vec<Vec<f32>> = shapes(x).iter().zip(0..).map(|(s, i)| random(s.numel(), 9 + i)).collect();
        data.push(random(x.numel(), 20));
        let found = trained(x, &data);
        let wide = |i: usize, k: usize| f64::from(data[i][k]);
        let count = (x.n() * x.plane()) as f64;
        let mut expected: Vec<Vec<f32>> = found.iter().map(|v| vec![0.0; v.len()]).collect();
        for c in 0..x.c() {
            let all: Vec<usize> = (0..x.numel()).filter(|i| i / x.plane() % x.c() == c).collect();
            let mean_of = |f: &dyn Fn(usize) -> f64| all.iter().map(|&i| f(i)).sum::<f64>() / count;
            let mean = mean_of(&|i| wide(0, i));
            let variance = mean_of(&|i| (wide(0, i) - mean).powi(2));
            let rstd = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
            let xhat = |i: usize| (wide(0, i) - mean) * rstd;
            let [plain, scaled] = [mean_of(&|i| wide(5, i)), mean_of(&|i| wide(5, i) * xhat(i))];
            for &i in &all {
                expected[0][i] = (xhat(i) * wide(1, c) + wide(2, c)) as f32;
                expected[3][i] = (wide(1, c) * rstd * (wide(5, i) - plain - xhat(i) * scaled)) as f32;
            }
            expected[1][c] = (0.9 * wide(3, c) + 0.1 * mean) as f32;
            expected[2][c] = (0.9 * wide(4, c) + 0.1 * variance * count / (count - 1.0)) as f32;
            expected[4][c] = (scaled * count) as f32;
            expected[5][c] = (plain * count) as f32;
        }
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = relative_l2(found, expected);
            assert!(error <= 2e-6, "output {i}: {error:e}");
        }
    }

    #[test]
    fn training_refuses_a_single_value() {
        let mut g = Graph::new();
        let op = BatchNorm { eps: 1e-5, activation: Activation::None };
        let inputs: [NodeId; 5] = std::array::from_fn(|i| g.input(&i.to_string(), Shape::new(1, 4, 1, 1)));
        let error = op.training(&mut g, "norm", inputs).unwrap_err().to_string();
        assert!(error.contains("norm") && error.contains("more than one value"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let op = BatchNorm { eps: 1e-5, activation: Activation::None };
        let mut shapes = shapes(Shape::new(1, 4, 2, 2));
        assert_eq!(op.infer(&shapes), Ok(shapes[0]));
        assert!(op.infer(&shapes[..3]).is_err());
        shapes[4] = Shape::new(1, 3, 1, 1);
        assert!(op.infer(&shapes).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_shape(n in 1..4usize, c in 1..9usize, h in 1..40usize, w in 1..40usize) {
            check(Activation::Relu, Shape::new(n, c, h, w));
        }
    }
}
