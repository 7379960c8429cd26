//! Loops compiled for the widest vectors that the machine has.

/// Defines a function whose body is compiled for the widest vectors of the machine that runs it. All its references
/// have one named lifetime; functions that its loops call must be marked `#[inline(always)]`.
///
/// A closure handed to [`pulp::Arch::dispatch`] would not do: unless the optimiser happens to inline it, its body is
/// compiled for the oldest processors.
macro_rules! wide_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$life:lifetime>($($arg:ident: $type:ty),+ $(,)?) -> $output:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name<$life>($($arg: $type),+) -> $output {
            struct Call<$life> {
                $($arg: $type),+
            }

            impl<$life> pulp::WithSimd for Call<$life> {
                type Output = $output;

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $output {
                    let Self { $($arg),+ } = self;
                    $body
                }
            }

            pulp::Arch::new().dispatch(Call { $($arg),+ })
        }
    };
}

pub(crate) use wide_fn;
