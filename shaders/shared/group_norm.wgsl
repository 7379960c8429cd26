// What the kernels of group normalisation's gradient share. Needs `activation`.

override ACTIVATION: u32 = 0u;
override SLOPE: f32 = 0.0;

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
