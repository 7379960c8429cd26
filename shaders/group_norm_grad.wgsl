// The gradient of a group norm by x: rstd * (weight * d - mean(weight * d) - xhat * mean(weight * d * xhat)), means over
// the group, d the gradient before the activation, xhat the normalised x. `sums` is what group_norm_sums.wgsl writes.
// means: a workgroup computes both means of one group.
// main: a workgroup writes 1,024 pixels of one channel.
//#use activation
//#use group_norm
//#use lanes

@group(0) @binding(5) var<storage, read> sums: array<f32>;
@group(0) @binding(6) var<storage, read_write> group_means: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn means(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = group.y * groups.x + group.x;
    if run >= p.batch * p.groups {
        return;
    }
    let per_group = p.channels / p.groups;
    let first = (run % p.groups) * per_group;
    let row = p.sums_offset + run / p.groups * p.sums_batch_stride;
    var own = vec2(0.0);
    for (var c = first + lane; c < first + per_group; c += 64u) {
        own += affine_of(c).x * vec2(sums[row + c], sums[row + p.channels + c]);
    }
    let all = total(lane, own);
    if lane == 0u {
        group_means[run] = all / f32(per_group * p.plane);
    }
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
    let item = row / p.channels;
    let c = row % p.channels;
    let source = p.x_offset + item * p.x_batch_stride + c * p.plane;
    let grads = p.dy_offset + item * p.dy_batch_stride + c * p.plane;
    let to = p.out_offset + item * p.out_batch_stride + c * p.plane;
    let line = p.sums_offset + item * p.sums_batch_stride + 2u * p.channels + c;
    let mean = sums[line];
    let rstd = sums[line + p.channels];
    let affine = affine_of(c);
    let scale = rstd * affine.x;
    let of_group = group_means[item * p.groups + c / (p.channels / p.groups)];
    let first = (index % blocks) * 1024u;
    let last = min(first + 1024u, p.plane);
    for (var i = first + lane; i < last; i += 64u) {
        let deviation = x[source + i] - mean;
        let d = before_activation(deviation, scale, affine.y, dy[grads + i]);
        out[to + i] = rstd * (affine.x * d - of_group.x - deviation * rstd * of_group.y);
    }
}
