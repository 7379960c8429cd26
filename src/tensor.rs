//! Shapes and host tensors: plain row-major `f32`, NCHW.

use std::fmt;

/// The shape of a tensor in a graph: batch, channels, height, width. Vectors are `[n, c, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape(pub [usize; 4]);

impl Shape {
    /// A shape from batch, channels, height and width.
    pub const fn new(n: usize, c: usize, h: usize, w: usize) -> Self {
        Self([n, c, h, w])
    }

    /// Batch size.
    pub const fn n(&self) -> usize {
        self.0[0]
    }

    /// Channels.
    pub const fn c(&self) -> usize {
        self.0[1]
    }

    /// Height in pixels.
    pub const fn h(&self) -> usize {
        self.0[2]
    }

    /// Width in pixels.
    pub const fn w(&self) -> usize {
        self.0[3]
    }

    /// Pixels of one channel, `h * w`.
    pub const fn plane(&self) -> usize {
        self.0[2] * self.0[3]
    }

    /// Elements of one batch item, `c * h * w`.
    pub const fn item(&self) -> usize {
        self.0[1] * self.plane()
    }

    /// Elements in all.
    pub const fn numel(&self) -> usize {
        self.0[0] * self.item()
    }

    /// The four-dimensional reading of PyTorch dimensions: `[c]` is a channel vector `[1, c, 1, 1]`,
    /// `[n, c]` is `[n, c, 1, 1]`, `[n, 1, c]` (a sequence of one) is `[n, c, 1, 1]`, a scalar is all ones.
    /// `None` for anything else that has not four dimensions.
    pub fn from_dims(dims: &[usize]) -> Option<Self> {
        match *dims {
            [] => Some(Self([1, 1, 1, 1])),
            [c] => Some(Self([1, c, 1, 1])),
            [n, c] | [n, 1, c] => Some(Self([n, c, 1, 1])),
            [n, c, h, w] => Some(Self([n, c, h, w])),
            _ => None,
        }
    }
}

impl AsRef<[usize]> for Shape {
    fn as_ref(&self) -> &[usize] {
        &self.0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [n, c, h, w] = self.0;
        write!(f, "{n}x{c}x{h}x{w}")
    }
}

/// Where a tensor lies in its buffer, in elements. The elements of one batch item are dense, channel by channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Shape of the tensor.
    pub shape: Shape,
    /// First element.
    pub offset: usize,
    /// Elements from one batch item to the next.
    pub batch_stride: usize,
}

impl Slot {
    /// A tensor that has its buffer to itself.
    pub const fn contiguous(shape: Shape) -> Self {
        Self { shape, offset: 0, batch_stride: shape.item() }
    }

    /// Whether the items follow one another without a gap.
    pub const fn is_contiguous(&self) -> bool {
        self.shape.n() <= 1 || self.batch_stride == self.shape.item()
    }

    /// `count` of its channels from `first` on.
    pub const fn channels(self, first: usize, count: usize) -> Self {
        let Shape([n, _, h, w]) = self.shape;
        Self { shape: Shape::new(n, count, h, w), offset: self.offset + first * h * w, ..self }
    }

    /// `count` of its batch items from `first` on.
    pub const fn items(self, first: usize, count: usize) -> Self {
        let Shape([_, c, h, w]) = self.shape;
        Self { shape: Shape::new(count, c, h, w), offset: self.offset + first * self.batch_stride, ..self }
    }
}

/// A tensor in host memory with the dimensions its file gave it, row-major.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    dims: Vec<usize>,
    data: Vec<f32>,
}

impl Tensor {
    /// A tensor of these dimensions.
    ///
    /// # Panics
    /// If `data` has not exactly the product of `dims` elements.
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        let dims = dims.into();
        assert_eq!(dims.iter().product::<usize>(), data.len(), "data does not fill {dims:?}");
        Self { dims, data }
    }

    /// A tensor full of zeros.
    pub fn zeros(dims: impl Into<Vec<usize>>) -> Self {
        let dims = dims.into();
        let data = vec![0.0; dims.iter().product()];
        Self { dims, data }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The dimensions read as NCHW, see [`Shape::from_dims`].
    pub fn shape(&self) -> Option<Shape> {
        Shape::from_dims(&self.dims)
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The elements, row-major, to be written.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The elements, by value.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}
