// The second half of group normalisation: out = activation((x - mean) / sqrt(variance + eps) * weight + bias), with the
// statistics of each group from group_norm_moments.wgsl. x and out are [n][channels][plane].
// An invocation computes 16 pixels of one channel, 64 apart. Workgroups: x over 1,024 pixels, y over channels, z over
// the batch.
//#use place
//#use activated
//#use affine

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Whether there are a weight and a bias.
    affine: u32,
    groups: u32,
    // Channels of a group.
    group_channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// Mean and inverse standard deviation: [n][groups].
@group(0) @binding(4) var<storage, read> statistics: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

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
    let of_group = statistics[at.z * p.groups + at.y / p.group_channels];
    let affine = affine_of(at.y);
    let scale = of_group.y * affine.x;
    let source = p.x_offset + at.z * p.x_batch_stride + at.y * p.plane;
    let to = p.out_offset + at.z * p.out_batch_stride + at.y * p.plane;
    let last = min((at.x + 1u) * 1024u, p.plane);
    for (var i = at.x * 1024u + lane; i < last; i += 64u) {
        out[to + i] = activated(fma(x[source + i] - of_group.x, scale, affine.y));
    }
}
