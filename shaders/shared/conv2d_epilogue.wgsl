// What is added to a convolution's sums, and the activation. Needs `conv2d` and the bindings `bias`, `channel_add` and
// `residual`.

// Whether there is a residual: a constant because llvmpipe pays for a branch in every load inside it.
override RESIDUAL: bool = false;

// What every pixel of channel `oc` of item `n` gets.
fn shift_of(n: u32, oc: u32) -> f32 {
    var shift = 0.0;
    if (p.parts & 1u) != 0u {
        shift += bias[p.bias_offset + oc];
    }
    if (p.parts & 2u) != 0u {
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
