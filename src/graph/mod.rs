//! The graph of a network: nodes, what an operation is, and the plan that is made of a graph to run it.

mod copy;
pub(crate) mod fuse;
mod ir;
mod lower;
mod op;
mod place;
mod plan;

pub use copy::Copy;
pub use ir::{Graph, GraphError, Kind, Node, NodeId, Phase};
pub use op::{Backward, Gradients, Lowered, Op, Prepared, Target, Work};
#[cfg(test)]
pub(crate) use op::{MAX_LOOP_ROUNDS, operands};
pub use plan::{Buffer, Life, Location, Plan, Step};
