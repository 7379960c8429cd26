//! The operations: a file or folder for each, with its shape rule, its gradient rule, and how it is computed on the CPU
//! and on a GPU.

pub mod adjoint;
pub mod attention;
pub mod batch_norm;
pub mod conv2d;
pub mod dropout;
mod grad;
pub mod group_norm;
pub mod linear;
pub mod pointwise;
pub mod positional_encoding;
pub mod reduce;
pub mod reduce_sum;
pub mod resize;
pub mod softmax;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub(crate) use grad::gradient_name;
pub use grad::{gradients, gradients_in_segments};
