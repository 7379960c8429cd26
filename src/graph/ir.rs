//! Nodes, shapes and the builder that models write their layers with.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::op::MAX_LOOP_ROUNDS;
use super::op::Op;
use crate::tensor::Shape;

/// A node's place in its graph. Nodes are in topological order: inputs come before their users.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub usize);

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A tensor that every run is given, by name.
    Input,
    /// A weight, by its checkpoint name.
    Param {
        /// The dimensions that a checkpoint has it in, such as `[c]` for a bias.
        dims: Vec<usize>,
    },
    /// The channel concatenation of the node's inputs. The plan makes it a view: its parts are written in place.
    Concat,
    /// The channels of the node's input from `start` on, as many as its shape has: a view as well.
    Slice {
        /// First channel.
        start: usize,
    },
    /// The elements of the node's inputs one after the other, as one row `[1, 1, 1, total]`: the inputs are written in
    /// place.
    Flatten,
    /// A piece of the node's input, which is a row, in the node's shape: the elements from `offset` on. A view.
    Part {
        /// First element.
        offset: usize,
    },
    /// The elements of the node's input in another shape: a view, unless the number of batch items changes and these do
    /// not follow one another without a gap. Then the input is copied first.
    Reshape,
    /// Gives a weight (second input) a new value (first input), once a run has succeeded.
    Assign,
    /// The result of an operation.
    Op(Arc<dyn Op>),
}

/// The part of a training step that a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Phase {
    /// From the inputs to the loss.
    #[default]
    Forward,
    /// From the loss to the gradients, with what the backward pass computes again.
    Backward,
    /// From the gradients to the new weights.
    Update,
}

/// One tensor of the graph and how it comes about.
#[derive(Clone, Debug)]
pub struct Node {
    /// What the node is.
    pub kind: Kind,
    /// The nodes it reads.
    pub inputs: Vec<NodeId>,
    /// The shape of its tensor.
    pub shape: Shape,
    /// The layer's name; for inputs and weights the name they are given under.
    pub name: String,
    /// The part of a training step that it belongs to.
    pub phase: Phase,
}

/// Why a graph could not be built, or not planned for a target.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// An operation does not take these shapes.
    #[error("layer {layer}: {op} cannot take {shapes}: {reason}")]
    Shape {
        /// Name of the layer.
        layer: String,
        /// Name of the operation.
        op: &'static str,
        /// The shapes it was given.
        shapes: String,
        /// What it would need.
        reason: String,
    },
    /// An operation cannot be differentiated.
    #[error("layer {layer}: {op} has no gradient")]
    NoGradient {
        /// Name of the layer.
        layer: String,
        /// Name of the operation.
        op: &'static str,
    },
    /// One weight was asked for with two shapes.
    #[error("weight {name} is used as {first} and as {second}")]
    ParamShape {
        /// The weight's name.
        name: String,
        /// The shape it was first used with.
        first: Shape,
        /// The other shape.
        second: Shape,
    },
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

/// A network: nodes in topological order, written once and turned into a [`crate::graph::Plan`].
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    params: BTreeMap<String, NodeId>,
    marks: Vec<(String, NodeId)>,
    scope: Vec<String>,
    phase: Phase,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// All nodes, inputs before users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The shape of a node's tensor.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.nodes[id.0].shape
    }

    /// The dimensions in which checkpoints store a weight. For other nodes those of their shape.
    pub fn dims(&self, id: NodeId) -> &[usize] {
        match &self.node(id).kind {
            Kind::Param { dims } => dims,
            _ => &self.node(id).shape.0,
        }
    }

    /// The weights used so far, by name.
    pub fn params(&self) -> &BTreeMap<String, NodeId> {
        &self.params
    }

    /// Gives `id` the name of the current scope, as the output of that module, and returns it.
    pub fn mark(&mut self, id: NodeId) -> NodeId {
        self.marks.push((self.scoped(""), id));
        id
    }

    /// The outputs of modules by name, in the order they were marked; a module applied twice is here twice.
    pub fn marks(&self) -> &[(String, NodeId)] {
        &self.marks
    }

    /// Appends a node as it is.
    pub(crate) fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// Appends a node, which belongs to the present phase.
    fn add(&mut self, kind: Kind, inputs: &[NodeId], shape: Shape, name: String) -> NodeId {
        self.push(Node { kind, inputs: inputs.to_vec(), shape, name, phase: self.phase })
    }

    /// Runs `build`; the nodes that it adds belong to `phase`.
    pub(crate) fn in_phase<T>(&mut self, phase: Phase, build: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.phase, phase);
        let result = build(self);
        self.phase = before;
        result
    }

    /// A tensor that every run is given under `name`.
    pub fn input(&mut self, name: &str, shape: Shape) -> NodeId {
        self.add(Kind::Input, &[], shape, name.to_owned())
    }

    /// The weight `name`, prefixed with the current scope; asking twice gives the same node. `dims` are the dimensions
    /// in which checkpoints store it, such as `[c]` for a bias and `[out, in]` for a linear layer; [`Shape::from_dims`]
    /// says what shape they stand for.
    ///
    /// # Errors
    /// If the weight is already in use with another shape, or has a number of dimensions that no weight has.
    pub fn param(&mut self, name: &str, dims: impl AsRef<[usize]>) -> Result<NodeId, GraphError> {
        let (name, dims) = (self.scoped(name), dims.as_ref());
        let Some(shape) = Shape::from_dims(dims) else {
            let reason = format!("a weight cannot have the dimensions {dims:?}");
            return Err(shape_error(&name, "weight", &[], reason));
        };
        if let Some(&id) = self.params.get(&name) {
            let first = self.shape(id);
            if first != shape {
                return Err(GraphError::ParamShape { name, first, second: shape });
            }
            return Ok(id);
        }
        let id = self.add(Kind::Param { dims: dims.to_vec() }, &[], shape, name.clone());
        self.params.insert(name, id);
        Ok(id)
    }

    /// Runs `build` with `name` added to the prefix of every layer and weight it makes.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn scope<T>(
        &mut self,
        name: &str,
        build: impl FnOnce(&mut Self) -> Result<T, GraphError>,
    ) -> Result<T, GraphError> {
        self.scope.push(name.to_owned());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// `name` under the current scope, as checkpoints write it.
    pub fn scoped(&self, name: &str) -> String {
        let scope = self.scope.iter().map(String::as_str);
        let parts: Vec<&str> = scope.chain([name]).filter(|part| !part.is_empty()).collect();
        parts.join(".")
    }

    /// Applies an operation; `name` is added to the scope to name the layer.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if the operation does not take these inputs.
    pub fn apply(&mut self, name: &str, op: impl Op, inputs: &[NodeId]) -> Result<NodeId, GraphError> {
        let shapes: Vec<Shape> = inputs.iter().map(|&id| self.shape(id)).collect();
        let layer = self.scoped(name);
        let shape = op.infer(&shapes).map_err(|reason| shape_error(&layer, op.name(), &shapes, reason))?;
        Ok(self.add(Kind::Op(Arc::new(op)), inputs, shape, layer))
    }

    /// The channel concatenation of `parts`, which costs nothing: the parts are written side by side.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if the parts differ in batch, height or width.
    pub fn concat(&mut self, name: &str, parts: &[NodeId]) -> Result<NodeId, GraphError> {
        let shapes: Vec<Shape> = parts.iter().map(|&id| self.shape(id)).collect();
        let layer = self.scoped(name);
        let fail = |reason: &str| Err(shape_error(&layer, "concat", &shapes, reason.to_owned()));
        let Some(first) = shapes.first() else {
            return fail("there is nothing to concatenate");
        };
        let same = |s: &Shape| s.n() == first.n() && s.h() == first.h() && s.w() == first.w();
        if !shapes.iter().all(same) {
            return fail("batch, height and width must agree");
        }
        let channels = shapes.iter().map(Shape::c).sum();
        let shape = Shape::new(first.n(), channels, first.h(), first.w());
        Ok(self.add(Kind::Concat, parts, shape, layer))
    }
}

impl Graph {
    /// `count` channels of `x` from `start` on, as a view.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if `x` has not that many.
    pub fn slice(&mut self, name: &str, x: NodeId, start: usize, count: usize) -> Result<NodeId, GraphError> {
        let shape = self.shape(x);
        let layer = self.scoped(name);
        if count == 0 || start + count > shape.c() {
            let reason = format!("channels {start}..{} are not all there", start + count);
            return Err(shape_error(&layer, "slice", &[shape], reason));
        }
        let part = Shape::new(shape.n(), count, shape.h(), shape.w());
        Ok(self.add(Kind::Slice { start }, &[x], part, layer))
    }

    /// The elements of `x`, in their order, in another shape: a view.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if `shape` has another number of elements.
    pub fn reshape(&mut self, name: &str, x: NodeId, shape: Shape) -> Result<NodeId, GraphError> {
        let given = self.shape(x);
        let layer = self.scoped(name);
        if given.numel() != shape.numel() {
            let reason = format!("{shape} has another number of elements");
            return Err(shape_error(&layer, "reshape", &[given], reason));
        }
        Ok(self.add(Kind::Reshape, &[x], shape, layer))
    }
}

/// Rows of many tensors, for what is done to all weights at once; and weights that runs change.
impl Graph {
    /// The elements of `parts` one after the other, `[1, 1, 1, total]`.
    pub fn flatten(&mut self, name: &str, parts: &[NodeId]) -> NodeId {
        let total = parts.iter().map(|&id| self.shape(id).numel()).sum();
        let shape = Shape::new(1, 1, 1, total);
        self.add(Kind::Flatten, parts, shape, self.scoped(name))
    }

    /// `weight` is `value` from the next run on. All weights change together, after a run whose outputs are finite.
    ///
    /// # Errors
    /// [`GraphError::Shape`] if the shapes differ or `weight` is not a weight.
    pub fn assign(&mut self, weight: NodeId, value: NodeId) -> Result<(), GraphError> {
        let (shape, new) = (self.shape(weight), self.shape(value));
        let name = self.node(weight).name.clone();
        if shape != new || !matches!(self.node(weight).kind, Kind::Param { .. }) {
            let reason = "a weight and a new value of its shape are needed".to_owned();
            return Err(shape_error(&name, "assign", &[shape, new], reason));
        }
        self.add(Kind::Assign, &[value, weight], shape, name);
        Ok(())
    }

    /// The graph with the weights `names` as parts of one weight `row`, `[1, 1, 1, total]`, in their order, so that an
    /// optimiser changes all of them in one operation. [`Rowed`] also says where the row, its parts and `nodes` are in
    /// the new graph.
    ///
    /// # Panics
    /// If a name is not that of a weight of the graph.
    pub(crate) fn with_weights_in_a_row(&self, row: &str, names: &[String], nodes: &[NodeId]) -> Rowed {
        let ids: Vec<NodeId> = names.iter().map(|name| self.params[name]).collect();
        let total = ids.iter().map(|&id| self.shape(id).numel()).sum();
        let mut graph = Self::new();
        let shape = Shape::new(1, 1, 1, total);
        let row_id = graph.add(Kind::Param { dims: shape.0.to_vec() }, &[], shape, row.to_owned());
        graph.params = self.params.iter().map(|(name, id)| (name.clone(), NodeId(id.0 + 1))).collect();
        graph.params.insert(row.to_owned(), row_id);
        graph.marks = self.marks.iter().map(|(name, id)| (name.clone(), NodeId(id.0 + 1))).collect();
        for node in &self.nodes {
            let inputs = node.inputs.iter().map(|id| NodeId(id.0 + 1)).collect();
            graph.push(Node { inputs, ..node.clone() });
        }
        let mut offset = 0;
        for id in &ids {
            let node = &mut graph.nodes[id.0 + 1];
            (node.kind, node.inputs) = (Kind::Part { offset }, vec![row_id]);
            offset += node.shape.numel();
        }
        let moved = |ids: &[NodeId]| ids.iter().map(|id| NodeId(id.0 + 1)).collect();
        Rowed { row: row_id, parts: moved(&ids), nodes: moved(nodes), graph }
    }
}

/// What [`Graph::with_weights_in_a_row`] gives.
#[derive(Debug)]
pub(crate) struct Rowed {
    /// The graph.
    pub graph: Graph,
    /// The weight that holds all of them.
    pub row: NodeId,
    /// Its parts, the former weights.
    pub parts: Vec<NodeId>,
    /// The new places of the nodes that were asked for.
    pub nodes: Vec<NodeId>,
}

fn shape_error(layer: &str, op: &'static str, shapes: &[Shape], reason: String) -> GraphError {
    let shapes: Vec<String> = shapes.iter().map(Shape::to_string).collect();
    GraphError::Shape { layer: layer.to_owned(), op, shapes: shapes.join(", "), reason }
}
