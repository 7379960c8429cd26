//! The grey image that every metric is computed on.

use super::MetricsError;
use crate::imaging::{Channels, Image, ImagingError, Samples};
use std::path::Path;

/// A grey image: levels 0..=255, row-major from the top left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grey {
    width: usize,
    height: usize,
    levels: Vec<u8>,
}

impl Grey {
    /// An image of `width` x `height` pixels from its rows.
    ///
    /// # Errors
    /// [`MetricsError::LevelCount`] if `levels` does not hold `width * height` values.
    pub fn new(width: usize, height: usize, levels: Vec<u8>) -> Result<Self, MetricsError> {
        if width.checked_mul(height) != Some(levels.len()) {
            return Err(MetricsError::LevelCount { levels: levels.len(), width, height });
        }
        Ok(Self { width, height, levels })
    }

    /// (width, height) in pixels.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The levels, row-major.
    pub(crate) fn levels(&self) -> &[u8] {
        &self.levels
    }
}

impl From<&Image> for Grey {
    /// 16 bits are rounded to 8 first; then colour becomes BT.601 luma.
    fn from(image: &Image) -> Self {
        let samples: Vec<u8> = match image.samples() {
            Samples::U8(samples) => samples.clone(),
            // 65535 is 257 times 255; the quotient is at most 255.
            Samples::U16(samples) => samples.iter().map(|&v| ((u32::from(v) + 128) / 257) as u8).collect(),
        };
        let levels = match image.channels() {
            Channels::Grey => samples,
            Channels::Rgb => samples.chunks_exact(3).map(|p| luma([p[0], p[1], p[2]])).collect(),
        };
        Self { width: image.width(), height: image.height(), levels }
    }
}

/// Reads an image file as grey: [`Image::load`], then [`Grey::from`].
///
/// # Errors
/// Those of [`Image::load`].
pub fn load_grey(path: &Path) -> Result<Grey, ImagingError> {
    Ok(Grey::from(&Image::load(path)?))
}

/// 0.299 R + 0.587 G + 0.114 B to the nearest level, halves to the even one.
///
/// Of the roundings in use (the fixed point of OpenCV, libpng and Pillow, halves up) this one gives the evaluator's
/// figures; it is not the luma that the networks see.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    let thousandths = 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b);
    let (level, rest) = (thousandths / 1000, thousandths % 1000);
    let up = rest > 500 || (rest == 500 && level % 2 == 1);
    // The weights sum to 1000, so the level is at most 255.
    (level + u32::from(up)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luma_rounds_to_nearest_and_halves_to_even() {
        assert_eq!(luma([255, 255, 255]), 255);
        assert_eq!(luma([0, 0, 0]), 0);
        assert_eq!(luma([255, 0, 0]), 76);
        assert_eq!(luma([0, 255, 0]), 150);
        assert_eq!(luma([0, 0, 255]), 29);
        let channel = || (0..=255u8).step_by(3);
        for (r, g, b) in channel().flat_map(|r| channel().flat_map(move |g| channel().map(move |b| (r, g, b)))) {
            let exact = 299 * i32::from(r) + 587 * i32::from(g) + 114 * i32::from(b);
            let level = luma([r, g, b]);
            let distance = (1000 * i32::from(level) - exact).abs();
            assert!(distance < 500 || (distance == 500 && level.is_multiple_of(2)));
        }
    }

    #[test]
    fn sixteen_bits_are_rounded_and_colour_becomes_luma() {
        let deep = Samples::U16(vec![0, 128, 129, 128 * 257 + 100, 65_535]);
        let deep = Image::new(5, 1, Channels::Grey, deep).unwrap();
        assert_eq!(Grey::from(&deep).levels(), [0, 0, 1, 128, 255]);
        let colour = Samples::U8(vec![255, 0, 0, 0, 0, 255]);
        let colour = Image::new(1, 2, Channels::Rgb, colour).unwrap();
        assert_eq!(Grey::from(&colour), Grey::new(1, 2, vec![76, 29]).unwrap());
    }

    #[test]
    fn wrong_number_of_levels_is_refused() {
        assert!(matches!(Grey::new(2, 3, vec![0; 5]), Err(MetricsError::LevelCount { levels: 5, .. })));
    }
}
