// A linear layer: activation(weight * x + bias). A workgroup computes one output feature of one item.
// Workgroups: x over features, y over the batch.
//#use place
//#use activated
//#use lanes

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    weight_offset: u32,
    weight_batch_stride: u32,
    has_bias: u32,
    bias_offset: u32,
    in_features: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let source = p.x_offset + at.y * p.x_batch_stride;
    let row = p.weight_offset + at.x * p.weight_batch_stride;
    var sum = 0.0;
    for (var i = lane; i < p.in_features; i += 64u) {
        sum = fma(weight[row + i], x[source + i], sum);
    }
    var value = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        if p.has_bias == 1u {
            value += bias[p.bias_offset + at.x];
        }
        out[p.out_offset + at.y * p.out_batch_stride + at.x] = activated(value);
    }
}
