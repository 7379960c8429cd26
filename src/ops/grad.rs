//! Differentiates a graph: adds the nodes that compute gradients to the same graph (reverse mode).

use std::collections::HashMap;

use super::pointwise::Pointwise;
use crate::graph::{Backward, Graph, GraphError, Kind, Node, NodeId, Phase};

/// Adds to `g` the nodes that compute the gradients with respect to the nodes `wrt`, and returns them in that order:
/// `None` for a node that the differentiated results do not depend on.
///
/// `seeds` are results, each with the gradient of the loss with respect to it, of the same shape. For a loss that is
/// itself a node that gradient is an input or weight that holds 1.
///
/// # Errors
/// [`GraphError::NoGradient`] if an operation on the way cannot be differentiated.
pub fn gradients(g: &mut Graph, seeds: &[(NodeId, NodeId)], wrt: &[NodeId]) -> Result<Vec<Option<NodeId>>, GraphError> {
    gradients_in_segments(g, seeds, wrt, 1)
}

/// [`gradients`] that keep less memory and compute more (Chen et al. 2016): the nodes that are there are cut into
/// `segments` runs of about equal memory, and only what one segment reads of another is kept from the forward to the
/// backward pass. Before its backward pass the forward pass of each segment but the last is computed again.
///
/// # Errors
/// Those of [`gradients`].
pub fn gradients_in_segments(
    g: &mut Graph,
    seeds: &[(NodeId, NodeId)],
    wrt: &[NodeId],
    segments: usize,
) -> Result<Vec<Option<NodeId>>, GraphError> {
    g.in_phase(Phase::Backward, |g| add_gradients(g, seeds, wrt, segments))
}

fn add_gradients(
    g: &mut Graph,
    seeds: &[(NodeId, NodeId)],
    wrt: &[NodeId],
    segments: usize,
) -> Result<Vec<Option<NodeId>>, GraphError> {
    let forward = g.nodes().len();
    let mut state = Reverse::new(g, wrt);
    let segment_of = cut(g, segments.max(1));
    let mut current = segment_of.last().copied().unwrap_or(0);
    for &(result, dy) in seeds {
        state.parts[result.0].push(Part { grad: dy, start: 0 });
    }
    let mut found: Vec<Option<NodeId>> = vec![None; wrt.len()];
    for i in (0..forward).rev() {
        if !state.needed[i] || state.parts[i].is_empty() {
            continue;
        }
        if segment_of[i] != current {
            current = segment_of[i];
            state.again = repeat(g, &segment_of, current);
        }
        let dy = state.total(g, NodeId(i))?;
        for (slot, _) in wrt.iter().enumerate().filter(|(_, id)| id.0 == i) {
            found[slot] = Some(dy);
        }
        state.propagate(g, NodeId(i), dy)?;
    }
    Ok(found)
}

/// A gradient with respect to some of a node's channels, of which `start` is the first.
#[derive(Clone, Copy, Debug)]
struct Part {
    grad: NodeId,
    start: usize,
}

/// The gradients known so far.
struct Reverse {
    /// Whether a node depends on what the gradient is asked for.
    needed: Vec<bool>,
    /// The gradients that the users of each node have contributed so far; their sum is taken when all users are done.
    parts: Vec<Vec<Part>>,
    /// For the nodes of the present segment that are computed again, the nodes that do so.
    again: HashMap<NodeId, NodeId>,
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
        Self { needed, parts, again: HashMap::new() }
    }

    /// The sum of the contributions to the gradient with respect to `id`, in its shape.
    fn total(&mut self, g: &mut Graph, id: NodeId) -> Result<NodeId, GraphError> {
        let channels = g.shape(id).c();
        let parts = std::mem::take(&mut self.parts[id.0]);
        let (whole, mut pieces): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| g.shape(part.grad).c() == channels);
        let mut whole: Vec<NodeId> = whole.iter().map(|part| part.grad).collect();
        pieces.sort_by_key(|part| part.start);
        let name = gradient_name(g, id);
        while !pieces.is_empty() {
            let like = *self.again.get(&id).unwrap_or(&id);
            whole.push(take_row(g, like, &mut pieces)?);
        }
        let mut sum = whole[0];
        for &part in &whole[1..] {
            sum = g.apply(&name, Pointwise::add(), &[sum, part])?;
        }
        Ok(sum)
    }

    /// Hands the gradient with respect to a node's result on to its inputs.
    fn propagate(&mut self, g: &mut Graph, id: NodeId, dy: NodeId) -> Result<(), GraphError> {
        let Node { kind, inputs, .. } = g.node(id).clone();
        match kind {
            Kind::Input | Kind::Param { .. } | Kind::Assign => {}
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
            Kind::Reshape => {
                let input = inputs[0];
                let (name, shape) = (gradient_name(g, input), g.shape(input));
                let grad = g.reshape(&name, dy, shape)?;
                self.parts[input.0].push(Part { grad, start: 0 });
            }
            Kind::Slice { start } => self.parts[inputs[0].0].push(Part { grad: dy, start }),
            Kind::Op(op) => {
                let wanted: Vec<bool> = inputs.iter().map(|id| self.needed[id.0]).collect();
                let now = |id: &NodeId| *self.again.get(id).unwrap_or(id);
                let present: Vec<NodeId> = inputs.iter().map(now).collect();
                let at = Backward { inputs: &present, output: now(&id), dy, wanted: &wanted };
                let grads = op.grad(g, at)?;
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

/// The number of each node's segment. Segments are runs of nodes whose operations take about equal memory; views belong
/// to the segment that they stand in.
fn cut(g: &Graph, segments: usize) -> Vec<usize> {
    let size = |node: &Node| if matches!(node.kind, Kind::Op(_)) { node.shape.numel() as u64 } else { 0 };
    let total: u64 = g.nodes().iter().map(size).sum::<u64>().max(1);
    let mut before = 0;
    let segment = |node: &Node| {
        let at = before * segments as u64 / total;
        before += size(node);
        (at as usize).min(segments - 1)
    };
    g.nodes().iter().map(segment).collect()
}

/// Adds the operations and views of a segment to the graph once more, reading one another where they can; returns what
/// stands for what. Those that nothing reads are pruned by the plan.
fn repeat(g: &mut Graph, segment_of: &[usize], segment: usize) -> HashMap<NodeId, NodeId> {
    let mut again: HashMap<NodeId, NodeId> = HashMap::new();
    for i in (0..segment_of.len()).filter(|&i| segment_of[i] == segment) {
        let mut node = g.node(NodeId(i)).clone();
        // Parts of the weights' row are repeated too: what an operation prepares of a weight is made once for each
        // node, so a shared one would be kept from the forward to the backward pass.
        let repeated = matches!(node.kind, Kind::Op(_) | Kind::Part { .. });
        let reads = node.inputs.iter().any(|id| again.contains_key(id));
        if matches!(node.kind, Kind::Assign) || !(repeated || reads) {
            continue;
        }
        node.inputs.iter_mut().for_each(|id| *id = *again.get(id).unwrap_or(id));
        node.name.push_str(" (again)");
        node.phase = Phase::Backward;
        again.insert(NodeId(i), g.push(node));
    }
    again
}

/// Takes pieces that do not overlap off the sorted `pieces` and joins them into a gradient with respect to all of
/// `id`'s channels, zero where there is no piece.
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

/// The name of the layers that compute the gradient with respect to `id`.
pub(crate) fn gradient_name(g: &Graph, id: NodeId) -> String {
    format!("{} (gradient)", g.node(id).name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cpu::activation::Activation;
    use crate::device::Device;
    use crate::graph::{Copy, Plan, Target};
    use crate::ops::conv2d::{Conv2d, ConvSpec};
    use crate::ops::reduce_sum::ReduceSum;
    use crate::ops::testing::{gpu, random, relative_l2};
    use crate::tensor::{Shape, Tensor};

    /// A chain of convolutions that ends in a concatenation with a slice of itself, its loss, and its weights.
    fn chain(depth: usize) -> (Graph, NodeId, Vec<NodeId>, BTreeMap<String, Tensor>) {
        let mut g = Graph::new();
        let mut x = g.input("x", Shape::new(2, 4, 9, 7));
        let (mut ids, mut weights) = (Vec::new(), BTreeMap::new());
        for i in 0..depth {
            let name = format!("w{i}");
            let id = g.param(&name, Shape::new(4, 4, 3, 3)).unwrap();
            // Small enough for the loss to be nearly straight over the step of the central difference.
            let values = random(144, i as u64).into_iter().map(|v| 0.5 * v).collect();
            weights.insert(name, Tensor::new([4, 4, 3, 3], values));
            x = g.apply("conv", Conv2d::new(ConvSpec::same(3)), &[x, id]).unwrap();
            x = g.apply("act", Pointwise::act(Activation::Silu), &[x]).unwrap();
            ids.push(id);
        }
        let part = g.slice("part", x, 1, 2).unwrap();
        let both = g.concat("both", &[part, x, part]).unwrap();
        let square = g.apply("square", Pointwise::build(|[x]| x.clone() * x), &[both]).unwrap();
        let loss = g.apply("loss", ReduceSum::ALL, &[square]).unwrap();
        (g, loss, ids, weights)
    }

    #[test]
    fn gradients_through_views_are_the_slopes_and_segments_change_nothing_but_memory() {
        let (g, loss, ids, weights) = chain(6);
        let data = random(2 * 4 * 63, 50);
        let none_of = |g: &Graph, outputs: &[NodeId], weights: &BTreeMap<String, Tensor>, device: Device| {
            let exe = device.compile(g, outputs, weights).unwrap();
            exe.run(&[("x", &data), ("one", &[1.0])]).unwrap()
        };
        let mut results = Vec::new();
        let mut memory = Vec::new();
        for segments in [1, 3, 6] {
            let mut g = g.clone();
            let one = g.input("one", Shape::new(1, 1, 1, 1));
            let grads = gradients_in_segments(&mut g, &[(loss, one)], &ids, segments).unwrap();
            let grads: Vec<NodeId> = grads.into_iter().flatten().collect();
            memory.push(Plan::new(&g, &grads, Target::Cpu).unwrap().run_bytes());
            results.push(none_of(&g, &grads, &weights, Device::Cpu));
            let on_gpu = none_of(&g, &grads, &weights, Device::Gpu(gpu()));
            assert!(on_gpu.iter().zip(&results[0]).all(|(a, b)| relative_l2(a, b) < 1e-5));
        }
        assert!(results[1..].iter().all(|found| found.iter().zip(&results[0]).all(|(a, b)| relative_l2(a, b) < 1e-6)));
        assert!(memory[1] < memory[0], "{memory:?}");
        let direction = random(144, 9);
        let at = |step: f32| {
            let mut moved = weights.clone();
            let values = moved.get_mut("w1").unwrap().data_mut();
            values.iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
            f64::from(none_of(&g, &[loss], &moved, Device::Cpu)[0][0])
        };
        let slope = (at(2e-3) - at(-2e-3)) / 4e-3;
        let exact: f64 = results[0][1].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        assert!((slope - exact).abs() < 2e-3 * exact.abs(), "{slope} {exact}");
    }

    #[test]
    fn what_the_loss_does_not_depend_on_has_no_gradient() {
        let mut g = Graph::new();
        let shape = Shape::new(1, 2, 3, 3);
        let (x, y, dy) = (g.input("x", shape), g.input("y", shape), g.input("dy", shape));
        let out = g.apply("copy", Copy, &[x]).unwrap();
        let found = gradients(&mut g, &[(out, dy)], &[x, y]).unwrap();
        assert!(found[0].is_some() && found[1].is_none());
    }

    #[test]
    fn channels_that_nobody_read_have_gradient_zero() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::new(2, 5, 1, 2));
        let dy = g.input("dy", Shape::new(2, 2, 1, 2));
        let read = g.slice("read", x, 1, 2).unwrap();
        let grad = gradients(&mut g, &[(read, dy)], &[x]).unwrap()[0].unwrap();
        let none: BTreeMap<String, Tensor> = BTreeMap::new();
        let exe = Device::Cpu.compile(&g, &[grad], &none).unwrap();
        let found = exe.run(&[("x", &random(20, 1)), ("dy", &[1., 2., 3., 4., 5., 6., 7., 8.])]).unwrap();
        let expected = [0., 0., 1., 2., 3., 4., 0., 0., 0., 0., 0., 0., 5., 6., 7., 8., 0., 0., 0., 0.];
        assert_eq!(found[0], expected);
    }
}
