//! An image as f64 values, and the separable filter that SSIM and VIF share.

use super::Grey;

/// Row-major f64 values.
#[derive(Debug, Clone)]
pub(super) struct Plane {
    pub width: usize,
    pub height: usize,
    pub data: Vec<f64>,
}

impl From<&Grey> for Plane {
    fn from(grey: &Grey) -> Self {
        let (width, height) = grey.size();
        let data = grey.levels().iter().map(|&v| f64::from(v)).collect();
        Self { width, height, data }
    }
}

impl Plane {
    /// The rows from the top.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks_exact(self.width)
    }

    /// Mean of all values.
    pub(crate) fn mean(&self) -> f64 {
        self.data.iter().sum::<f64>() / self.data.len() as f64
    }

    /// The plane with its mean taken off.
    pub(crate) fn centred(&self) -> Plane {
        let mean = self.mean();
        Plane { data: self.data.iter().map(|v| v - mean).collect(), ..*self }
    }

    /// `f` of each pair of values; both planes are of one size.
    pub(crate) fn zip(&self, other: &Plane, f: impl Fn(f64, f64) -> f64) -> Plane {
        let pairs = self.data.iter().zip(&other.data);
        Plane { data: pairs.map(|(&x, &y)| f(x, y)).collect(), ..*self }
    }

    /// Correlation with the symmetric kernel `taps taps^T`, only where it fits: `taps.len() - 1` shorter on each side.
    pub(crate) fn filter_valid(&self, taps: &[f64]) -> Plane {
        let (width, height) = (self.width - taps.len() + 1, self.height - taps.len() + 1);
        let mut along_rows = Vec::with_capacity(width * self.height);
        for row in self.rows() {
            along_rows
                .extend(row.windows(taps.len()).map(|window| window.iter().zip(taps).map(|(v, t)| v * t).sum::<f64>()));
        }
        let mut data = vec![0.0; width * height];
        for (y, out) in data.chunks_exact_mut(width).enumerate() {
            for (row, tap) in along_rows[y * width..].chunks_exact(width).zip(taps) {
                for (o, v) in out.iter_mut().zip(row) {
                    *o += v * tap;
                }
            }
        }
        Plane { width, height, data }
    }

    /// Every second pixel of every second row, the first one kept.
    pub(crate) fn every_second(&self) -> Plane {
        let rows = self.rows().step_by(2);
        Plane {
            width: self.width.div_ceil(2),
            height: self.height.div_ceil(2),
            data: rows.flat_map(|r| r.iter().step_by(2)).copied().collect(),
        }
    }
}

/// First and second moments of two planes under a window.
pub(super) struct Moments {
    pub mean_x: Plane,
    pub mean_y: Plane,
    /// E\[x^2\] - E\[x\]^2
    pub var_x: Plane,
    /// E\[y^2\] - E\[y\]^2
    pub var_y: Plane,
    /// E\[xy\] - E\[x\]E\[y\]
    pub covariance: Plane,
}

impl Moments {
    /// Moments under the window `taps taps^T` (`taps` sum to 1), at each place where it fits.
    pub(crate) fn under(taps: &[f64], x: &Plane, y: &Plane) -> Self {
        let (mean_x, mean_y) = (x.filter_valid(taps), y.filter_valid(taps));
        let central = |u: &Plane, v: &Plane, mean_u: &Plane, mean_v: &Plane| {
            let raw = u.zip(v, |p, q| p * q).filter_valid(taps);
            raw.zip(&mean_u.zip(mean_v, |p, q| p * q), |p, q| p - q)
        };
        Self {
            var_x: central(x, x, &mean_x, &mean_x),
            var_y: central(y, y, &mean_y, &mean_y),
            covariance: central(x, y, &mean_x, &mean_y),
            mean_x,
            mean_y,
        }
    }
}
