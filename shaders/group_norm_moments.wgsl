// Mean and inverse standard deviation of every group of a group norm.
// x is [n][groups][group_len], statistics [n][groups].
// whole: a workgroup reads a whole group. Workgroups: x over groups, y over the batch.
// chunks: a workgroup reads chunk_len elements of a group, of which it writes mean and sum of squared deviations.
//     Workgroups: x over the chunks of a group, y over groups, z over the batch.
// merge: a workgroup joins the chunks of a group. Workgroups: x over groups, y over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    groups: u32,
    // Elements of a group.
    group_len: u32,
    // Elements of a chunk (the last one of a group may be shorter), and how many chunks a group has.
    chunk_len: u32,
    chunk_count: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// Mean, and sum of squared deviations from it, of every chunk: [n][groups][chunk_count].
@group(0) @binding(2) var<storage, read_write> chunk_moments: array<vec2<f32>>;
// Mean and inverse standard deviation.
@group(0) @binding(3) var<storage, read_write> statistics: array<vec2<f32>>;

// The moments of some elements: their count, their mean, the sum of their squared deviations from it.
var<workgroup> parts: array<vec3<f32>, 64>;

// The moments of two sets together (Chan, Golub and LeVeque 1979).
fn join(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let count = a.x + b.x;
    let share = b.x / max(count, 1.0);
    let delta = b.y - a.y;
    return vec3(count, a.y + delta * share, a.z + b.z + delta * delta * a.x * share);
}

// The moments of the sets of all lanes together.
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

// The moments of the len elements of x from base on, which the lanes read together.
fn moments(lane: u32, base: u32, len: u32) -> vec3<f32> {
    var own = vec3(0.0);
    var i = lane;
    // Sixteen elements are read once and held in registers: their deviations are taken from their own mean, so that
    // squares lose no digits however far the mean is from zero.
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
    return join_lanes(lane, own);
}

// Writes the statistics of a group whose elements have the moments `all`.
fn finish(lane: u32, group: u32, all: vec3<f32>) {
    if lane == 0u {
        statistics[group] = vec2(all.y, 1.0 / sqrt(all.z / all.x + p.eps));
    }
}

fn chunk_size(chunk: u32) -> u32 {
    return min(p.chunk_len, p.group_len - chunk * p.chunk_len);
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
    let base = p.x_offset + at.y * p.x_batch_stride + at.x * p.group_len;
    finish(lane, at.y * p.groups + at.x, moments(lane, base, p.group_len));
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
    let base = p.x_offset + at.z * p.x_batch_stride + at.y * p.group_len + at.x * p.chunk_len;
    let all = moments(lane, base, chunk_size(at.x));
    if lane == 0u {
        chunk_moments[(at.z * p.groups + at.y) * p.chunk_count + at.x] = all.yz;
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
    let group = at.y * p.groups + at.x;
    var own = vec3(0.0);
    for (var chunk = lane; chunk < p.chunk_count; chunk += 64u) {
        own = join(own, vec3(f32(chunk_size(chunk)), chunk_moments[group * p.chunk_count + chunk]));
    }
    finish(lane, group, join_lanes(lane, own));
}
