//! The contact sheet of `medfuse compare`: pictures, enlarged patches, maps of differences.

use std::cmp::Reverse;

use crate::imaging::{Channels, Image, ImagingError, Samples};
use crate::metrics::Grey;

/// x, y, width and height of a rectangle in pixels.
pub(super) type Patch = [usize; 4];
/// A row of the sheet: its caption and its pictures.
pub(super) type Row = (String, Vec<Image>);

/// `X,Y,W,H` in pixels.
pub(super) fn parse_patch(text: &str) -> Result<Patch, String> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|n| n.parse().ok()).collect();
    let patch = numbers.and_then(|n| Patch::try_from(n).ok()).filter(|&[.., w, h]| w > 0 && h > 0);
    patch.ok_or_else(|| "must be X,Y,W,H in pixels, such as 96,64,64,64".into())
}

/// The square of a quarter of the shorter side where both images have most structure: the largest product of their gradient
/// energies (sums of squared forward differences), so that neither's contrast counts more. The first of equals.
fn busiest_patch(width: usize, height: usize, images: [&[u8]; 2]) -> Patch {
    let side = (width.min(height) / 4).max(1);
    let energy = |levels: &[u8], left: usize, top: usize| -> u128 {
        let places = (top..top + side - 1).flat_map(|y| (left..left + side - 1).map(move |x| y * width + x));
        let square = |a: u8, b: u8| u128::from(a.abs_diff(b)).pow(2);
        places.map(|i| square(levels[i + 1], levels[i]) + square(levels[i + width], levels[i])).sum()
    };
    let steps = |length: usize| (0..=length - side).step_by((side / 8).max(1));
    let places = steps(height).flat_map(|y| steps(width).map(move |x| (y, x)));
    let best = places.max_by_key(|&(y, x)| {
        let [a, b] = images.map(|levels| energy(levels, x, y));
        (a * b, a + b, Reverse((y, x)))
    });
    best.map_or([0, 0, side, side], |(y, x)| [x, y, side, side])
}

/// The patch of an image, every pixel a square of `factor` x `factor` pixels.
fn enlarged(image: &Image, [x, y, w, h]: Patch, factor: usize) -> Result<Image, ImagingError> {
    let count = image.channels().count();
    let pixels = (0..h * factor).flat_map(|row| (0..w * factor).map(move |column| (row / factor, column / factor)));
    let first = |row: usize, column: usize| ((y + row) * image.width() + x + column) * count;
    let samples = pixels.flat_map(|(row, column)| first(row, column)..first(row, column + 1));
    let samples = match image.samples() {
        Samples::U8(v) => Samples::U8(samples.filter_map(|i| v.get(i).copied()).collect()),
        Samples::U16(v) => Samples::U16(samples.filter_map(|i| v.get(i).copied()).collect()),
    };
    Image::new(w * factor, h * factor, image.channels(), samples)
}

/// `levels - reference` in colour: blue at -`scale` and below, white at 0, red at +`scale` and above.
fn difference_map(levels: &[u8], reference: &[u8], width: usize, scale: u8) -> Result<Image, ImagingError> {
    let colour = |(&level, &reference): (&u8, &u8)| {
        let pale = 255 - (u32::from(level.abs_diff(reference)) * 255 / u32::from(scale)).min(255) as u8;
        if level < reference { [pale, pale, 255] } else { [255, pale, pale] }
    };
    let pixels = levels.iter().zip(reference).flat_map(colour).collect();
    Image::new(width, levels.len() / width.max(1), Channels::Rgb, Samples::U8(pixels))
}

/// A pair's rows of the sheet; `images` are the two sources and the results, of one size.
pub(super) fn rows(name: &str, images: Vec<Image>, patch: Option<Patch>, scale: u8) -> Result<[Row; 3], ImagingError> {
    let greys: Vec<Grey> = images.iter().map(Grey::from).collect();
    let (width, height) = greys[0].size();
    let [mri, other] = [greys[0].levels(), greys[1].levels()];
    let maximum: Vec<u8> = mri.iter().zip(other).map(|(a, b)| *a.max(b)).collect();
    let patch @ [x, y, w, h] = patch.unwrap_or_else(|| busiest_patch(width, height, [mri, other]));
    let factor = (width / w).min(height / h);
    let patches = images.iter().map(|image| enlarged(image, patch, factor)).collect::<Result<_, _>>()?;
    let map = |grey: &Grey| difference_map(grey.levels(), &maximum, width, scale);
    let maps = greys.iter().map(map).collect::<Result<_, _>>()?;
    let caption = format!("{x},{y} {w}x{h} x{factor}");
    Ok([(name.to_owned(), images), (caption, patches), (format!("-max: blue -{scale}, red +{scale}"), maps)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_is_where_both_images_have_structure() {
        // The first has a strong edge where the second is flat, and both have a weak one at (10, 6).
        let levels = |points: &[(usize, usize, u8)]| {
            let mut levels = vec![100; 16 * 12];
            points.iter().for_each(|&(x, y, v)| levels[y * 16 + x] = v);
            levels
        };
        let (a, b, flat) = (levels(&[(2, 2, 255), (10, 6, 110)]), levels(&[(10, 6, 105)]), levels(&[]));
        // Differences start at the point and at its left and upper neighbours; the last row and column start none.
        assert_eq!(busiest_patch(16, 12, [&a, &b]), [9, 5, 3, 3]);
        assert_eq!(busiest_patch(16, 12, [&a, &flat]), [1, 1, 3, 3]);
        assert_eq!(busiest_patch(2, 3, [&[0; 6], &[0; 6]]), [0, 0, 1, 1]);
    }

    #[test]
    fn patches_are_enlarged_pixel_by_pixel() {
        let picture = Image::new(3, 2, Channels::Grey, Samples::U16((0..6).collect())).unwrap();
        let patch = enlarged(&picture, [1, 1, 2, 1], 2).unwrap();
        assert_eq!((patch.width(), patch.height()), (4, 2));
        assert_eq!(patch.samples(), &Samples::U16(vec![4, 4, 5, 5, 4, 4, 5, 5]));
        assert!(enlarged(&picture, [1, 1, 2, 2], 1).is_err());
    }

    #[test]
    fn differences_are_blue_white_and_red() {
        let pixels = |image: Image| match image.samples() {
            Samples::U8(v) => v.as_chunks::<3>().0.to_vec(),
            Samples::U16(_) => panic!("not 8 bit"),
        };
        let map = pixels(difference_map(&[10, 50, 70, 255], &[50, 50, 50, 0], 4, 40).unwrap());
        let (blue, white, red) = ([0, 0, 255], [255; 3], [255, 0, 0]);
        assert_eq!(map, [blue, white, [255, 128, 128], red]);
    }
}
