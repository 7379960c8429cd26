//! What the graph knows of an operation: shapes, neighbours, gradients, and how it is computed on a target.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::ir::{Graph, GraphError, NodeId};
use crate::cpu::view::{View, ViewMut};
use crate::gpu::{Bind, GpuTraits, Launch, Operand};
use crate::tensor::{Shape, Slot};

/// Loop rounds after which llvmpipe ends the loops of an invocation, all its loops together, without an error.
pub(crate) const MAX_LOOP_ROUNDS: usize = 65_535;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The CPU.
    Cpu,
    /// A GPU, and what its adapter allows.
    Gpu(GpuTraits),
}

/// Where in a graph an operation is to be differentiated: see [`Op::grad`].
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The operation's inputs.
    pub inputs: &'a [NodeId],
    /// Its result.
    pub output: NodeId,
    /// The gradient of the loss with respect to its result, of the result's shape.
    pub dy: NodeId,
    /// For each input whether its gradient is asked for.
    pub wanted: &'a [bool],
}

/// The gradients with respect to an operation's inputs, in their order; those that nobody asked for may be `None`.
pub type Gradients = Result<Vec<Option<NodeId>>, GraphError>;

/// The function that computes an operation on the CPU: it reads the inputs and writes the result.
pub type CpuFn = Arc<dyn Fn(&[View], ViewMut) + Send + Sync>;

/// How a result is computed.
#[derive(Clone)]
pub enum Work {
    /// By a function on views.
    Cpu(CpuFn),
    /// By kernels, in order.
    Gpu(Vec<Launch>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(_) => f.write_str("Cpu"),
            Self::Gpu(launches) => f.debug_tuple("Gpu").field(launches).finish(),
        }
    }
}

/// A tensor that is made of one input of an operation and takes that input's place, such as a packed weight. If the
/// input is a weight that no run changes, it is made once, when the plan is loaded.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The input.
    pub input: usize,
    /// What is done to it. Equal texts on the same input are done once.
    pub what: String,
    /// Elements of the new tensor, a row.
    pub len: usize,
    /// How it is computed, as a call of its own: it reads `Input(0)`, the input, and writes `Output`, the new tensor.
    pub work: Work,
}

impl Prepared {
    /// Made of input `input` by one launch.
    pub(crate) fn on_gpu(input: usize, what: String, len: usize, launch: Launch) -> Self {
        Self { input, what, len, work: Work::Gpu(vec![launch]) }
    }

    /// Made of input `input` by `compute`.
    pub(crate) fn on_cpu(
        input: usize,
        what: String,
        len: usize,
        compute: impl Fn(&[View], ViewMut) + Send + Sync + 'static,
    ) -> Self {
        Self { input, what, len, work: Work::Cpu(Arc::new(compute)) }
    }
}

/// How one operation is computed on a target: [`Op::lower`] gives it.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// How the result is computed.
    pub work: Work,
    /// What is made of inputs beforehand and takes their place.
    pub prepared: Vec<Prepared>,
    /// Elements of each scratch buffer of the launches.
    pub scratch: Vec<usize>,
    /// Loop rounds of the busiest invocation of the kernels, all loops together. Software adapters end an invocation's
    /// loops after `MAX_LOOP_ROUNDS`, so the plan refuses more there; an upper bound will do.
    pub rounds: usize,
    /// The algorithm, where there is a choice.
    pub method: &'static str,
}

impl Lowered {
    fn new(work: Work) -> Self {
        Self { work, prepared: Vec::new(), scratch: Vec::new(), rounds: 0, method: "" }
    }

    /// Computed on the CPU by `compute`.
    pub fn cpu(compute: impl Fn(&[View], ViewMut) + Send + Sync + 'static) -> Self {
        Self::new(Work::Cpu(Arc::new(compute)))
    }

    /// Computed on a GPU by these launches.
    pub fn gpu(launches: impl IntoIterator<Item = Launch>) -> Self {
        Self::new(Work::Gpu(launches.into_iter().collect()))
    }

    /// With scratch buffers of so many elements each.
    pub fn scratch(mut self, lengths: impl IntoIterator<Item = usize>) -> Self {
        self.scratch = lengths.into_iter().collect();
        self
    }

    /// With loops of so many rounds, see [`Lowered::rounds`].
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// By this algorithm.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// With an input that is prepared.
    pub fn prepare(mut self, prepared: Option<Prepared>) -> Self {
        self.prepared.extend(prepared);
        self
    }
}

/// An operation of the graph.
///
/// Its `Debug` form shows every attribute.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// Name of the operation in the literature, for example `conv2d`.
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

    /// This operation and its only consumer `next` as one operation, if they can be joined. `next` reads this one's
    /// result as its input number `slot`; `shapes` are the shapes of all of `next`'s inputs. The inputs of the joined
    /// operation are this one's, followed by the others of `next`.
    fn absorb_consumer(&self, _next: &dyn Op, _slot: usize, _shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        None
    }

    /// This operation and `previous`, which produces its input number `slot` and has no other consumer, as one
    /// operation, if they can be joined. `previous` has a single input, which takes the slot's place.
    fn absorb_producer(&self, _previous: &dyn Op, _slot: usize) -> Option<Arc<dyn Op>> {
        None
    }

    /// The gradient rule: adds to `g` the nodes that compute the gradient with respect to each wanted input, in that
    /// input's shape.
    ///
    /// It reads nothing but the operation's inputs and result, which are there after the forward pass anyway. What is
    /// cheap is computed again.
    ///
    /// # Errors
    /// [`GraphError::NoGradient`] from operations that are never differentiated: those that compute gradients.
    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        Err(GraphError::NoGradient { layer: g.node(at.output).name.clone(), op: self.name() })
    }

    /// How the operation is computed on `target`. The operands say where its tensors lie; no input lies in the result's
    /// buffer.
    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered;
}

impl dyn Op {
    /// For downcasts in [`Op::absorb_consumer`] and [`Op::absorb_producer`].
    pub fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The operands of an operation whose inputs and result lie at these places of their buffers.
pub(crate) fn operands(inputs: &[Slot], output: Slot) -> (Vec<Operand>, Operand) {
    let input = |(i, slot): (usize, &Slot)| Operand { bind: Bind::Input(i), slot: *slot };
    (inputs.iter().enumerate().map(input).collect(), Operand { bind: Bind::Output, slot: output })
}
