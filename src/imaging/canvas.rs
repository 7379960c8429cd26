//! A picture to draw on: rectangles, lines, text in a font of its own.

use std::ops::Range;

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
pub(crate) const ADVANCE: usize = 6;
/// Height of a letter, in font pixels.
pub(crate) const LETTER: usize = 7;

/// The columns of a character, [`GLYPHS`]' way; a hollow box for one it does not draw.
fn glyph(character: char) -> [u8; 5] {
    const UNKNOWN: u64 = 0x7F_41_41_41_7F;
    let place = ALPHABET.chars().position(|c| c == character);
    let digits = place.and_then(|p| GLYPHS.split(' ').nth(p));
    let columns = digits.and_then(|d| u64::from_str_radix(d, 16).ok()).unwrap_or(UNKNOWN);
    let [.., a, b, c, d, e] = columns.to_be_bytes();
    [a, b, c, d, e]
}

/// An 8-bit RGB picture to draw on. What would lie outside is not drawn.
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    /// A canvas of one colour.
    pub(crate) fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, pixels: vec![colour; width * height] }
    }

    /// Copies a picture to column `left`, row `top`.
    pub(crate) fn paste(&mut self, picture: &Image, left: usize, top: usize) {
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

    /// Writes `text` from column `columns.start` until `columns.end`, `scale` pixels a font pixel. Letters, digits and
    /// `.,:-+()/%_=` are drawn, for others a hollow box.
    pub(crate) fn write(&mut self, text: &str, columns: Range<usize>, top: usize, scale: usize, ink: [u8; 3]) {
        for (i, character) in text.chars().enumerate() {
            for (column, bits) in glyph(character).into_iter().enumerate() {
                for row in (0..LETTER).filter(|row| bits >> row & 1 == 1) {
                    let x = columns.start + (i * ADVANCE + column) * scale;
                    let y = top + row * scale;
                    self.fill(x..(x + scale).min(columns.end), y..y + scale, ink);
                }
            }
        }
    }

    /// Fills a rectangle.
    pub(crate) fn fill(&mut self, columns: Range<usize>, rows: Range<usize>, ink: [u8; 3]) {
        for y in rows.start..rows.end.min(self.height) {
            for x in columns.start..columns.end.min(self.width) {
                self.pixels[y * self.width + x] = ink;
            }
        }
    }

    /// The picture.
    ///
    /// # Errors
    /// [`ImagingError::SampleCount`] if the canvas has no pixels.
    pub(crate) fn image(self) -> Result<Image, ImagingError> {
        Image::new(self.width, self.height, Channels::Rgb, Samples::U8(self.pixels.concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_its_own_glyph() {
        assert_eq!(GLYPHS.split(' ').count(), ALPHABET.chars().count());
        let mut all: Vec<_> = ALPHABET.chars().map(glyph).collect();
        all.push(glyph('é'));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALPHABET.chars().count() + 1);
    }
}
