//! Two registered images on their way into a network, and the network's answer on its way back.

use std::path::Path;

use super::{Image, ImagingError, MIN_SIDE, Samples};

/// An MRI and the other image (CT, PET or SPECT) of the same slice, of one size.
///
/// The networks fuse grey with grey. A colour MRI is used by its grey; a colour other image gives its chroma to the
/// result. The result has 16 bits if both images do, else 8.
#[derive(Clone, Debug)]
pub struct FusionPair {
    mri: Image,
    other: Image,
}

impl FusionPair {
    /// A pair of two decoded images.
    ///
    /// # Errors
    /// [`ImagingError::SizeMismatch`] or [`ImagingError::TooSmall`].
    pub fn new(mri: Image, other: Image) -> Result<Self, ImagingError> {
        let (mri_size, other_size) = ((mri.width, mri.height), (other.width, other.height));
        if mri_size != other_size {
            return Err(ImagingError::SizeMismatch { mri: mri_size, other: other_size });
        }
        let (width, height) = mri_size;
        if width.min(height) < MIN_SIDE {
            return Err(ImagingError::TooSmall { width, height });
        }
        Ok(Self { mri, other })
    }

    /// The pair of two image files.
    ///
    /// # Errors
    /// Those of [`Image::load`] and [`FusionPair::new`].
    pub fn load(mri: impl AsRef<Path>, other: impl AsRef<Path>) -> Result<Self, ImagingError> {
        Self::new(Image::load(mri)?, Image::load(other)?)
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.mri.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.mri.height
    }

    /// The MRI's grey in [-1, 1], row-major.
    pub fn mri_input(&self) -> Vec<f32> {
        self.mri.network_input()
    }

    /// The other image's grey in [-1, 1], row-major.
    pub fn other_input(&self) -> Vec<f32> {
        self.other.network_input()
    }

    /// The picture of a network's output `plane` (row-major, of the pair's size, clamped to [-1, 1]): in the other
    /// image's colour, or grey where that is.
    ///
    /// # Errors
    /// [`ImagingError::SampleCount`] if the plane has another size, [`ImagingError::NotFinite`] if it holds NaN or infinities.
    pub fn fused_image(&self, plane: &[f32]) -> Result<Image, ImagingError> {
        match self.mri.samples {
            Samples::U8(_) => self.other.to_8_bit().with_luma(plane),
            Samples::U16(_) => self.other.with_luma(plane),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Channels;

    fn grey8(width: usize, height: usize) -> Image {
        Image::new(width, height, Channels::Grey, Samples::U8(vec![9; width * height])).unwrap()
    }

    fn grey16(width: usize, height: usize) -> Image {
        Image::new(width, height, Channels::Grey, Samples::U16(vec![9; width * height])).unwrap()
    }

    #[test]
    fn different_sizes_are_refused_with_both_sizes() {
        let error = FusionPair::new(grey8(4, 3), grey8(3, 4)).unwrap_err().to_string();
        assert!(error.contains("4x3") && error.contains("3x4"), "{error}");
    }

    #[test]
    fn one_pixel_is_refused() {
        let error = FusionPair::new(grey8(1, 1), grey8(1, 1)).unwrap_err();
        assert!(matches!(error, ImagingError::TooSmall { width: 1, height: 1 }));
    }

    #[test]
    fn the_result_is_deep_only_if_both_images_are() {
        let depth = |mri, other| match FusionPair::new(mri, other).unwrap().fused_image(&[0.0; 4]).unwrap().samples {
            Samples::U8(_) => 8,
            Samples::U16(_) => 16,
        };
        assert_eq!(depth(grey16(2, 2), grey16(2, 2)), 16);
        assert_eq!(depth(grey8(2, 2), grey16(2, 2)), 8);
        assert_eq!(depth(grey16(2, 2), grey8(2, 2)), 8);
    }

    #[test]
    fn a_plane_of_another_size_is_refused() {
        let pair = FusionPair::new(grey8(2, 2), grey8(2, 2)).unwrap();
        assert!(matches!(pair.fused_image(&[0.0; 5]), Err(ImagingError::SampleCount { expected: 4, got: 5, .. })));
    }
}
