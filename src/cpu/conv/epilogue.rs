//! What follows a convolution's sum of products, and the rows of the output that it is written to.

use crate::cpu::activation::Activation;
use crate::cpu::view::{View, ViewMut};
use crate::tensor::Shape;
use std::marker::PhantomData;

/// What is added to a convolution's sums, and the activation after that. The default is nothing at all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Epilogue<'a> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// One value per channel, `[1, oc, 1, 1]`, or per batch item and channel, `[n, oc, 1, 1]`.
    pub channel_add: Option<View<'a>>,
    /// A tensor of the output's shape.
    pub residual: Option<View<'a>>,
    /// The function applied last.
    pub activation: Activation,
}

impl Epilogue<'_> {
    /// Panics unless all parts fit an output of this shape.
    pub(super) fn check(&self, out: Shape) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), out.c(), "one bias per output channel");
        }
        if let Some(add) = self.channel_add {
            let fits =
                (add.shape.n() == 1 || add.shape.n() == out.n()) && add.shape.c() == out.c() && add.shape.plane() == 1;
            assert!(fits, "channel_add {} does not fit {out}", add.shape);
        }
        if let Some(residual) = self.residual {
            assert_eq!(residual.shape, out, "the residual's shape");
        }
    }

    /// What is added to all pixels of channel `c` of item `n`.
    pub(super) fn offset(&self, n: usize, c: usize) -> f32 {
        let bias = self.bias.map_or(0.0, |bias| bias[c]);
        match self.channel_add {
            Some(add) if add.shape.n() == 1 => bias + add.plane(0, c)[0],
            Some(add) => bias + add.plane(n, c)[0],
            None => bias,
        }
    }
}

/// The output, which many threads write at once, each its own pixels.
pub(super) struct Output<'a> {
    data: *mut f32,
    len: usize,
    pub(super) shape: Shape,
    batch_stride: usize,
    epilogue: &'a Epilogue<'a>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for a mutable borrow; `write` asks its callers to keep the rows they write apart.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(out: ViewMut<'a>, epilogue: &'a Epilogue<'a>) -> Self {
        let end = (out.shape.n().max(1) - 1) * out.batch_stride + out.shape.item();
        assert!(end <= out.data.len(), "the output's buffer is too short");
        Self {
            data: out.data.as_mut_ptr(),
            len: out.data.len(),
            shape: out.shape,
            batch_stride: out.batch_stride,
            epilogue,
            borrow: PhantomData,
        }
    }

    /// Adds the epilogue to `sums` and writes them to channel `c` of item `n`, from `pixel` (counted row by row) on.
    ///
    /// # Safety
    /// No two threads may write the same pixels at the same time.
    #[inline(always)]
    pub(super) unsafe fn write(&self, [n, c, pixel]: [usize; 3], sums: &[f32]) {
        let within = c * self.shape.plane() + pixel;
        let start = n * self.batch_stride + within;
        assert!(within + sums.len() <= self.shape.item() && start + sums.len() <= self.len);
        // SAFETY: in bounds by the assertion; no other thread writes these pixels, as the caller promises.
        let out = unsafe { std::slice::from_raw_parts_mut(self.data.add(start), sums.len()) };
        let offset = self.epilogue.offset(n, c);
        let activation = self.epilogue.activation;
        match self.epilogue.residual {
            Some(residual) => {
                let residual = &residual.item(n)[within..][..sums.len()];
                activation.map_pair(sums, residual, out, |x, r| x + offset + r);
            }
            None => activation.map(sums, out, |x| x + offset),
        }
    }
}
