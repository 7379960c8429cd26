// Sums over the channels of a group norm's gradient: of d, the gradient before the activation, and of d * xhat, xhat the
// normalised x; beside them mean and inverse standard deviation.
// chunks: a workgroup sums a chunk of one channel.
// main: an invocation joins the chunks of one channel.
//#use activation
//#use group_norm
//#use lanes

// Mean and inverse standard deviation of every channel of every item.
@group(0) @binding(5) var<storage, read_write> lines: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> partial: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn chunks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    let row = index / p.chunk_count;
    if row >= p.batch * p.channels {
        return;
    }
    let item = row / p.channels;
    let c = row % p.channels;
    let first = (index % p.chunk_count) * p.chunk_len;
    let last = min(first + p.chunk_len, p.plane);
    let source = p.x_offset + item * p.x_batch_stride + c * p.plane;
    let grads = p.dy_offset + item * p.dy_batch_stride + c * p.plane;
    let line = lines[row];
    let affine = affine_of(c);
    let scale = line.y * affine.x;
    var sums = vec2(0.0);
    for (var i = first + lane; i < last; i += 64u) {
        let deviation = x[source + i] - line.x;
        let d = before_activation(deviation, scale, affine.y, dy[grads + i]);
        sums += vec2(d, d * deviation);
    }
    let all = total(lane, sums);
    if lane == 0u {
        partial[index] = all * vec2(1.0, line.y);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * groups.x + group.x) * 64u + lane;
    if row >= p.batch * p.channels {
        return;
    }
    var sums = vec2(0.0);
    for (var chunk = 0u; chunk < p.chunk_count; chunk++) {
        sums += partial[row * p.chunk_count + chunk];
    }
    let line = lines[row];
    let to = p.out_offset + row / p.channels * p.out_batch_stride + row % p.channels;
    out[to] = sums.x;
    out[to + p.channels] = sums.y;
    out[to + 2u * p.channels] = line.x;
    out[to + 3u * p.channels] = line.y;
}
