//! Pictures into image files, whole or not at all.

use std::fmt::Display;
use std::io::Cursor;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat};

use super::{Channels, Image, ImagingError, Samples};
use crate::files::write_whole;

/// The format that the extension of `path` asks for.
///
/// # Errors
/// [`ImagingError::UnknownExtension`] for all but png, jpg, jpeg, bmp, tif and tiff, in any case.
pub(crate) fn format_for(path: &Path) -> Result<ImageFormat, ImagingError> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "png" => Ok(ImageFormat::Png),
        "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
        "bmp" => Ok(ImageFormat::Bmp),
        "tif" | "tiff" => Ok(ImageFormat::Tiff),
        _ => Err(ImagingError::UnknownExtension { path: path.into() }),
    }
}

impl Image {
    /// Writes the picture in the format of `path`'s extension, whole or not at all (see `write_whole`).
    ///
    /// PNG and TIFF keep 16 bits, JPEG (at `quality` 1 to 100) and BMP hold 8: deeper samples are rounded there.
    ///
    /// # Errors
    /// [`ImagingError::UnknownExtension`] or [`ImagingError::Unwritable`].
    pub fn save(&self, path: impl AsRef<Path>, quality: u8) -> Result<(), ImagingError> {
        let path = path.as_ref();
        let unwritable = |e: &dyn Display| ImagingError::Unwritable { path: path.into(), reason: e.to_string() };
        let encoded = self.encode(format_for(path)?, quality);
        let bytes = encoded.map_err(|e| unwritable(&e))?;
        write_whole(path, &bytes).map_err(|e| unwritable(&e))
    }

    /// The bytes of the picture's file in PNG, TIFF, BMP or (at `quality` 1 to 100) JPEG.
    pub(super) fn encode(&self, format: ImageFormat, quality: u8) -> image::ImageResult<Vec<u8>> {
        if matches!(format, ImageFormat::Jpeg | ImageFormat::Bmp) && matches!(self.samples, Samples::U16(_)) {
            return self.to_8_bit().encode(format, quality);
        }
        let (bytes, kind): (&[u8], _) = match (&self.samples, self.channels) {
            (Samples::U8(v), Channels::Grey) => (v, ExtendedColorType::L8),
            (Samples::U8(v), Channels::Rgb) => (v, ExtendedColorType::Rgb8),
            (Samples::U16(v), Channels::Grey) => (bytemuck::cast_slice(v), ExtendedColorType::L16),
            (Samples::U16(v), Channels::Rgb) => (bytemuck::cast_slice(v), ExtendedColorType::Rgb16),
        };
        let (width, height) = (self.width as u32, self.height as u32);
        let mut file = Cursor::new(Vec::new());
        match format {
            ImageFormat::Jpeg => {
                JpegEncoder::new_with_quality(&mut file, quality.clamp(1, 100))
                    .write_image(bytes, width, height, kind)?;
            }
            _ => image::write_buffer_with_format(&mut file, bytes, width, height, kind, format)?,
        }
        Ok(file.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures() -> Vec<Image> {
        let ramp8 = |n: usize| Samples::U8((0..n).map(|i| (i * 37 % 256) as u8).collect());
        let ramp16 = |n: usize| Samples::U16((0..n).map(|i| (i * 40_503 % 65_536) as u16).collect());
        [
            (Channels::Grey, ramp8(35)),
            (Channels::Rgb, ramp8(105)),
            (Channels::Grey, ramp16(35)),
            (Channels::Rgb, ramp16(105)),
        ]
        .into_iter()
        .map(|(channels, samples)| Image::new(7, 5, channels, samples).unwrap())
        .collect()
    }

    #[test]
    fn png_and_tiff_keep_every_sample() {
        let folder = tempfile::tempdir().unwrap();
        for (i, picture) in pictures().iter().enumerate() {
            for extension in ["png", "TIF"] {
                let path = folder.path().join(format!("{i}.{extension}"));
                picture.save(&path, 95).unwrap();
                assert_eq!(&Image::load(&path).unwrap(), picture, "{}", path.display());
            }
        }
    }

    #[test]
    fn bmp_and_jpeg_hold_8_bits() {
        let folder = tempfile::tempdir().unwrap();
        for picture in pictures() {
            let path = folder.path().join("out.bmp");
            picture.save(&path, 95).unwrap();
            assert_eq!(Image::load(&path).unwrap().to_grey(), picture.to_8_bit().to_grey());
            let path = folder.path().join("out.jpeg");
            picture.save(&path, 95).unwrap();
            let back = Image::load(&path).unwrap();
            assert_eq!((back.width(), back.height(), back.channels()), (7, 5, picture.channels()));
        }
    }

    #[test]
    fn an_unknown_extension_is_refused() {
        let error = pictures()[0].save("fused.gif", 95).unwrap_err();
        assert!(matches!(error, ImagingError::UnknownExtension { .. }), "{error}");
    }

    #[test]
    fn an_output_that_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let error = pictures()[0].save(folder.path().join("no/such/folder/out.png"), 95).unwrap_err();
        assert!(matches!(error, ImagingError::Unwritable { .. }), "{error}");
        std::fs::create_dir(folder.path().join("taken.png")).unwrap();
        let error = pictures()[0].save(folder.path().join("taken.png"), 95).unwrap_err();
        assert!(matches!(error, ImagingError::Unwritable { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
