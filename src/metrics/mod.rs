//! The twelve figures the fusion papers report, under the conventions of the DM-FNet evaluator.
//!
//! [`evaluate`] compares one fused image with its two sources. All three are grey: integer levels 0..=255 (see
//! [`Grey`]), computed on as f64. `docs/metrics.md` says where the literature uses other conventions.

mod edges;
mod grey;
mod plane;
mod ssim;
mod statistics;
mod vif;

pub use grey::{Grey, load_grey};

use plane::Plane;
use serde::Serialize;
use thiserror::Error;

/// The names of the metrics, in the order of [`Metrics::values`].
pub const NAMES: [&str; 12] = ["EN", "SD", "SF", "AG", "MI", "SCD", "VIFF", "Qabf", "SSIM", "PSNR", "CC", "MSE"];

/// The smallest width and height that [`evaluate`] takes, in pixels: below it the last of VIFF's four scales has no
/// window left.
pub const MIN_SIDE: usize = 41;

/// Why images could not be evaluated.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The three images are not of one size (width, height).
    #[error(
        "the sizes differ: MRI {}x{}, other source {}x{}, fused {}x{}; register and resample them to one size",
        mri.0, mri.1, other.0, other.1, fused.0, fused.1
    )]
    SizesDiffer {
        /// Size of the MRI.
        mri: (usize, usize),
        /// Size of the other source.
        other: (usize, usize),
        /// Size of the fused image.
        fused: (usize, usize),
    },
    /// A side is shorter than [`MIN_SIDE`].
    #[error("the images are {width}x{height}; VIFF needs at least {MIN_SIDE}x{MIN_SIDE} pixels")]
    TooSmall {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// The number of levels is not width times height.
    #[error("{levels} grey levels do not make an image of {width}x{height}")]
    LevelCount {
        /// Number of levels given.
        levels: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
}

/// The figures of one fused image F against its sources A (the MRI) and B.
///
/// A correlation with a constant image is undefined: CC and SCD are then NaN, as is Qabf when both sources are black
/// and PSNR when F is black and equal to both. PSNR is +inf when F equals both sources.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Metrics {
    /// Entropy of F in bits, from its histogram of 256 levels.
    #[serde(rename = "EN")]
    pub en: f64,
    /// Population standard deviation of F.
    #[serde(rename = "SD")]
    pub sd: f64,
    /// Spatial frequency of F (Eskicioglu and Fisher 1995), each direction averaged over its own differences.
    #[serde(rename = "SF")]
    pub sf: f64,
    /// Average gradient of F, by central differences.
    #[serde(rename = "AG")]
    pub ag: f64,
    /// MI(F,A) + MI(F,B): mutual information (Qu et al. 2002) in nats, not normalised.
    #[serde(rename = "MI")]
    pub mi: f64,
    /// corr(A, F-B) + corr(B, F-A): sum of the correlations of differences (Aslantas and Bendes 2015).
    #[serde(rename = "SCD")]
    pub scd: f64,
    /// VIF(A,F) + VIF(B,F): pixel-domain visual information fidelity (Sheikh and Bovik 2006), each about 0..=1.
    #[serde(rename = "VIFF")]
    pub viff: f64,
    /// Edge transfer (Xydeas and Petrovic 2000), 0..=1.
    #[serde(rename = "Qabf")]
    pub qabf: f64,
    /// SSIM(F,A) + SSIM(F,B): structural similarity (Wang et al. 2004) with a uniform 7x7 window, at most 2.
    #[serde(rename = "SSIM")]
    pub ssim: f64,
    /// 10 log10(max(F)^2 / MSE) in dB: the peak is F's own maximum.
    #[serde(rename = "PSNR")]
    pub psnr: f64,
    /// (corr(A,F) + corr(B,F)) / 2, Pearson.
    #[serde(rename = "CC")]
    pub cc: f64,
    /// Mean over both sources of the mean squared difference to F.
    #[serde(rename = "MSE")]
    pub mse: f64,
}

impl Metrics {
    /// The figures in the order of [`NAMES`].
    pub fn values(&self) -> [f64; 12] {
        [
            self.en, self.sd, self.sf, self.ag, self.mi, self.scd, self.viff, self.qabf, self.ssim, self.psnr, self.cc,
            self.mse,
        ]
    }

    /// Figures from values in the order of [`NAMES`].
    pub fn from_values(values: [f64; 12]) -> Self {
        let [en, sd, sf, ag, mi, scd, viff, qabf, ssim, psnr, cc, mse] = values;
        Self { en, sd, sf, ag, mi, scd, viff, qabf, ssim, psnr, cc, mse }
    }

    /// Name and figure, in the order of [`NAMES`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        NAMES.into_iter().zip(self.values())
    }

    /// Mean and population standard deviation of each figure over `all`; NaN where one of them is NaN or `all` is
    /// empty.
    pub fn mean_and_std(all: &[Metrics]) -> (Metrics, Metrics) {
        let n = all.len() as f64;
        let rows: Vec<[f64; 12]> = all.iter().map(Metrics::values).collect();
        let mean: [f64; 12] = std::array::from_fn(|i| rows.iter().map(|r| r[i]).sum::<f64>() / n);
        let std = std::array::from_fn(|i| {
            let squares: f64 = rows.iter().map(|r| (r[i] - mean[i]).powi(2)).sum();
            (squares / n).sqrt()
        });
        (Metrics::from_values(mean), Metrics::from_values(std))
    }
}

/// Computes all the metrics of `fused` against its sources.
///
/// The sources are interchangeable: every metric is symmetric in them.
///
/// # Errors
/// [`MetricsError::SizesDiffer`] and [`MetricsError::TooSmall`].
pub fn evaluate(mri: &Grey, other: &Grey, fused: &Grey) -> Result<Metrics, MetricsError> {
    if mri.size() != fused.size() || other.size() != fused.size() {
        return Err(MetricsError::SizesDiffer { mri: mri.size(), other: other.size(), fused: fused.size() });
    }
    let (width, height) = fused.size();
    if width < MIN_SIDE || height < MIN_SIDE {
        return Err(MetricsError::TooSmall { width, height });
    }
    let [a, b, f] = [mri, other, fused].map(Plane::from);
    let mse = statistics::mse(&a, &b, &f);
    Ok(Metrics {
        en: statistics::entropy(fused),
        sd: statistics::standard_deviation(&f),
        sf: edges::spatial_frequency(&f),
        ag: edges::average_gradient(&f),
        mi: statistics::mutual_information(fused, mri) + statistics::mutual_information(fused, other),
        scd: statistics::scd(&a, &b, &f),
        viff: vif::vif(&a, &f) + vif::vif(&b, &f),
        qabf: edges::qabf(&a, &b, &f),
        ssim: ssim::ssim(&f, &a) + ssim::ssim(&f, &b),
        psnr: statistics::psnr(fused, mse),
        cc: statistics::correlation_coefficient(&a, &b, &f),
        mse,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn grey(width: usize, height: usize, level: impl Fn(usize, usize) -> usize) -> Grey {
        let levels = (0..width * height).map(|i| level(i % width, i / width) as u8);
        Grey::new(width, height, levels.collect()).unwrap()
    }

    /// A chequerboard of flat and sawtooth fields.
    fn field(x: usize, y: usize) -> usize {
        if (x / 8 + y / 8).is_multiple_of(2) { (x * 4 + y) % 256 } else { 200 }
    }

    /// Rings that wrap around.
    fn rings(x: usize, y: usize) -> usize {
        ((x * x + y * y) / 16) % 256
    }

    fn sources(width: usize, height: usize) -> (Grey, Grey) {
        (grey(width, height, field), grey(width, height, rings))
    }

    fn assert_values(metrics: Metrics, expected: [f64; 12]) {
        for ((name, value), wanted) in metrics.iter().zip(expected) {
            let close = (value - wanted).abs() <= 1e-9 * wanted.abs().max(1.0);
            let same = value == wanted || (value.is_nan() && wanted.is_nan());
            assert!(close || same, "{name}: {value}, expected {wanted}");
        }
    }

    // The expected figures in this module were computed in numpy and scipy (convolve2d, histogram2d, gradient) from
    // the definitions, with none of this code.

    #[test]
    fn figures_of_odd_sizes_equal_numpy() {
        let (a, b) = sources(43, 57);
        let weighted = grey(43, 57, |x, y| (3 * field(x, y) + rings(x, y)) / 4);
        let expected = [
            7.273034151354381,
            50.74986773922316,
            36.023115834076464,
            11.42145700677622,
            5.796011326000739,
            1.192781454225205,
            0.6619257653540045,
            0.7469218781299625,
            1.1391315629731622,
            12.614580798096494,
            0.7582338096865213,
            2723.652182782538,
        ];
        assert_values(evaluate(&a, &b, &weighted).unwrap(), expected);
        assert_values(evaluate(&b, &a, &weighted).unwrap(), expected);
    }

    #[test]
    fn figures_at_the_smallest_height_equal_numpy() {
        let (a, b) = sources(64, 41);
        let difference = grey(64, 41, |x, y| field(x, y).abs_diff(rings(x, y)));
        let expected = [
            7.3163292635063755,
            60.61096238969259,
            55.66478752079095,
            15.60594491682562,
            5.290839895858606,
            -0.8789785208300843,
            0.2541627010618856,
            0.47533445753210907,
            0.4598218884298548,
            6.867739483962517,
            -0.06852750739357683,
            13375.388719512195,
        ];
        assert_values(evaluate(&a, &b, &difference).unwrap(), expected);
    }

    #[test]
    fn constant_images_give_the_documented_limits() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let (a, b) = sources(43, 57);
        let (flat, black) = (grey(43, 57, |_, _| 100), grey(43, 57, |_, _| 0));
        assert_values(
            evaluate(&a, &b, &flat).unwrap(),
            [
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
                -0.5692143221089543,
                0.0,
                0.1472074240388958,
                0.4302371243541981,
                2.7466950563003945,
                nan,
                5312.8859649122805,
            ],
        );
        assert_values(
            evaluate(&flat, &flat, &flat).unwrap(),
            [0.0, 0.0, 0.0, 0.0, 0.0, nan, 2.0, 0.9753327680875878, 2.0, inf, nan, 0.0],
        );
        assert_values(
            evaluate(&black, &black, &black).unwrap(),
            [0.0, 0.0, 0.0, 0.0, 0.0, nan, 2.0, nan, 2.0, nan, nan, 0.0],
        );
        let metrics = evaluate(&a, &b, &black).unwrap();
        assert_eq!(metrics.psnr, -inf);
        assert_relative_eq!(metrics.qabf, 0.00011097534227396059, max_relative = 1e-9);
    }

    #[test]
    fn an_image_fused_from_itself_is_perfect() {
        let (a, _) = sources(50, 60);
        let m = evaluate(&a, &a, &a).unwrap();
        assert_relative_eq!(m.ssim, 2.0, epsilon = 1e-12);
        assert_relative_eq!(m.viff, 2.0, epsilon = 1e-8);
        assert_relative_eq!(m.cc, 1.0, epsilon = 1e-12);
        // The information an image has about itself is its entropy, in nats here.
        assert_relative_eq!(m.mi, 2.0 * m.en * std::f64::consts::LN_2, max_relative = 1e-12);
        assert_eq!((m.mse, m.psnr), (0.0, f64::INFINITY));
    }

    #[test]
    fn sizes_that_differ_or_are_too_small_are_refused() {
        let (a, b) = sources(50, 60);
        let (transposed, _) = sources(60, 50);
        let error = evaluate(&a, &b, &transposed).unwrap_err();
        assert!(error.to_string().contains("fused 60x50"), "{error}");
        assert!(matches!(evaluate(&a, &transposed, &a), Err(MetricsError::SizesDiffer { .. })));
        let (small, _) = sources(64, 40);
        assert!(matches!(evaluate(&small, &small, &small), Err(MetricsError::TooSmall { width: 64, height: 40 })));
        let single = grey(1, 1, |_, _| 9);
        assert!(matches!(evaluate(&single, &single, &single), Err(MetricsError::TooSmall { .. })));
    }

    #[test]
    fn names_follow_the_fields() {
        let counted = Metrics::from_values(std::array::from_fn(|i| i as f64));
        let json = serde_json::to_value(counted).unwrap();
        assert_eq!(json.as_object().unwrap().len(), NAMES.len());
        for (name, value) in counted.iter() {
            assert_eq!(json[name], value);
        }
        assert_eq!((counted.en, counted.qabf, counted.mse), (0.0, 7.0, 11.0));
    }

    #[test]
    fn mean_and_std_are_per_metric() {
        let rows = [1.0, 5.0].map(|v| Metrics::from_values(std::array::from_fn(|i| v * i as f64)));
        let (mean, std) = Metrics::mean_and_std(&rows);
        assert_eq!(mean.values(), std::array::from_fn(|i| 3.0 * i as f64));
        assert_eq!(std.values(), std::array::from_fn(|i| 2.0 * i as f64));
    }
}
