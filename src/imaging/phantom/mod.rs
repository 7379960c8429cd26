//! Procedural head phantoms: registered synthetic pairs of an MRI with a CT, PET or SPECT slice, for demonstrations and tests.
//!
//! One seed is one head; its modalities differ in contrast, blur and noise only, so they are registered by construction.
//! The brightness of the tissues follows what clinical slices look like, it is no physical simulation.

mod anatomy;

use std::fmt;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use self::anatomy::{Head, Tissue, uniform};
use super::{Channels, Image, ImagingError, Samples};

/// Smallest phantom, in pixels a side; below it the tissues are not to be told apart.
pub const MIN_SIZE: usize = 32;
/// Largest phantom, in pixels a side.
pub const MAX_SIZE: usize = 4096;

/// Points a pixel and axis at which the tissue is looked up.
const SUBSAMPLES: usize = 3;
/// Half the field of view, in half head lengths.
const FIELD: f64 = 1.12;

/// What the MRI is paired with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Modality {
    /// Computed tomography: bright bone, soft tissue of low contrast, grey.
    Ct,
    /// Positron emission tomography: glucose uptake, blurred, in a rainbow colour map.
    Pet,
    /// Single-photon emission computed tomography: perfusion, more blurred, in a hot-iron colour map.
    Spect,
}

impl Modality {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ct, Self::Pet, Self::Spect];
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ct => "CT",
            Self::Pet => "PET",
            Self::Spect => "SPECT",
        })
    }
}

/// The MRI (grey, T1 weighted for even seeds, T2 for odd ones) and the other image of head `seed`, `size` x `size` pixels, 8 bit.
/// The same arguments give the same pixels.
///
/// # Errors
/// [`ImagingError::PhantomSize`] outside [`MIN_SIZE`] to [`MAX_SIZE`].
pub fn head_pair(size: usize, seed: u64, modality: Modality) -> Result<(Image, Image), ImagingError> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(ImagingError::PhantomSize { size });
    }
    let head = Head::new(seed);
    let weighting = if seed.is_multiple_of(2) { t1 } else { t2 };
    let emission = if modality == Modality::Ct { attenuation } else { uptake };
    let [mri, other] = render(&head, size, [weighting, emission]);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1);
    let mri = grey_image(size, &receive(mri, size, &mut rng))?;
    rng.set_stream(2 + modality as u64);
    let other = match modality {
        Modality::Ct => grey_image(size, &scan(other, size, &mut rng))?,
        Modality::Pet => colour_image(size, &emit(other, size, 0.0115, &mut rng), &RAINBOW)?,
        Modality::Spect => colour_image(size, &emit(other, size, 0.019, &mut rng), &HOT_IRON)?,
    };
    Ok((mri, other))
}

/// T1-weighted brightness.
fn t1(tissue: Tissue) -> f64 {
    match tissue {
        Tissue::Air => 0.0,
        Tissue::Skin => 0.42,
        Tissue::Fat => 0.95,
        Tissue::Muscle => 0.30,
        Tissue::Bone => 0.05,
        Tissue::Marrow => 0.50,
        Tissue::Csf => 0.08,
        Tissue::Grey => 0.38,
        Tissue::White => 0.52,
        Tissue::Nuclei => 0.42,
        Tissue::Oedema => 0.32,
        Tissue::Lesion => 0.78,
        Tissue::Calcification => 0.10,
    }
}

/// T2-weighted brightness.
fn t2(tissue: Tissue) -> f64 {
    match tissue {
        Tissue::Air => 0.0,
        Tissue::Skin => 0.34,
        Tissue::Fat => 0.55,
        Tissue::Muscle => 0.18,
        Tissue::Bone => 0.03,
        Tissue::Marrow => 0.26,
        Tissue::Csf => 0.96,
        Tissue::Grey => 0.50,
        Tissue::White => 0.36,
        Tissue::Nuclei => 0.42,
        Tissue::Oedema => 0.74,
        Tissue::Lesion => 0.60,
        Tissue::Calcification => 0.10,
    }
}

/// X-ray attenuation in a brain window.
fn attenuation(tissue: Tissue) -> f64 {
    match tissue {
        Tissue::Air => 0.0,
        Tissue::Skin => 0.10,
        Tissue::Fat => 0.03,
        Tissue::Muscle => 0.16,
        Tissue::Bone => 1.30,
        Tissue::Marrow => 1.10,
        Tissue::Csf => 0.20,
        Tissue::Grey => 0.34,
        Tissue::White => 0.295,
        Tissue::Nuclei => 0.335,
        Tissue::Oedema => 0.25,
        Tissue::Lesion => 0.40,
        Tissue::Calcification => 1.2,
    }
}

/// Tracer uptake relative to grey matter.
fn uptake(tissue: Tissue) -> f64 {
    match tissue {
        Tissue::Air => 0.0,
        Tissue::Skin | Tissue::Muscle => 0.08,
        Tissue::Fat | Tissue::Bone | Tissue::Csf | Tissue::Calcification => 0.02,
        Tissue::Marrow => 0.05,
        Tissue::Grey => 1.0,
        Tissue::White => 0.36,
        Tissue::Nuclei => 0.92,
        Tissue::Oedema => 0.30,
        Tissue::Lesion => 1.5,
    }
}

/// The mean of two properties of the tissues in each pixel, row-major.
fn render(head: &Head, size: usize, properties: [fn(Tissue) -> f64; 2]) -> [Vec<f64>; 2] {
    let mut planes = [const { Vec::new() }; 2];
    let at = |i: usize| ((i as f64 + 0.5) / (size * SUBSAMPLES) as f64 * 2.0 - 1.0) * FIELD;
    for (row, column) in (0..size).flat_map(|r| (0..size).map(move |c| (r, c))) {
        let mut sum = [0.0; 2];
        for sub in 0..SUBSAMPLES * SUBSAMPLES {
            let x = at(column * SUBSAMPLES + sub % SUBSAMPLES);
            let y = at(row * SUBSAMPLES + sub / SUBSAMPLES);
            let tissue = head.tissue([x, y]);
            sum = [0, 1].map(|i| sum[i] + properties[i](tissue));
        }
        for (plane, sum) in planes.iter_mut().zip(sum) {
            plane.push(sum / (SUBSAMPLES * SUBSAMPLES) as f64);
        }
    }
    planes
}

/// MRI as a coil receives it: a smooth sensitivity over the field, and the magnitude of complex noise (Rician).
fn receive(plane: Vec<f64>, size: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut plane = blur(plane, size, size as f64 / 450.0);
    let slope = [0, 1].map(|_| (uniform(rng) - 0.5) * 0.3);
    for (i, v) in plane.iter_mut().enumerate() {
        let [x, y] = [i % size, i / size].map(|p| (p as f64 + 0.5) / size as f64 - 0.5);
        let sensitivity = 1.0 + slope[0] * x + slope[1] * y + 0.35 * (x * x + y * y);
        *v = (*v * sensitivity + 0.022 * normal(rng)).hypot(0.022 * normal(rng));
    }
    plane
}

/// CT: the detector's blur and grainy noise.
fn scan(plane: Vec<f64>, size: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let grain = blur((0..size * size).map(|_| normal(rng)).collect(), size, 0.9);
    let sharp = blur(plane, size, size as f64 / 512.0);
    sharp.iter().zip(grain).map(|(v, g)| v + 0.03 * g * v.min(0.4)).collect()
}

/// Emission tomography: the activity blurred by `resolution` (standard deviation, in image sides), with blotchy count noise.
fn emit(plane: Vec<f64>, size: usize, resolution: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let sigma = resolution * size as f64;
    let blotches = blur((0..size * size).map(|_| normal(rng)).collect(), size, sigma * 0.8);
    // Blurring white noise of unit variance leaves 1 / (4 pi sigma^2) of it.
    let gain = 0.06 * (4.0 * std::f64::consts::PI).sqrt() * sigma * 0.8;
    let activity = blur(plane, size, sigma);
    activity.iter().zip(blotches).map(|(a, b)| a + gain * b * a.max(0.0).sqrt()).collect()
}

/// Gaussian blur of a square plane, `sigma` in pixels, black outside.
fn blur(plane: Vec<f64>, size: usize, sigma: f64) -> Vec<f64> {
    let reach = (3.0 * sigma).ceil() as isize;
    let weights: Vec<f64> = (-reach..=reach).map(|d| (-0.5 * (d as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let along = |plane: &[f64], step: usize, across: usize| -> Vec<f64> {
        let mut out = vec![0.0; plane.len()];
        for (line, at) in (0..size).flat_map(|l| (0..size).map(move |a| (l, a))) {
            let from = (at as isize - reach).max(0);
            let to = (at as isize + reach).min(size as isize - 1);
            let weighted = (from..=to)
                .map(|k| plane[line * across + k as usize * step] * weights[(k - at as isize + reach) as usize]);
            out[line * across + at * step] = weighted.sum::<f64>() / total;
        }
        out
    };
    let rows = along(&plane, 1, size);
    along(&rows, size, 1)
}

/// A standard normal deviate (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

fn quantise(v: f64) -> u8 {
    (v * 255.0).round().clamp(0.0, 255.0) as u8
}

fn grey_image(size: usize, plane: &[f64]) -> Result<Image, ImagingError> {
    Image::new(size, size, Channels::Grey, Samples::U8(plane.iter().map(|&v| quantise(v)).collect()))
}

/// Colours at equal steps from no activity to that of the hottest tissue.
type ColourMap = [[f64; 3]];

const RAINBOW: [[f64; 3]; 9] = [
    [0.0, 0.0, 0.0],
    [0.0, 0.0, 0.35],
    [0.0, 0.1, 0.85],
    [0.1, 0.5, 0.95],
    [0.75, 0.85, 0.55],
    [1.0, 0.95, 0.0],
    [1.0, 0.65, 0.0],
    [1.0, 0.25, 0.0],
    [0.85, 0.0, 0.0],
];

const HOT_IRON: [[f64; 3]; 8] = [
    [0.0, 0.0, 0.0],
    [0.10, 0.17, 0.18],
    [0.20, 0.02, 0.45],
    [0.40, 0.05, 0.60],
    [0.70, 0.25, 0.50],
    [0.95, 0.45, 0.20],
    [1.0, 0.70, 0.45],
    [1.0, 1.0, 0.95],
];

fn colour_image(size: usize, plane: &[f64], map: &ColourMap) -> Result<Image, ImagingError> {
    let steps = (map.len() - 1) as f64;
    let colour = |v: &f64| {
        let at = (v / 1.15).clamp(0.0, 1.0) * steps;
        let low = (at.floor() as usize).min(map.len() - 2);
        let share = at - low as f64;
        [0, 1, 2].map(|c| quantise(map[low][c] + (map[low + 1][c] - map[low][c]) * share))
    };
    Image::new(size, size, Channels::Rgb, Samples::U8(plane.iter().flat_map(colour).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(image: &Image) -> &[u8] {
        match image.samples() {
            Samples::U8(v) => v,
            Samples::U16(_) => panic!("phantoms have 8 bits"),
        }
    }

    #[test]
    fn one_seed_is_one_head_in_every_modality() {
        let (mri, ct) = head_pair(64, 3, Modality::Ct).unwrap();
        assert_eq!(head_pair(64, 3, Modality::Ct).unwrap(), (mri.clone(), ct));
        assert_eq!(head_pair(64, 3, Modality::Pet).unwrap().0, mri);
        assert_ne!(head_pair(64, 5, Modality::Pet).unwrap().0, mri);
    }

    #[test]
    fn tissues_have_their_modalitys_contrast() {
        let (mri, ct) = head_pair(128, 0, Modality::Ct).unwrap();
        let (mri, ct) = (samples(&mri), samples(&ct));
        let share = |picture: &[u8], range: std::ops::RangeInclusive<u8>| {
            picture.iter().filter(|v| range.contains(v)).count() as f64 / picture.len() as f64
        };
        // Bone is white in CT and dark in MRI; the brain is a narrow band of dark grey in CT.
        let bone: Vec<u8> = ct.iter().zip(mri).filter(|(c, _)| **c == 255).map(|(_, m)| *m).collect();
        assert!((0.05..0.15).contains(&(bone.len() as f64 / ct.len() as f64)), "{}", bone.len());
        assert!(share(ct, 60..=100) > 0.25, "{}", share(ct, 60..=100));
        assert!(bone.iter().map(|&m| f64::from(m)).sum::<f64>() / (bone.len() as f64) < 110.0);
        // Air in the corners, not quite black in the MRI for its noise.
        assert!(ct[0] == 0 && mri[..128].iter().all(|&v| v < 30) && mri[..128].iter().any(|&v| v > 0));
    }

    #[test]
    fn emission_is_coloured_and_inside_the_head() {
        for modality in [Modality::Pet, Modality::Spect] {
            let (mri, other) = head_pair(96, 2, modality).unwrap();
            assert!(other.is_coloured() && !mri.is_coloured());
            let luma = other.to_grey();
            assert!(samples(&luma)[..96].iter().all(|&v| v < 4), "{modality}");
            let centre: Vec<u8> = samples(&luma).iter().copied().filter(|&v| v > 60).collect();
            assert!((0.1..0.45).contains(&(centre.len() as f64 / (96.0 * 96.0))), "{modality}: {}", centre.len());
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for size in [0, MIN_SIZE - 1, MAX_SIZE + 1] {
            assert!(matches!(head_pair(size, 0, Modality::Ct), Err(ImagingError::PhantomSize { .. })));
        }
        assert!(head_pair(33, 0, Modality::Spect).is_ok());
    }
}
