//! The copy: it is what tensors go through that cannot be written straight into their place in a concatenation.

use rayon::prelude::*;

use super::ir::Graph;
use super::op::{Backward, Gradients, Lowered, Op, Target};
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Launch, Operand};
use crate::tensor::Shape;

/// Elements that one CPU task copies.
const BLOCK: usize = 1 << 14;
/// Elements that one workgroup of the kernel copies.
const PER_WORKGROUP: usize = 1024;

/// Copies its input. Input and result: `[n, c, h, w]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy;

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match inputs {
            [x] => Ok(*x),
            _ => Err("it takes one tensor".into()),
        }
    }

    fn grad(&self, _g: &mut Graph, at: Backward) -> Gradients {
        Ok(vec![Some(at.dy)])
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        let (x, shape) = (inputs[0], output.shape());
        match target {
            Target::Cpu => Lowered::cpu(copy),
            Target::Gpu(_) => {
                let blocks = shape.item().div_ceil(PER_WORKGROUP);
                let launch = Launch::new("copy", "main").read("x", x).write("out", output);
                Lowered::gpu([launch.u32("len", shape.item()).over_grid([blocks, shape.n(), 1])])
            }
        }
    }
}

fn copy(inputs: &[View], mut out: ViewMut) {
    for n in 0..out.shape.n() {
        let blocks = out.item(n).par_chunks_mut(BLOCK).zip(inputs[0].item(n).par_chunks(BLOCK));
        blocks.for_each(|(out, x)| out.copy_from_slice(x));
    }
}
