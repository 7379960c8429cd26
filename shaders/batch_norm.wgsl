// Batch normalisation with running statistics:
// out = activation((x - running_mean) / sqrt(running_variance + eps) * weight + bias).
// x and out are [n][channels][plane]. An invocation computes 16 pixels of one channel, 64 apart.
// Workgroups: x over 1,024 pixels, y over channels, z over the batch.
//#use place
//#use activated

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    running_mean_offset: u32,
    running_variance_offset: u32,
    out_offset: u32,
    out_batch_stride: u32,
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
    let mean = running_mean[p.running_mean_offset + at.y];
    let deviation = sqrt(running_variance[p.running_variance_offset + at.y] + p.eps);
    let scale = weight[p.weight_offset + at.y] / deviation;
    let shift = bias[p.bias_offset + at.y];
    let source = p.x_offset + at.z * p.x_batch_stride + at.y * p.plane;
    let to = p.out_offset + at.z * p.out_batch_stride + at.y * p.plane;
    let last = min((at.x + 1u) * 1024u, p.plane);
    for (var i = at.x * 1024u + lane; i < last; i += 64u) {
        out[to + i] = activated(fma(x[source + i] - mean, scale, shift));
    }
}
