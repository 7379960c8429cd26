//! Pictures side by side under their names.

use super::canvas::{Canvas, LETTER};
use super::{Image, ImagingError};

/// Height of a label's strip, in font pixels.
const STRIP: usize = LETTER + 4;
/// Colour of the labels.
const INK: [u8; 3] = [235; 3];

/// `pictures` from left to right, each under its label, as one 8-bit RGB picture on black. Labels are drawn for
/// letters, digits and `.,:-+()/%_=`, larger over larger pictures, and cut at the edge of their picture.
///
/// # Errors
/// [`ImagingError::SampleCount`] if there is no picture.
pub fn montage(pictures: &[(&str, &Image)]) -> Result<Image, ImagingError> {
    let narrowest = pictures.iter().map(|(_, p)| p.width).min().unwrap_or(0);
    let scale = (narrowest / 160).max(1);
    let gap = 2 * scale;
    let width = pictures.iter().map(|(_, p)| p.width).sum::<usize>() + gap * pictures.len().saturating_sub(1);
    let tallest = pictures.iter().map(|(_, p)| p.height).max().unwrap_or(0);
    let mut canvas = Canvas::new(width, tallest + STRIP * scale, [0; 3]);
    let mut left = 0;
    for (label, picture) in pictures {
        canvas.write(label, left + 2 * scale..left + picture.width, 2 * scale, scale, INK);
        canvas.paste(picture, left, STRIP * scale);
        left += picture.width + gap;
    }
    canvas.image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{Channels, Samples};

    fn grey(width: usize, height: usize, value: u16) -> Image {
        Image::new(width, height, Channels::Grey, Samples::U16(vec![value; width * height])).unwrap()
    }

    #[test]
    fn pictures_stand_side_by_side_under_their_labels() {
        let (a, b) = (grey(20, 10, 257 * 50), grey(30, 12, 257 * 90));
        let both = montage(&[("T", &a), ("long label that is cut", &b)]).unwrap();
        assert_eq!((both.width(), both.height(), both.channels()), (52, 23, Channels::Rgb));
        let Samples::U8(v) = both.samples() else { panic!("not 8 bit") };
        let at = |x: usize, y: usize| v[(y * 52 + x) * 3];
        assert_eq!([at(0, 11), at(19, 20), at(20, 15), at(22, 11), at(51, 22)], [50, 50, 0, 90, 90]);
        // The T: a bar of five pixels with its stem in the middle.
        assert_eq!((0..20).filter(|&x| at(x, 2) > 0).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert_eq!((0..20).filter(|&x| at(x, 8) > 0).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn no_picture_is_an_error() {
        assert!(matches!(montage(&[]), Err(ImagingError::SampleCount { .. })));
    }
}
