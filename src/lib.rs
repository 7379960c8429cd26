//! medfuse: multimodal medical image fusion on any GPU, without CUDA.

pub mod cpu;
pub mod imaging;
pub mod metrics;
pub mod tensor;
pub mod weights;
