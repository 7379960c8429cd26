// Batch normalisation with running statistics: act((x - mean) / sqrt(variance + eps) * weight + bias).
// A workgroup normalises 1,024 pixels of one channel.
//#use activation

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    mean_offset: u32,
    variance_offset: u32,
    batch: u32,
    channels: u32,
    plane: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> running_mean: array<f32>;
@group(0) @binding(5) var<storage, read> running_variance: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

fn activated(v: f32) -> f32 {
//@body
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.plane + 1023u) / 1024u;
    let index = group.y * groups.x + group.x;
    let row = index / blocks;
    if row >= p.batch * p.channels {
        return;
    }
    let first = (index % blocks) * 1024u;
    let item = row / p.channels;
    let c = row % p.channels;
    let source = p.x_offset + item * p.x_batch_stride + c * p.plane;
    let to = p.out_offset + item * p.out_batch_stride + c * p.plane;
    let mean = running_mean[p.mean_offset + c];
    let scale = weight[p.weight_offset + c] / sqrt(running_variance[p.variance_offset + c] + p.eps);
    let shift = bias[p.bias_offset + c];
    let last = min(first + 1024u, p.plane);
    for (var i = first + lane; i < last; i += 64u) {
        out[to + i] = activated(fma(x[source + i] - mean, scale, shift));
    }
}
