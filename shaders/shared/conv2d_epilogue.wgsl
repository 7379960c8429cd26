// What follows a convolution's sums: bias, channel add and residual are added, then the activation is applied. Needs
// the fields of `conv2d_output_fields` and the bindings `bias`, `channel_add` and `residual`.
//#use activated

// Whether a residual is added. A constant, because on llvmpipe every load inside a branch costs more.
override RESIDUAL: bool = false;

// What is added to every pixel of channel `oc` of item `n`: bias and channel add.
fn shift_of(n: u32, oc: u32) -> f32 {
    var shift = 0.0;
    if p.has_bias != 0u {
        shift += bias[p.bias_offset + oc];
    }
    if p.has_channel_add != 0u {
        shift += channel_add[p.channel_add_offset + n * p.channel_add_batch_stride + oc];
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
    return activated(sum);
}

// The four values stored from element `i` of batch item `n` on, where all offsets are multiples of 4.
fn finish4(values: vec4<f32>, n: u32, i: u32) -> vec4<f32> {
    var sum = values;
    if RESIDUAL {
        sum += residual[(p.residual_offset + n * p.residual_batch_stride + i) / 4u];
    }
    return vec4(activated(sum.x), activated(sum.y), activated(sum.z), activated(sum.w));
}
