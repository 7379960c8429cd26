// Sums that the gradients of a group norm are made of. With xhat = (x - mean) / sqrt(variance + eps) and d = dy *
// activation'(weight * xhat + bias), for each channel of each item: the sum of d and that of d * xhat over its pixels,
// and beside them the statistics of the channel's group, which group_norm_moments.wgsl computed.
// x and dy are [n][channels][plane], out is [n][4][channels]: sum of d, sum of d * xhat, mean, inverse standard
// deviation.
// whole: a workgroup sums a whole channel. Workgroups: x over channels, y over the batch.
// chunks: a workgroup sums chunk_len pixels of a channel.
//     Workgroups: x over the chunks of a channel, y over channels, z over the batch.
// merge: a workgroup adds the chunks of a channel. Workgroups: x over channels, y over the batch.
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
    out_offset: u32,
    out_batch_stride: u32,
    // Whether there are a weight and a bias.
    affine: u32,
    groups: u32,
    // Channels of a group.
    group_channels: u32,
    channels: u32,
    plane: u32,
    // Pixels of a chunk (the last one of a channel may be shorter), and how many chunks a channel has.
    chunk_len: u32,
    chunk_count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// Mean and inverse standard deviation: [n][groups].
@group(0) @binding(5) var<storage, read> statistics: array<vec2<f32>>;
// Both sums of every chunk: [n][channels][chunk_count].
@group(0) @binding(6) var<storage, read_write> partial: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

fn statistics_of(item: u32, c: u32) -> vec2<f32> {
    return statistics[item * p.groups + c / p.group_channels];
}

// The sums of d and of d * xhat over the pixels of a channel from first up to last.
fn sums(lane: u32, item: u32, c: u32, first: u32, last: u32) -> vec2<f32> {
    let source = p.x_offset + item * p.x_batch_stride + c * p.plane;
    let grads = p.dy_offset + item * p.dy_batch_stride + c * p.plane;
    let of_group = statistics_of(item, c);
    let affine = affine_of(c);
    let scale = of_group.y * affine.x;
    var own = vec2(0.0);
    for (var i = first + lane; i < last; i += 64u) {
        let deviation = x[source + i] - of_group.x;
        let d = dy[grads + i] * derivative(fma(deviation, scale, affine.y));
        own += vec2(d, d * deviation);
    }
    return total(lane, own) * vec2(1.0, of_group.y);
}

fn finish(lane: u32, item: u32, c: u32, all: vec2<f32>) {
    if lane == 0u {
        let to = p.out_offset + item * p.out_batch_stride + c;
        let of_group = statistics_of(item, c);
        out[to] = all.x;
        out[to + p.channels] = all.y;
        out[to + 2u * p.channels] = of_group.x;
        out[to + 3u * p.channels] = of_group.y;
    }
}

@compute @workgroup_size(64)
fn whole(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    finish(lane, at.y, at.x, sums(lane, at.y, at.x, 0u, p.plane));
}

@compute @workgroup_size(64)
fn chunks(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let first = at.x * p.chunk_len;
    let all = sums(lane, at.z, at.y, first, min(first + p.chunk_len, p.plane));
    if lane == 0u {
        partial[(at.z * p.channels + at.y) * p.chunk_count + at.x] = all;
    }
}

@compute @workgroup_size(64)
fn merge(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let first = (at.y * p.channels + at.x) * p.chunk_count;
    var own = vec2(0.0);
    for (var chunk = lane; chunk < p.chunk_count; chunk += 64u) {
        own += partial[first + chunk];
    }
    finish(lane, at.y, at.x, total(lane, own));
}
