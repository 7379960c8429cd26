//! Structural similarity.

use super::plane::{Moments, Plane};

/// Side of the uniform window.
const SIDE: usize = 7;

/// Mean SSIM of two images of levels 0..=255, at most 1 (Wang et al. 2004; the variant of scikit-image's default).
///
/// Uniform 7x7 window, sample variances (n / (n - 1)), K1 = 0.01, K2 = 0.03, data range 255; the mean is over the
/// pixels whose window lies inside the image.
pub(super) fn ssim(x: &Plane, y: &Plane) -> f64 {
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let n = (SIDE * SIDE) as f64;
    let sample = n / (n - 1.0);
    let m = Moments::under(&[1.0 / SIDE as f64; SIDE], x, y);
    let total: f64 = (0..m.mean_x.data.len())
        .map(|i| {
            let (mx, my) = (m.mean_x.data[i], m.mean_y.data[i]);
            let (vx, vy) = (sample * m.var_x.data[i], sample * m.var_y.data[i]);
            let luminance = (2.0 * mx * my + c1) / (mx * mx + my * my + c1);
            let structure = (2.0 * sample * m.covariance.data[i] + c2) / (vx + vy + c2);
            luminance * structure
        })
        .sum();
    total / m.mean_x.data.len() as f64
}
