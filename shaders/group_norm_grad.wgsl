// The gradient of a group norm with respect to x, from the sums of group_norm_sums.wgsl, where xhat and d are defined.
// Means are over the pixels and channels of a group:
// out = (weight * d - mean(weight * d) - xhat * mean(weight * d * xhat)) / sqrt(variance + eps).
// x, dy and out are [n][channels][plane], sums is [n][4][channels].
// means: a workgroup computes both means of a group. Workgroups: x over groups, y over the batch.
// main: an invocation computes 16 pixels of one channel, 64 apart.
//     Workgroups: x over 1,024 pixels, y over channels, z over the batch.
//#use place
//#use derivative
//#use affine
//#use lanes

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    sums_offset: u32,
    sums_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Whether there are a weight and a bias.
    affine: u32,
    groups: u32,
    // Channels of a group.
    group_channels: u32,
    channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// Of every channel the sum of d, the sum of d * xhat, the mean and the inverse standard deviation: [n][4][channels].
@group(0) @binding(5) var<storage, read> sums: array<f32>;
// Means of weight * d and of weight * d * xhat: [n][groups].
@group(0) @binding(6) var<storage, read_write> group_means: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn means(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let row = p.sums_offset + at.y * p.sums_batch_stride;
    let first = at.x * p.group_channels;
    var own = vec2(0.0);
    for (var c = first + lane; c < first + p.group_channels; c += 64u) {
        own += affine_of(c).x * vec2(sums[row + c], sums[row + p.channels + c]);
    }
    let all = total(lane, own);
    if lane == 0u {
        group_means[at.y * p.groups + at.x] = all / f32(p.group_channels * p.plane);
    }
}

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
    let source = p.x_offset + at.z * p.x_batch_stride + at.y * p.plane;
    let grads = p.dy_offset + at.z * p.dy_batch_stride + at.y * p.plane;
    let to = p.out_offset + at.z * p.out_batch_stride + at.y * p.plane;
    let row = p.sums_offset + at.z * p.sums_batch_stride + at.y;
    let mean = sums[row + 2u * p.channels];
    let rstd = sums[row + 3u * p.channels];
    let affine = affine_of(at.y);
    let scale = rstd * affine.x;
    let of_group = group_means[at.z * p.groups + at.y / p.group_channels];
    let last = min((at.x + 1u) * 1024u, p.plane);
    for (var i = at.x * 1024u + lane; i < last; i += 64u) {
        let deviation = x[source + i] - mean;
        let d = dy[grads + i] * derivative(fma(deviation, scale, affine.y));
        out[to + i] = rstd * (affine.x * d - of_group.x - deviation * rstd * of_group.y);
    }
}
