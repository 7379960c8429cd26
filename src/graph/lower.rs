//! From operations to calls: asks every operation of a placed graph, once, how it is computed on the target. What an
//! operation wants to be prepared, such as a packed weight, becomes a call of its own.

use std::collections::{HashMap, HashSet};

use super::copy::Copy;
use super::ir::{Graph, Kind, Node, NodeId, Phase};
use super::op::{Lowered, Op, Target, Work, operands};
use super::place::{Placed, TensorId};
use crate::tensor::{Shape, Slot};

/// When a call runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Once, when the plan is loaded: it reads weights alone.
    Setup,
    /// In every run.
    Run,
    /// After a run whose outputs are finite.
    Commit,
}

/// One call of a plan, before buffers are handed out.
pub(super) struct Call {
    pub stage: Stage,
    /// The layer's name.
    pub name: String,
    /// The operation with the hyperparameters that its speed depends on ([`Op::summary`]).
    pub op: String,
    pub phase: Phase,
    pub macs: u64,
    pub inputs: Vec<Placed>,
    pub output: Placed,
    pub lowered: Lowered,
}

/// The calls of a graph, in order.
pub(super) struct Calls {
    pub calls: Vec<Call>,
    /// Elements of every tensor: first those of the graph's nodes, then those that are prepared.
    pub lengths: Vec<usize>,
    /// Whether a tensor depends on nothing but weights that no run changes: it is computed once, in the set-up.
    pub constant: Vec<bool>,
}

/// Lowers every operation of `graph`, whose nodes lie where `placed` says.
pub(super) fn lower(graph: &Graph, placed: &[Placed], target: &Target) -> Calls {
    let lengths = graph.nodes().iter().map(|node| node.shape.numel()).collect();
    let calls = Calls { calls: Vec::new(), lengths, constant: constants(graph) };
    let mut lowering = Lowering { graph, placed, target, calls, prepared: HashMap::new() };
    for (i, node) in graph.nodes().iter().enumerate() {
        match &node.kind {
            Kind::Op(op) => {
                let stage = if lowering.calls.constant[i] { Stage::Setup } else { Stage::Run };
                lowering.call(stage, node, op.as_ref(), &node.inputs, placed[i]);
            }
            Kind::Assign => lowering.call(Stage::Commit, node, &Copy, &node.inputs[..1], placed[i]),
            _ => {}
        }
    }
    lowering.calls
}

struct Lowering<'a> {
    graph: &'a Graph,
    placed: &'a [Placed],
    target: &'a Target,
    calls: Calls,
    /// The tensors that were prepared so far, by what was done and to which node: equal wishes are fulfilled once.
    prepared: HashMap<(String, NodeId), Placed>,
}

impl Lowering<'_> {
    fn call(&mut self, stage: Stage, node: &Node, op: &dyn Op, inputs: &[NodeId], output: Placed) {
        let mut places: Vec<Placed> = inputs.iter().map(|id| self.placed[id.0]).collect();
        let slots: Vec<Slot> = places.iter().map(|place| place.slot).collect();
        let (operands, result) = operands(&slots, output.slot);
        let mut lowered = op.lower(self.target, &operands, result);
        for prepared in std::mem::take(&mut lowered.prepared) {
            let what = format!("{} ({})", self.graph.node(inputs[prepared.input]).name, prepared.what);
            let key = (prepared.what, inputs[prepared.input]);
            let place = match self.prepared.get(&key) {
                Some(&place) => place,
                None => self.prepare(what, key.1, prepared.len, prepared.work, node.phase),
            };
            places[prepared.input] = place;
            self.prepared.insert(key, place);
        }
        let shapes: Vec<Shape> = inputs.iter().map(|&id| self.graph.shape(id)).collect();
        self.calls.calls.push(Call {
            stage,
            name: node.name.clone(),
            op: op.summary(),
            phase: node.phase,
            macs: op.macs(&shapes, node.shape),
            inputs: places,
            output,
            lowered,
        });
    }

    /// Adds the call that computes a tensor of `len` elements from `source` alone.
    fn prepare(&mut self, name: String, source: NodeId, len: usize, work: Work, phase: Phase) -> Placed {
        let constant = self.calls.constant[source.0];
        let output =
            Placed { root: TensorId(self.calls.lengths.len()), slot: Slot::contiguous(Shape::new(1, len, 1, 1)) };
        self.calls.lengths.push(len);
        self.calls.constant.push(constant);
        self.calls.calls.push(Call {
            stage: if constant { Stage::Setup } else { Stage::Run },
            op: "prepare weight".into(),
            name,
            phase,
            macs: 0,
            inputs: vec![self.placed[source.0]],
            output,
            lowered: Lowered { work, prepared: Vec::new(), scratch: Vec::new(), rounds: 0, method: "" },
        });
        output
    }
}

/// For every node whether it depends on nothing but weights that no run changes.
fn constants(graph: &Graph) -> Vec<bool> {
    let assigned: HashSet<NodeId> =
        graph.nodes().iter().filter(|n| matches!(n.kind, Kind::Assign)).map(|n| n.inputs[1]).collect();
    let mut constant: Vec<bool> = Vec::with_capacity(graph.nodes().len());
    for (i, node) in graph.nodes().iter().enumerate() {
        constant.push(match node.kind {
            Kind::Input | Kind::Assign => false,
            Kind::Param { .. } => !assigned.contains(&NodeId(i)),
            _ => !node.inputs.is_empty() && node.inputs.iter().all(|id| constant[id.0]),
        });
    }
    // The parts of a concatenation share a buffer. If one of them changes from run to run, the buffer is no constant's.
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if matches!(node.kind, Kind::Concat | Kind::Flatten) && !constant[i] {
            for part in &node.inputs {
                constant[part.0] = false;
            }
        }
    }
    // What reads a part that is no constant any more is none either.
    for (i, node) in graph.nodes().iter().enumerate() {
        if !matches!(node.kind, Kind::Param { .. }) {
            constant[i] &= node.inputs.iter().all(|id| constant[id.0]);
        }
    }
    constant
}
