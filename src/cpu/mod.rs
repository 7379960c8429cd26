//! The CPU executor and what its kernels share.

pub mod executor;
pub mod view;
