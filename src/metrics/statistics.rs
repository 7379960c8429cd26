//! Metrics of histograms and of whole-image moments: no neighbourhoods.

use super::{Grey, plane::Plane};

/// Entropy in bits of the histogram of 256 levels (Shannon), 0..=8.
pub(super) fn entropy(image: &Grey) -> f64 {
    let mut counts = [0u32; 256];
    for &level in image.levels() {
        counts[usize::from(level)] += 1;
    }
    let n = image.levels().len() as f64;
    let bits = |&count: &u32| -> f64 {
        let p = f64::from(count) / n;
        p * p.log2()
    };
    0.0 - counts.iter().filter(|&&c| c > 0).map(bits).sum::<f64>()
}

/// Mutual information of the levels of two images of one size, in nats (Qu et al. 2002 without normalisation), at
/// least 0.
pub(super) fn mutual_information(x: &Grey, y: &Grey) -> f64 {
    let mut joint = vec![0u32; 256 * 256];
    let (mut count_x, mut count_y) = ([0u32; 256], [0u32; 256]);
    for (&u, &v) in x.levels().iter().zip(y.levels()) {
        joint[usize::from(u) * 256 + usize::from(v)] += 1;
        count_x[usize::from(u)] += 1;
        count_y[usize::from(v)] += 1;
    }
    let n = x.levels().len() as f64;
    let term = |(i, &count): (usize, &u32)| {
        let independent = f64::from(count_x[i / 256]) * f64::from(count_y[i % 256]) / n;
        f64::from(count) / n * (f64::from(count) / independent).ln()
    };
    let seen = joint.iter().enumerate().filter(|(_, count)| **count > 0);
    seen.map(term).sum()
}

/// Population standard deviation.
pub(super) fn standard_deviation(image: &Plane) -> f64 {
    let centred = image.centred();
    (centred.data.iter().map(|v| v * v).sum::<f64>() / centred.data.len() as f64).sqrt()
}

/// Pearson correlation, -1..=1; NaN if one of the planes is constant.
fn pearson(x: &Plane, y: &Plane) -> f64 {
    let (x, y) = (x.centred(), y.centred());
    let dot = |u: &Plane, v: &Plane| -> f64 { u.data.iter().zip(&v.data).map(|(p, q)| p * q).sum() };
    dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
}

/// CC: mean of the correlations of the fused image `f` with its sources, -1..=1.
pub(super) fn correlation_coefficient(a: &Plane, b: &Plane, f: &Plane) -> f64 {
    (pearson(a, f) + pearson(b, f)) / 2.0
}

/// SCD: each source correlated with what is left of the fused image `f` without the other one, summed, -2..=2
/// (Aslantas and Bendes 2015).
pub(super) fn scd(a: &Plane, b: &Plane, f: &Plane) -> f64 {
    let difference = |x: &Plane, y: &Plane| x.zip(y, |p, q| p - q);
    pearson(a, &difference(f, b)) + pearson(b, &difference(f, a))
}

/// Mean over the two sources of the mean squared difference to `f`.
pub(super) fn mse(a: &Plane, b: &Plane, f: &Plane) -> f64 {
    let squares = |x: &Plane| x.zip(f, |p, q| (p - q) * (p - q)).mean();
    (squares(a) + squares(b)) / 2.0
}

/// Peak signal to noise ratio in dB for a mean squared error; the peak is the maximum of the fused image, not 255.
pub(super) fn psnr(fused: &Grey, mse: f64) -> f64 {
    let peak = f64::from(fused.levels().iter().copied().max().unwrap_or(0));
    10.0 * (peak * peak / mse).log10()
}
