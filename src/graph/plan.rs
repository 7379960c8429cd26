//! The plan of a run: steps in order, where every tensor lies, how much memory that takes.

use std::collections::HashSet;
use std::sync::Arc;

use super::fuse::{fuse, prune, specialize};
use super::ir::{Graph, Kind, NodeId};
use super::place::{Interval, Placed, place, share};
use crate::ops::pointwise::Pointwise;
use crate::ops::{MAX_LOOP_ROUNDS, Op, Slot, Target};
use crate::tensor::Shape;

/// A tensor in a buffer of the plan.
#[derive(Clone, Copy, Debug)]
pub struct Location {
    /// Index into [`Plan::buffers`].
    pub buffer: usize,
    /// Where in the buffer.
    pub slot: Slot,
}

/// How long a buffer is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Until the weights are prepared.
    Setup,
    /// As long as the plan: weights in the form that the kernels read.
    Weights,
    /// As long as the plan: weights that runs change.
    State,
    /// During a run; shared by tensors that do not live at the same time.
    Run,
}

/// A buffer that an executor allocates.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Elements (f32).
    pub len: usize,
    /// How long it is needed.
    pub life: Life,
}

/// One operation of a plan.
#[derive(Clone, Debug)]
pub struct Step {
    /// The operation in its target's form.
    pub op: Arc<dyn Op>,
    /// The layer's name.
    pub name: String,
    /// Where its inputs lie.
    pub inputs: Vec<Location>,
    /// Where its result goes.
    pub output: Location,
    /// Its scratch buffers.
    pub scratch: Vec<usize>,
}

/// Why a graph cannot be planned for a target.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A tensor is over the adapter's limits.
    #[error(
        "layer {layer} needs a buffer of {mib:.0} MiB, but this adapter binds at most {limit_mib:.0} MiB: \
         use smaller images, or --device cpu"
    )]
    TooLarge {
        /// Name of the layer.
        layer: String,
        /// Its size.
        mib: f64,
        /// The adapter's limit.
        limit_mib: f64,
    },
    /// A kernel would loop longer than the adapter lets it, and give a wrong result.
    #[error(
        "layer {layer} needs {rounds} loop rounds of a kernel, but this software adapter ends loops after \
         {MAX_LOOP_ROUNDS}: use smaller images, or --device cpu"
    )]
    TooLong {
        /// Name of the layer.
        layer: String,
        /// Rounds of one invocation.
        rounds: usize,
    },
    /// The tensors together have more elements than the kernels' 32-bit indices reach.
    #[error("layer {layer} has {elements} elements, more than a 32-bit index reaches: use smaller images")]
    TooMany {
        /// Name of the layer.
        layer: String,
        /// Elements of its buffer.
        elements: usize,
    },
}

/// A graph laid out for a target: made once, run many times.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is made for.
    pub target: Target,
    /// Steps that depend on weights alone, run once.
    pub setup: Vec<Step>,
    /// Steps of every run.
    pub steps: Vec<Step>,
    /// Steps that give weights their new values, after a run whose outputs are finite.
    pub commits: Vec<Step>,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// The inputs of a run by name.
    pub inputs: Vec<(String, Location)>,
    /// The weights by name.
    pub params: Vec<(String, Location)>,
    /// The requested outputs, in the order they were asked for.
    pub outputs: Vec<Location>,
    /// Multiply-adds of a run, counted as direct algorithms do them.
    pub macs: u64,
}

impl Plan {
    /// Plans the run that computes `outputs`.
    ///
    /// # Errors
    /// [`PlanError`] if a tensor is over the limits of the target.
    pub fn new(graph: &Graph, outputs: &[NodeId], target: Target) -> Result<Self, PlanError> {
        let (graph, outputs) = prune(graph, outputs);
        let (graph, outputs) = fuse(&graph, &outputs);
        let macs = count_macs(&graph);
        let (graph, outputs) = specialize(&graph, &outputs, &target);
        let (graph, outputs, placed) = place(graph, outputs);
        let plan = Layout::new(&graph, &outputs, &placed, &target).finish(macs);
        check_limits(&plan)?;
        Ok(plan)
    }

    /// Bytes of the buffers that tensors share during a run: the planned peak.
    pub fn run_bytes(&self) -> u64 {
        self.bytes(Life::Run)
    }

    /// Bytes of the weights in the form the kernels read.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes(Life::Weights)
    }

    /// Bytes of the weights that runs change.
    pub fn state_bytes(&self) -> u64 {
        self.bytes(Life::State)
    }

    fn bytes(&self, life: Life) -> u64 {
        let of = |b: &&Buffer| b.life == life;
        self.buffers.iter().filter(of).map(|b| 4 * b.len as u64).sum()
    }
}

fn count_macs(graph: &Graph) -> u64 {
    let of = |node: &super::ir::Node| match &node.kind {
        Kind::Op(op) => {
            let shapes: Vec<Shape> = node.inputs.iter().map(|&id| graph.shape(id)).collect();
            op.macs(&shapes, node.shape)
        }
        _ => 0,
    };
    graph.nodes().iter().map(of).sum()
}

fn check_limits(plan: &Plan) -> Result<(), PlanError> {
    let limit = match &plan.target {
        Target::Cpu => u64::MAX,
        Target::Gpu(traits) => traits.max_binding.min(traits.max_buffer),
    };
    let software = matches!(&plan.target, Target::Gpu(traits) if traits.software);
    for step in plan.setup.iter().chain(&plan.steps).chain(&plan.commits) {
        let shapes: Vec<Shape> = step.inputs.iter().map(|l| l.slot.shape).collect();
        let rounds = step.op.loop_rounds(&shapes, step.output.slot.shape);
        if software && rounds > MAX_LOOP_ROUNDS {
            let layer = step.name.clone();
            return Err(PlanError::TooLong { layer, rounds });
        }
        let used = step.inputs.iter().chain([&step.output]).map(|l| l.buffer);
        for buffer in used.chain(step.scratch.iter().copied()) {
            let elements = plan.buffers[buffer].len;
            if elements > u32::MAX as usize {
                let layer = step.name.clone();
                return Err(PlanError::TooMany { layer, elements });
            }
            let bytes = 4 * elements as u64;
            if bytes > limit {
                return Err(PlanError::TooLarge {
                    layer: step.name.clone(),
                    mib: bytes as f64 / f64::from(1 << 20),
                    limit_mib: limit as f64 / f64::from(1 << 20),
                });
            }
        }
    }
    Ok(())
}

/// The state while buffers are handed out.
struct Layout<'a> {
    graph: &'a Graph,
    outputs: &'a [NodeId],
    placed: &'a [Placed],
    target: &'a Target,
    /// Whether a node depends on weights alone.
    constant: Vec<bool>,
}

impl<'a> Layout<'a> {
    fn new(graph: &'a Graph, outputs: &'a [NodeId], placed: &'a [Placed], target: &'a Target) -> Self {
        let assigned: HashSet<NodeId> =
            graph.nodes().iter().filter(|n| matches!(n.kind, Kind::Assign)).map(|n| n.inputs[1]).collect();
        let mut constant: Vec<bool> = Vec::with_capacity(graph.nodes().len());
        for (i, node) in graph.nodes().iter().enumerate() {
            constant.push(match node.kind {
                Kind::Input | Kind::Assign => false,
                Kind::Param => !assigned.contains(&NodeId(i)),
                Kind::Concat | Kind::Flatten | Kind::Slice { .. } | Kind::Part { .. } | Kind::Op(_) => {
                    !node.inputs.is_empty() && node.inputs.iter().all(|id| constant[id.0])
                }
            });
        }
        // The parts of a concatenation share a buffer, so one that varies makes all of them vary.
        for (i, node) in graph.nodes().iter().enumerate().rev() {
            if matches!(node.kind, Kind::Concat | Kind::Flatten) && !constant[i] {
                for part in &node.inputs {
                    constant[part.0] = false;
                }
            }
        }
        // So does whatever reads such a part.
        for (i, node) in graph.nodes().iter().enumerate() {
            if !matches!(node.kind, Kind::Param) {
                constant[i] &= node.inputs.iter().all(|id| constant[id.0]);
            }
        }
        Self { graph, outputs, placed, target, constant }
    }

    /// First and last step that touch each root; outputs stay to the end.
    fn lifetimes(&self) -> Vec<Interval> {
        let nodes = self.graph.nodes();
        let mut lives: Vec<Interval> =
            nodes.iter().map(|n| Interval { len: n.shape.numel(), first: usize::MAX, last: 0 }).collect();
        let mut touch = |id: NodeId, step: usize| {
            let life = &mut lives[self.placed[id.0].root.0];
            life.first = life.first.min(step);
            life.last = life.last.max(step);
        };
        for (i, node) in nodes.iter().enumerate() {
            match node.kind {
                Kind::Input => touch(NodeId(i), 0),
                Kind::Op(_) => {
                    touch(NodeId(i), i);
                    node.inputs.iter().for_each(|&id| touch(id, i));
                }
                Kind::Assign => touch(node.inputs[0], usize::MAX),
                Kind::Param | Kind::Concat | Kind::Flatten | Kind::Slice { .. } | Kind::Part { .. } => {}
            }
        }
        for &id in self.outputs {
            touch(id, usize::MAX);
        }
        lives
    }

    /// Whether a step of every run, or an output, reads the constant `root`.
    fn read_in_runs(&self, root: NodeId) -> bool {
        let of_root = |id: &NodeId| self.placed[id.0].root == root;
        self.outputs.iter().any(of_root)
            || self.graph.nodes().iter().enumerate().any(|(i, node)| {
                !self.constant[i] && matches!(node.kind, Kind::Op(_) | Kind::Assign) && node.inputs.iter().any(of_root)
            })
    }

    fn scratch(&self, node: &super::ir::Node, op: &Arc<dyn Op>) -> Vec<usize> {
        let Target::Gpu(traits) = self.target else {
            return Vec::new();
        };
        let shapes: Vec<Shape> = node.inputs.iter().map(|&id| self.graph.shape(id)).collect();
        op.scratch(traits, &shapes, node.shape)
    }

    fn finish(self, macs: u64) -> Plan {
        let nodes = self.graph.nodes();
        let lives = self.lifetimes();
        let mut buffers = Vec::new();
        let mut buffer_of = vec![usize::MAX; nodes.len()];
        let mut run_roots = Vec::new();
        let mut intervals = Vec::new();
        for i in (0..nodes.len()).filter(|&i| self.placed[i].root.0 == i) {
            if self.constant[i] {
                let life = if self.read_in_runs(NodeId(i)) { Life::Weights } else { Life::Setup };
                buffer_of[i] = buffers.len();
                buffers.push(Buffer { len: lives[i].len, life });
            } else if matches!(nodes[i].kind, Kind::Param) {
                buffer_of[i] = buffers.len();
                buffers.push(Buffer { len: lives[i].len, life: Life::State });
            } else {
                run_roots.push(i);
                intervals.push(lives[i]);
            }
        }
        let scratch: Vec<Vec<usize>> = nodes
            .iter()
            .map(|node| match &node.kind {
                Kind::Op(op) => self.scratch(node, op),
                _ => Vec::new(),
            })
            .collect();
        for (i, needs) in scratch.iter().enumerate() {
            intervals.extend(needs.iter().map(|&len| Interval { len, first: i, last: i }));
        }
        let (assigned, lengths) = share(&intervals);
        let base = buffers.len();
        buffers.extend(lengths.into_iter().map(|len| Buffer { len, life: Life::Run }));
        for (&root, &buffer) in run_roots.iter().zip(&assigned) {
            buffer_of[root] = base + buffer;
        }
        let mut scratch_buffers = assigned[run_roots.len()..].iter().map(|b| base + b);
        let scratch: Vec<Vec<usize>> =
            scratch.iter().map(|needs| scratch_buffers.by_ref().take(needs.len()).collect()).collect();
        self.steps(&buffer_of, buffers, scratch, macs)
    }

    fn steps(self, buffer_of: &[usize], buffers: Vec<Buffer>, scratch: Vec<Vec<usize>>, macs: u64) -> Plan {
        let locate =
            |id: NodeId| Location { buffer: buffer_of[self.placed[id.0].root.0], slot: self.placed[id.0].slot };
        let mut plan = Plan {
            target: self.target.clone(),
            setup: Vec::new(),
            steps: Vec::new(),
            commits: Vec::new(),
            buffers,
            inputs: Vec::new(),
            params: Vec::new(),
            outputs: self.outputs.iter().map(|&id| locate(id)).collect(),
            macs,
        };
        for (i, (node, scratch)) in self.graph.nodes().iter().zip(scratch).enumerate() {
            let here = locate(NodeId(i));
            match &node.kind {
                Kind::Input => plan.inputs.push((node.name.clone(), here)),
                Kind::Param => plan.params.push((node.name.clone(), here)),
                Kind::Concat | Kind::Flatten | Kind::Slice { .. } | Kind::Part { .. } => {}
                Kind::Assign => plan.commits.push(Step {
                    op: Arc::new(Pointwise::copy()),
                    name: node.name.clone(),
                    inputs: vec![locate(node.inputs[0])],
                    output: here,
                    scratch,
                }),
                Kind::Op(op) => {
                    let step = Step {
                        op: op.clone(),
                        name: node.name.clone(),
                        inputs: node.inputs.iter().map(|&id| locate(id)).collect(),
                        output: here,
                        scratch,
                    };
                    if self.constant[i] {
                        plan.setup.push(step);
                    } else {
                        plan.steps.push(step);
                    }
                }
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::device::Device;
    use crate::ops::GpuTraits;
    use crate::ops::activation::Activation;
    use crate::ops::conv2d::{Conv2d, ConvSpec};
    use crate::ops::resize::UpsampleNearest2;
    use crate::ops::testing::{gpu, random, relative_l2};
    use crate::tensor::Tensor;

    const SHAPE: Shape = Shape::new(2, 3, 4, 5);

    fn double() -> Pointwise {
        Pointwise::build(|[x]| x.affine(2.0, 1.0))
    }

    /// The outputs on both devices, which must agree exactly.
    fn run(graph: &Graph, outputs: &[NodeId], x: &[f32]) -> Vec<Vec<f32>> {
        let none: BTreeMap<String, Tensor> = BTreeMap::new();
        let on = |device: Device| {
            let exe = device.compile(graph, outputs, &none).expect("it compiles");
            exe.run(&[("x", x)]).expect("it runs")
        };
        let cpu = on(Device::Cpu);
        assert_eq!(on(Device::Gpu(gpu())), cpu);
        cpu
    }

    /// The channels of two tensors of [`SHAPE`]'s batch and plane, one after the other in each item.
    fn joined(a: &[f32], b: &[f32]) -> Vec<f32> {
        let items = a.chunks(a.len() / 2).zip(b.chunks(b.len() / 2));
        items.flat_map(|(a, b)| [a, b].concat()).collect()
    }

    fn doubled(x: &[f32]) -> Vec<f32> {
        x.iter().map(|v| v.mul_add(2.0, 1.0)).collect()
    }

    #[test]
    fn a_concatenation_is_written_in_place() {
        let mut g = Graph::new();
        let x = g.input("x", SHAPE);
        let a = g.apply("a", double(), &[x]).unwrap();
        let b = g.apply("b", Pointwise::act(Activation::Relu), &[x]).unwrap();
        let c = g.concat("c", &[a, b]).unwrap();
        let plan = Plan::new(&g, &[c], Target::Cpu).unwrap();
        assert_eq!(plan.steps.len(), 2, "no copy");
        assert_eq!(plan.steps[0].output.buffer, plan.steps[1].output.buffer);
        let data = random(SHAPE.numel(), 1);
        let relu: Vec<f32> = data.iter().map(|v| v.max(0.0)).collect();
        assert_eq!(run(&g, &[c], &data)[0], joined(&doubled(&data), &relu));
    }

    #[test]
    fn parts_that_cannot_be_written_in_place_are_copied() {
        let mut g = Graph::new();
        let x = g.input("x", SHAPE);
        let a = g.apply("a", double(), &[x]).unwrap();
        // `b` reads the buffer that it would be written to, `x` is an input, and `a` is in two concatenations.
        let b = g.apply("b", double(), &[a]).unwrap();
        let first = g.concat("first", &[a, b]).unwrap();
        let second = g.concat("second", &[x, a]).unwrap();
        let data = random(SHAPE.numel(), 2);
        let (one, two) = (doubled(&data), doubled(&doubled(&data)));
        let found = run(&g, &[first, second], &data);
        assert_eq!(found, [joined(&one, &two), joined(&data, &one)]);
        let plan = Plan::new(&g, &[first, second], Target::Cpu).unwrap();
        for step in &plan.steps {
            let reads = step.inputs.iter().map(|l| l.buffer);
            assert!(reads.into_iter().all(|b| b != step.output.buffer), "{}", step.name);
        }
    }

    #[test]
    fn nested_concatenations_and_slices_are_views() {
        let mut g = Graph::new();
        let x = g.input("x", SHAPE);
        let a = g.apply("a", double(), &[x]).unwrap();
        let b = g.apply("b", Pointwise::act(Activation::Relu), &[x]).unwrap();
        let inner = g.concat("inner", &[a, b]).unwrap();
        let c = g.apply("c", Pointwise::act(Activation::LeakyRelu(0.5)), &[x]).unwrap();
        let outer = g.concat("outer", &[inner, c]).unwrap();
        let slice = g.slice("slice", outer, 2, 3).unwrap();
        let read = g.apply("read", double(), &[slice]).unwrap();
        let data = random(SHAPE.numel(), 3);
        let whole = run(&g, &[outer], &data).remove(0);
        let plane = SHAPE.plane();
        let expected: Vec<f32> = (0..2).flat_map(|n| doubled(&whole[(n * 9 + 2) * plane..][..3 * plane])).collect();
        assert_eq!(run(&g, &[read, outer], &data), [expected, whole]);
        assert_eq!(Plan::new(&g, &[read], Target::Cpu).unwrap().steps.len(), 4);
    }

    #[test]
    fn what_no_output_needs_is_pruned_and_chains_share_two_buffers() {
        let mut g = Graph::new();
        let mut x = g.input("x", SHAPE);
        let spec = ConvSpec::same(3);
        let mut weights = BTreeMap::new();
        let mut last = x;
        for i in 0..6 {
            let name = format!("w{i}");
            let weight = g.param(&name, Shape::new(3, 3, 3, 3)).unwrap();
            weights.insert(name, Tensor::new([3, 3, 3, 3], random(81, i)));
            last = x;
            x = g.apply("conv", Conv2d::new(spec), &[x, weight]).unwrap();
        }
        let plan = Plan::new(&g, &[last], Target::Cpu).unwrap();
        assert_eq!((plan.steps.len(), plan.params.len()), (5, 5));
        assert_eq!(plan.macs, 5 * 27 * SHAPE.numel() as u64);
        // The input, and two buffers that the results alternate between.
        assert_eq!(plan.run_bytes(), 2 * 4 * SHAPE.numel() as u64);
    }

    #[test]
    fn a_block_is_one_convolution_with_its_epilogue() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::new(1, 3, 4, 5));
        let up = g.apply("up", UpsampleNearest2, &[x]).unwrap();
        let weight = g.param("weight", Shape::new(3, 3, 3, 3)).unwrap();
        let bias = g.param("bias", Shape::new(1, 3, 1, 1)).unwrap();
        let vector = g.param("vector", Shape::new(1, 3, 1, 1)).unwrap();
        let other = g.param("other", Shape::new(1, 3, 8, 10)).unwrap();
        let conv = Conv2d::with_bias(ConvSpec::same(3));
        let h = g.apply("conv", conv, &[up, weight, bias]).unwrap();
        let h = g.apply("vector", Pointwise::add(), &[h, vector]).unwrap();
        let h = g.apply("other", Pointwise::add(), &[other, h]).unwrap();
        let h = g.apply("act", Pointwise::act(Activation::Silu), &[h]).unwrap();
        let plan = Plan::new(&g, &[h], Target::Cpu).unwrap();
        assert_eq!(plan.steps.len(), 1);
        let weights: BTreeMap<String, Tensor> = g
            .params()
            .iter()
            .map(|(name, id)| {
                let shape = g.shape(*id);
                (name.clone(), Tensor::new(shape.0, random(shape.numel(), 4)))
            })
            .collect();
        let data = random(60, 5);
        let fused = |outputs: &[NodeId], device: Device| {
            let exe = device.compile(&g, outputs, &weights).expect("it compiles");
            exe.run(&[("x", &data)]).expect("it runs").remove(0)
        };
        // With every node asked for, nothing can be joined.
        let all: Vec<NodeId> = std::iter::once(h).chain((0..g.nodes().len()).map(NodeId)).collect();
        let apart = fused(&all, Device::Cpu);
        assert!(relative_l2(&fused(&[h], Device::Cpu), &apart) < 1e-6);
        assert!(relative_l2(&fused(&[h], Device::Gpu(gpu())), &apart) < 1e-6);
    }

    #[test]
    fn loops_up_to_the_limit_are_right_and_longer_ones_refused() {
        // A 3x3 convolution loops over rows and taps of each channel; results were wrong from about 3,500 channels on.
        let sums = |channels: usize| {
            let weight = Shape::new(2, channels, 3, 3);
            let mut g = Graph::new();
            let x = g.input("x", Shape::new(1, channels, 3, 3));
            let w = g.param("w", weight).unwrap();
            let conv = Conv2d::new(ConvSpec::same(3));
            let y = g.apply("conv", conv, &[x, w]).unwrap();
            let w = Tensor::new(weight.0, random(weight.numel(), 6));
            let weights = BTreeMap::from([("w".to_owned(), w)]);
            let data = random(9 * channels, 7);
            let on = |device: Device| {
                let exe = device.compile(&g, &[y], &weights)?;
                Ok(exe.run(&[("x", &data)])?.remove(0))
            };
            (on(Device::Cpu), on(Device::Gpu(gpu())))
        };
        let (cpu, on_gpu): (Result<_, crate::device::RunError>, Result<_, _>) = sums(2_700);
        assert!(cpu.is_ok());
        assert_eq!(on_gpu.is_err(), gpu().traits().software);
        let (cpu, on_gpu) = sums(2_600);
        assert!(relative_l2(&on_gpu.unwrap(), &cpu.unwrap()) < 1e-5);
    }

    #[test]
    fn a_tensor_over_the_adapters_limit_is_refused_by_name() {
        let mut g = Graph::new();
        let x = g.input("x", SHAPE);
        let y = g.apply("layer", double(), &[x]).unwrap();
        let traits = GpuTraits { max_binding: 4 * SHAPE.numel() as u64 - 1, ..gpu().traits().clone() };
        let error = Plan::new(&g, &[y], Target::Gpu(traits)).unwrap_err().to_string();
        assert!(error.contains("layer layer"), "{error}");
    }
}
