//! Pictures side by side under their names.

use super::{Channels, Image, ImagingError, Samples};

/// Characters that [`GLYPHS`] draws, in its order.
const ALPHABET: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz .,:-+()/%_=";

/// A 5 x 7 pixel letter each: five columns from the left, two hexadecimal digits a column, lowest bit on top.
const GLYPHS: &str = "\
    3E5149453E 00427F4000 4261514946 2141454B31 1814127F10 2745454539 3C4A494930 0171090503 3649494936 064949291E \
    7E1111117E 7F49494936 3E41414122 7F4141221C 7F49494941 7F09090901 3E4149497A 7F0808087F 00417F4100 2040413F01 \
    7F08142241 7F40404040 7F020C027F 7F0408107F 3E4141413E 7F09090906 3E4151215E 7F09192946 4649494931 01017F0101 \
    3F4040403F 1F2040201F 3F4038403F 6314081463 0708700807 6151494543 2054545478 7F48444438 3844444420 384444487F \
    3854545418 087E090102 0C5252523E 7F08040478 00447D4000 2040443D00 7F10284400 00417F4000 7C04180478 7C08040478 \
    3844444438 7C14141408 081414187C 7C08040408 4854545420 043F444020 3C4040207C 1C2040201C 3C4030403C 4428102844 \
    0C5050503C 4464544C44 0000000000 0060600000 0050300000 0036360000 0808080808 08083E0808 001C224100 0041221C00 \
    2010080402 2313086462 4040404040 1414141414";

/// Width of a letter with its gap, in font pixels.
const ADVANCE: usize = 6;
/// Height of a label's strip, in font pixels.
const STRIP: usize = 11;
/// Colour of the labels.
const INK: [u8; 3] = [235; 3];

/// The columns of a character, [`GLYPHS`]' way; a hollow box for one it does not draw.
fn glyph(character: char) -> [u8; 5] {
    const UNKNOWN: u64 = 0x7F_41_41_41_7F;
    let place = ALPHABET.chars().position(|c| c == character);
    let digits = place.and_then(|p| GLYPHS.split(' ').nth(p));
    let columns = digits.and_then(|d| u64::from_str_radix(d, 16).ok()).unwrap_or(UNKNOWN);
    let [.., a, b, c, d, e] = columns.to_be_bytes();
    [a, b, c, d, e]
}

/// An 8-bit RGB canvas.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    fn black(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0; 3]; width * height] }
    }

    /// Copies a picture to column `left`, row `top`.
    fn paste(&mut self, picture: &Image, left: usize, top: usize) {
        let Samples::U8(samples) = picture.to_8_bit().samples else {
            return;
        };
        let count = picture.channels.count();
        for (y, row) in samples.chunks_exact(picture.width * count).enumerate() {
            for (x, pixel) in row.chunks_exact(count).enumerate() {
                self.pixels[(top + y) * self.width + left + x] = [0, 1, 2].map(|c| pixel[c.min(count - 1)]);
            }
        }
    }

    /// Writes `text`, `scale` pixels a font pixel, until column `right`.
    fn write(&mut self, text: &str, left: usize, right: usize, scale: usize) {
        for (i, character) in text.chars().enumerate() {
            for (column, bits) in glyph(character).into_iter().enumerate() {
                for row in (0..7).filter(|row| bits >> row & 1 == 1) {
                    let x = left + (i * ADVANCE + column + 2) * scale;
                    let y = (row + 2) * scale;
                    self.fill(x..(x + scale).min(right), y..y + scale);
                }
            }
        }
    }

    fn fill(&mut self, columns: std::ops::Range<usize>, rows: std::ops::Range<usize>) {
        for y in rows.start..rows.end.min(self.height) {
            for x in columns.clone() {
                self.pixels[y * self.width + x] = INK;
            }
        }
    }
}

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
    let mut canvas = Canvas::black(width, tallest + STRIP * scale);
    let mut left = 0;
    for (label, picture) in pictures {
        canvas.write(label, left, left + picture.width, scale);
        canvas.paste(picture, left, STRIP * scale);
        left += picture.width + gap;
    }
    Image::new(width, canvas.height, Channels::Rgb, Samples::U8(canvas.pixels.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize, value: u16) -> Image {
        Image::new(width, height, Channels::Grey, Samples::U16(vec![value; width * height])).unwrap()
    }

    #[test]
    fn every_character_has_its_own_glyph() {
        assert_eq!(GLYPHS.split(' ').count(), ALPHABET.chars().count());
        let mut all: Vec<_> = ALPHABET.chars().map(glyph).collect();
        all.push(glyph('é'));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALPHABET.chars().count() + 1);
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
