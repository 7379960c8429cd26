//! medfuse: multimodal medical image fusion on any GPU, without CUDA.

pub mod cli;
pub mod cpu;
pub mod device;
pub mod diffusion;
pub mod gpu;
pub mod graph;
pub mod imaging;
pub mod metrics;
pub mod models;
pub mod ops;
pub mod tensor;
pub mod weights;
