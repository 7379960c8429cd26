//! Two-dimensional convolution (cross-correlation, as in PyTorch): any kernel, stride, dilation, groups and padding,
//! together with the sums and the activation that usually follow it.

mod cpu;
mod gpu;
pub(super) mod grad;
mod weight_grad;

use std::sync::Arc;

pub use crate::cpu::conv::{ConvSpec, PaddingMode};
pub use weight_grad::Conv2dWeightGrad;

use super::pointwise::Pointwise;
use super::resize::UpsampleNearest2;
use crate::cpu::activation::Activation;
use crate::gpu::Operand;
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// `activation(conv(x, weight) + bias + channel_add + residual)`.
///
/// Inputs: x `[n, ic, h, w]`, weight `[oc, ic / groups, kh, kw]`, then those that are there of bias `[1, oc, 1, 1]`,
/// channel_add `[n or 1, oc, 1, 1]` and residual `[n, oc, oh, ow]`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Conv2d {
    /// The hyperparameters.
    pub spec: ConvSpec,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether a vector is added to every pixel of each batch item.
    pub channel_add: bool,
    /// Whether a tensor of the result's shape is added.
    pub residual: bool,
    /// What is applied last.
    pub activation: Activation,
}

/// The inputs of a [`Conv2d`] by name. Those that may be missing come with their number among the inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands<T> {
    /// The input.
    pub x: T,
    /// The weight.
    pub weight: T,
    /// The bias.
    pub bias: Option<(usize, T)>,
    /// The vector added to every pixel.
    pub channel_add: Option<(usize, T)>,
    /// The tensor added.
    pub residual: Option<(usize, T)>,
}

impl Conv2d {
    /// A convolution and nothing else.
    pub fn new(spec: ConvSpec) -> Self {
        Self { spec, bias: false, channel_add: false, residual: false, activation: Activation::None }
    }

    /// A convolution with a bias.
    pub fn with_bias(spec: ConvSpec) -> Self {
        Self { bias: true, ..Self::new(spec) }
    }

    /// The inputs by name.
    pub(crate) fn operands<T: Copy>(&self, inputs: &[T]) -> Operands<T> {
        let mut next = 2;
        let mut take = |there: bool| {
            there.then(|| {
                next += 1;
                (next - 1, inputs[next - 1])
            })
        };
        Operands {
            x: inputs[0],
            weight: inputs[1],
            bias: take(self.bias),
            channel_add: take(self.channel_add),
            residual: take(self.residual),
        }
    }

    fn input_count(&self) -> usize {
        2 + [self.bias, self.channel_add, self.residual].iter().filter(|there| **there).count()
    }

    /// [`Op::summary`] of this convolution.
    fn describe(&self) -> String {
        let spec = &self.spec;
        let [kh, kw] = spec.kernel;
        let mut text = format!("conv2d {kh}x{kw}");
        let mut add = |said: bool, what: &str| {
            if said {
                text.push_str(what);
            }
        };
        add(spec.upsample, " upsample");
        add(spec.stride != [1, 1], &format!(" stride {}", spec.stride[0]));
        add(spec.groups != 1, &format!(" groups {}", spec.groups));
        add(self.residual, " + residual");
        text
    }

    /// This convolution together with a sum that follows it, if the other summand is a vector or a tensor that it can
    /// add itself.
    fn absorb_add(&self, other: Shape, output: Shape) -> Option<Self> {
        let vector = other.plane() == 1
            && output.plane() != 1
            && other.c() == output.c()
            && (other.n() == 1 || other.n() == output.n());
        if vector && !self.channel_add && !self.residual {
            // The vector comes after the bias and before the residual, as the inputs of the joined node do.
            return Some(Self { channel_add: true, ..*self });
        }
        (other == output && !self.residual).then_some(Self { residual: true, ..*self })
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if inputs.len() != self.input_count() {
            return Err(format!("it takes {} tensors", self.input_count()));
        }
        if inputs.iter().any(|shape| shape.numel() == 0) {
            return Err("no tensor may be empty".into());
        }
        let of = self.operands(inputs);
        let (spec, weight) = (&self.spec, of.weight);
        let [kh, kw] = spec.kernel;
        if (weight.h(), weight.w()) != (kh, kw) {
            return Err(format!("the kernel should be {kh}x{kw}"));
        }
        let groups = spec.groups;
        if groups == 0 || of.x.c() != weight.c() * groups || !weight.n().is_multiple_of(groups) {
            return Err(format!("{} input channels do not go with {groups} groups of this weight", of.x.c()));
        }
        let output = spec.output_shape(of.x, weight).ok_or("the input is smaller than the kernel or its reflection")?;
        let channels = |shape: Shape| shape.c() == output.c() && shape.plane() == 1;
        if of.bias.is_some_and(|(_, s)| !channels(s) || s.n() != 1) {
            return Err("the bias needs one value per output channel".into());
        }
        if of.channel_add.is_some_and(|(_, s)| !channels(s) || (s.n() != 1 && s.n() != output.n())) {
            return Err("the added vector needs one value per output channel".into());
        }
        if of.residual.is_some_and(|(_, s)| s != output) {
            return Err(format!("the added tensor should be {output}"));
        }
        Ok(output)
    }

    fn macs(&self, inputs: &[Shape], output: Shape) -> u64 {
        (output.numel() * inputs[1].item()) as u64
    }

    fn summary(&self) -> String {
        self.describe()
    }

    fn absorb_consumer(&self, next: &dyn Op, slot: usize, shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let next = next.as_any().downcast_ref::<Pointwise>()?;
        if self.activation != Activation::None {
            return None;
        }
        if let Some(activation) = next.as_activation() {
            return Some(Arc::new(Self { activation, ..*self }));
        }
        if !next.is_add() || shapes.len() != 2 {
            return None;
        }
        let joined = self.absorb_add(shapes[1 - slot], shapes[slot])?;
        Some(Arc::new(joined))
    }

    fn absorb_producer(&self, previous: &dyn Op, slot: usize) -> Option<Arc<dyn Op>> {
        previous.as_any().downcast_ref::<UpsampleNearest2>()?;
        if slot != 0 || self.spec.upsample {
            return None;
        }
        let spec = ConvSpec { upsample: true, ..self.spec };
        Some(Arc::new(Self { spec, ..*self }))
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        grad::grad(self, g, at)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => cpu::lower(*self, inputs),
            Target::Gpu(traits) => gpu::lower(self, traits, inputs, output),
        }
    }
}
