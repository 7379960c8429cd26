//! Metrics of differences between neighbours.

use super::plane::Plane;
use std::f64::consts::FRAC_PI_2;

/// SF: root of the mean squared horizontal difference plus the mean squared vertical one (Eskicioglu and Fisher
/// 1995), each mean over the differences that exist.
pub(super) fn spatial_frequency(f: &Plane) -> f64 {
    let horizontal: f64 = f.rows().map(|r| squares(&r[1..], r)).sum();
    let vertical = squares(&f.data[f.width..], &f.data);
    let (w, h) = (f.width as f64, f.height as f64);
    (horizontal / ((w - 1.0) * h) + vertical / (w * (h - 1.0))).sqrt()
}

/// Sum of squared differences over the shorter of two slices.
fn squares(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(p, q)| (p - q) * (p - q)).sum()
}

/// AG: mean of sqrt((gx^2 + gy^2) / 2), by central differences, one-sided at the borders.
pub(super) fn average_gradient(f: &Plane) -> f64 {
    let mut total = 0.0;
    for y in 0..f.height {
        for x in 0..f.width {
            let at = |x: usize, y: usize| f.data[y * f.width + x];
            let (left, right) = (x.saturating_sub(1), (x + 1).min(f.width - 1));
            let (up, down) = (y.saturating_sub(1), (y + 1).min(f.height - 1));
            let gx = (at(right, y) - at(left, y)) / (right - left) as f64;
            let gy = (at(x, down) - at(x, up)) / (down - up) as f64;
            total += ((gx * gx + gy * gy) / 2.0).sqrt();
        }
    }
    total / f.data.len() as f64
}

/// Qabf: the share of the sources' edges that the fused image `f` keeps in strength and direction, each pixel weighted
/// by the source's edge strength, 0..=1 (Xydeas and Petrovic 2000). NaN if neither source has an edge.
pub(super) fn qabf(a: &Plane, b: &Plane, f: &Plane) -> f64 {
    let (edges_a, edges_b, edges_f) = (sobel(a), sobel(b), sobel(f));
    let (mut kept, mut whole) = (0.0, 0.0);
    for ((ea, eb), ef) in edges_a.iter().zip(&edges_b).zip(&edges_f) {
        kept += preserved(ea, ef) * ea.strength + preserved(eb, ef) * eb.strength;
        whole += ea.strength + eb.strength;
    }
    kept / whole
}

/// The gradient at one pixel.
struct Edge {
    strength: f64,
    /// Radians, -pi/2..=pi/2.
    angle: f64,
}

/// Sobel gradients; the image is continued with zeros.
fn sobel(image: &Plane) -> Vec<Edge> {
    let (w, h) = (image.width, image.height);
    let padded_width = w + 2;
    let mut padded = vec![0.0; padded_width * (h + 2)];
    for (row, target) in image.rows().zip(padded.chunks_exact_mut(padded_width).skip(1)) {
        target[1..=w].copy_from_slice(row);
    }
    let edge = |i: usize| {
        let at = |x: usize, y: usize| padded[(i / w + y) * padded_width + i % w + x];
        let gx = at(0, 0) + 2.0 * at(0, 1) + at(0, 2) - at(2, 0) - 2.0 * at(2, 1) - at(2, 2);
        let gy = at(0, 2) + 2.0 * at(1, 2) + at(2, 2) - at(0, 0) - 2.0 * at(1, 0) - at(2, 0);
        Edge { strength: (gx * gx + gy * gy).sqrt(), angle: if gx == 0.0 { FRAC_PI_2 } else { (gy / gx).atan() } }
    };
    (0..w * h).map(edge).collect()
}

/// How much of a source's edge the fused image preserves, 0..=1.
fn preserved(source: &Edge, fused: &Edge) -> f64 {
    let sigmoid = |top: f64, slope: f64, middle: f64, v: f64| top / (1.0 + (-slope * (v - middle)).exp());
    let (s, f) = (source.strength, fused.strength);
    // Equal strengths give the strength itself, not 1: the evaluator (and the widespread Matlab code) has it so.
    let strength = if s > f {
        f / s
    } else if s == f {
        f
    } else {
        s / f
    };
    let direction = 1.0 - (source.angle - fused.angle).abs() / FRAC_PI_2;
    sigmoid(0.9994, 15.0, 0.5, strength) * sigmoid(0.9879, 22.0, 0.8, direction)
}
