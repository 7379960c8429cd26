//! Rewrites of a graph before tensors are placed: what no output needs is pruned, and neighbours become one operation.

use super::ir::{Graph, Kind, Node, NodeId};
use crate::tensor::Shape;

/// The part of `graph` that `outputs` and the new values of weights need, and where the outputs are in it.
pub(crate) fn prune(graph: &Graph, outputs: &[NodeId]) -> (Graph, Vec<NodeId>) {
    let mut needed = vec![false; graph.nodes().len()];
    for &id in outputs {
        needed[id.0] = true;
    }
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        needed[i] |= matches!(node.kind, Kind::Assign);
        if needed[i] {
            for input in &node.inputs {
                needed[input.0] = true;
            }
        }
    }
    let mut kept = Graph::new();
    let mut place = vec![NodeId(usize::MAX); needed.len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        if needed[i] {
            let mut node = node.clone();
            for input in &mut node.inputs {
                *input = place[input.0];
            }
            place[i] = kept.push(node);
        }
    }
    (kept, outputs.iter().map(|id| place[id.0]).collect())
}

/// Joins operations with their only consumers where one of the two knows how: convolution, bias, activation and
/// residual; norm and activation; chains of pointwise operations.
pub(crate) fn fuse(graph: &Graph, outputs: &[NodeId]) -> (Graph, Vec<NodeId>) {
    let mut nodes: Vec<Node> = graph.nodes().to_vec();
    let mut uses = vec![0usize; nodes.len()];
    for id in nodes.iter().flat_map(|n| &n.inputs).chain(outputs) {
        uses[id.0] += 1;
    }
    for i in 0..nodes.len() {
        while let Some((fused, gone)) = fuse_one(&nodes, &uses, i) {
            uses[gone.0] = 0;
            nodes[i] = fused;
        }
    }
    let mut rewritten = Graph::new();
    for node in nodes {
        rewritten.push(node);
    }
    prune(&rewritten, outputs)
}

/// Node `i` joined with one of its producers, and the producer that this replaces.
fn fuse_one(nodes: &[Node], uses: &[usize], i: usize) -> Option<(Node, NodeId)> {
    let node = &nodes[i];
    let Kind::Op(op) = &node.kind else {
        return None;
    };
    let shapes: Vec<Shape> = node.inputs.iter().map(|id| nodes[id.0].shape).collect();
    for (slot, &producer) in node.inputs.iter().enumerate() {
        let Kind::Op(previous) = &nodes[producer.0].kind else {
            continue;
        };
        if uses[producer.0] != 1 {
            continue;
        }
        let before = &nodes[producer.0];
        if let Some(joined) = previous.absorb_consumer(op.as_ref(), slot, &shapes) {
            let others = node.inputs.iter().enumerate().filter(|&(s, _)| s != slot);
            let inputs = before.inputs.iter().copied().chain(others.map(|(_, &id)| id));
            let fused = Node { kind: Kind::Op(joined), inputs: inputs.collect(), shape: node.shape, ..before.clone() };
            return Some((fused, producer));
        }
        if let Some(joined) = op.absorb_producer(previous.as_ref(), slot) {
            let mut inputs = node.inputs.clone();
            inputs[slot] = before.inputs[0];
            let fused = Node { kind: Kind::Op(joined), inputs, ..node.clone() };
            return Some((fused, producer));
        }
    }
    None
}
