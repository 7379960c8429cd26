//! Differentiates a graph: adds the nodes that compute gradients to the same graph (reverse mode).

use super::ir::{Graph, GraphError, Kind, Node, NodeId};
use crate::ops::Backward;
use crate::ops::pointwise::Pointwise;

/// Adds to `g` the nodes that compute the gradients by the nodes `wrt`, and returns them in that order: `None` for a
/// node that the differentiated results do not depend on.
///
/// `seeds` are results and the gradients of the loss by them, of the same shapes; for a loss that is itself a node, the
/// seed's gradient is an input or weight that holds 1.
///
/// # Errors
/// [`GraphError::NoGradient`] if an operation on the way cannot be differentiated.
pub fn gradients(g: &mut Graph, seeds: &[(NodeId, NodeId)], wrt: &[NodeId]) -> Result<Vec<Option<NodeId>>, GraphError> {
    let forward = g.nodes().len();
    let mut state = Reverse::new(g, wrt);
    for &(result, dy) in seeds {
        state.parts[result.0].push(Part { grad: dy, start: 0 });
    }
    let mut found: Vec<Option<NodeId>> = vec![None; wrt.len()];
    for i in (0..forward).rev() {
        if !state.needed[i] || state.parts[i].is_empty() {
            continue;
        }
        let dy = state.total(g, NodeId(i))?;
        for (slot, _) in wrt.iter().enumerate().filter(|(_, id)| id.0 == i) {
            found[slot] = Some(dy);
        }
        state.propagate(g, NodeId(i), dy)?;
    }
    Ok(found)
}

/// A gradient by some of a node's channels, `start` the first of them.
#[derive(Clone, Copy, Debug)]
struct Part {
    grad: NodeId,
    start: usize,
}

/// The gradients known so far.
struct Reverse {
    /// Whether a node depends on what the gradient is asked for.
    needed: Vec<bool>,
    /// What has been found for each node, to be summed when all its users are done.
    parts: Vec<Vec<Part>>,
}

impl Reverse {
    fn new(g: &Graph, wrt: &[NodeId]) -> Self {
        let mut needed = vec![false; g.nodes().len()];
        for id in wrt {
            needed[id.0] = true;
        }
        for (i, node) in g.nodes().iter().enumerate() {
            needed[i] |= node.inputs.iter().any(|id| needed[id.0]);
        }
        let parts = vec![Vec::new(); needed.len()];
        Self { needed, parts }
    }

    /// The sum of what was found for `id`, of its shape.
    fn total(&mut self, g: &mut Graph, id: NodeId) -> Result<NodeId, GraphError> {
        let channels = g.shape(id).c();
        let parts = std::mem::take(&mut self.parts[id.0]);
        let (whole, mut pieces): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| g.shape(part.grad).c() == channels);
        let mut whole: Vec<NodeId> = whole.iter().map(|part| part.grad).collect();
        pieces.sort_by_key(|part| part.start);
        let name = gradient_name(g, id);
        while !pieces.is_empty() {
            whole.push(take_row(g, id, &mut pieces)?);
        }
        let mut sum = whole[0];
        for &part in &whole[1..] {
            sum = g.apply(&name, Pointwise::add(), &[sum, part])?;
        }
        Ok(sum)
    }

    /// Hands the gradient by a node's result on to its inputs.
    fn propagate(&mut self, g: &mut Graph, id: NodeId, dy: NodeId) -> Result<(), GraphError> {
        let Node { kind, inputs, .. } = g.node(id).clone();
        match kind {
            Kind::Input | Kind::Param | Kind::Assign => {}
            Kind::Flatten | Kind::Part { .. } if !inputs.iter().any(|id| self.needed[id.0]) => {}
            Kind::Flatten | Kind::Part { .. } => {
                let layer = g.node(id).name.clone();
                return Err(GraphError::NoGradient { layer, op: "a row of tensors" });
            }
            Kind::Concat => {
                let mut start = 0;
                for input in inputs {
                    let channels = g.shape(input).c();
                    if self.needed[input.0] {
                        let name = gradient_name(g, input);
                        let grad = g.slice(&name, dy, start, channels)?;
                        self.parts[input.0].push(Part { grad, start: 0 });
                    }
                    start += channels;
                }
            }
            Kind::Slice { start } => self.parts[inputs[0].0].push(Part { grad: dy, start }),
            Kind::Op(op) => {
                let wanted: Vec<bool> = inputs.iter().map(|id| self.needed[id.0]).collect();
                let grads = op.grad(g, Backward { inputs: &inputs, output: id, dy, wanted: &wanted })?;
                for (input, grad) in inputs.into_iter().zip(grads) {
                    if let Some(grad) = grad.filter(|_| self.needed[input.0]) {
                        assert_eq!(g.shape(grad), g.shape(input), "{}'s gradient rule", op.name());
                        self.parts[input.0].push(Part { grad, start: 0 });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Takes pieces that lie side by side off the sorted `pieces` and joins them into a gradient of all of `id`'s channels,
/// zero where there is none.
fn take_row(g: &mut Graph, id: NodeId, pieces: &mut Vec<Part>) -> Result<NodeId, GraphError> {
    let name = gradient_name(g, id);
    let channels = g.shape(id).c();
    let (mut row, mut at) = (Vec::new(), 0);
    while at < channels {
        let next = pieces.iter().position(|part| part.start >= at).map(|i| pieces.remove(i));
        let until = next.map_or(channels, |part| part.start);
        if until > at {
            let like = g.slice(&name, id, at, until - at)?;
            row.push(g.apply(&name, Pointwise::build(|[x]| x.affine(0.0, 0.0)), &[like])?);
        }
        at = until;
        if let Some(part) = next {
            row.push(part.grad);
            at += g.shape(part.grad).c();
        }
    }
    g.concat(&name, &row)
}

/// The name of the layers that compute the gradient by `id`.
pub fn gradient_name(g: &Graph, id: NodeId) -> String {
    format!("{} (gradient)", g.node(id).name)
}
