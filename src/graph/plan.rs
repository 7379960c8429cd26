//! The plan of a run: steps in order, where every tensor lies, how much memory that takes.

use super::fuse::{fuse, prune};
use super::ir::{Graph, GraphError, Kind, NodeId, Phase};
use super::lower::{Call, Calls, Stage, lower};
use super::op::{MAX_LOOP_ROUNDS, Target, Work};
use super::place::{Interval, Placed, place, share};
use crate::tensor::Slot;

/// The most elements of a buffer: kernels count them in 32 bits, and steps beyond the last one must not wrap around.
const MAX_ELEMENTS: usize = 1 << 31;

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
    /// While the plan is loaded: weights that are needed in their prepared form only.
    Setup,
    /// As long as the plan: weights, in the form that the kernels read.
    Weights,
    /// As long as the plan: weights that runs change, such as those that are trained.
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

/// One call of a plan.
#[derive(Clone, Debug)]
pub struct Step {
    /// The layer's name.
    pub name: String,
    /// The operation with the hyperparameters that its speed depends on.
    pub op: String,
    /// The part of a training step that it belongs to.
    pub phase: Phase,
    /// Multiply-adds, counted as the direct algorithm does them.
    pub macs: u64,
    /// The algorithm, where there is a choice.
    pub method: &'static str,
    /// How the result is computed.
    pub work: Work,
    /// Where its inputs lie.
    pub inputs: Vec<Location>,
    /// Where its result goes.
    pub output: Location,
    /// Its scratch buffers.
    pub scratch: Vec<usize>,
}

/// A graph laid out for a target: made once, run many times.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is made for.
    pub target: Target,
    /// Steps that depend on nothing but weights that no run changes, run once.
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
    /// [`GraphError`] if a tensor is over the limits of the target.
    pub fn new(graph: &Graph, outputs: &[NodeId], target: Target) -> Result<Self, GraphError> {
        let (graph, outputs) = prune(graph, outputs);
        let (graph, outputs) = fuse(&graph, &outputs);
        let (graph, outputs, placed) = place(graph, outputs);
        let calls = lower(&graph, &placed, &target);
        if matches!(&target, Target::Gpu(traits) if traits.software) {
            check_rounds(&calls)?;
        }
        let layout = Layout { graph: &graph, outputs: &outputs, placed: &placed, calls: &calls };
        let (buffers, buffer_of, scratch) = layout.buffers();
        let plan = layout.plan(target, buffers, &buffer_of, scratch);
        check_sizes(&plan)?;
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

fn check_rounds(calls: &Calls) -> Result<(), GraphError> {
    match calls.calls.iter().find(|call| call.lowered.rounds > MAX_LOOP_ROUNDS) {
        Some(call) => Err(GraphError::TooLong { layer: call.name.clone(), rounds: call.lowered.rounds }),
        None => Ok(()),
    }
}

fn check_sizes(plan: &Plan) -> Result<(), GraphError> {
    let limit = match &plan.target {
        Target::Cpu => u64::MAX,
        Target::Gpu(traits) => traits.largest_tensor(),
    };
    for step in plan.setup.iter().chain(&plan.steps).chain(&plan.commits) {
        let used = step.inputs.iter().chain([&step.output]).map(|l| l.buffer);
        for buffer in used.chain(step.scratch.iter().copied()) {
            let elements = plan.buffers[buffer].len;
            if elements > MAX_ELEMENTS {
                let layer = step.name.clone();
                return Err(GraphError::TooMany { layer, elements });
            }
            let bytes = 4 * elements as u64;
            if bytes > limit {
                return Err(GraphError::TooLarge {
                    layer: step.name.clone(),
                    mib: bytes as f64 / f64::from(1 << 20),
                    limit_mib: limit as f64 / f64::from(1 << 20),
                });
            }
        }
    }
    Ok(())
}

/// What buffers are handed out to: a placed graph and its calls.
struct Layout<'a> {
    graph: &'a Graph,
    outputs: &'a [NodeId],
    placed: &'a [Placed],
    calls: &'a Calls,
}

impl Layout<'_> {
    /// For each tensor the first and the last call that touch it. Outputs, and what the commits read, live to the end.
    fn lifetimes(&self) -> Vec<Interval> {
        let lengths = self.calls.lengths.iter();
        let mut lives: Vec<Interval> = lengths.map(|&len| Interval { len, first: usize::MAX, last: 0 }).collect();
        let mut touch = |place: &Placed, at: usize| {
            let life = &mut lives[place.root.0];
            life.first = life.first.min(at);
            life.last = life.last.max(at);
        };
        for (i, node) in self.graph.nodes().iter().enumerate() {
            if matches!(node.kind, Kind::Input) {
                touch(&self.placed[i], 0);
            }
        }
        for (i, call) in self.calls.calls.iter().enumerate() {
            let at = if call.stage == Stage::Commit { usize::MAX } else { i };
            call.inputs.iter().chain([&call.output]).for_each(|place| touch(place, at));
        }
        for id in self.outputs {
            touch(&self.placed[id.0], usize::MAX);
        }
        lives
    }

    /// For each tensor whether a call of a run or a commit reads it, or it is an output.
    fn read_in_runs(&self) -> Vec<bool> {
        let mut read = vec![false; self.calls.lengths.len()];
        let runs = self.calls.calls.iter().filter(|call| call.stage != Stage::Setup);
        let places = runs.flat_map(|call| &call.inputs).chain(self.outputs.iter().map(|id| &self.placed[id.0]));
        places.for_each(|place| read[place.root.0] = true);
        read
    }

    /// The buffers, which of them each tensor has, and which of them each call has as scratch.
    fn buffers(&self) -> (Vec<Buffer>, Vec<usize>, Vec<Vec<usize>>) {
        let (lives, read) = (self.lifetimes(), self.read_in_runs());
        let mut buffers = Vec::new();
        let mut buffer_of = vec![usize::MAX; lives.len()];
        let (mut shared, mut intervals) = (Vec::new(), Vec::new());
        for (i, life) in lives.iter().enumerate() {
            let is_view = self.placed.get(i).is_some_and(|place| place.root.0 != i);
            let is_weight = self.graph.nodes().get(i).is_some_and(|node| matches!(node.kind, Kind::Param { .. }));
            let life = match (is_view, self.calls.constant[i], is_weight) {
                (true, ..) => continue,
                (_, true, _) if read[i] => Life::Weights,
                (_, true, _) => Life::Setup,
                (_, _, true) => Life::State,
                _ => {
                    shared.push(i);
                    intervals.push(*life);
                    continue;
                }
            };
            buffer_of[i] = buffers.len();
            buffers.push(Buffer { len: lives[i].len, life });
        }
        for (i, call) in self.calls.calls.iter().enumerate() {
            intervals.extend(call.lowered.scratch.iter().map(|&len| Interval { len, first: i, last: i }));
        }
        let (assigned, lengths) = share(&intervals);
        let base = buffers.len();
        buffers.extend(lengths.into_iter().map(|len| Buffer { len, life: Life::Run }));
        for (&tensor, &buffer) in shared.iter().zip(&assigned) {
            buffer_of[tensor] = base + buffer;
        }
        let mut scratch = assigned[shared.len()..].iter().map(|buffer| base + buffer);
        let of_call = |call: &Call| scratch.by_ref().take(call.lowered.scratch.len()).collect();
        let scratch = self.calls.calls.iter().map(of_call).collect();
        (buffers, buffer_of, scratch)
    }

    fn plan(&self, target: Target, buffers: Vec<Buffer>, buffer_of: &[usize], scratch: Vec<Vec<usize>>) -> Plan {
        let locate = |place: &Placed| Location { buffer: buffer_of[place.root.0], slot: place.slot };
        let named = |wanted: fn(&Kind) -> bool| {
            let nodes = self.graph.nodes().iter().zip(self.placed).filter(move |(node, _)| wanted(&node.kind));
            nodes.map(|(node, place)| (node.name.clone(), locate(place))).collect()
        };
        let mut plan = Plan {
            target,
            setup: Vec::new(),
            steps: Vec::new(),
            commits: Vec::new(),
            buffers,
            inputs: named(|kind| matches!(kind, Kind::Input)),
            params: named(|kind| matches!(kind, Kind::Param { .. })),
            outputs: self.outputs.iter().map(|id| locate(&self.placed[id.0])).collect(),
            macs: 0,
        };
        for (call, scratch) in self.calls.calls.iter().zip(scratch) {
            let step = Step {
                name: call.name.clone(),
                op: call.op.clone(),
                phase: call.phase,
                macs: call.macs,
                method: call.lowered.method,
                work: call.lowered.work.clone(),
                inputs: call.inputs.iter().map(locate).collect(),
                output: locate(&call.output),
                scratch,
            };
            match call.stage {
                Stage::Setup => plan.setup.push(step),
                Stage::Run => plan.steps.push(step),
                Stage::Commit => plan.commits.push(step),
            }
        }
        plan.macs = plan.steps.iter().map(|step| step.macs).sum();
        plan
    }
}
