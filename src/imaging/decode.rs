//! Image files into pictures: PNG, JPEG, BMP and TIFF, told apart by content.

use std::io::Cursor;
use std::path::Path;

use image::error::UnsupportedErrorKind;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::colour::Sample;
use super::{Channels, Image, ImagingError, MAX_SIDE, Samples};

/// Memory that a decoder may take, in bytes; no larger file is read either.
const MAX_BYTES: u64 = 1 << 30;

impl Image {
    /// The picture in a PNG, JPEG, BMP or TIFF file; the name's extension plays no role.
    ///
    /// 8 and 16 bit grey and RGB keep their samples, fewer bits and PNG palettes become 8 bit. Alpha is flattened over black (see
    /// [`Image`]). The first page of a TIFF and the first frame of an animated PNG are read, EXIF orientation and
    /// colour profiles are not applied, as in the reference. Decoded JPEG may differ from libjpeg's by a few grey levels.
    ///
    /// # Errors
    /// [`ImagingError`]'s `Unreadable`, `NotAnImage`, `Damaged`, `Unsupported` (CMYK, float, ...) or `TooLarge`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ImagingError> {
        let path = path.as_ref();
        let unreadable = |reason| ImagingError::Unreadable { path: path.into(), reason };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
            return Err(ImagingError::TooLarge { path: path.into() });
        }
        Self::decode(&std::fs::read(path).map_err(unreadable)?, path)
    }

    /// The picture in the bytes of an image file; `path` is its name in errors. As [`Image::load`].
    ///
    /// # Errors
    /// Those of [`Image::load`] but `Unreadable`.
    pub(crate) fn decode(bytes: &[u8], path: impl AsRef<Path>) -> Result<Self, ImagingError> {
        let path = path.as_ref();
        let Some((format, name)) = format_of(bytes) else {
            return Err(ImagingError::NotAnImage { path: path.into() });
        };
        let failed = |error| decoding_error(error, path, name);
        if format == ImageFormat::Jpeg {
            check_jpeg(bytes, path)?;
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits());
        let decoder = reader.into_decoder().map_err(failed)?;
        if decoder.total_bytes() > MAX_BYTES {
            return Err(ImagingError::TooLarge { path: path.into() });
        }
        if let ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16 = decoder.original_color_type() {
            return Err(ImagingError::Unsupported { path: path.into(), format: name, what: "CMYK".into() });
        }
        let picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let (channels, samples) = match picture {
            DynamicImage::ImageLuma8(p) => (Channels::Grey, Samples::U8(p.into_raw())),
            DynamicImage::ImageLumaA8(p) => (Channels::Grey, Samples::U8(flatten::<u8, 2>(&p))),
            DynamicImage::ImageRgb8(p) => (Channels::Rgb, Samples::U8(p.into_raw())),
            DynamicImage::ImageRgba8(p) => (Channels::Rgb, Samples::U8(flatten::<u8, 4>(&p))),
            DynamicImage::ImageLuma16(p) => (Channels::Grey, Samples::U16(p.into_raw())),
            DynamicImage::ImageLumaA16(p) => (Channels::Grey, Samples::U16(flatten::<u16, 2>(&p))),
            DynamicImage::ImageRgb16(p) => (Channels::Rgb, Samples::U16(p.into_raw())),
            DynamicImage::ImageRgba16(p) => (Channels::Rgb, Samples::U16(flatten::<u16, 4>(&p))),
            deep => {
                let what = format!("{:?} samples", deep.color());
                return Err(ImagingError::Unsupported { path: path.into(), format: name, what });
            }
        };
        Image::new(width, height, channels, samples)
    }
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

/// The format that the first bytes announce, and its name.
fn format_of(bytes: &[u8]) -> Option<(ImageFormat, &'static str)> {
    let format = image::guess_format(bytes).ok()?;
    let name = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        _ => return None,
    };
    Some((format, name))
}

fn decoding_error(error: ImageError, path: &Path, format: &'static str) -> ImagingError {
    let path = path.to_path_buf();
    match error {
        ImageError::Limits(_) => ImagingError::TooLarge { path },
        ImageError::Unsupported(e) => {
            let what = match e.kind() {
                UnsupportedErrorKind::Color(_) => "an unusual kind of sample".into(),
                _ => e.to_string(),
            };
            ImagingError::Unsupported { path, format, what }
        }
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImagingError::Damaged { path, format, reason: "it ends too early".into() }
        }
        e => ImagingError::Damaged { path, format, reason: e.to_string() },
    }
}

/// Colour samples of `N`-sample pixels whose last sample is alpha, over black: `v * alpha / WHITE`, rounded to nearest.
fn flatten<T: Sample, const N: usize>(pixels: &[T]) -> Vec<T> {
    let over_black = |v: T, alpha: i64| T::saturate((v.into() * alpha + T::WHITE / 2) / T::WHITE);
    let flat = |p: &[T; N]| {
        let alpha = p[N - 1].into();
        p.map(|v| over_black(v, alpha)).into_iter().take(N - 1)
    };
    pixels.as_chunks::<N>().0.iter().flat_map(flat).collect()
}

/// Refuses what the JPEG decoder would pass in silence: four colour components (CMYK, turned into RGB without its
/// profile) and a file that ends before its end marker (missing rows come out grey).
fn check_jpeg(bytes: &[u8], path: &Path) -> Result<(), ImagingError> {
    let cut = || ImagingError::Damaged { path: path.into(), format: "JPEG", reason: "it ends too early".into() };
    let mut at = 2;
    loop {
        let &[0xff, marker, high, low] = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or_else(cut)? else {
            // Fill bytes between segments; anything stranger is the decoder's to judge.
            at += 1;
            continue;
        };
        let frame_header = matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
        if frame_header && *bytes.get(at + 9).ok_or_else(cut)? == 4 {
            return Err(ImagingError::Unsupported { path: path.into(), format: "JPEG", what: "CMYK".into() });
        }
        if marker == 0xda {
            let complete = bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
            return if complete { Ok(()) } else { Err(cut()) };
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ImageEncoder;
    use image::codecs::{png::PngEncoder, tiff::TiffEncoder};

    fn png(pixels: &[u8], width: u32, height: u32, kind: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(pixels, width, height, kind).unwrap();
        bytes
    }

    fn tiff(pixels: &[u8], width: u32, height: u32, kind: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        TiffEncoder::new(&mut bytes).write_image(pixels, width, height, kind).unwrap();
        bytes.into_inner()
    }

    fn noise(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * i % 251) as u8).collect()
    }

    fn decode(bytes: &[u8]) -> Result<Image, ImagingError> {
        Image::decode(bytes, "case")
    }

    #[test]
    fn a_png_cut_anywhere_is_damaged() {
        let whole = png(&noise(64 * 64), 64, 64, ExtendedColorType::L8);
        assert!(decode(&whole).is_ok());
        for kept in [9, 20, 40, whole.len() / 2, whole.len() - 30] {
            let error = decode(&whole[..kept]).unwrap_err();
            assert!(matches!(error, ImagingError::Damaged { format: "PNG", .. }), "{kept}: {error}");
        }
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_damaged() {
        let picture = Image::new(64, 64, Channels::Grey, Samples::U8(noise(64 * 64))).unwrap();
        let whole = picture.encode(ImageFormat::Jpeg, 95).unwrap();
        assert!(decode(&whole).is_ok());
        for kept in [4, 30, whole.len() / 2, whole.len() - 2] {
            let error = decode(&whole[..kept]).unwrap_err();
            assert!(matches!(error, ImagingError::Damaged { format: "JPEG", .. }), "{kept}: {error}");
        }
    }

    #[test]
    fn cut_bmp_and_tiff_are_damaged() {
        let picture = Image::new(64, 64, Channels::Grey, Samples::U8(noise(64 * 64))).unwrap();
        for format in [ImageFormat::Bmp, ImageFormat::Tiff] {
            let whole = picture.encode(format, 95).unwrap();
            let error = decode(&whole[..whole.len() / 2]).unwrap_err();
            assert!(matches!(error, ImagingError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn text_renamed_png_is_not_an_image() {
        let error = Image::decode(b"name,EN,SD\n0001,4.1,80.2\n", "table.png").unwrap_err();
        assert!(matches!(error, ImagingError::NotAnImage { .. }), "{error}");
        assert!(error.to_string().contains("table.png"));
        assert!(matches!(decode(b""), Err(ImagingError::NotAnImage { .. })));
    }

    #[test]
    fn a_missing_file_and_a_folder_are_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Image::load(folder.path().join("no.png")), Err(ImagingError::Unreadable { .. })));
        assert!(matches!(Image::load(folder.path()), Err(ImagingError::Unreadable { .. })));
    }

    #[test]
    fn the_content_decides_not_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("really_a_png.jpg");
        std::fs::write(&path, png(&[1, 2, 3, 4], 2, 2, ExtendedColorType::L8)).unwrap();
        assert_eq!(Image::load(&path).unwrap().samples(), &Samples::U8(vec![1, 2, 3, 4]));
    }

    #[test]
    fn opaque_alpha_is_dropped_and_transparency_is_black() {
        let picture = decode(&png(&[9, 8, 7, 255, 200, 100, 50, 0], 2, 1, ExtendedColorType::Rgba8)).unwrap();
        assert_eq!(picture.samples(), &Samples::U8(vec![9, 8, 7, 0, 0, 0]));
        let picture = decode(&png(&[200, 128, 255, 1], 2, 1, ExtendedColorType::La8)).unwrap();
        // 200 * 128 / 255 = 100.39, 255 * 1 / 255 = 1.
        assert_eq!(picture.samples(), &Samples::U8(vec![100, 1]));
        let deep = [65_535_u16, 32_768].map(u16::to_ne_bytes).concat();
        let picture = decode(&png(&deep, 1, 1, ExtendedColorType::La16)).unwrap();
        assert_eq!(picture.samples(), &Samples::U16(vec![32_768]));
    }

    #[test]
    fn float_and_cmyk_are_unsupported() {
        let float = tiff(bytemuck::cast_slice(&[0.5_f32; 12]), 2, 2, ExtendedColorType::Rgb32F);
        let error = decode(&float).unwrap_err();
        assert!(matches!(error, ImagingError::Unsupported { format: "TIFF", .. }), "{error}");
        // RGBA of photometric interpretation RGB (2) becomes CMYK with 5: the entry is tag 262, type SHORT, count 1.
        let mut cmyk = tiff(&[0; 16], 2, 2, ExtendedColorType::Rgba8);
        let entry = [6, 1, 3, 0, 1, 0, 0, 0];
        let at = cmyk.windows(8).position(|w| w == entry).unwrap();
        cmyk[at + 8] = 5;
        let error = decode(&cmyk).unwrap_err();
        assert!(matches!(error, ImagingError::Unsupported { format: "TIFF", .. }), "{error}");
    }

    #[test]
    fn a_four_component_jpeg_is_unsupported() {
        let picture = Image::new(8, 8, Channels::Rgb, Samples::U8(noise(8 * 8 * 3))).unwrap();
        let mut bytes = picture.encode(ImageFormat::Jpeg, 95).unwrap();
        let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        bytes[frame + 9] = 4;
        assert!(matches!(decode(&bytes), Err(ImagingError::Unsupported { format: "JPEG", .. })));
    }

    #[test]
    fn a_huge_size_is_refused_before_it_is_allocated() {
        let picture = Image::new(2, 2, Channels::Grey, Samples::U8(vec![0; 4])).unwrap();
        let mut bytes = picture.encode(ImageFormat::Bmp, 95).unwrap();
        bytes[18..22].copy_from_slice(&20_000_u32.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(ImagingError::TooLarge { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(mut tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0_usize..4, at in 0_usize..500, flip in 1_u8..) {
            let picture = Image::new(9, 7, Channels::Rgb, Samples::U8(noise(9 * 7 * 3))).unwrap();
            let format = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Tiff][kind];
            let mut bytes = picture.encode(format, 95).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.append(&mut tail);
            let _ = decode(&bytes);
            let _ = decode(&bytes[..at]);
        }
    }
}
