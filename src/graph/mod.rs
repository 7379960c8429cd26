//! The graph of a network: nodes, what an operation is, and the plan that is made of a graph to run it.

mod copy;
pub(crate) mod fuse;
mod ir;
mod lower;
mod op;
mod place;
mod plan;

pub use copy::Copy;
pub use ir::{Graph, GraphError, Kind, Node, NodeId, Phase, Rowed};
pub use op::{Backward, Gradients, Lowered, MAX_LOOP_ROUNDS, Op, Prepared, Target, Work, operands};
pub use plan::{Buffer, Life, Location, Plan, PlanError, Step};
