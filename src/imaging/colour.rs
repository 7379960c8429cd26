//! Grey, YCrCb and the networks' range, bit for bit as the reference's libraries (Pillow, OpenCV, NumPy) compute them.

use super::{Channels, Image, ImagingError, Samples};

/// A sample of 8 or 16 bits.
pub trait Sample: Copy + PartialEq + Into<i64> {
    /// The largest value, white.
    const WHITE: i64;

    /// `v` clamped to `0..=WHITE`.
    fn saturate(v: i64) -> Self;
}

impl Sample for u8 {
    const WHITE: i64 = 255;

    fn saturate(v: i64) -> Self {
        v.clamp(0, Self::WHITE) as Self
    }
}

impl Sample for u16 {
    const WHITE: i64 = 65_535;

    fn saturate(v: i64) -> Self {
        v.clamp(0, Self::WHITE) as Self
    }
}

/// Drops the 14 fraction bits of OpenCV's fixed point, rounding half up.
fn descale(x: i64) -> i64 {
    (x + (1 << 13)) >> 14
}

/// Luma of an RGB pixel as Pillow's `convert("L")`: ITU-R 601 weights with 16 fraction bits.
fn luma<T: Sample>(rgb: [T; 3]) -> T {
    let [r, g, b] = rgb.map(Into::into);
    T::saturate((19_595 * r + 38_470 * g + 7_471 * b + (1 << 15)) >> 16)
}

/// An RGB pixel as `[Y, Cr, Cb]`, as OpenCV's `COLOR_RGB2YCrCb` (14-bit fixed point, saturated).
pub fn ycrcb_from_rgb<T: Sample>(rgb: [T; 3]) -> [T; 3] {
    let [r, g, b] = rgb.map(Into::into);
    let y = descale(4_899 * r + 9_617 * g + 1_868 * b);
    let chroma = |c: i64, gain: i64| descale((c - y) * gain + ((T::WHITE / 2 + 1) << 14));
    [y, chroma(r, 11_682), chroma(b, 9_241)].map(T::saturate)
}

/// A `[Y, Cr, Cb]` pixel as RGB, as OpenCV's `COLOR_YCrCb2RGB` (14-bit fixed point, saturated).
pub(crate) fn rgb_from_ycrcb<T: Sample>(ycrcb: [T; 3]) -> [T; 3] {
    let [y, cr, cb] = ycrcb.map(Into::into);
    let (cr, cb) = (cr - T::WHITE / 2 - 1, cb - T::WHITE / 2 - 1);
    let r = y + descale(22_987 * cr);
    let g = y + descale(-11_698 * cr - 5_636 * cb);
    let b = y + descale(29_049 * cb);
    [r, g, b].map(T::saturate)
}

/// The sample that a network's value stands for: clamped to [-1, 1], scaled to `0..=WHITE`, rounded half to even.
fn quantise<T: Sample>(x: f32) -> T {
    T::saturate(((x.clamp(-1.0, 1.0) + 1.0) / 2.0 * T::WHITE as f32).round_ties_even() as i64)
}

/// `plane` (a network's values) in the place of `picture`'s luma; its Cr and Cb stay. A picture without colour gives grey.
fn replace_luma<T: Sample>(picture: &[T], channels: Channels, plane: &[f32]) -> Vec<T> {
    let luma = plane.iter().map(|&x| quantise(x));
    match channels {
        Channels::Grey => luma.collect(),
        Channels::Rgb => {
            let recolour = |(&rgb, y): (&[T; 3], T)| {
                let [_, cr, cb] = ycrcb_from_rgb(rgb);
                rgb_from_ycrcb([y, cr, cb])
            };
            picture.as_chunks::<3>().0.iter().zip(luma).flat_map(recolour).collect()
        }
    }
}

fn grey_of<T: Sample>(rgb: &[T]) -> Vec<T> {
    rgb.as_chunks::<3>().0.iter().map(|&p| luma(p)).collect()
}

fn any_colour<T: Sample>(rgb: &[T]) -> bool {
    rgb.as_chunks::<3>().0.iter().any(|[r, g, b]| r != g || g != b)
}

impl Image {
    /// The grey picture: Pillow's `convert("L")` at 8 bit, the same weights at 16 bit.
    pub fn to_grey(&self) -> Self {
        let samples = match (&self.samples, self.channels) {
            (_, Channels::Grey) => return self.clone(),
            (Samples::U8(v), Channels::Rgb) => Samples::U8(grey_of(v)),
            (Samples::U16(v), Channels::Rgb) => Samples::U16(grey_of(v)),
        };
        Self { channels: Channels::Grey, samples, ..*self }
    }

    /// Whether any pixel's red, green and blue differ.
    pub(crate) fn is_coloured(&self) -> bool {
        match (&self.samples, self.channels) {
            (_, Channels::Grey) => false,
            (Samples::U8(v), Channels::Rgb) => any_colour(v),
            (Samples::U16(v), Channels::Rgb) => any_colour(v),
        }
    }

    /// The picture at 8 bit: 16-bit samples are divided by 257 and rounded to the nearest.
    pub(crate) fn to_8_bit(&self) -> Self {
        let samples = match &self.samples {
            Samples::U8(_) => return self.clone(),
            Samples::U16(v) => Samples::U8(v.iter().map(|&v| ((u32::from(v) + 128) / 257) as u8).collect()),
        };
        Self { samples, ..*self }
    }

    /// The grey picture in the networks' range [-1, 1], row-major: `v / WHITE * 2 - 1`, each step rounded to `f32`
    /// in the reference's order.
    pub(crate) fn network_input(&self) -> Vec<f32> {
        match self.to_grey().samples {
            Samples::U8(v) => v.iter().map(|&v| f32::from(v) / 255.0 * 2.0 - 1.0).collect(),
            Samples::U16(v) => v.iter().map(|&v| f32::from(v) / 65_535.0 * 2.0 - 1.0).collect(),
        }
    }

    /// An 8-bit grey picture of `plane`, row-major in the networks' range [-1, 1] (values outside are clamped).
    ///
    /// # Errors
    /// Those of [`Image::with_luma`].
    pub(crate) fn from_plane(width: usize, height: usize, plane: &[f32]) -> Result<Self, ImagingError> {
        Self::new(width, height, Channels::Grey, Samples::U8(vec![0; width * height]))?.with_luma(plane)
    }

    /// The picture with the luma of `plane`, a network's output in [-1, 1] of this size (values outside are clamped),
    /// and its own Cr and Cb, at its own depth; grey if it has no colour.
    ///
    /// # Errors
    /// [`ImagingError::SampleCount`] if the plane has another size, [`ImagingError::NotFinite`] if it holds NaN or infinities.
    pub(crate) fn with_luma(&self, plane: &[f32]) -> Result<Self, ImagingError> {
        let not_finite = plane.iter().filter(|x| !x.is_finite()).count();
        if not_finite > 0 {
            return Err(ImagingError::NotFinite { count: not_finite });
        }
        let (width, height) = (self.width, self.height);
        if plane.len() != width * height {
            return Err(ImagingError::SampleCount { width, height, expected: width * height, got: plane.len() });
        }
        let channels = if self.is_coloured() { Channels::Rgb } else { Channels::Grey };
        let samples = match &self.samples {
            Samples::U8(v) => Samples::U8(replace_luma(v, channels, plane)),
            Samples::U16(v) => Samples::U16(replace_luma(v, channels, plane)),
        };
        Image::new(width, height, channels, samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Colours, and what Pillow 13 (`convert("L")`) and OpenCV 5.0 (`COLOR_RGB2YCrCb`) make of them.
    const RGB: [u8; 48] = [
        0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0, 0, 255, 255, 255, 0, 255, 128, 128, 128,
        1, 2, 3, 254, 1, 77, 13, 200, 90, 200, 13, 250, 77, 78, 76, 250, 120, 3, 33, 44, 155,
    ];
    const LUMA: [u8; 16] = [0, 255, 76, 150, 29, 226, 179, 105, 128, 2, 85, 132, 96, 77, 146, 53];
    const YCRCB: [u8; 48] = [
        0, 128, 128, 255, 128, 128, 76, 255, 85, 150, 21, 43, 29, 107, 255, 226, 149, 1, 179, 0, 171, 105, 235, 213,
        128, 128, 128, 2, 127, 129, 85, 248, 123, 132, 43, 104, 96, 202, 215, 77, 128, 127, 146, 202, 47, 53, 114, 186,
    ];
    /// Another luma over the same chroma, and OpenCV's `COLOR_YCrCb2RGB` of that.
    const NEW_LUMA: [u8; 16] = [255, 0, 10, 250, 128, 0, 255, 3, 77, 200, 255, 0, 19, 255, 130, 240];
    const BACK: [u8; 48] = [
        255, 255, 255, 0, 0, 0, 188, 0, 0, 100, 255, 99, 99, 99, 255, 29, 29, 0, 75, 255, 255, 153, 0, 154, 77, 77, 77,
        199, 200, 202, 255, 171, 246, 0, 69, 0, 123, 0, 173, 255, 255, 253, 234, 105, 0, 220, 230, 255,
    ];

    /// `convert` of every pixel of three samples.
    fn each<T: Sample>(pixels: &[T], convert: impl Fn([T; 3]) -> [T; 3]) -> Vec<T> {
        pixels.as_chunks::<3>().0.iter().flat_map(|&p| convert(p)).collect()
    }

    fn rgb8() -> Image {
        Image::new(4, 4, Channels::Rgb, Samples::U8(RGB.to_vec())).unwrap()
    }

    #[test]
    fn grey_is_pillows() {
        assert_eq!(rgb8().to_grey().samples, Samples::U8(LUMA.to_vec()));
    }

    #[test]
    fn ycrcb_is_opencvs_with_its_clipping() {
        assert_eq!(each(&RGB, ycrcb_from_rgb), YCRCB);
        let mut changed = YCRCB;
        changed.iter_mut().step_by(3).zip(NEW_LUMA).for_each(|(y, new)| *y = new);
        assert_eq!(each(&changed, rgb_from_ycrcb), BACK);
    }

    #[test]
    fn ycrcb_is_opencvs_at_16_bit() {
        let rgb: [u16; 15] = [65535, 65535, 65535, 65535, 0, 0, 0, 0, 65535, 1000, 40000, 65000, 12345, 54321, 33333];
        let ycrcb =
            [65535, 32768, 32768, 19596, 65523, 21715, 7472, 27440, 65517, 31189, 11243, 51838, 39377, 13494, 29359];
        assert_eq!(each(&rgb, ycrcb_from_rgb), ycrcb);
        let changed: [u16; 9] = [30000, 65523, 21715, 65535, 11243, 51838, 50000, 13494, 29359];
        let back = [65535, 10415, 10403, 35335, 65535, 65535, 22958, 64934, 43956];
        assert_eq!(each(&changed, rgb_from_ycrcb), back);
    }

    #[test]
    fn luma_replaces_luma_and_colour_stays() {
        let plane: Vec<f32> = NEW_LUMA.iter().map(|&v| f32::from(v) / 255.0 * 2.0 - 1.0).collect();
        let fused = rgb8().with_luma(&plane).unwrap();
        assert_eq!(fused.samples, Samples::U8(BACK.to_vec()));
    }

    #[test]
    fn an_rgb_file_without_colour_gives_grey() {
        let grey = Image::new(2, 1, Channels::Rgb, Samples::U8(vec![7, 7, 7, 9, 9, 9])).unwrap();
        let fused = grey.with_luma(&[-1.0, 1.0]).unwrap();
        assert_eq!((fused.channels, fused.samples), (Channels::Grey, Samples::U8(vec![0, 255])));
    }

    #[test]
    fn samples_round_half_to_even_and_clamp() {
        // In f32, (x + 1) / 2 * 255 is exactly 64.5, 65.5, 66.5 and 127.5 here.
        let halves = [-0.494_117_62, -0.486_274_48, -0.478_431_34, 0.0];
        assert_eq!(halves.map(|x| (x + 1.0_f32) / 2.0 * 255.0), [64.5, 65.5, 66.5, 127.5]);
        assert_eq!(halves.map(quantise::<u8>), [64, 66, 66, 128]);
        assert_eq!([-1.5, 1.5].map(quantise::<u8>), [0, 255]);
        assert_eq!(quantise::<u16>(0.0), 32_768);
    }

    #[test]
    fn every_sample_survives_the_networks_range() {
        let all8: Vec<u8> = (0..=255).collect();
        let image = Image::new(256, 1, Channels::Grey, Samples::U8(all8)).unwrap();
        assert_eq!(image.with_luma(&image.network_input()).unwrap(), image);
        let all16: Vec<u16> = (0..=65_535).collect();
        let image = Image::new(256, 256, Channels::Grey, Samples::U16(all16)).unwrap();
        assert_eq!(image.with_luma(&image.network_input()).unwrap(), image);
    }

    #[test]
    fn sixteen_bits_round_to_eight() {
        let deep = Image::new(4, 1, Channels::Grey, Samples::U16(vec![0, 128, 129, 65_535])).unwrap();
        assert_eq!(deep.to_8_bit().samples, Samples::U8(vec![0, 0, 1, 255]));
    }

    #[test]
    fn not_a_number_is_refused() {
        let image = Image::new(2, 1, Channels::Grey, Samples::U8(vec![0, 0])).unwrap();
        let fused = image.with_luma(&[f32::NAN, 0.0]);
        assert!(matches!(fused, Err(ImagingError::NotFinite { count: 1 })));
    }
}
