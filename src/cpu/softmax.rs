//! Softmax of a row and its gradient.

use super::math::exp;
use super::wide::wide_fn;

wide_fn! {
    /// Softmax of one row, in place.
    pub(crate) fn softmax_row<'a>(row: &'a mut [f32]) -> () {
        let mut top = f32::NEG_INFINITY;
        for &v in &*row {
            top = if v > top { v } else { top };
        }
        for v in &mut *row {
            *v = exp(*v - top);
        }
        let mut total = 0.0;
        for &v in &*row {
            total += f64::from(v);
        }
        let scale = (1.0 / total) as f32;
        for v in row {
            *v *= scale;
        }
    }
}

wide_fn! {
    /// The gradient with respect to the scores of one row, times `scale`. `softmax` is the softmax of the scores;
    /// `slopes` holds the gradient with respect to that and is overwritten with the result.
    pub(crate) fn softmax_row_backward<'a>(slopes: &'a mut [f32], softmax: &'a [f32], scale: f32) -> () {
        let mut centre = 0f64;
        for (slope, y) in slopes.iter().zip(softmax) {
            centre += f64::from(slope * y);
        }
        let centre = centre as f32;
        for (slope, y) in slopes.iter_mut().zip(softmax) {
            *slope = y * (*slope - centre) * scale;
        }
    }
}
