//! Batch normalisation (Ioffe and Szegedy 2015) as networks in use apply it: with running statistics.

use std::any::Any;
use std::sync::Arc;

use rayon::prelude::*;

use super::activation::Activation;
use super::group_norm::{BLOCK, normalise};
use super::pointwise::{Pointwise, activation_call};
use super::{Bind, Dispatch, GpuTraits, Kernel, Op, Params, Slot};
use crate::cpu::view::{View, ViewMut};
use crate::tensor::Shape;

/// Normalises each channel with the mean and variance that training left, then scales and shifts it and applies an
/// activation. Statistics of the batch itself are not this operation's.
///
/// Inputs: `x` `[n, c, h, w]`; `weight`, `bias`, `running_mean`, `running_var`, each `[1, c, 1, 1]`.
/// Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Applied last.
    pub activation: Activation,
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

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn absorb_consumer(&self, next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let activation = next.as_any().downcast_ref::<Pointwise>()?.as_activation()?;
        (self.activation == Activation::None).then(|| Arc::new(Self { activation, ..*self }) as _)
    }

    fn cpu(&self, inputs: &[View], mut out: ViewMut) {
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

    fn gpu(&self, _traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch> {
        let shape = output.shape;
        let params = Params::new().slot(&inputs[0]).slot(&output);
        let params = inputs[1..].iter().fold(params, |p, slot| p.u(slot.offset));
        let params = params.u(shape.n()).u(shape.c()).u(shape.plane()).f(self.eps);
        let mut binds: Vec<Bind> = (0..5).map(Bind::Input).collect();
        binds.push(Bind::Output);
        let kernel = Kernel {
            body: Some(format!("    return {};", activation_call(self.activation, "v"))),
            ..Kernel::new("batch_norm")
        };
        let blocks = shape.n() * shape.c() * shape.plane().div_ceil(1024);
        vec![Dispatch::folded(kernel, params, binds, blocks)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{check_kernels, check_twins_on, check_views, random, relative_l2};
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
    fn an_activation_joins() {
        let op = BatchNorm { eps: 1e-5, activation: Activation::None };
        check_kernels(&op, &shapes(Shape::new(1, 2, 3, 4)));
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
