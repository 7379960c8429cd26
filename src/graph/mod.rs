//! The graph of a network, what an operation in it is, and the plan that runs it.

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
pub use plan::{Buffer, Life, Location, Plan, Step};
