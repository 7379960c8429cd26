//! The graph of a network and the plan that runs it.

pub mod fuse;
pub mod grad;
pub mod ir;
pub mod place;
pub mod plan;

pub use grad::{gradients, gradients_in_segments};
pub use ir::{Graph, GraphError, Kind, Node, NodeId, Rowed};
pub use plan::{Plan, PlanError};
