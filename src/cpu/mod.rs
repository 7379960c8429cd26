//! Mathematics on slices and views, on all threads and the widest vectors: what operations compute on the CPU with.

pub mod activation;
pub mod conv;
pub(crate) mod math;
pub(crate) mod moments;
pub(crate) mod softmax;
pub mod view;
pub(crate) mod wide;
