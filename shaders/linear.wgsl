// A linear layer: act(weight * x + bias). A workgroup computes one output feature of one item.
//#use activation
//#use lanes

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    has_bias: u32,
    batch: u32,
    in_features: u32,
    out_features: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

fn activated(v: f32) -> f32 {
//@body
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    let item = index / p.out_features;
    if item >= p.batch {
        return;
    }
    let feature = index % p.out_features;
    let source = p.x_offset + item * p.x_batch_stride;
    let row = p.weight_offset + feature * p.in_features;
    var sum = 0.0;
    for (var i = lane; i < p.in_features; i += 64u) {
        sum = fma(weight[row + i], x[source + i], sum);
    }
    var value = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        if p.has_bias == 1u {
            value += bias[p.bias_offset + feature];
        }
        out[p.out_offset + item * p.out_batch_stride + feature] = activated(value);
    }
}
