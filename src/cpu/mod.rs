//! Mathematics on slices and views, on all threads and with the widest vectors of the machine: what operations compute
//! with on the CPU.

pub mod activation;
pub mod conv;
pub(crate) mod math;
pub(crate) mod moments;
pub(crate) mod softmax;
pub mod view;
pub(crate) mod wide;
