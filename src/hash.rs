//! A hash that is the same on every machine and in every version.

/// The FNV-1a hash of bytes.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// What FNV-1a multiplies by.
pub(crate) const FNV_PRIME: u64 = 0x0100_0000_01b3;
