//! The GPU executor. This is the only room that names wgpu.

mod adapter;
mod executor;
mod pipeline;
pub mod shader;

pub use adapter::{AdapterReport, Gpu, GpuError, adapters};
pub use executor::GpuExecutable;
