//! The CPU executor and what its kernels share.

pub mod view;
