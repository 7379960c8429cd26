// The mean of each plane: x is [n][channels][plane], out [n][channels].
// whole: a workgroup averages a whole plane. Workgroups: x over channels, y over the batch.
// chunks: a workgroup sums chunk_len pixels of a plane.
//     Workgroups: x over the chunks of a plane, y over channels, z over the batch.
// merge: a workgroup joins the chunks of a plane. Workgroups: x over channels, y over the batch.
//#use place
//#use lanes

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    plane: u32,
    // Pixels of a chunk (the last one of a plane may be shorter), and how many chunks a plane has.
    chunk_len: u32,
    chunk_count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// The sum of every chunk: [n][channels][chunk_count].
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn load4(at: u32) -> vec4<f32> {
    return vec4(x[at], x[at + 64u], x[at + 128u], x[at + 192u]);
}

// The sum of the pixels of a plane from first up to last.
fn sum(lane: u32, item: u32, c: u32, first: u32, last: u32) -> f32 {
    let base = p.x_offset + item * p.x_batch_stride + c * p.plane;
    var sums = vec4(0.0);
    var i = first + lane;
    for (; i + 960u < last; i += 1024u) {
        let at = base + i;
        sums += (load4(at) + load4(at + 256u)) + (load4(at + 512u) + load4(at + 768u));
    }
    for (; i < last; i += 64u) {
        sums.x += x[base + i];
    }
    return total(lane, vec2(dot(sums, vec4(1.0)), 0.0)).x;
}

fn finish(lane: u32, item: u32, c: u32, all: f32) {
    if lane == 0u {
        out[p.out_offset + item * p.out_batch_stride + c] = all / f32(p.plane);
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
    finish(lane, at.y, at.x, sum(lane, at.y, at.x, 0u, p.plane));
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
    let all = sum(lane, at.z, at.y, first, min(first + p.chunk_len, p.plane));
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
    var own = 0.0;
    for (var chunk = lane; chunk < p.chunk_count; chunk += 64u) {
        own += partial[first + chunk];
    }
    finish(lane, at.y, at.x, total(lane, vec2(own, 0.0)).x);
}
