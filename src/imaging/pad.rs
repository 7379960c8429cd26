//! Reflection padding to a network's multiple, and the crop back.

/// Shortest side that reflection can extend, in pixels.
pub(crate) const MIN_SIDE: usize = 2;

/// The size of a plane before and after `pad_to_multiple`.
///
/// All padding is at the right and at the bottom, so pixel (0, 0) keeps its place in the network's strides and a
/// plane that needs no padding passes unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Padding {
    /// Height of the plane, in pixels.
    pub height: usize,
    /// Width of the plane, in pixels.
    pub width: usize,
    /// Height with padding.
    pub padded_height: usize,
    /// Width with padding.
    pub padded_width: usize,
}

impl Padding {
    /// The padding that takes `height` and `width` to multiples of `multiple` (at least 1) not below `min_side`.
    pub(crate) fn new(height: usize, width: usize, multiple: usize, min_side: usize) -> Self {
        let up = |side: usize| side.max(min_side).next_multiple_of(multiple.max(1));
        Self { height, width, padded_height: up(height), padded_width: up(width) }
    }

    /// The top left `height` x `width` of a padded plane.
    pub(crate) fn crop(&self, padded: &[f32]) -> Vec<f32> {
        let rows = padded.chunks_exact(self.padded_width).take(self.height);
        rows.flat_map(|row| &row[..self.width]).copied().collect()
    }
}

/// Where index `i` falls in a line of `n` pixels that is mirrored about its end pixels for ever (PyTorch's `reflect`,
/// which does not repeat the edge, carried on as often as it takes). A line of one pixel repeats it.
fn reflect(i: usize, n: usize) -> usize {
    let period = (2 * (n - 1)).max(1);
    let i = i % period;
    i.min(period - i).min(n - 1)
}

/// `plane` (row-major, `height` x `width`) extended by reflection to multiples of `multiple` not below `min_side`.
pub(crate) fn pad_to_multiple(
    plane: &[f32],
    height: usize,
    width: usize,
    multiple: usize,
    min_side: usize,
) -> (Vec<f32>, Padding) {
    let padding = Padding::new(height, width, multiple, min_side);
    let mut padded = Vec::with_capacity(padding.padded_height * padding.padded_width);
    for y in 0..padding.padded_height {
        let row = &plane[reflect(y, height) * width..][..width];
        padded.extend((0..padding.padded_width).map(|x| row[reflect(x, width)]));
    }
    (padded, padding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let (padded, _) = pad_to_multiple(&[1.0, 2.0, 3.0], 1, 3, 5, 1);
        assert_eq!(padded[..5], [1.0, 2.0, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn a_short_line_is_reflected_again_and_again() {
        let (padded, padding) = pad_to_multiple(&[1.0, 2.0, 3.0, 4.0], 2, 2, 4, 7);
        assert_eq!((padding.padded_height, padding.padded_width), (8, 8));
        assert_eq!(padded[..8], [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert_eq!(padded[56..], [3.0, 4.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0]);
        assert_eq!((0..9).map(|i| reflect(i, 3)).collect::<Vec<_>>(), [0, 1, 2, 1, 0, 1, 2, 1, 0]);
    }

    proptest! {
        #[test]
        fn the_crop_undoes_the_padding(height in 1_usize..70, width in 1_usize..70, multiple in 1_usize..33, min_side in 0_usize..80) {
            let plane: Vec<f32> = (0..height * width).map(|v| v as f32).collect();
            let (padded, padding) = pad_to_multiple(&plane, height, width, multiple, min_side);
            prop_assert_eq!(padding.padded_height % multiple + padding.padded_width % multiple, 0);
            prop_assert!(padding.padded_height >= min_side.max(height) && padding.padded_height < min_side.max(height) + multiple);
            prop_assert_eq!(padded.len(), padding.padded_height * padding.padded_width);
            prop_assert_eq!(padding.crop(&padded), plane);
        }
    }
}
