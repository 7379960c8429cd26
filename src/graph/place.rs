//! Where tensors lie: the parts of a concatenation inside the whole, and buffers shared by tensors that never live at
//! the same time.

use std::sync::Arc;

use super::copy::Copy;
use super::ir::{Graph, Kind, Node, NodeId};
use crate::tensor::Slot;

/// A tensor with memory of its own. Numbers below the number of nodes are those of nodes; the others are tensors that
/// are prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TensorId(pub usize);

/// Where a node lies: in the memory of which tensor, its own or that of a concatenation, and at which place of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// The tensor whose memory it lies in.
    pub root: TensorId,
    /// The place in that memory.
    pub slot: Slot,
}

/// Places every node; the parts of a concatenation lie inside it.
///
/// A part is written in place unless that is not possible: if it is an input, a weight or a view, if it already lies in
/// another concatenation, or if its operation reads the very buffer that it would write, which WebGPU forbids. Such a
/// part goes through a copy that this function adds to the graph. So does a tensor that is reshaped to another number
/// of batch items if its own do not follow one another without a gap.
pub(crate) fn place(graph: Graph, outputs: Vec<NodeId>) -> (Graph, Vec<NodeId>, Vec<Placed>) {
    let (graph, outputs) = copy_inputs(&graph, &outputs, |owner, reader, part| {
        let reader = &graph.node(reader).kind;
        let written = matches!(graph.node(part).kind, Kind::Op(_) | Kind::Concat | Kind::Flatten);
        matches!(reader, Kind::Concat | Kind::Flatten) && (!written || owner[part.0].is_some())
    });
    let placed = lay_out(&graph);
    let reads_own_buffer = |part: NodeId| {
        let reads = &graph.node(part).inputs;
        matches!(graph.node(part).kind, Kind::Op(_)) && reads.iter().any(|r| placed[r.0].root == placed[part.0].root)
    };
    let needs_copy = |reader: NodeId, part: NodeId| match graph.node(reader).kind {
        Kind::Concat | Kind::Flatten => reads_own_buffer(part),
        Kind::Reshape => graph.shape(reader).n() != graph.shape(part).n() && !placed[part.0].slot.is_contiguous(),
        _ => false,
    };
    let edges =
        graph.nodes().iter().enumerate().flat_map(|(i, node)| node.inputs.iter().map(move |id| (NodeId(i), *id)));
    if !edges.into_iter().any(|(reader, part)| needs_copy(reader, part)) {
        return (graph, outputs, placed);
    }
    let (graph, outputs) = copy_inputs(&graph, &outputs, |_, reader, part| needs_copy(reader, part));
    let placed = lay_out(&graph);
    (graph, outputs, placed)
}

/// Puts a copy between a node and each of its inputs for which `needs_copy(owner, node, input)` holds, where `owner` is
/// the concatenation that already holds a node.
fn copy_inputs(
    graph: &Graph,
    outputs: &[NodeId],
    needs_copy: impl Fn(&[Option<NodeId>], NodeId, NodeId) -> bool,
) -> (Graph, Vec<NodeId>) {
    let mut owner: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    let mut result = Graph::new();
    let mut place: Vec<NodeId> = Vec::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let mut inputs = Vec::new();
        for &input in &node.inputs {
            if needs_copy(&owner, NodeId(i), input) {
                let given = graph.node(input);
                inputs.push(result.push(Node {
                    kind: Kind::Op(Arc::new(Copy)),
                    inputs: vec![place[input.0]],
                    shape: given.shape,
                    name: format!("{} (copy)", given.name),
                    phase: node.phase,
                }));
                continue;
            }
            if matches!(node.kind, Kind::Concat | Kind::Flatten) {
                owner[input.0] = Some(NodeId(i));
            }
            inputs.push(place[input.0]);
        }
        place.push(result.push(Node { inputs, ..node.clone() }));
    }
    (result, outputs.iter().map(|id| place[id.0]).collect())
}

/// Gives every node a buffer of its own, except that parts lie inside their concatenation and views inside what they
/// show.
fn lay_out(graph: &Graph) -> Vec<Placed> {
    let mut placed: Vec<Placed> = graph
        .nodes()
        .iter()
        .enumerate()
        .map(|(i, node)| Placed { root: TensorId(i), slot: Slot::contiguous(node.shape) })
        .collect();
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if !matches!(node.kind, Kind::Concat | Kind::Flatten) {
            continue;
        }
        let whole = placed[i];
        let mut offset = whole.slot.offset;
        for part in &node.inputs {
            let shape = graph.shape(*part);
            let slot = &mut placed[part.0];
            slot.root = whole.root;
            slot.slot.offset = offset;
            if matches!(node.kind, Kind::Concat) {
                slot.slot.batch_stride = whole.slot.batch_stride;
                offset += shape.item();
            } else {
                offset += shape.numel();
            }
        }
    }
    for (i, node) in graph.nodes().iter().enumerate() {
        match node.kind {
            Kind::Slice { start } => {
                let whole = placed[node.inputs[0].0];
                placed[i] = Placed { root: whole.root, slot: whole.slot.channels(start, node.shape.c()) };
            }
            Kind::Reshape => {
                let Placed { root, slot } = placed[node.inputs[0].0];
                let same_items = node.shape.n() == slot.shape.n();
                let batch_stride = if same_items { slot.batch_stride } else { node.shape.item() };
                placed[i] = Placed { root, slot: Slot { shape: node.shape, batch_stride, ..slot } };
            }
            Kind::Part { offset } => {
                let whole = placed[node.inputs[0].0];
                let offset = whole.slot.offset + offset;
                placed[i] = Placed { root: whole.root, slot: Slot { offset, ..placed[i].slot } };
            }
            Kind::Assign => placed[i] = placed[node.inputs[1].0],
            Kind::Input | Kind::Param { .. } | Kind::Concat | Kind::Flatten | Kind::Op(_) => {}
        }
    }
    placed
}

/// How much memory a tensor needs, and over which steps of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interval {
    /// Elements.
    pub len: usize,
    /// First step that touches it.
    pub first: usize,
    /// Last step that touches it.
    pub last: usize,
}

/// Gives each interval a buffer, so that few and small ones suffice: the largest interval first, each into the smallest
/// buffer that is free for its whole life. Returns each interval's buffer and the buffers' lengths.
pub(crate) fn share(intervals: &[Interval]) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(intervals[i].len), intervals[i].first, i));
    let mut lengths: Vec<usize> = Vec::new();
    let mut tenants: Vec<Vec<usize>> = Vec::new();
    let mut assigned = vec![0; intervals.len()];
    for i in order {
        let it = intervals[i];
        let free = |tenants: &Vec<usize>| {
            tenants.iter().all(|&t| intervals[t].last < it.first || it.last < intervals[t].first)
        };
        // The last one that is free is the smallest: buffers were made in falling order of length.
        let buffer = match tenants.iter().rposition(free) {
            Some(buffer) => buffer,
            None => {
                lengths.push(it.len);
                tenants.push(Vec::new());
                lengths.len() - 1
            }
        };
        tenants[buffer].push(i);
        assigned[i] = buffer;
    }
    (assigned, lengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tensors_alive_together_never_share(raw in prop::collection::vec((1usize..50, 0usize..20, 0usize..6), 1..40)) {
            let intervals: Vec<Interval> = raw
                .iter()
                .map(|&(len, first, life)| Interval { len, first, last: first + life })
                .collect();
            let (assigned, lengths) = share(&intervals);
            for (i, a) in intervals.iter().enumerate() {
                prop_assert!(lengths[assigned[i]] >= a.len);
                for (j, b) in intervals.iter().enumerate().skip(i + 1) {
                    if a.first <= b.last && b.first <= a.last {
                        prop_assert_ne!(assigned[i], assigned[j]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<Interval> = (0..10).map(|i| Interval { len: 100, first: i, last: i + 1 }).collect();
        assert_eq!(share(&chain).1, vec![100, 100]);
    }
}
