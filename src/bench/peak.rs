//! Two operations that show what a device can do at most: multiply-adds without memory, and a copy without arithmetic.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::graph::{Lowered, Op, Target};
use crate::tensor::Shape;

/// Multiply-adds of one round of an invocation of `shaders/peak_fma.wgsl`.
const PER_ROUND: usize = 64;
/// Independent chains of the CPU's loop, enough to hide the latency of two multiply-add units.
const CHAINS: usize = 12;

/// `64 * rounds` multiply-adds for every element of the result, on registers alone.
///
/// Input: values near 0, of the result's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakFma {
    /// How many rounds of 64.
    pub rounds: usize,
}

impl Op for PeakFma {
    fn name(&self) -> &'static str {
        "peak_fma"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        single(inputs)
    }

    fn macs(&self, _inputs: &[Shape], output: Shape) -> u64 {
        (output.numel() * PER_ROUND * self.rounds) as u64
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let op = *self;
        match target {
            Target::Cpu => Lowered::cpu(move |inputs, out| op.compute(inputs[0], out)),
            Target::Gpu(_) => {
                let count = output.shape().numel();
                let launch = Launch::new("peak_fma", "main").read("start", inputs[0]).write("out", output);
                let launch = launch.u32("count", count).u32("rounds", op.rounds).over(count.div_ceil(64));
                Lowered::gpu([launch]).rounds(op.rounds)
            }
        }
    }
}

impl PeakFma {
    fn compute(self, x: View, mut out: ViewMut) {
        let out = out.item(0);
        let len = out.len().div_ceil(rayon::current_num_threads());
        let parts = out.par_chunks_mut(len).zip(x.item(0).par_chunks(len));
        parts.for_each(|(out, x)| {
            let products = PER_ROUND * self.rounds * out.len();
            out.fill(Arch::new().dispatch(Chains { b: x[0], products }));
        });
    }
}

/// Chains `x = (1 - b) * x + b` until about `products` multiply-adds are done; their sum.
struct Chains {
    b: f32,
    products: usize,
}

impl WithSimd for Chains {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat_f32s(1.0 - self.b), simd.splat_f32s(self.b));
        let mut chains = [simd.splat_f32s(0.0); CHAINS];
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = simd.splat_f32s(i as f32);
        }
        for _ in 0..self.products.div_ceil(CHAINS * S::F32_LANES) {
            for chain in &mut chains {
                *chain = simd.mul_add_e_f32s(*chain, a, b);
            }
        }
        let sums = chains.map(|chain| simd.reduce_sum_f32s(chain));
        sums.iter().sum()
    }
}

/// A copy of a contiguous tensor whose elements are a multiple of four.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakCopy;

impl Op for PeakCopy {
    fn name(&self) -> &'static str {
        "peak_copy"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let shape = single(inputs)?;
        if shape.numel() % 4 != 0 {
            return Err("its elements must be a multiple of four".into());
        }
        Ok(shape)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => Lowered::cpu(|inputs, out| copy(inputs[0], out)),
            Target::Gpu(_) => {
                let vectors = output.shape().numel() / 4;
                let launch = Launch::new("peak_copy", "main").read("source", inputs[0]).write("out", output);
                Lowered::gpu([launch.u32("vectors", vectors).over(vectors.div_ceil(64))])
            }
        }
    }
}

fn copy(x: View, mut out: ViewMut) {
    let out = out.item(0);
    let len = out.len().div_ceil(rayon::current_num_threads());
    let parts = out.par_chunks_mut(len).zip(x.item(0).par_chunks(len));
    parts.for_each(|(out, x)| out.copy_from_slice(x));
}

fn single(inputs: &[Shape]) -> Result<Shape, String> {
    match inputs {
        [x] if x.n() == 1 => Ok(*x),
        _ => Err("it takes one tensor of batch 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_kernels, check_twins};

    #[test]
    fn the_copy_copies_on_both_devices() {
        let shape = Shape::new(1, 3, 7, 20);
        check_kernels(&PeakCopy, &[shape]);
        let copied = check_twins(PeakCopy, &[shape], 0.0);
        assert_eq!(copied, crate::ops::testing::random(shape.numel(), 7));
    }

    #[test]
    fn the_multiply_adds_are_counted_and_their_kernel_is_valid() {
        let op = PeakFma { rounds: 3 };
        let shape = Shape::new(1, 1, 1, 10);
        assert_eq!(op.macs(&[shape], shape), 10 * 3 * 64);
        check_kernels(&op, &[shape]);
    }

    #[test]
    fn the_chains_converge_to_one() {
        // x = (1 - b) x + b has the fixed point 1, which every element of every chain nears.
        let chains = Chains { b: 0.5, products: 1 << 16 };
        let sum = Arch::new().dispatch(chains);
        assert!(sum > 0.0 && (sum / CHAINS as f32).fract() == 0.0, "{sum}");
    }
}
