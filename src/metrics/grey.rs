//! The grey image that every metric is computed on.

use super::MetricsError;
use image::{DynamicImage, ImageReader};
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
            return Err(MetricsError::LevelCount {
                levels: levels.len(),
                width,
                height,
            });
        }
        Ok(Self {
            width,
            height,
            levels,
        })
    }

    /// (width, height) in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The levels, row-major.
    pub fn levels(&self) -> &[u8] {
        &self.levels
    }
}

impl From<&DynamicImage> for Grey {
    /// Colour becomes BT.601 luma of the 8-bit values; alpha is dropped and 16 bits are rounded to 8.
    fn from(image: &DynamicImage) -> Self {
        let levels = if image.color().has_color() {
            image.to_rgb8().pixels().map(|p| luma(p.0)).collect()
        } else {
            image.to_luma8().into_raw()
        };
        Self {
            width: image.width() as usize,
            height: image.height() as usize,
            levels,
        }
    }
}

/// Reads an image file as grey; the format is told by the content, not by the name.
///
/// # Errors
/// [`MetricsError::Unreadable`] if the file cannot be opened or is no PNG, JPEG, BMP or TIFF image.
pub fn load_grey(path: &Path) -> Result<Grey, MetricsError> {
    let decode = || ImageReader::open(path)?.with_guessed_format()?.decode();
    match decode() {
        Ok(image) => Ok(Grey::from(&image)),
        Err(source) => Err(MetricsError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// 0.299 R + 0.587 G + 0.114 B to the nearest level, halves to the even one.
///
/// Of the roundings in use (OpenCV's and libpng's fixed point, halves up) this one gives the evaluator's figures.
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
    use image::{GrayAlphaImage, ImageBuffer, RgbaImage};

    #[test]
    fn luma_rounds_to_nearest_and_halves_to_even() {
        assert_eq!(luma([255, 255, 255]), 255);
        assert_eq!(luma([0, 0, 0]), 0);
        assert_eq!(luma([255, 0, 0]), 76);
        assert_eq!(luma([0, 255, 0]), 150);
        assert_eq!(luma([0, 0, 255]), 29);
        let channel = || (0..=255u8).step_by(3);
        for (r, g, b) in
            channel().flat_map(|r| channel().flat_map(move |g| channel().map(move |b| (r, g, b))))
        {
            let exact = 299 * i32::from(r) + 587 * i32::from(g) + 114 * i32::from(b);
            let level = luma([r, g, b]);
            let distance = (1000 * i32::from(level) - exact).abs();
            assert!(distance < 500 || (distance == 500 && level.is_multiple_of(2)));
        }
    }

    #[test]
    fn alpha_is_dropped_and_sixteen_bits_are_rounded() {
        let rgba = RgbaImage::from_pixel(2, 1, image::Rgba([255, 0, 0, 10]));
        assert_eq!(Grey::from(&DynamicImage::from(rgba)).levels(), [76, 76]);
        let la = GrayAlphaImage::from_pixel(1, 2, image::LumaA([7, 0]));
        assert_eq!(Grey::from(&DynamicImage::from(la)).levels(), [7, 7]);
        let l16: ImageBuffer<image::Luma<u16>, _> =
            ImageBuffer::from_raw(3, 1, vec![0u16, 128 * 257 + 100, 65535]).unwrap();
        assert_eq!(Grey::from(&DynamicImage::from(l16)).levels(), [0, 128, 255]);
    }

    #[test]
    fn wrong_number_of_levels_is_refused() {
        assert!(matches!(
            Grey::new(2, 3, vec![0; 5]),
            Err(MetricsError::LevelCount { levels: 5, .. })
        ));
    }

    #[test]
    fn a_text_file_named_png_is_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note.png");
        std::fs::write(&path, "not an image").unwrap();
        let error = load_grey(&path).unwrap_err();
        assert!(error.to_string().contains("note.png"), "{error}");
    }
}
