// Group normalisation: act((x - mean) / sqrt(variance + eps) * weight + bias), the mean and variance over a group of
// channels. A group is one dense run of elements, read in chunks.
// moments: a workgroup reduces one chunk to its mean and its sum of squared deviations.
// merge: a workgroup joins the chunks of one group and writes the centre and scale of its channels.
// main: a workgroup normalises 1,024 pixels of one channel.
//#use activation

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    affine: u32,
    batch: u32,
    channels: u32,
    plane: u32,
    groups: u32,
    group_len: u32,
    chunk_len: u32,
    chunks: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// Mean and squared deviations of every chunk of every group of every item.
@group(0) @binding(4) var<storage, read_write> chunk_moments: array<vec2<f32>>;
// Mean and scale of every channel of every item.
@group(0) @binding(5) var<storage, read_write> lines: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

// Count, mean, squared deviations of each lane's part.
var<workgroup> parts: array<vec3<f32>, 64>;

fn activated(v: f32) -> f32 {
//@body
}

// Moments of two sets together (Chan, Golub and LeVeque 1979).
fn join(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let count = a.x + b.x;
    let share = b.x / max(count, 1.0);
    let delta = b.y - a.y;
    return vec3(count, a.y + delta * share, a.z + b.z + delta * delta * a.x * share);
}

fn join_lanes(lane: u32, own: vec3<f32>) -> vec3<f32> {
    parts[lane] = own;
    for (var half = 32u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            parts[lane] = join(parts[lane], parts[lane + half]);
        }
    }
    workgroupBarrier();
    return parts[0];
}

fn load4(at: u32) -> vec4<f32> {
    return vec4(x[at], x[at + 64u], x[at + 128u], x[at + 192u]);
}

fn chunk_count(chunk: u32) -> u32 {
    return min(p.chunk_len, p.group_len - chunk * p.chunk_len);
}

@compute @workgroup_size(64)
fn moments(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= p.batch * p.groups * p.chunks {
        return;
    }
    let run = index / p.chunks;
    let chunk = index % p.chunks;
    let len = chunk_count(chunk);
    let base = p.x_offset + (run / p.groups) * p.x_batch_stride + (run % p.groups) * p.group_len
        + chunk * p.chunk_len;
    // Sixteen elements at a time, read once: deviations from their own mean cannot cancel.
    var own = vec3(0.0);
    var i = lane;
    for (; i + 960u < len; i += 1024u) {
        let v0 = load4(base + i);
        let v1 = load4(base + i + 256u);
        let v2 = load4(base + i + 512u);
        let v3 = load4(base + i + 768u);
        let mean = dot((v0 + v1) + (v2 + v3), vec4(0.0625));
        let d0 = v0 - mean;
        let d1 = v1 - mean;
        let d2 = v2 - mean;
        let d3 = v3 - mean;
        let squares = dot((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3), vec4(1.0));
        own = join(own, vec3(16.0, mean, squares));
    }
    for (; i < len; i += 64u) {
        own = join(own, vec3(1.0, x[base + i], 0.0));
    }
    let all = join_lanes(lane, own);
    if lane == 0u {
        chunk_moments[index] = all.yz;
    }
}

@compute @workgroup_size(64)
fn merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = group.y * groups.x + group.x;
    if run >= p.batch * p.groups {
        return;
    }
    var own = vec3(0.0);
    for (var chunk = lane; chunk < p.chunks; chunk += 64u) {
        own = join(own, vec3(f32(chunk_count(chunk)), chunk_moments[run * p.chunks + chunk]));
    }
    let all = join_lanes(lane, own);
    let rstd = 1.0 / sqrt(all.z / all.x + p.eps);
    let per_group = p.channels / p.groups;
    let item = run / p.groups;
    for (var k = lane; k < per_group; k += 64u) {
        let c = (run % p.groups) * per_group + k;
        var scale = rstd;
        if p.affine == 1u {
            scale *= weight[p.weight_offset + c];
        }
        lines[item * p.channels + c] = vec2(all.y, scale);
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
    let first = (index % blocks) * 1024u;
    let item = row / p.channels;
    let c = row % p.channels;
    let source = p.x_offset + item * p.x_batch_stride + c * p.plane;
    let to = p.out_offset + item * p.out_batch_stride + c * p.plane;
    let line = lines[row];
    var shift = 0.0;
    if p.affine == 1u {
        shift = bias[p.bias_offset + c];
    }
    let last = min(first + 1024u, p.plane);
    for (var i = first + lane; i < last; i += 64u) {
        out[to + i] = activated(fma(x[source + i] - line.x, line.y, shift));
    }
}
