//! Pictures side by side under their names, in one row or several.

use super::canvas::{ADVANCE, Canvas, LETTER};
use super::{Image, ImagingError};

/// Height of a label's strip, in font pixels.
const STRIP: usize = LETTER + 4;
/// Colour of the labels.
const INK: [u8; 3] = [235; 3];

/// Rows of pictures as one 8-bit RGB picture on black: a label above each column, cut where that ends, and a caption at the
/// left of each row. Columns are as wide as their widest picture, rows as high as their highest, with 2 pixels between them.
/// Letters take 6 x 11 pixels; they and the gaps grow with the narrowest column, by a 160th of its width. Letters, digits
/// and `.,:-+()/%_=` are drawn, for others a box.
///
/// # Errors
/// [`ImagingError::SampleCount`] if there is no picture.
pub fn contact_sheet(labels: &[impl AsRef<str>], rows: &[(String, Vec<Image>)]) -> Result<Image, ImagingError> {
    let widest = |column: usize| rows.iter().filter_map(|(_, r)| r.get(column)).map(|p| p.width).max().unwrap_or(0);
    let widths: Vec<usize> = (0..labels.len()).map(widest).collect();
    let scale = (widths.iter().min().unwrap_or(&0) / 160).max(1);
    let gap = 2 * scale;
    let heights: Vec<usize> = rows.iter().map(|(_, r)| r.iter().map(|p| p.height).max().unwrap_or(0)).collect();
    let margin = rows.iter().map(|(caption, _)| caption.chars().count()).max().unwrap_or(0) * ADVANCE * scale;
    let length = |sides: &[usize]| sides.iter().sum::<usize>() + gap * sides.len().saturating_sub(1);
    let mut canvas = Canvas::new(margin + length(&widths), STRIP * scale + length(&heights), [0; 3]);
    let mut top = STRIP * scale;
    for (row, ((caption, pictures), height)) in rows.iter().zip(&heights).enumerate() {
        canvas.write(caption, 0..margin, top + 2 * scale, scale, INK);
        let mut left = margin;
        for ((picture, label), width) in pictures.iter().zip(labels).zip(&widths) {
            if row == 0 {
                canvas.write(label.as_ref(), left + 2 * scale..left + width, 2 * scale, scale, INK);
            }
            canvas.paste(picture, left, top);
            left += width + gap;
        }
        top += height + gap;
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
        let both = contact_sheet(&["T", "long label that is cut"], &[(String::new(), vec![a, b])]).unwrap();
        assert_eq!((both.width(), both.height(), both.channels()), (52, 23, Channels::Rgb));
        let Samples::U8(v) = both.samples() else { panic!("not 8 bit") };
        let at = |x: usize, y: usize| v[(y * 52 + x) * 3];
        assert_eq!([at(0, 11), at(19, 20), at(20, 15), at(22, 11), at(51, 22)], [50, 50, 0, 90, 90]);
        // The T: a bar of five pixels with its stem in the middle.
        assert_eq!((0..20).filter(|&x| at(x, 2) > 0).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert_eq!((0..20).filter(|&x| at(x, 8) > 0).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn rows_stand_below_each_other_beside_their_captions() {
        let rows = [
            ("ab".to_owned(), vec![grey(20, 12, 257 * 50), grey(30, 9, 257 * 90)]),
            ("T".to_owned(), vec![grey(9, 13, 257 * 70)]),
        ];
        let sheet = contact_sheet(&["x", "y"], &rows).unwrap();
        // A margin of two letters, a strip of labels.
        assert_eq!((sheet.width(), sheet.height()), (12 + 20 + 2 + 30, 11 + 12 + 2 + 13));
        let Samples::U8(v) = sheet.samples() else { panic!("not 8 bit") };
        let at = |x: usize, y: usize| v[(y * 64 + x) * 3];
        assert_eq!([at(12, 11), at(34, 19), at(34, 20), at(12, 25), at(20, 37), at(21, 25)], [50, 90, 0, 70, 70, 0]);
        assert_eq!((0..12).filter(|&x| at(x, 27) > 0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn no_picture_is_an_error() {
        assert!(matches!(contact_sheet(&[""; 0], &[]), Err(ImagingError::SampleCount { .. })));
    }
}
