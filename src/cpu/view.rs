//! Views of tensors inside larger buffers: how a concatenation is never copied.
//!
//! A view is a dense CHW block per batch item; items lie `batch_stride` elements apart. A tensor that is one part of a
//! channel concatenation starts at an offset of the whole and has the whole's batch stride.

use crate::tensor::Shape;

/// A tensor to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The buffer from the view's first element on.
    pub data: &'a [f32],
    /// Shape of the view.
    pub shape: Shape,
    /// Elements from one batch item to the next.
    pub batch_stride: usize,
}

impl<'a> View<'a> {
    /// A view of a whole contiguous tensor.
    pub fn contiguous(data: &'a [f32], shape: Shape) -> Self {
        Self { data, shape, batch_stride: shape.item() }
    }

    /// The `c * h * w` elements of batch item `n`.
    pub fn item(&self, n: usize) -> &'a [f32] {
        &self.data[n * self.batch_stride..][..self.shape.item()]
    }

    /// The `h * w` elements of channel `c` of batch item `n`.
    pub fn plane(&self, n: usize, c: usize) -> &'a [f32] {
        let plane = self.shape.plane();
        &self.data[n * self.batch_stride + c * plane..][..plane]
    }
}

/// A tensor to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The buffer from the view's first element on.
    pub data: &'a mut [f32],
    /// Shape of the view.
    pub shape: Shape,
    /// Elements from one batch item to the next.
    pub batch_stride: usize,
}

impl<'a> ViewMut<'a> {
    /// A view of a whole contiguous tensor.
    pub fn contiguous(data: &'a mut [f32], shape: Shape) -> Self {
        Self { data, shape, batch_stride: shape.item() }
    }

    /// The `c * h * w` elements of batch item `n`.
    pub fn item(&mut self, n: usize) -> &mut [f32] {
        &mut self.data[n * self.batch_stride..][..self.shape.item()]
    }
}
