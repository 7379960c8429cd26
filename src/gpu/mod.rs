//! The GPU: adapters, kernels, buffers, launches. This is the only room that names wgpu; it knows nothing of graphs.

mod adapter;
mod launch;
mod pipeline;
mod program;
mod resolve;
mod shader;
mod signal;

pub use adapter::{AdapterReport, Gpu, GpuError, GpuTraits, adapters};
pub use launch::{Bind, Kernel, Launch, Operand, Use, Value};
pub use program::{Buffer, Call, Program, Recorder};
#[cfg(test)]
pub(crate) use resolve::check;
