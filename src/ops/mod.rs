//! The operations: one file each with its shape rule, its CPU twin and the choice of its kernel.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::cpu::view::{View, ViewMut};
use crate::graph::{Graph, GraphError, NodeId};
use crate::tensor::Shape;

pub mod activation;
pub mod adjoint;
pub mod attention;
pub mod batch_norm;
pub mod conv2d;
pub mod dropout;
pub mod group_norm;
pub mod kernel;
pub mod linear;
pub mod pointwise;
pub mod positional_encoding;
pub mod reduce;
pub mod reduce_sum;
pub mod resize;
pub mod softmax;
#[cfg(test)]
pub mod testing;

pub use kernel::{Bind, Dispatch, Kernel, Params, Slot};

/// Rounds after which llvmpipe ends the loops of an invocation without a word, all its loops together.
pub const MAX_LOOP_ROUNDS: usize = 65_535;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The CPU twins.
    Cpu,
    /// A wgpu adapter and what it allows.
    Gpu(GpuTraits),
}

/// What kernels may assume of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuTraits {
    /// Largest storage buffer that a kernel can see, in bytes.
    pub max_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Whether this is a CPU posing as a GPU (llvmpipe and the like).
    pub software: bool,
    /// Invocations of a subgroup, if that is always the same number and kernels may exchange values in it.
    pub subgroup: Option<u32>,
}

/// An operation made to fit its target: what takes its place, and what is computed once from its weights.
#[derive(Clone, Debug)]
pub struct Specialized {
    /// The operation that runs.
    pub op: Arc<dyn Op>,
    /// Inputs that go through a preparing operation first, such as a weight and its packing.
    pub prepared: Vec<(usize, Arc<dyn Op>)>,
}

/// Where in a graph an operation is to be differentiated: see [`Op::grad`].
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The operation's inputs.
    pub inputs: &'a [NodeId],
    /// Its result.
    pub output: NodeId,
    /// The gradient of the loss by its result, of the result's shape.
    pub dy: NodeId,
    /// For each input whether its gradient is asked for.
    pub wanted: &'a [bool],
}

/// The gradients by an operation's inputs, in their order; those that nobody asked for may be `None`.
pub type Gradients = Result<Vec<Option<NodeId>>, GraphError>;

/// An operation of the graph.
///
/// Its `Debug` form must show every attribute: two operations of equal `Debug` text on equal inputs are taken for one.
pub trait Op: Any + Debug + Send + Sync {
    /// The field's name for it, such as `conv2d`.
    fn name(&self) -> &'static str;

    /// The shape of the result.
    ///
    /// # Errors
    /// What the inputs would have to be.
    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String>;

    /// Multiply-adds of one run, counted as the direct algorithm does them; zero for what only moves memory.
    fn macs(&self, _inputs: &[Shape], _output: Shape) -> u64 {
        0
    }

    /// The operation with the hyperparameters that its speed depends on, such as `conv2d 3x3 stride 2`.
    fn summary(&self) -> String {
        self.name().to_owned()
    }

    /// What the CPU twin computes it by, where there is a choice.
    fn cpu_algorithm(&self, _inputs: &[Shape]) -> &'static str {
        ""
    }

    /// This operation and its only consumer `next`, which reads it as input `slot`, in one; `shapes` are `next`'s
    /// input shapes. The inputs of the result are this operation's followed by `next`'s others.
    fn absorb_consumer(&self, _next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        None
    }

    /// This operation and `previous`, the producer of its input `slot`, whose only consumer it is, in one. `previous`
    /// has a single input, which takes the slot's place.
    fn absorb_producer(&self, _previous: &dyn Op, _slot: usize) -> Option<Arc<dyn Op>> {
        None
    }

    /// The form that runs on `target`, if it is not the operation itself.
    fn specialize(&self, _target: &Target, _inputs: &[Shape]) -> Option<Specialized> {
        None
    }

    /// Elements of each scratch buffer that the kernels of a run need.
    fn scratch(&self, _traits: &GpuTraits, _inputs: &[Shape], _output: Shape) -> Vec<usize> {
        Vec::new()
    }

    /// Loop rounds of the busiest invocation of the kernels, all loops together. Software adapters end an invocation's
    /// loops after [`MAX_LOOP_ROUNDS`], so the plan refuses more there; an upper bound will do.
    fn loop_rounds(&self, _inputs: &[Shape], _output: Shape) -> usize {
        0
    }

    /// The gradient rule: adds to `g` what computes the gradient by each wanted input, in the input's shape.
    ///
    /// Only what the forward pass has anyway is read (inputs, result); what is cheap is computed again.
    ///
    /// # Errors
    /// [`GraphError::NoGradient`] from operations that are never differentiated: those that a plan makes from others and
    /// those that compute gradients.
    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        Err(GraphError::NoGradient { layer: g.node(at.output).name.clone(), op: self.name() })
    }

    /// The CPU twin: computes `out` from `inputs`.
    fn cpu(&self, inputs: &[View], out: ViewMut);

    /// The kernels that compute the result, in order. Scratch `i` is the `i`-th of [`Op::scratch`].
    fn gpu(&self, traits: &GpuTraits, inputs: &[Slot], output: Slot) -> Vec<Dispatch>;
}

impl dyn Op {
    /// For downcasts in [`Op::absorb_consumer`] and [`Op::absorb_producer`].
    pub fn as_any(&self) -> &dyn Any {
        self
    }
}
