//! Mathematics on slices and views, on all threads and the widest vectors: what operations compute on the CPU with.

pub mod activation;
pub mod conv;
pub(crate) mod math;
pub(crate) mod moments;
pub mod view;
pub(crate) mod wide;
