//! Image files in and out, colour, padding: everything between a file's pixels and a network's plane of `f32`.
//!
//! [`Image`] is a decoded picture, [`FusionPair`] two registered ones on their way into a network and back:
//!
//! ```no_run
//! use medfuse::imaging::{FusionPair, Image};
//! let pair = FusionPair::new(Image::load("mri.png")?, Image::load("pet.png")?)?;
//! let fused = pair.mri_input(); // a network's answer, in [-1, 1]
//! pair.fused_image(&fused)?.save("fused.png", 95)?;
//! # Ok::<(), medfuse::imaging::ImagingError>(())
//! ```

pub(crate) mod canvas;
mod colour;
mod decode;
mod encode;
mod fusion_pair;
mod montage;
mod pad;
pub mod pairs;
pub mod phantom;

pub use colour::{Sample, ycrcb_from_rgb};
pub(crate) use encode::format_for;
pub use fusion_pair::FusionPair;
pub use montage::contact_sheet;
pub use pad::Padding;
pub(crate) use pad::{MIN_SIDE, pad_to_multiple};

use std::path::PathBuf;

/// Largest width or height that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// What a picture can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImagingError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, in the operating system's words.
        reason: std::io::Error,
    },
    /// The content is none of the known formats, whatever the name says.
    #[error("{path} is not an image: its content is none of PNG, JPEG, BMP or TIFF, whatever its name says", path = path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// The file starts as an image but is cut short or corrupt.
    #[error("{path} is a damaged {format} file ({reason}); copy or export it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What the decoder found.
        reason: String,
    },
    /// A valid image of a kind that is not handled.
    #[error("{path} is an unsupported {format} file ({what}); convert it to 8 or 16 bit grey or RGB", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What is not handled.
        what: String,
    },
    /// The picture is larger than [`MAX_SIDE`] or than the decoder's memory limit.
    #[error("{path} is too large: at most {MAX_SIDE} x {MAX_SIDE} pixels are read", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A side is shorter than `MIN_SIDE`.
    #[error("an image of {width} x {height} pixels is too small to fuse: each side needs at least {MIN_SIDE} pixels")]
    TooSmall {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// The two images of a pair have different sizes (width, height).
    #[error("the images differ in size: MRI {}x{}, other {}x{} pixels; register them to one grid first", mri.0, mri.1, other.0, other.1)]
    SizeMismatch {
        /// Width and height of the MRI.
        mri: (usize, usize),
        /// Width and height of the other image.
        other: (usize, usize),
    },
    /// The number of samples is not width x height x channels.
    #[error("{width} x {height} pixels need {expected} samples, not {got}")]
    SampleCount {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Samples that this size needs.
        expected: usize,
        /// Samples that came.
        got: usize,
    },
    /// The fused plane holds NaN or infinite values.
    #[error("the fused image has {count} values that are not finite; nothing is written")]
    NotFinite {
        /// How many.
        count: usize,
    },
    /// A phantom of this size cannot be drawn.
    #[error("a phantom has {} to {} pixels a side, not {size}", phantom::MIN_SIZE, phantom::MAX_SIZE)]
    PhantomSize {
        /// The size that was asked for, in pixels.
        size: usize,
    },
    /// No format is known for the extension of an output name.
    #[error("cannot tell the format of {path}: name it .png, .jpg, .bmp or .tif", path = path.display())]
    UnknownExtension {
        /// The output name.
        path: PathBuf,
    },
    /// The output cannot be encoded or written.
    #[error("cannot write {path}: {reason}", path = path.display())]
    Unwritable {
        /// The output.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The samples of an image, at the depth of its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Samples {
    /// 8 bit, 0 to 255.
    U8(Vec<u8>),
    /// 16 bit, 0 to 65535.
    U16(Vec<u16>),
}

impl Samples {
    /// How many samples there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the samples of a pixel are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channels {
    /// One grey sample.
    Grey,
    /// Red, green, blue.
    Rgb,
}

impl Channels {
    /// Samples a pixel.
    pub const fn count(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

/// A decoded picture, opaque: row-major, samples of a pixel side by side, at the depth of its file.
///
/// Transparency does not survive decoding. A fused image has no place for it (the MRI shows through wherever the
/// other image is empty), so an alpha channel is flattened over black, the background of every modality here;
/// where it is opaque, the usual case, that changes nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    width: usize,
    height: usize,
    channels: Channels,
    samples: Samples,
}

impl Image {
    /// A picture from its samples.
    ///
    /// # Errors
    /// [`ImagingError::SampleCount`] unless there are `width * height * channels.count()` samples, at least one.
    pub fn new(width: usize, height: usize, channels: Channels, samples: Samples) -> Result<Self, ImagingError> {
        let expected = width.saturating_mul(height).saturating_mul(channels.count());
        if samples.len() != expected || expected == 0 {
            return Err(ImagingError::SampleCount { width, height, expected, got: samples.len() });
        }
        Ok(Self { width, height, channels, samples })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// What a pixel holds.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The samples, row-major, pixel by pixel.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }
}
