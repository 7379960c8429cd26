//! The GPU: adapters, kernels, buffers, launches. No other room names wgpu, and this one knows nothing of graphs.

mod adapter;
mod launch;
mod pipeline;
mod program;
mod resolve;
mod shader;
mod signal;

pub(crate) use adapter::adapters;
pub use adapter::{AdapterReport, Gpu, GpuError, GpuTraits};
pub use launch::{Bind, Kernel, Launch, Operand, Use, Value};
pub(crate) use program::{Buffer, Call, Program, Recorder};
#[cfg(test)]
pub(crate) use resolve::check;
#[cfg(test)]
pub(crate) use shader::kernel_names;
