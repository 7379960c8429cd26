//! The CPU executor and what its kernels share.

pub mod conv;
pub mod executor;
pub mod math;
pub mod moments;
pub mod view;
pub(crate) mod wide;
