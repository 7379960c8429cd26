//! The convolution written as its definition: what tests compare all algorithms with.

use super::{ConvSpec, Epilogue, PaddingMode};
use crate::cpu::view::View;
use crate::tensor::Shape;

/// The convolution of `x` with `weight` in seven loops, summed in `f64`; a contiguous `[n, oc, oh, ow]`.
///
/// # Panics
/// If the shapes do not fit each other, see [`ConvSpec::output_shape`].
pub(crate) fn conv2d_reference(
    spec: &ConvSpec,
    x: View,
    weight: &[f32],
    weight_shape: Shape,
    epilogue: &Epilogue,
) -> Vec<f32> {
    let shape =
        spec.output_shape(x.shape, weight_shape).expect("the input, the weight and the hyperparameters fit each other");
    let [batch, out_channels, height, width] = shape.0;
    let [_, group_in, kh, kw] = weight_shape.0;
    let group_out = out_channels / spec.groups;
    let mut out = Vec::with_capacity(shape.numel());
    for n in 0..batch {
        for oc in 0..out_channels {
            for oy in 0..height {
                for ox in 0..width {
                    let mut sum = 0.0;
                    for ic in 0..group_in {
                        for ky in 0..kh {
                            for kx in 0..kw {
                                let tap = ((oc * group_in + ic) * kh + ky) * kw + kx;
                                let channel = oc / group_out * group_in + ic;
                                let y = oy * spec.stride[0] + ky * spec.dilation[0];
                                let x_ = ox * spec.stride[1] + kx * spec.dilation[1];
                                let value = padded(spec, x, [n, channel], [y, x_]);
                                sum += f64::from(weight[tap]) * f64::from(value);
                            }
                        }
                    }
                    let pixel = oy * width + ox;
                    let sum = sum + f64::from(epilogue.offset(n, oc));
                    let residual = epilogue.residual.map_or(0.0, |r| r.plane(n, oc)[pixel]);
                    let sum = (sum + f64::from(residual)) as f32;
                    out.push(epilogue.activation.apply(sum));
                }
            }
        }
    }
    out
}

/// A pixel of a channel of the upsampled and padded input; `[y, x]` is counted from the first pixel of the padding.
pub(super) fn padded(spec: &ConvSpec, x: View, [n, c]: [usize; 2], pixel: [usize; 2]) -> f32 {
    let extent = spec.extent(x.shape);
    let mut inside = [0; 2];
    for axis in 0..2 {
        let last = extent[axis] as isize - 1;
        let position = pixel[axis] as isize - spec.padding[axis] as isize;
        inside[axis] = match spec.padding_mode {
            PaddingMode::Zeros if !(0..=last).contains(&position) => return 0.0,
            PaddingMode::Zeros => position as usize,
            PaddingMode::Reflect => (last - (last - position.abs()).abs()) as usize,
        };
    }
    let [y, x_] = inside.map(|p| if spec.upsample { p / 2 } else { p });
    x.plane(n, c)[y * x.shape.w() + x_]
}
