//! The head that a phantom shows: which tissue lies at a point of one axial slice.
//!
//! Coordinates: `x` to the right and `y` down (to the back of the head), the head's half length is 1. Sizes are eyeballed from
//! anatomy atlases, none is measured on a person.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a point of the slice consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tissue {
    Air,
    Skin,
    Fat,
    Muscle,
    Bone,
    Marrow,
    Csf,
    Grey,
    White,
    Nuclei,
    Oedema,
    Lesion,
    Calcification,
}

/// A point or a vector in the slice.
type Point = [f64; 2];

/// Thickness of the cortex.
const CORTEX: f64 = 0.042;
/// Half width of the fluid in a fold of the cortex.
const FOLD: f64 = 0.011;

/// One head: the seed decides its outline, folds, ventricles and lesion.
pub(super) struct Head {
    noise: Noise,
    tilt: f64,
    ventricles: f64,
    lesion: Point,
    lesion_radius: f64,
}

impl Head {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let side = if uniform(&mut rng) < 0.5 { -1.0 } else { 1.0 };
        Self {
            noise: Noise(rng.next_u64()),
            tilt: (uniform(&mut rng) - 0.5) * 0.12,
            ventricles: 0.8 + 0.5 * uniform(&mut rng),
            lesion: [side * (0.30 + 0.10 * uniform(&mut rng)), 0.16 + 0.22 * uniform(&mut rng)],
            lesion_radius: 0.075 + 0.04 * uniform(&mut rng),
        }
    }

    /// The tissue at a point.
    pub(super) fn tissue(&self, point: Point) -> Tissue {
        let (sin, cos) = self.tilt.sin_cos();
        let [x, y] = [cos * point[0] - sin * point[1], sin * point[0] + cos * point[1]];
        let side = self.noise.at([3.0 * y, 70.5 + x.signum()]);
        let around = unit([x, y]);
        let from_skin = self.depth([x, y], around);
        let temple = (1.0 - 4.0 * (y + 0.15).powi(2)).max(0.0);
        let layers = [
            (0.0, Tissue::Air),
            (0.014, Tissue::Skin),
            (0.028 + 0.018 * self.wobble(around, 2.0, 11.0).abs(), Tissue::Fat),
            (0.045 * temple, Tissue::Muscle),
            (0.022, Tissue::Bone),
            (0.026 * (1.0 - 0.9 * temple) * (1.0 + 0.5 * self.wobble(around, 5.0, 23.0)), Tissue::Marrow),
            (0.022, Tissue::Bone),
            (0.016 + 0.016 * self.wobble(around, 6.0, 37.0).abs(), Tissue::Csf),
        ];
        let mut bottom = 0.0;
        for (thickness, tissue) in layers {
            bottom += thickness;
            if from_skin < bottom {
                return tissue;
            }
        }
        self.brain([x + 0.012 * side, y], around, from_skin - bottom)
    }

    /// Depth below the skin: an egg, wider at the back, with a few seeded bumps.
    fn depth(&self, [x, y]: Point, around: Point) -> f64 {
        let half_width = 0.80 + 0.05 * y;
        let radius = (x / half_width).hypot(y) / (1.0 + 0.02 * self.wobble(around, 1.2, 5.0));
        (1.0 - radius) * 0.88
    }

    /// Noise that depends on the direction from the centre only.
    fn wobble(&self, around: Point, frequency: f64, offset: f64) -> f64 {
        self.noise.at([around[0] * frequency + offset, around[1] * frequency])
    }

    /// The tissue inside the brain, `depth` below its hull.
    fn brain(&self, [x, y]: Point, around: Point, depth: f64) -> Tissue {
        let mirrored = [x.abs(), y];
        if let Some(deep) = self.deep_structure(mirrored) {
            return deep;
        }
        let [lx, ly] = self.lesion;
        let from_lesion = (x - lx).hypot(y - ly) + 0.05 * self.noise.at([8.0 * x, 8.0 * y + 41.0]);
        if from_lesion < self.lesion_radius {
            return if from_lesion < 0.55 * self.lesion_radius { Tissue::Oedema } else { Tissue::Lesion };
        }
        let fold = self.to_fold([x, y], around, depth).min(depth + FOLD);
        let swollen = from_lesion < 2.0 * self.lesion_radius + 0.05 * self.noise.at([5.0 * x + 53.0, 5.0 * y]);
        match fold {
            f if f < FOLD => Tissue::Csf,
            f if f < FOLD + CORTEX => Tissue::Grey,
            _ if swollen => Tissue::Oedema,
            _ => Tissue::White,
        }
    }

    /// Ventricles, basal nuclei and calcifications; `x` is the distance from the midline.
    fn deep_structure(&self, [x, y]: Point) -> Option<Tissue> {
        let wide = self.ventricles;
        let shift = |offset: f64| 0.035 * self.noise.at([6.0 * x + offset, 6.0 * y]);
        let p = [x + shift(3.0), y + shift(17.0)];
        let calcified = x.hypot(y - 0.20) < 0.016 || (x - 0.16).hypot(y - 0.27) < 0.018;
        let horns = capsule(p, [0.04, -0.20], [0.14, -0.38], [0.048, 0.022]) < wide - 1.0
            || capsule(p, [0.04, -0.22], [0.06, -0.02], [0.036, 0.016]) < wide - 1.0
            || capsule(p, [0.09, 0.14], [0.17, 0.27], [0.022, 0.055]) < wide - 1.0
            || capsule(p, [0.17, 0.27], [0.20, 0.42], [0.055, 0.012]) < wide - 1.0;
        let third = x < 0.012 * wide && (-0.04..0.15).contains(&y);
        let nuclei = ellipse(p, [0.135, -0.235], [0.045, 0.105], 0.35) < 1.0
            || ellipse(p, [0.105, 0.055], [0.078, 0.125], 0.30) < 1.0
            || ellipse(p, [0.275, -0.075], [0.052, 0.155], 0.22) < 1.0;
        let insula = capsule(p, [0.40, -0.20], [0.41, 0.10], [0.022, 0.022]) < 0.0;
        if calcified {
            Some(Tissue::Calcification)
        } else if (horns && x > 0.010) || third {
            Some(Tissue::Csf)
        } else if nuclei {
            Some(Tissue::Nuclei)
        } else {
            insula.then_some(Tissue::Grey)
        }
    }

    /// Distance to the middle of the nearest fold: the fissure between the halves, the Sylvian fissure, or a sulcus.
    fn to_fold(&self, [x, y]: Point, around: Point, depth: f64) -> f64 {
        let fissure = x.abs() + (0.40 - y.abs() + 0.06 * y.signum()).max(0.0);
        let bend = |offset: f64| 0.07 * self.noise.at([5.0 * x + offset, 5.0 * y]);
        let m = [x.abs() + bend(7.0), y + bend(29.0)];
        let sylvian = (to_line(m, [0.44, -0.03], [0.75, -0.12]).0).min(to_line(m, [0.45, -0.17], [0.44, 0.08]).0);
        let sulcus_depth = 0.17 + 0.14 * self.wobble(around, 7.0, 61.0);
        let sulcus = self.to_sulcus([x, y]) + (depth - sulcus_depth).max(0.0);
        fissure.min(sylvian).min(sulcus)
    }

    /// Distance to the nearest zero of the sulcal pattern, to first order.
    fn to_sulcus(&self, [x, y]: Point) -> f64 {
        const STEP: f64 = 1e-3;
        let here = self.sulcal_pattern([x, y]);
        let dx = self.sulcal_pattern([x + STEP, y]) - here;
        let dy = self.sulcal_pattern([x, y + STEP]) - here;
        here.abs() / (dx.hypot(dy) / STEP + 0.5)
    }

    /// Noise drawn out along the radius, so that its zero lines run inwards from the hull as sulci do, bent by slower noise.
    fn sulcal_pattern(&self, [x, y]: Point) -> f64 {
        let bend = |offset: f64| 0.055 * self.noise.at([6.0 * x + offset, 6.0 * y]);
        let (x, y) = (x + bend(81.0), y + bend(97.0));
        let radius = x.hypot(y);
        let [ux, uy] = unit([x, y]);
        let stretched = 5.4 + 2.6 * radius;
        self.noise.at([ux * stretched + 113.0 * x.signum(), uy * stretched])
    }
}

/// A point's direction from the centre.
fn unit([x, y]: Point) -> Point {
    let length = x.hypot(y).max(1e-9);
    [x / length, y / length]
}

/// Distance to the line from `a` to `b`, and how far along it the nearest point lies, 0 to 1.
fn to_line([x, y]: Point, a: Point, b: Point) -> (f64, f64) {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let along = (((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
    ((x - a[0] - along * dx).hypot(y - a[1] - along * dy), along)
}

/// Distance to a tapered rod from `a` to `b` in units of its radius there, less 1: negative inside.
fn capsule(p: Point, a: Point, b: Point, radii: Point) -> f64 {
    let (distance, along) = to_line(p, a, b);
    distance / (radii[0] + (radii[1] - radii[0]) * along) - 1.0
}

/// Below 1 inside the ellipse of these half axes, turned by `angle` radians.
fn ellipse([x, y]: Point, centre: Point, half_axes: Point, angle: f64) -> f64 {
    let (sin, cos) = angle.sin_cos();
    let (dx, dy) = (x - centre[0], y - centre[1]);
    ((cos * dx - sin * dy) / half_axes[0]).hypot((sin * dx + cos * dy) / half_axes[1])
}

/// A number from [0, 1).
pub(super) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / 4_294_967_296.0
}

/// Gradient noise on the unit lattice, about -0.7 to 0.7, from integer hashes of the seed.
struct Noise(u64);

impl Noise {
    fn at(&self, [x, y]: Point) -> f64 {
        let (cx, cy) = (x.floor(), y.floor());
        let (fx, fy) = (x - cx, y - cy);
        let ease = |t: f64| t * t * t * (t * (t * 6.0 - 15.0) + 10.0);
        let corner = |i: f64, j: f64| {
            let [gx, gy] = self.gradient((cx + i) as i64, (cy + j) as i64);
            gx * (fx - i) + gy * (fy - j)
        };
        let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
        let top = mix(corner(0.0, 0.0), corner(1.0, 0.0), ease(fx));
        let bottom = mix(corner(0.0, 1.0), corner(1.0, 1.0), ease(fx));
        mix(top, bottom, ease(fy))
    }

    /// A unit vector for a lattice point: splitmix64 of its coordinates picks one of 16 directions.
    fn gradient(&self, i: i64, j: i64) -> Point {
        let mut h =
            self.0 ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (j as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let (sin, cos) = ((h >> 60) as f64 * std::f64::consts::TAU / 16.0).sin_cos();
        [cos, sin]
    }
}
