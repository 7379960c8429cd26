//! How close a result must come to the reference's, and how close it comes.

use std::fmt;

use crate::models::golden::case::{Array, NoiseFloor, Values};

/// What a case tests, by which its tolerance is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// An operation or a block.
    Op,
    /// A whole network or a pipeline.
    Model,
    /// A noise schedule.
    Schedule,
}

/// How far a result may be from the reference's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tolerance {
    /// The norm of the difference over the norm of the reference.
    RelativeL2(f64),
    /// The largest difference of an element.
    Absolute(f64),
    /// The largest difference of a pixel in grey levels.
    GreyLevels(u8),
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelativeL2(t) => write!(f, "{t:.1e}"),
            Self::Absolute(t) => write!(f, "{t:.1e} abs"),
            Self::GreyLevels(0) => f.write_str("exact"),
            Self::GreyLevels(t) => write!(f, "{t} grey"),
        }
    }
}

impl Tolerance {
    /// The largest error in its measure.
    fn limit(self) -> f64 {
        match self {
            Self::RelativeL2(t) | Self::Absolute(t) => t,
            Self::GreyLevels(t) => f64::from(t),
        }
    }

    /// The tolerance of the tensor `name`: relative L2 1e-5 for operations and blocks, 1e-4 for models and pipelines,
    /// or 10 times the noise floor where that is larger; 1e-12 (float64) and 1e-6 (float32) for schedules. Images that
    /// a network had a part in may be off by one grey level, those that are integer arithmetic alone by none.
    /// Gradients have the tolerance of models; where they are nothing but rounding, so that zeros would be close enough,
    /// each element may be off by 10 times the reference's largest error.
    pub(crate) fn of(name: &str, expected: &Array, scale: Scale, floor: Option<NoiseFloor>) -> Self {
        let gradient = name.starts_with("grad");
        if let Some(floor) = floor.filter(|f| gradient && 10.0 * f.rel_l2 >= 1.0) {
            return Self::Absolute(10.0 * floor.max_abs_err);
        }
        let floor = floor.map_or(0.0, |f| 10.0 * f.rel_l2);
        match (&expected.values, scale) {
            (Values::U8(_), _) => Self::GreyLevels(u8::from(name.starts_with("out."))),
            (Values::I64(_), _) => Self::Absolute(0.0),
            (Values::F64(_), Scale::Schedule) => Self::RelativeL2(1e-12),
            (_, Scale::Schedule) => Self::RelativeL2(1e-6),
            (_, Scale::Op) if !gradient => Self::RelativeL2(floor.max(1e-5)),
            _ => Self::RelativeL2(floor.max(1e-4)),
        }
    }
}

/// How far a result is from the reference's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Comparison {
    /// Largest difference of an element.
    pub max_abs_error: f64,
    /// Norm of the difference over the norm of the reference.
    pub relative_l2: f64,
    /// The case's noise floor as a relative L2 error.
    pub noise_floor: Option<f64>,
    /// How far it may be.
    pub tolerance: Tolerance,
    /// NaN and infinite elements of result and reference.
    pub not_finite: usize,
}

impl Comparison {
    /// Compares elements that correspond to each other.
    ///
    /// # Panics
    /// If there are not as many of one as of the other.
    pub(crate) fn new(found: &[f64], expected: &[f64], tolerance: Tolerance, floor: Option<NoiseFloor>) -> Self {
        assert_eq!(found.len(), expected.len());
        let (mut max, mut diff, mut norm, mut not_finite) = (0.0f64, 0.0, 0.0, 0);
        for (a, b) in found.iter().zip(expected) {
            if !a.is_finite() || !b.is_finite() {
                not_finite += 1;
                continue;
            }
            max = max.max((a - b).abs());
            diff += (a - b) * (a - b);
            norm += b * b;
        }
        let relative_l2 = match (diff, norm) {
            _ if not_finite > 0 => f64::NAN,
            (0.0, _) => 0.0,
            _ => (diff / norm).sqrt(),
        };
        Self {
            max_abs_error: if not_finite > 0 { f64::NAN } else { max },
            relative_l2,
            noise_floor: floor.map(|f| f.rel_l2),
            tolerance,
            not_finite,
        }
    }

    /// The error in the measure of the tolerance.
    pub(crate) fn error(&self) -> f64 {
        match self.tolerance {
            Tolerance::RelativeL2(_) => self.relative_l2,
            Tolerance::Absolute(_) | Tolerance::GreyLevels(_) => self.max_abs_error,
        }
    }

    /// Whether the result is finite and close enough.
    pub fn passed(&self) -> bool {
        self.error() <= self.tolerance.limit() && self.not_finite == 0
    }

    /// The error as a share of the tolerance; NaN where there is no number.
    pub(crate) fn share(&self) -> f64 {
        let error = self.error();
        if error == 0.0 { 0.0 } else { error / self.tolerance.limit() }
    }
}

/// Compares the loss `sum(w * out)` over all outputs with the reference's. The sum cancels, so the tolerance is 1e-5 of
/// `sum |w * out|`, or 10 times the noise floor where that is larger.
pub(crate) fn compare_loss(
    products: impl Iterator<Item = f64>,
    expected: f64,
    floor: Option<NoiseFloor>,
) -> Comparison {
    let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
    let floor_abs = floor.map_or(0.0, |f| 10.0 * f.max_abs_err);
    let tolerance = Tolerance::Absolute(floor_abs.max(1e-5 * magnitude));
    Comparison::new(&[sum], &[expected], tolerance, floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: NoiseFloor = NoiseFloor { max_abs_err: 0.5, rel_l2: 3e-5 };

    fn compare(found: &[f64], expected: &[f64], tolerance: f64) -> Comparison {
        Comparison::new(found, expected, Tolerance::RelativeL2(tolerance), None)
    }

    #[test]
    fn errors_are_the_definitions() {
        let c = compare(&[3.0, 4.5], &[3.0, 4.0], 0.1);
        assert_eq!((c.max_abs_error, c.relative_l2), (0.5, 0.1));
        assert!(c.passed());
        assert!(!compare(&[3.0, 4.5], &[3.0, 4.0], 0.0999).passed());
    }

    #[test]
    fn what_is_not_finite_fails() {
        for (a, b) in [(f64::NAN, 1.0), (f64::INFINITY, f64::INFINITY), (1.0, f64::NAN)] {
            let c = compare(&[1.0, a], &[1.0, b], 1e9);
            assert!(!c.passed() && c.not_finite == 1, "{a} against {b}");
        }
    }

    #[test]
    fn a_zero_reference_takes_zeros_only() {
        assert!(compare(&[0.0, 0.0], &[0.0, -0.0], 1e-5).passed());
        assert!(!compare(&[0.0, 1e-30], &[0.0, 0.0], 1e-5).passed());
    }

    #[test]
    fn tolerances_follow_scale_floor_and_type() {
        let f32s = Array { dims: vec![1], values: Values::F32(vec![0.0]) };
        let u8s = Array { dims: vec![1], values: Values::U8(vec![0]) };
        let of = |scale, floor| Tolerance::of("out.y", &f32s, scale, floor);
        assert_eq!(of(Scale::Op, None), Tolerance::RelativeL2(1e-5));
        assert_eq!(of(Scale::Op, Some(FLOOR)), Tolerance::RelativeL2(10.0 * 3e-5));
        assert_eq!(of(Scale::Model, None), Tolerance::RelativeL2(1e-4));
        assert_eq!(of(Scale::Schedule, Some(FLOOR)), Tolerance::RelativeL2(1e-6));
        let gradient = |rel_l2| {
            let floor = NoiseFloor { max_abs_err: 0.5, rel_l2 };
            Tolerance::of("grad.in.x", &f32s, Scale::Op, Some(floor))
        };
        assert_eq!(gradient(1e-7), Tolerance::RelativeL2(1e-4));
        assert_eq!(gradient(0.05), Tolerance::RelativeL2(0.5));
        assert_eq!(gradient(1e8), Tolerance::Absolute(5.0));
        let image = |name| Tolerance::of(name, &u8s, Scale::Model, None);
        assert_eq!(image("out.fused_u8"), Tolerance::GreyLevels(1));
        assert_eq!(image("act.other_l_u8"), Tolerance::GreyLevels(0));
    }

    #[test]
    fn grey_levels_are_counted_whole() {
        let c = |found| Comparison::new(&[found], &[7.0], Tolerance::GreyLevels(1), None).passed();
        assert!(c(8.0) && !c(9.0));
    }

    #[test]
    fn the_loss_is_measured_against_what_it_sums() {
        // 100 - 99 is off by 1e-3: 0.1 % of the loss, 5e-6 of what was summed.
        assert!(compare_loss([100.0, -99.0].into_iter(), 1.001, None).passed());
        assert!(!compare_loss([1.0, -0.0].into_iter(), 1.001, None).passed());
        assert!(compare_loss([1.0].into_iter(), 5.9, Some(FLOOR)).passed());
    }
}
