//! Element types of files and their conversion to and from `f32`.

use half::{bf16, f16};
use std::fmt;

// The formats are little-endian and elements are reinterpreted in place.
const _: () = assert!(cfg!(target_endian = "little"), "medfuse reads checkpoints on little-endian machines only");

/// The element type that a file stores a tensor in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StoredType {
    /// Double precision, rounded to `f32` when read.
    F64,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Signed, 64 bits; like all integers accepted where `f32` holds them exactly.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl StoredType {
    /// Bytes of one element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The elements in `bytes` (little-endian, a whole number of them) as `f32`; the first value that
    /// `f32` cannot represent as an error. Only f64 is rounded.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<Vec<f32>, String> {
        match self {
            Self::F32 => Ok(each(bytes, f32::from_le_bytes).collect()),
            Self::F16 => Ok(each(bytes, |b| f16::from_le_bytes(b).to_f32()).collect()),
            Self::BF16 => Ok(each(bytes, |b| bf16::from_le_bytes(b).to_f32()).collect()),
            Self::F64 => each(bytes, f64::from_le_bytes).map(rounded).collect(),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b).into()).map(exact).collect(),
            Self::I32 => each(bytes, |b| i32::from_le_bytes(b).into()).map(exact).collect(),
            Self::I16 => each(bytes, |b| i16::from_le_bytes(b).into()).map(exact).collect(),
            Self::I8 => each(bytes, |b| i8::from_le_bytes(b).into()).map(exact).collect(),
            Self::U64 => each(bytes, |b| u64::from_le_bytes(b).into()).map(exact).collect(),
            Self::U32 => each(bytes, |b| u32::from_le_bytes(b).into()).map(exact).collect(),
            Self::U16 => each(bytes, |b| u16::from_le_bytes(b).into()).map(exact).collect(),
            Self::U8 | Self::Bool => Ok(bytes.iter().map(|&b| f32::from(b)).collect()),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U16 => "u16",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

/// The element type that floats are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreType {
    /// Single precision: what was loaded, bit for bit.
    F32,
    /// Half precision, rounded to nearest even: half the size, a relative error up to 2^-11.
    F16,
}

impl StoreType {
    /// The bytes of `data`, little-endian; the first value over the range of the type as an error.
    pub(super) fn encode(self, data: &[f32]) -> Result<Vec<u8>, f32> {
        match self {
            Self::F32 => Ok(bytemuck::cast_slice(data).to_vec()),
            Self::F16 => {
                let mut bytes = Vec::with_capacity(2 * data.len());
                for &value in data {
                    let half = f16::from_f32(value);
                    if half.is_infinite() && value.is_finite() {
                        return Err(value);
                    }
                    bytes.extend_from_slice(&half.to_le_bytes());
                }
                Ok(bytes)
            }
        }
    }
}

fn each<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |b| element(*b))
}

fn exact(value: i128) -> Result<f32, String> {
    let float = value as f32;
    if float as i128 == value { Ok(float) } else { Err(value.to_string()) }
}

fn rounded(value: f64) -> Result<f32, String> {
    let float = value as f32;
    if float.is_infinite() && value.is_finite() { Err(format!("{value:e}")) } else { Ok(float) }
}

#[cfg(test)]
mod tests {
    use super::{StoreType, StoredType};

    #[test]
    fn integers_are_exact_or_refused() {
        let decode = |v: i64| StoredType::I64.decode(&v.to_le_bytes());
        assert_eq!(decode(-16_777_216), Ok(vec![-16_777_216.0]));
        assert_eq!(decode(16_777_217), Err("16777217".into()));
        assert_eq!(decode(i64::MAX), Err(i64::MAX.to_string()));
        assert_eq!(StoredType::I16.decode(&[0xfe, 0xff, 1, 0]), Ok(vec![-2.0, 1.0]));
        assert_eq!(StoredType::U8.decode(&[255]), Ok(vec![255.0]));
    }

    #[test]
    fn doubles_are_rounded_and_never_become_infinite() {
        let decode = |v: f64| StoredType::F64.decode(&v.to_le_bytes());
        assert_eq!(decode(0.1), Ok(vec![0.1]));
        assert_eq!(decode(f64::INFINITY), Ok(vec![f32::INFINITY]));
        assert_eq!(decode(1e300), Err("1e300".into()));
    }

    #[test]
    fn half_precision_refuses_what_overflows() {
        // 65519.996 is the largest f32 that rounds to 65504, the largest f16.
        assert_eq!(StoreType::F16.encode(&[65519.996]), Ok(vec![0xff, 0x7b]));
        assert_eq!(StoreType::F16.encode(&[1.0, 65520.0]), Err(65520.0));
        assert_eq!(StoreType::F16.encode(&[f32::NEG_INFINITY]), Ok(vec![0x00, 0xfc]));
        assert_eq!(StoredType::F16.decode(&[0xff, 0x7b]), Ok(vec![65504.0]));
        assert_eq!(StoredType::BF16.decode(&[0x80, 0x3f]), Ok(vec![1.0]));
    }
}
