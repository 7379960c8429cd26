// What the kernels of group normalisation's gradient share. Needs `activation`.

override ACTIVATION: u32 = 0u;
override SLOPE: f32 = 0.0;

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    affine: u32,
    batch: u32,
    channels: u32,
    plane: u32,
    // Of what group_norm_sums.wgsl writes, for the gradient by x.
    sums_offset: u32,
    sums_batch_stride: u32,
    groups: u32,
    // Pixels of a chunk, chunks of a channel.
    chunk_len: u32,
    chunk_count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;

// Weight and bias of a channel.
fn affine_of(c: u32) -> vec2<f32> {
    if p.affine == 0u {
        return vec2(1.0, 0.0);
    }
    return vec2(weight[p.weight_offset + c], bias[p.bias_offset + c]);
}

// The gradient before the activation, for a deviation from the mean.
fn before_activation(deviation: f32, scale: f32, shift: f32, grad: f32) -> f32 {
    return grad * activation_derivative(ACTIVATION, SLOPE, fma(deviation, scale, shift));
}
