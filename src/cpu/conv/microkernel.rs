//! The innermost product: a block of output channels times a few vectors of pixels or tiles.

use pulp::{Simd, WithSimd};

/// Output channels of one packed block of weights.
pub(super) const OC_BLOCK: usize = 8;
/// Most vectors of a panel.
pub(super) const PANEL_VECTORS: usize = 3;

/// `c[o][t] = sum over k of a[k][o] * b[k][t]` for [`OC_BLOCK`] rows `o` and `vectors` vectors of `t`, summed in the
/// order of `k`. Added to what `c` holds if `accumulate`.
pub(super) struct Product<'a> {
    /// Packed weights, `[k][OC_BLOCK]`.
    pub(super) a: &'a [f32],
    /// The packed panel, `[k][vectors * lanes]`.
    pub(super) b: &'a [f32],
    /// Vectors of the panel, 1 to [`PANEL_VECTORS`].
    pub(super) vectors: usize,
    /// The sums.
    pub(super) c: &'a mut [f32],
    /// Elements from one row of `c` to the next.
    pub(super) c_stride: usize,
    /// Whether `c` already holds sums to go on with.
    pub(super) accumulate: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match self.vectors {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            _ => self.rows::<S, PANEL_VECTORS>(simd),
        }
    }
}

impl Product<'_> {
    /// Computes all rows at once if their sums fit into registers, else in two halves.
    #[inline(always)]
    fn rows<S: Simd, const NV: usize>(&mut self, simd: S) {
        if const { S::REGISTER_COUNT >= 32 } {
            self.tile::<S, 0, OC_BLOCK, NV>(simd);
        } else {
            self.tile::<S, 0, 4, NV>(simd);
            self.tile::<S, 4, 4, NV>(simd);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const FIRST: usize, const ROWS: usize, const NV: usize>(&mut self, simd: S) {
        let (b, _) = S::as_simd_f32s(self.b);
        let mut sums = [[simd.splat_f32s(0.0); NV]; ROWS];
        if self.accumulate {
            for (i, sums) in sums.iter_mut().enumerate() {
                let row = S::as_simd_f32s(&self.c[(FIRST + i) * self.c_stride..]).0;
                sums.copy_from_slice(&row[..NV]);
            }
        }
        for (a, b) in self.a.chunks_exact(OC_BLOCK).zip(b.chunks_exact(NV)) {
            for i in 0..ROWS {
                let weight = simd.splat_f32s(a[FIRST + i]);
                for j in 0..NV {
                    sums[i][j] = simd.mul_add_e_f32s(weight, b[j], sums[i][j]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let row = S::as_mut_simd_f32s(&mut self.c[(FIRST + i) * self.c_stride..]).0;
            row[..NV].copy_from_slice(sums);
        }
    }
}
