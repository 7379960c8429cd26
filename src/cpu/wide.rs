//! Loops compiled for the widest vectors that the machine has.

use pulp::{Arch, Simd, WithSimd};

/// `f(args)`, compiled for the widest vectors of this machine.
///
/// `f` must be the name of a function marked `#[inline(always)]`, and so must everything be that it calls in its loops.
/// A closure would not do: unless the optimiser happens to inline it, it stays code for the oldest processors.
pub fn wide<A, R>(args: A, f: impl FnOnce(A) -> R) -> R {
    Arch::new().dispatch(Call { args, f })
}

struct Call<A, F> {
    args: A,
    f: F,
}

impl<A, R, F: FnOnce(A) -> R> WithSimd for Call<A, F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.f)(self.args)
    }
}
