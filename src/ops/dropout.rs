//! Dropout (Srivastava et al. 2014) whose mask is a function of a seed, so that it is the same on every device.

use rayon::prelude::*;

use super::gradient_name;
use crate::cpu::view::{View, ViewMut};
use crate::cpu::wide::wide_fn;
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// Elements that one CPU task computes.
const BLOCK: usize = 1 << 14;
/// Elements that one workgroup of the kernel computes.
const PER_WORKGROUP: usize = 1024;

/// Sets elements to zero with probability `p` and divides the others by `1 - p`. Which ones are kept is a hash of the
/// element's number, the layer and the seed, so the gradient with respect to `x` is the same operation on `dy`.
///
/// Inputs: `x` `[n, c, h, w]`; the seed `[1, 2, 1, 1]`, two whole numbers from 0 to 2^24 - 1, such as a run's seed and
/// its step. Result: `x`'s shape.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dropout {
    /// The share that is set to zero, from 0 to below 1.
    pub p: f32,
    /// Tells the dropout layers of a network apart.
    pub layer: u32,
}

impl Dropout {
    /// Elements whose hash is below this are dropped.
    fn threshold(self) -> u32 {
        (f64::from(self.p) * 2f64.powi(32)) as u32
    }

    fn scale(self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// A permutation of the 32-bit numbers that leaves no pattern: the output function of PCG-RXS-M-XS after one step of
/// its generator (O'Neill 2014).
#[inline(always)]
fn mix(v: u32) -> u32 {
    let state = v.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

/// The two keys of a mask's hash, which both depend on the layer and on both numbers of the seed.
fn keys(layer: u32, seed: &[f32]) -> [u32; 2] {
    let first = mix(mix(mix(layer) ^ seed[0] as u32) ^ seed[1] as u32);
    [first, mix(!first)]
}

wide_fn! {
    /// Dropout of the part of a tensor that begins with element number `first`.
    fn drop_some<'a>(
        out: &'a mut [f32],
        x: &'a [f32],
        first: u32,
        keys: [u32; 2],
        threshold: u32,
        scale: f32,
    ) -> () {
        for (i, (out, x)) in (0u32..).zip(out.iter_mut().zip(x)) {
            let bits = mix(mix(first.wrapping_add(i).wrapping_add(keys[0])) ^ keys[1]);
            *out = if bits < threshold { 0.0 } else { x * scale };
        }
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if !(0.0..1.0).contains(&self.p) {
            return Err("its probability must be at least 0 and below 1".into());
        }
        match inputs {
            [x, seed] if *seed == Shape::new(1, 2, 1, 1) => Ok(*x),
            _ => Err("it takes x and a seed of two numbers".into()),
        }
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        let name = gradient_name(g, at.inputs[0]);
        Ok(vec![Some(g.apply(&name, *self, &[at.dy, at.inputs[1]])?), None])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], inputs[1], out)),
            Target::Gpu(_) => Lowered::gpu([op.launch(inputs[0], inputs[1], output)]),
        }
    }
}

impl Dropout {
    fn compute(self, x: View, seed: View, mut out: ViewMut) {
        let keys = keys(self.layer, seed.data);
        for n in 0..x.shape.n() {
            let blocks = out.item(n).par_chunks_mut(BLOCK).zip(x.item(n).par_chunks(BLOCK)).enumerate();
            blocks.for_each(|(i, (out, x_part))| {
                let first = (n * x.shape.item() + i * BLOCK) as u32;
                drop_some(out, x_part, first, keys, self.threshold(), self.scale());
            });
        }
    }

    fn launch(self, x: Operand, seed: Operand, output: Operand) -> Launch {
        let shape = output.shape();
        Launch::new("dropout", "main")
            .read("x", x)
            .read("seed", seed)
            .write("out", output)
            .u32("len", shape.item())
            .u32("layer", self.layer as usize)
            .u32("threshold", self.threshold() as usize)
            .f32("scale", self.scale())
            .over_grid([shape.item().div_ceil(PER_WORKGROUP), shape.n(), 1])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_kernels, check_twins_on, check_views, gpu, random};
    use super::*;
    use crate::device::Device;
    use crate::ops::gradients;

    const SEED: Shape = Shape::new(1, 2, 1, 1);

    /// Which of ones are kept, on both devices to the bit.
    fn kept(op: Dropout, x: Shape, seed: [f32; 2]) -> Vec<bool> {
        let found = check_twins_on(op, &[x, SEED], &[vec![1.0; x.numel()], seed.to_vec()], 0.0);
        assert!(found.iter().all(|v| *v == 0.0 || *v == op.scale()));
        found.into_iter().map(|v| v != 0.0).collect()
    }

    fn agreement(a: &[bool], b: &[bool]) -> f64 {
        a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
    }

    #[test]
    fn the_share_that_is_kept() {
        let x = Shape::new(2, 3, 129, 257);
        for p in [0.0, 0.1, 0.5, 0.9] {
            let mask = kept(Dropout { p, layer: 3 }, x, [7.0, 11.0]);
            let share = mask.iter().filter(|kept| **kept).count() as f64 / mask.len() as f64;
            // The share that is kept may be off by five standard deviations.
            let bound = 5.0 * (f64::from(p * (1.0 - p)) / mask.len() as f64).sqrt();
            assert!((share - f64::from(1.0 - p)).abs() <= bound, "{p}: {share}");
        }
    }

    #[test]
    fn masks_are_independent_of_each_other_and_within() {
        let x = Shape::new(1, 4, 128, 128);
        let one = kept(Dropout { p: 0.5, layer: 0 }, x, [1.0, 1.0]);
        assert_eq!(one, kept(Dropout { p: 0.5, layer: 0 }, x, [1.0, 1.0]));
        let largest = (1 << 24) as f32 - 1.0;
        for (layer, seed) in [(1, [1.0, 1.0]), (0, [2.0, 1.0]), (0, [1.0, 2.0]), (0, [1.0, largest])] {
            let other = kept(Dropout { p: 0.5, layer }, x, seed);
            assert!((agreement(&one, &other) - 0.5).abs() < 0.01, "{layer}, {seed:?}");
        }
        for shift in [1, 2, 64, 128, 16_384] {
            assert!(
                (agreement(&one, &one[shift..]) * one.len() as f64 / (one.len() - shift) as f64 - 0.5).abs() < 0.01
            );
        }
    }

    #[test]
    fn the_gradient_has_the_forward_mask() {
        let (x, op) = (Shape::new(2, 3, 5, 7), Dropout { p: 0.3, layer: 9 });
        let mut g = Graph::new();
        let inputs = [g.input("x", x), g.input("seed", SEED)];
        let dy = g.input("dy", x);
        let y = g.apply("drop", op, &inputs).unwrap();
        let found = gradients(&mut g, &[(y, dy)], &inputs).unwrap();
        assert_eq!(found[1], None);
        let none = std::collections::BTreeMap::new();
        let (values, grads) = (random(x.numel(), 1), random(x.numel(), 2));
        for device in [Device::Cpu, Device::Gpu(gpu())] {
            let exe = device.compile(&g, &[y, found[0].unwrap()], &none).unwrap();
            let out = exe.run(&[("x", &values), ("dy", &grads), ("seed", &[5.0, 6.0])]).unwrap();
            for (i, (y, dx)) in out[0].iter().zip(&out[1]).enumerate() {
                let scale = if *y == 0.0 { 0.0 } else { op.scale() };
                assert_eq!([*y, *dx], [values[i] * scale, grads[i] * scale]);
            }
        }
    }

    #[test]
    fn parts_of_concatenations() {
        check_views(Dropout { p: 0.4, layer: 1 }, &[Shape::new(3, 4, 5, 7), SEED], 0.0);
        check_kernels(&Dropout { p: 0.4, layer: 1 }, &[Shape::new(3, 4, 5, 7), SEED]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Shape::new(1, 2, 3, 4);
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(Dropout { p, layer: 0 }.infer(&[x, SEED]).is_err());
        }
        assert!(Dropout { p: 0.5, layer: 0 }.infer(&[x]).is_err());
        assert!(Dropout { p: 0.5, layer: 0 }.infer(&[x, x]).is_err());
    }
}
