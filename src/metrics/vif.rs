//! Visual information fidelity in the pixel domain.

use super::plane::{Moments, Plane};

/// Below this a variance counts as zero; it also keeps the divisions finite.
const EPSILON: f64 = 1e-10;
/// Variance of the visual noise.
const NOISE: f64 = 2.0;

/// VIFp of `distorted` against `reference` (Sheikh and Bovik 2006, their pixel-domain release): the share of the
/// reference's information that is left, 1 for equal images, 1 too for a constant reference (0/0).
///
/// Four scales; the window of scale s is a Gaussian of 2^(5-s) + 1 taps with a sigma of a fifth of that; before scales
/// 2 to 4 both images are filtered with it and every second pixel is kept.
/// Both sides are at least [`super::MIN_SIDE`].
pub(super) fn vif(reference: &Plane, distorted: &Plane) -> f64 {
    // Variances do not change, and flat areas far from zero lose no digits to cancellation.
    let (mut x, mut y) = (reference.centred(), distorted.centred());
    let (mut kept, mut whole) = (0.0, 0.0);
    for scale in 1..=4 {
        let taps = gaussian((1 << (5 - scale)) + 1);
        if scale > 1 {
            x = x.filter_valid(&taps).every_second();
            y = y.filter_valid(&taps).every_second();
        }
        let m = Moments::under(&taps, &x, &y);
        for i in 0..m.covariance.data.len() {
            let (k, w) = information(m.var_x.data[i], m.var_y.data[i], m.covariance.data[i]);
            kept += k;
            whole += w;
        }
    }
    let share = kept / whole;
    if share.is_nan() { 1.0 } else { share }
}

/// The information (log10 units) of one place that comes through the distortion, and that of the reference there.
///
/// The distortion is modelled as a gain and additive noise, with the reference implementation's exceptions.
fn information(var_x: f64, var_y: f64, covariance: f64) -> (f64, f64) {
    let (mut var_x, var_y) = (var_x.max(0.0), var_y.max(0.0));
    let mut gain = covariance / (var_x + EPSILON);
    let mut noise = var_y - gain * covariance;
    if var_x < EPSILON {
        (gain, noise, var_x) = (0.0, var_y, 0.0);
    }
    if var_y < EPSILON {
        (gain, noise) = (0.0, 0.0);
    }
    if gain < 0.0 {
        (gain, noise) = (0.0, var_y);
    }
    let noise = noise.max(EPSILON);
    let kept = (1.0 + gain * gain * var_x / (noise + NOISE)).log10();
    (kept, (1.0 + var_x / NOISE).log10())
}

/// `length` taps of a Gaussian with sigma `length / 5`, normalised to sum 1.
fn gaussian(length: usize) -> Vec<f64> {
    let sigma = length as f64 / 5.0;
    let centre = (length - 1) as f64 / 2.0;
    let taps: Vec<f64> = (0..length).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
    let sum: f64 = taps.iter().sum();
    taps.into_iter().map(|t| t / sum).collect()
}
