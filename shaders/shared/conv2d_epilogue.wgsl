// What is added to a convolution's sums, and the activation. Needs `conv2d` and the bindings `bias`, `channel_add` and
// `residual`.

// What there is to add. These are constants because llvmpipe pays for a branch in every load and store inside it.
override BIAS: bool = false;
override CHANNEL_ADD: bool = false;
override RESIDUAL: bool = false;

// What every pixel of channel `oc` of item `n` gets.
fn shift_of(n: u32, oc: u32) -> f32 {
    var shift = 0.0;
    if BIAS {
        shift += bias[p.bias_offset + oc];
    }
    if CHANNEL_ADD {
        shift += channel_add[p.add_offset + n * p.add_batch_stride + oc];
    }
    return shift;
}

// The value stored at element `i` of batch item `n`.
fn finish(value: f32, n: u32, i: u32) -> f32 {
    var sum = value;
    if RESIDUAL {
        let at = p.residual_offset + n * p.residual_batch_stride + i;
        sum += residual[at / 4u][at % 4u];
    }
    return activate(ACTIVATION, SLOPE, sum);
}

// The four values stored from element `i` of batch item `n` on, where all offsets are multiples of 4.
fn finish4(values: vec4<f32>, n: u32, i: u32) -> vec4<f32> {
    var sum = values;
    if RESIDUAL {
        sum += residual[(p.residual_offset + n * p.residual_batch_stride + i) / 4u];
    }
    return vec4(
        activate(ACTIVATION, SLOPE, sum.x),
        activate(ACTIVATION, SLOPE, sum.y),
        activate(ACTIVATION, SLOPE, sum.z),
        activate(ACTIVATION, SLOPE, sum.w),
    );
}
